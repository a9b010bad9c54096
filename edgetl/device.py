"""Devices: where an artifact runs, as one YAML file each, or this machine, probed. [no torch]"""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import psutil
from pydantic import Field, ValidationError, field_validator

from edgetl import machine, shipped, versions
from edgetl.errors import BadHost, BadInput, BadInputs
from edgetl.links._ssh_address import SSH, parse
from edgetl.measure import gpu
from edgetl.plugins import nearest
from edgetl.recipe import yaml12
from edgetl.strict import Strict

cpu_model, governor, usable_cpus = machine.cpu_model, machine.governor, machine.usable_cpus
"""What the kernel says of this machine."""

LOCAL = "local"
"""The name of this machine, probed."""

NAME = r"^[a-z0-9][a-z0-9.-]*$"
"""What a device may be called: it names folders."""

LEAST_MEMORY = 16_000_000
"""Below this budget in bytes there is no operating system to run a bundle on."""

Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Peak: TypeAlias = Annotated[str, Field(pattern=r"^((fp32|tf32|fp16|bf16|fp8)_gflops|(int8|int4)_gops)$")]


class Arch(Strict):
    """The processor; `isa` is checked before anything is measured."""

    isa: str
    cpu: str = ""
    features: tuple[str, ...] = ()
    cache_bytes: Count | None = None  # of the last level


class Runtime(Strict):
    """A runtime that the device has, and the providers that may be used, the preferred one first."""

    name: str
    version: Annotated[str, Field(pattern=versions.WANTED)] = ""  # a measurement with another one warns
    providers: tuple[str, ...] = ()
    max_opset: Count | None = None


class Memory(Strict):
    """Bytes of main memory, and how many of them one model may take."""

    total_bytes: Count
    limit_bytes: Count | None = None  # enforced on every measuring process
    budget_bytes: Annotated[int, Field(ge=LEAST_MEMORY)] | None = None
    unified: bool = False


class Storage(Strict):
    """Bytes that one bundle may take on disk, judged wherever one is measured."""

    budget_bytes: Count | None = None


class Power(Strict):
    """The supply, and where energy can be read."""

    mode: str | None = None
    budget_w: float | None = Field(None, gt=0)
    source: str | None = None
    energy: Literal["none", "meter", "ina3221", "nvml", "rapl"] = "none"


class Thermal(Strict):
    """How it is cooled, where throttling can be read, and how cool it has to be before anything is measured."""

    cooling: Literal["none", "passive", "active"] | None = None
    throttle_probe: Literal["vcgencmd", "sysfs", "nvml"] | None = None
    max_start_temp_c: float | None = None
    cooldown_s: float | None = Field(None, ge=0)


class Limits(Strict):
    """Limits that hold for whatever runs there, judged wherever something is measured."""

    latency_p90_ms: float | None = Field(None, gt=0)


class Roofline(Strict):
    """The physical limit: dense peak rates by name, and what the memory and the runtime add."""

    peak: dict[Peak, Positive] = Field(default_factory=dict)
    bandwidth_gbs: Positive | None = None
    cache_bandwidth_gbs: Positive | None = None  # of the last level
    launch_us: Positive | None = None  # what the runtime spends on a node that does next to nothing
    threads: Count | None = None  # that the rates hold for; absent: all of the device's
    ci95: dict[str, tuple[float, float]] = Field(default_factory=dict)  # of what was measured, by name
    source: Literal["datasheet", "measured"]


class Floor(Strict):
    """The noise of this machine: what a comparison of a file with itself shows, and so the least that can be shown."""

    aa_ratio_ci95: tuple[float, float]
    mde: float = Field(ge=0)  # a share of the latency


class TensorRT(Strict):
    """What TensorRT needs to know."""

    version: str
    sm: int
    dla: bool = False
    workspace_bytes: Count | None = None


