from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.bundle import open_bundle, write_bundle
from edgetl.device import probe
from edgetl.golden import Golden
from edgetl.measure import measurement, summary
from edgetl.measure.probing import Sample
from tests import clockwork

Maker = Callable[..., Path]


def tiny(width: int, layers: int, seed: int) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A chain of square matrices from 64 inputs to 10 logits."""
    draw = np.random.default_rng(seed)
    sizes = [64, *[width] * layers, 10]
    weights = [(draw.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32) for a, b in pairwise(sizes)]
    names = ["flat", *[f"h{i}" for i in range(layers)], "logits"]
    nodes = [helper.make_node("Flatten", ["pixel_values"], ["flat"])]
    nodes += [helper.make_node("MatMul", [a, f"w{i}"], [b]) for i, (a, b) in enumerate(pairwise(names))]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), weights


def manifest(name: str, macs: int, target: str, needs: tuple[str, str]) -> dict[str, object]:
    share = {"value": 0.9, "low": 0.8, "high": 1.0}
    return {
        "schema_version": 1, "task": "classification", "name": name, "labels": [str(i) for i in range(10)],
        "raw": {"kind": "array", "dtype": "uint8", "shape": [8, 8]},
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 1, 8, 8], "range": None}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "axes": {"batch": [1, None]}, "preprocessing": [{"op": "decode", "mode": "L"}],
        "postprocessing": [{"op": "softmax"}], "target": target, "precision": "fp32", "session": {},
        "runtime": {"name": needs[0], "needs": needs[1], "made_with": "1.31.1"}, "opset": 17, "file": "model.onnx",
        "cost": {"macs": macs, "parameters": macs, "nodes": []},
        "parity": {"max_abs": 1e-6, "max_rel": 1e-6, "agreement": share, "n": 20, "batches": [1, 2, 7],
                   "where": "export host"},
        "accuracy": {"accuracy": share, "balanced": share, "macro_f1": share, "per_class": {}, "n": 20,
                     "where": "export host"},
        "provenance": {"edgetl": "0.1.0", "recipe_sha256": "", "data_sha256": "",
                       "backbone": {"family": "", "source": "", "licence": None}},
    }  # fmt: skip


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """`make(name, width, layers)`: a bundle of a tiny network with 20 goldens."""

    def bundle(
        name: str,
        width: int = 64,
        layers: int = 2,
        folder: Path | None = None,
        target: str = "onnx",
        needs: tuple[str, str] = ("onnxruntime", ">=1.20"),
        **more: object,
    ) -> Path:
        model, weights = tiny(width, layers, 0)
        folder = folder or tmp_path_factory.mktemp(name) / "onnx-fp32"
        file = folder.parent / f"{name}.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, file)
        x = np.random.default_rng(1).random((20, 1, 8, 8), np.float32)
        logits = x.reshape(20, -1)
        for w in weights:
            logits = logits @ w
        macs = sum(w.size for w in weights)
        golden = Golden(None, {"pixel_values": x}, logits, np.argmax(logits, axis=1).astype(np.int64))
        write_bundle(folder, {**manifest(name, macs, target, needs), **more}, {"model.onnx": file}, golden)
        file.unlink()
        return folder

    return bundle


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short rounds by a clock of the test's own; with the baseline twice in the standard mode."""
    clockwork.wind(monkeypatch)


@pytest.fixture(scope="session")
def replay(make: Maker) -> Callable[..., measurement.Measurement]:
    """`replay(walls, **facts)`: the measurement of processes that took these nanoseconds; `around` is the machine."""
    subject = summary.Subject(open_bundle(make("replayed")), "0" * 64, "replayed-onnx-fp32", Path(), {}, 20)
    run = measurement.Run(
        id="1", started_utc="2026-01-01T00:00:00+00:00", tool_version="0", mode="quick", seed=0, rounds=3,
        failed_rounds=0, wall_s=1.0,
    )  # fmt: skip

    def summarised(
        walls: list[list[int]], around: summary.Surroundings | None = None, **changes: object
    ) -> measurement.Measurement:
        facts: dict[str, object] = {
            "runtime": "onnxruntime 1.0", "provider": "CPUExecutionProvider", "seconds": 1.0, "load_ns": 2_000_000,
            "first_ns": 1_000_000, "process_ns": 9_000_000, "base": 100, "load_peak": 50, "peak": 70, "steady_rss": 60,
            "growth": 0.0, "warm": 10, "steady": None, "switches": 0, "others": 0,
        }  # fmt: skip
        samples = [Sample(**({**facts, "wall": wall, "cpu": wall} | changes)) for wall in walls]  # type: ignore[arg-type]
        return summary.summarise(
            subject, probe(), run, samples, around or summary.Surroundings(0.0, False, None, False), None
        )

    return summarised


@pytest.fixture(scope="session")
def run(make: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a reference and a cut student, exported but not measured."""
    folder = tmp_path_factory.mktemp("demo")
    for name, width in (("dense", 512), ("optin-0.5", 64)):
        make(name, width, 3, folder / "bundles" / name / "onnx-fp32")
    draw = np.random.default_rng(0)
    y = draw.integers(0, 10, 300)
    for name, wrong in (("dense", 0.02), ("optin-0.5", 0.05)):
        answers = np.where(draw.random(300) < wrong, (y + 1) % 10, y)
        (folder / "students" / name).mkdir(parents=True)
        for file in ("logits", "onnx-fp32"):
            np.save(folder / "students" / name / f"{file}.npy", np.eye(10, dtype=np.float32)[answers])
    (folder / "eval").mkdir()
    np.savez(folder / "eval" / "test.npz", pixel_values=np.zeros((300, 1, 8, 8), np.uint8), y=y)
    return folder


def plan(folder: Path, gates: dict[str, object], budgets: dict[str, dict[str, float]]) -> Path:
    """Write plan.json of the run folder."""
    value = {
        "schema_version": 1, "name": "demo", "reference": "dense", "students": ["optin-0.5"],
        "targets": [{"use": "onnx", "precision": "fp32"}], "gates": gates, "budgets": budgets, "steps": {},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(value))
    return folder


@pytest.fixture
def planned(run: Path) -> Callable[..., Path]:
    return lambda gates, budgets: plan(run, gates, budgets)
