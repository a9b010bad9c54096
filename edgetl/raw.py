"""The raw samples of a measurement: one .npz beside its file, named in it by sha256. [no torch, no pydantic]"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetl import store
from edgetl.probing import Sample


def pack(samples: Sequence[Sample | None]) -> bytes:
    """Return an .npz of int64 arrays: process i has wall_ns and cpu_ns from offsets[i] to offsets[i + 1].

    A process that was stopped has no samples.
    """
    walls = [np.asarray(s.wall if s else [], np.int64) for s in samples]
    cpus = [np.asarray(s.cpu if s else [], np.int64) for s in samples]
    offsets = np.cumsum([0, *map(len, walls)], dtype=np.int64)
    file = io.BytesIO()
    np.savez_compressed(file, offsets=offsets, wall_ns=np.concatenate(walls), cpu_ns=np.concatenate(cpus))
    return file.getvalue()


def write(samples: Sequence[Sample | None], path: Path) -> str:
    """Write the samples of a measurement atomically and return the sha256 of the file."""
    data = pack(samples)
    store.write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()
