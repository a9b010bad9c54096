"""What a student gains from examples without labels: the teacher of `distill` labels them.

Few labelled images a class, and others whose labels nobody reads. On Fashion-MNIST a ResNet-20 that knows no more than
the labelled images teaches a ResNet-8, on CIFAR-10 a published ResNet-56 does. Every student sees as many images in
training, in as many steps.

    python benchmarks/unlabelled.py --fashion-mnist DIR --cifar10 DIR --weights resnet56.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _distill_images import STUDENT, VALIDATION, Images, context, shape_of, step_of
from _results import Row, finished, host, keep, percent, points
from numpy.typing import NDArray

from edgetl import intervals, plugins
from edgetl.network.network import Network, create
from edgetl.network.saved import prep_from_json
from edgetl.prepare import prepare
from edgetl.train.answers import answers
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS, RESULT = ROOT / "runs" / "benchmarks" / "unlabelled", Path(__file__).parent / "results" / "unlabelled.json"
SHOTS, VIEWS, QUICK_VIEWS = 25, 20_000, 4_000
MORE = (0, 1000, 10_000)
TEACHER = {"depth": 20, "channels": 16}
MINUTES_A_SEED = 12


@dataclass(frozen=True)
class Task:
    """The labelled images of one seed and as many others as a row asks for, with the published test part."""

    images: Images
    others: NDArray[np.uint8]

    def data(self, more: int) -> Data:
        """Return the labelled images, and so many others."""
        labelled = self.images.data.prepared.folder.parent
        folder = labelled / f"with-{more}"
        folder.mkdir(exist_ok=True)
        np.savez(folder / "more.npz", x=self.others[:more])
        extra = {"unlabelled": folder / "more.npz"} if more else {}
        source = self.images.source_of(labelled).model_copy(update=extra)
        examples = source.all_examples()
        operations = source.operations(examples.raw, prep_from_json({}, folder))
        return Data(prepare(source, examples, operations, 0, folder / "prepared"), source.augment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, required=True, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--cifar10", type=Path, required=True, help="folder with CIFAR-10 as train*.npz and test.npz")
    parser.add_argument("--weights", type=Path, required=True, help="the published ResNet-56, as safetensors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the training")
    parser.add_argument("--out", type=Path, help="JSON file [default: benchmarks/results/unlabelled.json]")
    options = parser.parse_args()
    views, seeds = (QUICK_VIEWS, 1) if options.quick else (VIEWS, options.seeds)
    out = options.out or (RUNS / "unlabelled.json" if options.quick else RESULT)
    print(f"about {MINUTES_A_SEED * seeds} minutes; finished rows of {out} are kept", flush=True)
    now = conditions(views)
    rows = finished(out, now)
    given = {"fashion-mnist": (options.fashion_mnist, None), "cifar10": (options.cifar10, options.weights)}
    for seed, (name, (source, weights)) in product(range(seeds), given.items()):
        if any((row["data"], row["seed"]) == (name, seed) for row in rows):
            continue
        of = task(Images(name, source.resolve(), SHOTS, 10_000, views, seed, RUNS, weights))
        rows += measured(of)
        keep(out, now, rows, targets(rows))
        print(rows[-1], file=sys.stderr, flush=True)
    show(json.loads(out.read_text("utf-8")))


def conditions(views: int) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "numpy")),
        "threads": 1,
        "tested": "the 10,000 test images of each set",
        "labelled": f"{SHOTS} images a class",
        "teachers": {"fashion-mnist": f"{TEACHER}, trained on the labelled images", "cifar10": "a published ResNet-56"},
        "student": STUDENT,
        "views": views,
        "interval": "95 %, paired over all test images of all seeds",
        "code": plugins.digest("methods", "distill")[:16],
    }


def task(images: Images) -> Task:
    """The images of one seed, and others in no order of their classes."""
    x, y = images.read("train")
    order = np.random.default_rng(images.seed).permutation(len(y))
    known = [order[y[order] == k][: SHOTS + VALIDATION] for k in range(10)]
    return Task(images, x[order[~np.isin(order, np.concatenate(known))][: max(MORE)]])


def measured(of: Task) -> list[Row]:
    """The rows of one seed: the teacher, and a student for every number of other images."""
    few, seed, views = of.data(0), of.images.seed, of.images.views
    shape = shape_of(few)
    teacher = of.images.teacher() if of.images.weights else create("resnet_cifar", TEACHER | shape, few.labels, seed)
    if not of.images.weights:
        teacher = run({"use": "finetune"}, teacher, few, views, seed)
    rows = [row("teacher", None, right(teacher, few), of)]
    student = {"use": "distill", "temperature": 4.0, "weight": 0.9,
               "student": {"family": "resnet_cifar", "source": {**STUDENT, **shape}}}  # fmt: skip
    for more in MORE:
        made = run(student, teacher, of.data(more), views, seed)
        rows.append(row("student", more, right(made, few), of))
    return rows


def run(settings: Mapping[str, Any], net: Network, data: Data, views: int, seed: int) -> Network:
    """The network after a step that sees this many images."""
    count = len(data.rows("train")) + len(data.rows("unlabelled"))
    return step_of(settings, count, views).run(net, context(data, seed, RUNS / "work"))


def right(net: Network, data: Data) -> NDArray[np.bool_]:
    rows = data.rows("test")
    return np.asarray(answers(net, data, rows).argmax(1) == data.prepared.y[rows])


def row(network: str, more: int | None, found: NDArray[np.bool_], of: Task) -> Row:
    who = {"data": of.images.name, "row": network, "unlabelled": more, "seed": of.images.seed}
    np.save(rights(who), found)
    return {**who, "n": len(found), "accuracy": percent(found.mean())}


def rights(who: Row) -> Path:
    RUNS.mkdir(parents=True, exist_ok=True)
    return RUNS / f"{who['data']}-{who['row']}-{who['unlabelled']}-{who['seed']}.npy"


def targets(rows: Sequence[Row]) -> list[Row]:
    """What a student gains on the labelled images alone, paired; the lower end has to be above 0."""
    found = []
    for data, more in product(dict.fromkeys(row["data"] for row in rows), MORE[1:]):
        alone, beside = (
            np.concatenate([np.load(rights(row)) for row in rows if (row["data"], row["unlabelled"]) == (data, count)])
            for count in (0, more)
        )
        gain = points(intervals.paired_difference(beside, alone))
        found.append({"name": f"{data}: points gained with {more} others", "goal": 0, **gain, "met": gain["low"] > 0})
    return found


def show(result: Row) -> None:
    """Print the targets and the rows as a table in Markdown."""
    for one in result["targets"]:
        met = "met" if one["met"] else "not met"
        print(f"{one['name']}: {one['value']:g} ({one['low']:g} to {one['high']:g}), goal {one['goal']:g}: {met}")
    print("\n| data | network | unlabelled images | accuracy %, by seed |\n|---|---|---|---|")
    same: dict[tuple[str, ...], list[str]] = {}
    for row in result["rows"]:
        key = row["data"], row["row"], "-" if row["unlabelled"] is None else str(row["unlabelled"])
        same.setdefault(key, []).append(str(row["accuracy"]))
    for key, each in same.items():
        print(f"| {' | '.join(key)} | {', '.join(each)} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    main()
