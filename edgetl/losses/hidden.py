"""Hidden states that a projection turns into the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.losses._places import pairs, rows, valid
from edgetl.recipe.objective import Objective
from edgetl.train.course import Course, Live
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features, width_of


class HiddenStates(Loss):
    """Mean squared error of block outputs, summed over the pairs of blocks (TinyBERT, Jiao et al. 2020, 1909.10351).

    Where widths differ a linear map of the student's, shared by all blocks as in the authors' code, is trained too.
    """

    def __init__(self, blocks: Sequence[tuple[str, str]], teacher: Live, widths: tuple[int, int]) -> None:
        super().__init__()
        self.blocks, self.teacher = tuple(blocks), teacher
        self.taps = tuple(ours for ours, _ in blocks)
        self.project = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        seen = self.teacher.features(batch)
        loss = logits.new_zeros(())
        for ours, theirs in self.blocks:
            student, teacher = rows(features[ours]), rows(seen[theirs])
            if student.shape[:2] != teacher.shape[:2]:
                fix = "compare blocks that see the input at one resolution, or use losses of the answers"
                sizes = f"{student.shape[1]} and {teacher.shape[1]}"
                raise BadInput(f"hidden: {ours} and the teacher's {theirs} have {sizes} positions", fix=fix)
            error = (self.project(student) - teacher).square().mean(-1)
            loss = loss + (error * valid(batch, error[..., None])).sum()
        return loss, {"hidden": loss.detach()}


class Hidden(Objective):
    """The teacher's block outputs, on the same augmented inputs."""

    use: Literal["hidden"] = "hidden"
    layers: dict[int, int] | None = None  # student's block: teacher's, by number from 0; default: evenly spread
    taught: ClassVar[bool] = True
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> HiddenStates:
        """Return the error of the chosen pairs of blocks."""
        student, teacher = course.net, course.source
        chosen = pairs(student, teacher, self.layers)
        ours, theirs = (
            {width_of(net, place) for place in places}
            for net, places in zip((student, teacher), zip(*chosen, strict=True), strict=True)
        )
        if len(ours) > 1 or len(theirs) > 1:
            fix = "name layers of one width"
            raise BadInput(f"hidden: the blocks compared are {sorted(ours | theirs)} wide", fix=fix)
        torch.manual_seed(course.ctx.seed)
        return HiddenStates(chosen, Live(teacher, [b for _, b in chosen]), (ours.pop(), theirs.pop()))


PLUGIN = Hidden
