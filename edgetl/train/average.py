"""The moving average of a network's weights, which is what ships where a schedule asks for it."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Return an average of weights and statistics that starts with the first step (Polyak & Juditsky 1992).

    The decay grows towards its value, as min(decay, (1 + steps) / (10 + steps)), so that a short training forgets its
    random start.
    """

    def update(old: Tensors, new: Tensors, steps: Tensor | int) -> None:
        grown = min(decay, (1 + int(steps)) / (10 + int(steps)))
        for a, b in zip(old, new, strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - grown)
            else:  # a count has no mean
                a.copy_(b)

    average = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average


def adopt(module: nn.Module, average: AveragedModel) -> None:
    """Give a module the averaged weights, in place."""
    module.load_state_dict(average.module.state_dict())
