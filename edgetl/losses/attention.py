"""Attention scores like the teacher's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from edgetl.errors import BadInput
from edgetl.losses._places import pairs, parts, split_heads, valid
from edgetl.network.network import Network
from edgetl.recipe.objective import Objective
from edgetl.train.course import Course, Live
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features


class Scores(Loss):
    """Mean squared error of the scores before the softmax, summed over the pairs of blocks.

    TinyBERT, Jiao et al. 2020, arXiv 1909.10351. Scores of padding, which no softmax sees, are left out.
    """

    def __init__(self, blocks: Sequence[tuple[list[str], list[str]]], teacher: Live, heads: int) -> None:
        super().__init__()
        self.blocks, self.teacher, self.heads = tuple(blocks), teacher, heads
        self.taps = tuple(path for ours, _ in blocks for path in ours)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        seen = self.teacher.features(batch)
        loss = logits.new_zeros(())
        for ours, theirs in self.blocks:
            student = scores(features[ours[0]], features[ours[1]], self.heads)
            teacher = scores(seen[theirs[0]], seen[theirs[1]], self.heads)
            error = (student - teacher).square().mean(1)
            share = valid(batch, features[ours[0]])
            loss = loss + (error * share[:, :, None] * share[:, None, :]).sum()
        return loss, {"attention": loss.detach()}


def scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Return Q K' / sqrt(d) per head, (B, heads, T, T), of (B, T, heads * d) queries and keys."""
    q, k = (split_heads(x, heads) for x in (q, k))
    return q @ k.mT / math.sqrt(q.shape[-1])


def head_counts(net: Network, blocks: Sequence[str]) -> set[int]:
    """Return how many heads the blocks have."""
    return {g.count for g in net.family.units(net.module) if g.kind == "heads" and g.place.rpartition(".")[0] in blocks}


class Attention(Objective):
    """The teacher's attention scores, on the same augmented inputs."""

    use: Literal["attention"] = "attention"
    layers: dict[int, int] | None = None  # student's block: teacher's, by number from 0; default: evenly spread
    taught: ClassVar[bool] = True
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> Scores:
        """Return the error of the chosen pairs of blocks; all must have equally many heads."""
        student, teacher = course.net, course.source
        chosen = pairs(student, teacher, self.layers)
        paths = [(parts(student, a, ("attn.q", "attn.k")), parts(teacher, b, ("attn.q", "attn.k"))) for a, b in chosen]
        counts = head_counts(student, [a for a, _ in chosen]) | head_counts(teacher, [b for _, b in chosen])
        if len(counts) != 1:
            fix = "use the loss 'relations', which takes any number of heads"
            raise BadInput(f"attention: the blocks compared have {sorted(counts)} heads", fix=fix)
        return Scores(paths, Live(teacher, [p for _, theirs in paths for p in theirs]), counts.pop())


PLUGIN = Attention
