"""What `edgetl doctor` says of one thing. [no torch]"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from edgetl.types import Json


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    state: Literal["good", "absent", "broken"]  # absent: only what needs it cannot be done
    fix: str = ""

    def to_json(self) -> Json:
        """Return the plain data."""
        return asdict(self)
