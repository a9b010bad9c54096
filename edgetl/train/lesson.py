"""What one training step computes: one forward, the features that the losses asked for, the sum of their losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from edgetl.network.names import live
from edgetl.network.network import Network


class Loss(nn.Module, ABC):
    """What a network learns from. Its parameters train with the network; it is dropped after training."""

    taps: tuple[str, ...] = ()
    """Canonical paths of the layers whose outputs it wants in `features`."""

    @abstractmethod
    def forward(
        self, logits: Tensor, features: Mapping[str, Tensor], batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and what to log of it, both summed over the B samples of the batch.

        Sums, because the parts of a batch that several processes hold are not equally long.
        `logits` is (B, labels), `progress` the share of training done, in [0, 1).
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

    def forward(self, batch: Mapping[str, Tensor], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses and their logs, all summed over the batch."""
        with _open(self._tapped) as features:
            logits = self.family.logits(self.network, batch)
        total = logits.new_zeros(())
        logs: dict[str, Tensor] = {}
        for term in self.terms:
            loss, said = term.loss(logits, features, batch, progress)
            total = total + term.weight * loss
            logs |= said
        return total, logs


@contextmanager
def _open(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the layers, by name, for as long as the block lasts."""
    features: dict[str, Tensor] = {}

    def keep(place: str, output: Tensor | tuple[Tensor, ...]) -> None:
        features[place] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks:
        for place, layer in layers.items():
            handle = layer.register_forward_hook(lambda _, __, output, place=place: keep(place, output))
            hooks.callback(handle.remove)
        yield features
