"""One bundle of one network: lowered, repaired and chosen as its target asks. [host: torch]"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgetl import artifact, device, store
from edgetl.artifact import Checked, Trial
from edgetl.errors import BadHost, BadInput, GateMissed, Refused
from edgetl.network.network import Network
from edgetl.quantize import ranges
from edgetl.quantize.bar import Bar, Practice
from edgetl.quantize.ladder import Rung, climb
from edgetl.quantize.repair import lowered
from edgetl.recipe.schema import Material, Target
from edgetl.types import Json

UNASKED: Mapping[str, Json] = {"accuracy_drop": 1.0}
"""The gate that a file chosen by "auto" keeps where the recipe has none: the fastest file is easily a wrong one."""

FAR = 0.5
"""Validation samples that leave a calibrated range by more than this share of its width are told."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Order:
    """What to make, and where."""

    target: Target
    out: Path  # base.onnx and logits.npy of the network; the file's answers go beside them
    folder: Path  # of the bundle
    facts: Mapping[str, Json]  # the manifest's `name`, and what of its `provenance` the network does not know


@dataclass(frozen=True)
class Standard:
    """What a file of lower precision is made and judged with before it is shipped."""

    practice: Practice
    reference: Path  # base.onnx of the reference
    key: str  # of the reference's network

    def bar(self, base: Path, *, chooses: bool) -> Bar | None:
        """Return the gates that files of this base keep; None where the recipe has none and the target is given."""
        asked = any(limit is not None and gate != "faster" for gate, limit in self.practice.gates.items())
        if not asked and not chooses:
            return None
        practice = self.practice if asked else replace(self.practice, gates=UNASKED)
        bar = Bar(practice, practice.float_answers(base), practice.float_answers(self.reference))
        if unproven := bar.unproven():
            few = f"{len(bar.own)} validation samples are too few to prove {', '.join(unproven)}"
            log.warning("%s: a file must do as well as fp32 on them; a larger `data.validation` would tell more", few)
        return bar


def produce(net: Network, trial: Trial, order: Order, standard: Standard | None) -> None:
    """Write the bundle and the answers of a network's file, and beside the bundle the ladder where one was climbed.

    Without a standard there is no data: nothing is calibrated or repaired.

    Raises:
        GateMissed: the file does not equal its network; no bundle is written.
        BadInput: the network has no form at this precision, or too few samples calibrate it.

    """
    with tempfile.TemporaryDirectory(dir=order.out, prefix=".", suffix=".tmp") as scratch:
        tried, rejected = _tried(net, trial, order, standard, Path(scratch))
        chosen = tried[0]
        if order.target.precision == "auto":
            bundles = [Path(scratch) / "bundles" / one.lowered.file.parent.name for one in tried]
            for one, folder in zip(tried, bundles, strict=True):
                artifact.ship(net, trial, one, folder)
            ladder = climb(list(zip(tried, bundles, strict=True)), rejected, device.probe())
            rungs = [rung.to_json() for rung in ladder.rungs]
            chosen = ladder.chosen.noted({"ladder": rungs})
            store.write_json(
                order.folder.with_name(f"{order.folder.name}.ladder.json"), {"schema_version": 1, "rungs": rungs}
            )
        _told(order, chosen)
        with store.writing(order.out / f"{order.folder.name}.npy") as temporary, temporary.open("wb") as f:
            np.save(f, chosen.answers)
        artifact.ship(net, trial, chosen, order.folder)


def _tried(
    net: Network, trial: Trial, order: Order, standard: Standard | None, scratch: Path
) -> tuple[list[Checked], list[Rung]]:
    """Return every candidate that could be made, the first at fp32 where there is a choice, and rungs of the others.

    Raises:
        EdgetlError: the first candidate cannot be made.

    """
    base, chooses = order.out / "base.onnx", order.target.precision == "auto"
    made: list[Checked] = []
    rejected: list[Rung] = []
    bar: Bar | None = None
    out_of_reach: dict[str, str] = {}  # targets whose runtime is not here, and why
    for target in order.target.candidates(device.probe().precisions):
        exact = target.precision == "fp32"
        if reason := out_of_reach.get(target.use) or ("" if exact or standard or not chooses else "no data judges it"):
            rejected.append(Rung(target.use, target.precision, "rejected", reason))
            continue
        if bar is None and standard is not None and not exact:
            bar = standard.bar(base, chooses=chooses)
        folder = scratch / f"{target.use}-{target.precision}"
        folder.mkdir()
        try:
            material, notes = _material(base, target, standard, scratch)
            one = lowered(target, base, folder, material, bar)
            if chooses:  # what only a stand-in judges cannot be timed
                target.open(one.file, target.session(), standard.practice.threads if standard else 1).close()
            made.append(artifact.check(net, trial, one, order.out, order.facts).noted(notes))
        except (BadHost, BadInput, Refused, GateMissed) as e:
            if not made:
                raise
            rejected.append(Rung(target.use, target.precision, "rejected", e.problem))
            if exact and isinstance(e, BadHost):
                out_of_reach[target.use] = e.problem
    return made, rejected


def _material(base: Path, target: Target, standard: Standard | None, scratch: Path) -> tuple[Material, dict[str, Json]]:
    """Return what a target is lowered with, and what the manifest says of its calibration."""
    if standard is None or target.precision == "fp32":
        return Material(), {}
    batches = standard.practice.batches("train", target.samples)
    material = Material(batches, cache=scratch)
    if not target.calibrates:
        return material, {}
    n = sum(len(next(iter(batch.values()))) for batch in batches)
    if n < target.samples:
        log.warning("calibration on %d samples: the training part has no more of the %d asked", n, target.samples)
    seen = ranges.observe(base, standard.practice.batches("validation", n), ranges.OPERATORS)
    name, far = ranges.outside(ranges.kept(scratch, base, batches, (ranges.OPERATORS, "minmax")), seen)
    if far > FAR:
        log.warning("validation samples leave the calibrated range of %s by %.0f %% of its width", name, 100 * far)
    return material, {"calibration": {"part": "train", "samples": n, "outside": {"tensor": name, "share": far}}}


def _told(order: Order, chosen: Checked) -> None:
    shares = ", ".join(f"{dtype} {100 * share:.0f} %" for dtype, share in chosen.manifest["dtypes"].items())
    log.info("%s %s: MACs in %s", order.facts["name"], order.folder.name, shares or "no operation that counts")
