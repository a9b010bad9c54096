"""Tokens that relate to each other as the teacher's do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.losses._places import pairs, parts, split_heads, valid
from edgetl.recipe.objective import Objective
from edgetl.train.course import Course, Live
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features, width_of

PARTS = ("attn.q", "attn.k", "attn.v")


class Relations(Loss):
    """KL of the softmax of Q Q', K K' and V V' of one block (MiniLMv2, Wang et al. 2021, arXiv 2012.15828).

    Heads are cut anew into as many relation heads on both sides, so that neither widths nor head counts need agree.
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str], teacher: Live, heads: int) -> None:
        super().__init__()
        self.theirs, self.teacher, self.heads = tuple(theirs), teacher, heads
        self.taps = tuple(ours)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples, and over queries, keys and values; means over heads and tokens."""
        seen = self.teacher.features(batch)
        loss = logits.new_zeros(())
        for ours, theirs in zip(self.taps, self.theirs, strict=True):
            share = valid(batch, features[ours])
            log_q, log_p = (related(x, share, self.heads) for x in (features[ours], seen[theirs]))
            gap = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(1)
            loss = loss + (gap * share).sum()
        return loss, {"relations": loss.detach()}


def related(x: Tensor, share: Tensor, heads: int) -> Tensor:
    """Return log softmax(x x' / sqrt(d)) over the tokens that are not padding, (B, heads, T, T), of (B, T, D)."""
    parted = split_heads(x, heads)
    product = parted @ parted.mT / math.sqrt(parted.shape[-1])
    return product.masked_fill(share[:, None, None, :] == 0, -1e9).log_softmax(dim=-1)


class Relation(Objective):
    """The relations between tokens in one block of the teacher, on the same augmented inputs."""

    use: Literal["relations"] = "relations"
    heads: int | None = Field(None, ge=1)  # relation heads; default: the largest number up to 64 that both widths allow
    layers: dict[int, int] | None = Field(None, min_length=1, max_length=1)  # student's block: teacher's; default: last
    taught: ClassVar[bool] = True
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> Relations:
        """Return the divergence of one pair of blocks."""
        student, teacher = course.net, course.source
        ours, theirs = pairs(student, teacher, self.layers)[-1]
        ours_paths, theirs_paths = parts(student, ours, PARTS), parts(teacher, theirs, PARTS)
        heads = _heads(self.heads, [width_of(student, ours_paths[0]), width_of(teacher, theirs_paths[0])])
        return Relations(ours_paths, theirs_paths, Live(teacher, theirs_paths), heads)


def _heads(wanted: int | None, widths: Sequence[int]) -> int:
    common = math.gcd(*widths)
    if wanted is None:
        return max(n for n in range(1, min(64, common) + 1) if common % n == 0)
    if common % wanted:
        fix = f"use a divisor of {common}"
        raise BadInput(f"relations: {wanted} heads do not divide the widths {widths[0]} and {widths[1]}", fix=fix)
    return wanted


PLUGIN = Relation
