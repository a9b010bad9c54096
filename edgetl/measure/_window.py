"""The warm-up and the timed window of a measuring process, and what the kernel says of it. [no torch, no pydantic]"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadHost
from edgetl.types import Feed

if TYPE_CHECKING:
    from edgetl.measure._probe import Job
    from edgetl.session import Session

Buffer: TypeAlias = NDArray[np.int64]

BLOCK_N, BLOCK_NS = 5, 100_000_000
"""Least inferences and nanoseconds of one block of the warm-up."""

READY = b"."
"""What a process says that waits for its turn."""

TURN_CALLS = 4
"""Least calls of a turn that are timed, where all inputs are of one shape."""


@dataclass
class Window:
    """What the timed window has seen so far."""

    n: int = 0
    ns: int = 0
    middle: int = 0  # bytes at the peak, half-way
    others: int = 0  # runnable processes and threads besides this one, half-way
    switches: int = 0  # involuntary
    turns: list[tuple[int, int, int]] = field(default_factory=list)  # begin and end in nanoseconds, and calls


def warmed(session: Session, feeds: Sequence[Feed], job: Job, buffer: Buffer) -> tuple[int, bool | None]:
    """Run blocks until the minimum is reached and, where asked, they are alike; at most five times as long."""
    medians: list[float] = []
    count, start = 0, time.perf_counter_ns()
    while True:
        size, block = 0, time.perf_counter_ns()
        now = block
        while size < BLOCK_N or (now - block < BLOCK_NS and size < len(buffer)):
            before = time.perf_counter_ns()
            session.run(feeds[count % len(feeds)])
            now = time.perf_counter_ns()
            buffer[size] = now - before
            size, count = size + 1, count + 1
        medians.append(float(np.median(buffer[:size])))
        seconds = (now - start) / 1e9
        if count < job.warmup_n or seconds < job.warmup_s:
            continue
        if not job.steady:
            return count, None
        if is_steady(medians):
            return count, True
        if seconds > 5 * job.warmup_s and count > 5 * job.warmup_n:
            return count, False


def is_steady(medians: Sequence[float]) -> bool:
    """Say whether the medians of the last three blocks differ by less than 2 % and do not fall from block to block."""
    if len(medians) < 3:
        return False
    a, b, c = medians[-3:]
    return max(a, b, c) < 1.02 * min(a, b, c) and not a > b > c


def timed(session: Session, feeds: Sequence[Feed], job: Job, wall: Buffer, cpu: Buffer) -> Window:
    """Time calls until both minima are reached, the cap, or the buffers are full; the garbage collector rests."""
    gc.collect()
    gc.disable()
    seen, switches = Window(), _status_count("nonvoluntary_ctxt_switches")
    while _goes_on(job, seen, len(wall)):
        _turn(session, feeds, job, seen, (wall, cpu))
    gc.enable()
    seen.switches = _status_count("nonvoluntary_ctxt_switches") - switches
    return seen


def _turn(session: Session, feeds: Sequence[Feed], job: Job, seen: Window, times: tuple[Buffer, Buffer]) -> None:
    """Time the calls of one turn; without turns, all that the window wants."""
    if job.turn_s is not None:
        _await_turn()
        session.run(feeds[seen.n % len(feeds)])  # those that ran meanwhile have taken the caches
    wall, cpu = times
    first, spent, least = seen.n, seen.ns, _least_calls(feeds)
    start = now = time.perf_counter_ns()
    while _goes_on(job, seen, len(wall)) if job.turn_s is None else seen.n < len(wall):
        feed = feeds[seen.n % len(feeds)]
        cpu_before, before = time.process_time_ns(), time.perf_counter_ns()
        session.run(feed)
        now = time.perf_counter_ns()
        cpu[seen.n] = time.process_time_ns() - cpu_before
        wall[seen.n] = now - before
        seen.n += 1
        seen.ns = spent + now - start
        if not seen.middle and seen.ns > job.window_s * 5e8:
            seen.middle, seen.others = status("VmHWM"), _others()
        if job.turn_s is not None and now - start >= job.turn_s * 1e9 and seen.n - first >= least:
            break
    seen.turns.append((start, now, seen.n - first))


def _least_calls(feeds: Sequence[Feed]) -> int:
    """Return the calls of a short turn; inputs of different lengths all have to be in it, or turns are not alike."""
    shapes = {tuple(value.shape for value in feed.values()) for feed in feeds}
    return TURN_CALLS if len(shapes) == 1 else len(feeds)


def _goes_on(job: Job, seen: Window, room: int) -> bool:
    wanted = seen.ns < job.window_s * 1e9 or seen.n < job.window_n
    return wanted and seen.ns < job.cap_s * 1e9 and seen.n < room


def _await_turn() -> None:
    """Tell the parent, at the other end of standard input, that this process is ready, and wait for its turn."""
    os.write(0, READY)
    if not os.read(0, 1):
        sys.exit(1)  # nobody is there any more


def _others() -> int:
    try:
        return max(0, int(Path("/proc/loadavg").read_text("ascii").split()[3].split("/")[0]) - 1)
    except OSError:
        return 0


def status(key: str) -> int:
    """Return a size from /proc/self/status in bytes."""
    return _status_count(key) * 1024


def _status_count(key: str) -> int:
    try:
        text = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError as e:
        raise BadHost("this system has no /proc, where memory is read", fix="profile on Linux") from e
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:")), 0)
