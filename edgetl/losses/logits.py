"""Learn from a teacher's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from edgetl.recipe.objective import Objective
from edgetl.train.course import Course, Live
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features


class Divergence(Loss):
    """T^2 * KL(teacher || student) of the softened answers (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    `answers` (N, labels) is the teacher's table over all rows of the data, found by `batch["index"]`.
    It is not part of the state: whoever made the table keeps it.
    """

    answers: Tensor

    def __init__(self, answers: Tensor, temperature: float = 2.0, *, standardised: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.standardised = standardised
        self.register_buffer("answers", answers, persistent=False)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        answers = self.answers[batch["index"]]
        if self.standardised:
            logits, answers = standardise(logits), standardise(answers)
        loss = softened(answers, logits, self.temperature)
        return loss, {"teacher": loss.detach()}


class LiveDivergence(Loss):
    """The same from a teacher that sees every batch as the student does, augmented or mixed.

    A teacher consistent with the student's view is what long schedules need (Beyer et al. 2022, arXiv 2106.05237).
    """

    def __init__(self, teacher: Live, temperature: float, *, standardised: bool = False) -> None:
        super().__init__()
        self.teacher, self.temperature, self.standardised = teacher, temperature, standardised

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        answers = self.teacher.answers(batch)
        if self.standardised:
            logits, answers = standardise(logits), standardise(answers)
        loss = softened(answers, logits, self.temperature)
        return loss, {"teacher": loss.detach()}


def softened(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of logits softened by T, classes last, summed over all else."""
    log_p, log_q = ((x / temperature).log_softmax(-1) for x in (teacher, student))
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2


def standardise(logits: Tensor) -> Tensor:
    """Return (B, labels) logits with mean 0 and standard deviation 1 per sample (Sun et al. 2024, arXiv 2403.01427)."""
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


class Logits(Objective):
    """The softened answers of the teacher."""

    use: Literal["logits"] = "logits"
    temperature: float = Field(2.0, gt=0)  # above 1 softens both answers before they are compared
    standardised: bool = False  # compare shapes: mean 0 and deviation 1 per sample (the paper weights it with 9)
    live: bool = False  # ask the teacher about every augmented or mixed batch, not once about every sample
    taught: ClassVar[bool] = True

    def mixes(self) -> bool:
        """Return whether the teacher is asked about the mixtures themselves."""
        return self.live

    def loss(self, course: Course) -> Divergence | LiveDivergence:
        """Return the divergence from the teacher's table, or from its answers to every batch."""
        if self.live:
            return LiveDivergence(course.live(), self.temperature, standardised=self.standardised)
        return Divergence(course.answers(), self.temperature, standardised=self.standardised)


PLUGIN = Logits
