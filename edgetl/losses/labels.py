"""Learn from the labels: cross entropy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from edgetl.train.lesson import Loss


class Labels(Loss):
    """Cross entropy with the true class, smoothed over all classes (Szegedy et al. 2016)."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(
        self, logits: Tensor, features: Mapping[str, Tensor], batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        loss = functional.cross_entropy(logits, batch["labels"], label_smoothing=self.smoothing, reduction="sum")
        return loss, {"labels": loss.detach()}


PLUGIN = Labels
