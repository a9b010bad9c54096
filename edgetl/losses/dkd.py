"""Decoupled knowledge distillation: how sure the teacher is, and what it holds for likely besides, weighted apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from edgetl.recipe.objective import Objective
from edgetl.train.course import Course
from edgetl.train.lesson import Loss, epoch_of
from edgetl.train.taps import Features


class Decoupled(Loss):
    """T^2 * (alpha * TCKD + beta * NCKD) (Zhao et al. 2022, arXiv 2203.08679).

    TCKD compares the true class with all others together, NCKD the others among themselves; with alpha 1 and beta the
    teacher's share of the others, the sum is the ordinary divergence. The weight grows over the first epochs.
    """

    answers: Tensor

    def __init__(self, answers: Tensor, options: Dkd, epochs: int) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta = options.temperature, options.alpha, options.beta
        self.warmup, self.epochs = options.warmup, epochs
        self.register_buffer("answers", answers, persistent=False)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        target, other = decoupled(logits / self.temperature, self.answers[batch["index"]] / self.temperature, batch)
        grown = min(1.0, epoch_of(progress, self.epochs) / self.warmup) if self.warmup else 1.0
        loss = (self.alpha * target + self.beta * other) * (grown * self.temperature**2)
        return loss, {"dkd": loss.detach()}


def decoupled(student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD of (B, labels) logits, both summed over the samples."""
    truth = functional.one_hot(batch["labels"], student.shape[-1]).bool()
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    pairs = [torch.stack([x[truth], x.masked_fill(truth, -torch.inf).logsumexp(-1)], -1) for x in (log_p, log_q)]
    target = functional.kl_div(pairs[1], pairs[0], reduction="sum", log_target=True)
    rest = [x[~truth].view(len(x), -1).log_softmax(-1) for x in (log_p, log_q)]
    return target, functional.kl_div(rest[1], rest[0], reduction="sum", log_target=True)


class Dkd(Objective):
    """Decoupled knowledge distillation."""

    use: Literal["dkd"] = "dkd"
    temperature: float = Field(4.0, gt=0)  # above 1 softens both answers before they are compared
    alpha: float = Field(1.0, ge=0)  # weight of the true class against all others
    beta: float = Field(8.0, ge=0)  # weight of the other classes among themselves
    warmup: int = Field(20, ge=0)  # epochs over which the weight grows
    taught: ClassVar[bool] = True

    def loss(self, course: Course) -> Decoupled:
        """Return the two divergences from the teacher's table."""
        return Decoupled(course.answers(), self, course.epochs)


PLUGIN = Dkd
