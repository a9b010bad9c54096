"""Locks on files, which end with the last process that holds them, however that ends. [standard library only]"""

# The device's side of a profile uses this before the versions there are checked: it has to run on old Pythons too.
from __future__ import annotations

import fcntl


def take(handle: int) -> bool:
    """Take the lock of an open file, unless another process holds it; return whether it is ours."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(handle: int) -> None:
    """Wait for the lock of an open file and take it."""
    fcntl.flock(handle, fcntl.LOCK_EX)
