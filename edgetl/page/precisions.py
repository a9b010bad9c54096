"""What lower precisions were tried for each file, what they compute in, and why they ship or not. [no torch]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgetl import comparison
from edgetl.comparison import Row
from edgetl.intervals import Interval
from edgetl.measure.comparing import plain_word
from edgetl.page.facts import Sheet

LADDER = ("file", "tried", "outcome", "MACs in", "MB", "ms", "time / fp32", "given back to float", "reason")
NOTE = (
    "Precisions are read back from the files. A node is given back to float when the file misses a gate on validation "
    "samples; with `auto`, the fastest file that keeps them ships, and fp32 unless another one is proven faster. Its "
    "times are of one call on the machine that exported, of CPU time at one thread, interleaved. A precision that was "
    "asked for is compared with the same network's fp32 file on the devices where both were measured. A dash is not "
    "measured."
)


def precisions(rows: Sequence[Row]) -> Sheet | None:
    """Return the table of every file that is not plainly fp32, or None where there is none."""
    lines = [line for row in rows for line in _lines(row, rows)]
    return Sheet("Ladder of precisions", [NOTE.replace("`", "")], LADDER, lines) if lines else None


def unpaid(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for every file of lower precision that is not proven to be faster than the same fp32 file."""
    return [
        f"{row.title} is {verdict}"
        for row in rows
        for verdict, _ in _beside_fp32(row, rows)
        if not verdict.startswith("faster")
    ]


def _beside_fp32(row: Row, rows: Sequence[Row]) -> Iterator[tuple[str, Interval]]:
    """Yield, for every device, what the time over fp32's says, and the time."""
    for device, ratio in sorted(comparison.against_fp32(row, rows).items()):
        word = plain_word(ratio)
        told = word if word in ("faster", "slower") else "not proven to be faster"
        yield f"{told} than its fp32 file on {_text(device)}", ratio


def _lines(row: Row, rows: Sequence[Row]) -> Iterator[list[str]]:
    manifest = row.bundle.manifest
    given, rungs = manifest["provenance"].get("given_back"), manifest["provenance"].get("ladder")
    macs, title = _shares(manifest.get("dtypes") or {}), f"{row.name} {row.target} {row.asked}"
    if rungs is None and row.precision != "fp32":
        tried, size = f"{row.target} {row.precision}", _megabytes(row.size_bytes)
        beside = [(reason, _interval(ratio)) for reason, ratio in _beside_fp32(row, rows)]
        for reason, ratio in beside or [("not measured beside an fp32 file of the same network", "-")]:
            yield [title, tried, "asked", macs, size, "-", ratio, _names(given or ()), reason]
    for rung in rungs or ():
        tried = " ".join(_text(rung[key]) for key in ("target", "precision") if key in rung)
        times = (_interval(_read(rung[key])) if rung[key] else "-" for key in ("time_ms", "ratio"))
        yield [
            *(title, tried, rung["outcome"], macs if rung["outcome"] == "ships" else "-"),
            *(_megabytes(rung["size_bytes"]), *times, _names(rung["given_back"]), _text(rung["reason"])),
        ]


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(f"{_text(name)} {100 * share:.0f} %" for name, share in found.items()) or "-"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_text, names)) or "-"


def _read(ends: Mapping[str, float]) -> Interval:
    return Interval(ends["value"], ends["low"], ends["high"])


def _interval(ends: Interval) -> str:
    return f"{ends.value:.3g} ({ends.low:.3g} to {ends.high:.3g})"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.3f}"


def _text(value: str) -> str:
    return "".join(c if c.isprintable() and c != "|" else " " for c in value[:200])
