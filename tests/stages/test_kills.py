"""A run that is killed or interrupted at any moment goes on and ends with the same bytes; nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stages.conftest import Write, files

MOMENTS = (
    "dense on all: running",
    "optin on optin-0.6: running",
    "export of dense: running",
    "profile: round 1",
)


def start(offline: dict[str, str], *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgetl", *words]
    return subprocess.Popen(command, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen[str], mark: str) -> None:
    assert process.stderr is not None
    assert any(mark in line for line in process.stderr), f"'{mark}' was never said"


def processes(run: Path) -> list[str]:
    """Return the command lines of all living processes that name this run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if str(run) in words:
            found.append(" ".join(words))
    return found


def gone(run: Path, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while processes(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(run)


def finish(offline: dict[str, str], recipe: Path, run: Path) -> None:
    ended = start(offline, "run", str(recipe), "--out", str(run), "-q")
    _, err = ended.communicate(timeout=250)
    assert ended.returncode == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("mark", MOMENTS)
def test_kill_minus_9_in_every_stage(
    mark: str, offline: dict[str, str], made_run: Path, tiny: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed = start(offline, "run", str(tiny()), "--out", str(run))
    until(killed, mark)
    time.sleep(0.2)
    killed.kill()
    killed.wait()
    assert gone(run)
    finish(offline, tiny(), run)
    assert files(run / "bundles") == files(made_run / "bundles")
    assert not list(run.rglob("*.tmp"))
    assert not list(run.rglob("*checkpoint*"))


@pytest.mark.slow  # in one process, tests/stages/test_resumed_training.py and the losses with a memory do it
def test_a_killed_training_goes_on_after_its_last_epoch(offline: dict[str, str], tiny: Write, tmp_path: Path) -> None:
    recipe = tiny(steps=[{"use": "finetune", "name": "dense", "schedule": {"epochs": 8}}])
    runs = {name: tmp_path / name for name in ("killed", "whole")}
    killed = start(offline, "compress", "--recipe", str(recipe), "--out", str(runs["killed"]))
    until(killed, "epoch 2/8")  # by then the first epoch is on disk
    killed.kill()
    killed.wait()
    assert not list(runs["killed"].glob("steps/01-dense/all/network.json"))
    for run in runs.values():
        ended = start(offline, "compress", "--recipe", str(recipe), "--out", str(run))
        _, err = ended.communicate(timeout=100)
        assert ended.returncode == 0, err
        assert ("epoch 1/8" in err) == (run.name == "whole")
    assert files(runs["killed"] / "steps") == files(runs["whole"] / "steps")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Let children hear Ctrl-C also where the tests run in the background of a script, which ignores it for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("whom", ["terminal", pytest.param("parent alone", marks=pytest.mark.slow)])
def test_ctrl_c_ends_run_and_stage_with_one_message(
    whom: str, offline: dict[str, str], tiny: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = tiny(steps=[{"use": "finetune", "name": "dense", "schedule": {"epochs": 2000}}])
    command = [sys.executable, "-m", "edgetl", "run", str(recipe), "--out", str(run)]
    with subprocess.Popen(
        command, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as stopped:
        until(stopped, "epoch 2/")
        os.killpg(stopped.pid, signal.SIGINT) if whom == "terminal" else stopped.send_signal(signal.SIGINT)
        _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert err.count("interrupted\n  fix: run the same command again") == 1
    assert "Traceback" not in err
    assert gone(run)
