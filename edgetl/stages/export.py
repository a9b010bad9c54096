"""Networks -> bundles: base ONNX, one artifact per target, judged on the whole test split. [host: torch]"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from edgetl import artifact, bundle, comparison, extras, plugins, quantize, store, targets
from edgetl.artifact import Trial, torch_answers
from edgetl.data._fields import ImageFields, TextFields, image_operations, text_operations
from edgetl.data._signals import AudioFields, SignalFields, audio_operations, sensor_operations
from edgetl.dataset import open_data
from edgetl.errors import BadInput, EdgetlError, GateMissed
from edgetl.examples import Examples
from edgetl.golden import write_npz
from edgetl.network import by_optimum, keys, saved
from edgetl.network import network as networks
from edgetl.network.network import Network
from edgetl.network.to_onnx import to_onnx
from edgetl.operations import INPUTS
from edgetl.prepare import Prepared
from edgetl.preprocess import MASK, Preprocess, Raw
from edgetl.quantize.bar import Practice
from edgetl.quantize.produce import Order, Standard, produce
from edgetl.recipe.load import load
from edgetl.recipe.plan import COMPARED, folder_name, read_plan
from edgetl.recipe.read import Recipe, check
from edgetl.recipe.schema import Target
from edgetl.stages.latency import target_json
from edgetl.train.batches import Data
from edgetl.types import Operation

Exporter = Literal["torch", "optimum"]
PACKAGES = ("edgetl", "torch", "onnx", "onnxscript", "onnxruntime", "transformers")
MADE_UP = 64
"""Samples that a network without data is compared on."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Place:
    """Where one network's export goes, and the key of what all its files are made from."""

    name: str
    out: Path  # base.onnx, logits
    bundles: Path  # a folder per target below it
    key: str
    exporter: Exporter  # of base.onnx


@dataclass(frozen=True)
class Job:
    """One file to make, and the hash of the recipe reduced to it, "" where there is no recipe."""

    target: Target
    recipe: str

    @property
    def folder(self) -> str:
        """The name of its bundle's folder, and of its notes."""
        return folder_name(target_json(self.target))


def export(where: Path, targets: Sequence[str] = (), exporter: Exporter = "torch") -> list[Path]:
    """Export what is not exported yet, of a run or a single saved network, and return the bundle folders.

    `targets` limits a run's export to these, and adds those that its recipe does not name; a saved network, which has
    no recipe, is exported for them or for onnx. What the `exporter` optimum does not take, torch's exports.

    Raises:
        BadInput: the folder is neither, or a target is not known.
        BadHost: the exporter is not installed.
        GateMissed: exported files do not equal their networks; their bundles are not written, all others are.

    """
    if not saved.is_saved(where):
        read_plan(where)
    with store.locked(where):
        store.sweep(where)
        if saved.is_saved(where):
            return _one(where, [Job(plugins.find("targets", name)(), "") for name in targets or ("onnx",)], exporter)
        recipe = _recipe(where)
        torch.set_num_threads(recipe.frame.threads or len(os.sched_getaffinity(0)))  # as in training: sums depend on it
        return _all(recipe, where, _wanted(recipe, targets), exporter)


def judge(where: Path) -> None:
    """Check the exported files of a run against the gates that need no device; a single network has none.

    Raises:
        GateMissed: it names every file that misses one, the gate, the value and the limit.

    """
    if not saved.is_saved(where):
        comparison.judge(where, read_plan(where))


def _wanted(recipe: Recipe, names: Sequence[str]) -> list[Target]:
    """Return the recipe's targets of these names, all where none is given; what it does not name has its defaults."""
    if not names:
        return list(recipe.targets)
    wanted = [t for t in recipe.targets if t.use in names]
    for name in dict.fromkeys(names):
        if name not in {t.use for t in recipe.targets}:
            wanted.append(plugins.find("targets", name)())
            log.info("the recipe does not name the target %s: the report leaves it out", name)
    return wanted


