"""Networks -> bundles: base ONNX, one artifact per target, judged on the whole test split. [host: torch]"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from edgetl import artifact, bundle, comparison, plugins, store
from edgetl.artifact import Trial, torch_answers
from edgetl.data._fields import ImageFields, TextFields, image_operations, text_operations
from edgetl.dataset import open_data
from edgetl.errors import BadInput, EdgetlError, GateMissed
from edgetl.golden import write_npz
from edgetl.network import keys, saved
from edgetl.network import network as networks
from edgetl.network.network import Network
from edgetl.network.to_onnx import to_onnx
from edgetl.preprocess import IDS, MASK, Preprocess, Raw
from edgetl.recipe.load import load
from edgetl.recipe.plan import read_plan
from edgetl.recipe.read import Recipe, check
from edgetl.recipe.schema import Target
from edgetl.train.batches import Data

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


@dataclass(frozen=True)
class Job:
    """One file to make, and the hash of the recipe reduced to it, "" where there is no recipe."""

    target: Target
    recipe: str

    @property
    def folder(self) -> str:
        """The name of its bundle's folder, and of its notes."""
        return f"{self.target.use}-{self.target.precision}"


def export(where: Path, targets: Sequence[str] = ()) -> list[Path]:
    """Export what is not exported yet, of a run or a single saved network, and return the bundle folders.

    `targets` limits a run's export to these; a saved network, which has no recipe, is exported for them or for onnx.

    Raises:
        BadInput: the folder is neither, or a target is not known.
        GateMissed: exported files do not equal their networks; their bundles are not written, all others are.

    """
    if not saved.is_saved(where):
        read_plan(where)
    with store.locked(where):
        store.sweep(where)
        if saved.is_saved(where):
            return _one(where, [Job(plugins.find("targets", name)(), "") for name in targets or ("onnx",)])
        recipe = _recipe(where)
        torch.set_num_threads(recipe.frame.threads or len(os.sched_getaffinity(0)))  # as in training: sums depend on it
        wanted = [t for t in recipe.targets if not targets or t.use in targets]
        if unknown := set(targets) - {t.use for t in wanted}:
            fix = f"the recipe names: {', '.join(t.use for t in recipe.targets)}"
            raise BadInput(f"the recipe does not name the target {min(unknown)}", fix=fix)
        return _all(recipe, where, wanted)


def judge(where: Path) -> None:
    """Check the exported files of a run against the gates that need no device; a single network has none.

    Raises:
        GateMissed: it names every file that misses one, the gate, the value and the limit.

    """
    if not saved.is_saved(where):
        comparison.judge(where, read_plan(where))


def _all(recipe: Recipe, run: Path, targets: Sequence[Target]) -> list[Path]:
    """Export the reference and every student; what cannot be shipped is told when all others are done."""
    trial = _trial(recipe, run)
    made: list[Path] = []
    missed: list[GateMissed] = []
    for name, node in recipe.names().items():
        folder = run / node.folder
        if not saved.is_saved(folder):
            fix = f"edgetl compress --recipe {run}/recipe.yaml"
            raise BadInput(f"step '{node.name}' is not finished", fix=fix)
        place = Place(name, run / "students" / name, run / "bundles" / name, _key(folder, trial))
        try:
            made += _exports(folder, trial, [Job(t, recipe.digest(node, t)) for t in targets], place)
        except GateMissed as e:
            missed.append(e)
    if missed:
        raise GateMissed("; ".join(e.problem for e in missed), fix=missed[0].fix)
    return made


def _one(folder: Path, jobs: Sequence[Job]) -> list[Path]:
    """Export a network that comes without data: compared with torch on made-up inputs, its accuracy unknown."""
    log.warning("%s has no data: the file is compared with torch on made-up inputs, its accuracy is not known", folder)
    trial = _made_up(networks.load(folder), folder)
    return _exports(
        folder, trial, jobs, Place("network", folder / "export", folder / "bundles" / "network", _key(folder, trial))
    )


def _made_up(net: Network, folder: Path) -> Trial:
    prep = net.family.prep(str(folder), net.config)
    example = {k: v.numpy() for k, v in net.family.example(net.config, MADE_UP).items()}
    if net.family.data == "text":
        raw, operations = Raw("text"), text_operations(TextFields(), prep)
        operations = ({**operations[0], "file": saved.TOKENIZER},)
        names: tuple[str, ...] = (IDS, MASK)
        heads = example
    else:
        raw = Raw("image")
        operations = image_operations(ImageFields(), raw, prep)
        names = tuple(example)
        heads = {k: np.random.default_rng(0).integers(0, 256, v.shape, np.uint8) for k, v in example.items()}
    tokens = heads[MASK].shape[1] if MASK in heads else None
    process = Preprocess(operations, raw, names, folder)
    return Trial(process, heads, None, tuple(range(32)), None, tokens, "")


def _recipe(run: Path) -> Recipe:
    read_plan(run)
    recipe, errors = check(load(run / "recipe.yaml"), "recipe.yaml")
    if recipe is None:
        raise errors[0]
    return recipe


def _trial(recipe: Recipe, run: Path) -> Trial:
    """Return the test split, and keep a copy for devices in eval/test.npz."""
    examples, prepared = open_data(recipe, run)
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


def _exports(folder: Path, trial: Trial, jobs: Sequence[Job], place: Place) -> list[Path]:
    """Export one network for every target."""
    missing = [job for job in jobs if not _finished(place, job)]
    log.info("export of %s: %s", place.name, "running" if missing else "finished before")
    if missing:
        net = networks.load(folder)
        _base(net, trial, place)
        for job in missing:
            facts = {"name": place.name, "provenance": {"recipe_sha256": job.recipe}}
            artifact.make(net, trial, job.target, place.out, place.bundles / job.folder, facts)
            store.stamp(place.out / f"{job.folder}.json", _job_key(place, job), _files(place, job))
    return [place.bundles / job.folder for job in jobs]


def _key(folder: Path, trial: Trial) -> str:
    """Return the hash of all that every file of a network is made from, the code included."""
    here = Path(artifact.__file__).parent
    code = [store.file_digest(here / name) for name in ("artifact.py", "network/to_onnx.py")]
    versions = {p: version(p) for p in PACKAGES}
    golden = [list(trial.golden), trial.raw is not None]
    return store.digest([keys.network_key(folder), trial.digest, golden, code, versions])


def _job_key(place: Place, job: Job) -> str:
    target = job.target
    return store.digest([place.key, target.use, target.precision, plugins.digest("targets", target.use), job.recipe])


def _finished(place: Place, job: Job) -> bool:
    if not store.stamped(place.out / f"{job.folder}.json", _job_key(place, job), _files(place, job)):
        return False
    try:
        bundle.open_bundle(place.bundles / job.folder)
    except EdgetlError as e:
        log.warning("%s: %s; it is made again", place.bundles / job.folder, e.problem)
        return False
    return True


def _files(place: Place, job: Job) -> list[Path]:
    return [place.bundles / job.folder / "SHA256SUMS", place.out / f"{job.folder}.npy", place.out / "logits.npy"]


def _base(net: Network, trial: Trial, place: Place) -> None:
    """Write base.onnx and the torch network's answers, unless they are there."""
    files = [place.out / "base.onnx", place.out / "logits.npy"]
    if not store.stamped(place.out / "base.json", place.key, files):
        to_onnx(net, files[0])
        with store.writing(files[1]) as temporary, temporary.open("wb") as f:
            np.save(f, torch_answers(net, trial, trial.n))
        store.stamp(place.out / "base.json", place.key, files)
