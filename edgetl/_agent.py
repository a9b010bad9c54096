"""The device's side of a remote profile: it measures here, whether or not anybody still listens. [no torch]

A run is one folder: `files/` (pushed, by sha256), `bundles/`, `package/` (this code), `lines` (JSON, one object a
line), `result.json` (written last). Whoever measures holds `lock`. Nothing stays running when it is done.
"""

# What runs before the versions are checked has to run on old Pythons too.
from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from edgetl.types import Json

    Say: TypeAlias = Callable[[Json], None]

BEAT_S = 2.0
POLL_S = 0.25
PYTHON = (3, 11)
BEGIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from edgetl._agent import main; main()"
"""How this module is started: an isolated interpreter sees the pushed package and what is installed, nothing else."""


def main() -> None:
    """Run one command: `probe MODULES`, `start FOLDER JOB MODULES`, `run FOLDER JOB` or `follow FOLDER`."""
    command, *words = sys.argv[1:]
    if command == "probe":
        _print(_lacking(words[0]) or _probed())
    elif command == "start":
        _print(_lacking(words[2]) or start(Path(words[0]).resolve(), words[1]))
    elif command == "run":
        run(Path(words[0]), words[1])
    elif command == "follow":
        follow(Path(words[0]))


def start(folder: Path, job: str) -> Json:
    """Start measuring in a process of its own session, unless that is done or under way, and say which."""
    if (folder / "result.json").is_file():
        return {"event": "done"}
    with _lock(folder) as handle:
        if handle is None:
            return {"event": "running"}
        (folder / "lines").touch()
        with (folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-I", "-c", BEGIN, str(folder / "package"), "run", str(folder), job]
            # The lock goes with the process: it is held from here until that ends, however it ends.
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                pass_fds=(handle,),
                start_new_session=True,
            )
    return {"event": "started"}


def run(folder: Path, job: str) -> None:
    """Measure what the job says and write `result.json`, a result or an error, as the last thing."""
    with (folder / "lines").open("a", encoding="utf-8") as out:
        lock = threading.Lock()

        def say(value: Json) -> None:
            with lock:
                out.write(json.dumps(value) + "\n")
                out.flush()

        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(say, ended), daemon=True)
        beat.start()
        try:
            result = _result(folder, job, say)
        finally:
            ended.set()
            beat.join()
        _write(folder / "result.json", result)


def follow(folder: Path) -> None:
    """Print the lines until the result is there or nobody measures any more."""
    with (folder / "lines").open("rb") as file:
        while True:
            over = (folder / "result.json").is_file() or not _held(folder)
            for text in file:
                os.write(1, text)
            if over:
                break
            time.sleep(POLL_S)
    _print({"event": "end" if (folder / "result.json").is_file() else "gone"})


def boot() -> str:
    """Return what the kernel calls this start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _result(folder: Path, job: str, say: Say) -> Json:
    """Return the measurements, or the error that ended them, as plain data."""
    try:
        _same_boot(folder)
        return {"schema_version": 1, "boot_id": boot(), "measurements": _measure(folder, job, say)}
    except Exception as error:
        return {"schema_version": 1, "boot_id": boot(), "error": _told(error)}


def _measure(folder: Path, job: str, say: Say) -> list[Json]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(scratch)
    from edgetl.device import Device
    from edgetl.stages.profile import profile

    _log(say)
    spec = json.loads((folder / "files" / job).read_bytes())
    bundles = _bundles(folder, spec["bundles"])
    found = profile(
        bundles,
        Device.model_validate(spec["device"]),
        out=folder / "kept" if spec.get("raw") else None,
        mode=spec["mode"],
        seed=spec["seed"],
        baseline=None if spec["baseline"] is None else bundles[spec["baseline"]],
    )
    _name_samples(folder)
    return [one.to_json() for one in found]


def _name_samples(folder: Path) -> None:
    """Give the files of samples the names by which they are fetched."""
    from edgetl import store

    (folder / "raw").mkdir(exist_ok=True)
    for path in sorted((folder / "kept").rglob("*.npz")):
        path.replace(folder / "raw" / f"{store.file_digest(path)}.npz")


def _bundles(folder: Path, wanted: list[dict[str, str]]) -> list[Path]:
    """Give the pushed files their names; profiling checks every one of them against its hash."""
    made = []
    for number, names in enumerate(wanted):
        target = folder / "bundles" / str(number)
        if not target.is_dir():
            temporary = target.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, digest in names.items():
                shutil.copyfile(folder / "files" / digest, temporary / name)
            temporary.rename(target)
        made.append(target)
    return made


def _same_boot(folder: Path) -> None:
    """Note this start of the machine; refuse to go on with what an earlier one began."""
    from edgetl.errors import BadHost

    note = folder / "boot"
    if note.is_file() and note.read_text("ascii") != boot():
        raise BadHost("the device restarted during the run", fix="run the same command again; it starts from new")
    note.write_text(boot(), "ascii")


def _told(error: Exception) -> Json:
    from edgetl.errors import EdgetlError

    if isinstance(error, EdgetlError):
        return {"code": error.code, "problem": _line(error.problem), "fix": _line(error.fix)}
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or isinstance(error, MemoryError):
        what = "disk" if full else "memory"
        return {"code": 6, "problem": f"the device has no {what} left", "fix": f"free some {what} there and try again"}
    fix = "see that the device has the same versions as this machine; report it if it has"
    problem = _line(f"the program on the device failed: {type(error).__name__}: {error}")
    return {"code": 4, "problem": problem, "fix": fix}


def _line(text: str) -> str:
    """Return the text as the other side takes it: one printable line, not long."""
    return "".join(c if c.isprintable() else " " for c in text[:300])


def _probed() -> Json:
    from edgetl import device

    return {"event": "probed", "device": device.probe().model_dump(mode="json", by_alias=True)}


def _lacking(modules: str) -> Json | None:
    """Return what this Python lacks, or None."""
    if sys.version_info < PYTHON:
        return {"event": "old", "python": "{}.{}.{}".format(*sys.version_info[:3])}
    missing = [name for name in modules.split(",") if importlib.util.find_spec(name) is None]
    return {"event": "missing", "modules": missing} if missing else None


def _beat(say: Say, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):  # a full disk ends the run where it measures, not here
            say({"event": "beat"})


def _log(say: Say) -> None:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say({"event": "log", "text": _line(record.getMessage())})

    logger = logging.getLogger("edgetl")
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [Lines()], False


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int | None]:
    """Yield the descriptor of the run's lock, or None where another process holds it."""
    handle = os.open(str(folder / "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield handle if locks.take(handle) else None
    finally:
        os.close(handle)


def _held(folder: Path) -> bool:
    with _lock(folder) as handle:
        return handle is None


def _write(path: Path, value: Json) -> None:
    from edgetl import store

    store.write_json(path, value)


def _print(value: Json) -> None:
    os.write(1, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()
