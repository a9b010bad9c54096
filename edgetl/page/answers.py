"""What a student answers wrongly: its confusions, and samples that the reference gets right. [no torch]

Letters: n test samples, K labels.
"""

from __future__ import annotations

import base64
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgetl.comparison import Row
from edgetl.errors import Refused
from edgetl.types import Array

MOST_READ = 1 << 30
"""Bytes of test inputs that are read for pictures; later samples are shown by their number."""

SIDE = 112
"""Longest side of a picture in pixels."""

_AGAIN = "delete it and run `edgetl export` again"


@dataclass(frozen=True)
class Answers:
    """The answers of a file on the test split, and the labels."""

    logits: NDArray[np.float32]  # (n, K)
    y: NDArray[np.int64]  # (n,)

    @property
    def said(self) -> NDArray[np.int64]:
        """The label that each sample is given, (n,)."""
        return np.asarray(self.logits.argmax(axis=1), np.int64)


@dataclass(frozen=True)
class Miss:
    """A sample with a wrong answer."""

    sample: int  # its row in eval/test.npz
    label: int
    said: int


def answers(run: Path, row: Row) -> Answers | None:
    """Return the answers of a file, or None where they or the test split are not there.

    Raises:
        Refused: the files are damaged or do not fit together.

    """
    path, test = run / "students" / row.name / f"{row.bundle.folder.name}.npy", run / "eval" / "test.npz"
    if not path.is_file() or not test.is_file():
        return None
    try:
        with np.load(test, allow_pickle=False) as file:
            y = np.asarray(file["y"], np.int64)
        logits = np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise Refused(f"{path} or {test} is damaged: {e}", fix="delete them and run `edgetl export` again") from e
    labels = len(row.bundle.manifest["labels"])
    if logits.shape != (len(y), labels) or (y.size and not 0 <= y.min() <= y.max() < labels):
        raise Refused(f"{path}: answers of shape {logits.shape} for {len(y)} samples", fix="run `edgetl export` again")
    return Answers(logits, y)


def confusion(found: Answers) -> NDArray[np.int64]:
    """Return (K, K) counts: samples of a label (row) that were given another (column)."""
    labels = found.logits.shape[1]
    counts = np.bincount(found.y * labels + found.said, minlength=labels * labels)
    return counts.reshape(labels, labels).astype(np.int64)


def misses(student: Answers, reference: Answers, most: int) -> list[Miss]:
    """Return samples that only the student gets wrong, those first of whose wrong answer it is surest."""
    if student.logits.shape != reference.logits.shape:
        return []
    wrong = np.flatnonzero((student.said != student.y) & (reference.said == reference.y))
    margin = student.logits[wrong, student.said[wrong]] - student.logits[wrong, student.y[wrong]]
    chosen = wrong[np.argsort(-margin, kind="stable")][:most]
    return [Miss(int(i), int(student.y[i]), int(student.said[i])) for i in chosen]


def pictures(run: Path, samples: Sequence[int]) -> dict[int, str]:
    """Return samples of the test split as `data:` addresses of small PNG files; none where they are no images.

    Raises:
        Refused: eval/test.npz is damaged.

    """
    path = run / "eval" / "test.npz"
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    found = _rows(file, samples)
                if found is not None:
                    return {sample: _address(pixels) for sample, pixels in found.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise Refused(f"{path} is damaged: {e}", fix=_AGAIN) from e
    return {}


def _rows(file: IO[bytes], samples: Sequence[int]) -> dict[int, Array] | None:
    """Return rows of one array without holding the others in memory; None where it is no array of images."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or fortran or 0 in shape:
        return None
    size = math.prod(shape[1:])
    last = min(max(samples, default=-1), MOST_READ // size, shape[0] - 1)
    wanted, found = set(samples), {}
    for sample in range(last + 1):
        bytes_ = file.read(size)
        if len(bytes_) != size:
            raise ValueError("it ends early")
        if sample in wanted:
            found[sample] = np.frombuffer(bytes_, np.uint8).reshape(shape[1:])
    return found


def _address(pixels: Array) -> str:
    """Return a (C, H, W) image as the address of a PNG."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
