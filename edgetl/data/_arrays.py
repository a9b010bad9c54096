"""Arrays from IDX and npz files."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.data._examples import digest
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part
from edgetl.preprocess import Raw
from edgetl.types import Array

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def array_examples(
    x: Array, y: NDArray[np.int64], labels: tuple[str, ...], parts: Mapping[Part, NDArray[np.int64]], name: str
) -> Examples:
    """Return the examples of an array (N, ...), held in memory; `name` stands before a row's number in messages."""
    x = np.ascontiguousarray(x)
    return Examples(
        raw=Raw("array", x.dtype.name, x.shape[1:]),
        labels=labels,
        y=y,
        parts=parts,
        read=lambda row: x[row].tobytes(),
        digest=digest([repr((x.dtype.str, x.shape)).encode(), x.tobytes()], labels, y, parts),
        describe=lambda row: f"{name} row {row}",
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
