"""What one training step computes: one forward, the features that the losses asked for, the sum of their losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.network.network import Network
from edgetl.train.mixing import MIXED, values_of
from edgetl.train.taps import Features, full, tapped
from edgetl.train.views import expanded
from edgetl.types import Json


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

    whole: bool = False
    """Where samples are mixed it looks at whole ones, and gets the answers to the mixtures as `mixed_logits`."""

    facts: Mapping[str, Json] = MappingProxyType({})
    """What was found out when it was made, for the record of the training."""

    @abstractmethod
    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and what to log of it, both summed over the B samples of the batch.

        Sums, because the parts of a batch that several processes hold are not equally long.
        `logits` is (B, labels), `progress` the share of training done, in [0, 1). A loss of M views gets B * M of
        everything, sample by sample, with the number of the view in `batch["view"]`; what tells of mixtures, see
        train/mixing.py, is always (B, ...).
        """


@dataclass(frozen=True)
class Term:
    """One loss and its weight in the sum."""

    loss: Loss
    weight: float = 1.0


@dataclass(frozen=True)
class Seen:
    """What went through a network, and what came out."""

    batch: Mapping[str, Tensor]
    logits: Tensor
    features: Features

    def part(self, which: slice, batch: Mapping[str, Tensor]) -> Seen:
        """Return some of it, as the answers to another batch."""
        return Seen(batch, self.logits[which], self.features.part(which, len(self.logits)))


class Lesson(nn.Module):
    """A network and its losses as one module, so that one wrapper shares it out over processes."""

    def __init__(self, net: Network, terms: Sequence[Term], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.family = net.family
        self.network = net.module
        self.losses = nn.ModuleList(term.loss for term in terms)
        self.terms = tuple(terms)
        self.dtype = dtype
        # a plain dict, so that the tapped layers are not registered a second time
        self._tapped = {place: net.at(place) for term in terms for place in term.loss.taps}
        counts = {term.loss.views for term in terms} - {1}
        if len(counts) > 1:
            problem = f"the losses of one step ask for {' and '.join(map(str, sorted(counts)))} views of a sample"
            raise BadInput(problem, fix="give them the same number of views")
        self._views = max(counts, default=1)
        self._whole = any(term.loss.whole for term in terms)

    def forward(self, batch: Mapping[str, Tensor], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses and their logs, all summed over the batch."""
        with torch.autocast(batch["index"].device.type, self.dtype, enabled=self.dtype != torch.float32):
            several, whole, single = self._answered(batch)
            total = single.logits.new_zeros(())
            logs: dict[str, Tensor] = {}
            for term in self.terms:
                seen = several if term.loss.views > 1 else whole if term.loss.whole else single
                loss, said = term.loss(seen.logits, seen.features, seen.batch, progress)
                total = total + term.weight * loss
                logs |= said
        return total, logs

    def _answered(self, batch: Mapping[str, Tensor]) -> tuple[Seen, Seen, Seen]:
        """Return the answers for losses of several views, for those of whole samples, and for the others."""
        about = {name: batch[name] for name in MIXED if name in batch}
        clean = {name: value for name, value in batch.items() if name not in about}
        wide = clean if self._views == 1 else expanded(clean, self._views)
        count = len(wide["index"])
        if not about:
            several = self._through(wide)
            single = several if self._views == 1 else several.part(slice(0, count, self._views), clean)
            return several, single, single
        name = values_of(clean)
        mixture = clean | about | {name: about["mixed"]}
        if not self._whole:
            single = self._through(mixture)
            return single, single, single
        both = self._through({name: torch.cat([wide[name], about["mixed"]]), "index": wide["index"]})
        single = both.part(slice(count, None), mixture)
        told = about | {"mixed_logits": single.logits}
        return both.part(slice(count), wide | told), both.part(slice(0, count, self._views), clean | told), single

    def _through(self, batch: Mapping[str, Tensor]) -> Seen:
        with tapped(self._tapped) as features:
            logits = self.family.logits(self.network, batch)
        return Seen(batch, full(logits), features.full())


def epoch_of(progress: float, epochs: int) -> int:
    """Return the number of the epoch, from 1, that a share of the training lies in."""
    return min(epochs, int(progress * epochs + 1e-9) + 1)
