"""What this machine and its packages can do, with the one line that mends what they cannot. [no torch]"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgetl import bundle, device, plugins
from edgetl.errors import BadInput, EdgetlError
from edgetl.finding import Finding
from edgetl.providers import acceleration
from edgetl.stages.profile import run_bundles
from edgetl.stages.run import newest

OLDEST_PYTHON = (3, 11)
LEAST_DISK_GB = 2.0
EXTRAS = ("compress", "data")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


def doctor(target: str | None) -> list[Finding]:
    """Return what was found; with a target, only what concerns it.

    Raises:
        BadInput: the target is unknown.

    """
    if target is not None:
        return [*_runtimes(), *acceleration(), _target(target), *_bundles(target)]
    targets = (_target(name) for name in plugins.names("targets"))
    return [*_host(), *_packages(), *_runtimes(), *acceleration(), *targets]


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


def _bundles(target: str) -> Iterator[Finding]:
    """Report whether the runtime opens what the newest run below this folder ships for a target."""
    try:
        found = [bundle.open_bundle(folder) for folder in run_bundles(newest(None))]
    except BadInput:
        return  # there is no run, or nothing is exported
    for one in (one for one in found if one.manifest["target"] == target):
        manifest = one.manifest
        what = f"bundle {manifest['name']} {manifest['precision']}"
        needs = f"opset {manifest['opset']}, needs {manifest['runtime']['name']} {manifest['runtime']['needs']}"
        try:
            bundle.open_session(one).close()
        except EdgetlError as error:
            yield Finding(what, f"{needs}: {error.problem}", "broken", error.fix)
        else:
            yield Finding(what, f"{needs}: opens", "good")


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
