"""What every opened artifact looks like."""

from __future__ import annotations

from typing import Protocol

from edgetl.types import Feed


class Session(Protocol):
    """An opened artifact. Verify, profile, accuracy and apps all use only this."""

    provider: str
    """The execution provider really used, as the runtime names it."""

    def run(self, feed: Feed) -> Feed:
        """Return the outputs by name, each (B, ...), for named inputs, each (B, ...)."""

    def close(self) -> None:
        """Free the runtime's memory."""
