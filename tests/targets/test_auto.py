"""The choice between targets: what is tried, what ships, and why the rest does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgetl.bundle import open_bundle
from edgetl.errors import BadHost, BadInput, BadInputs
from edgetl.page import precisions
from edgetl.recipe.plan import read_plan, write_plan
from edgetl.recipe.read import read
from edgetl.stages.export import export
from edgetl.stages.report import report
from edgetl.stages.verify import verify
from edgetl.targets import _cuda
from edgetl.targets.auto import Auto
from edgetl.types import Json
from tests import clockwork
from tests.stages import conftest as stages

made_run, copied, tiny = stages.made_run, stages.copied, stages.tiny


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork.wind(monkeypatch)


def rungs_of(bundle: Path) -> list[Json]:
    return list(open_bundle(bundle).manifest["provenance"]["ladder"])


def reasons(rungs: list[Json]) -> dict[tuple[str, str], str]:
    return {(rung["target"], rung["precision"]): rung["reason"] for rung in rungs}


def test_every_target_is_tried_at_fp32_first_and_at_what_the_device_is_quick_in() -> None:
    found = [(one.use, one.precision) for one in Auto().candidates(("fp32", "int8"))]
    assert found[0] == ("onnx", "fp32")
    assert set(found) == {
        *(("onnx", "fp32"), ("onnx", "int8"), ("onnx", "int8_dynamic")),
        *(("openvino", "fp32"), ("openvino", "int8"), ("trt", "fp32"), ("trt", "int8")),
    }
    for use in Auto().among:
        assert next(precision for name, precision in found if name == use) == "fp32"
    assert [one.use for one in Auto(among=("openvino",), samples=9).candidates(())] == ["openvino"]
    assert {one.samples for one in Auto(samples=9).candidates(("int8",))} == {9}


@pytest.mark.parametrize("among", [(), ("onnx", "onnx"), ("auto",), ("nowhere",)])
def test_a_choice_between_nothing_is_refused(among: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="onnx, openvino, trt"):
        Auto(among=among)
    with pytest.raises(ValueError, match="at least 1"):
        Auto(samples=0)


def test_a_recipe_line_is_told_what_is_wrong(tiny: stages.Write) -> None:
    with pytest.raises(BadInputs, match="among"):
        read(tiny(targets=[{"use": "auto", "among": ["onnx", "tensorflow"]}]))


@pytest.mark.slow
def test_the_bundle_names_what_ships_and_the_report_shows_the_ladder(
    copied: Path, tiny: stages.Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(_cuda, "_driver", no_driver)
    gates = {"accuracy_drop": 90, "faster": False}
    auto = tiny(steps__1__keep_macs=[0.4], targets=[{"use": "auto", "samples": 32}], gates=gates)
    write_plan(read(auto), copied)
    made = [path for path in export(copied) if path.name == "auto"]
    assert len(made) == len(read_plan(copied)["students"]) + 1
    for path in made:
        manifest, rungs = open_bundle(path).manifest, rungs_of(path)
        assert manifest["target"] == "onnx"
        (ships,) = [rung for rung in rungs if rung["outcome"] == "ships"]
        assert (ships["target"], ships["precision"]) == (manifest["target"], manifest["precision"])
        assert ships["precision"] == "fp32" or ships["ratio"]["high"] < 1
        why = reasons(rungs)
        assert "openvino is not installed" in why["openvino", "fp32"]
        assert why["openvino", "int8"] == why["openvino", "fp32"]
        assert verify(path).agreement.value == 1 or ships["precision"] == "int8"
        assert json.loads(path.with_name("auto.ladder.json").read_text())["rungs"] == rungs
    found = report(copied)
    assert found.missing == ()
    assert all(row.asked in ("auto", "fp32") for row in found.rows)
    sheet = precisions.precisions(found.rows)
    assert sheet is not None
    assert any(line[1] == "openvino int8" and line[2] == "rejected" for line in sheet.lines)
    assert sum(line[2] == "ships" for line in sheet.lines) == len(made)


def no_driver() -> None:
    raise BadHost("there is no NVIDIA driver here", fix="")


def test_a_run_is_exported_for_a_target_that_its_recipe_does_not_name(copied: Path) -> None:
    pytest.importorskip("openvino", reason='needs openvino: pip install "edgetl[openvino]"')
    before = read_plan(copied)
    made = export(copied, ("openvino",))
    assert {path.name for path in made} == {"openvino-fp32"}
    assert read_plan(copied) == before
    with pytest.raises(BadInput, match="no target 'outo'"):
        export(copied, ("outo",))


def test_without_data_nothing_but_fp32_can_ship(copied: Path) -> None:
    network = copied / "steps" / "01-dense" / "all"
    (made,) = export(network, ("auto",))
    assert open_bundle(made).manifest["precision"] == "fp32"
    for rung in rungs_of(made):
        assert rung["precision"] == "fp32" or rung["reason"]
        assert rung["outcome"] == "rejected" or rung["precision"] == "fp32"


def test_the_only_target_not_being_here_is_an_error_with_its_fix(
    copied: Path, tiny: stages.Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    write_plan(read(tiny(targets=[{"use": "auto", "among": ["openvino"]}])), copied)
    with pytest.raises(BadHost) as caught:
        export(copied)
    assert caught.value.fix == 'pip install "edgetl[openvino]"'
