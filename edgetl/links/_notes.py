"""Runs that were left on a device, as they are noted here until their answers have come. [no torch]"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgetl import store
from edgetl.errors import BadInput, EdgetlError
from edgetl.links._answers import Expected
from edgetl.types import Json

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Remote:
    """One run on a device."""

    id: str
    address: str
    pin: str | None
    spec: Json  # what the device does
    sources: Mapping[str, str]  # files of the bundles by sha256
    expected: Sequence[Expected]
    paths: Sequence[str] | None  # where the measurements go


def note(remote: Remote) -> None:
    """Note a run, atomically."""
    store.write_json(_place(remote.id), asdict(remote))


def forget(remote: Remote) -> None:
    """Delete the note of a run."""
    _place(remote.id).unlink(missing_ok=True)


def left(run: str) -> Remote:
    """Return the run of a name.

    Raises:
        BadInput: none is noted under it.

    """
    found = _read(_place(run)) if _ID.fullmatch(run) else None
    if found is None:
        known = ", ".join(sorted(path.stem for path in _folder().glob("*.json"))) or "none"
        raise BadInput(f"no run '{run}' was left on a device", fix=f"known runs: {known}")
    return found


def doing(address: str, spec: Json) -> str | None:
    """Return the name of the run that was left while it did just this; None without any."""
    notes = (_read(path) for path in sorted(_folder().glob("*.json")))
    return next((one.id for one in notes if one and one.address == address and one.spec == spec), None)


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgetl" / "attach"


def _place(run: str) -> Path:
    return _folder() / f"{run}.json"


def _read(path: Path) -> Remote | None:
    """Return a noted run; None without a note of this version."""
    try:
        value = store.read_json(path)
        return Remote(**{**value, "expected": [Expected(**one) for one in value["expected"]]})
    except (OSError, EdgetlError, TypeError, KeyError):
        return None
