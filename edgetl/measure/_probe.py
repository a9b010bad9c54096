"""The measuring process: it opens one bundle, times it and writes what it saw. [no torch, no pydantic]

It holds only the runtime and the artifact, so that its memory is theirs. Nothing is written to stdout, where
runtimes print; the result goes to an inherited descriptor, one JSON object a line, each with the phase it reached.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgetl import plugins
from edgetl.bundle import open_bundle, open_session
from edgetl.errors import BadHost, EdgetlError, OutOfResources
from edgetl.evaluate import parity
from edgetl.lifeline import end_with_parent
from edgetl.measure._window import Buffer, Window, status, timed, warmed
from edgetl.preprocess import MASK
from edgetl.types import Feed, Json

if TYPE_CHECKING:
    from edgetl.session import Session

SAMPLES = 1 << 16
"""Most samples of one process, unless the job says otherwise."""

BATCHES = 4
"""Most distinct batches of several inputs: their memory is ours, not the artifact's."""

CHECKED = 4
"""Batches whose answers are compared with the goldens after the window: one could be right by chance."""

SAME = 1e-5
"""Largest change of an answer within one process, relative to the largest logit."""


@dataclass(frozen=True)
class Job:
    """What one measuring process does. Times in seconds; `started_ns` is the parent's monotonic clock."""

    bundle: str
    target: str
    inputs: str  # an .npz of the declared inputs, each (n, ...)
    threads: int
    cpus: tuple[int, ...] | None
    warmup_s: float
    warmup_n: int
    window_s: float
    window_n: int
    cap_s: float
    steady: bool  # test that the warm-up reached a steady state
    batch: int = 1
    most: int = SAMPLES
    limit: int | None = None  # bytes of memory that its control group allows
    answers: str | None = None  # an .npy of the golden logits of the inputs, (n, K)
    turn_s: float | None = None  # the window comes in turns that the parent gives; None: in one piece
    started_ns: int = 0


def main() -> None:
    """Run the job given as `FD JOB` at the end of the command line and exit with the code of its outcome."""
    descriptor, job = int(sys.argv[-2]), Job(**json.loads(sys.argv[-1]))
    try:
        _measure(job, descriptor)
    except MemoryError:
        _fail(descriptor, OutOfResources("the process found no memory", fix="free memory, or use a smaller artifact"))
    except EdgetlError as error:
        _fail(descriptor, error)


def _fail(out: int, error: EdgetlError) -> NoReturn:
    _say(out, {"phase": "error", "problem": error.problem, "fix": error.fix})
    sys.exit(error.code)


def _measure(job: Job, out: int) -> None:
    end_with_parent()
    if job.cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job.cpus)
    runtime = _import_runtime(job.target)
    base = status("VmRSS")
    feeds, rows = _feeds(Path(job.inputs), job.batch)
    # Touched, so that the run adds nothing of ours.
    wall, cpu = np.ones(job.most, np.int64), np.ones(job.most, np.int64)
    held = status("VmRSS") - base
    _reset_peak()
    _say(out, {"phase": "load"})
    start = time.perf_counter_ns()
    session = _open(job)
    loaded = time.perf_counter_ns()
    load_peak = status("VmHWM")
    _say(out, {"phase": "run"})
    before = time.perf_counter_ns()
    first = session.run(feeds[0])
    done = time.perf_counter_ns()
    warm, steady = warmed(session, feeds, job, wall)
    window = timed(session, feeds, job, wall, cpu)
    peak, steady_rss = status("VmHWM"), status("VmRSS")
    last = [session.run(feed) for feed in feeds[:CHECKED]]
    _same_answers(first, last[0])
    facts = {
        **_parity(last, rows, job.answers),
        "runtime": runtime,
        "provider": session.provider,
        "load_ns": loaded - start,
        "first_ns": done - before,
        "process_ns": done - job.started_ns,
        "warm": warm,
        "steady": steady,
    }
    memory = {"base": base, **_beyond(base + held, load_peak=load_peak, peak=peak, steady_rss=steady_rss)}
    memory["pss"] = _rollup("Pss") if job.turn_s is None else None  # processes beside this one share its pages
    memory["growth"] = peak / window.middle - 1 if window.middle else 0.0
    _say(out, {"phase": "done", **facts, **memory, **_samples(wall, cpu, window)})
    session.close()


