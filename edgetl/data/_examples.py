"""Labels, parts and digests, the same for every data plugin."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput
from edgetl.examples import PARTS, Part
from edgetl.types import Array

PART_NAMES: Mapping[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "t10k"),
}
"""What the published parts of a set are called, by part."""


def digest(rows: Iterable[bytes], labels: Sequence[str], y: Array, parts: Mapping[Part, Array]) -> str:
    """Return the sha256 over all bytes, labels and parts; where the files lie does not matter."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(len(row).to_bytes(8, "little") + row)
    sha.update(json.dumps(list(labels)).encode())
    sha.update(y.astype("<i8").tobytes())
    for part in PARTS:
        if part in parts:
            sha.update(part.encode() + parts[part].astype("<i8").tobytes())
    return sha.hexdigest()


def part_of(name: str) -> Part | None:
    """Return the part that a file or folder name stands for."""
    return next((part for part in PARTS if name.lower() in PART_NAMES[part]), None)


def named_parts(paths: Iterable[Path], name: Callable[[Path], str], root: Path) -> dict[Part, Path]:
    """Return the one path of every published part, train first.

    Raises:
        BadInput: two paths stand for the same part, or there are parts but no train.

    """
    found: dict[Part, Path] = {}
    for path in sorted(paths):
        part = part_of(name(path))
        if part is not None and part in found:
            problem = f"{found[part]} and {path.name} both stand for the {part} part"
            raise BadInput(problem, fix="keep one of them")
        if part is not None:
            found[part] = path
    if found and "train" not in found:
        raise BadInput(f"{root} has a {next(iter(found))} part but no train part", fix="add the train part")
    return {part: found[part] for part in PARTS if part in found}


def joined(counts: Mapping[Part, int]) -> dict[Part, NDArray[np.int64]]:
    """Return the rows of every part where the parts lie one behind the other."""
    ends = np.cumsum(list(counts.values()))
    return {part: np.arange(end - n, end, dtype=np.int64) for (part, n), end in zip(counts.items(), ends, strict=True)}


def class_names(values: Iterable[str]) -> tuple[str, ...]:
    """Return the different values in order; numbers by their size."""
    return tuple(sorted(set(values), key=_order))


def numbers(values: Sequence[str], labels: Sequence[str], describe: Callable[[int], str]) -> NDArray[np.int64]:
    """Return the class number of every value: that of its name, or where no name is a number, the number it is.

    Raises:
        BadInput: a value is no class; the message names its row.

    """
    number = {name: i for i, name in enumerate(labels)}
    if not any(name.isdigit() for name in labels):
        number |= {str(i): i for i in range(len(labels))}
    for row, value in enumerate(values):
        if value not in number:
            shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
            raise BadInput(f"{describe(row)}: '{value}' is no class of the data", fix=f"use one of: {shown}")
    return np.array([number[value] for value in values], np.int64)


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a JSON list or of a text file with one name a line.

    Raises:
        BadInput: the file is missing or holds no list of different names.

    """
    fix = "give a JSON list of class names, or a text file with one name a line"
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no class names ({error})", fix=fix) from error
    if path.suffix != ".json":
        names = [name.strip() for name in names if name.strip()]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BadInput(f"{path} is no list of class names", fix=fix)
    if len(set(names)) != len(names):
        raise BadInput(f"{path} lists a class twice", fix="give every class its own name")
    return tuple(names)


def names_beside(folder: Path, given: Path | None) -> tuple[str, ...] | None:
    """Return the class names of the file given, else of a labels.json or classes.txt in the folder, if any."""
    beside = (folder / name for name in ("labels.json", "classes.txt"))
    file = given or next((path for path in beside if path.is_file()), None)
    return None if file is None else read_names(file)


def check_classes(labels: Sequence[str], where: str) -> None:
    """Refuse data with fewer than two classes.

    Raises:
        BadInput: there are fewer than two.

    """
    if len(labels) < 2:
        problem = f"{where} has {len(labels)} class" + ("" if len(labels) == 1 else "es")
        raise BadInput(problem, fix="give examples of at least two classes")


def existing(root: Path) -> Path:
    """Return the path.

    Raises:
        BadInput: nothing is there.

    """
    if not root.exists():
        raise BadInput(f"there is nothing at {root}", fix="set data.root to the folder or file of the data")
    return root


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a file of the data.

    Raises:
        BadInput: it cannot be read.

    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", fix="make the file readable, or delete it") from error


def _order(value: str) -> tuple[int, float, str]:
    try:
        number = float(value)
    except ValueError:
        return 1, 0.0, value
    return (0, number, value) if math.isfinite(number) else (1, 0.0, value)
