"""One measurement at a time: what two processes measure at once is neither's speed. [no torch]"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetl import locks
from edgetl.errors import BadHost

LOG = logging.getLogger("edgetl")


@contextmanager
def alone() -> Iterator[None]:
    """Wait until this user measures nothing else on this machine, whatever its devices are called.

    Raises:
        BadHost: the user's cache folder, where the lock lies, cannot be written.

    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / "measuring.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise BadHost(f"{folder} cannot be written: {e.strerror}", fix="set XDG_CACHE_HOME to a folder of yours") from e
    try:
        if not locks.take(handle):
            LOG.info("profile: waiting for another profile to end")
            locks.wait(handle)
        yield
    finally:
        os.close(handle)
