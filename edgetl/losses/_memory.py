"""What a network answered before, to teach it: a table of the epoch before, its weights then, or their average.

Letters: R rows of the data, B samples, M views, L heads, N labels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgetl.losses._heads import Head
from edgetl.losses.ps_kd import blended
from edgetl.network.family import Family
from edgetl.network.names import live
from edgetl.network.network import Network
from edgetl.train.mixing import MIXED, values_of
from edgetl.train.taps import full, tapped

Answers = tuple[Tensor, Tensor]
"""Probabilities of the upright views, (B, N), and of the heads for all views, (B * M, L, M * N)."""


def samples(batch: Mapping[str, Tensor], views: int) -> dict[str, Tensor]:
    """Return what is known of the B samples of a batch of their views."""
    return {name: value if name in MIXED else value[::views] for name, value in batch.items()}


class Memory(nn.Module, ABC):
    """The self-teacher."""

    name: str
    tables: tuple[str, ...] = ()
    """Names of its buffers with one row per row of the data."""

    @abstractmethod
    def read(self, batch: Mapping[str, Tensor], epoch: int) -> Answers | None:
        """Return what it answers for the batch, or None where there is nothing to remember yet.

        Where samples are mixed, the upright views that it answers are the mixtures.
        """

    @abstractmethod
    def write(self, batch: Mapping[str, Tensor], answers: Answers) -> None:
        """Remember the answers of this step."""


class Table(Memory):
    """The answers of the epoch before, on that epoch's augmentation: R * (N + M * L * M * N) values."""

    upright: Tensor
    heads: Tensor
    name = "table"
    tables = ("upright", "heads")

    def __init__(self, rows: int, labels: int, views: int, heads: int) -> None:
        super().__init__()
        self.views = views
        self.register_buffer("upright", torch.zeros(rows, labels))
        self.register_buffer("heads", torch.zeros(rows, views, heads, views * labels))

    def read(self, batch: Mapping[str, Tensor], epoch: int) -> Answers | None:
        """Return the rows of the batch."""
        if epoch == 1:
            return None
        return blended(self.upright, samples(batch, self.views)), self.heads[batch["index"], batch["view"]]

    def write(self, batch: Mapping[str, Tensor], answers: Answers) -> None:
        """Overwrite the rows of the batch."""
        self.upright[batch["index"][:: self.views]] = answers[0].to(self.upright.dtype)
        self.heads[batch["index"], batch["view"]] = answers[1].to(self.heads.dtype)


class Twin(Memory):
    """Weights of earlier, asked about the very views of the step: those at the end of the epoch before, or an average.

    One forward more in every step, and as much memory as the network and its heads. A snapshot is taken with the first
    step of an epoch, so that it is the same after a killed training goes on; an average is checkpointed.
    """

    def __init__(self, net: Network, heads: Sequence[Head], views: int, decay: float | None) -> None:
        super().__init__()
        self.views, self.decay, self.epoch = views, decay, 0
        self.name = "snapshot" if decay is None else "average"
        # what trains, not registered here a second time
        self._now: tuple[nn.Module, tuple[nn.Module, ...]] = (net.module, tuple(heads))
        self._family: Family = net.family
        before = nn.ModuleList([copy.deepcopy(net.module), *(copy.deepcopy(h) for h in heads)])
        self.before = before.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Twin:
        """Stay as a network that only answers."""
        super().train(mode)
        self.before.eval()
        return self

    @torch.no_grad()
    def read(self, batch: Mapping[str, Tensor], epoch: int) -> Answers | None:
        """Return the answers of the weights of before."""
        if self.training:
            self._follow(epoch)
        if epoch == 1 and self.decay is None:
            return None
        network, *heads = self.before
        names = live(self._family, network)
        places = [head.place for head in heads if isinstance(head, Head)]
        with tapped({place: names.at(place) for place in places}) as features:
            logits = self._family.logits(network, batch)
            upright = logits[:: self.views]
        if "mixed" in batch:
            upright = self._family.logits(network, {values_of(batch): batch["mixed"]})
        every = [head(features, batch)[1].softmax(-1) for head in heads]
        return full(upright).softmax(-1), torch.stack(every, 1)

    def write(self, batch: Mapping[str, Tensor], answers: Answers) -> None:
        """Do nothing: the weights are what is remembered."""

    def _follow(self, epoch: int) -> None:
        keep = 0.0 if self.decay is None else self.decay
        if self.decay is None and epoch == self.epoch:
            return
        self.epoch = epoch
        now = [self._now[0], *self._now[1]]
        for old, new in zip(self.before, now, strict=True):
            for a, b in zip((*old.parameters(), *old.buffers()), (*new.parameters(), *new.buffers()), strict=True):
                a.copy_(keep * a + (1 - keep) * b if a.is_floating_point() else b)