def _all(recipe: Recipe, run: Path, targets: Sequence[Target], exporter: Exporter) -> list[Path]:
    """Export the reference and every student; what cannot be shipped is told when all others are done."""
    named = recipe.names()
    if late := next((n for n in named.values() if not saved.is_saved(run / n.folder)), None):
        raise BadInput(f"step '{late.name}' is not finished", fix=f"edgetl compress --recipe {run}/recipe.yaml")
    examples, prepared = open_data(recipe, run)
    trial, standard = _trial(recipe, run, examples, prepared), _standard(recipe, run, prepared)
    made: list[Path] = []
    missed: list[GateMissed] = []
    for name, node in named.items():
        folder = run / node.folder
        wanted = targets if node is not recipe.reference else _with_fp32(targets, recipe)
        key = _key(folder, trial, exporter)
        place = Place(name, run / "students" / name, run / "bundles" / name, key, exporter)
        try:
            made += _exports(folder, trial, [Job(t, recipe.digest(node, t)) for t in wanted], place, standard)
        except GateMissed as e:
            missed.append(e)
    if missed:
        raise GateMissed("; ".join(e.problem for e in missed), fix=missed[0].fix)
    return made


def _standard(recipe: Recipe, run: Path, prepared: Prepared) -> Standard:
    gates = recipe.frame.gates.model_dump(mode="json", exclude_none=True)
    practice = Practice(prepared, gates, recipe.frame.seed, torch.get_num_threads())
    base = run / "students" / recipe.reference.name / "base.onnx"
    return Standard(practice, base, keys.network_key(run / recipe.reference.folder))


def _with_fp32(targets: Sequence[Target], recipe: Recipe) -> list[Target]:
    """Return the reference's targets, fp32 among them: every accuracy is compared with that file."""
    if any(t.precision == "fp32" for t in targets):
        return list(targets)
    compared = plugins.find("targets", COMPARED["use"])(precision=COMPARED["precision"])
    return [next((t for t in recipe.targets if t.precision == "fp32"), compared), *targets]


def _one(folder: Path, jobs: Sequence[Job], exporter: Exporter) -> list[Path]:
    """Export a network that comes without data: compared with torch on made-up inputs, its accuracy unknown."""
    log.warning("%s has no data: the file is compared with torch on made-up inputs, its accuracy is not known", folder)
    trial = _made_up(networks.load(folder), folder)
    key = _key(folder, trial, exporter)
    place = Place("network", folder / "export", folder / "bundles" / "network", key, exporter)
    return _exports(folder, trial, jobs, place, None)


def _made_up(net: Network, folder: Path) -> Trial:
    raw, operations = _as_wanted(net, folder)
    heads = {k: v.numpy() for k, v in net.family.example(net.config, MADE_UP).items()}
    if raw.kind == "image":
        heads = {k: np.random.default_rng(0).integers(0, 256, v.shape, np.uint8) for k, v in heads.items()}
    tokens = heads[MASK].shape[1] if MASK in heads else None
    process = Preprocess(operations, raw, INPUTS[net.family.data], folder)
    return Trial(process, heads, None, tuple(range(32)), None, tokens, "")


def _as_wanted(net: Network, folder: Path) -> tuple[Raw, tuple[Operation, ...]]:
    """Return the raw data and the pre-processing that the network's weights want."""
    prep = net.family.prep(str(folder), net.config)
    match net.family.data:
        case "text":
            (tokenize,) = text_operations(TextFields(), prep)
            return Raw("text"), ({**tokenize, "file": saved.TOKENIZER},)
        case "audio":
            return Raw("audio"), audio_operations(AudioFields(), prep)
        case "sensor":
            raw = Raw("array", "float32", (prep.length or 1, prep.channels or 1))
            return raw, sensor_operations(SignalFields(), raw, prep)
        case "image":
            return Raw("image"), image_operations(ImageFields(), Raw("image"), prep)


def _recipe(run: Path) -> Recipe:
    read_plan(run)
    recipe, errors = check(load(run / "recipe.yaml"), "recipe.yaml")
    if recipe is None:
        raise errors[0]
    return recipe


def _trial(recipe: Recipe, run: Path, examples: Examples, prepared: Prepared) -> Trial:
    """Return the test split, and keep a copy for devices in eval/test.npz."""
    rows = prepared.splits["test"]
    heads = {name: np.asarray(values[rows]) for name, values in prepared.inputs.items()}
    path = run / "eval" / "test.npz"
    if not store.stamped(path.with_suffix(".json"), prepared.digest, [path]):
        with store.writing(path) as temporary:
            write_npz(temporary, {**heads, "y": prepared.y[rows]})
        store.stamp(path.with_suffix(".json"), prepared.digest, [path])
    size = min(recipe.frame.golden, len(rows))
    golden = np.linspace(0, len(rows) - 1, size).astype(int)
    raw = tuple(examples.read(int(rows[i])) for i in golden) if recipe.frame.golden_raw else None
    tokens = Data(prepared).mean_tokens()
    return Trial(prepared.preprocess(), heads, prepared.y[rows], tuple(golden.tolist()), raw, tokens, prepared.digest)


