"""Recipe -> networks: every step on every branch in a folder of its own, finished ones loaded. [host: torch]"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from edgetl import plugins, ranks, remote, store
from edgetl.attached import absence
from edgetl.dataset import open_data
from edgetl.device import LOCAL, Device, load_device
from edgetl.errors import BadInput
from edgetl.measure.measurement import Measurement
from edgetl.network import keys, saved
from edgetl.network import network as networks
from edgetl.network.network import Network
from edgetl.recipe.branches import SOURCE, Node
from edgetl.recipe.plan import write_plan
from edgetl.recipe.read import Recipe, placeless
from edgetl.recipe.schema import Context
from edgetl.roofline import Prediction
from edgetl.stages import latency
from edgetl.train import record
from edgetl.train.batches import Data
from edgetl.types import Json

PACKAGES = (
    *("edgetl", "torch", "transformers", "peft", "accelerate", "numpy"),
    *("safetensors", "tokenizers", "pillow", "onnxscript"),
)

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Run:
    """What all steps of one run share."""

    recipe: Recipe
    folder: Path
    data: Data
    conditions: Json  # versions, threads, device kind: part of every key
    away: frozenset[str] = frozenset()  # devices that cannot be measured now, for which steps predict

    @property
    def old(self) -> Path:
        """Where stale results go."""
        return self.folder / "steps" / ".old"

    def at(self, node: Node) -> Path:
        """The folder of a node."""
        return self.folder / node.folder


def compress(recipe: Recipe, run: Path) -> dict[str, Path]:
    """Run every step that is not finished; return the network folders of the reference and all students by name.

    Where several processes were launched together, all of them take part in training, and the first one alone writes.

    Raises:
        EdgetlError: the data, a step or the machine is at fault; finished steps stay.

    """
    with store.locked(run) if ranks.first() else nullcontext():
        torch.set_num_threads(recipe.frame.threads or len(os.sched_getaffinity(0)))
        conditions = environment(torch.get_num_threads())
        if ranks.first():
            store.sweep(run)
            write_plan(recipe, run)
            store.keep_json(run / "environment.json", conditions)
            open_data(recipe, run)
        ranks.wait()
        away = _check_devices(recipe, run)
        work = Run(recipe, run, Data(open_data(recipe, run)[1], recipe.data.augment), conditions, away)
        for node in recipe.nodes:
            _step(work, node)
            ranks.wait()
        if ranks.first():
            _tidy(work)
        return {name: work.at(node) for name, node in recipe.names().items()}


def environment(threads: int) -> Json:
    """Return the versions and conditions that results depend on."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "versions": {p: _version(p) for p in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads,
        **({"processes": ranks.count()} if ranks.count() > 1 else {}),
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
    }


def step_key(work: Run, node: Node) -> str:
    """Return the content hash of all that a step reads; its input and the steps it names must be finished."""
    recipe = work.recipe
    common = {"data": work.data.digest, "seed": node.seed(recipe.frame.seed), "conditions": work.conditions}
    if node.step is None:
        model = recipe.frame.model
        return store.digest({**common, "model": _source_key(model.family, model.source), "labels": [*work.data.labels]})
    assert node.parent is not None
    reads = {name: _digest(work, node, name) for name in node.step.reads()}
    inputs: dict[str, Json] = {
        "input": keys.network_key(work.at(node.parent)),
        "reads": reads,
        "sources": [_source_key(family, where) for family, where in node.step.sources()],
    }
    step = placeless(node.step.model_dump(mode="json"))  # what lies at its sources counts, not where they are
    if devices := node.step.devices():
        inputs["measured"] = [latency.target_json(t) for t in recipe.targets[:1]] + [_device_key(d) for d in devices]
        inputs |= {"away": sorted(away)} if (away := work.away.intersection(devices)) else {}
    return store.digest({**common, **inputs, "step": step, "code": _code(work, node)})


def _check_devices(recipe: Recipe, run: Path) -> frozenset[str]:
    """Return the devices that cannot be measured and for which steps predict.

    Others that steps still have to measure on are refused before anything is trained.
    """
    left = [n.step for n in recipe.nodes if n.step is not None and not saved.is_saved(run / n.folder)]
    if not recipe.targets and any(step.devices() for step in left):
        raise BadInput("latency is measured on the first target, and the recipe has none", fix="name one in `targets:`")
    for name in dict.fromkeys(name for step in left if not step.predicts for name in step.devices()):
        remote.require(load_device(name))
    predicting = [n.step for n in recipe.nodes if n.step is not None and n.step.predicts]
    asked = dict.fromkeys(name for step in predicting for name in step.devices())
    return frozenset(name for name in asked if absence(load_device(name)))


def _device_key(name: str) -> Json:
    """Return what a device is known by: this machine, and one at an address, by their name, others by their file."""
    if name == LOCAL or "://" in name:
        return name
    return load_device(name).model_dump(mode="json", by_alias=True)


def _source_key(family: str, where: str | Mapping[str, Json]) -> Json:
    return [family, plugins.digest("families", family), keys.source_key(where)]


def _code(work: Run, node: Node) -> Json:
    """Return the hashes of what decides what a step does: its method, family and losses."""
    assert node.step is not None
    assert node.parent is not None
    family = str(saved.read_header(work.at(node.parent))["family"])
    named = {o.use for o in getattr(node.step, "losses", ())} or {"labels", "logits"}
    losses = [plugins.digest("losses", use) for use in sorted(named)] if node.step.trains else []
    return [plugins.digest("methods", node.step.use), plugins.digest("families", family), *losses]


