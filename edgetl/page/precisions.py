"""What lower precisions were tried for each file, what they compute in, and why they ship or not. [no torch]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgetl.comparison import Row
from edgetl.page.facts import Sheet
from edgetl.types import Json

LADDER = ("file", "precision", "outcome", "MACs in", "MB", "ms", "time / fp32", "given back to float", "reason")
NOTE = (
    "Precisions are read back from the files. A node is given back to float when the file misses a gate on validation "
    "samples; with `auto`, the fastest file that keeps them ships, and fp32 unless another one is proven faster. Times "
    "are of one call on the machine that exported, of CPU time at one thread, interleaved. A dash is not measured."
)


def precisions(rows: Sequence[Row]) -> Sheet | None:
    """Return the table of every file that is not plainly fp32, or None where there is none; manifests are untrusted."""
    lines = [line for row in rows for line in _lines(row)]
    return Sheet("Ladder of precisions", [NOTE.replace("`", "")], LADDER, lines) if lines else None


def _lines(row: Row) -> Iterator[list[str]]:
    manifest = row.bundle.manifest
    given, rungs = manifest["provenance"].get("given_back"), manifest["provenance"].get("ladder")
    macs, title = _shares(manifest.get("dtypes")), f"{row.name} {row.target} {row.asked}"
    if not isinstance(rungs, list):
        if row.precision != "fp32":
            yield [title, row.precision, "asked", macs, f"{row.size_bytes / 1e6:.3f}", "-", "-", _names(given), "-"]
        return
    for rung in rungs:
        if isinstance(rung, dict):
            ships = rung.get("outcome") == "ships"
            yield [
                *(title, _text(rung.get("precision")), "ships" if ships else "rejected", macs if ships else "-"),
                *(_megabytes(rung.get("size_bytes")), _interval(rung.get("time_ms"))),
                *(_interval(rung.get("ratio")), _names(rung.get("given_back")), _text(rung.get("reason"))),
            ]


def _shares(found: Json) -> str:
    known = found.items() if isinstance(found, Mapping) else ()
    return ", ".join(f"{_text(name)} {100 * share:.0f} %" for name, share in known if _number(share)) or "-"


def _names(names: Json) -> str:
    return ", ".join(map(_text, names)) or "-" if isinstance(names, list) else "-"


def _interval(ends: Json) -> str:
    if not isinstance(ends, dict) or not all(_number(ends.get(end)) for end in ("value", "low", "high")):
        return "-"
    return f"{ends['value']:.3g} ({ends['low']:.3g} to {ends['high']:.3g})"


def _megabytes(size: Json) -> str:
    return f"{size / 1e6:.3f}" if isinstance(size, int) else "-"


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Json) -> str:
    return "".join(c if c.isprintable() and c != "|" else " " for c in str(value)[:200])
