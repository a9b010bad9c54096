"""The median agrees with that of other tools on the same machine, file, threads and batch."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.device import probe
from edgetl.measure import rounds
from edgetl.stages.profile import profile

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset here")]
Maker = Callable[..., Path]

LOOP = """
import sys, time
import numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = settings.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
feed = {"pixel_values": numpy.random.default_rng(0).random((1, 1, 8, 8), numpy.float32)}
times = []
for _ in range(600):
    before = time.process_time_ns()
    session.run(None, feed)
    times.append(time.process_time_ns() - before)
print(numpy.median(times[100:]) / 1e6)
"""
"""The plainest loop over the runtime, with none of ours."""


def said(command: list[str], pattern: str) -> float:
    """The number that a tool prints behind the words of a pattern."""
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = re.search(pattern, ended.stdout + ended.stderr)
    assert found, ended.stdout[-2000:]
    return float(found[1])


def test_a_plain_loop_over_the_runtime(make: Maker) -> None:
    bundle, device = make("looped", 1024, 4), rounds.pinned(probe())
    (cpu,) = device.cpus or (0,)
    loop = ["taskset", "-c", str(cpu), sys.executable, "-c", LOOP, str(bundle / "model.onnx")]
    loops = [said(loop, r"([0-9.]+)") for _ in range(3)]
    (one,) = profile([bundle], device, out=None, mode="standard")
    loops += [said(loop, r"([0-9.]+)") for _ in range(3)]
    spread = max(loops) / min(loops)  # what the machine itself moved meanwhile
    ratio = one.latency.cpu_time_p50_ms / statistics.median(loops)
    assert 1 / (1.03 * spread) < ratio < 1.03 * spread


@pytest.mark.skipif(shutil.which("onnxruntime_perf_test") is None, reason="no onnxruntime_perf_test here")
def test_onnxruntime_perf_test(make: Maker) -> None:
    bundle = make("perf", 1024, 4)
    tool = ["onnxruntime_perf_test", "-I", "-m", "times", "-r", "1000", "-x", "1", "-y", "1", "-e", "cpu"]
    theirs = 1e3 * said([*tool, str(bundle / "model.onnx")], r"P50 Latency: ([0-9.e-]+) s")
    (one,) = profile([bundle], probe(), out=None, mode="standard")
    assert one.latency.p50_ms == pytest.approx(theirs, rel=0.03)
