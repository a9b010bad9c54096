"""Measure exported files on a device: latency, memory, cold start, and ratios with intervals. [no torch, no runtime]"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from edgetl import comparison, gates, measurement, raw, remote, rounds, store, throughput
from edgetl import device as devices
from edgetl.alone import alone
from edgetl.bundle import open_bundle, read_golden
from edgetl.device import Device
from edgetl.errors import BadHost, BadInput, EdgetlError, GateMissed
from edgetl.limits import limited
from edgetl.links import LOCAL
from edgetl.measurement import Measurement, Mode
from edgetl.plugins import nearest
from edgetl.recipe.plan import read_plan
from edgetl.rounds import Measured
from edgetl.summary import Subject

LOG = logging.getLogger("edgetl")
DISTINCT = 32
"""Most inputs that are rotated through; fewer where a bundle has fewer goldens."""


@dataclass(frozen=True)
class Request:
    """What a command asks for."""

    mode: Mode = "standard"
    seed: int = 0
    baseline: Path | None = None  # None: the reference of a run, or the first bundle
    out: Path | None = None  # folder of the measurements of bundles that belong to no run; None: none is kept
    gate: str | None = None  # what `judge` judges, read before anything is measured
    fresh: bool = False
    throughput: bool = False
    limit: str | None = None  # a smaller device: "memory=512MB,cpus=1"
    attach: str | None = None  # a run that was left on a device; nothing else is measured then


def profile(
    bundles: Sequence[Path],
    device: Device,
    *,
    out: Path | None,
    mode: Mode = "quick",
    seed: int = 0,
    baseline: Path | None = None,
) -> list[Measurement]:
    """Measure bundles together, interleaved, and return one measurement each, in their order.

    Every round starts a fresh process for each artifact, in an order shuffled by the seed. With a baseline, which is
    measured too, each measurement holds the ratio to it, paired by round. Under `out`, files
    `<device>/<name>-<target>-<precision>-<hash>.json` are written; they are read back instead of measuring again when
    all of them were measured in one run and none is invalid (`forget` deletes them).

    Raises:
        BadHost: this machine cannot stand for the device, or a provider fell back.
        Refused: a bundle is damaged, or its file crashes the runtime.
        OutOfResources: a measuring process was killed.

    """
    away = remote.is_remote(device)
    if not away:
        devices.require_here(device)
        if device.link != LOCAL:
            LOG.info("profile: this machine bears the name of %s, so it is measured here", device.name)
    with tempfile.TemporaryDirectory(prefix="edgetl-profile-") as scratch:
        wanted = [_subject(path, Path(scratch)) for path in dict.fromkeys(p.resolve() for p in bundles)]
        base = None if baseline is None else _subject(baseline.resolve(), Path(scratch))
        subjects = list({s.sha256: s for s in ([base] if base else []) + wanted}.values())
        _writable(out)
        paths = [_path(s, device, out, f"{mode} {seed} {base.sha256 if base else None}") for s in subjects]
        # What another machine measured is known by its own kernel and versions, which are not known here.
        found = _finished(paths) if out and not away else None
        if found is None:
            if away:  # the device sees to it that it measures one thing at a time
                there = remote.measure(subjects, base, device, mode, seed, paths if out else None)
                made = [Measured(one, ()) for one in there]
            else:
                with alone():
                    made = rounds.measure(subjects, base, device, mode, seed)
            found = [_kept(one, path if out else None) for one, path in zip(made, paths, strict=True)]
    by_sha = {m.bundle.sha256: m for m in found}
    return [by_sha[s.sha256] for s in wanted]


def profile_all(where: Sequence[Path], device: str, request: Request | None = None) -> list[Measurement]:
    """Measure the bundles of a run against its reference, or bundles against the first of them.

    The measurements of a run are kept in its folder. `judge` raises what they miss.

    Raises:
        BadInput: a folder is neither, or the gate cannot be read; besides what `profile` raises.

    """
    request = request or Request()
    limits(request.gate)
    if request.attach:
        return remote.attach(request.attach)
    found, machine = [], limited(devices.load_device(device), request.limit)
    if request.throughput and remote.is_remote(machine):
        fix = "leave out --throughput, or run the command on the device"
        raise BadInput(f"--throughput does not reach {machine.name} over {machine.link}", fix=fix)
    loose = [path for path in where if not (path / "plan.json").is_file()]
    for run in (path for path in where if path not in loose):
        found += _together(run_bundles(run), machine, run / "measurements", request)
    return found + (_together(loose, machine, request.out, request) if loose else [])


def add_throughput(
    measurements: Sequence[Measurement], bundles: Sequence[Path], device: Device, out: Path | None
) -> list[Measurement]:
    """Return the measurements with the rates at growing batches; their files under `out` are written again.

    Raises:
        BadHost, Refused, OutOfResources: as in `profile`.

    """
    done = []
    with tempfile.TemporaryDirectory(prefix="edgetl-profile-") as scratch, alone():
        subjects = {s.sha256: s for s in (_subject(path, Path(scratch)) for path in bundles)}
        for m in measurements:
            subject = subjects[m.bundle.sha256]
            rates = m.throughput or throughput.sweep(subject, device, m.run.seed)
            done.append(m.model_copy(update={"throughput": rates}))
            for path in _files(m, subject.stem, out) if m.throughput is None else ():
                measurement.write(done[-1], path)
    return done


def run_bundles(run: Path) -> list[Path]:
    """Return the bundles that the plan of a run names and that are there, the reference at fp32 first.

    Raises:
        BadInput: nothing is exported.

    """
    plan = read_plan(run)
    targets = sorted(plan["targets"], key=lambda t: t["precision"] != "fp32")
    names = (plan["reference"], *(n for n in plan["students"] if n != plan["reference"]))
    paths = [run / "bundles" / name / f"{t['use']}-{t['precision']}" for name in names for t in targets]
    found = [path for path in paths if (path / "manifest.json").is_file()]
    if not found:
        raise BadInput(f"{run} has no bundles", fix=f"run `edgetl export {run}` first")
    return found


def judge(where: Sequence[Path], measurements: Sequence[Measurement], gate: str | None = None) -> None:
    """Check measurements against limits such as "p90_ms=12,peak_mb=200", and what their recipes set.

    Raises:
        GateMissed: one is above its limit, on the pessimistic end.
        BadHost: one is invalid.

    """
    for m in measurements:
        facts = gates.Facts(size_bytes=m.size.model_bytes, timings={m.device.profile: measurement.timing(m)})
        for verdict in gates.judge_budget(limits(gate), facts, m.device.profile):
            if verdict.kept is False or (verdict.kept is None and m.verdict != "invalid"):
                raise GateMissed(f"{m.bundle.name} misses {verdict}", fix="use a smaller student, or relax the limit")
    for run in (path for path in where if (path / "plan.json").is_file()):
        comparison.judge(run, read_plan(run), measurements[0].device.profile)
    for m in measurements:
        if m.verdict == "invalid":
            why = ", ".join(m.noise.flags) or "the median is too uncertain"
            fix = "stop other programs, cool the machine, and measure again"
            raise BadHost(f"the measurement of {m.bundle.name} on {m.device.profile} is invalid: {why}", fix=fix)


def limits(gate: str | None) -> dict[str, float]:
    """Return the budget in a text such as "p90_ms=12,peak_mb=200".

    Raises:
        BadInput: an unknown name, or no positive number.

    """
    budget = {}
    for part in filter(None, (gate or "").split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in gates.BUDGETS:
            raise BadInput(f"--gate: no budget '{name.strip()}'", fix=nearest(name.strip(), gates.BUDGETS))
        try:
            budget[name.strip()] = float(value)
        except ValueError as e:
            raise BadInput(f"--gate: {part!r} has no number", fix=f"write {name.strip()}=12") from e
        if not 0 < budget[name.strip()] < math.inf:
            raise BadInput(f"--gate: {part!r} is no limit", fix="give a number above 0")
    return budget


def forget(bundles: Sequence[Path], device: Device, out: Path) -> None:
    """Delete the finished measurements of these bundles on a device, so that `profile` measures again."""
    for path in bundles:
        manifest = open_bundle(path).manifest
        name = measurement.stem(manifest["name"], manifest["target"], manifest["precision"])
        for file in (out / device.name).glob(f"{name}-*.json"):
            file.with_suffix(".npz").unlink(missing_ok=True)
            file.unlink()


def _together(bundles: Sequence[Path], device: Device, out: Path | None, request: Request) -> list[Measurement]:
    if request.fresh and out:
        forget(bundles, device, out)
    base = request.baseline or bundles[0]
    found = profile(bundles, device, out=out, mode=request.mode, seed=request.seed, baseline=base)
    return add_throughput(found, bundles, device, out) if request.throughput else found


def _writable(out: Path | None) -> None:
    """Check that results can be kept before anything is measured."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadHost(f"{out} cannot be written: {e.strerror}", fix="choose another folder with --out") from e


