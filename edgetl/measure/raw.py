"""The raw samples of a measurement: one .npz beside its file, named in it by sha256. [no torch]"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetl import store
from edgetl.measure import measurement
from edgetl.measure.measurement import Measurement
from edgetl.measure.probing import Sample


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


def keep(one: Measurement, samples: bytes | None, path: Path) -> Measurement:
    """Write a measurement, its samples beside it where they are given, and return it with their sha256."""
    if samples is not None:
        store.write_bytes(path.with_suffix(".npz"), samples)
        sha256 = hashlib.sha256(samples).hexdigest()
        one = one.model_copy(update={"latency": one.latency.model_copy(update={"samples_sha256": sha256})})
    measurement.write(one, path)
    return one
