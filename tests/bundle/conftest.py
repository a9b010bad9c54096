"""Tiny bundles around ONNX files made by hand: a linear classifier of 4 x 4 grey images or of readings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.bundle import Golden, write_bundle
from edgetl.evaluate import score
from edgetl.types import Json

LABELS = ("dark", "bright", "striped")


def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)


def onnx_bytes(shape: tuple[int, ...] = (1, 4, 4)) -> bytes:
    """Flatten, then one matrix product: pixel_values (B, *shape) -> logits (B, 3)."""
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, [numpy_helper.from_array(weights(), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    data: bytes = model.SerializeToString()
    return data


def manifest_of(raw: Mapping[str, Json], operations: list[Json], shape: tuple[int, ...]) -> dict[str, Json]:
    half = {"value": 0.5, "low": 0.2, "high": 0.8}
    return {
        "schema_version": 1,
        "task": "classification",
        "name": "tiny",
        "labels": list(LABELS),
        "raw": dict(raw),
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", *shape], "range": None}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}],
        "axes": {"batch": [1, None]},
        "preprocessing": operations,
        "postprocessing": [{"op": "softmax"}],
        "target": "onnx",
        "precision": "fp32",
        "session": {},
        "runtime": {"name": "onnxruntime", "needs": ">=1.20", "made_with": "1.31.1"},
        "opset": 20,
        "file": "model.onnx",
        "cost": {"macs": 48, "parameters": 48, "nodes": [{"name": "n", "op": "MatMul", "macs": 48, "bytes": 192}]},
        "parity": {
            "max_abs": 0.0,
            "max_rel": 0.0,
            "agreement": half,
            "n": 6,
            "batches": [1, 2, 7],
            "where": "export host",
        },
        "accuracy": {
            "accuracy": half,
            "balanced": half,
            "macro_f1": half,
            "per_class": {},
            "n": 6,
            "where": "export host",
        },
        "provenance": {"edgetl": "0.1.0", "recipe_sha256": "", "backbone": {"family": "linear"}, "data_sha256": ""},
    }


@pytest.fixture
def images() -> np.ndarray:
    """Six grey images."""
    return np.random.default_rng(1).integers(0, 256, (6, 4, 4), dtype=np.uint8)


@pytest.fixture
def truth(images: np.ndarray) -> np.ndarray:
    """What the network answers to the images."""
    return (images.reshape(6, 16).astype(np.float32) / np.float32(255)) @ weights()


@pytest.fixture
def make(tmp_path: Path, images: np.ndarray, truth: np.ndarray) -> Callable[..., Path]:
    """Writes a bundle of grey images; keywords replace keys of its manifest."""

    def write(name: str = "tiny", model: bytes | None = None, raw: bool = True, **changes: Json) -> Path:
        source = tmp_path / "model-source.onnx"
        source.write_bytes(onnx_bytes() if model is None else model)
        operations = [{"op": "decode", "mode": "L"}, {"op": "channels_first"}, {"op": "to_float"}]
        manifest = manifest_of({"kind": "array", "dtype": "uint8", "shape": [4, 4]}, operations, (1, 4, 4))
        y = truth.argmax(axis=1)
        manifest["accuracy"] = {**score(truth, y, LABELS).to_json(), "where": "export host"}
        inputs = {"pixel_values": images[:, None].astype(np.float32) / np.float32(255)}
        golden = Golden(tuple(i.tobytes() for i in images) if raw else None, inputs, truth, y)
        write_bundle(tmp_path / name, {**manifest, **changes}, {"model.onnx": source}, golden)
        return tmp_path / name

    return write


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    """A bundle whose samples are 16 sensor readings, without goldens that show them."""
    source = tmp_path / "sensor.onnx"
    source.write_bytes(onnx_bytes((16,)))
    x = np.random.default_rng(2).standard_normal((4, 16)).astype(np.float32)
    manifest = manifest_of({"kind": "array", "dtype": "float32", "shape": [16]}, [{"op": "to_float"}], (16,))
    golden = Golden(None, {"pixel_values": x}, x @ weights(), (x @ weights()).argmax(axis=1))
    write_bundle(tmp_path / "sensor", manifest, {"model.onnx": source}, golden)
    return tmp_path / "sensor"


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """Writes a SHA256SUMS that fits what the folder holds now, as an attacker would."""

    def write(folder: Path) -> None:
        (folder / "SHA256SUMS").unlink()
        lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir())]
        (folder / "SHA256SUMS").write_text("".join(lines))

    return write
