"""What an app pays for a bundle's checks, pre-processing and labels on top of bare ONNX Runtime.

A process that opens the bundle with `edgetl.load` and answers once is compared with one that opens the same ONNX file
with ONNX Runtime alone and runs it once on an input of the right shape: CPU time (user and system, from the start of
the process) and peak resident memory. Both processes of a pair run next to each other, in random order.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _results import Row, finished, host, keep
from PIL import Image

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks"
RESULT = Path(__file__).parent / "results" / "start_cost.json"
SEED = 0
PAIRS, QUICK_PAIRS = 100, 15
SECONDS_A_PAIR, SECONDS_OF_MAKING = 0.5, 60
GOALS = {"cpu_ms": 60.0, "peak_mb": 15.0}
CASES = (("dense", "array"), ("dense", "file"), ("optin-0.4", "array"), ("optin-0.4", "file"))
"""Students of the demo, and what the app gives: an array in memory, or the path of a PNG file."""
DEMO = ("steps.dense.schedule.epochs=1", "steps.recover.schedule.epochs=1", "steps.optin.keep_macs=0.4")

COST = """
import resource
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
usage = resource.getrusage(resource.RUSAGE_SELF)
print((usage.ru_utime + usage.ru_stime) * 1e3, int(peak.split()[1]) * 1.024e-3)
"""
BARE = """
import sys
import numpy as np
import onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", settings, providers=["CPUExecutionProvider"])
session.run(None, {"pixel_values": np.zeros((1, 1, 8, 8), np.float32)})
"""
ARRAY = """
import sys
import numpy as np
import edgetl
edgetl.load(sys.argv[1]).predict(np.zeros((8, 8), np.uint8))
"""
FILE = """
import sys
import edgetl
edgetl.load(sys.argv[1]).predict(sys.argv[2])
"""
APPS = {"array": ARRAY, "file": FILE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs a row in the place of {PAIRS}")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    pairs = QUICK_PAIRS if options.quick else PAIRS
    out = options.out or (RUNS / "start_cost.json" if options.quick else RESULT)
    minutes = (SECONDS_OF_MAKING + pairs * SECONDS_A_PAIR * len(CASES)) / 60
    print(f"about {minutes:.0f} minutes; finished rows of {out} are kept", flush=True)
    now = conditions(pairs)
    rows = finished(out, now)
    for student, given in CASES:
        if not any((row["student"], row["input"]) == (student, given) for row in rows):
            rows.append(measure(student, given, pairs))
            write(out, now, rows)
    show(rows)


def conditions(pairs: int) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    packages = ("edgetl", "onnxruntime", "numpy", "pillow", "tokenizers")
    return {
        **host(packages),
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "batch": 1,
        "shape": [1, 8, 8],
        "dtype": "float32",
        "pairs": pairs,
        "seed": SEED,
        "interval": "95 %, of the median of the paired differences, by order statistics",
    }


def measure(student: str, given: str, pairs: int) -> Row:
    bundle, image = made(student), RUNS / "digit.png"
    Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)).save(image)
    programs = {"bare": BARE, "app": APPS[given]}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    draw = random.Random(f"{SEED} {student} {given}")
    for i in range(pairs + 1):
        for name in draw.sample(sorted(programs), len(programs)):
            cost = run(programs[name], bundle, image)
            if i:  # the first pair fills the disk's cache
                found[name].append(cost)
        if i % 10 == 0:
            print(f"{student} {given}: pair {i} of {pairs}", file=sys.stderr, flush=True)
    row: Row = {"student": student, "input": given, "n": pairs, "model_bytes": (bundle / "model.onnx").stat().st_size}
    for axis, key in enumerate(GOALS):
        bare, app = ([cost[axis] for cost in found[name]] for name in programs)
        row[key] = {"bare": round(statistics.median(bare), 2), "app": round(statistics.median(app), 2)}
        row[key] |= median([a - b for a, b in zip(app, bare, strict=True)])
    return row


def made(student: str) -> Path:
    """The bundle of one student of the demo, trained for an epoch: its cost does not depend on its weights."""
    run_folder = RUNS / "demo"
    bundle = run_folder / "bundles" / student / "onnx-fp32"
    if not bundle.is_dir():
        sets = [word for item in DEMO for word in ("--set", item)]
        for words in (["compress", "--recipe", "demo", "--out", str(run_folder), *sets], ["export", str(run_folder)]):
            # A gate that one epoch misses (exit 3) does not matter here.
            code = subprocess.run([sys.executable, "-m", "edgetl", *words], stdout=sys.stderr, check=False).returncode
            if code not in (0, 3):
                sys.exit(code)
    return bundle


def run(program: str, bundle: Path, image: Path) -> tuple[float, float]:
    """CPU milliseconds and peak megabytes of a process."""
    command = [sys.executable, "-c", program + COST, str(bundle), str(image)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment).stdout
    cpu_ms, peak_mb = map(float, said.split())
    return cpu_ms, peak_mb


def median(values: Sequence[float]) -> Row:
    """The median, with the order statistics that hold it between them in 95 of 100 cases."""
    ordered, n = sorted(values), len(values)
    below = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
    low, high = ordered[below], ordered[n - 1 - below]
    return {"more": round(statistics.median(ordered), 2), "low": round(low, 2), "high": round(high, 2)}


def write(out: Path, now: Row, rows: Sequence[Row]) -> None:
    """Write what is finished; each target is judged on its worst row, on the upper end of the interval."""
    targets = []
    for key, goal in GOALS.items():
        worst = max((row[key] for row in rows), key=lambda cell: float(cell["high"]))
        name = f"load and first predict, {key} more than bare ONNX Runtime"
        ends = {"value": worst["more"], "low": worst["low"], "high": worst["high"]}
        targets.append({"name": name, "goal": goal, **ends, "met": len(rows) == len(CASES) and worst["high"] <= goal})
    keep(out, now, rows, targets)


def show(rows: Sequence[Row]) -> None:
    print(f"\n{'student':<10} {'input':<6} {'n':>4}", end="")
    print(
        f"  {'CPU ms: bare':>12} {'app':>7} {'more (95 %)':>22}  {'peak MB: bare':>13} {'app':>6} {'more (95 %)':>20}"
    )
    for row in rows:
        cpu, peak = row["cpu_ms"], row["peak_mb"]
        print(f"{row['student']:<10} {row['input']:<6} {row['n']:>4}  {cpu['bare']:>12.1f} {cpu['app']:>7.1f}", end=" ")
        print(f"{cpu['more']:>7.1f} ({cpu['low']:.1f} to {cpu['high']:.1f})".rjust(22), end="  ")
        print(f"{peak['bare']:>13.1f} {peak['app']:>6.1f}", end=" ")
        print(f"{peak['more']:>6.1f} ({peak['low']:.1f} to {peak['high']:.1f})".rjust(20))


if __name__ == "__main__":
    main()
