"""What one training step computes: one forward, the features that the losses asked for, the sum of their losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.network.names import live
from edgetl.network.network import Network
from edgetl.train.taps import Features, tapped
from edgetl.train.views import expanded


class Loss(nn.Module, ABC):
    """What a network learns from. Its parameters train with the network; it is dropped after training."""

    taps: tuple[str, ...] = ()
    """Canonical paths of the layers whose outputs it wants in `features`."""

    tables: tuple[str, ...] = ()
    """Names of buffers with one row per row of the data, of which a step rewrites those of its batch."""

    coupled: bool = False
    """Its sum depends on which samples share a batch; over several processes it is that of each one's own part."""

    views: int = 1
    """How many transformed views of every sample it looks at; see `expanded` in train/views.py."""

    @abstractmethod
    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and what to log of it, both summed over the B samples of the batch.

        Sums, because the parts of a batch that several processes hold are not equally long.
        `logits` is (B, labels), `progress` the share of training done, in [0, 1). A loss of M views gets B * M of
        everything, sample by sample, with the number of the view in `batch["view"]`.
        """


@dataclass(frozen=True)
class Term:
    """One loss and its weight in the sum."""

    loss: Loss
    weight: float = 1.0


class Lesson(nn.Module):
    """A network and its losses as one module, so that one wrapper shares it out over processes."""

    def __init__(self, net: Network, terms: Sequence[Term]) -> None:
        super().__init__()
        self.family = net.family
        self.network = net.module
        self.losses = nn.ModuleList(term.loss for term in terms)
        self.terms = tuple(terms)
        names = live(net.family, net.module)
        # a plain dict, so that the tapped layers are not registered a second time
        self._tapped = {place: names.at(place) for term in terms for place in term.loss.taps}
        counts = {term.loss.views for term in terms} - {1}
        if len(counts) > 1:
            problem = f"the losses of one step ask for {' and '.join(map(str, sorted(counts)))} views of a sample"
            raise BadInput(problem, fix="give them the same number of views")
        self._views = max(counts, default=1)

    def forward(self, batch: Mapping[str, Tensor], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses and their logs, all summed over the batch."""
        seen = batch if self._views == 1 else expanded(batch, self._views)
        with tapped(self._tapped) as features:
            logits = self.family.logits(self.network, seen)
        plain = (
            (logits, features, batch)
            if self._views == 1
            else (logits[:: self._views], features.every(self._views), batch)
        )
        total = logits.new_zeros(())
        logs: dict[str, Tensor] = {}
        for term in self.terms:
            loss, said = term.loss(*(plain if term.loss.views == 1 else (logits, features, seen)), progress)
            total = total + term.weight * loss
            logs |= said
        return total, logs


def epoch_of(progress: float, epochs: int) -> int:
    """Return the number of the epoch, from 1, that a share of the training lies in."""
    return min(epochs, int(progress * epochs + 1e-9) + 1)
