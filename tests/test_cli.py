"""The command line as its user sees it: what it prints where, and the code it ends with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgetl import cli
from edgetl.network.cost import parameters
from edgetl.network.network import create

Call = Callable[..., "Ended"]

RECIPE = """
name: tiny
threads: 1
model: {family: hf_vit, source: {image_size: 8, patch_size: 4, num_channels: 1, hidden_size: 16}}
data: {use: digits}
steps:
  - {use: finetune, name: dense, schedule: {epochs: 1}}
  - {use: optin, keep_macs: [0.6, 0.4]}
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def json(self) -> dict[str, object]:
        """What stdout holds, which is one JSON object and nothing else."""
        found = json.loads(self.out)
        assert found["schema_version"] == 1
        return dict(found)

    def told(self, problem: str, fix: str) -> None:
        """One line for the problem, one for the fix, no traceback, nothing on stdout."""
        assert "Traceback" not in self.err
        assert problem in self.err
        assert fix in self.err
        assert self.out == ""
        lines = self.err.splitlines()
        assert lines[-2].startswith("error: ")
        assert lines[-1].startswith("  fix: ")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`call("recipes", "list")`: run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["edgetl", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.mark.parametrize("command", ["run", "compress", "merge", "export", "verify", "profile", "report", "doctor"])
def test_every_command_explains_itself(call: Call, command: str) -> None:
    ended = call(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.out


LISTS = [
    ("recipes", "list"),
    ("recipes", "check"),
    ("devices", "list"),
    ("methods",),
    ("methods", "show", "optin"),
    ("runs", "list"),
    ("doctor",),
    ("compress", "--recipe", "tiny.yaml", "--dry-run"),
    ("run", "tiny.yaml", "--dry-run"),
]


@pytest.mark.parametrize("words", LISTS)
def test_json_stands_alone_on_stdout(call: Call, words: tuple[str, ...]) -> None:
    ended = call(*words, "--json")
    assert ended.code == 0
    ended.json()


def test_a_dry_run_names_students_and_reference_and_makes_nothing(call: Call, tmp_path: Path) -> None:
    ended = call("run", "tiny.yaml", "--dry-run", "--set", "steps.optin.keep_macs=[0.5, 0.25]")
    assert "students: optin-0.5, optin-0.25; reference: dense" in ended.out
    assert "would be made in runs/tiny" in ended.out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_is_there(call: Call, tmp_path: Path) -> None:
    done = tmp_path / "runs" / "tiny" / "steps" / "00-source" / "all"
    done.mkdir(parents=True)
    (done / "network.json").write_text("{}")
    steps = call("compress", "--recipe", "tiny.yaml", "--dry-run", "--json").json()["steps"]
    assert [(s["step"], s["finished"]) for s in steps][:2] == [("source", True), ("dense", False)]  # type: ignore[attr-defined]


def test_a_dry_run_counts_what_branches_share_once(call: Call) -> None:
    tleg = "{use: tleg, depth: [1, 2], learn: {epochs: 3}, schedule: {epochs: 1}}"
    steps = f"steps=[{{use: finetune, name: dense, schedule: {{epochs: 1}}}}, {tleg}]"
    told = call("run", "tiny.yaml", "--dry-run", "--json", "--set", steps).json()["steps"]
    first, second = (one["minutes"] for one in told if one["step"] == "tleg")  # type: ignore[attr-defined]
    assert first == pytest.approx(second * (1.5 * 4 * 3 + 4) / 4)
    told = call("run", "tiny.yaml", "--dry-run", "--json", "--set", "steps.optin.keep_macs=[0.5, 0.25]").json()["steps"]
    assert [one["minutes"] > 0 for one in told if one["step"] == "optin"] == [True, False]  # type: ignore[attr-defined]


def test_a_dry_run_times_a_student_of_another_size_as_itself(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetl.stages.forecast._forward_seconds", lambda net, threads: parameters(net) * 1e-3)
    student = "{family: resnet_cifar, source: {depth: 8, channels: 16, image_size: 8, num_channels: 1}}"
    distill = f"{{use: distill, student: {student}, schedule: {{epochs: 2}}}}"
    one = "schedule: {epochs: 1}"
    steps = f"steps=[{{use: finetune, name: dense, {one}}}, {distill}, {{use: finetune, name: again, {one}}}]"
    told = call("run", "tiny.yaml", "--dry-run", "--json", "--set", steps).json()["steps"]
    dense, cnn, again = (step["minutes"] for step in told[1:])  # type: ignore[index]
    assert cnn == pytest.approx(dense / 3 + 2 * again)  # the teacher answers once; the student learns for two epochs
    size = {"depth": 8, "channels": 16, "image_size": 8, "num_channels": 1}
    own = parameters(create("resnet_cifar", size, [*"0123456789"], seed=0)) * 1e-3
    assert 1000 < again * 60 / own / 3 < 1797  # the training part of the 1,797 digits, not all of them


def test_tables_hold_no_colour_and_words_in_brackets_stay(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    ended = call("doctor")
    assert "\x1b[" not in ended.out
    assert "extra [compress]" in ended.out
    assert "onnxruntime" in ended.out


def test_a_recipe_is_listed_shown_copied_and_checked(call: Call, tmp_path: Path) -> None:
    assert "demo" in call("recipes", "list").out
    shown = call("recipes", "show", "demo").out
    assert call("recipes", "copy", "demo", "mine.yaml").out == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text() == shown
    call("recipes", "copy", "demo", "mine.yaml").told("mine.yaml is there already", "choose another name")
    assert "optin-0.8, optin-0.6, optin-0.4" in call("recipes", "check", "mine.yaml").out
    call("recipes", "show", "dmo").told("no recipe 'dmo'", "did you mean 'demo'?")
    call("recipes", "show", "dmo.yaml").told("there is no file dmo.yaml", "name a shipped one: ")


def test_check_notes_what_the_user_must_give_and_run_refuses(call: Call) -> None:
    assert "data.root" in call("recipes", "check", "vit-fashion-mnist").out
    ended = call("compress", "--recipe", "vit-fashion-mnist")
    assert ended.code == 2
    ended.told("data.root", "--set data.root=")


def test_devices_are_shown_as_files_that_can_be_given_back(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(call("devices", "show", "rpi5").out)
    assert call("devices", "show", "./mine.yaml").out == (tmp_path / "mine.yaml").read_text()
    assert "name: local" in call("devices", "show", "local").out
    call("devices", "show", "rpi6").told("no device 'rpi6'", "rpi5")


def test_a_method_shows_fields_defaults_and_meanings(call: Call) -> None:
    shown = call("methods", "show", "optin").out
    assert "keep_macs" in shown
    assert "training samples to score with" in shown
    call("methods", "show", "optn").told("no method 'optn'", "did you mean 'optin'?")


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (("frobnicate",), "No such command 'frobnicate'", "edgetl --help"),
        (("run",), "Missing argument", "edgetl run --help"),
        (("compress", "--recipe", "tiny.yaml", "--set", "seed"), "--set seed: no '='", "--set key=value"),
        (("compress", "--recipe", "tiny.yaml", "--set", "steps.optn.keep_macs=1"), "no entry 'optn'", "'optin'"),
        (("compress", "--recipe", "tiny.yaml", "--set", "steps.7.keep_macs=1"), "no entry '7'", "dense, optin"),
        (("compress", "--recipe", "tiny.yaml", "--set", "steps=[1"), "--set steps:1", "correct the YAML"),
        (("compress", "--recipe", "tiny.yaml", "--set", "stepz=1"), "stepz: unknown key", "use one of"),
        (("export",), "there is no run below ./runs", "edgetl run demo"),
        (("export", "nowhere"), "nowhere is no run folder", "edgetl compress"),
        (("verify", "nowhere"), "there is no bundle at nowhere", "manifest.json"),
        (("report", "nowhere"), "nowhere is no run folder", "edgetl compress"),
        (("profile", "nowhere", "--gate", "p91_ms=3"), "no budget 'p91_ms'", "p90_ms"),
        (("run", "demo", "--plugins", "nowhere"), "--plugins nowhere: no such folder", "methods/"),
        (("merge", "nowhere/base", "nowhere/adapter"), "nowhere/base", "correct the path"),
    ],
)
def test_a_usage_error_is_one_line_one_fix_and_code_2(
    call: Call, words: tuple[str, ...], problem: str, fix: str
) -> None:
    ended = call(*words)
    assert ended.code == 2
    ended.told(problem, fix)
    assert not Path("nowhere").exists()


def test_a_run_is_removed_only_when_it_is_one_and_the_user_is_sure(call: Call, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    call("runs", "rm", "letters", "--yes").told("letters is no run folder", "edgetl compress")
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "plan.json").write_text('{"schema_version": 1, "name": "one", "students": ["a"]}')
    assert "runs/one" in call("runs", "list").out
    call("runs", "rm", "runs/one").told("runs/one was kept", "--yes")
    assert run.exists()
    assert call("runs", "rm", "runs/one", "--yes").code == 0
    assert not run.exists()


def test_the_newest_run_is_the_one_worked_on_last_and_is_printed(call: Call, tmp_path: Path) -> None:
    plan = {"schema_version": 1, "reference": "a", "students": [], "targets": []}
    for age, name in enumerate(("new", "old")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "plan.json").write_text(json.dumps(plan))
        os.utime(run / "plan.json", (1000 - age, 1000 - age))
    assert "run folder: runs/new" in call("verify").err
    (tmp_path / "runs" / "old" / ".lock").touch()
    assert "run folder: runs/old" in call("verify").err
    assert "run folder" not in call("verify", "-q").err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n  fix: run the same command again"),
        (MemoryError(), 6, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), 6, "out of memory"),
        (OSError(28, "No space left on device"), 6, "the disk is full"),
        (ModuleNotFoundError("No module named 'peft'", name="peft.tuners"), 4, 'pip install "edgetl[compress]"'),
        (ModuleNotFoundError("No module named 'datasets'", name="datasets"), 4, 'pip install "edgetl[data]"'),
    ],
)
def test_what_the_machine_does_has_its_own_code(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("edgetl.listing.recipes", broken)
    ended = call("recipes", "list")
    assert ended.code == code
    assert line in ended.err
    assert "Traceback" not in ended.err
