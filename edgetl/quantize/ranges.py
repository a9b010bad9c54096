"""The ranges of a network's activations on real inputs. [host: onnx, ONNX Runtime]

Methods: the extremes; the clip of least KL divergence (Migacz 2017, 8-bit inference with TensorRT); a percentile.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

from edgetl import store
from edgetl.errors import BadInput
from edgetl.quantize import graph
from edgetl.types import Feed

Method: TypeAlias = Literal["minmax", "entropy", "percentile"]
Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""Lowest and highest value, by tensor."""

OPERATORS = ("MatMul", "Gemm", "Conv")
"""The operators that do the work."""

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_OPTIONS: Mapping[str, Mapping[str, bool | int]] = {
    "minmax": {},
    # The default of 128 bins, as many as int8 has levels to either side, cannot clip an outlier.
    "entropy": {"num_bins": 512},
    # The default is symmetric, which wastes half of uint8 on what a ReLU never gives.
    "percentile": {"symmetric": False},
}


class _Reader:
    """One batch, as the calibrators take it: collecting batch by batch bounds the memory of histograms."""

    def __init__(self, feed: Feed) -> None:
        self.feeds: Iterator[Feed] = iter([feed])

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def observe(base: Path, feeds: Iterable[Feed], operators: Sequence[str], method: Method = "minmax") -> Ranges:
    """Return the range of all that these operators read and write, over batches of inputs.

    Raises:
        BadInput: ONNX Runtime cannot run the network.

    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failed = (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented, state.RuntimeException)
    try:
        return _observe(base, feeds, operators, method)
    except failed as e:
        line = str(e).strip().splitlines()[0].split(" : ", 3)[-1][:400]
        fix = "use the inputs and versions that the base file was made with"
        raise BadInput(f"ONNX Runtime cannot run {base.name} to calibrate it: {line}", fix=fix) from e


def _observe(base: Path, feeds: Iterable[Feed], operators: Sequence[str], method: Method) -> Ranges:
    with tempfile.TemporaryDirectory(prefix="edgetl-ranges-") as scratch:
        shaped = Path(scratch) / "shaped.onnx"
        onnx.save(graph.read(base), shaped)
        augmented = str(Path(scratch) / "augmented.onnx")
        with contextlib.redirect_stdout(io.StringIO()):  # the calibrators print what they do
            calibrator = create_calibrator(
                shaped, list(operators), augmented, _METHODS[method], extra_options=_OPTIONS[method]
            )
            for feed in feeds:
                calibrator.collect_data(_Reader(feed))
            found = calibrator.compute_data()
    ends = {name: tuple(float(np.ravel(end)[0]) for end in data.range_value) for name, data in found.items()}
    return {name: (low, high) for name, (low, high) in sorted(ends.items())}


def kept(folder: Path | None, base: Path, feeds: Sequence[Feed], how: tuple[Sequence[str], Method]) -> Ranges:
    """Return `observe`'s ranges, read from the folder where they were kept for this base and these ways."""
    if folder is None:
        return observe(base, feeds, *how)
    key = store.digest([store.file_digest(base), list(how[0]), how[1]])
    path = folder / f"ranges-{key[:16]}.json"
    if path.is_file():
        return {name: (low, high) for name, (low, high) in store.read_json(path).items()}
    found = observe(base, feeds, *how)
    store.write_json(path, {name: list(ends) for name, ends in found.items()})
    return found


def outside(calibrated: Ranges, seen: Ranges) -> tuple[str, float]:
    """Return the tensor that other inputs drive furthest out of its calibrated range, and how far, in its width."""
    far = {name: _beyond(calibrated[name], ends) for name, ends in seen.items() if name in calibrated}
    return max(far.items(), key=lambda item: item[1], default=("", 0.0))


def _beyond(calibrated: tuple[float, float], seen: tuple[float, float]) -> float:
    width = calibrated[1] - calibrated[0]
    far = max(calibrated[0] - seen[0], seen[1] - calibrated[1], 0.0)
    return far / width if width > 0 else float(far > 0)
