"""Device files that edgetl writes: this machine, probed or calibrated, for `--device FILE` to read back. [no torch]"""

from __future__ import annotations

import re
from pathlib import Path

from edgetl import store
from edgetl.device import LOCAL, NAME, Device, probe
from edgetl.errors import BadHost, BadInput
from edgetl.recipe import yaml12

_PROBED = """\
This machine as edgetl probed it: the values are those of its kernel, nothing was timed.
Change threads, cpus and budgets as you need. `edgetl devices calibrate --device FILE` adds what it can do at best."""

_CALIBRATED = """\
Calibrated by edgetl: under `roofline` and `noise` all values are measured here, through the runtime that ships.
Rates are of CPU time at one thread, of wall time at more; ci95 holds their 95 % intervals."""


def free_place(out: Path | None, name: str) -> Path:
    """Return where a device file of this name goes, `NAME.yaml` unless a path is given; nothing is overwritten.

    Raises:
        BadInput: the name cannot be a device's, or something lies there.

    """
    if not re.fullmatch(NAME, name):
        raise BadInput(f"--name {name!r} is no device name", fix="use small letters, digits, dots and dashes")
    path = out or Path(f"{name}.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise BadInput(f"--out {path}: a device file ends in .yaml", fix=f"write --out {path}.yaml")
    if path.exists():
        raise BadInput(f"{path} is there already", fix="choose another name with --out, or delete it first")
    return path


def write_probed(out: Path | None, name: str = LOCAL) -> Path:
    """Write this machine as a device file and return its path.

    Raises:
        BadInput: the name cannot be a device's, or something lies there.

    """
    path = free_place(out, name)
    write_device(probe().model_copy(update={"name": name, "notes": ""}), path, _PROBED)
    return path


def write_calibrated(device: Device, path: Path) -> None:
    """Write a calibrated device, its values marked as measured."""
    notes = "" if device.name == LOCAL else device.notes
    write_device(device.model_copy(update={"notes": notes}), path, _CALIBRATED)


def write_device(device: Device, path: Path, header: str) -> None:
    """Write a device file that `read_device` reads back, its first lines the header as comments.

    Raises:
        OutOfResources: the disk is full.
        BadHost: the folder cannot be written.

    """
    plain = device.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = yaml12.write({key: value for key, value in plain.items() if value not in ({}, [], "")})
    try:
        store.write_bytes(path, ("".join(f"# {line}\n" for line in header.splitlines()) + text).encode())
    except OSError as e:
        raise BadHost(f"cannot write {path}: {e.strerror}", fix="choose another folder with --out") from e
