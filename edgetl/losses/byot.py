"""BYOT: classifiers inside the network learn the labels, and what its last classifier and last features say.

Be Your Own Teacher, Zhang et al. 2019, arXiv 1905.08094:

    CE(y, p) + sum over the stages but the last of  (1 - a) CE(y, q) + a T^2 KL(p || q) + hint * mean((h - f)^2)

p is the network's own answer and f its last features, both detached where they teach; q and h are those of the
classifier behind a stage. The paper gives no weights; a and T are those of public code, the hint's reduction is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.losses._heads import Head, heads, hints, stages_of
from edgetl.losses.logits import softened
from edgetl.recipe.objective import Objective
from edgetl.train.course import Course
from edgetl.train.lesson import Loss
from edgetl.train.mixing import cross_entropy
from edgetl.train.taps import Features


class OwnTeacher(Loss):
    """The terms above."""

    def __init__(self, options: Byot, made: list[Head], last: str) -> None:
        super().__init__()
        self.options, self.last = options, last
        self.heads = nn.ModuleList(made)
        self.taps = (*(head.place for head in made), last)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        found = [head(features, batch) for head in self.heads]
        said = [answer for _, answer in found]
        alpha, temperature = self.options.alpha, self.options.temperature
        zero = logits.new_zeros(1)
        hard = torch.stack([cross_entropy(one, batch) for one in said] or [*zero]).sum()
        soft = torch.stack([softened(logits.detach(), one, temperature) for one in said] or [*zero]).sum()
        logs = {
            "labels": cross_entropy(logits, batch),
            "shallow_labels": (1 - alpha) * hard,
            "deep_to_shallow": alpha * soft,
            "hint": self.options.hint * hints([h for h, _ in found], features[self.last], batch),
        }
        loss = torch.stack([*logs.values()]).sum()
        return loss, {name: value.detach() for name, value in logs.items()}


class Byot(Objective):
    """Self-distillation from the last classifier to those behind earlier stages."""

    use: Literal["byot"] = "byot"
    alpha: float = Field(0.1, ge=0, le=1)  # share of the last classifier in what the earlier ones learn
    temperature: float = Field(3.0, gt=0)  # above 1 softens both answers before they are compared
    hint: float = Field(0.05, ge=0)  # weight of the features' error
    heads: Literal["full", "light"] = "full"  # all blocks of the stages after it, or one for each of them
    stages: int = Field(3, ge=2)  # of networks whose blocks all have one shape
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> OwnTeacher:
        """Return the terms with classifiers of random weights behind every stage but the last."""
        net = course.net
        stages = stages_of(net, self.stages)
        made = heads(net, stages, len(net.labels), self.heads, course.ctx.seed)
        return OwnTeacher(self, made[:-1], stages[-1][-1])


PLUGIN = Byot
