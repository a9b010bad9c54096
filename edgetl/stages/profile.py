"""Measure exported files on a device: latency, memory, cold start, and ratios with intervals. [no torch, no runtime]"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from edgetl import device as devices
from edgetl import remote, store
from edgetl.bundle import open_bundle, read_golden
from edgetl.device import Device
from edgetl.errors import BadHost, BadInput, EdgetlError
from edgetl.links import LOCAL
from edgetl.measure import measurement, raw, rounds, throughput
from edgetl.measure.alone import alone
from edgetl.measure.judging import judge, limits
from edgetl.measure.limits import limited
from edgetl.measure.measurement import Measurement, Mode
from edgetl.measure.summary import Subject
from edgetl.recipe.plan import files, folder_name, read_plan
from edgetl.remote import Answer, Asked

__all__ = ["Request", "add_throughput", "forget", "judge", "limits", "profile", "profile_all", "run_bundles"]

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
    raw: bool = False  # another machine's samples are fetched too; this one's are always kept with the measurements


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
    return _measured(bundles, device, out, Request(mode, seed, baseline))


def _measured(bundles: Sequence[Path], device: Device, out: Path | None, request: Request) -> list[Measurement]:
    away = remote.is_remote(device)
    if not away:
        devices.require_here(device)
        if device.link != LOCAL:
            LOG.info("profile: this machine bears the name of %s, so it is measured here", device.name)
    with tempfile.TemporaryDirectory(prefix="edgetl-profile-") as scratch:
        wanted = [_subject(path, Path(scratch)) for path in dict.fromkeys(p.resolve() for p in bundles)]
        base = None if request.baseline is None else _subject(request.baseline.resolve(), Path(scratch))
        subjects = list({s.sha256: s for s in ([base] if base else []) + wanted}.values())
        _writable(out)
        how = f"{request.mode} {request.seed} {base.sha256 if base else None}"
        paths = [_path(s, device, out, how) for s in subjects]
        # What another machine measured is known by its own kernel and versions, which are not known here.
        found = _finished(paths) if out and not away else None
        if found is None:
            if away:  # the device sees to it that it measures one thing at a time
                asked = Asked(base, request.mode, request.seed, request.raw)
                made = remote.measure(subjects, device, asked, paths if out else None)
            else:
                with alone():
                    here = rounds.measure(subjects, base, device, request.mode, request.seed)
                made = [Answer(one.measurement, raw.pack(one.samples) if out else None) for one in here]
            found = [
                raw.keep(one.measurement, one.samples, path) if out else one.measurement
                for one, path in zip(made, paths, strict=True)
            ]
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
        _only_attach(where, device, request)
        return remote.attach(request.attach)
    found, machine = [], limited(devices.load_device(device), request.limit)
    if request.throughput and remote.is_remote(machine):
        fix = "leave out --throughput, or run the command on the device"
        raise BadInput(f"--throughput does not reach {machine.name} over {machine.link}", fix=fix)
    loose = [path for path in where if not (path / "plan.json").is_file()]
    if request.raw and loose and request.out is None:
        raise BadInput("--raw keeps samples beside the measurements, which go nowhere", fix="add --out DIR")
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
            old = m.throughput if m.throughput and m.throughput.verdict != "invalid" else None
            done.append(m.model_copy(update={"throughput": old or throughput.sweep(subject, device, m.run.seed)}))
            for path in _files(m, subject.stem, out) if old is None else ():
                measurement.write(done[-1], path)
    return done


def run_bundles(run: Path) -> list[Path]:
    """Return the bundles that the plan of a run names and that are there, the reference at fp32 first.

    Raises:
        BadInput: nothing is exported.

    """
    names = [name for name, _ in files(read_plan(run))]
    every = sorted(files(read_plan(run)), key=lambda file: (names.index(file[0]), file[1]["precision"] != "fp32"))
    paths = [run / "bundles" / name / folder_name(t) for name, t in every]
    found = [path for path in paths if (path / "manifest.json").is_file()]
    if not found:
        raise BadInput(f"{run} has no bundles", fix=f"run `edgetl export {run}` first")
    return found


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
    found = _measured(bundles, device, out, replace(request, baseline=base))
    return add_throughput(found, bundles, device, out) if request.throughput else found


def _writable(out: Path | None) -> None:
    """Check that results can be kept before anything is measured."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadHost(f"{out} cannot be written: {e.strerror}", fix="choose another folder with --out") from e


def _only_attach(where: Sequence[Path], device: str, request: Request) -> None:
    """Check that nothing is asked for that a run, as it was started, cannot do any more.

    Raises:
        BadInput: something is.

    """
    kept = ("attach", "gate")
    ignored = [f"--{f.name}" for f in fields(request) if f.name not in kept and getattr(request, f.name) != f.default]
    ignored += ["--device"] if device != devices.LOCAL else []
    ignored += [str(path) for path in where]
    if ignored:
        problem = f"--attach collects a run as it was started, without {', '.join(ignored)}"
        raise BadInput(problem, fix=f"edgetl profile --attach {request.attach}")


def _files(m: Measurement, stem: str, out: Path | None) -> Iterator[Path]:
    for path in (out / m.device.profile).glob(f"{stem}-*.json") if out else ():
        one = measurement.read(path)
        if (one.run.id, one.bundle.sha256) == (m.run.id, m.bundle.sha256):
            yield path


def _subject(folder: Path, scratch: Path) -> Subject:
    """Check a bundle and put its golden inputs where a measuring process reads them cheaply."""
    bundle = open_bundle(folder)
    golden = read_golden(bundle)
    inputs = {name: np.asarray(values)[:DISTINCT] for name, values in golden.inputs.items()}
    if not inputs or not all(np.asarray(v).size for v in inputs.values()):
        raise BadInput(f"{folder}: the bundle has no golden inputs", fix="export it again")
    sha256 = measurement.identity(bundle.sums)
    path = scratch / f"{sha256}.npz"
    np.savez(path, allow_pickle=False, **inputs)
    answers = path.with_suffix(".npy")
    np.save(answers, golden.logits[:DISTINCT], allow_pickle=False)
    manifest = bundle.manifest
    name = measurement.stem(manifest["name"], manifest["target"], manifest["precision"])
    shapes = {key: [1, *values.shape[1:]] for key, values in inputs.items()}
    return Subject(bundle, sha256, name, path, shapes, len(next(iter(inputs.values()))), answers)


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
