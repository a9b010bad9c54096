"""The calibrating process: it times one small graph and writes the rate it saw. [no torch, no pydantic]

The graphs run through the target that ships, with its options, so that a rate is what this runtime can reach here.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from edgetl import _onnx_bytes as onnx
from edgetl.errors import EdgetlError, OutOfResources
from edgetl.targets.onnx import Onnx
from edgetl.types import Feed, Json

if TYPE_CHECKING:
    from edgetl.session import Session

Kind: TypeAlias = Literal["fp32", "int8", "stream", "launch"]
Graph: TypeAlias = tuple[bytes, Feed]

CHAINED = 4
"""Matrix products in one graph, so that handing over the answer costs little beside them."""

CHAINS = (32, 96, 288)
"""Lengths of the chains of small nodes."""

WIDTH = 1024
"""Columns of the matrix that is streamed: its sums stay in the first cache."""

WARM_N, LEAST_N = 3, 5
"""Runs before the window and in it."""


@dataclass(frozen=True)
class Job:
    """What one calibrating process does."""

    kind: Kind
    size: int  # the side of the matrices; stream: bytes; launch: values in each small tensor
    threads: int
    cpus: tuple[int, ...] | None
    window_s: float  # of each graph


def main() -> None:
    """Run the job given as `FD JOB` at the end of the command line, and exit with the code of its outcome."""
    out, job = int(sys.argv[-2]), Job(**json.loads(sys.argv[-1]))
    said: dict[str, Json] = {}
    code = 0
    try:
        if job.cpus is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job.cpus)
        said["rate"] = rate(job)
    except MemoryError:
        said, code = (
            {"problem": "no memory for the working set", "fix": "free memory and try again"},
            OutOfResources.code,
        )
    except EdgetlError as error:
        said, code = {"problem": error.problem, "fix": error.fix}, error.code
    os.write(out, json.dumps(said).encode())
    sys.exit(code)


def rate(job: Job) -> float:
    """Return 10^9 operations (fp32, int8) or bytes (stream) a second, or the microseconds of a node (launch).

    At one thread the time is CPU time, which neighbours disturb least; else it is wall time.
    """
    if job.kind == "launch":
        times = [_seconds(_chain(count, job.size), job) for count in CHAINS]
        return float(np.polyfit(CHAINS, times, 1)[0]) * 1e6
    if job.kind == "stream":
        rows = max(1, job.size // (4 * WIDTH))
        return 4 * WIDTH * rows / _seconds(_stream(rows), job) / 1e9
    graph = _floats(job.size) if job.kind == "fp32" else _integers(job.size)
    return CHAINED * 2 * job.size**3 / _seconds(graph, job) / 1e9


def _floats(n: int) -> Graph:
    """Return a chain of matrix products; the weights keep the size of the values."""
    draw = np.random.default_rng(0)
    w = (draw.standard_normal((n, n), np.float32) / np.sqrt(n)).astype(np.float32)
    nodes = [onnx.node("MatMul", [f"x{i}", "w"], f"x{i + 1}") for i in range(CHAINED)]
    ends = [onnx.value("x0", (n, n))], [onnx.value(f"x{CHAINED}", (n, n))]
    return onnx.model(nodes, *ends, [onnx.weight("w", w)]), {"x0": draw.standard_normal((n, n), np.float32)}


def _integers(n: int) -> Graph:
    """Return the same in 8 bits, as the runtime computes a quantised layer: unsigned values, signed weights."""
    draw = np.random.default_rng(0)
    scalars = {"s": np.float32(0.02), "z": np.uint8(128), "zero": np.int8(0)}
    weights = [onnx.weight(name, np.array(value)) for name, value in scalars.items()]
    weights.append(onnx.weight("w", draw.integers(-127, 128, (n, n), np.int8)))
    nodes = [
        onnx.node("QLinearMatMul", [f"x{i}", "s", "z", "w", "s", "zero", "s", "z"], f"x{i + 1}") for i in range(CHAINED)
    ]
    ends = [onnx.value("x0", (n, n), "uint8")], [onnx.value(f"x{CHAINED}", (n, n), "uint8")]
    return onnx.model(nodes, *ends, weights), {"x0": draw.integers(0, 256, (n, n), np.uint8)}


def _stream(rows: int) -> Graph:
    """Return a vector times a matrix: it reads every weight once, as a network at batch 1 does.

    The matrix is an input, because the runtime would keep a second, packed copy of a weight.
    """
    ends = [onnx.value("x", (1, rows)), onnx.value("w", (rows, WIDTH))], [onnx.value("y", (1, WIDTH))]
    feed = {"x": np.ones((1, rows), np.float32), "w": np.ones((rows, WIDTH), np.float32)}
    return onnx.model([onnx.node("MatMul", ["x", "w"], "y")], *ends), feed


def _chain(count: int, n: int) -> Graph:
    """Return nodes that the runtime neither fuses nor drops and that compute next to nothing."""
    nodes = [onnx.node("Neg", [f"x{i}"], f"x{i + 1}") for i in range(count)]
    ends = [onnx.value("x0", (1, n))], [onnx.value(f"x{count}", (1, n))]
    return onnx.model(nodes, *ends), {"x0": np.ones((1, n), np.float32)}


def _seconds(graph: Graph, job: Job) -> float:
    """Return the median time of one run."""
    file, feed = graph
    session = Onnx.open(file, {}, job.threads)
    try:
        for _ in range(WARM_N):
            session.run(feed)
        clock = time.process_time_ns if job.threads == 1 else time.perf_counter_ns
        gc.disable()
        return statistics.median(_window(session, feed, clock, job.window_s)) / 1e9
    finally:
        gc.enable()
        session.close()


def _window(session: Session, feed: Feed, clock: Callable[[], int], seconds: float) -> list[int]:
    """Return the nanoseconds of each run."""
    found: list[int] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST_N or time.perf_counter() < end:
        before = clock()
        session.run(feed)
        found.append(max(1, clock() - before))
    return found


if __name__ == "__main__":
    main()