def _kept(made: Measured, path: Path | None) -> Measurement:
    """Write a measurement and its samples where a path is given."""
    one = made.measurement
    if path is None:
        return one
    if made.samples:
        samples = raw.write(made.samples, path.with_suffix(".npz"))
        one = one.model_copy(update={"latency": one.latency.model_copy(update={"samples_sha256": samples})})
    measurement.write(one, path)
    return one


def _files(m: Measurement, stem: str, out: Path | None) -> Iterator[Path]:
    for path in (out / m.device.profile).glob(f"{stem}-*.json") if out else ():
        one = measurement.read(path)
        if (one.run.id, one.bundle.sha256) == (m.run.id, m.bundle.sha256):
            yield path


def _subject(folder: Path, scratch: Path) -> Subject:
    """Check a bundle and put its golden inputs where a measuring process reads them cheaply."""
    bundle = open_bundle(folder)
    inputs = {name: np.asarray(values)[:DISTINCT] for name, values in read_golden(bundle).inputs.items()}
    if not inputs or not all(np.asarray(v).size for v in inputs.values()):
        raise BadInput(f"{folder}: the bundle has no golden inputs", fix="export it again")
    sha256 = measurement.identity(bundle.sums)
    path = scratch / f"{sha256}.npz"
    np.savez(path, allow_pickle=False, **inputs)
    manifest = bundle.manifest
    name = measurement.stem(manifest["name"], manifest["target"], manifest["precision"])
    shapes = {key: [1, *values.shape[1:]] for key, values in inputs.items()}
    return Subject(bundle, sha256, name, path, shapes, len(next(iter(inputs.values()))))


def _path(subject: Subject, device: Device, out: Path | None, how: str) -> Path:
    runtime = subject.bundle.manifest["runtime"]["name"]
    try:
        version = metadata.version(runtime)
    except metadata.PackageNotFoundError:
        version = ""
    print_ = devices.fingerprint(device, f"{runtime} {version}")
    peaks = device.roofline and device.roofline.model_dump(mode="json")
    key = store.digest([subject.sha256, print_, device.cpus and list(device.cpus), device.link, peaks, how])
    return (out or Path()) / device.name / f"{subject.stem}-{key[:12]}.json"


def _finished(paths: Sequence[Path]) -> list[Measurement] | None:
    """Return the measurements of an earlier run of exactly these artifacts; None where one is missing or invalid."""
    if not all(path.is_file() for path in paths):
        return None
    try:
        found = [measurement.read(path) for path in paths]
    except EdgetlError:
        return None
    same = len({m.run.id for m in found}) == 1 and all(m.verdict != "invalid" for m in found)
    return found if same else None
