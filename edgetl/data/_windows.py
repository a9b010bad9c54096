"""Windows of sensor readings, from arrays of windows and from tables of readings."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.data._arrays import check_pair, pair, plain, read_npz
from edgetl.errors import BadInput
from edgetl.types import Array

CLOCKS = ("time", "timestamp")
"""Columns of a table that are no readings."""


@dataclass(frozen=True)
class Windows:
    """N windows of T readings in C channels."""

    x: NDArray[np.float32]  # (N, T, C)
    y: Array  # (N,) names or numbers of classes
    subjects: NDArray[np.str_] | None  # (N,) who each window is from


@dataclass(frozen=True)
class Columns:
    """What stands where in a table of readings, and how it is cut into windows."""

    label: str
    subject: str
    channels: tuple[str, ...] | None  # None: all other columns
    length: int  # readings of a window
    step: int  # from the start of a window to that of the next


def npz_windows(path: Path, names: tuple[str | None, str | None], subject: str) -> Windows:
    """Return the windows of an npz file; those without an array `subject` are nobody's.

    Raises:
        BadInput: an array is missing or of an impossible shape or type.

    """
    arrays = read_npz(path)
    x, y = pair(arrays, names, path)
    check_pair(x, y, str(path))
    if x.ndim != 3:
        fix = "give windows as (N, readings, channels)"
        raise BadInput(f"{path} holds samples of shape {x.shape[1:]}, no windows of readings", fix=fix)
    who = arrays.get(subject)
    if who is not None and (who.shape != y.shape or who.dtype.kind not in "iuU"):
        raise BadInput(f"{path}: {subject} is {who.shape} {who.dtype}", fix="give a name or number for every window")
    return Windows(plain(x, path).astype(np.float32, copy=False), y, None if who is None else who.astype(np.str_))


def csv_windows(path: Path, columns: Columns) -> Windows:
    """Return the windows that a table of readings, a row each and in the order of time, is cut into.

    A window lies within rows of one label and one subject that follow each other; what is left over is dropped.

    Raises:
        BadInput: a column is missing, a reading is no number, or there is no whole window.

    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            channels = _channels(columns, header, path)
            at = [header.index(name) for name in channels]
            marks = [header.index(name) for name in (columns.label, columns.subject) if name in header]
            rows = [_reading(row, (at, marks), path, reader.line_num) for row in reader if row]
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8", fix="save it as UTF-8") from error
    except (csv.Error, OSError) as error:
        raise BadInput(f"{path}: {error}", fix="write it again as a table with commas") from error
    windows = list(_cut(rows, columns))
    if not windows:
        problem = f"{path} has no {columns.length} readings in a row with one {columns.label}"
        raise BadInput(problem, fix="choose a shorter data.length")
    x = np.array([x for _, x in windows], np.float32)
    y = np.array([marks[0] for marks, _ in windows])
    named = columns.subject in header
    return Windows(x, y, np.array([marks[1] for marks, _ in windows]) if named else None)


def _channels(columns: Columns, header: Sequence[str], path: Path) -> tuple[str, ...]:
    known = {columns.label, columns.subject, *CLOCKS}
    found = columns.channels or tuple(name for name in header if name not in known)
    missing = next((name for name in (columns.label, *found) if name not in header), None)
    if missing is not None:
        problem = f"{path} has no column '{missing}', only {', '.join(header) or 'nothing'}"
        raise BadInput(problem, fix="give the names of the columns as data.label and data.channels")
    if not found or len(set(header)) != len(header):
        raise BadInput(f"{path} has no readings, or a column twice", fix="give every channel a column of its own")
    return found


def _reading(
    row: Sequence[str], places: tuple[Sequence[int], Sequence[int]], path: Path, line: int
) -> tuple[tuple[str, ...], list[float]]:
    at, marks = places
    try:
        values = [float(row[i]) for i in at]
        named = tuple(row[i].strip() for i in marks)
    except (IndexError, ValueError) as error:
        raise BadInput(f"{path}:{line}: {error}", fix="give every row a number for every channel") from error
    if not all(map(math.isfinite, values)) or not all(named):
        problem = f"{path}:{line}: a reading is not finite, or the label or subject is empty"
        raise BadInput(problem, fix="complete or delete the row")
    return named, values


def _cut(
    rows: Sequence[tuple[tuple[str, ...], list[float]]], columns: Columns
) -> Iterator[tuple[tuple[str, ...], list[list[float]]]]:
    for marks, run in groupby(rows, key=lambda row: row[0]):
        readings = [values for _, values in run]
        for start in range(0, len(readings) - columns.length + 1, columns.step):
            yield marks, readings[start : start + columns.length]
