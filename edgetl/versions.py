"""Versions of runtimes, and whether one is what a device file names. [no torch, no pydantic]"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

WANTED = r"^((>=|<=|==|>|<)?[0-9]+(\.[0-9]+)*(, *(>=|<=|==|>|<)?[0-9]+(\.[0-9]+)*)*)?$"
"""What a device file may say: "1.31" (with whatever follows it), ">=1.20", ">=10,<11"."""

_COMPARED: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, to compare: "1.31.1+cpu" gives (1, 31, 1)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def fits(version: str, wanted: str) -> bool:
    """Say whether a version is one of those wanted, each part of which has to hold; an empty text wants none."""
    return all(_holds(numbers(version), part.strip()) for part in wanted.split(",") if part.strip())


def _holds(have: tuple[int, ...], part: str) -> bool:
    sign = re.match(r"[<>=]*", part)
    how = sign[0] if sign else ""
    want = numbers(part[len(how) :])
    if how not in _COMPARED:
        return have[: len(want)] == want
    size = max(len(have), len(want))  # 10.0 is 10
    return _COMPARED[how](have + (0,) * (size - len(have)), want + (0,) * (size - len(want)))
