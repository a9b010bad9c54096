"""What an app pays for the bundle's checks, pre-processing and labels on top of the bare runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MODULES, MB = 90, 15
"""Modules stand for the time, which is in benchmarks/start_cost.py: another program on the machine does not add any."""

REPORT = """
pages = int(open("/proc/self/statm").read().split()[1])
print(len(sys.modules), pages * 4096 / 1e6)
"""
BARE = """
import sys
import numpy as np
import onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", settings, providers=["CPUExecutionProvider"])
session.run(None, {"pixel_values": np.zeros((1, 1, 4, 4), np.float32)})
"""
APP = """
import sys
import numpy as np
import edgetl
model = edgetl.load(sys.argv[1])
model.predict(np.zeros((4, 4), np.uint8))
"""


def cost(program: str, folder: Path) -> tuple[float, float]:
    """Modules and resident megabytes of a process; the least of three."""
    found = []
    for _ in range(3):
        command = [sys.executable, "-c", program + REPORT, str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found.append(tuple(map(float, run.stdout.split())))
    return min(f[0] for f in found), min(f[1] for f in found)


def test_load_and_first_answer_cost_little_more_than_the_runtime(make: Callable[..., Path]) -> None:
    folder = make()
    bare, app = cost(BARE, folder), cost(APP, folder)
    assert app[0] - bare[0] <= MODULES
    assert app[1] - bare[1] <= MB