class Device(Strict):
    """Where an artifact runs, and with how many threads."""

    schema_: Literal["edgetl/device/1"] = Field("edgetl/device/1", alias="schema")
    name: str = Field(pattern=NAME)
    kind: Literal["cpu", "cuda", "jetson", "android"] = "cpu"
    arch: Arch
    link: str = Field("local://", pattern=r"^(local://|(ssh|adb)://[A-Za-z0-9@._:/%\[\]-]*)$")
    host_key_sha256: str | None = None
    runtimes: tuple[Runtime, ...] = ()
    threads: Count = 1
    cpus: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    precisions: tuple[str, ...] = ("fp32",)
    memory: Memory
    storage: Storage = Storage()
    power: Power = Power()
    thermal: Thermal = Thermal()
    limits: Limits = Limits()
    roofline: Roofline | None = None
    noise: Floor | None = None
    tensorrt: TensorRT | None = None
    notes: str = ""

    @field_validator("link")
    @classmethod
    def _reachable(cls, link: str) -> str:
        if link.startswith(SSH):
            try:
                parse(link)
            except BadInput as e:
                raise ValueError(e.problem) from e
        return link

    @field_validator("cpus")
    @classmethod
    def _distinct(cls, cpus: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if cpus is not None and (not cpus or len(set(cpus)) < len(cpus)):
            raise ValueError("list each cpu once, at least one")
        return cpus


def names() -> tuple[str, ...]:
    """Return the names that `--device` takes besides a path: this machine and the shipped files."""
    return (LOCAL, *sorted(path.stem for path in shipped.folder("devices").glob("*.yaml")))


def load_device(name: str) -> Device:
    """Return a device by the path of its YAML file, its name, or an address such as `ssh://user@host`.

    `local` is this machine, probed; an address is the machine there, probed.

    Raises:
        BadInput: there is no such device, or its file is wrong; every wrong key is named.
        BadHost, Refused: the machine at an address cannot be reached or is not the known one.

    """
    if name == LOCAL:
        return probe()
    if "://" in name:
        from edgetl.remote import reach  # which reads devices

        return reach(name)
    if "/" in name or name.endswith((".yaml", ".yml")):
        return read_device(Path(name))
    if name not in names():
        raise BadInput(f"no device '{name}'", fix=f"{nearest(name, names())}, or give the path of a device file")
    return read_device(shipped.folder("devices") / f"{name}.yaml")


def read_device(path: Path) -> Device:
    """Return the device of a YAML file.

    Raises:
        BadInput: the file cannot be read or is wrong; every wrong key is named.

    """
    try:
        with path.open("rb") as file:
            text = file.read(yaml12.MOST_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        fix = "give the path of a device file, or one of: " + ", ".join(names())
        raise BadInput(f"{path}: no readable device file", fix=fix) from e
    value = yaml12.read(text, str(path))
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a device file is a mapping", fix="start with 'schema: edgetl/device/1'")
    try:
        return Device.model_validate(value)
    except ValidationError as e:
        raise BadInputs([_wrong(path, error) for error in e.errors()]) from e


def probe() -> Device:
    """Return this machine as a device: one thread, all usable cores, since one thread can be timed on a shared host."""
    features = machine.cpu_features()
    return Device(
        name=LOCAL,
        arch=Arch(isa=platform.machine(), cpu=cpu_model(), features=features, cache_bytes=machine.cache_bytes()),
        threads=1,
        cpus=usable_cpus(),
        precisions=("fp32", *machine.quick(features)),
        memory=Memory(total_bytes=psutil.virtual_memory().total),
        notes="probed; give a device file for other thread counts",
    )


def require_here(device: Device) -> None:
    """Check that this machine can stand for the device.

    Raises:
        BadHost: another instruction set, cores that are not usable here, or fewer cores than threads.

    """
    here = platform.machine()
    if device.arch.isa.lower() not in (here.lower(), _SAME_ISA.get(here.lower(), "")):
        fix = f"copy the bundle there and run `edgetl profile BUNDLE --device {device.name}` on it"
        raise BadHost(f"{device.name} is {device.arch.isa} and this machine is {here}", fix=fix)
    usable = usable_cpus()
    missing = sorted(set(device.cpus or ()) - set(usable))
    if missing:
        fix = f"run it on {device.name}, or write a device file with `cpus: {list(usable)}`"
        raise BadHost(f"{device.name} names cpu {missing[0]}, which is not usable here", fix=fix)
    cores = len(device.cpus or usable)
    if device.threads > cores:
        fix = f"set `threads: {cores}` in the device file, or free more cores for this process"
        raise BadHost(f"{device.name} wants {device.threads} threads on {cores} usable cpus", fix=fix)


def fingerprint(device: Device, runtime: str) -> str:
    """Return the sha256 of what makes two measurements comparable: machine, kernel, clocks, threads, runtime, GPU."""
    card = gpu.facts(device.kind)
    facts = [
        cpu_model(),
        len(usable_cpus()),
        machine.cpuinfo("microcode", "CPU revision"),
        psutil.virtual_memory().total,
        platform.release(),
        governor(),
        device.threads,
        device.power.mode,
        runtime,
        *(astuple(card) if card else ()),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


_SAME_ISA = {"amd64": "x86_64", "arm64": "aarch64"}


def _wrong(path: Path, error: Any) -> BadInput:
    place: Sequence[str | int] = error["loc"]
    key = ".".join(map(str, place))
    if error["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        fix = f"did you mean '{close[0]}'?" if close else f"use one of: {', '.join(known)}"
        return BadInput(f"{path}: unknown key '{key}'", fix=fix)
    if error["type"] == "missing":
        return BadInput(f"{path}: '{key}' is missing", fix=f"add '{key}:' to the file")
    return BadInput(f"{path}: {key}: {error['msg']}", fix=f"correct '{key}'; it reads {str(error['input'])[:60]!r}")


def _keys(place: Sequence[str | int]) -> list[str]:
    """Return the keys that the mapping at a place in a device file may have."""
    parts: dict[str, type[Strict]] = {
        "arch": Arch, "runtimes": Runtime, "memory": Memory, "storage": Storage, "power": Power,
        "thermal": Thermal, "limits": Limits, "roofline": Roofline, "noise": Floor, "tensorrt": TensorRT,
    }  # fmt: skip
    model = parts[str(place[0])] if place else Device
    return [field.alias or name for name, field in model.model_fields.items()]
