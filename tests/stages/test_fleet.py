"""One training, a student for every device: measured where it is attached, predicted where it is away."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from _pytest.monkeypatch import MonkeyPatch

from edgetl import store
from edgetl.bundle import open_bundle
from edgetl.errors import BadHost, GateMissed
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.report import report
from tests import clockwork
from tests.stages.conftest import SIZES, Edgetl, Write, times

AWAY = f"""
schema: edgetl/device/1
name: away
arch: {{isa: {platform.machine()}}}
link: ssh://nobody@localhost:1
threads: 1
memory: {{total_bytes: 1000000000}}
roofline: {{peak: {{fp32_gflops: 1}}, bandwidth_gbs: 1, source: datasheet}}
"""
STEPS = [
    {"use": "finetune", "name": "dense", "schedule": {"epochs": 1}},
    {"use": "tleg", "learn": {"epochs": 1}, "schedule": {"epochs": 1}, "init": "secant"},
]


@pytest.fixture(autouse=True)
def _brief(monkeypatch: MonkeyPatch) -> None:
    """Short rounds by a clock of the test's own."""
    clockwork.wind(monkeypatch)


@pytest.fixture
def away(tmp_path: Path) -> str:
    """Nobody listens at this device's address; a machine called localhost is the device itself."""
    path = tmp_path / "away.yaml"
    path.write_text(AWAY)
    return str(path)


def recipe(tiny: Write, depth: Any, **more: Any) -> Any:
    steps = [STEPS[0], {**STEPS[1], "depth": depth}]
    source = {**SIZES, "num_hidden_layers": 4, "hidden_size": 8, "intermediate_size": 8}
    return read(tiny(steps=steps, model__source=source, **more))


def chosen(run: Path, branch: str) -> Any:
    return store.read_json(run / "steps" / "02-tleg" / branch / "network.json")["facts"]["chosen"]


def test_a_device_that_is_away_gets_a_bundle_that_says_so_and_the_report_names_it(
    tiny: Write, away: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    made = recipe(tiny, {"device": away, "p90_ms": 0.2, "among": [2]}, budgets={"local": {"size_mb": 1}})
    compress(made, run)
    found = chosen(run, made.student_names()[0])
    assert (found["device"], found["how"]) == ("away", "predicted")
    assert all(one["p90_ms"] > 0 for one in found["tried"])
    export(run)
    (bundle,) = (run / "bundles").glob("tleg-*away*/onnx-fp32")
    assert open_bundle(bundle).manifest["provenance"]["chosen"] == found

    plan = store.read_json(run / "plan.json")
    store.write_json(run / "plan.json", {**plan, "budgets": {"away": {"p90_ms": 0.2}}})
    with pytest.raises(GateMissed, match="was chosen for away by a prediction and is not measured there"):
        report(run).judge()


@pytest.mark.slow
def test_a_device_that_is_attached_later_has_its_depth_measured_and_keeps_it_when_it_is_gone(
    tiny: Write, away: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    run, made = tmp_path / "run", recipe(tiny, {"device": away, "p90_ms": 1e4, "among": [2]})
    (branch,) = made.student_names()
    compress(made, run)
    assert chosen(run, branch)["how"] == "predicted"
    with monkeypatch.context() as attached:
        attached.setattr(platform, "node", lambda: "localhost")
        compress(made, run)
    found = chosen(run, branch)
    assert (found["how"], found["depth"]) == ("measured", 2)
    before = times(run / "steps")
    compress(made, run)
    assert chosen(run, branch) == found
    assert times(run / "steps") == before


def test_without_prediction_a_device_that_is_away_is_refused_before_anything_is_trained(
    tiny: Write, away: str, tmp_path: Path
) -> None:
    optin = {"use": "optin", "samples": 8, "max_latency": {"device": away, "share": 0.8}}
    with pytest.raises(BadHost, match="localhost"):
        compress(read(tiny(steps=[STEPS[0], optin])), tmp_path / "run")
    assert not (tmp_path / "run" / "steps").exists()


@pytest.mark.slow
def test_a_whole_run_ships_to_what_is_here_and_ends_with_a_missed_gate_that_names_what_is_not(
    tiny: Write, edgetl: Edgetl, tmp_path: Path
) -> None:
    budgets = {"local": {"size_mb": 1}, "rpi5": {"p90_ms": 50}}
    depths = [{"device": "local", "among": [2]}, {"device": "rpi5", "among": [1]}]
    path = tiny(steps=[STEPS[0], {**STEPS[1], "depth": depths}], budgets=budgets)
    done = edgetl("run", str(path), "--out", "run")
    assert done.returncode == 3
    assert "tleg-rpi5 onnx fp32 was chosen for rpi5 by a prediction" in done.stderr
    assert "rpi5 is not measured" in done.stderr
    for name in ("tleg-local", "tleg-rpi5"):
        assert (tmp_path / "run" / "bundles" / name / "onnx-fp32" / "manifest.json").is_file()
    lines = (tmp_path / "run" / "report.md").read_text().splitlines()
    assert any(line.startswith("| local") and "ships" in line for line in lines)
    assert any(line.startswith("| rpi5") and "fails: not measured" in line for line in lines)
