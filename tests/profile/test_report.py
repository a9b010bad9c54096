from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edgetl.errors import BadInput, GateMissed, Refused
from edgetl.stages.profile import profile_all
from edgetl.stages.report import report

Planned = Callable[..., Path]


@pytest.fixture
def bare(planned: Planned, tmp_path: Path) -> Planned:
    """A copy of the run that nothing has measured."""

    def copied(gates: dict[str, object], budgets: dict[str, dict[str, float]]) -> Path:
        folder = tmp_path / "demo"
        shutil.copytree(planned(gates, budgets), folder, ignore=shutil.ignore_patterns("measurements"))
        return folder

    return copied


def test_without_measurements_it_says_so(bare: Planned) -> None:
    run = bare({"accuracy_drop": 20}, {})
    made = report(run)
    made.judge()
    value = json.loads((run / "report.json").read_text())
    assert value["schema_version"] == 1
    assert value["best"] == {"any": ["optin-0.5 onnx fp32"]}
    student = value["rows"][1]
    drop, score = student["accuracy_drop"], student["accuracy"]
    assert drop["value"] == pytest.approx(
        value["rows"][0]["accuracy"]["accuracy"]["value"] - score["accuracy"]["value"]
    )
    assert student["agreement"]["value"] == 1
    assert len(student["sha256"]) == 64
    text = (run / "report.md").read_text()
    assert "no device was measured" in text
    assert "300 test samples" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in tables[:4]}) == 1, "columns line up"
    assert len(made.table().rows) == 2


@pytest.mark.parametrize(
    ("gates", "budgets", "says"),
    [
        ({"accuracy_drop": 0.1}, {}, "accuracy_drop: .*, limit 0.1"),
        ({"accuracy": 99.9}, {}, "accuracy: .*, limit 99.9"),
        ({"agreement": 1.0}, {}, "agreement: .*, limit 1"),
        ({}, {"local": {"size_mb": 1e-6}}, "size_mb on local: .*, limit 1e-06"),
        ({}, {"local": {"p90_ms": 1e6}}, "p90_ms on local: not measured"),
        ({}, {"rpi5": {"size_mb": 1e6}}, "on rpi5: not measured"),
    ],
)
def test_a_missed_limit_is_named_with_value_and_limit(
    bare: Planned, gates: dict[str, object], budgets: dict[str, dict[str, float]], says: str
) -> None:
    with pytest.raises(GateMissed, match=says) as error:
        report(bare(gates, budgets)).judge()
    assert "optin-0.5" in error.value.problem


@pytest.mark.usefixtures("brief")
def test_with_measurements(planned: Planned) -> None:
    run = planned({"accuracy_drop": 20}, {"local": {"p50_ms": 1e5, "p90_ms": 1e5, "peak_mb": 1e4}})
    profile_all([run], "local")
    for file in (run / "measurements" / "local").glob("*.json"):
        value = json.loads(file.read_text())
        value["verdict"] = "noisy"
        file.write_text(json.dumps(value))
    made = report(run)
    made.judge()
    row = made.to_json()["rows"][1]
    assert row["measurements"]["local"]["comparison"]["baseline"] == "dense-onnx-fp32"
    faster = next(g for g in row["gates"] if g["gate"] == "faster")
    assert faster["kept"] is True
    assert faster["note"] == "noisy"
    text = (run / "report.md").read_text()
    assert "## On local" in text
    assert "1 thread" in text
    planned({}, {"local": {"p50_ms": 1e-6}})
    with pytest.raises(GateMissed, match="p50_ms on local"):
        report(run).judge()


def test_a_planned_file_that_is_not_there_is_named(bare: Planned) -> None:
    run = bare({}, {})
    shutil.rmtree(run / "bundles" / "optin-0.5")
    made = report(run)
    assert made.missing == ("optin-0.5 onnx fp32",)
    with pytest.raises(GateMissed, match="missing"):
        made.judge()


def test_damaged_answers_are_refused(bare: Planned) -> None:
    run = bare({}, {})
    path = run / "students" / "optin-0.5" / "onnx-fp32.npy"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(Refused, match=r"onnx-fp32\.npy"):
        report(run)
    np.save(path, np.zeros((7, 10), np.float32))
    with pytest.raises((Refused, BadInput)):
        report(run)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"plan\.json"):
        report(tmp_path)


def test_a_recipe_without_students_is_judged_on_its_reference(bare: Planned) -> None:
    for gates, passes in (({"accuracy": 50}, True), ({"accuracy": 99.9}, False)):
        run = bare(gates, {})
        plan = json.loads((run / "plan.json").read_text())
        (run / "plan.json").write_text(json.dumps({**plan, "students": []}))
        made = report(run)
        assert made.to_json()["best"] == {"any": ["dense onnx fp32"] if passes else []}
        if not passes:
            with pytest.raises(GateMissed, match="dense onnx fp32 misses accuracy"):
                made.judge()
        shutil.rmtree(run)


def test_a_bundle_of_an_older_network_counts_as_missing(bare: Planned) -> None:
    run = bare({}, {})
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "steps": {"optin-0.5": ["01-optin/optin-0.5"]}}))
    step = run / "steps" / "01-optin" / "optin-0.5"
    step.mkdir(parents=True)
    (step / "network.json").write_text('{"digest": "another"}')
    made = report(run)
    assert [row.name for row in made.rows] == ["dense"]
    assert "not since its network changed" in (run / "report.md").read_text()
    with pytest.raises(GateMissed, match="missing"):
        made.judge()


@pytest.mark.usefixtures("brief")
def test_a_ratio_to_another_baseline_is_not_reported(planned: Planned, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    shutil.copytree(planned({}, {}), run)
    profile_all([run], "local")
    for file in (run / "measurements" / "local").glob("optin*.json"):
        value = json.loads(file.read_text())
        value["comparison"]["baseline_sha256"] = "0" * 64
        file.write_text(json.dumps({**value, "verdict": "clean"}))
    made = report(run)
    assert made.rows[1].measured["local"].comparison is None
    assert not [v for v in made.rows[1].verdicts if v.kept is not None]


@pytest.mark.usefixtures("brief")
def test_the_table_fits_a_terminal(planned: Planned) -> None:
    run = planned({"accuracy": 99.9}, {"local": {"p90_ms": 1e-6}})
    profile_all([run], "local")
    console = Console(width=110, file=io.StringIO())
    console.print(report(run).table())
    lines = console.file.getvalue().splitlines()
    assert sum(line.startswith((" dense", " optin-0.5", "dense", "optin-0.5 ")) for line in lines) == 4
    assert any("optin-0.5 misses p90_ms on local: " in line for line in lines)
