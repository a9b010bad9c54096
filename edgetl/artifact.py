"""One exported file of one network: made, compared with the network, described and bundled. [host: torch]"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import edgetl
from edgetl import bundle, evaluate, shape_audit
from edgetl.errors import GateMissed
from edgetl.golden import Golden
from edgetl.network import cost
from edgetl.network.network import Network
from edgetl.network.to_onnx import node_costs
from edgetl.preprocess import MASK, Preprocess
from edgetl.quantize.dtypes import shares
from edgetl.quantize.repair import Lowered
from edgetl.recipe.schema import Material, Target
from edgetl.session import Session
from edgetl.types import Feed, Json

PARITY_BATCHES = (1, 2, 7)
TOLERANCE = 1e-4
"""Of an fp32 file: the largest difference of an answer over the largest answer."""

CALIBRATION_BATCH = 16
"""Samples of one batch where a file is calibrated for timing."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Trial:
    """What exported files are tried on: n pre-processed samples, before the tail."""

    preprocess: Preprocess
    heads: Feed  # each (n, ...)
    y: NDArray[np.int64] | None  # (n,); None: the samples are made up and have no labels
    golden: tuple[int, ...]  # which of them the bundle carries
    raw: tuple[bytes, ...] | None  # the raw bytes of those
    tokens: int | None  # mean length of texts in training; MACs are counted at it
    digest: str  # of the data

    def batch(self, start: int, size: int) -> Feed:
        """Return the network's inputs for samples from `start` on."""
        return self.preprocess.tail({k: np.asarray(v[start : start + size]) for k, v in self.heads.items()})

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of a text; None where the data is no text."""
        return self.preprocess.operations[0]["length"] if self.preprocess.raw.kind == "text" else None

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(next(iter(self.heads.values())))


def torch_answers(net: Network, trial: Trial, n: int, size: int = 64) -> NDArray[np.float32]:
    """Return the (n, K) logits of the torch network on the first n samples, run `size` at a time."""
    with torch.inference_mode():
        parts = [
            net.logits({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in trial.batch(i, size).items()})
            for i in range(0, n, size)
        ]
    return torch.cat(parts)[:n].float().numpy()


def make(net: Network, trial: Trial, target: Target, out: Path, folder: Path, facts: Mapping[str, Json]) -> None:
    """Write the bundle of a network as its target makes it at once: neither repaired nor chosen, good for timing.

    `out` holds base.onnx and logits.npy of the network; `facts` are the manifest's `name` and what of its `provenance`
    the network does not know. A target that calibrates does so on the trial's inputs, and "auto" stands for fp32.

    Raises:
        GateMissed: the file does not equal its network; no bundle is written.

    """
    target = target.candidates(())[0]
    batches = range(0, trial.n, CALIBRATION_BATCH) if target.calibrates else ()
    material = Material(tuple(trial.batch(i, CALIBRATION_BATCH) for i in batches))
    with tempfile.TemporaryDirectory(dir=out, prefix=".", suffix=".tmp") as scratch:
        file = Path(scratch) / target.lower(out / "base.onnx", Path(scratch), material)
        checked = check(net, trial, Lowered(target, file), out, facts)
        ship(net, trial, checked, folder)


@dataclass(frozen=True)
class Checked:
    """A file whose answers are compared with its network's, and all that its manifest says."""

    lowered: Lowered
    answers: NDArray[np.float32]  # (n, K)
    manifest: Mapping[str, Json]

    def noted(self, provenance: Mapping[str, Json]) -> Checked:
        """Return it with more in the manifest's provenance."""
        return replace(self, manifest={**self.manifest, "provenance": {**self.manifest["provenance"], **provenance}})


def check(net: Network, trial: Trial, lowered: Lowered, out: Path, facts: Mapping[str, Json]) -> Checked:
    """Compare a lowered file with its network, whose base.onnx and logits.npy lie in `out`, and describe it.

    Raises:
        GateMissed: the file does not equal its network, or fails at a size of its dynamic axes.
        Refused: the runtime does not read what was made for it.

    """
    target = lowered.target
    session = target.judge(lowered.file, torch.get_num_threads())
    try:
        answers = evaluate.answers(session, trial.preprocess, trial.heads)
        parity = _parity(net, trial, session, (np.load(out / "logits.npy"), answers))
        exact = target.precision == "fp32"
        if exact and parity["max_rel"] > TOLERANCE:
            problem = f"{facts['name']}: parity {parity['max_rel']:.2g} of the largest answer, limit {TOLERANCE:g}"
            raise GateMissed(problem, fix=shape_audit.FIX)
        few = trial.batch(0, max(shape_audit.BATCHES))
        parity["shapes"] = shape_audit.audit(net, session, few, trial.most_tokens, TOLERANCE if exact else None)
    finally:
        session.close()
    manifest = {**describe(net, trial, lowered, out / "base.onnx"), "name": facts["name"]}
    manifest |= {"parity": parity, "accuracy": _accuracy(net, trial, answers, session.provider)}
    manifest["provenance"] |= facts["provenance"]
    return Checked(lowered, answers, manifest)