def _exports(folder: Path, trial: Trial, jobs: Sequence[Job], place: Place, standard: Standard | None) -> list[Path]:
    """Export one network for every target."""
    made_from = {job.folder: _job_key(place, job, standard) for job in jobs}
    missing = [job for job in jobs if not _finished(place, job, made_from[job.folder])]
    log.info("export of %s: %s", place.name, "running" if missing else "finished before")
    if missing:
        net = networks.load(folder)
        exporter = _base(net, trial, place)
        for job in missing:
            facts = {"name": place.name, "provenance": {"recipe_sha256": job.recipe, "exporter": exporter}}
            produce(net, trial, Order(job.target, place.out, place.bundles / job.folder, facts), standard)
            store.stamp(place.out / f"{job.folder}.json", made_from[job.folder], _files(place, job))
    return [place.bundles / job.folder for job in jobs]


def _key(folder: Path, trial: Trial, exporter: Exporter) -> str:
    """Return the hash of all that every file of a network is made from, the code included."""
    here = Path(artifact.__file__).parent
    code = [store.file_digest(here / name) for name in ("artifact.py", "network/to_onnx.py")]
    if exporter == "optimum":
        code += [store.file_digest(Path(by_optimum.__file__)), by_optimum.release()]
    versions = {p: version(p) for p in PACKAGES}
    golden = [list(trial.golden), trial.raw is not None]
    return store.digest([keys.network_key(folder), trial.digest, golden, code, versions])


def _job_key(place: Place, job: Job, standard: Standard | None) -> str:
    parts = [place.key, target_json(job.target), plugins.digest("targets", job.target.use), job.recipe]
    parts += [store.source_digest(Path(targets.__file__).parent), _versions(job.target)]
    if job.target.precision != "fp32":  # what such a file is depends on what it was calibrated, judged and made with
        code = store.source_digest(Path(quantize.__file__).parent)
        judged = [dict(standard.practice.gates), standard.practice.seed, standard.key] if standard else []
        parts += [code, *judged]
    return store.digest(parts)


def _versions(target: Target) -> dict[str, str]:
    """Return the versions of what a target needs beside ONNX Runtime, of its packages that are installed."""
    uses = {one.use for one in target.candidates(())}
    packages = {
        module.replace("_", "-")
        for use in uses
        for name in (use, f"{use}-rtx")
        for module in extras.MODULES.get(name, ())
    }
    return {d.name: d.version for d in distributions() if d.name.replace("_", "-").lower() in packages}


def _finished(place: Place, job: Job, key: str) -> bool:
    if not store.stamped(place.out / f"{job.folder}.json", key, _files(place, job)):
        return False
    try:
        bundle.open_bundle(place.bundles / job.folder)
    except EdgetlError as e:
        log.warning("%s: %s; it is made again", place.bundles / job.folder, e.problem)
        return False
    return True


def _files(place: Place, job: Job) -> list[Path]:
    return [place.bundles / job.folder / "SHA256SUMS", place.out / f"{job.folder}.npy", place.out / "logits.npy"]


def _base(net: Network, trial: Trial, place: Place) -> str:
    """Write base.onnx and the torch network's answers, unless they are there, and return what exports it."""
    files = [place.out / "base.onnx", place.out / "logits.npy"]
    name, write = _exporter(net, place)
    if not store.stamped(place.out / "base.json", place.key, files):
        write(net, files[0])
        with store.writing(files[1]) as temporary, temporary.open("wb") as f:
            np.save(f, torch_answers(net, trial, trial.n))
        store.stamp(place.out / "base.json", place.key, files)
    return name


def _exporter(net: Network, place: Place) -> tuple[str, Callable[[Network, Path], None]]:
    """Return the exporter's name and version, and what writes the file."""
    if place.exporter == "optimum":
        reason = by_optimum.why_not(net)
        if reason is None:
            return by_optimum.release(), by_optimum.to_onnx
        log.warning("%s: %s, so not optimum but torch exports it", place.name, reason)
    return f"torch {version('torch')}", to_onnx
