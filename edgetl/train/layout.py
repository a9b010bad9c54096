"""The parameters of a training: how they lie in memory, and which of them decay."""

from __future__ import annotations

import torch
from torch import nn


def lay_out(lesson: nn.Module, convolutions: torch.memory_format) -> None:
    """Order every parameter in memory, kernels of 2-D convolutions as said: CPUs are faster with channels last.

    The fused optimizer goes through memory, not through indices: a parameter that is a view of another order, a
    transposed one, would be moved by the gradients of other places.
    """
    for parameter in lesson.parameters():
        order = convolutions if parameter.dim() == 4 else torch.contiguous_format
        parameter.data = parameter.data.contiguous(memory_format=order)


def groups(lesson: nn.Module, weight_decay: float) -> list[dict[str, list[nn.Parameter] | float]]:
    """Return the trained parameters in two groups: biases, norms and other vectors do not decay."""
    trained = [p for p in lesson.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    decays = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in decays if parameters]
