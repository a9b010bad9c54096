"""One report over several devices: what each gets, marked in one chart; nothing ships to a device unmeasured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl import comparison
from edgetl.bundle import open_bundle
from edgetl.errors import GateMissed
from edgetl.measure import measurement
from edgetl.measure.measurement import Measurement
from edgetl.page import fleet
from edgetl.page.facts import Facts
from edgetl.page.write import page
from edgetl.recipe.plan import read_plan
from edgetl.stages.report import report
from tests.profile.test_html_report import Page, rewrite

STUDENTS = {"tleg-3": (64, 0.05, 1), "tleg-6": (128, 0.02, 2), "tleg-9": (256, 0.02, 3)}
"""Width, share of wrong answers, and milliseconds on the quick device; the slow one takes ten times as long."""
BUDGETS = {"quick": {"p90_ms": 2.5}, "slow": {"p90_ms": 15}, "away": {"p90_ms": 5, "size_mb": 9}}


@pytest.fixture
def run(make: Callable[..., Path], replay: Callable[..., Measurement], tmp_path: Path) -> Path:
    """Three students, measured on a quick and a slow device; the deepest was predicted for one that is away."""
    folder = tmp_path / "fleet"
    draw = np.random.default_rng(0)
    y = draw.integers(0, 10, 300)
    for name, (width, wrong, ms) in {"dense": (512, 0.01, 4), **STUDENTS}.items():
        bundle = make(name, width, 3, folder / "bundles" / name / "onnx-fp32")
        (folder / "students" / name).mkdir(parents=True)
        answers = np.where(np.arange(300) < 300 * wrong, (y + 1) % 10, y)
        for file in ("logits", "onnx-fp32"):
            np.save(folder / "students" / name / f"{file}.npy", np.eye(10, dtype=np.float32)[answers])
        if name == "tleg-9":
            predict(bundle)
        for device, times in (("quick", ms), ("slow", 10 * ms)):
            write(folder, name, device, replay([[times * 1_000_000 + i % 9 for i in range(100)]] * 3))
    (folder / "eval").mkdir()
    np.savez(folder / "eval" / "test.npz", pixel_values=np.zeros((300, 1, 8, 8), np.uint8), y=y)
    plan = {
        "schema_version": 1, "name": "fleet", "reference": "dense", "students": list(STUDENTS),
        "targets": [{"use": "onnx", "precision": "fp32"}], "gates": {"faster": False}, "budgets": BUDGETS, "steps": {},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def predict(bundle: Path, **changes: Any) -> None:
    """Say in a bundle that its depth was predicted for the device that is away."""
    tried = [{"depth": 9, "keeps": True, "p90_ms": 4.5, "size_mb": 0.7}]
    chosen = {"device": "away", "depth": 9, "how": "predicted", "limits": {"p90_ms": 5}, "tried": tried, **changes}
    rewrite(bundle, provenance={**open_bundle(bundle).manifest["provenance"], "chosen": chosen})


def write(folder: Path, name: str, device: str, one: Measurement) -> None:
    sha256 = measurement.identity(open_bundle(folder / "bundles" / name / "onnx-fp32").sums)
    changes = {
        "bundle": one.bundle.model_copy(update={"sha256": sha256, "name": name}),
        "device": one.device.model_copy(update={"profile": device}),
    }
    file = f"{measurement.stem(name, 'onnx', 'fp32')}-0.json"
    measurement.write(one.model_copy(update=changes), folder / "measurements" / device / file)


def facts(folder: Path, *without: str) -> Facts:
    plan = read_plan(folder)
    plan["budgets"] = {name: budget for name, budget in plan["budgets"].items() if name not in without}
    rows = comparison.rows(folder, plan)
    return Facts(folder, plan, rows, sorted({*plan["budgets"], *(d for row in rows for d in row.measured)}), ())


def got(made: Facts) -> dict[str, tuple[str, bool]]:
    return {place.device: (place.row.name, place.ships) for place in fleet.places(made) if place.row}


def test_each_device_gets_the_most_accurate_that_keeps_its_budget_and_of_equals_the_quickest(run: Path) -> None:
    assert got(facts(run)) == {"away": ("tleg-9", False), "quick": ("tleg-6", True), "slow": ("tleg-3", True)}
    plan = read_plan(run)
    (run / "plan.json").write_text(json.dumps({**plan, "budgets": {**BUDGETS, "quick": {"p90_ms": 9}}}))
    assert got(facts(run))["quick"] == ("tleg-6", True), "tleg-9 keeps it too, and is no more accurate"


def test_the_chart_has_a_line_for_each_device_and_marks_what_ships_and_what_is_predicted(run: Path) -> None:
    figure = fleet.figure(facts(run))
    assert figure is not None
    traces = {trace["name"]: trace for trace in figure["data"] if "name" in trace}
    assert traces["quick"]["x"] == pytest.approx([1, 2], rel=1e-3)
    assert traces["slow"]["x"] == pytest.approx([10, 20], rel=1e-3)
    assert traces["quick: tleg-6 ships"]["marker"]["symbol"] == "star"
    assert traces["slow: tleg-3 ships"]["x"] == pytest.approx([10], rel=1e-3)
    predicted = traces["away: tleg-9, predicted"]
    assert (predicted["x"], predicted["marker"]["symbol"]) == ([4.5], "star-open")
    assert "at best" in predicted["hovertext"][0]
    assert len({traces[name]["marker"]["color"] for name in ("quick", "slow")}) == 2
    assert not [trace for trace in figure["data"] if any("dense" in text for text in trace["hovertext"])]


def test_one_device_needs_no_chart_over_devices(run: Path) -> None:
    shutil.rmtree(run / "measurements" / "slow")
    made = facts(run, "slow", "away")
    assert fleet.figure(made) is None
    assert fleet.sheet(made) is None


def test_the_report_tells_what_each_device_gets_and_fails_for_the_one_that_was_not_measured(run: Path) -> None:
    made = report(run)
    with pytest.raises(GateMissed, match="tleg-9 onnx fp32 was chosen for away by a prediction and is not measured"):
        made.judge()
    lines = [line for line in (run / "report.md").read_text().splitlines() if line.startswith(("| away", "| quick"))]
    assert ["fails: not measured" in lines[0], "4.5 at best, predicted" in lines[0]] == [True, True]
    assert ["tleg-6" in lines[1], "ships" in lines[1]] == [True, True]


def test_every_device_that_gets_nothing_is_named(run: Path) -> None:
    plan = read_plan(run)
    (run / "plan.json").write_text(json.dumps({**plan, "budgets": {**BUDGETS, "slow": {"p90_ms": 1}}}))
    with pytest.raises(GateMissed, match=r"chosen for away .*no student keeps every limit on slow"):
        report(run).judge()


def test_the_page_holds_the_chart_and_the_table(run: Path) -> None:
    made = facts(run)
    sheet = fleet.sheet(made)
    assert sheet is not None
    shown = Page(page(made, [sheet], [], "var Plotly;"))
    assert "chart-devices" in shown.values("data-chart", "id")
    assert "Accuracy against time, all devices" in shown.text
    assert "4.5 at best, predicted" in shown.text


@pytest.mark.parametrize(
    "chosen", [{"tried": 3}, {"tried": [7, {"depth": 9, "p90_ms": "x"}]}, {"depth": "</script>"}, {"how": ["x"]}]
)
def test_what_a_bundle_says_of_its_choice_is_not_trusted(run: Path, chosen: dict[str, Any]) -> None:
    predict(run / "bundles" / "tleg-9" / "onnx-fp32", **chosen)
    made = facts(run)
    assert fleet.sheet(made) is not None
    shown = page(made, [], [], "var Plotly;")
    assert "</script>:" not in shown
