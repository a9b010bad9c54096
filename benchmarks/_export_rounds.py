"""The processes of benchmarks/export.py: what each row answers, and rounds of fresh processes that time all rows."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
    with begun(made, entry, asked, usable_cpus()[:1]) as one:
        return str(one.hear().get("problem", ""))


def answers_of(made: Made, name: str) -> Path:
    return made.work / f"{name.replace(' ', '-')}.npy"


def newest(file: Path) -> float:
    return max((p.stat().st_mtime for p in (file, *file.glob("*"))), default=0.0)


@dataclass(frozen=True)
class Worker:
    """A process that opened one row's file, and then does what it is told."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def hear(self) -> Row:
        """What it says next; a `problem` where it ended."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        if self.process.wait() < 0:
            return {"problem": f"killed, or took more than {TIMEOUT_S} s"}
        self.errors.seek(0)
        return {"problem": (self.errors.read().strip().splitlines() or ["it ended"])[-1][:160]}

    def turn(self) -> Row:
        """The medians of a turn, in milliseconds."""
        with contextlib.suppress(OSError):
            self.process.stdin.write("turn\n")
        return self.hear()


@contextlib.contextmanager
def begun(made: Made, entry: Entry, more: Row, cpus: Sequence[int]) -> Iterator[Worker]:
    """A worker on these cores, a thread for each, that is gone afterwards."""
    what = {"kind": entry.kind, "file": str(entry.file), "hint": entry.hint, "threads": len(cpus), "cpus": list(cpus)}
    usual = {"inputs": str(made.work / "inputs.npz"), "answers": "", "most": SAMPLES}
    command = [sys.executable, str(WORKER), json.dumps({**what, **usual, **more})]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            yield Worker(process, errors)
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def interleaved(
    made: Made, running: Mapping[str, Entry], file: str, threads: int, rounds: int, turns: int
) -> dict[str, list[Row]]:
    """The samples of every row, one a round; rounds that an interrupted run finished are read from its file."""
    path = made.work / f"{file}.json"
    key = store.digest([sorted(running), turns, [newest(entry.file) for entry in running.values()]])
    kept: Row = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    done: list[dict[str, Row]] = kept["rounds"] if kept.get("key") == key else []
    while len(done) < rounds:
        cpus = [noise.quietest(usable_cpus())] if threads == 1 else usable_cpus()[:threads]
        done.append(one_round(made, running, cpus, turns, random.Random(len(done))))
        path.write_text(json.dumps({"key": key, "rounds": done}), "utf-8")
        print(f"{made.job.name}: round {len(done)} of {file}", file=sys.stderr, flush=True)
    return {name: [one[name] for one in done[:rounds]] for name in running}


def one_round(
    made: Made, running: Mapping[str, Entry], cpus: Sequence[int], turns: int, draw: random.Random
) -> dict[str, Row]:
    """Fresh processes that warm up one by one and take turns; the medians of each turn, or a `problem`."""
    found: dict[str, Row] = {name: {"cpu_ms": [], "wall_ms": []} for name in running}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in draw.sample(list(running), len(running)):
            one = stack.enter_context(begun(made, running[name], {}, cpus))
            if "problem" in (said := one.hear()):
                found[name] = said
            else:
                workers[name] = one
        for _ in range(turns):
            for name in draw.sample(list(workers), len(workers)):
                if "problem" in (said := workers[name].turn()):
                    found[name] = said
                    del workers[name]
                for quantity, times in found[name].items() if name in workers else ():
                    times.append(round(said[quantity], 6))
    return found
