"""What benchmarks share: rows that an earlier run finished, and the file they are written to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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
