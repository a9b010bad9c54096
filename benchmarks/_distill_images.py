"""Few images a class: a small ResNet trained with every loss that needs no teacher, and with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from _results import Row, packed, percent
from numpy.typing import NDArray
from optin_cnn import CLASSES, decoded

from edgetl import plugins, store
from edgetl.data._arrays import read_idx
from edgetl.data.arrays import Arrays
from edgetl.evaluate import calibration_error
from edgetl.families.resnet_cifar import MEAN, STD
from edgetl.network.network import Network, create, load, save
from edgetl.network.saved import is_saved, prep_from_json
from edgetl.prepare import prepare
from edgetl.recipe.schema import Context, Step
from edgetl.train.answers import answers
from edgetl.train.batches import Data

STUDENT = {"depth": 8, "channels": 16}
TEACHER = {"depth": 20, "channels": 16}
SCHEDULE = {"lr": 3.0e-3, "weight_decay": 0.05, "warmup": 0.1}
VIEWS_A_STEP = 64
"""Views in one step of every row: as many steps of every row, too."""

AS_READ = {"use": "lsskd", "mode": "paper", "temperature": 3.0, "standardised": False, "heads": "full"}
AS_READ |= {"teacher": "table"}
DISTILLED = {"use": "finetune", "teacher": {"step": "teacher", "temperature": 4.0, "weight": 0.9}}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "ce": {"use": "finetune"},
    "label_smoothing": {"use": "finetune", "label_smoothing": 0.1},
    "ps_kd": {"use": "finetune", "losses": [{"use": "ps_kd"}]},
    "byot": {"use": "finetune", "losses": [{"use": "byot"}]},
    "lsskd": {"use": "lsskd", "losses": [AS_READ]},
    "lsskd_default": {"use": "lsskd"},
    "kd": DISTILLED,
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "lsskd+aggregate": {"use": "lsskd", "losses": [{**AS_READ, "aggregate": 1.0}]},
    "lsskd+standardised": {"use": "lsskd", "losses": [{**AS_READ, "standardised": True}]},
    "lsskd+average": {"use": "lsskd", "losses": [{**AS_READ, "teacher": "average", "decay": 0.99}]},
    "lsskd+snapshot": {"use": "lsskd", "losses": [{**AS_READ, "teacher": "snapshot"}]},
    "lsskd+light": {"use": "lsskd", "losses": [{**AS_READ, "heads": "light"}]},
    "lsskd+two_views": {"use": "lsskd", "losses": [{**AS_READ, "views": 2}]},
    "default+aggregate": {"use": "lsskd", "losses": [{"use": "lsskd", "aggregate": 1.0}]},
    "default+two_views": {"use": "lsskd", "losses": [{"use": "lsskd", "views": 2}]},
    "default-past": {"use": "lsskd", "losses": [{"use": "lsskd", "alpha": 0.0}]},
    "default+deep_to_shallow": {"use": "lsskd", "losses": [{"use": "lsskd", "kl": 1.0}]},
    "default+light": {"use": "lsskd", "losses": [{"use": "lsskd", "heads": "light"}]},
    "lsskd+ema": {"use": "lsskd", "losses": [AS_READ], "schedule": {"ema": 0.99}},
    "lsskd+cutmix": {"use": "lsskd", "losses": [AS_READ], "schedule": {"mix": {"op": "cutmix"}}},
    "lsskd+mixup": {"use": "lsskd", "losses": [AS_READ], "schedule": {"mix": {"op": "mixup", "alpha": 0.2}}},
    "lsskd+teacher": {
        "use": "lsskd",
        "teacher": {"step": "teacher"},
        "losses": [AS_READ, {"use": "logits", "temperature": 4.0}],
    },
    "lsskd+teacher+aggregate": {
        "use": "lsskd",
        "teacher": {"step": "teacher"},
        "losses": [{**AS_READ, "aggregate": 1.0}, {"use": "logits", "temperature": 4.0}],
    },
    "ce+cutmix": {"use": "finetune", "schedule": {"mix": {"op": "cutmix"}}},
    "ce+ema": {"use": "finetune", "schedule": {"ema": 0.99}},
}
AUGMENT: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "cifar10": ({"op": "flip"}, {"op": "shift", "pixels": 4}),
    "cifar100": ({"op": "flip"}, {"op": "shift", "pixels": 4}),
    "fashion-mnist": ({"op": "flip"}, {"op": "shift", "pixels": 2}),
    "digits": ({"op": "shift", "pixels": 1},),  # mirrored, a digit is another character
}
VALIDATION = 20
"""Images a class that are held out of training."""

FREE = tuple(name for name in ROWS if name != "kd")
"""Rows without a teacher."""


@dataclass(frozen=True)
class Images:
    """One data set, its few-shot part for one seed, and the teacher of its KD row."""

    name: str
    source: Path | None  # None: the digits of scikit-learn
    shots: int | None  # images a class; None: all
    tested: int
    views: int  # of every row
    seed: int
    runs: Path
    weights: Path | None = None  # of a teacher that is there already

    @cached_property
    def data(self) -> Data:
        """Return the few-shot part, with a small validation part and the published test part."""
        return self.part(self.shots, "few")

    def teacher(self) -> Network:
        """Return the published ResNet-56, or a ResNet-20 trained once on ten times as many images, as many views."""
        if self.weights is not None:
            return create("resnet_cifar", str(self.weights), CLASSES, 0)
        folder = self.runs / "teachers" / f"{self.name}-{self.views}"
        if not is_saved(folder):
            data = replace(self, seed=0).part(None if self.shots is None else min(10 * self.shots, self.most()), "many")
            net = create("resnet_cifar", {**TEACHER, **shape_of(data)}, data.labels, 0)
            save(trained(net, data, {"use": "finetune"}, self.views, context(data, 0, self.runs / "work")), folder)
        return load(folder)

    def most(self) -> int:
        """Return the training images a class beyond which a part for validation would be lacking."""
        return int(np.bincount(self.read("train")[1]).min()) - VALIDATION

    def part(self, shots: int | None, what: str) -> Data:
        """Return so many training images a class, drawn by the seed, with validation and test."""
        folder = self.runs / "data" / f"{self.name}-{what}-{shots}-{self.tested}-{self.seed}"
        if not (folder / "classes.txt").is_file():
            self._cut(shots, folder)
        source = self.source_of(folder)
        examples = source.examples()
        operations = source.operations(examples.raw, prep_from_json({}, folder))
        return Data(prepare(source, examples, operations, 0, folder / "prepared"), source.augment)

    def source_of(self, folder: Path) -> Arrays:
        """Return the recipe's line for such a folder."""
        colour = {"mean": MEAN, "std": STD} if self.name.startswith("cifar") else {}
        return Arrays.model_validate({"root": folder, **colour, "augment": AUGMENT[self.name]})

    def _cut(self, shots: int | None, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        x, y = self.read("train")
        order = np.random.default_rng(self.seed).permutation(len(y))
        each = [order[y[order] == k] for k in range(int(y.max()) + 1)]
        parts = {"train": [e[VALIDATION:][:shots] for e in each], "validation": [e[:VALIDATION] for e in each]}
        for part, rows in parts.items():
            chosen = np.sort(np.concatenate(rows))
            np.savez(folder / f"{part}.npz", x=x[chosen], y=y[chosen])
        x, y = self.read("test")
        np.savez(folder / "test.npz", x=x[: self.tested], y=y[: self.tested])
        names = CLASSES if self.name == "cifar10" else tuple(map(str, range(len(each))))
        (folder / "classes.txt").write_text("\n".join(names) + "\n", "utf-8")

    def read(self, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return images and classes of the published train or test part."""
        if self.source is None:
            return _digits(part)
        if self.name.startswith("cifar"):
            found = [decoded(file) for file in sorted(self.source.glob(f"{part}*.npz"))]
            return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])
        stem = "train" if part == "train" else "t10k"
        files = (f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz")
        x, y = (read_idx(self.source / file) for file in files)
        return x, y.astype(np.int64)


def _digits(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images * 255 / 16).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(x))
    rows = order[:1000] if part == "train" else order[1000:]
    return x[rows], found.target[rows].astype(np.int64)


def shape_of(data: Data) -> dict[str, int]:
    """The sizes of a student that reads this data."""
    channels, size, _ = data.prepared.inputs["pixel_values"].shape[1:]
    return {"num_channels": int(channels), "image_size": int(size)}


def views_of(settings: Mapping[str, Any]) -> int:
    """Views of every sample: transformations, and the mixture beside the whole sample."""
    wide = max((int(loss.get("views", 4)) for loss in _losses(settings) if loss["use"] == "lsskd"), default=1)
    whole = any(loss["use"] in ("lsskd", "ps_kd") for loss in _losses(settings))
    return wide + (whole and "mix" in settings.get("schedule", {}))


def _losses(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    step: Step = plugins.find("methods", settings["use"]).model_validate(settings)
    return [loss.model_dump() for loss in getattr(step, "losses", ())]


def step_of(settings: Mapping[str, Any], images: int, views: int) -> Step:
    """The step that sees this many views of the images, in as many steps as any other."""
    each = views_of(settings)
    own = dict(settings.get("schedule", {}))
    batch = max(1, own.pop("views_a_step", VIEWS_A_STEP) // each)
    schedule = {**SCHEDULE, "epochs": max(1, round(views / (images * each))), "batch": batch, **own}
    found: Step = plugins.find("methods", settings["use"]).model_validate({**settings, "schedule": schedule})
    return found


def trained(net: Network, data: Data, settings: Mapping[str, Any], views: int, ctx: Context) -> Network:
    """The network after the step that sees this many views."""
    return step_of(settings, len(data.rows("train")), views).run(net, ctx)


def context(data: Data, seed: int, work: Path, teacher: Network | None = None) -> Context:
    """What a step may use: one teacher, and tables made once in its scratch folder."""

    def once(what: str, parts: Mapping[str, Any], make: Callable[[Path, int], None]) -> Path:
        plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
        key = store.digest([what, plain, data.digest])
        return store.made_once(work / "shared" / key[:16], key, lambda to: make(to, 0), work / ".old")

    def past(_: str) -> Network:
        assert teacher is not None
        return teacher.copy()

    return Context(data, seed, work, past, once)


def measured(images: Images, row: str, settings: Mapping[str, Any], views: int) -> Row:
    """Train one row and judge it on the test part."""
    data = images.data
    teacher = images.teacher() if "teacher" in settings else None
    net = create("resnet_cifar", {**STUDENT, **shape_of(data)}, data.labels, images.seed)
    work = images.runs / "work" / f"{images.name}-{row}-{images.seed}"
    started = time.process_time()
    made = trained(net, data, settings, views, context(data, images.seed, work, teacher))
    seconds = time.process_time() - started
    store.remove(work)
    rows = data.rows("test")
    logits, y = answers(made, data, rows), data.prepared.y[rows]
    right = logits.argmax(1) == y
    step: Any = step_of(settings, len(data.rows("train")), views)  # a method that trains has a schedule
    told = {"epochs": step.schedule.epochs, "views_a_sample": views_of(settings), "cpu_s": round(seconds, 1)}
    told["views"] = told["epochs"] * told["views_a_sample"] * len(data.rows("train"))
    score = {"n": len(y), "accuracy": percent(right.mean()), "ece": percent(calibration_error(logits, y))}
    return {**told, **score, "right": packed(right)}


def code_of(settings: Mapping[str, Any]) -> str:
    """What a row's figures depend on besides the conditions: its settings, and the code of its method and losses."""
    losses = [loss["use"] for loss in _losses(settings)] or ["labels", "logits"]
    code = [plugins.digest("methods", settings["use"]), *(plugins.digest("losses", name) for name in losses)]
    return store.digest([settings, code])[:16]


def wanted(sets: Sequence[str], seeds: int, *, options: bool) -> Iterator[tuple[str, str, str, int]]:
    """Table, data set, row and seed of all rows, in the order in which they are made."""
    for seed in range(seeds):
        for name in sets:
            yield from (("equal_views", name, row, seed) for row in ROWS)
    for seed in range(seeds):
        for name in sets:
            yield from (("equal_time", name, row, seed) for row in ROWS)
    for seed in range(seeds if options else 0):
        yield from (("options", sets[0], row, seed) for row in OPTIONS)
