"""Learn from the labels: cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from edgetl.recipe.objective import Objective
from edgetl.train.course import Course
from edgetl.train.lesson import Loss
from edgetl.train.mixing import cross_entropy
from edgetl.train.taps import Features


class CrossEntropy(Loss):
    """Cross entropy with the true class, smoothed over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        loss = cross_entropy(logits, batch, self.smoothing)
        return loss, {"labels": loss.detach()}


class Labels(Objective):
    """Cross entropy with the labels."""

    use: Literal["labels"] = "labels"
    smoothing: float = Field(0.0, ge=0, lt=1)  # share of the true class that is spread over all classes
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> CrossEntropy:
        """Return the cross entropy."""
        return CrossEntropy(self.smoothing)


PLUGIN = Labels
