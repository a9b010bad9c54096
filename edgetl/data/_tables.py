"""Two columns of a csv, tsv or parquet file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.errors import BadHost, BadInput
from edgetl.types import Json

SUFFIXES = (".csv", ".tsv", ".parquet")
MAX_CELL = 10**7
"""Most characters of one cell."""

NO_CLASS = "-"
"""The label of a text from a table that is read without classes."""


@dataclass(frozen=True)
class Table:
    """Texts and labels, row by row, and where each row stands: "train.tsv:17"."""

    texts: Sequence[str]
    labels: Sequence[str]
    places: Sequence[str]


def read_csv(path: Path, columns: tuple[str, str | None], delimiter: str, quoting: str) -> Table:
    """Return the columns of texts and of labels, or without these, of a UTF-8 file with a header line.

    Raises:
        BadInput: a column is missing, a row has too few cells or no label, or the file cannot be read.

    """
    rows: list[tuple[str, str, str]] = []
    mode: Literal[0, 3] = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(MAX_CELL)
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=mode, strict=True)
            header = next(reader, [])
            at = [_column(name, header, path) for name in columns if name is not None]
            line = reader.line_num
            for row in reader:
                if row:
                    rows.append((*_cells(row, header, at, f"{path}:{line + 1}"), f"{path}:{line + 1}"))
                line = reader.line_num
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 ({error.reason} after line {line})", fix="save it as UTF-8") from error
    except (csv.Error, OSError) as error:
        fix = "check the quotes of this line, or set data.quoting to none or standard"
        raise BadInput(f"{path}:{line + 1}: {error}", fix=fix) from error
    finally:
        csv.field_size_limit(limit)
    return _table(rows, path)


def read_lines(path: Path) -> Table:
    """Return the lines of a UTF-8 file that are not empty, without classes.

    Raises:
        BadInput: there is none, or the file cannot be read.

    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}", fix="save it as UTF-8, a text a line") from error
    return _table([(text, NO_CLASS, f"{path}:{i}") for i, text in enumerate(lines, 1) if text.strip()], path)


def read_parquet(path: Path, text: str, label: str | None) -> Table:
    """Return the columns of texts and of labels, or without these, of a parquet file.

    Raises:
        BadInput: a column is missing, a cell is no text or label, or the file cannot be read.
        BadHost: pyarrow is not installed.

    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise BadHost("parquet files need pyarrow", fix='pip install "edgetl[data]"') from error
    try:
        names = parquet.read_schema(path).names
        wanted = [name for name in (text, label) if name is not None]
        for name in wanted:
            _column(name, names, path)
        table = parquet.read_table(path, columns=wanted)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is no parquet file: {error}", fix="write it again") from error
    values = [NO_CLASS] * len(table) if label is None else table[label].to_pylist()
    cells = zip(table[text].to_pylist(), values, strict=True)
    return _table([(*plain_cells(t, y, f"{path} row {i}"), f"{path} row {i}") for i, (t, y) in enumerate(cells)], path)


def plain_cells(text: Json, label: Json, place: str) -> tuple[str, str]:
    """Return a text and its label, a name or a whole number, as strings.

    Raises:
        BadInput: the text is no string or the label is missing.

    """
    if not isinstance(text, str):
        raise BadInput(
            f"{place}: the text is {type(text).__name__}, not a string", fix="give data.text, the right column"
        )
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int) or label == "":
        raise BadInput(f"{place}: {label!r} is no label", fix="give every row the name or number of its class")
    return text, str(int(label)) if isinstance(label, bool) else str(label)


def _cells(row: Sequence[str], header: Sequence[str], at: Sequence[int], place: str) -> tuple[str, str]:
    if len(row) != len(header):
        fix = "quote cells that hold the delimiter, or set data.quoting"
        raise BadInput(f"{place}: {len(row)} cells where the header has {len(header)}", fix=fix)
    return plain_cells(row[at[0]], row[at[1]].strip() if len(at) > 1 else NO_CLASS, place)


def _column(name: str, names: Sequence[str], path: Path) -> int:
    if name not in names:
        fix = "give the names of the columns as data.text and data.label"
        raise BadInput(f"{path} has no column '{name}', only {', '.join(names) or 'nothing'}", fix=fix)
    return list(names).index(name)


def _table(rows: Sequence[tuple[str, str, str]], path: Path) -> Table:
    if not rows:
        raise BadInput(f"{path} holds no rows", fix="give a table with a header and at least one row a class")
    return Table(*zip(*rows, strict=True))
