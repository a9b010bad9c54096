"""Learn from a teacher's answers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from edgetl.train.lesson import Loss


class Logits(Loss):
    """T^2 * KL(teacher || student) of the softened answers (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    `answers` (N, labels) is the teacher's table over all rows of the data, found by `batch["index"]`.
    It is not part of the state: whoever made the table keeps it.
    """

    answers: Tensor

    def __init__(self, answers: Tensor, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("answers", answers, persistent=False)

    def forward(
        self, logits: Tensor, features: Mapping[str, Tensor], batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        teacher = functional.log_softmax(self.answers[batch["index"]] / self.temperature, dim=-1)
        student = functional.log_softmax(logits / self.temperature, dim=-1)
        loss = functional.kl_div(student, teacher, reduction="sum", log_target=True) * self.temperature**2
        return loss, {"teacher": loss.detach()}


PLUGIN = Logits
