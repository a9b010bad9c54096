"""How much faster a shipped student answers than the reference's fp32 ONNX file, pre-processing included."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _results import Row

from edgetl import intervals
from edgetl.bundle import open_bundle, read_golden
from edgetl.runtime.model import Model, load

SPEED_GOAL = 20
"""Times faster at no more than one point lost."""

ROUNDS, SAMPLES = 12, 24


def speed_rows(options: argparse.Namespace, rows: Sequence[Row], runs: Path, add: Callable[[Row], None]) -> None:
    """Run the recipes whose data is given, and time every student that is not there yet."""
    there = {(r["data"], r["row"]) for r in rows if r["table"] == "speed"}
    for recipe, sets in {} if options.quick else jobs(options):
        out = runs / recipe.replace("/", "-")
        name, words = recipe.split("/")[0], [word for item in ("threads=1", *sets) for word in ("--set", item)]
        command = [sys.executable, "-m", "edgetl", "run", name, "--out", str(out), "--json", *words]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode not in (0, 3):  # a missed gate is a result too
            sys.exit(ended.returncode)
        told = json.loads(ended.stdout)["reports"][0]["rows"]
        for one in told:
            key = (recipe, f"{one['name']} {one['target']}-{one['precision']}")
            if key not in there:
                add({"table": "speed", "data": key[0], "row": key[1], **timed(out, told, one)})


def jobs(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Each recipe with its overrides, where its data is given."""
    found = []
    if options.text and options.minilm:
        for name in ("banking77", "sst2"):
            text = [f"data.root={(options.text / name).resolve()}", f"model.source={options.minilm}"]
            found += [(f"text-20x/{name}", text), (f"kd-text/{name}", text)]
    if options.fashion_mnist:
        found.append(("vit-to-cnn/fashion-mnist", [f"data.root={options.fashion_mnist.resolve()}"]))
    return found


def timed(run: Path, told: Sequence[Mapping[str, Any]], one: Mapping[str, Any]) -> Row:
    """CPU time of whole predictions, and the reference's over it, interleaved round by round."""
    reference = next(r for r in told if r["reference"])
    folders = [run / "bundles" / r["name"] / f"{r['target']}-{r['precision']}" for r in (reference, one)]
    samples = raw_samples(folders[0])
    models = [load(folder) for folder in folders]
    seconds = np.array([[spent(model, samples) for model in models] for _ in range(ROUNDS + 2)])[2:]  # two to warm up
    for model in models:
        model.close()
    times = intervals.paired_ratio(seconds[:, 0].tolist(), seconds[:, 1].tolist())
    drop = one["accuracy_drop"] and {end: round(100 * share, 2) for end, share in one["accuracy_drop"].items()}
    return {
        "n": one["accuracy"]["n"],
        "accuracy": round(100 * one["accuracy"]["accuracy"]["value"], 2),
        "ece": round(100 * one["accuracy"]["ece"], 2),
        "drop": drop,  # points
        "size_bytes": one["size_bytes"],
        "cpu_ms": round(1000 * float(np.median(seconds[:, 1])), 4),
        "times_faster": {"value": round(times.value, 2), "low": round(times.low, 2), "high": round(times.high, 2)},
        "reference": bool(one["reference"]),
    }


def raw_samples(bundle: Path) -> list[Any]:
    """What an app would hand over: texts, the bytes of images, or arrays."""
    opened = open_bundle(bundle)
    raw, facts = read_golden(opened).raw, opened.manifest["raw"]
    assert raw is not None
    if facts["kind"] == "text":
        return [sample.decode() for sample in raw][:SAMPLES]
    if facts["kind"] == "array":
        return [np.frombuffer(sample, facts["dtype"]).reshape(facts["shape"]) for sample in raw][:SAMPLES]
    return list(raw)[:SAMPLES]


def spent(model: Model, samples: Sequence[Any]) -> float:
    """CPU seconds of this process for one sample, one at a time."""
    start = time.process_time()
    for sample in samples:
        model.predict(sample)
    return (time.process_time() - start) / len(samples)


def speed_targets(rows: Sequence[Row]) -> list[Row]:
    """For every recipe the fastest student that loses at most a point, and how many times faster it is."""
    found = []
    students = [r for r in rows if r["table"] == "speed" and not r["reference"]]
    for name in dict.fromkeys(r["data"] for r in students):
        kept = [r for r in students if r["data"] == name and r["drop"] and r["drop"]["value"] <= 1]
        best = max(kept, key=lambda r: float(r["times_faster"]["value"]), default=None)
        ends = best["times_faster"] if best else {"value": None, "low": None, "high": None}
        met = best is not None and best["times_faster"]["low"] >= SPEED_GOAL
        words = f"{name}: times faster at no more than one point lost" + (f" ({best['row']})" if best else "")
        found.append({"name": words, "goal": SPEED_GOAL, **ends, "met": met})
    return found


os.environ.setdefault("OMP_NUM_THREADS", "1")
