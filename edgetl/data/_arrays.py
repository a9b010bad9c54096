"""Arrays from IDX and npz files."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.data._examples import check_classes, class_names, digest, numbers
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part
from edgetl.preprocess import Raw
from edgetl.types import Array

Rows: TypeAlias = NDArray[np.int64]
X_NAMES = ("x", "X", "images", "data", "features")
Y_NAMES = ("y", "Y", "labels", "label", "targets", "target")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def array_examples(
    x: Array,
    y: Rows,
    labels: tuple[str, ...],
    parts: Mapping[Part, Rows],
    name: str,
    groups: Rows | None = None,
) -> Examples:
    """Return the examples of an array (N, ...), held in memory; `name` stands before a row's number in messages."""
    x = np.ascontiguousarray(x)
    known = [repr((x.dtype.str, x.shape)).encode(), x.tobytes(), *([] if groups is None else [groups.tobytes()])]
    return Examples(
        raw=Raw("array", x.dtype.name, x.shape[1:]),
        labels=labels,
        y=y,
        parts=parts,
        read=lambda row: x[row].tobytes(),
        digest=digest(known, labels, y, parts),
        describe=lambda row: f"{name} row {row}",
        groups=groups,
    )


def read_idx(path: Path) -> Array:
    """Return the array of an IDX file, plain or gzipped.

    Raises:
        BadInput: the file is damaged or of another format.

    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: damaged gzip file ({error})", fix="fetch the file again") from error
    known = len(data) >= 4 and data[:2] == b"\0\0" and data[2] in IDX_TYPES and 1 <= data[3] <= 4
    if not known or len(data) < 4 + 4 * data[3]:
        raise BadInput(f"{path} is no IDX file", fix="give files as MNIST and Fashion-MNIST ship them")
    shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
    dtype = np.dtype(IDX_TYPES[data[2]])
    start = 4 + 4 * data[3]
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise BadInput(f"{path} is cut short: its header promises {shape}", fix="fetch the file again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an npz file by name; Python objects in it are never loaded.

    Raises:
        BadInput: the file is damaged or holds Python objects.

    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise BadInput(f"{path} holds one array, not x and y", fix="write it with numpy.savez(path, x=x, y=y)")
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        fix = "write it again with numpy.savez(path, x=x, y=y), numbers only"
        raise BadInput(f"{path}: {error}", fix=fix) from error


def pair(
    arrays: Mapping[str, Array], names: tuple[str | None, str | None], file: Path, ending: str = ""
) -> tuple[Array, Array]:
    """Return samples and labels out of the arrays of a file: under the names given, else under usual ones.

    Raises:
        BadInput: there is no array of such a name.

    """
    x, y = names
    return named(arrays, "x", x, file, ending), named(arrays, "y", y, file, ending)


def named(arrays: Mapping[str, Array], key: Literal["x", "y"], own: str | None, file: Path, ending: str = "") -> Array:
    """Return the samples ("x") or labels out of the arrays of a file: under the name given, else under a usual one.

    Raises:
        BadInput: there is no array of such a name.

    """
    usual = {"x": X_NAMES, "y": Y_NAMES}[key]
    wanted = [f"{name}{ending}" for name in ((own,) if own is not None else usual)]
    name = next((name for name in wanted if name in arrays), None)
    if name is None:
        problem = f"{file} has no {' or '.join(wanted)}, only {', '.join(sorted(arrays)) or 'nothing'}"
        raise BadInput(problem, fix=f"give the name of the array as data.{key}")
    return arrays[name]


def check_pair(x: Array, y: Array, where: str) -> None:
    """Refuse arrays that are no samples (N, ...) and their labels (N,).

    Raises:
        BadInput: the shapes or the labels' type are wrong; the message begins with `where`.

    """
    if x.ndim < 2 or len(x) == 0:
        raise BadInput(f"{where} holds no samples: its array is {x.shape}", fix="give samples as (N, ...)")
    if y.ndim != 1 or len(y) != len(x):
        raise BadInput(f"{where} has {len(x)} samples but labels of shape {y.shape}", fix="give one label a sample")
    if y.dtype.kind not in "iuU":
        raise BadInput(f"{where} has labels of type {y.dtype}", fix="give whole numbers or names")


def check_equal(parts: Mapping[Part, Array], root: Path) -> None:
    """Refuse parts whose samples differ in shape or type.

    Raises:
        BadInput: they do.

    """
    kinds = {(x.shape[1:], x.dtype) for x in parts.values()}
    if len(kinds) > 1:
        shown = ", ".join(f"{part} {x.shape[1:]} {x.dtype}" for part, x in parts.items())
        raise BadInput(f"{root}: the parts differ: {shown}", fix="give samples of one shape and type")


def plain(x: Array, root: Path) -> Array:
    """Return bytes as they are, and other numbers as float32.

    Raises:
        BadInput: the array holds no numbers, or some that are not finite.

    """
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiu":
        raise BadInput(f"{root} holds samples of type {x.dtype}", fix="give numbers")
    plain = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(plain).all(axis=tuple(range(1, plain.ndim))))
    if len(bad):
        problem = f"{root} row {bad[0]} and {len(bad) - 1} more hold values that are not finite"
        raise BadInput(problem, fix="clean or drop these samples")
    return plain


def classes(y: Array, names: tuple[str, ...] | None, root: Path) -> tuple[tuple[str, ...], Rows]:
    """Return the class names, those of the values where none are given, and the class number of every value.

    Raises:
        BadInput: a value is no class, or there are fewer than two.

    """
    values = [str(value) for value in y.tolist()]
    labels = names or class_names(values)
    check_classes(labels, str(root))
    return labels, numbers(values, labels, lambda row: f"{root} label {row}")
