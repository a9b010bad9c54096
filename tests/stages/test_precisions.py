"""Precisions in a whole run: what is exported, compared with fp32, shown, and made again when a gate changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgetl import evaluate
from edgetl.bundle import open_bundle
from edgetl.errors import BadInput, BadInputs
from edgetl.recipe.plan import write_plan
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.report import report
from edgetl.types import Json
from tests.stages.conftest import Write, times


@pytest.fixture
def asked(copied: Path, tiny: Write):
    """`asked(targets, **changes)`: a run that is compressed, whose recipe now names these targets."""

    def ask(targets: list[Json], **changes: Json) -> Path:
        write_plan(read(tiny(targets=targets, **changes)), copied)
        return copied

    return ask


def test_int8_alone_is_compared_with_the_reference_at_fp32(asked) -> None:
    run = asked([{"use": "onnx", "precision": "int8", "samples": 32}], gates={"accuracy_drop": 90, "faster": False})
    shutil.rmtree(run / "bundles")
    names = [f"{path.parent.name}/{path.name}" for path in export(run)]
    assert names == ["dense/onnx-fp32", "dense/onnx-int8", "optin-0.6/onnx-int8", "optin-0.4/onnx-int8"]
    y = np.load(run / "eval" / "test.npz")["y"]
    answers = {path.parent.name: np.load(path) for path in (run / "students").glob("*/onnx-int8.npy")}
    reference = np.load(run / "students" / "dense" / "onnx-fp32.npy")
    made = report(run)
    assert made.missing == ()
    assert [row.title for row in made.rows if row.judged] == ["optin-0.6 onnx int8", "optin-0.4 onnx int8"]
    for row in made.rows:
        if row.judged:
            assert row.quality.drop == evaluate.drop(reference, answers[row.name], y)
    table = (run / "report.md").read_text()
    assert "| optin-0.6 onnx int8 | onnx int8 | asked" in table
    assert "int8 100 %" in table
    before = times(run / "bundles")
    export(run)
    assert times(run / "bundles") == before


def test_another_gate_makes_the_int8_file_again_and_leaves_fp32(asked, tiny: Write) -> None:
    targets = [{"use": "onnx", "precision": p, "samples": 32} for p in ("fp32", "int8_dynamic")]
    run = asked(targets)
    export(run)
    before = times(run / "bundles" / "dense")
    asked(targets, gates={"agreement": 0.5, "faster": False})
    export(run)
    after = times(run / "bundles" / "dense")
    changed = {Path(name).parent.name for name in after if after[name] != before.get(name)}
    assert changed == {"onnx-int8_dynamic"}


def test_a_saved_network_without_data_takes_what_needs_none(copied: Path) -> None:
    network = copied / "steps" / "01-dense" / "all"
    (folder,) = export(network)
    assert open_bundle(folder).manifest["precision"] == "fp32"


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([{"use": "onnx", "precision": "bf16"}], "no bf16: ONNX Runtime's CPU provider has no bf16 kernels"),
        ([{"use": "onnx", "precision": "int9"}], "targets[0] (onnx): precision"),
        ([{"use": "onnx", "precision": "int8", "samples": 0}], "must not be empty"),
        ([{"use": "onnx", "precision": "int8", "operators": []}], "must not be empty"),
        ([{"use": "onnx", "precision": "int8", "method": "best"}], "targets[0] (onnx): method"),
        ([{"use": "onnx", "precision": "int8"}, {"use": "onnx", "precision": "int8", "samples": 9}], "stands twice"),
    ],
)
def test_a_recipe_that_asks_for_what_cannot_be_is_refused_at_once(tiny: Write, targets: list[Json], words: str) -> None:
    with pytest.raises(BadInputs) as caught:
        read(tiny(targets=targets))
    assert words in str(caught.value)


def test_too_few_training_samples_end_the_export_with_the_way_out(tiny: Write, asked) -> None:
    run = asked([{"use": "onnx", "precision": "int8", "samples": 8}])
    with pytest.raises(BadInput, match="8 training samples do not tell the ranges of int8, it takes 16") as caught:
        export(run)
    assert "int8_dynamic" in caught.value.fix


@pytest.mark.slow
def test_int8_of_the_digits_loses_at_most_a_point(tmp_path: Path) -> None:
    listed = "[{use: onnx, precision: int8}, {use: onnx, precision: int8_dynamic}]"
    recipe = read(Path("recipes/vit-int8.yaml"), [f"targets={listed}", "gates.accuracy_drop=1"])
    run = tmp_path / "run"
    compress(recipe, run)
    export(run)
    y = np.load(run / "eval" / "test.npz")["y"]
    files = {path.stem: np.load(path).argmax(axis=1) for path in (run / "students" / "dense").glob("onnx-*.npy")}
    right = {name: (answers == y).mean() for name, answers in files.items()}
    assert right["onnx-fp32"] > 0.9
    for precision in ("int8", "int8_dynamic"):
        assert right["onnx-fp32"] - right[f"onnx-{precision}"] <= 0.01
        manifest = json.loads((run / "bundles" / "dense" / f"onnx-{precision}" / "manifest.json").read_text())
        assert manifest["dtypes"]["int8"] > 0.5
