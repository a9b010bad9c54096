"""Processes measured beside each other: in turns of a few calls, so that a slow second is everybody's. [no torch]

Where a machine's speed changes within seconds, as on a shared host, whole windows one after another see different
machines, and their ratio is that of the machines. Turns are what Google Benchmark's random interleaving does within one
process, across processes.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from edgetl.measure._probe import Job
from edgetl.measure._window import READY
from edgetl.measure.instruments import Instruments
from edgetl.measure.probing import GRACE_S, Sample, Started, probe, started

TURN_S = 0.05


@dataclass(frozen=True)
class Start:
    """How one process begins: its job, the length of its environment in bytes, and how long it may let us wait."""

    job: Job
    pad: int
    timeout_s: float


def one_round(
    starts: Mapping[str, Start], watch: Instruments, draw: random.Random | None
) -> Iterator[tuple[str, Sample | None]]:
    """Yield each process's sample, None where it did not finish in time. Errors: those of `Started.sample`.

    With `draw` they take turns, in an order drawn anew for every cycle; without, one runs after the other.
    """
    if draw is not None:
        yield from _beside(starts, watch, draw).items()
        return
    for key, start in starts.items():
        yield key, probe(start.job, start.pad, start.timeout_s, watch)


def _beside(starts: Mapping[str, Start], watch: Instruments, draw: random.Random) -> dict[str, Sample | None]:
    """Return each process's sample; they start and warm up one by one, and then take turns."""
    found: dict[str, Sample | None] = dict.fromkeys(starts)
    with contextlib.ExitStack() as stack:
        waiting: dict[str, _Guest] = {}
        for key, start in starts.items():
            guest = stack.enter_context(_seated(start))
            if guest.heard(watch) == READY:
                waiting[key] = guest
            else:
                found[key] = guest.sample()
        while waiting:
            for key in draw.sample(list(waiting), len(waiting)):
                if not waiting[key].takes_turn(watch):
                    found[key] = waiting.pop(key).sample()
    return found


@dataclass(frozen=True)
class _Guest:
    """A process and our end of its standard input."""

    one: Started
    line: socket.socket
    timeout_s: float

    def takes_turn(self, watch: Instruments) -> bool:
        """Give the process a turn; say whether it waits for another."""
        self.one.readings.take(watch, self.one.process.pid)
        with contextlib.suppress(ConnectionError):  # it ended between its turns
            self.line.sendall(READY)
        said = self.heard(watch)
        self.one.readings.take(watch, self.one.process.pid)
        return said == READY

    def heard(self, watch: Instruments) -> bytes | None:
        """Return what the process says: nothing once it has ended, None where it lets us wait too long."""
        end = time.monotonic() + self.timeout_s
        while (left := end - time.monotonic()) > 0:
            self.line.settimeout(left if watch.period_s is None else TURN_S / 2)
            try:
                return self.line.recv(len(READY))
            except TimeoutError:
                self.one.readings.take(watch, self.one.process.pid)
            except ConnectionError:
                return b""
        return None

    def sample(self) -> Sample | None:
        """Return what the process saw; None where it has not ended."""
        try:
            code = self.one.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return None
        return self.one.sample(code)


@contextlib.contextmanager
def _seated(start: Start) -> Iterator[_Guest]:
    ours, theirs = socket.socketpair()
    with ours, theirs, started(replace(start.job, turn_s=TURN_S), start.pad, theirs.fileno()) as one:
        theirs.close()  # so that we hear when the process ends
        yield _Guest(one, ours, start.timeout_s)
