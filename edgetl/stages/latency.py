"""Networks -> latencies: exported for one target, timed together on a device, kept once measured. [host: torch]"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from edgetl import artifact, device, remote, roofline, store
from edgetl.artifact import Trial
from edgetl.bundle import open_bundle
from edgetl.device import Device
from edgetl.errors import BadHost
from edgetl.measure import measurement, noise
from edgetl.measure.measurement import Measurement
from edgetl.network.network import Network
from edgetl.network.to_onnx import to_onnx
from edgetl.recipe.schema import Target
from edgetl.stages.profile import profile
from edgetl.train.batches import Data
from edgetl.types import Json

TRIES = 2
"""How often two networks are measured before an invalid measurement ends the step."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Bench:
    """What networks are exported for, the inputs they are timed on, and where files go."""

    target: Target
    trial: Trial
    scratch: Path  # of the step: exported files, until the step is finished
    shared: Path  # of the run: what was measured, for good
    old: Path  # where damaged measurements go


def trial(data: Data, golden: int) -> Trial:
    """Return the inputs that bundles of this data carry, without their labels: a limit holds on what is shipped."""
    rows = data.rows("test")
    rows = rows[np.linspace(0, len(rows) - 1, min(golden, len(rows))).astype(int)]
    prepared = data.prepared
    heads = {name: np.asarray(values[rows]) for name, values in prepared.inputs.items()}
    every = tuple(range(len(rows)))
    return Trial(prepared.preprocess(), heads, None, every, None, data.mean_tokens(), prepared.digest)


def latencies(networks: Sequence[Network], where: Device, bench: Bench) -> list[Measurement]:
    """Return one measurement for each network, in order; each but the first's holds the ratio to it, paired by round.

    What was measured before is read: a measurement is an input once it is saved. Two networks are a claim, which has to
    be valid. Of more, single ones may be uncertain: they are there to fit a table through, which tells its own error.

    Raises:
        BadHost: the device cannot be measured, or a claim is still invalid when it is repeated.
        GateMissed: an exported file does not equal its network.

    """
    distinct = list({net.digest: net for net in networks}.values())
    key = _key(distinct, where, bench)
    folder = bench.shared / f"latency-{key[:16]}"

    def make(out: Path) -> None:
        log.info("latency on %s: exporting %d networks", where.name, len(distinct))
        bundles = [exported(net, bench) for net in distinct]
        for number, one in enumerate(_measured(bundles, where)):
            measurement.write(one, out / f"{number:02d}.json")
        for path in bundles[1:]:  # the first is measured beside other networks too
            store.remove(path.parent)

    store.made_once(folder, key, make, bench.old)
    read = {net.digest: measurement.read(folder / f"{number:02d}.json") for number, net in enumerate(distinct)}
    return [read[net.digest] for net in networks]


def predictions(networks: Sequence[Network], where: Device, bench: Bench) -> list[roofline.Prediction]:
    """Return what each network, exported, takes at best on a device that cannot be measured.

    Raises:
        GateMissed: an exported file does not equal its network.

    """
    log.info("%s: predicting %d networks from what its file says", where.name, len(networks))
    bundles = [open_bundle(exported(net, bench)) for net in networks]
    sizes = [(one.folder / one.manifest["file"]).stat().st_size for one in bundles]
    return [roofline.predict(one.manifest, size, where) for one, size in zip(bundles, sizes, strict=True)]


def target_json(target: Target) -> Json:
    """Return a target with all its options as plain data."""
    return TypeAdapter(type(target)).dump_python(target, mode="json")


def exported(net: Network, bench: Bench) -> Path:
    """Return the bundle of a network, made unless it is there; it is written whole or not at all.

    Raises:
        GateMissed: the file does not equal its network.

    """
    name, out = net.digest[:16], bench.scratch / "export"
    folder = bench.scratch / "bundles" / name / f"{bench.target.use}-{bench.target.precision}"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        unnamed = replace(net, facts={"source": "random"})  # never shipped: nobody is warned of a missing licence
        to_onnx(unnamed, out / "base.onnx")
        np.save(out / "logits.npy", artifact.torch_answers(unnamed, bench.trial, bench.trial.n))
        facts: dict[str, Json] = {"name": name, "provenance": {"recipe_sha256": ""}}
        artifact.make(unnamed, bench.trial, bench.target, out, folder, facts)
    return folder


def _key(networks: Sequence[Network], where: Device, bench: Bench) -> str:
    """Return the hash of all that the times depend on; another device is known by its file, not by its kernel."""
    machine = "" if remote.is_remote(where) else device.fingerprint(where, bench.target.runtime())
    there = where.model_dump(mode="json", by_alias=True)
    inputs = [bench.trial.digest, bench.trial.n]
    return store.digest([[net.digest for net in networks], there, machine, target_json(bench.target), inputs])


def _measured(bundles: Sequence[Path], where: Device) -> list[Measurement]:
    for seed in range(TRIES):
        found = profile(bundles, where, out=None, mode="quick", seed=seed, baseline=bundles[0])
        invalid = [one for one in found if _unusable(one, claim=len(bundles) < 3)]
        if not invalid:
            return found
        why = ", ".join(invalid[0].noise.flags) or "the medians are too uncertain"
        log.warning("latency on %s: %d of %d measurements are invalid: %s", where.name, len(invalid), len(found), why)
    fix = "stop other programs, cool the machine, and run the same command again: it continues where it stopped"
    raise BadHost(f"the latency on {where.name} cannot be measured: {why}", fix=fix)


def _unusable(one: Measurement, *, claim: bool) -> bool:
    """Say whether a measurement tells nothing: slowed down by heat or battery, or as a claim too uncertain."""
    return one.verdict == "invalid" and (claim or bool(noise.FATAL & set(one.noise.flags)))
