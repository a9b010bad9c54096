"""What benchmarks share: the machine, rows that an earlier run finished, and the file they are written to."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.intervals import Interval
from edgetl.machine import cpu_model, usable_cpus

Row = dict[str, Any]


def host(packages: Iterable[str]) -> Row:
    """The machine and the versions that every figure depends on."""
    return {"cpu": cpu_model(), "cores": len(usable_cpus()), **versions(packages)}


def versions(packages: Iterable[str]) -> Row:
    """The versions of Python and of packages."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in packages}}


def percent(share: float) -> float:
    return round(100 * float(share), 2)


def points(share: Interval, digits: int = 2) -> Row:
    """A difference of shares in points, with the ends of its interval."""
    return {end: round(100 * getattr(share, end), digits) for end in ("value", "low", "high")}


def packed(right: NDArray[np.bool_]) -> str:
    """Which samples were answered right, as text: rows of other days and machines are paired with them."""
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def unpacked(row: Row) -> NDArray[np.bool_]:
    """What was packed in a row of n samples."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8))
    return bits[: row["n"]].astype(bool)


def finished(out: Path, now: Row) -> list[Row]:
    """The rows that an earlier run wrote under the same conditions."""
    if not out.is_file():
        return []
    before = json.loads(out.read_text("utf-8"))
    rows: list[Row] = before["rows"] if before["conditions"] == now else []
    return rows


def keep(out: Path, now: Row, rows: Sequence[Row], targets: Sequence[Row]) -> None:
    """Write a result whole or not at all."""
    text = json.dumps({"schema_version": 1, "conditions": now, "rows": rows, "targets": targets}, indent=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(f"{text}\n", "utf-8")
    temporary.replace(out)
