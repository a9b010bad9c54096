"""Golden samples: raw inputs, what pre-processing makes of them, and the answers [no torch, no pydantic]."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import Refused
from edgetl.types import Array, Feed

MOST_BYTES = 8 << 30
"""What an .npz file may unpack to; compressed, a small one could fill any memory."""


@dataclass(frozen=True)
class Golden:
    """Samples with the answers of the torch network, n of them: what `verify` repeats on a device."""

    raw: tuple[bytes, ...] | None  # before pre-processing; None where data may not leave the host
    inputs: Feed  # after it, head and tail as one batch, each (n, ...)
    logits: NDArray[np.float32]  # (n, K)
    y: NDArray[np.int64]  # (n,)


def dump(golden: Golden, path: Path) -> None:
    """Write golden samples; raw bytes stand one after another, with their offsets."""
    arrays: dict[str, Array] = {f"input.{name}": np.asarray(values) for name, values in golden.inputs.items()}
    arrays |= {"logits": golden.logits, "y": golden.y}
    if golden.raw is not None:
        arrays["raw"] = np.frombuffer(b"".join(golden.raw), np.uint8)
        arrays["raw_offsets"] = np.cumsum([0, *(len(data) for data in golden.raw)], dtype=np.int64)
    write_npz(path, arrays)


def parse(data: bytes, labels: int) -> Golden:
    """Return the golden samples in the bytes of a golden.npz.

    Raises:
        Refused: the bytes are not an .npz of plain arrays, or the arrays do not fit together.

    """
    arrays = read_npz(data, "golden.npz")
    try:
        inputs = {name.removeprefix("input."): arrays[name] for name in arrays if name.startswith("input.")}
        logits, y, raw = arrays["logits"].astype(np.float32), arrays["y"].astype(np.int64), _raw(arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise Refused(f"golden.npz is malformed: {error}", fix="export the bundle again") from error
    shapes = {y.shape, *(values.shape[:1] for values in inputs.values()), *(() if raw is None else {(len(raw),)})}
    if not y.size or not inputs or shapes != {(y.size,)} or logits.shape != (y.size, labels):
        raise Refused("golden.npz is malformed: its arrays do not fit together", fix="export the bundle again")
    return Golden(raw, inputs, logits, y)


def read_npz(data: bytes, name: str) -> dict[str, Array]:
    """Return the arrays in the bytes of an .npz file called `name`; object arrays, which hold code, are refused.

    Raises:
        Refused: the bytes are not an .npz of plain arrays.

    """
    import zipfile
    import zlib

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            sizes = [item.file_size for item in file.zip.infolist()]
            arrays = {key: file[key] for key in file.files} if sum(sizes) <= MOST_BYTES else None
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"{name} is not an .npz file of plain arrays: {error}", fix="make the file again") from error
    if arrays is None:
        raise Refused(f"{name} unpacks to {sum(sizes)} bytes, more than {MOST_BYTES}", fix="make the file again")
    return arrays


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file whose bytes depend on the arrays only: sorted names, one fixed time."""
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # else the host's system is written
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def _raw(arrays: Mapping[str, Array]) -> tuple[bytes, ...] | None:
    if "raw" not in arrays:
        return None
    data, offsets = arrays["raw"].tobytes(), [int(i) for i in arrays["raw_offsets"].ravel()]
    if offsets != sorted(offsets) or offsets[:1] != [0] or offsets[-1] != len(data):
        raise ValueError("the offsets do not fit the raw bytes")
    return tuple(data[a:b] for a, b in itertools.pairwise(offsets))
