"""`edgetl run` as a user types it: processes of its own, no network, the documented ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.stages.conftest import TINY, Edgetl, Write

LOAD = """
import sys, numpy, edgetl
model = edgetl.load(sys.argv[1])
print(model.predict(numpy.zeros((8, 8), numpy.uint8)).label, "torch" in sys.modules)
"""
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def without(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """`without("torch")`: the environment of a process where these modules are not installed."""

    def environment(*blocked: str) -> dict[str, str]:
        folder = tmp_path / "blocking"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(BLOCK.format(blocked=blocked))
        return {"PYTHONPATH": str(folder)}

    return environment


def test_run_makes_everything_without_a_network_and_judges_it(
    edgetl: Edgetl, made_run: Path, tiny: Write, tmp_path: Path
) -> None:
    shutil.copytree(made_run, tmp_path / "run")  # training and export were done by the same code
    out = str(tmp_path / "run")
    kept = edgetl("run", str(tiny()), "--out", out, "--json", "-q")
    assert kept.returncode == 0, kept.stderr
    told = json.loads(kept.stdout)
    assert told["schema_version"] == 1
    [row, *_] = told["reports"][0]["rows"]
    assert row["name"] == "dense"
    assert len(list((tmp_path / "run" / "measurements" / "local").glob("*.json"))) == 3
    assert "┃" not in kept.stderr
    assert "Traceback" not in kept.stderr

    missed = edgetl("run", str(tiny()), "--out", out, "--set", "budgets.local.p90_ms=0.0001")
    assert missed.returncode == 3
    assert "p90_ms on local: " in missed.stderr
    assert "limit 0.0001" in missed.stderr
    assert missed.stderr.splitlines()[-1].startswith("  fix: ")
    assert "finished before" in missed.stderr
    assert "running" not in missed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("students", [(), ("optin-0.6", "optin-0.4")], ids=["reference", "students"])
def test_run_from_nothing_gives_the_bytes_of_the_functions(
    edgetl: Edgetl, made_run: Path, tiny: Write, tmp_path: Path, students: tuple[str, ...]
) -> None:
    names = ["dense", *students]
    recipe = tiny() if students else tiny(steps=TINY["steps"][:1])
    made = edgetl("compress", "--recipe", str(recipe), "--json")
    assert made.returncode == 0, made.stderr
    assert list(json.loads(made.stdout)["networks"]) == names
    exported = edgetl("export", "--json")
    assert exported.returncode == 0, exported.stderr
    assert "run folder: runs/tiny" in exported.stderr
    assert list(json.loads(exported.stdout)["bundles"]) == [f"{n} onnx-fp32" for n in names]
    for name in names:
        place = Path("bundles", name, "onnx-fp32", "model.onnx")
        assert (tmp_path / "runs" / "tiny" / place).read_bytes() == (made_run / place).read_bytes()


def test_an_app_loads_a_bundle_without_a_network_and_without_torch(
    offline: dict[str, str], made_run: Path, tmp_path: Path
) -> None:
    bundle = str(made_run / "bundles" / "optin-0.4" / "onnx-fp32")
    command = [sys.executable, "-c", LOAD, bundle]
    ended = subprocess.run(command, env=offline, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    label, torch = ended.stdout.split()
    assert label in [str(i) for i in range(10)]
    assert torch == "False"


def test_a_missing_extra_prints_the_pip_line(
    edgetl: Edgetl, without: Callable[..., dict[str, str]], tiny: Write
) -> None:
    ended = edgetl("compress", "--recipe", str(tiny()), more=without("torch"))
    assert ended.returncode == 4
    assert ended.stderr == 'error: torch is not installed\n  fix: pip install "edgetl[compress]"\n'


def test_reading_parquet_without_pyarrow_prints_the_pip_line(
    edgetl: Edgetl, without: Callable[..., dict[str, str]], tiny: Write, tmp_path: Path
) -> None:
    (tmp_path / "texts.parquet").write_bytes(b"PAR1")
    recipe = tiny(model={"family": "hf_bert", "source": {}}, data={"use": "text_csv", "root": str(tmp_path)})
    shutil.move(tmp_path / "texts.parquet", tmp_path / "train.parquet")
    ended = edgetl("compress", "--recipe", str(recipe), more=without("pyarrow"))
    assert ended.returncode == 4, ended.stderr
    assert 'pip install "edgetl[data]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_nobody_expected_is_called_a_bug(edgetl: Edgetl, tmp_path: Path) -> None:
    (tmp_path / "own" / "methods").mkdir(parents=True)
    (tmp_path / "own" / "methods" / "odd.py").write_text('"""Odd."""\nraise LookupError("odd")\n')
    ended = edgetl("methods", more={"EDGETL_PLUGINS": str(tmp_path / "own")})
    assert ended.returncode == 1
    assert "LookupError: odd" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("this is a bug in edgetl")


def test_predictions_of_the_reference_and_its_file_are_equal(made_run: Path) -> None:
    for name in ("dense", "optin-0.6", "optin-0.4"):
        network, file = (np.load(made_run / "students" / name / f"{n}.npy") for n in ("logits", "onnx-fp32"))
        assert np.array_equal(network.argmax(1), file.argmax(1))
