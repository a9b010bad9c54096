"""Measure exported files on a device: latency, memory, cold start, and ratios with intervals. [no torch, no runtime]"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl import comparison, gates, measurement, rounds, store
from edgetl import device as devices
from edgetl.bundle import open_bundle, read_golden
from edgetl.device import Device
from edgetl.errors import BadHost, BadInput, EdgetlError, GateMissed
from edgetl.measurement import Measurement, Mode
from edgetl.plugins import nearest
from edgetl.recipe.plan import read_plan
from edgetl.summary import Subject

if TYPE_CHECKING:
    from rich.table import Table

LOG = logging.getLogger("edgetl")
DISTINCT = 32
"""Most inputs that are rotated through; fewer where a bundle has fewer goldens."""


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
    devices.require_here(device)
    with tempfile.TemporaryDirectory(prefix="edgetl-profile-") as scratch, _alone(device.name):
        wanted = [_subject(path, Path(scratch)) for path in dict.fromkeys(p.resolve() for p in bundles)]
        base = None if baseline is None else _subject(baseline.resolve(), Path(scratch))
        subjects = list({s.sha256: s for s in ([base] if base else []) + wanted}.values())
        paths = [_path(s, device, out, f"{mode} {seed} {base.sha256 if base else None}") for s in subjects]
        found = _finished(paths) if out else None
        if found is None:
            found = rounds.measure(subjects, base, device, mode, seed)
            for path, one in zip(paths, found, strict=True) if out else ():
                measurement.write(one, path)
    by_sha = {m.bundle.sha256: m for m in found}
    return [by_sha[s.sha256] for s in wanted]


def profile_all(
    where: Sequence[Path], device: str, *, fresh: bool = False, gate: str | None = None
) -> list[Measurement]:
    """Measure the bundles of a run against its reference, or bundles against the first of them.

    The measurements of a run are kept in its folder. `judge` raises what they miss.

    Raises:
        BadInput: a folder is neither, or the gate cannot be read; besides what `profile` raises.

    """
    limits(gate)
    found, machine = [], devices.load_device(device)
    loose = [path for path in where if not (path / "plan.json").is_file()]
    for run in (path for path in where if path not in loose):
        bundles = run_bundles(run)
        if fresh:
            forget(bundles, machine, run / "measurements")
        found += profile(bundles, machine, out=run / "measurements", baseline=bundles[0])
    return found + (profile(loose, machine, out=None, baseline=loose[0]) if loose else [])


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
            if verdict.kept is False:
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
    return budget


def table(measurements: Sequence[Measurement]) -> Table:
    """Return the measurements as a table for the terminal."""
    from rich.table import Table

    columns = ("artifact", "p50 ms", "95 %", "p90 ms", "CPU p50 ms", "ratio", "95 %", "cold ms", "peak MB", "verdict")
    made = Table(*columns, title="measured", title_justify="left")
    for m in measurements:
        made.add_row(*cells(m))
    return made


def cells(m: Measurement) -> list[str]:
    """Return the figures of a measurement as text; a dash is not measured."""
    time, ratio = m.latency, m.comparison
    why = f" ({', '.join(m.noise.flags)})" if m.noise.flags else ""
    return [
        f"{m.bundle.name} {m.bundle.precision}",
        f"{time.p50_ms:.3g}",
        f"{time.p50.low:.3g} to {time.p50.high:.3g}",
        "-" if time.p90_es_ms is None else f"{time.p90_es_ms:.3g}",
        f"{time.cpu_time_p50_ms:.3g}",
        f"{ratio.ratio:.3f}" if ratio else "-",
        f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio else "-",
        f"{m.cold.load_ms + m.cold.first_ms:.3g}",
        f"{m.memory.peak_delta_max_bytes / 1e6:.1f}",
        m.verdict + why,
    ]


def forget(bundles: Sequence[Path], device: Device, out: Path) -> None:
    """Delete the finished measurements of these bundles on a device, so that `profile` measures again."""
    for path in bundles:
        manifest = open_bundle(path).manifest
        name = measurement.stem(manifest["name"], manifest["target"], manifest["precision"])
        for file in (out / device.name).glob(f"{name}-*.json"):
            file.unlink()


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
    key = store.digest([subject.sha256, print_, device.cpus and list(device.cpus), how])
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


@contextmanager
def _alone(device: str) -> Iterator[None]:
    """Wait until no other profile of this user runs on the device."""
    root = os.environ.get("XDG_RUNTIME_DIR") or f"{tempfile.gettempdir()}/edgetl-{os.getuid()}"
    folder = Path(root) / "edgetl"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / f"{device}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("profile: waiting for another profile on %s to end", device)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
