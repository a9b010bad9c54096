"""Ask the runtime where the time of each artifact goes, in a process of its own. [no torch, no runtime]"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgetl import remote, store
from edgetl.bundle import Bundle, open_bundle, read_golden
from edgetl.device import Device, load_device, require_here
from edgetl.errors import MEASURING, BadHost, BadInput, Refused
from edgetl.explain import explained
from edgetl.explain._explain import Job
from edgetl.explain.explained import Explained
from edgetl.measure import measurement, probing
from edgetl.measure.alone import alone
from edgetl.measure.rounds import pinned
from edgetl.stages.profile import DISTINCT, run_bundles
from edgetl.types import Json

LOG = logging.getLogger("edgetl")

START = "import sys; sys.path.insert(0, sys.argv[1]); from edgetl.explain._explain import main; main()"
"""As in `probing`: an isolated interpreter, which finds the package where this one was."""

TIMEOUT_S = 300.0
TARGET = "onnx"


def explain(where: Sequence[Path], device: str, out: Path | None) -> list[Explained]:
    """Return where the time of every bundle goes, those of a run or bundles by themselves, at one thread.

    What belongs to a run is kept in its folder, beside the measurements, all else under `out`. Bundles of another
    target than onnx are passed over: their runtimes have profilers of their own.

    Raises:
        BadInput: the device is another machine, or no bundle is for ONNX Runtime.
        Refused, BadHost, OutOfResources: as in `profile`.

    """
    machine = load_device(device)
    if remote.is_remote(machine):
        fix = "run the command on the device"
        raise BadInput(f"--explain does not reach {machine.name} over {machine.link}", fix=fix)
    require_here(machine)
    kept: dict[Path, Path | None] = {}
    for path in where:
        if (path / "plan.json").is_file():
            kept |= dict.fromkeys(run_bundles(path), path / "measurements")
        else:
            kept[path] = out
    opened = {folder: open_bundle(folder) for folder in kept}
    wanted = {folder: bundle for folder, bundle in opened.items() if bundle.manifest["target"] == TARGET}
    if not wanted:
        raise BadInput("--explain: no bundle is for ONNX Runtime", fix=f"export for the target {TARGET} too")
    with alone():
        return [_one(bundle, pinned(machine), kept[folder]) for folder, bundle in wanted.items()]


def _one(bundle: Bundle, device: Device, out: Path | None) -> Explained:
    manifest, sha256 = bundle.manifest, measurement.identity(bundle.sums)
    stem = measurement.stem(manifest["name"], manifest["target"], manifest["precision"])
    LOG.info("profile: where the time of %s goes", stem)
    with tempfile.TemporaryDirectory(prefix="edgetl-explain-") as scratch:
        inputs = Path(scratch) / "inputs.npz"
        np.savez(inputs, allow_pickle=False, **{k: v[:DISTINCT] for k, v in read_golden(bundle).inputs.items()})
        found = _child(Job(str(bundle.folder), str(inputs), device.cpus), str(bundle.folder))
    made = explained.explained(found, sha256, stem, device.name)
    if out is not None:
        store.write_json(explained.path(out, device.name, stem, sha256), made.model_dump(mode="json"))
    return made


def _child(job: Job, bundle: str) -> dict[str, Json]:
    """Run the profiling process and return what it found."""
    package = str(Path(probing.__file__).parents[2])
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-I", "-c", START, package, str(out.fileno()), json.dumps(asdict(job))]
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
                env=probing.environment(0), pass_fds=(out.fileno(),), timeout=TIMEOUT_S,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired as error:
            fix = "leave out --explain, or use a smaller artifact"
            raise BadHost(f"{bundle}: the runtime's profiler did not end in {TIMEOUT_S:.0f} s", fix=fix) from error
        out.seek(0)
        said = out.read()
    found: dict[str, Json] = json.loads(said) if said else {}
    if code == 0 and found:
        return found
    if found:
        raise MEASURING.get(code, BadHost)(f"{bundle}: {found['problem']}", fix=found["fix"])
    if code < 0:
        raise Refused(f"{bundle}: the artifact crashed the runtime under its profiler", fix="export it again")
    raise BadHost(f"{bundle}: the profiling process ended with code {code}", fix="run `edgetl doctor`")
