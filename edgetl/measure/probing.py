"""Start measuring processes and read what they saw. [no torch, no runtime: the parent stays small]"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from edgetl.errors import MEASURING, BadHost, EdgetlError, OutOfResources, Refused
from edgetl.measure import containers, limits
from edgetl.measure._probe import Job
from edgetl.measure.instruments import NONE, Instruments, Readings
from edgetl.plugins import FOLDERS_VARIABLE
from edgetl.types import Json

START = "import sys; sys.path.insert(0, sys.argv[1]); from edgetl.measure._probe import main; main()"
"""An isolated interpreter ignores the working folder and PYTHONPATH; the package is found where this one was."""

PACKAGE = str(Path(__file__).parents[2])

KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "SYSTEMROOT",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    FOLDERS_VARIABLE,
)
"""The only variables that a measuring process inherits."""

TOOLS = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST")
"""Besides these, where its memory is limited: what limits it is reached through them."""

GRACE_S = 5.0


@dataclass(frozen=True)
class Wait:
    """How long a process may take, and what is read meanwhile."""

    timeout_s: float
    watch: Instruments


@dataclass(frozen=True)
class Streams:
    """Where a process writes."""

    out: int  # the descriptor of its result
    errors: IO[bytes]
    printed: bool  # its result comes on standard output


@dataclass(frozen=True)
class Sample:
    """One measuring process. Samples and times in nanoseconds, sizes in bytes beyond the bare runtime's."""

    runtime: str
    provider: str
    wall: list[int]
    cpu: list[int]
    seconds: float  # length of the window
    load_ns: int
    first_ns: int
    process_ns: int  # start of the process to its first output
    base: int  # of the bare runtime
    load_peak: int
    peak: int
    steady_rss: int
    growth: float  # of the peak, from the middle of the window to its end
    warm: int
    steady: bool | None
    switches: int
    others: int
    window_ns: int = 0  # when the window began, on the clock that all processes share
    pss: int | None = None
    private_dirty: int | None = None
    joules: float | None = None  # in the window
    gpu_peak: int | None = None
    mhz: Sequence[float] = ()  # clocks read in the window, of the slowest core or of the GPU
    reasons: Sequence[int] = ()  # why the GPU's clocks were low, at each reading in the window
    checked: int = 0  # answers after the window that were compared with golden logits
    max_abs: float | None = None  # their largest difference; None: one was not finite, or none was compared
    max_rel: float | None = None


def probe(job: Job, pad: int, timeout_s: float, watch: Instruments = NONE) -> Sample | None:
    """Run one job in a fresh process; None when it did not finish in time and was stopped.

    `pad` bytes lengthen the environment: its size shifts the stack, and with it the time (Mytkowicz et al. 2009).

    Raises:
        Refused: the artifact is refused, or it crashed the runtime while it was opened.
        BadHost: the runtime failed or crashed while running.
        OutOfResources: the process found no memory, or the system killed it.

    """
    with (
        limits.enclosed(job.limit, _reads(job)) as group,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        python, place = (
            (containers.PYTHON, containers.RESULT) if group.contained else (sys.executable, str(out.fileno()))
        )
        command = [*group.prefix, python, "-I", "-c", START, PACKAGE, place, json.dumps(asdict(job))]
        streams = Streams(out.fileno(), errors, printed=group.contained)
        code, seen = _run(command, streams, environment(pad, limited=group.limit is not None), Wait(timeout_s, watch))
        if code is None:
            return None
        group.check(code, job.bundle)
        out.seek(0)
        errors.seek(0)
        last = _last(out.read())
        if code == 0 and last["phase"] == "done":
            facts: dict[str, Json] = {field.name: last[field.name] for field in fields(Sample) if field.name in last}
            window = last["window_ns"], last["window_ns"] + round(last["seconds"] * 1e9)
            read: dict[str, Json] = {
                "joules": seen.joules(*window),
                "mhz": seen.mhz(*window),
                "reasons": seen.why_slow(*window),
            }
            return Sample(**facts, **read, gpu_peak=seen.gpu_peak)
        raise _explained(code, last, job.bundle, errors.read().decode("utf-8", "replace"))


def _last(said: bytes) -> dict[str, Json]:
    """Return the last whole line; a process that is killed, or finds no space, may leave a part of one behind it."""
    whole, _, _ = said.rpartition(b"\n")
    found: dict[str, Json] = json.loads(whole.splitlines()[-1]) if whole else {"phase": "start"}
    return found


def _reads(job: Job) -> list[Path]:
    """Return the files and folders that a measuring process reads, besides its Python's."""
    named = (job.bundle, job.inputs, job.answers, *os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep))
    return [Path(__file__).parents[1], *(Path(one).resolve() for one in named if one)]


def environment(pad: int, *, limited: bool = False) -> dict[str, str]:
    """Return the variables of a measuring process, lengthened by so many bytes."""
    kept = {name: os.environ[name] for name in (*KEPT, *(TOOLS if limited else ())) if name in os.environ}
    return {**kept, "EDGETL_PAD": "x" * pad}


def _run(
    command: list[str], streams: Streams, environment: Mapping[str, str], wait: Wait
) -> tuple[int | None, Readings]:
    """Return the exit code, negative for a signal, None on time-out; and what the instruments read meanwhile.

    No process of its group survives.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=streams.out if streams.printed else subprocess.DEVNULL,
        stderr=streams.errors,
        env=environment,
        pass_fds=(streams.out,),
        start_new_session=True,
    )
    readings = Readings()
    try:
        return _wait(process, wait, readings), readings
    except subprocess.TimeoutExpired:
        return None, readings
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], wait: Wait, readings: Readings) -> int:
    period = wait.watch.period_s
    if period is None:
        return process.wait(wait.timeout_s)
    end = time.monotonic() + wait.timeout_s
    while time.monotonic() < end:
        readings.take(wait.watch, process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(period)
            readings.take(wait.watch, process.pid)
            return code
    raise subprocess.TimeoutExpired(process.args, wait.timeout_s)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _explained(code: int, last: Mapping[str, Json], bundle: str, errors: str) -> EdgetlError:
    """Return the error that the end of a measuring process means."""
    if last["phase"] == "error":
        return MEASURING.get(code, BadHost)(f"{bundle}: {last['problem']}", fix=last["fix"])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        fix = "free memory, or use a smaller artifact"
        return OutOfResources(f"{bundle}: the system killed the measuring process, most likely for memory", fix=fix)
    if code < 0 and last["phase"] == "load":
        problem = f"{bundle}: the artifact crashed the runtime while it was opened ({signal.Signals(-code).name})"
        return Refused(problem, fix="do not use this file; export it again")
    if code < 0:
        problem = f"{bundle}: the runtime crashed while running ({signal.Signals(-code).name})"
        return BadHost(problem, fix="run `edgetl doctor`; try another version of the runtime")
    tail = errors.strip().splitlines()
    said = f": {tail[-1][:200]}" if tail else ""
    fix = "run `edgetl doctor`; report it if nothing is wrong there"
    return BadHost(f"{bundle}: the measuring process ended with code {code}{said}", fix=fix)
