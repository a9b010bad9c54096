"""The whole recipe: each stage in a process of its own, which inherits no memory and no threads. [no torch]"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgetl import lifeline, ranks
from edgetl.errors import BadInput, EdgetlError, OutOfResources

GOES_ON = {
    "compress": (),
    "export": (3,),  # one file that cannot be shipped; the report names it as missing
    "verify": (3,),
}
PATIENCE_S = 5.0
"""How long a stage may take to end after Ctrl-C, which reaches it too when it comes from a terminal."""

PARENT = "EDGETL_PARENT"
"""The process without which a stage has no reason to go on."""

INTERRUPTED = 130

log = logging.getLogger("edgetl")


def run_stages(recipe: Path, out: Path, sets: Sequence[str], flags: Sequence[str], device: str) -> int:
    """Run compress, export, verify and profile; return the first exit code that ends the run, else 0.

    Raises:
        BadInput: there is no such device.
        BadHost: it cannot be reached, or this machine cannot stand for it, which is no reason to train first.

    """
    from edgetl import remote  # here, because every command looks into this file, a help text too
    from edgetl.device import load_device

    remote.require(load_device(device))
    overrides = [word for item in sets for word in ("--set", item)]
    commands = {
        "compress": ["--recipe", str(recipe), "--out", str(out), *overrides],
        "export": [str(out), "--no-judge"],  # the report judges: a gate missed, an invalid measurement
        "verify": [str(out)],
    }
    for stage, words in commands.items():
        if stage != "compress" and not ranks.first():
            return 0
        code = _stage([stage, *words, *flags], quiet="-q" in flags)
        if code not in (0, *GOES_ON[stage]):
            return code
    for name in _attached(out, device):
        words = ["profile", str(out), "--device", name, "--mode", "quick", "--no-judge"]
        if code := _stage([*words, *flags], quiet="-q" in flags):
            return code
    return 0


def newest(where: Path | None) -> Path:
    """Return the folder given, or the run below ./runs that was worked on last, which is printed.

    Raises:
        BadInput: there is no run.

    """
    if where is not None:
        return where
    found = [path.parent for path in Path("runs").glob("*/plan.json")]
    if not found:
        raise BadInput("there is no run below ./runs", fix="name a run folder, or make one: edgetl run demo")
    last = max(found, key=_worked_on)
    log.info("run folder: %s", last)
    return last


def bundles(where: Path) -> list[Path]:
    """Return the bundles of a run, or the bundle that was named itself."""
    from edgetl.stages.profile import run_bundles

    return run_bundles(where) if (where / "plan.json").is_file() else [where]


def end_with_parent() -> bool:
    """Return whether this is a stage; a stage is ended by the kernel with the run that started it."""
    parent = os.environ.pop(PARENT, "")
    if parent:
        lifeline.end_with_parent(int(parent))
    return bool(parent)


def _attached(run: Path, device: str) -> list[str]:
    """Return the device asked for and those of the recipe's budgets that can be measured now."""
    from edgetl.attached import absence
    from edgetl.device import load_device
    from edgetl.recipe.plan import read_plan

    found = [device]
    for name in read_plan(run)["budgets"]:
        away = "" if name in found else absence(load_device(name))
        if away:
            log.warning("%s is not measured: %s", name, away)
        elif name not in found:
            found.append(name)
    return found


def _worked_on(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run / "plan.json", run / ".lock") if path.is_file())


def _stage(words: Sequence[str], quiet: bool) -> int:
    """Run one stage with its result on our stderr, or nowhere, and return its exit code."""
    environment = {**os.environ, PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "edgetl", *words]
    out = subprocess.DEVNULL if quiet else sys.stderr.fileno()
    with subprocess.Popen(command, stdout=out, env=environment) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            _end(child)
            raise
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code == -signal.SIGKILL:
        fix = "use a smaller batch or backbone, or a larger machine; the same command continues where it stopped"
        raise OutOfResources(f"the stage '{words[0]}' was killed, as is done where memory runs out", fix=fix)
    if code < 0:
        name = signal.Signals(-code).name
        raise EdgetlError(f"the stage '{words[0]}' ended by {name}", fix="please report this as a bug in edgetl")
    return code


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.terminate()
