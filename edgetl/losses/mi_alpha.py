"""As much information about the teacher's features as a bound can show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.losses._places import pairs, rows, valid
from edgetl.recipe.objective import Objective
from edgetl.train.course import Course, Live
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features, width_of


class Information(Loss):
    """Minus a lower bound on the mutual information of pooled block outputs.

    The bound interpolates between InfoNCE (alpha 1: little variance, at most log B) and the unbiased one (alpha near
    0); Poole et al. 2019, arXiv 1905.06922; as a loss for distillation He et al. 2021, arXiv 2109.11105. The critic, a
    product of projections, and the baseline train with the network. The other samples of a batch are the independent
    ones, so that it depends on the whole batch.
    """

    coupled = True

    def __init__(self, places: tuple[str, str], teacher: Live, widths: tuple[int, int], options: MiAlpha) -> None:
        super().__init__()
        self.theirs, self.teacher, self.alpha = places[1], teacher, options.alpha
        self.taps = (places[0],)
        self.ours_to, self.theirs_to = (nn.Linear(w, options.width) for w in widths)
        self.log_baseline = nn.Parameter(torch.zeros(()))

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return minus the bound in nats, times the number of samples."""
        ours = self.ours_to(_pooled(features[self.taps[0]], batch))
        theirs = self.theirs_to(_pooled(self.teacher.features(batch)[self.theirs], batch))
        critic = theirs @ ours.T / math.sqrt(ours.shape[-1])
        loss = -bound(critic, self.alpha, self.log_baseline) * len(logits)
        return loss, {"mi_alpha": loss.detach()}


def bound(critic: Tensor, alpha: float, log_baseline: Tensor) -> Tensor:
    """Return the interpolated bound of a (B, B) critic whose diagonal holds the pairs that belong together."""
    log_mean = critic.logsumexp(1) - math.log(len(critic))
    log_norm = log_mean
    if alpha < 1:
        log_norm = torch.logaddexp(log_mean + math.log(alpha), log_baseline + math.log1p(-alpha))
    return 1 + (critic.diagonal() - log_norm).mean() - (log_mean - log_norm).exp().mean()


def _pooled(features: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    positions = rows(features)
    return (positions * valid(batch, positions)[..., None]).sum(1)


class MiAlpha(Objective):
    """Mutual information with one block of the teacher, on the same augmented inputs."""

    use: Literal["mi_alpha"] = "mi_alpha"
    alpha: float = Field(0.9, gt=0, le=1)  # 1: InfoNCE; towards 0: less biased, more variance
    width: int = Field(128, ge=1)  # of both projections
    layers: dict[int, int] | None = Field(None, min_length=1, max_length=1)  # student's block: teacher's; default: last
    taught: ClassVar[bool] = True
    mixed: ClassVar[bool] = True

    def loss(self, course: Course) -> Information:
        """Return the bound for one pair of blocks."""
        ours, theirs = pairs(course.net, course.source, self.layers)[-1]
        widths = width_of(course.net, ours), width_of(course.source, theirs)
        torch.manual_seed(course.ctx.seed)
        return Information((ours, theirs), Live(course.source, [theirs]), widths, self)


PLUGIN = MiAlpha
