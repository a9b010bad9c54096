"""Forward passes in half precision with master weights in float32 (Micikevicius et al. 2018, arXiv 1710.03740)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from edgetl.errors import BadHost

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LEAST_SCALE = 1.0
"""Where a loss must be scaled by less than this for its gradient to be finite, it is the training that diverges."""


def check(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that the device does not compute in.

    Raises:
        BadHost: fp16 without a GPU, or bf16 on a GPU that lacks it.

    """
    if precision == "fp16" and device.type != "cuda":
        raise BadHost("schedule.precision: fp16 trains on a GPU only", fix="write precision: bf16, or leave it out")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise BadHost("schedule.precision: this GPU does not compute in bf16", fix="write precision: fp16")


class Stepper(nn.Module):
    """One optimizer step: in fp16 the loss is scaled so that gradients do not vanish, and a step that overflows waits.

    It is a module so that the scale is checkpointed.
    """

    def __init__(self, optimizer: Optimizer, clip: float, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.optimizer, self._clip = optimizer, clip
        self._scaler = GradScaler(device.type, enabled=precision == "fp16")

    def get_extra_state(self) -> Tensor:
        """Return scale and the steps since it grew."""
        state = self._scaler.state_dict()
        return torch.tensor([state.get("scale", 1.0), state.get("_growth_tracker", 0)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take them back."""
        if self._scaler.is_enabled():
            scale, steps = state.tolist()
            known = self._scaler.state_dict()
            self._scaler.load_state_dict({**known, "scale": scale, "_growth_tracker": int(steps)})

    def step(self, loss: Tensor) -> bool:
        """Move the weights against the gradient of the loss, and return whether gradient and loss are finite."""
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self._clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        waits = self._scaler.is_enabled() and self._scaler.get_scale() >= LEAST_SCALE
        return bool(torch.isfinite(loss)) and (bool(torch.isfinite(norm)) or waits)
