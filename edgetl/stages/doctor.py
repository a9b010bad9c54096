"""What this machine and its packages can do, with the one line that mends what they cannot. [no torch]"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgetl import device, plugins
from edgetl.types import Json

OLDEST_PYTHON = (3, 11)
LEAST_DISK_GB = 2.0
EXTRAS = ("compress", "data")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    state: Literal["good", "absent", "broken"]  # absent: only what needs it cannot be done
    fix: str = ""

    def to_json(self) -> Json:
        """Return the plain data."""
        return asdict(self)


def doctor(target: str | None) -> list[Finding]:
    """Return what was found; with a target, only what concerns it.

    Raises:
        BadInput: the target is unknown.

    """
    if target is not None:
        return [*_runtimes(), _target(target)]
    return [*_host(), *_packages(), *_runtimes(), *(_target(name) for name in plugins.names("targets"))]


def _host() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= OLDEST_PYTHON
    yield Finding("python", python, "good" if good else "broken", "" if good else "install Python 3.11 or newer")
    cores = len(os.sched_getaffinity(0))
    yield Finding("processor", f"{device.cpu_model()}, {cores} usable cores", "good")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    short = free < LEAST_DISK_GB
    yield Finding("disk", f"{free:.0f} GB free here", "broken" if short else "good", "free some space" if short else "")


def _packages() -> Iterator[Finding]:
    """Report each extra by the first of its packages that is not there."""
    for extra in EXTRAS:
        names = _required(extra)
        missing = [name for name in names if not _version(name)]
        found = ", ".join(f"{n} {_version(n)}" for n in names if n not in missing) or "nothing"
        state: Literal["good", "absent"] = "absent" if missing else "good"
        yield Finding(f"extra [{extra}]", found, state, f'pip install "edgetl[{extra}]"' if missing else "")
    if find_spec("torchvision") is not None:
        fix = "pip uninstall torchvision, unless torch is its matching build"
        yield Finding("torchvision", "installed; a build that does not match torch breaks transformers", "absent", fix)


def _runtimes() -> Iterator[Finding]:
    flavours = [f"{name} {_version(name)}" for name in RUNTIMES if _version(name)]
    if len(flavours) > 1:
        fix = f"pip uninstall -y {' '.join(RUNTIMES)} && pip install onnxruntime"
        yield Finding("onnxruntime", f"two flavours overwrite each other: {', '.join(flavours)}", "broken", fix)
    elif not flavours:
        yield Finding("onnxruntime", "none", "broken", "pip install onnxruntime")
    else:
        import onnxruntime

        names = ", ".join(onnxruntime.get_available_providers())
        yield Finding("onnxruntime", f"{flavours[0]}: {names}", "good")


def _target(name: str) -> Finding:
    plugin = plugins.find("targets", name)
    try:
        return Finding(f"target {name}", plugin.runtime(), "good")
    except ImportError as e:
        return Finding(f"target {name}", f"{e}", "absent", f'pip install "edgetl[{name}]"')


def _required(extra: str) -> list[str]:
    """Return the packages of one of our extras, from the installed metadata."""
    mark = f'extra == "{extra}"'
    lines = [r for r in requires("edgetl") or [] if mark in r.replace("'", '"')]
    return [line.split(";")[0].split(">")[0].split("=")[0].strip() for line in lines]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
