"""The device half runs where there is no torch; what an app loads also runs without the command line's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST = ("network", "train", "methods", "losses", "families")
"""Folders of the host half."""
DEVICE = {
    *("bundle.py", "session.py", "device.py", "evaluate.py", "preprocess.py", "cli.py", "runtime/model.py"),
    *("stages/verify.py", "stages/profile.py", "targets/onnx.py"),
}
"""Always of the device half; elsewhere "[host" in a file's first line marks the other one."""
RUNTIME = ("edgetl.runtime", "edgetl.bundle", "edgetl.evaluate", "edgetl.intervals", "edgetl.preprocess")
LEAN = (*RUNTIME, "edgetl.session", "edgetl.errors", "edgetl.plugins", "edgetl.targets.onnx", "edgetl.stages.verify")

PROGRAM = """
import importlib, sys
blocked = set(sys.argv[1].split(","))

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
for name in sys.argv[2:]:
    importlib.import_module(name)
print(",".join(sys.modules))
"""


def imports(names: list[str], blocked: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, blocked, *names]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert found.returncode == 0, found.stderr[-2000:]
    return set(found.stdout.strip().split(","))


def device_half() -> list[str]:
    package = ROOT / "edgetl"
    names = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        host = "[host" in path.read_text("utf-8").partition("\n")[0] and place.as_posix() not in DEVICE
        if place.parts[0] in HOST or host or place.name == "__main__.py":
            continue
        parts = place.with_suffix("").parts
        names.append(".".join(("edgetl", *(parts[:-1] if parts[-1] == "__init__" else parts))))
    return names


def test_the_device_half_imports_without_torch() -> None:
    names = device_half()
    assert {"edgetl.runtime", "edgetl.stages.verify"} <= set(names)
    assert len(names) > len(DEVICE)
    imports(names, "torch,transformers,peft,accelerate,safetensors,onnx,onnxscript,sklearn")


def test_an_app_loads_without_the_command_lines_packages() -> None:
    imports(list(LEAN), "torch,transformers,onnx,pydantic,typer,rich,yaml,psutil")


@pytest.mark.parametrize("name", ["edgetl", *RUNTIME])
def test_what_an_app_imports_leaves_optional_readers_alone(name: str) -> None:
    loaded = imports([name], "torch")
    assert not loaded & {"PIL", "tokenizers", "onnxruntime", "pydantic", "zipfile", "typer"}


def test_the_package_itself_imports_nothing() -> None:
    loaded = imports(["edgetl"], "torch")
    assert not loaded & {"numpy", "edgetl.runtime", "edgetl.errors"}
