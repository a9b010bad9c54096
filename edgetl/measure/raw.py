"""The raw samples of a measurement: one .npz beside its file, named in it by sha256. [no torch]"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import store
from edgetl.measure import measurement
from edgetl.measure.measurement import Measurement
from edgetl.measure.probing import Sample


def pack(samples: Sequence[Sample | None]) -> bytes:
    """Return an .npz of flat int64 arrays.

    Process i has wall_ns and cpu_ns from offsets[i] to offsets[i + 1], in turns of so many calls as turn_calls says
    from turn_offsets[i] to turn_offsets[i + 1]. A process that was stopped has nothing.
    """
    walls = [np.asarray(s.wall if s else [], np.int64) for s in samples]
    cpus = [np.asarray(s.cpu if s else [], np.int64) for s in samples]
    turns = [np.asarray([calls for _, _, calls in s.turns] if s else [], np.int64) for s in samples]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        offsets=_offsets(walls),
        wall_ns=np.concatenate(walls),
        cpu_ns=np.concatenate(cpus),
        turn_offsets=_offsets(turns),
        turn_calls=np.concatenate(turns),
    )
    return file.getvalue()


def _offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def keep(one: Measurement, samples: bytes | None, path: Path) -> Measurement:
    """Write a measurement, its samples beside it where they are given, and return it with their sha256."""
    if samples is not None:
        store.write_bytes(path.with_suffix(".npz"), samples)
        sha256 = hashlib.sha256(samples).hexdigest()
        one = one.model_copy(update={"latency": one.latency.model_copy(update={"samples_sha256": sha256})})
    measurement.write(one, path)
    return one
