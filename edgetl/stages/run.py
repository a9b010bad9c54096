"""The whole recipe: each stage in a process of its own, which inherits no memory and no threads. [no torch]"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgetl.errors import BadInput

GOES_ON = {
    "compress": (),
    "export": (3,),  # a gate missed is told again, with all others, by the report
    "verify": (3,),
    "profile": (3, 4),  # an invalid measurement: the report says "not measured"
}
PARENT = "EDGETL_PARENT"
"""The process without which a stage has no reason to go on."""

log = logging.getLogger("edgetl")


def run_stages(recipe: Path, out: Path, sets: Sequence[str], flags: Sequence[str], device: str) -> int:
    """Run compress, export, verify and profile; return the first exit code that ends the run, else 0."""
    overrides = [word for item in sets for word in ("--set", item)]
    commands = {
        "compress": ["--recipe", str(recipe), "--out", str(out), *overrides],
        "export": [str(out)],
        "verify": [str(out)],
        "profile": [str(out), "--device", device],
    }
    for stage, words in commands.items():
        code = _stage([stage, *words, *flags])
        if code not in (0, *GOES_ON[stage]):
            return code
    return 0


def newest(where: Path | None) -> Path:
    """Return the folder given, or the run below ./runs that was worked on last, which is printed.

    Raises:
        BadInput: there is no run.

    """
    if where is not None:
        return where
    found = sorted(Path("runs").glob("*/plan.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise BadInput("there is no run below ./runs", fix="name a run folder, or make one: edgetl run demo")
    log.info("run folder: %s", found[-1].parent)
    return found[-1].parent


def bundles(where: Path) -> list[Path]:
    """Return the bundles of a run, or the bundle that was named itself."""
    from edgetl.stages.profile import run_bundles

    return run_bundles(where) if (where / "plan.json").is_file() else [where]


def end_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it; a killed run leaves no stage behind."""
    parent = os.environ.pop(PARENT, "")
    if not parent or sys.platform != "linux":
        return
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)


def _stage(words: Sequence[str]) -> int:
    """Run one stage with its result on our stderr, and return its exit code."""
    environment = {**os.environ, PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "edgetl", *words]
    with subprocess.Popen(command, stdout=sys.stderr.fileno(), env=environment) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise
    return 128 - code if code < 0 else code
