"""The processes of benchmarks/export.py: what each row answers, and rounds of fresh processes that time all rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _export_networks import Job
from _export_peers import Entry
from _results import Row
from numpy.typing import NDArray

from edgetl import store
from edgetl.machine import usable_cpus
from edgetl.measure import noise

WORKER = Path(__file__).parent / "_export_worker.py"
SAMPLES = 32
"""Inputs that are timed, one a call."""

TIMEOUT_S = 900


@dataclass(frozen=True)
class Made:
    """A run with what all rows need of it."""

    job: Job
    run: Path
    work: Path  # the peers' files, answers and samples
    reference: str
    students: tuple[str, ...]
    y: NDArray[np.int64]


def answered(made: Made, name: str, entry: Entry) -> str:
    """Keep the answers of a row on all test samples; return what is wrong where it gives none."""
    path = answers_of(made, name)
    if path.is_file() and path.stat().st_mtime > newest(entry.file):
        return ""
    print(f"{made.job.name}: {name}", file=sys.stderr, flush=True)
    asked = {"inputs": str(made.work / "test.npz"), "answers": str(path), "most": made.job.tested}
    told = worker(made, entry, asked, usable_cpus()[:1])
    return str(told.get("problem", ""))


def answers_of(made: Made, name: str) -> Path:
    return made.work / f"{name.replace(' ', '-')}.npy"


def newest(file: Path) -> float:
    return max((p.stat().st_mtime for p in (file, *file.glob("*"))), default=0.0)


def worker(made: Made, entry: Entry, more: Row, cpus: Sequence[int]) -> Row:
    """Run one process, a thread for each of these cores, and return what it says; a `problem` where it fails."""
    what = {"kind": entry.kind, "file": str(entry.file), "hint": entry.hint, "threads": len(cpus), "cpus": list(cpus)}
    usual = {"inputs": str(made.work / "inputs.npz"), "answers": "", "most": SAMPLES, "window_s": 0.0}
    job = {**what, **usual, **more}
    command = [sys.executable, str(WORKER), json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"problem": f"took more than {TIMEOUT_S} s"}
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:160]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def interleaved(
    made: Made, running: Mapping[str, Entry], threads: int, rounds: int, window_s: float
) -> dict[str, list[Row]]:
    """The samples of every row, one a round; rounds that an interrupted run finished are read."""
    path = made.work / f"rounds-{threads}.json"
    key = store.digest([sorted(running), window_s, [newest(entry.file) for entry in running.values()]])
    kept: Row = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    done: list[dict[str, Row]] = kept["rounds"] if kept.get("key") == key else []
    while len(done) < rounds:
        order = random.Random(len(done)).sample(list(running), len(running))
        cpus = [noise.quietest(usable_cpus())] if threads == 1 else usable_cpus()[:threads]
        done.append({name: worker(made, running[name], {"window_s": window_s}, cpus) for name in order})
        path.write_text(json.dumps({"key": key, "rounds": done}), "utf-8")
        print(f"{made.job.name}: round {len(done)} at {threads} threads", file=sys.stderr, flush=True)
    return {name: [one[name] for one in done[:rounds]] for name in running}
