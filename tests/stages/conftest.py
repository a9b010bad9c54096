"""A tiny recipe on the digits, and one run of it that tests copy before they change anything."""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from edgetl import store
from edgetl.recipe import yaml12
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.types import Json
from tests.contract import conftest as contract

Write = Callable[..., Path]
Killed = Callable[..., AbstractContextManager[None]]
Edgetl = Callable[..., subprocess.CompletedProcess[str]]

killed = contract.killed

SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TINY: Json = {
    "name": "tiny",
    "threads": 1,
    "model": {"family": "hf_vit", "source": SIZES},
    "data": {"use": "digits"},
    "steps": [
        {"use": "finetune", "name": "dense", "schedule": {"epochs": 1}},
        {"use": "optin", "keep_macs": [0.6, 0.4], "samples": 8},
        {"use": "lora", "name": "recover", "rank": 2, "schedule": {"epochs": 1}, "teacher": {"step": "dense"}},
    ],
    "gates": {"faster": False},
}

BLOCKED = """
import socket, sys

def refuse(*_args, **_more):
    raise AssertionError("this program wants to reach a network")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
if "profile" in sys.orig_argv:
    sys.path.append({root!r})
    from tests import clockwork
    for patch in clockwork.patches():
        setattr(*patch)
"""
"""A sitecustomize: no process of the run reaches a network; a profile takes two short rounds by a clock of its own."""


def write_recipe(path: Path, **changes: Json) -> Path:
    """Write the tiny recipe; `a__b=value` changes key b inside a, where a list is indexed by its number."""
    raw = copy.deepcopy(TINY)
    for key, value in changes.items():
        place: Json = raw
        *inner, last = key.split("__")
        for part in inner:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    path.write_text(yaml12.write(raw), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder by its relative path, hidden ones left out."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
    names = ((p, p.relative_to(folder)) for p in paths)
    return {n.as_posix(): store.file_digest(p) for p, n in names if not any(x.startswith(".") for x in n.parts)}


def times(folder: Path) -> dict[str, int]:
    """Return when each file below a folder was written, the lock left out."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def tiny(tmp_path: Path) -> Write:
    """`tiny(**changes)`: the tiny recipe's file."""
    return lambda **changes: write_recipe(tmp_path / "tiny.yaml", **changes)


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe, compressed and exported; never changed, and one for all workers of the tests."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            before = torch.get_num_threads()
            compress(read(write_recipe(folder / "tiny.yaml")), folder / "run")
            export(folder / "run")
            torch.set_num_threads(before)
            (folder / "done").touch()
    return folder / "run"


@pytest.fixture
def copied(made_run: Path, tmp_path: Path) -> Path:
    """A copy of the made run, to be changed."""
    return Path(shutil.copytree(made_run, tmp_path / "copied"))


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that can reach no network."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(BLOCKED.replace("{root!r}", repr(str(Path(__file__).parents[2]))))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGETL")}
    return {**kept, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def edgetl(offline: dict[str, str], tmp_path: Path) -> Edgetl:
    """`edgetl("run", ...)`: the real command line in a process of its own, without a network."""

    def call(*words: str, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = (sys.executable, "-m", "edgetl", *words)
        environment = {**offline, **(more or {})}
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
        )

    return call
