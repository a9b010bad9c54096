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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
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
class Sample:
    """One measuring process. Samples and times in nanoseconds, sizes in bytes beyond the bare runtime's."""

    runtime: str
    provider: str
    wall: list[int]
    cpu: list[int]
    seconds: float  # length of the window, all its turns
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
    turns: Sequence[tuple[int, int, int]] = ()  # their begin and end on the clock that all processes share, and calls
    pss: int | None = None
    private_dirty: int | None = None
    joules: float | None = None  # in the window
    gpu_peak: int | None = None
    mhz: Sequence[float] = ()  # clocks read in the window, of the slowest core or of the GPU
    reasons: Sequence[int] = ()  # why the GPU's clocks were low, at each reading in the window
    checked: int = 0  # answers after the window that were compared with golden logits
    max_abs: float | None = None  # their largest difference; None: one was not finite, or none was compared
    max_rel: float | None = None


@dataclass(frozen=True)
class Started:
    """A measuring process that runs, and what the instruments read meanwhile."""

    job: Job
    process: subprocess.Popen[bytes]
    group: limits.Group
    out: IO[bytes]
    errors: IO[bytes]
    readings: Readings

    def sample(self, code: int) -> Sample:
        """Return what it saw, once it ended with this exit code, negative for a signal.

        Raises:
            Refused: the artifact is refused, or it crashed the runtime while it was opened.
            BadHost: the runtime failed or crashed while running.
            OutOfResources: the process found no memory, or the system killed it.

        """
        self.group.check(code, self.job.bundle)
        self.out.seek(0)
        self.errors.seek(0)
        last = _last(self.out.read())
        if code or last["phase"] != "done":
            raise _explained(code, last, self.job.bundle, self.errors.read().decode("utf-8", "replace"))
        facts: dict[str, Json] = {field.name: last[field.name] for field in fields(Sample) if field.name in last}
        seen, spans = self.readings, [(begin, end) for begin, end, _ in last["turns"]]
        joules = [seen.joules(*span) for span in spans]
        read: dict[str, Json] = {
            "joules": None if None in joules else sum(joules),
            "mhz": [mhz for span in spans for mhz in seen.mhz(*span)],
            "reasons": [bits for span in spans for bits in seen.why_slow(*span)],
        }
        return Sample(**facts, **read, gpu_peak=seen.gpu_peak)


def probe(job: Job, pad: int, timeout_s: float, watch: Instruments = NONE) -> Sample | None:
    """Run one job in a fresh process; None when it did not finish in time and was stopped. Errors: `Started.sample`.

    `pad` bytes lengthen the environment: its size shifts the stack, and with it the time (Mytkowicz et al. 2009).
    """
    with started(job, pad) as one:
        code = _wait(one, timeout_s, watch)
        return None if code is None else one.sample(code)


@contextlib.contextmanager
def started(job: Job, pad: int, stdin: int = subprocess.DEVNULL) -> Iterator[Started]:
    """Yield a fresh process; none of its group survives."""
    with (
        limits.enclosed(job.limit, _reads(job)) as group,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        python, place = (
            (containers.PYTHON, containers.RESULT) if group.contained else (sys.executable, str(out.fileno()))
        )
        said = json.dumps(asdict(replace(job, started_ns=time.perf_counter_ns())))
        process = subprocess.Popen(
            [*group.prefix, python, "-I", "-c", START, PACKAGE, place, said],
            stdin=stdin,
            stdout=out if group.contained else subprocess.DEVNULL,
            stderr=errors,
            env=environment(pad, limited=group.limit is not None),
            pass_fds=(out.fileno(),),
            start_new_session=True,
        )
        try:
            yield Started(job, process, group, out, errors, Readings())
        finally:
            _stop(process)


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


def _wait(one: Started, timeout_s: float, watch: Instruments) -> int | None:
    """Return the exit code, negative for a signal; None where the time is over."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        one.readings.take(watch, one.process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = one.process.wait(left if watch.period_s is None else watch.period_s)
            one.readings.take(watch, one.process.pid)
            return code
    return None


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
