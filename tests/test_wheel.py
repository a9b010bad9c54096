"""The built wheel in an environment of its own that holds the core's packages and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.xdist_group("wheel")  # what the fixtures make is made once

ROOT = Path(__file__).parents[1]
APP = ROOT / "examples" / "python" / "classify.py"
HOST_ONLY = ("torch", "transformers", "peft", "accelerate", "safetensors", "onnx", "onnxscript", "sklearn")
RECIPE = """
name: tiny
model:
  family: hf_vit
  source: {image_size: 8, patch_size: 4, num_channels: 1, hidden_size: 16,
           num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}
data: {use: digits}
steps: [{use: finetune, name: dense, schedule: {epochs: 1}}]
targets: [{use: onnx, precision: fp32}]
gates: {faster: false}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def start(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that is not the checkout, and without what points Python there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGETL"))}
    words = list(map(str, command))
    return subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, check=False, timeout=120)


def good(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, (run.args, run.stdout[-2000:], run.stderr[-3000:])
    return run.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    good(start([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], folder))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel and links to the packages that its core needs."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    bin_folder = folder / "bin"
    install = [sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "--no-deps", "--no-index"]
    good(start([*install, wheel], folder))
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    needed = [Requirement(line) for line in metadata.PathDistribution(next(packages.glob("edgetl-*"))).requires or ()]
    link(needed, packages)
    return bin_folder


def link(needed: list[Requirement], packages: Path) -> None:
    """Link what the requirements and their own requirements installed here into a folder of packages."""
    seen: set[str] = set()
    while needed:
        one = needed.pop()
        wanted = one.marker is None or one.marker.evaluate({"extra": ""})
        if not wanted or canonicalize_name(one.name) in seen:
            continue
        seen.add(canonicalize_name(one.name))
        found = metadata.distribution(one.name)
        needed += map(Requirement, found.requires or ())
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))


@pytest.fixture(scope="session")
def edgetl(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the installed `edgetl` in the clean environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return lambda *words: start([clean / "edgetl", *words], folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made here, with torch, as far as its bundle."""
    from edgetl import compress, export, read

    folder = tmp_path_factory.mktemp("host")
    (folder / "tiny.yaml").write_text(RECIPE)
    compress(read(folder / "tiny.yaml"), folder / "run")
    export(folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def bundle(made: Path) -> Path:
    return next((made / "bundles").glob("*/onnx-fp32"))


def test_the_wheel_carries_what_edgetl_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("recipes", "devices"):
        shipped = {f"edgetl/shipped_data/{kind}/{path.name}" for path in (ROOT / kind).glob("*.yaml")}
        assert shipped
        assert shipped <= names
    assert {"edgetl/py.typed", *(f"edgetl/schemas/{p.name}" for p in (ROOT / "edgetl/schemas").iterdir())} <= names
    assert not [n for n in names if not n.startswith(("edgetl/", "edgetl-")) or "__pycache__" in n]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_clean_environment_has_no_torch(clean: Path) -> None:
    program = f"""
import importlib.util, edgetl
print([name for name in {HOST_ONLY} if importlib.util.find_spec(name)], edgetl.__file__)
"""
    said = good(start([clean / "python", "-c", program], clean))
    assert said.startswith("[] ")
    assert str(clean.parent) in said


def test_the_listings_show_what_is_shipped(edgetl: Run) -> None:
    assert "profile" in good(edgetl("--help"))
    for kind in ("recipes", "devices"):
        listed = {one["name"] for one in json.loads(good(edgetl(kind, "list", "--json")))[kind]}
        assert {path.stem for path in (ROOT / kind).glob("*.yaml")} <= listed
    assert "keep_macs" in good(edgetl("recipes", "show", "demo"))
    found = json.loads(good(edgetl("doctor", "--json")))["findings"]
    compress = next(one for one in found if one["what"] == "extra [compress]")
    assert compress["fix"] == 'pip install "edgetl[compress]"'


def test_the_host_half_names_the_extra_that_it_needs(edgetl: Run, bundle: Path) -> None:
    for words in (["run", "demo"], ["compress", "--recipe", "demo"], ["export", bundle.parents[2]]):
        run = edgetl(*words)
        assert run.returncode == 4, (words, run.stderr[-2000:])
        assert 'pip install "edgetl[compress]"' in run.stderr
        assert "Traceback" not in run.stderr


def test_a_run_is_verified_measured_and_reported_without_torch(edgetl: Run, made: Path, bundle: Path) -> None:
    check = json.loads(good(edgetl("verify", bundle, "--data", made / "eval" / "test.npz", "--json")))["checks"][0]
    assert check["parity"]["max_abs"] < 1e-4
    assert check["accuracy"]["n"] >= 500
    measured = edgetl("profile", made, "--mode", "quick", "--json")
    assert measured.returncode in (0, 4), measured.stderr[-3000:]
    assert "fix:" in measured.stderr or measured.returncode == 0  # on a busy machine a measurement may be invalid
    one = json.loads(measured.stdout)["measurements"][0]
    assert "latency" in json.dumps(one)
    good(edgetl("report", made))
    assert "dense" in (made / "report.md").read_text()


def test_an_app_gives_the_labels_of_the_host(clean: Path, bundle: Path) -> None:
    labels = [good(start([python, APP, "--golden", bundle], bundle)) for python in (sys.executable, clean / "python")]
    assert labels[0] == labels[1]
    assert len(labels[0].splitlines()) > 3


def test_an_app_of_three_lines(clean: Path, bundle: Path) -> None:
    program = """
import sys, numpy as np, edgetl
answer = edgetl.load(sys.argv[1]).predict(np.zeros((8, 8), np.uint8))
print(answer.label, len(answer.scores), [name for name in sys.modules if name.startswith(("torch", "onnx."))])
"""
    said = good(start([clean / "python", "-c", program, bundle], bundle))
    assert said.split()[0] in "0123456789"
    assert said.split(maxsplit=1)[1].strip() == "10 []"
