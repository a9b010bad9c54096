from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from edgetl import cli, sealed
from edgetl.errors import BadInput, GateMissed
from edgetl.stages.debug_parity import debug_parity, require


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    """A copy of a run of two students and their reference."""
    copy = tmp_path / "run"
    shutil.copytree(made_run, copy, symlinks=True)
    return copy


def corrupt(path: Path, node: str) -> None:
    """Change the weight that a node of a file reads."""
    model = onnx.load(path)
    held = {t.name: t for t in model.graph.initializer}
    name = next(i for n in model.graph.node if n.name == node for i in n.input if i in held)
    values = numpy_helper.to_array(held[name])
    noise = np.random.default_rng(0).standard_normal(values.shape).astype(values.dtype)
    held[name].CopyFrom(numpy_helper.from_array(values + noise, name))
    onnx.save(model, path)


def test_a_run_as_exported_has_no_wrong_module(run: Path) -> None:
    found = debug_parity(run)
    assert {one.against for one in found} == {"torch"}, "an fp32 bundle holds the base file itself"
    assert len(found) == 3
    assert all(one.bad.module is None and one.bad.runs == 1 for one in found)
    require(found)


def test_the_wrong_layer_of_one_file_is_named_and_the_command_exits_3(run: Path) -> None:
    student = sorted(p.name for p in (run / "students").iterdir())[-1]
    corrupt(run / "students" / student / "base.onnx", "layers.1.ffn.down/MatMul")
    shown = CliRunner().invoke(cli.app, ["export", str(run), "--debug-parity", "--json"])
    assert isinstance(shown.exception, GateMissed)
    assert f"{student} base.onnx: layers.1.ffn.down differs" in shown.exception.problem
    rows = {(row["file"], row["against"]): row for row in json.loads(shown.stdout)["parity"]}
    assert rows[f"{student} base.onnx", "torch"]["module"] == "layers.1.ffn.down"
    assert rows[f"{student} onnx-fp32", "base.onnx"]["module"] == "layers.1.ffn.down", "the bundle is not that file"
    assert sum(row["module"] is not None for row in rows.values()) == 2


def test_one_bundle_of_a_run_is_looked_at_alone(run: Path) -> None:
    bundle = next((run / "bundles").glob("*/onnx-fp32"))
    [one] = debug_parity(bundle)
    assert one.file == f"{bundle.parent.name} base.onnx"


def test_a_saved_network_is_looked_at_too(run: Path) -> None:
    from edgetl.stages.export import export

    network = next((run / "steps").glob("*-dense/*"))
    with pytest.raises(BadInput, match="no exported file"):
        debug_parity(network)
    export(network)
    [one] = debug_parity(network)
    assert one.bad.module is None


def test_a_file_for_tensorrt_is_compared_as_the_cpu_runs_it(run: Path) -> None:
    bundle = next((run / "bundles").glob("*/onnx-fp32"))
    facts = json.loads((bundle / "manifest.json").read_text())
    model = onnx.load(bundle / "model.onnx")
    model.producer_name = "another"  # the same network in other bytes
    for precision, lines in (("fp32", 2), ("bf16", 1)):
        (bundle / "model.onnx").write_bytes(model.SerializeToString())
        trt = {"target": "trt", "precision": precision, "session": {"batch": 64, "tokens": 512}}
        (bundle / "manifest.json").write_text(json.dumps(facts | trt))
        (bundle / "SHA256SUMS").unlink()
        sealed.seal(bundle)
        found = debug_parity(bundle)
        assert len(found) == lines
        assert all(one.bad.module is None for one in found)
