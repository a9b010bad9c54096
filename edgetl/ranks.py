"""Several processes on one run, as `accelerate launch` starts them: all train, the first alone writes. [no torch]"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(days=7)
"""How long the others wait for what the first one does alone, such as scoring a large network."""


def count() -> int:
    """Return how many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Go on when all processes have come here."""
    agreed(lambda: True)


def agreed(decide: Callable[[], bool]) -> bool:
    """Return what the first process decides; the others wait for it, and do not look."""
    if count() == 1:
        return decide()
    import torch

    told = torch.tensor([first() and decide()], dtype=torch.int64, device=_joined())
    torch.distributed.broadcast(told, src=0)
    torch.distributed.barrier()
    return bool(told.item())


def _joined() -> torch.device:
    """Return this process's device; the processes find each other when it is first asked for."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    device: torch.device = state.device
    return device