def _step(work: Run, node: Node) -> None:
    key, folder = step_key(work, node), work.at(node)
    if ranks.agreed(lambda: keys.finished(folder, key) or _outlives(work, node)):
        log.info("%s on %s: finished before", node.name, node.branch)
        return
    log.info("%s on %s: running", node.name, node.branch)
    scratch = work.folder / "steps" / ".work" / f"{node.number:02d}-{node.name}-{node.branch}"
    if ranks.first():
        store.retire(folder, work.old)
        if not store.stamped(scratch / "key.json", key, []):  # what lies there is of other settings or other inputs
            store.remove(scratch)
            store.stamp(scratch / "key.json", key, [])
    if node.step is not None and node.step.trains:
        ranks.wait()
    elif not ranks.first():
        return  # what does not train is made by the first process alone
    made = _source(work, node) if node.step is None else _run(work, node, scratch)
    if ranks.first():
        _save(work, node, made, scratch)


def _save(work: Run, node: Node, made: Network, scratch: Path) -> None:
    """Write the network of a finished step into its folder, checked, and what was logged of its training beside it."""
    key, folder = step_key(work, node), work.at(node)
    extra: dict[str, Json] = {"key": key, "step": node.name, "branch": node.branch}
    with store.folder_being_made(folder) as temporary:
        record.keep(scratch, temporary)
        networks.save(made, temporary, extra, _assets(work))
        networks.check_plain(made, temporary)
    store.remove(scratch)


def _outlives(work: Run, node: Node) -> bool:
    """Return whether the step was finished when the devices that are away now were attached: a measurement stays."""
    there = replace(work, away=frozenset())
    return bool(work.away) and keys.finished(work.at(node), step_key(there, node))


def _source(work: Run, node: Node) -> Network:
    model = work.recipe.frame.model
    return networks.create(model.family, model.source, work.data.labels, node.seed(work.recipe.frame.seed))


def _run(work: Run, node: Node, scratch: Path) -> Network:
    assert node.step is not None
    assert node.parent is not None
    seed = node.seed(work.recipe.frame.seed)
    past, once = partial(_past, work, node), partial(_once, work, node)
    measure, predict = partial(_measure, work, scratch), partial(_predict, work, scratch)
    context = Context(work.data, seed, scratch, past, once, measure, predict)
    torch.manual_seed(seed)
    return node.step.run(networks.load(work.at(node.parent)), context)


def _past(work: Run, node: Node, name: str) -> Network:
    ancestor = node.ancestor(name)
    if ancestor is None:
        raise BadInput(f"step '{node.name}': no earlier step '{name}'", fix=f"name an ancestor, e.g. '{SOURCE}'")
    return networks.load(work.at(ancestor))


def _digest(work: Run, node: Node, name: str) -> str:
    ancestor = node.ancestor(name)
    assert ancestor is not None, name
    return keys.network_key(work.at(ancestor))


def _once(
    work: Run, node: Node, what: str, parts: Mapping[str, Json | Network], make: Callable[[Path, int], None]
) -> Path:
    """Return the folder that `make` fills once for all branches: keyed by what it is made from, never by a branch."""
    plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
    common = {"what": what, "parts": plain, "data": work.data.digest, "seed": work.recipe.frame.seed}
    key = store.digest({**common, "code": _code(work, node), "conditions": work.conditions})
    seed = int(store.digest(common)[:8], 16)  # neither versions nor a comment in the code draw other samples
    folder = work.folder / "shared" / f"{what}-{key[:16]}"
    if ranks.count() > 1 and node.step is not None and node.step.trains:
        return _once_together(folder, key, lambda out: make(out, seed), work.old)
    return store.made_once(folder, key, lambda out: make(out, seed), work.old)


def _once_together(folder: Path, key: str, make: Callable[[Path], None], old: Path) -> Path:
    """Let all processes make what may need all of them, such as a training, and keep what the first one made."""
    if not ranks.agreed(lambda: store.whole(folder, key)):
        if ranks.first():
            store.made_once(folder, key, make, old)
        else:
            with TemporaryDirectory() as nowhere:
                make(Path(nowhere))
        ranks.wait()
    return folder


def _measure(work: Run, scratch: Path, networks: Sequence[Network], device: Device) -> list[Measurement]:
    return latency.latencies(networks, device, _bench(work, scratch))


def _predict(work: Run, scratch: Path, networks: Sequence[Network], device: Device) -> list[Prediction]:
    return latency.predictions(networks, device, _bench(work, scratch))


def _bench(work: Run, scratch: Path) -> latency.Bench:
    trial = latency.trial(work.data, work.recipe.frame.golden)
    return latency.Bench(work.recipe.targets[0], trial, scratch, work.folder / "shared", work.old)


def _assets(work: Run) -> Path | None:
    folder = work.data.prepared.folder
    return folder if (folder / "tokenizer.json").is_file() else None


def _tidy(work: Run) -> None:
    """Move what the recipe no longer names out of the way."""
    names = set(work.recipe.names())
    for kind in ("students", "bundles"):
        for path in sorted((work.folder / kind).glob("[!.]*")):
            if path.name not in names:
                store.retire(path, work.folder / kind / ".old")
    kept = {work.at(n) for n in work.recipe.nodes}
    for path in sorted((work.folder / "steps").glob("[0-9]*/*")):
        if path not in kept:
            store.retire(path, work.old)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
