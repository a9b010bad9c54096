"""What lower precisions were tried for each file, what they compute in, and why they ship or not. [no torch]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgetl.comparison import Row
from edgetl.page.facts import Sheet

LADDER = ("file", "tried", "outcome", "MACs in", "MB", "ms", "time / fp32", "given back to float", "reason")
NOTE = (
    "Precisions are read back from the files. A node is given back to float when the file misses a gate on validation "
    "samples; with `auto`, the fastest file that keeps them ships, and fp32 unless another one is proven faster. Times "
    "are of one call on the machine that exported, of CPU time at one thread, interleaved. A dash is not measured."
)


def precisions(rows: Sequence[Row]) -> Sheet | None:
    """Return the table of every file that is not plainly fp32, or None where there is none."""
    lines = [line for row in rows for line in _lines(row)]
    return Sheet("Ladder of precisions", [NOTE.replace("`", "")], LADDER, lines) if lines else None


def _lines(row: Row) -> Iterator[list[str]]:
    manifest = row.bundle.manifest
    given, rungs = manifest["provenance"].get("given_back"), manifest["provenance"].get("ladder")
    macs, title = _shares(manifest.get("dtypes") or {}), f"{row.name} {row.target} {row.asked}"
    if rungs is None and row.precision != "fp32":
        tried, size = f"{row.target} {row.precision}", _megabytes(row.size_bytes)
        yield [title, tried, "asked", macs, size, "-", "-", _names(given or ()), "-"]
    for rung in rungs or ():
        tried = " ".join(_text(rung[key]) for key in ("target", "precision") if key in rung)
        yield [
            *(title, tried, rung["outcome"], macs if rung["outcome"] == "ships" else "-"),
            *(_megabytes(rung["size_bytes"]), _interval(rung["time_ms"]), _interval(rung["ratio"])),
            *(_names(rung["given_back"]), _text(rung["reason"])),
        ]


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(f"{_text(name)} {100 * share:.0f} %" for name, share in found.items()) or "-"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_text, names)) or "-"


def _interval(ends: Mapping[str, float] | None) -> str:
    return "-" if ends is None else f"{ends['value']:.3g} ({ends['low']:.3g} to {ends['high']:.3g})"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.3f}"


def _text(value: str) -> str:
    return "".join(c if c.isprintable() and c != "|" else " " for c in value[:200])