def _beyond(ours: int, **sizes: int) -> dict[str, Json]:
    """Return sizes in bytes without what is ours; and what the process shares with no other."""
    return {**{name: size - ours for name, size in sizes.items()}, "private_dirty": _rollup("Private_Dirty")}


def _samples(wall: Buffer, cpu: Buffer, window: Window) -> dict[str, Json]:
    seen = {"seconds": window.ns / 1e9, "switches": window.switches, "others": window.others, "turns": window.turns}
    return {**seen, "wall": wall[: window.n].tolist(), "cpu": cpu[: window.n].tolist()}


def _open(job: Job) -> Session:
    return open_session(open_bundle(Path(job.bundle)), job.threads)


def _import_runtime(target: str) -> str:
    """Import what an app imports before it opens anything, and return the runtime's name and version."""
    runtime: str = plugins.find("targets", target).runtime()
    importlib.import_module(runtime.partition(" ")[0])
    return runtime


def _feeds(path: Path, batch: int) -> tuple[list[Feed], list[NDArray[np.intp]]]:
    """Return batches of the inputs, each begun with another one, and the numbers of the inputs in each.

    Where inputs are few, they repeat within a batch. A batch of texts is as long as its longest, as in an app.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    n = len(next(iter(arrays.values())))
    rows = [np.arange(i, i + batch) % n for i in range(n if batch == 1 else min(n, BATCHES))]
    return [_batch(arrays, row) for row in rows], rows


def _batch(arrays: Feed, rows: NDArray[np.intp]) -> Feed:
    """Return these rows without the padding that all of them have."""
    lengths = arrays[MASK][rows].sum(axis=1) if MASK in arrays else None
    cut = slice(None) if lengths is None else slice(max(1, int(lengths.max())))
    return {name: np.ascontiguousarray(v[rows] if lengths is None else v[rows, cut]) for name, v in arrays.items()}


def _parity(last: Sequence[Feed], rows: Sequence[NDArray[np.intp]], answers: str | None) -> dict[str, Json]:
    """Return how far answers after the window are from the golden logits; without a distance where none is finite."""
    if answers is None:
        return {}
    golden = np.load(answers, allow_pickle=False)[np.concatenate(rows[: len(last)])]
    logits = np.concatenate([np.asarray(one["logits"], np.float32) for one in last])
    comparable = logits.shape == golden.shape and bool(np.isfinite(logits).all())
    return {"checked": len(golden), **(asdict(parity(golden, logits)) if comparable else {})}


def _same_answers(first: Feed, last: Feed) -> None:
    """Check that the same input still has the same answer after the window."""
    for name, before in first.items():
        a, b = np.asarray(before, np.float64), np.asarray(last[name], np.float64)
        if not np.allclose(a, b, rtol=0, atol=SAME * max(1.0, np.nanmax(np.abs(a), initial=0.0)), equal_nan=True):
            fix = "check the machine's memory and temperature, then `edgetl verify` the bundle"
            raise BadHost(f"the answers of output '{name}' changed during the run", fix=fix)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return  # the peak then includes the imports, which is above the truth, never below


def _rollup(key: str) -> int | None:
    """Return a size from /proc/self/smaps_rollup in bytes; None where the kernel keeps none."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text("ascii", "replace")
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{key}:")), None)


def _say(out: int, value: Json) -> None:
    # os.write may write less than all where the disk is nearly full, and says so to nobody.
    with os.fdopen(out, "wb", closefd=False) as file:
        file.write((json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()
