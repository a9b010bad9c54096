"""DIST: answers that correlate with the teacher's, sample by sample and class by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from edgetl.recipe.objective import Objective
from edgetl.train.course import Course
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features


class Correlation(Loss):
    """T^2 * (beta * inter + gamma * intra), 1 - Pearson's correlation of probabilities (Huang et al. 2022, 2205.10536).

    `inter` correlates over the classes of a sample, `intra` over the samples of a class: it depends on the whole batch.
    """

    answers: Tensor
    coupled = True

    def __init__(self, answers: Tensor, options: Dist) -> None:
        super().__init__()
        self.temperature, self.beta, self.gamma = options.temperature, options.beta, options.gamma
        self.register_buffer("answers", answers, persistent=False)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the means times the number of samples."""
        p, q = ((x / self.temperature).softmax(-1) for x in (self.answers[batch["index"]], logits))
        inter, intra = distance(p, q).sum(), distance(p.T, q.T).mean() * len(logits)
        loss = (self.beta * inter + self.gamma * intra) * self.temperature**2
        return loss, {"dist": loss.detach()}


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - Pearson's correlation of the rows of (R, n) and (R, n), as (R,)."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return 1 - functional.cosine_similarity(a, b, dim=-1)


class Dist(Objective):
    """Correlation with the teacher's answers."""

    use: Literal["dist"] = "dist"
    weight: float = Field(2.0, ge=0)  # in the sum of the step's losses; the paper's
    temperature: float = Field(1.0, gt=0)  # the paper's: 1 for ImageNet, 4 for CIFAR
    beta: float = Field(1.0, ge=0)  # weight of the correlation over classes
    gamma: float = Field(1.0, ge=0)  # weight of the correlation over samples
    taught: ClassVar[bool] = True

    def loss(self, course: Course) -> Correlation:
        """Return the correlations with the teacher's table."""
        return Correlation(course.answers(), self)


PLUGIN = Dist
