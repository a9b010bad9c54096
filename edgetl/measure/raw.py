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

    Its turns are rows of `turns` from turn_offsets[i] to turn_offsets[i + 1]: begin and end in nanoseconds, and how many
    of its samples they hold. A process that was stopped has neither.
    """
    walls = [np.asarray(s.wall if s else [], np.int64) for s in samples]
    cpus = [np.asarray(s.cpu if s else [], np.int64) for s in samples]
    turns = [np.asarray(s.turns if s else [], np.int64).reshape(-1, 3) for s in samples]
    arrays = {"wall_ns": walls, "cpu_ns": cpus, "turns": turns}
    offsets = {"offsets": walls, "turn_offsets": turns}
    file = io.BytesIO()
    np.savez_compressed(
        file,
        **{name: np.cumsum([0, *map(len, parts)], dtype=np.int64) for name, parts in offsets.items()},
        **{name: np.concatenate(parts) for name, parts in arrays.items()},
    )
    return file.getvalue()


def keep(one: Measurement, samples: bytes | None, path: Path) -> Measurement:
    """Write a measurement, its samples beside it where they are given, and return it with their sha256."""
    if samples is not None:
        store.write_bytes(path.with_suffix(".npz"), samples)
        sha256 = hashlib.sha256(samples).hexdigest()
        one = one.model_copy(update={"latency": one.latency.model_copy(update={"samples_sha256": sha256})})
    measurement.write(one, path)
    return one
