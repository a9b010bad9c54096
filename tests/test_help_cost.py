"""The first thing a user types answers at once."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

LIMIT_S = 0.4
TRIES = 5


def cpu_seconds(words: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "edgetl", *words], check=True, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_little_cpu_time() -> None:
    # The least of a few tries: other work on the machine only ever adds.
    assert any(cpu_seconds(["--help"]) <= LIMIT_S for _ in range(TRIES))


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_loads_no_numbers(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "edgetl", *words]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in said.splitlines()}
    assert not loaded & {"numpy", "torch", "onnxruntime", "yaml", "psutil"}
