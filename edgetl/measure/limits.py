"""The memory and cores of a smaller device: each measuring process in its own control group or container. [no torch]"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.errors import BadHost, BadInput, OutOfResources
from edgetl.measure import containers
from edgetl.plugins import nearest

if TYPE_CHECKING:
    from edgetl.device import Device

CGROUPS = Path("/sys/fs/cgroup")
"""Where the kernel shows control groups, of version 2 only."""

UNITS: Mapping[str, int] = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
LEAST = 16_000_000
"""Below this a runtime does not even start."""

NAMES = ("memory", "cpus")

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_ENTER = ("sh", "-c", 'echo $$ > "$1" && shift && exec "$@"', "sh")
"""A process that enters a group before it becomes the command, so that the group sees all of its memory."""


@dataclass(frozen=True)
class Group:
    """A control group with a memory limit; without `limit` there is none."""

    limit: int | None = None  # bytes
    prefix: tuple[str, ...] = ()  # of a command that runs in it
    folder: Path | None = None  # where the kernel shows it; None: only a service manager knows
    contained: bool = False  # a container's own Python runs the command, and its result is what it prints

    def check(self, code: int, what: str) -> None:
        """Check that a process with this exit code was not killed for the limit.

        Raises:
            OutOfResources: it was.

        """
        if self.limit is None or not self._killed(code):
            return
        peak = self._number("memory.peak")
        used = "not available" if peak is None else f"{peak / 1e6:.1f} MB"
        problem = f"{what}: killed at the memory limit of {self.limit / 1e6:.1f} MB (peak: {used})"
        raise OutOfResources(problem, fix="use int8 weights, a smaller student, or a larger --limit memory=...")

    def _killed(self, code: int) -> bool:
        if self.folder is None:
            return code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return bool(self._number("memory.events", "oom_kill"))

    def _number(self, file: str, key: str = "") -> int | None:
        """Return the number in a file of the group, behind a key where there is one."""
        assert self.folder is not None or file == "memory.peak"
        try:
            words = (self.folder / file).read_text("ascii").split() if self.folder else []
            return int(words[words.index(key) + 1 if key else 0])
        except (OSError, ValueError, IndexError):
            return None


def limited(device: Device, text: str | None) -> Device:
    """Return a device with less memory or fewer cores, given as "memory=512MB,cpus=1", under a name that says so.

    Raises:
        BadInput: the text cannot be read.
        BadHost: the device has fewer cores.

    """
    from edgetl.device import usable_cpus
    from edgetl.links import LOCAL

    if text is None:
        return device
    memory, cores = _read(text)
    changes: dict[str, object] = {}
    name = device.name
    if memory is not None:
        name += f"-{memory / 1e6:.15g}mb"
        changes["memory"] = device.memory.model_copy(update={"limit_bytes": memory})
    if cores is not None:
        name += f"-{cores}cpu"
        cpus = device.cpus or (usable_cpus() if device.link == LOCAL else ())
        if not cpus:
            raise BadInput(f"--limit: {device.name} does not say which cpus it has", fix="list `cpus` in its file")
        if cores > len(cpus):
            raise BadHost(f"--limit: {device.name} has {len(cpus)} usable cpus, not {cores}", fix="ask for fewer")
        changes |= {"cpus": cpus[:cores], "threads": min(device.threads, cores)}
    return device.model_copy(update={**changes, "name": name})


@contextlib.contextmanager
def enclosed(limit: int | None, reads: Sequence[Path] = ()) -> Iterator[Group]:
    """Yield a group with a memory limit in bytes, swap excluded, which is gone afterwards; with None, no group.

    It is a group of the kernel's, a scope of systemd's or a container, whichever is allowed here first; a container
    sees the files and folders in `reads` and no others.

    Raises:
        BadHost: this user may not limit memory here.

    """
    if limit is None:
        yield Group()
    elif parent := _parent():
        folder = parent / f"edgetl-{secrets.token_hex(4)}"
        try:
            _make(folder, limit)
            yield Group(limit, (*_ENTER, str(folder / "cgroup.procs")), folder)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()
    elif scope := _scope():
        yield Group(limit, (*scope, "-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0", "--"))
    else:
        groups = "memory" in _controllers()
        lacks = "no writable group and no systemd-run --scope" if groups else "no cgroup v2 with memory"
        with containers.contained(limit, reads, lacks) as prefix:
            yield Group(limit, prefix, contained=True)


def _read(text: str) -> tuple[int | None, int | None]:
    """Return bytes and cores of a text such as "memory=512MB,cpus=1"."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in NAMES:
            raise BadInput(f"--limit: no limit '{name}'", fix=nearest(name, NAMES))
        size = _SIZE.fullmatch(value)
        unit = UNITS.get(size[2]) if size and (name == "memory" or not size[2]) else None
        number = round(float(size[1]) * unit) if size and unit else 0
        if number < 1 or (name == "cpus" and not value.isdecimal()):
            example = "memory=512MB" if name == "memory" else "cpus=1"
            raise BadInput(f"--limit: {part.strip()!r} is not possible", fix=f"write {example}")
        found[name] = number
    if found.get("memory", LEAST) < LEAST:
        raise BadInput("--limit: no runtime starts in so little memory", fix=f"give at least {LEAST / 1e6:g}MB")
    return found.get("memory"), found.get("cpus")


def _parent() -> Path | None:
    """Return the nearest group around this process in which it may make others with a memory limit."""
    try:
        own = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    except OSError:
        return None
    place = next((line.removeprefix("0::") for line in own if line.startswith("0::")), "/")
    folder = CGROUPS / place.lstrip("/")
    around = [one for one in (folder, *folder.parents) if one.is_relative_to(CGROUPS)]
    return next((one for one in around if _may(one)), None)


def _make(folder: Path, limit: int) -> None:
    try:
        folder.mkdir()
        (folder / "memory.max").write_text(str(limit), "ascii")
    except OSError as e:
        raise BadHost(f"--limit: {folder} cannot be made: {e.strerror}", fix="leave out --limit memory=...") from e
    with contextlib.suppress(OSError):  # a kernel without swap has no such file
        (folder / "memory.swap.max").write_text("0", "ascii")


def _may(folder: Path) -> bool:
    try:
        passed_on = (folder / "cgroup.subtree_control").read_text("ascii").split()
    except OSError:
        return False
    return "memory" in passed_on and os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def _scope() -> tuple[str, ...] | None:
    """Return the command that runs another in a scope of systemd; None where this user may not."""
    command = ("systemd-run", "--scope", "--quiet", "--collect", *(() if os.getuid() == 0 else ("--user",)))
    if shutil.which(command[0]) and "memory" in _controllers():
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            tried = subprocess.run(
                [*command, "-p", "MemoryMax=64M", "true"], capture_output=True, check=False, timeout=10
            )
            if tried.returncode == 0:
                return command
    return None


def _controllers() -> list[str]:
    try:
        return (CGROUPS / "cgroup.controllers").read_text("ascii").split()
    except OSError:
        return []
