"""Find the first module whose answer in an exported file is not the torch network's. [host: torch]"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl import bundle as bundles
from edgetl.artifact import TOLERANCE
from edgetl.errors import BadInput, GateMissed
from edgetl.explain.first_bad import Bad, FileAnswers, common, first_bad
from edgetl.explain.onnx_graph import read_graph
from edgetl.network import network as networks
from edgetl.network import saved
from edgetl.network.hooked import TorchAnswers
from edgetl.recipe.plan import read_plan
from edgetl.types import Array, Feed, Json

SAMPLES = 4
"""Inputs that the answers are compared on: all values that cross a cut are held for them."""

TARGETS = ("onnx", "trt")
"""Whose files are ONNX; those of TensorRT are compared as ONNX Runtime's CPU provider runs them, which has no bf16."""

LIMITS: Mapping[str, float] = {
    "fp32": TOLERANCE,
    "fp16": 0.02,
    "int8": 0.1,
    "int8_dynamic": 0.1,
    "w8": 0.05,
    "w4": 0.3,
}
"""Largest difference of a value over the largest value. Of short types it is what rounding alone rarely reaches: in
int8, values inside small networks differed by up to 0.07, and logits by up to 0.05."""

COLUMNS = ("file", "against", "first wrong module", "its value", "difference", "limit", "runs")

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Diagnosis:
    """What comparing one file with what it was made from gave."""

    file: str  # "dense onnx-int8"
    against: str  # "torch" or "base.onnx"
    bad: Bad
    limit: float

    def to_json(self) -> dict[str, Json]:
        """Return the plain data; `module` is null where the answers are equal."""
        return {"file": self.file, "against": self.against, "limit": self.limit, **vars(self.bad)}

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table."""
        bad = self.bad
        module = "none" if bad.module is None else bad.module or "not named"
        return (self.file, self.against, module, bad.value, f"{bad.difference:.2g}", f"{self.limit:g}", str(bad.runs))


@dataclass(frozen=True)
class _Exported:
    """One network with its base file, and the bundles made from that."""

    name: str
    network: Path
    base: Path
    bundles: tuple[Path, ...]


def debug_parity(where: Path) -> list[Diagnosis]:
    """Compare every base file of a run, a saved network or a bundle's with torch, and each bundle with its base file.

    Where the answers differ, the graph is bisected: about log2(values) runs, holding only what crosses a cut.

    Raises:
        BadInput: nothing is exported there.
        Refused: a file is damaged.

    """
    found = [one for exported in _exported(where) for one in _diagnoses(exported)]
    if not found:
        raise BadInput(f"{where} has no exported file", fix=f"run `edgetl export {where}` first")
    return found


def require(found: Sequence[Diagnosis]) -> None:
    """Check that no file has a wrong module.

    Raises:
        GateMissed: it names every file that has one, and the module.

    """
    wrong = [f"{one.file}: {one.bad.module or one.bad.value} differs" for one in found if one.bad.module is not None]
    if wrong:
        fix = "look at that module's export; for a quantized file, leave it float"
        raise GateMissed("; ".join(wrong), fix=fix)


def _diagnoses(exported: _Exported) -> Iterator[Diagnosis]:
    log.info("parity: %s", exported.name)
    file = exported.base.read_bytes()
    net = networks.load(exported.network)
    opened = [bundles.open_bundle(folder) for folder in exported.bundles]
    feed = _feed(opened, {k: v.numpy() for k, v in net.family.example(net.config, SAMPLES).items()})
    graph, base = read_graph(file), FileAnswers(file, {}, feed)
    right = TorchAnswers(net, graph, feed)
    limit = LIMITS["fp32"]
    bad = first_bad(graph, right.seen, right, base, limit)
    yield Diagnosis(f"{exported.name} base.onnx", "torch", bad, limit)
    for bundle in opened:
        manifest = bundle.manifest
        made = bundle.read(manifest["file"])
        if manifest["target"] not in TARGETS or manifest["precision"] == "bf16":
            log.info("parity: %s is nothing that ONNX Runtime runs on a CPU, and is passed over", bundle.folder)
        elif made != file:
            inside, limit = read_graph(made), LIMITS.get(manifest["precision"], LIMITS["fp32"])
            options = manifest["session"] if manifest["target"] == "onnx" else {}
            tried = FileAnswers(made, options, feed)
            bad = first_bad(inside, common(inside, graph), base, tried, limit)
            yield Diagnosis(f"{exported.name} {bundle.folder.name}", "base.onnx", bad, limit)


def _feed(opened: Sequence[bundles.Bundle], example: Mapping[str, Array]) -> Feed:
    """Return some golden inputs, or made-up ones where no bundle is there."""
    for bundle in opened:
        return {name: np.asarray(v[:SAMPLES]) for name, v in bundles.read_golden(bundle).inputs.items()}
    log.warning("no bundle is there: the answers are compared on made-up inputs")
    return example


def _exported(where: Path) -> Iterator[_Exported]:
    """Return what is exported in a run, a saved network, or the run that a bundle lies in."""
    if saved.is_saved(where):
        yield from _known("network", where, where / "export" / "base.onnx", where / "bundles" / "network")
        return
    single = (where / "manifest.json").is_file()
    run = where.resolve().parents[2] if single else where
    if single and saved.is_saved(run):
        yield from _known("network", run, run / "export" / "base.onnx", where)
        return
    plan = read_plan(run)
    for name in dict.fromkeys((plan["reference"], *plan["students"])):
        if not single or where.resolve().parent.name == name:
            folder = run / "steps" / plan["steps"][name][-1]
            made = where if single else run / "bundles" / name
            yield from _known(name, folder, run / "students" / name / "base.onnx", made)


def _known(name: str, network: Path, base: Path, made: Path) -> Iterator[_Exported]:
    folders = [made] if (made / "manifest.json").is_file() else sorted(p.parent for p in made.glob("*/manifest.json"))
    if base.is_file():
        yield _Exported(name, network, base, tuple(folders))
