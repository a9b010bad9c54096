"""Processes that end with the one that started them, however that one ends. [no torch, nothing heavy]"""

from __future__ import annotations

import os
import signal
import sys


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process with its parent; end it now where that is no longer `parent`."""
    if sys.platform != "linux":
        return
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
