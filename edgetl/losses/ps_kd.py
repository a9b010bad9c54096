"""PS-KD: the network's own answers of the epoch before soften the labels."""

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
from edgetl.train.mixing import cross_entropy
from edgetl.train.taps import Features


class PreviousEpoch(Loss):
    """Cross entropy with (1 - a) * label + a * the answer one epoch ago, a growing to its last value by equal steps.

    Kim et al. 2021, "Self-Knowledge Distillation with Progressive Refinement of Targets", arXiv 2006.12000. The answers
    are those given in training, on augmented inputs; before the first epoch the table holds the labels.
    """

    table: Tensor
    tables = ("table",)
    whole = True

    def __init__(self, labels: Tensor, classes: int, last: float, epochs: int) -> None:
        super().__init__()
        self.last, self.epochs = last, epochs
        self.register_buffer("table", functional.one_hot(labels, classes).float())

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples; in training, remember the answers to whole samples."""
        share = self.last * epoch_of(progress, self.epochs) / self.epochs
        answers = batch.get("mixed_logits", logits)
        loss = with_earlier(cross_entropy(answers, batch), answers, blended(self.table, batch), share)
        if self.training:
            self.table[batch["index"]] = logits.detach().softmax(-1).to(self.table.dtype)
        return loss, {"ps_kd": loss.detach()}


def with_earlier(hard: Tensor, logits: Tensor, before: Tensor | None, share: float) -> Tensor:
    """Return the cross entropy with (1 - share) * label + share * an earlier answer, of that with the labels, `hard`.

    All are sums over what lies before the classes, which come last.
    """
    return hard if before is None else (1 - share) * hard - share * (before * logits.log_softmax(-1)).sum()


def blended(table: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the rows (B, ...) of a table, of mixtures by the share of either sample."""
    own = table[batch["index"]]
    if "kept" not in batch:
        return own
    kept = batch["kept"][:, None]
    return kept * own + (1 - kept) * table[batch["other_index"]]


class PsKd(Objective):
    """Labels softened by the network's own answers of the epoch before."""

    use: Literal["ps_kd"] = "ps_kd"
    alpha: float = Field(0.8, ge=0, le=1)  # share of the earlier answers in the last epoch
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> PreviousEpoch:
        """Return the cross entropy with a table of one row per sample."""
        labels = torch.from_numpy(course.ctx.data.prepared.y).clamp(min=0)  # unlabelled rows are in no batch
        return PreviousEpoch(labels, len(course.net.labels), self.alpha, course.epochs)


PLUGIN = PsKd
