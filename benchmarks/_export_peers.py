"""The files that peers make of one network: each with its library's defaults, from the same ONNX file and samples."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.types import Feed

NAMES = ("torch eager", "torch.compile", "onnx fp32", "optimum onnx", "onnx int8 dynamic", "onnx int8 static",
         "openvino fp32", "openvino bf16", "openvino nncf int8", "olive")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What one row runs; `skipped` says why there is nothing to run."""

    kind: str = ""
    file: Path = Path()
    hint: str = "f32"  # what OpenVINO is asked to compute in
    skipped: str = ""


@dataclass(frozen=True)
class Given:
    """What all peers start from."""

    network: Path  # the saved torch network
    base: Path  # its ONNX file at fp32
    calibration: Sequence[Feed]  # training samples
    pythons: Mapping[str, Path | None]  # of the environments of optimum's exporter and of Olive
    compiles: bool  # torch.compile takes minutes


def entries(given: Given, out: Path) -> dict[str, Entry]:
    """Make every peer's file that is not there yet, and return what runs each row."""
    out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Callable[[], Entry]] = {
        "torch eager": lambda: Entry("torch", given.network),
        "torch.compile": lambda: _compiled(given),
        "onnx fp32": lambda: Entry("onnxruntime", given.base),
        "optimum onnx": lambda: _elsewhere("optimum", out, given, [given.network]),
        "onnx int8 dynamic": lambda: _written(out / "dynamic.onnx", given, _dynamic),
        "onnx int8 static": lambda: _written(out / "static.onnx", given, _static),
        "openvino fp32": lambda: Entry("openvino", given.base, "f32"),
        "openvino bf16": lambda: Entry("openvino", given.base, "bf16"),
        "openvino nncf int8": lambda: _nncf(out / "nncf.xml", given),
        "olive": lambda: _elsewhere("olive", out, given, [given.base, _samples(out / "calibration.npz", given)]),
    }
    return {name: made[name]() for name in NAMES}


def _compiled(given: Given) -> Entry:
    if not given.compiles:
        return Entry(skipped="not run: it compiles for minutes")
    if not (shutil.which("g++") or shutil.which("clang++")):
        return Entry(skipped="not run: torch.compile needs a C++ compiler")
    return Entry("torch-compile", given.network)


def _elsewhere(peer: str, out: Path, given: Given, sources: Sequence[Path]) -> Entry:
    """A file that a script of ours makes in the environment of a peer that cannot share this one."""
    path, python = out / f"{peer}.onnx", given.pythons[peer]
    if python is None:
        return Entry(skipped=f"not run: no environment with {peer} was given")
    if not path.is_file():
        script = Path(__file__).parent / f"_export_{peer}.py"
        done = subprocess.run([python, script, *sources, path], capture_output=True, text=True, check=False)
        if done.returncode:
            return Entry(skipped=f"failed: {(done.stderr.strip().splitlines() or ['it ended'])[-1][:120]}")
    return Entry("onnxruntime", path)


def _samples(path: Path, given: Given) -> Path:
    """The training samples as a file, its arrays called `<sample>/<input>`."""
    arrays = {f"{i}/{name}": values for i, feed in enumerate(given.calibration) for name, values in feed.items()}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def _written(path: Path, given: Given, make: Callable[[Given, Path], None]) -> Entry:
    if not path.is_file():
        try:
            with _quiet():
                make(given, path)
        except (ValueError, RuntimeError) as error:
            return Entry(skipped=f"failed: {str(error).strip().splitlines()[0][:120]}")
    return Entry("onnxruntime", path)


def _plain(given: Given, folder: Path) -> Path:
    """The base file without the shapes that the exporter noted, which ONNX Runtime's quantizer stumbles over."""
    import onnx

    model = onnx.load(given.base)
    del model.graph.value_info[:]
    onnx.save(model, folder / "plain.onnx")
    return folder / "plain.onnx"


def _dynamic(given: Given, path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_plain(given, path.parent), path)


def _static(given: Given, path: Path) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(_plain(given, path.parent), path, _Reader(given.calibration))


class _Reader:
    """Samples as ONNX Runtime's calibration takes them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, NDArray[np.generic]] | None:
        return next(self._feeds, None)


def _nncf(path: Path, given: Given) -> Entry:
    if importlib.util.find_spec("nncf") is None:
        return Entry(skipped="not run: nncf is not installed")
    import openvino

    if not path.is_file():
        with _quiet():
            import nncf

            model = openvino.Core().read_model(given.base)
            attends = any(node.get_type_name() == "Softmax" for node in model.get_ops())
            kind: Any = nncf.ModelType.TRANSFORMER if attends else None
            data = nncf.Dataset([dict(feed) for feed in given.calibration])
            made = nncf.quantize(model, data, subset_size=len(given.calibration), model_type=kind)
        openvino.save_model(made, path, compress_to_fp16=False)
    return Entry("openvino", path)


@contextlib.contextmanager
def _quiet() -> Any:
    levels = {name: logging.getLogger(name).level for name in ("nncf", None)}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
