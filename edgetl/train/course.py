"""What losses are made from, and a teacher that looks at every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgetl.errors import BadInput
from edgetl.network.names import live
from edgetl.network.network import Network
from edgetl.train.answers import table
from edgetl.train.lesson import Term
from edgetl.train.taps import Features, full, tapped

if TYPE_CHECKING:
    from edgetl.recipe.objective import Objective
    from edgetl.recipe.schema import Context


@dataclass(frozen=True)
class Course:
    """What one training has: the network that learns, its teacher, the data, and how long it takes."""

    net: Network
    teacher: Network | None
    ctx: Context
    epochs: int

    @property
    def source(self) -> Network:
        """Return the teacher.

        Raises:
            BadInput: there is none.

        """
        if self.teacher is None:
            raise BadInput("a loss learns from a teacher, and the step has none", fix="add teacher: {step: NAME}")
        return self.teacher

    def answers(self) -> Tensor:
        """Return the teacher's logits (N, labels) on clean inputs, by row of the data.

        Raises:
            BadInput: there is no teacher, or it answers with other labels.

        """
        return torch.from_numpy(table(self._same_labels(), self.ctx))

    def live(self, places: Sequence[str] = ()) -> Live:
        """Return the teacher as one that sees every batch; without places, for its answers.

        Raises:
            BadInput: there is no teacher, or it answers with other labels and its answers are wanted.

        """
        return Live(self.source if places else self._same_labels(), places)

    def _same_labels(self) -> Network:
        if self.source.labels != self.net.labels:
            problem = f"the teacher has {len(self.source.labels)} labels that differ from the student's"
            raise BadInput(problem, fix="teach with a network of the same labels")
        return self.source


class Live:
    """A frozen teacher that sees every batch as the student does.

    It is no module: nothing of it trains, is checkpointed or shared out over processes.
    """

    def __init__(self, net: Network, places: Sequence[str]) -> None:
        self._family, self._module = net.family, net.module.requires_grad_(False).eval()
        names = live(net.family, net.module)
        self._layers = {place: names.at(place) for place in places}

    @torch.no_grad()
    def answers(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return its logits (B, labels), on the batch's device."""
        self._module.to(batch["index"].device)
        return full(self._family.logits(self._module, batch))

    @torch.no_grad()
    def features(self, batch: Mapping[str, Tensor]) -> Features:
        """Return the outputs of its places, by name, on the batch's device."""
        self._module.to(batch["index"].device)
        with tapped(self._layers) as features:
            self._family.logits(self._module, batch)
        return features.full()


def terms(objectives: Sequence[Objective], course: Course) -> list[Term]:
    """Return the losses of a step; those without weight are left out.

    Raises:
        BadInput: the network, the teacher or the data do not have what a loss needs.

    """
    return [Term(o.loss(course), o.weight) for o in objectives if o.weight > 0]
