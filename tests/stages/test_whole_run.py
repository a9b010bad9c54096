"""One recipe from the first step to the report: what lies in the run folder, and what a second run repeats."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from edgetl.errors import BadInput
from edgetl.network import network as networks
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.report import report
from edgetl.stages.verify import verify
from tests.stages.conftest import Write, files, flip, times

NAMES = ("dense", "optin-0.6", "optin-0.4")


def bundles(run: Path) -> dict[str, str]:
    return files(run / "bundles")


def test_the_run_folder_holds_what_the_design_says(made_run: Path) -> None:
    steps = sorted(p.parent.relative_to(made_run / "steps").as_posix() for p in made_run.glob("steps/*/*/network.json"))
    assert steps == [
        "00-source/all",
        "01-dense/all",
        "02-optin/optin-0.4",
        "02-optin/optin-0.6",
        "03-recover/optin-0.4",
        "03-recover/optin-0.6",
    ]
    for name in NAMES:
        assert {p.name for p in (made_run / "bundles" / name / "onnx-fp32").iterdir()} == {
            "manifest.json",
            "model.onnx",
            "golden.npz",
            "SHA256SUMS",
        }
        assert (made_run / "students" / name / "base.onnx").is_file()
        assert (made_run / "students" / name / "logits.npy").is_file()
    assert (made_run / "eval" / "test.npz").is_file()
    environment = json.loads((made_run / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["versions"]["torch"]
    assert not list(made_run.rglob("*.tmp"))
    assert not list((made_run / "steps" / ".work").rglob("*"))


def test_the_plan_names_the_students_and_the_resolved_recipe_reads_back(made_run: Path) -> None:
    plan = json.loads((made_run / "plan.json").read_text())
    assert plan["reference"] == "dense"
    assert plan["students"] == ["optin-0.6", "optin-0.4"]
    assert plan["schema_version"] == 1
    again = read(made_run / "recipe.yaml")
    assert tuple(again.names()) == NAMES
    assert again.resolved == read(made_run / "recipe.yaml").resolved
    assert again.frame.schema_version == 1


def test_every_bundle_verifies_also_on_the_whole_test_split(made_run: Path) -> None:
    for name in NAMES:
        check = verify(made_run / "bundles" / name / "onnx-fp32", made_run / "eval" / "test.npz")
        assert check.agreement.value == 1.0
        assert check.score is not None
        assert check.stated == check.score.accuracy


def test_a_report_without_a_profile_compares_and_says_what_is_missing(copied: Path) -> None:
    made = report(copied)
    assert [row.name for row in made.rows] == list(NAMES)
    told = json.loads((copied / "report.json").read_text())
    assert told["schema_version"] == 1
    assert "latency and memory: no device was measured" in (copied / "report.md").read_text()
    made.judge()


def test_a_second_run_does_nothing(copied: Path, tiny: Write, caplog: pytest.LogCaptureFixture) -> None:
    before = times(copied)
    with caplog.at_level(logging.INFO, "edgetl"):
        compress(read(tiny()), copied)
        export(copied)
    assert times(copied) == before
    said = [r.getMessage() for r in caplog.records]
    assert sum("finished before" in line for line in said) == 9
    assert not any("running" in line for line in said)


@pytest.mark.slow
def test_another_folder_and_another_order_of_branches_give_the_same_bytes(
    made_run: Path, tiny: Write, tmp_path: Path
) -> None:
    compress(read(tiny(steps__1__keep_macs=[0.4, 0.6])), tmp_path / "other")
    export(tmp_path / "other")
    assert bundles(tmp_path / "other") == bundles(made_run)
    weights = {k: v for k, v in files(made_run / "steps").items() if k.endswith(".safetensors")}
    assert {k: v for k, v in files(tmp_path / "other" / "steps").items() if k.endswith(".safetensors")} == weights


@pytest.mark.parametrize("file", ["model.safetensors", "network.json"])
def test_a_flipped_byte_in_a_finished_step_is_noticed_and_mended(
    copied: Path, made_run: Path, tiny: Write, file: str
) -> None:
    flip(copied / "steps" / "01-dense" / "all" / file, -40)
    compress(read(tiny()), copied)
    assert files(copied / "steps") == files(made_run / "steps")
    assert [p.name.startswith("01-dense-all-") for p in (copied / "steps" / ".old").iterdir()] == [True]


@pytest.mark.parametrize("file", ["plan.json", "students/optin-0.4/onnx-fp32.json", "students/optin-0.4/logits.npy"])
def test_a_damaged_note_of_the_run_is_written_again(copied: Path, made_run: Path, tiny: Write, file: str) -> None:
    before = files(made_run)
    (copied / file).write_bytes(b"{")
    compress(read(tiny()), copied)
    export(copied)
    assert files(copied)[file] == before[file]
    assert bundles(copied) == bundles(made_run)


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json", "golden.npz", "SHA256SUMS"])
def test_a_damaged_bundle_is_exported_again(copied: Path, made_run: Path, file: str) -> None:
    flip(copied / "bundles" / "optin-0.4" / "onnx-fp32" / file, 50)
    export(copied)
    assert bundles(copied) == bundles(made_run)


def test_a_student_that_the_recipe_drops_leaves_bundles_and_report(copied: Path, tiny: Write) -> None:
    compress(read(tiny(steps__1__keep_macs=[0.4])), copied)
    export(copied)
    assert sorted(p.name for p in (copied / "bundles").glob("[!.]*")) == ["dense", "optin-0.4"]
    assert len(list((copied / "bundles" / ".old").iterdir())) == 1
    assert not list((copied / "steps").glob("[0-9]*/optin-0.6"))
    assert [row.name for row in report(copied).rows] == ["dense", "optin-0.4"]
    assert "optin-0.6" not in (copied / "report.md").read_text()


def test_a_changed_step_runs_again_with_what_depends_on_it_and_nothing_else(copied: Path, tiny: Write) -> None:
    before = times(copied / "steps")
    compress(read(tiny(steps__2__rank=3)), copied)
    after = {k: v for k, v in times(copied / "steps").items() if ".old" not in k}
    changed = {Path(k).parent.parent.name for k, v in after.items() if before.get(k) != v}
    assert changed == {"03-recover"}


def test_gates_and_budgets_alone_train_and_export_nothing_again(copied: Path, tiny: Write) -> None:
    before = {**times(copied / "steps"), **times(copied / "bundles")}
    compress(read(tiny(gates={"accuracy_drop": 50}, budgets={"local": {"p90_ms": 9}})), copied)
    export(copied)
    assert {**times(copied / "steps"), **times(copied / "bundles")} == before


def test_a_network_folder_is_a_source(made_run: Path, tiny: Write, tmp_path: Path) -> None:
    folder = made_run / "steps" / "03-recover" / "optin-0.4"
    recipe = tiny(
        model={"family": "hf_vit", "source": str(folder)}, steps=[{"use": "finetune", "schedule": {"epochs": 1}}]
    )
    made = compress(read(recipe), tmp_path / "again")
    assert len(networks.load(made["finetune"]).edits) == len(networks.load(folder).edits) > 0


def test_a_saved_network_is_exported_by_itself(made_run: Path, tmp_path: Path) -> None:
    net = networks.load(made_run / "steps" / "03-recover" / "optin-0.4")
    networks.save(net, tmp_path / "alone")
    [bundle] = export(tmp_path / "alone")
    assert verify(bundle).agreement.value == 1.0
    with pytest.raises(BadInput, match="no target 'onix'"):
        export(tmp_path / "alone", ["onix"])