def ship(net: Network, trial: Trial, checked: Checked, folder: Path) -> None:
    """Write the bundle of a checked file."""
    file = checked.lowered.file
    files = {file.name: file}
    if trial.preprocess.raw.kind == "text":
        files["tokenizer.json"] = trial.preprocess.assets / "tokenizer.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_bundle(folder, checked.manifest, files, _golden(net, trial))


def _parity(net: Network, trial: Trial, session: Session, whole: tuple[NDArray[np.float32], ...]) -> Json:
    """Compare the file with torch on all samples, and at batch 1, 2 and an odd size."""
    found = [evaluate.parity(*whole)]
    few = min(trial.n, 3 * max(PARITY_BATCHES))
    rows = {k: np.asarray(v[:few]) for k, v in trial.heads.items()}
    for size in PARITY_BATCHES:
        answers = evaluate.answers(session, trial.preprocess, rows, size)
        found.append(evaluate.parity(torch_answers(net, trial, few, size)[: len(answers)], answers))
    worst = max(found, key=lambda p: p.max_rel)
    agreement = evaluate.interval_json(evaluate.agreement(*whole))
    more = {"n": trial.n, "batches": list(PARITY_BATCHES), "where": "export host", "provider": session.provider}
    return {**asdict(worst), "agreement": agreement, **more}


def _accuracy(net: Network, trial: Trial, answers: NDArray[np.float32], provider: str) -> Json:
    if trial.y is None:
        return None
    score = evaluate.score(answers, trial.y, net.labels).to_json()
    return {**score, "where": "export host", "provider": provider}


def _golden(net: Network, trial: Trial) -> Golden:
    rows = list(trial.golden)
    inputs = trial.preprocess.tail({k: np.asarray(v[rows]) for k, v in trial.heads.items()})
    with torch.inference_mode():
        logits = net.logits({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}).float().numpy()
    y = trial.y[rows] if trial.y is not None else logits.argmax(axis=1).astype(np.int64)
    return Golden(trial.raw, inputs, logits, y)


def describe(net: Network, trial: Trial, lowered: Lowered, base: Path) -> dict[str, Json]:
    """Return what a manifest says of a network's artifact besides its checks."""
    raw, target = trial.preprocess.raw, lowered.target
    text = raw.kind == "text"
    runtime, made_with = target.runtime().split()
    nodes = node_costs(base, {"batch": 1, "tokens": trial.tokens or 1})
    found = target.dtypes(lowered.file, [node["name"] for node in nodes])
    macs = cost.macs(net, trial.tokens)
    provenance = {
        "edgetl": edgetl.__version__,
        "backbone": _backbone(net),
        "data_sha256": trial.digest,
        "network_sha256": net.digest,
        "given_back": list(lowered.given_back),
        **({"chosen": net.facts["chosen"]} if "chosen" in net.facts else {}),
    }
    return {
        "schema_version": bundle.SCHEMA_VERSION,
        "task": "classification",
        "labels": list(net.labels),
        "raw": {"kind": raw.kind, "dtype": raw.dtype, "shape": list(raw.shape)},
        "inputs": [_input(net, trial, name) for name in trial.heads],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", len(net.labels)]}],
        "axes": {"batch": [1, None], **({"tokens": [1, trial.most_tokens]} if text else {})},
        "preprocessing": [dict(o) for o in trial.preprocess.operations],
        "postprocessing": [{"op": "softmax"}],
        "target": target.use,
        "precision": target.precision,
        "dtypes": shares(found, nodes),
        "session": target.session(),
        "runtime": {"name": runtime, "needs": target.needs(), "made_with": made_with},
        "file": lowered.file.name,
        "opset": max(o.version for o in onnx.load(base).opset_import if o.domain == ""),
        "cost": {
            "macs": macs,
            "parameters": cost.parameters(net),
            "tokens": trial.tokens,
            "nodes": [{**node, "dtype": found.get(node["name"])} for node in nodes],
        },
        "provenance": provenance,
    }


def _input(net: Network, trial: Trial, name: str) -> Json:
    if trial.preprocess.raw.kind != "text":
        return {"name": name, "dtype": "float32", "shape": ["batch", *trial.heads[name].shape[1:]], "range": None}
    highest = 1 if name == MASK else net.config["vocab_size"] - 1
    return {"name": name, "dtype": "int64", "shape": ["batch", "tokens"], "range": [0, highest]}


def _backbone(net: Network) -> Json:
    facts = {key: net.facts.get(key) for key in ("source", "licence")}
    if facts["licence"] is None and facts["source"] != "random":
        log.warning("the backbone %s names no licence: find out what you may do with it", facts["source"])
    return {"family": net.family.name, **facts}
