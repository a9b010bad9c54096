"""What a stage does with files that miss a gate: the others are made, the exit code says so."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from numpy.typing import NDArray

from edgetl import artifact, cli, evaluate
from edgetl.errors import GateMissed
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.report import report
from tests import clockwork
from tests.stages.conftest import Edgetl, Write, files


def test_a_file_unlike_its_network_does_not_keep_the_others_from_being_exported(
    copied: Path, made_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "bundles")
    inner = evaluate.parity
    seen: list[int] = []

    def parity(wanted: NDArray[object], got: NDArray[object]) -> evaluate.Parity:
        seen.append(len(seen))
        return inner(wanted, got * 2 if len(seen) == 1 else got)  # the first comparison is of the reference

    monkeypatch.setattr(artifact.evaluate, "parity", parity)
    with pytest.raises(GateMissed, match=r"dense: parity .* of the largest answer, limit 0.0001"):
        export(copied)
    monkeypatch.undo()
    made = {k: v for k, v in files(made_run / "bundles").items() if not k.startswith("dense")}
    assert files(copied / "bundles") == made
    assert report(copied).missing == ("dense onnx fp32",)
    export(copied)
    assert files(copied / "bundles") == files(made_run / "bundles")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """`here("export", ...)`: the exit code of a command line in this process, and what it says on stderr."""

    def call(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["edgetl", *words])
        monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return call


def test_export_and_report_exit_3_when_a_gate_is_out_of_reach(
    here: Callable[..., tuple[object, str]], copied: Path, tiny: Write
) -> None:
    compress(read(tiny(gates={"accuracy": 99.9, "faster": False})), copied)
    code, said = here("export", str(copied))
    assert code == 3
    assert "error: optin-0.6 onnx fp32 misses accuracy: " in said
    assert "; optin-0.4 onnx fp32 misses accuracy: " in said
    assert "limit 99.9\n  fix: " in said
    assert here("export", str(copied), "--no-judge")[0] == 0
    assert here("report", str(copied))[0] == 3


def test_profile_of_a_run_judges_the_budget_of_its_recipe(
    here: Callable[..., tuple[object, str]], copied: Path, tiny: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    clockwork.wind(monkeypatch)
    compress(read(tiny(budgets={"local": {"size_mb": 0.001}})), copied)
    code, said = here("profile", str(copied))
    assert code == 3
    assert "misses size_mb on local: " in said
    assert here("profile", str(copied), "--no-judge")[0] == 0
    code, said = here("profile", str(copied), "--gate", "p90_ms=0.0001")
    assert code == 3
    assert "limit 0.0001" in said


@pytest.mark.parametrize(
    ("device", "code", "words"),
    [("rpi5", 4, "ssh://pi@rpi5.local cannot be reached"), ("rpi6", 2, "no device 'rpi6'")],
)
def test_a_device_that_cannot_be_measured_here_is_told_before_anything_is_trained(
    edgetl: Edgetl, tiny: Write, tmp_path: Path, device: str, code: int, words: str
) -> None:
    cut = {"EDGETL_SSH_OPTIONS": "-o ProxyCommand=false"}  # no packet leaves this machine
    ended = edgetl("run", str(tiny()), "--out", str(tmp_path / "run"), "--device", device, more=cut)
    assert ended.returncode == code
    assert words in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_users_family_that_changes_makes_its_cuts_again(
    tiny: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "families"
    own.mkdir(parents=True)
    text = "from edgetl.families.hf_vit import HFViT\nclass Mine(HFViT):\n    name = 'mine'\nPLUGIN = Mine()\n"
    (own / "mine.py").write_text(text)
    monkeypatch.setenv("EDGETL_PLUGINS", str(own.parent))
    recipe = read(tiny(model__family="mine", steps__1__keep_macs=[0.6]))
    compress(recipe, tmp_path / "run")
    before = files(tmp_path / "run" / "steps")
    (own / "mine.py").write_text(text + "# changed\n")
    compress(recipe, tmp_path / "run")
    assert len(list((tmp_path / "run" / "steps" / ".old").iterdir())) == 4
    weights = {k: v for k, v in before.items() if k.endswith(".safetensors")}
    assert weights.items() <= files(tmp_path / "run" / "steps").items()  # a comment decides no seed
