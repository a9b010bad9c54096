"""What a student gains from examples without labels: the teacher of `distill` labels them.

Fashion-MNIST with few labelled images a class, on which a ResNet-20 is trained; it then teaches a ResNet-8, on the same
images alone or with others whose labels nobody reads. Every student sees as many images in training, in as many steps.

    python benchmarks/unlabelled.py --fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _distill_images import STUDENT, Images, context, step_of
from _results import Row, finished, host, keep, percent, points
from numpy.typing import NDArray

from edgetl import intervals, plugins
from edgetl.data.arrays import Arrays
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
MINUTES_A_SEED = 6


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
        source = Arrays.model_validate({"root": labelled, "augment": self.images.data.augment, **extra})
        examples = source.all_examples()
        operations = source.operations(examples.raw, prep_from_json({}, folder))
        return Data(prepare(source, examples, operations, 0, folder / "prepared"), source.augment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, required=True, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the training")
    parser.add_argument("--out", type=Path, help="JSON file [default: benchmarks/results/unlabelled.json]")
    options = parser.parse_args()
    views, seeds = (QUICK_VIEWS, 1) if options.quick else (VIEWS, options.seeds)
    out = options.out or (RUNS / "unlabelled.json" if options.quick else RESULT)
    print(f"about {MINUTES_A_SEED * seeds} minutes; finished rows of {out} are kept", flush=True)
    now = conditions(views)
    rows = finished(out, now)
    for seed in range(seeds):
        if any(row["seed"] == seed for row in rows):
            continue
        rows += measured(task(options.fashion_mnist.resolve(), views, seed), views)
        keep(out, now, rows, targets(rows))
        print(rows[-1], file=sys.stderr, flush=True)
    show(json.loads(out.read_text("utf-8")))


def conditions(views: int) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "numpy")),
        "threads": 1,
        "data": "Fashion-MNIST, 10,000 test images",
        "labelled": f"{SHOTS} images a class",
        "teacher": TEACHER,
        "student": STUDENT,
        "views": views,
        "interval": "95 %, paired over all test images of all seeds",
        "code": plugins.digest("methods", "distill")[:16],
    }


def task(source: Path, views: int, seed: int) -> Task:
    """The images of one seed; the others are drawn from what is not labelled, without reading a label."""
    images = Images("fashion-mnist", source, SHOTS, 10_000, views, seed, RUNS)
    x, y = images._read("train")
    order = np.random.default_rng(seed).permutation(len(y))
    known = [order[y[order] == k][: SHOTS + 20] for k in range(10)]
    left = np.setdiff1d(order, np.concatenate(known))
    return Task(images, x[np.random.default_rng(seed).permutation(left)[: max(MORE)]])


def measured(of: Task, views: int) -> list[Row]:
    """The rows of one seed: the teacher, and a student for every number of other images."""
    few, seed = of.data(0), of.images.seed
    shape = {"num_channels": 1, "image_size": 28}
    teacher = create("resnet_cifar", {**TEACHER, **shape}, few.labels, seed)
    teacher = run({"use": "finetune"}, teacher, few, views, seed)
    rows = [row("teacher", None, right(teacher, few), seed, of)]
    student = {"use": "distill", "temperature": 4.0, "weight": 0.9,
               "student": {"family": "resnet_cifar", "source": {**STUDENT, **shape}}}  # fmt: skip
    for more in MORE:
        made = run(student, teacher, of.data(more), views, seed)
        rows.append(row("student", more, right(made, few), seed, of))
    return rows


def run(settings: Mapping[str, Any], net: Network, data: Data, views: int, seed: int) -> Network:
    """The network after a step that sees this many images."""
    count = len(data.rows("train")) + len(data.rows("unlabelled"))
    return step_of(settings, count, views).run(net, context(data, seed, RUNS / "work"))


def right(net: Network, data: Data) -> NDArray[np.bool_]:
    rows = data.rows("test")
    return np.asarray(answers(net, data, rows).argmax(1) == data.prepared.y[rows])


def row(name: str, more: int | None, found: NDArray[np.bool_], seed: int, of: Task) -> Row:
    np.save(rights(of.images.runs, name, more, seed), found)
    return {"row": name, "unlabelled": more, "seed": seed, "n": len(found), "accuracy": percent(found.mean())}


def rights(runs: Path, name: str, more: int | None, seed: int) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    return runs / f"{name}-{more}-{seed}.npy"


def targets(rows: Sequence[Row]) -> list[Row]:
    """What a student gains on the labelled images alone, paired; the lower end has to be above 0."""
    seeds = sorted({row["seed"] for row in rows})

    def answered(more: int) -> NDArray[np.bool_]:
        return np.concatenate([np.load(rights(RUNS, "student", more, seed)) for seed in seeds])

    found = []
    for more in MORE[1:]:
        gain = points(intervals.paired_difference(answered(more), answered(0)))
        found.append({"name": f"points gained with {more} others", "goal": 0, **gain, "met": gain["low"] > 0})
    return found


def show(result: Row) -> None:
    """Print the targets and the rows as a table in Markdown."""
    for one in result["targets"]:
        met = "met" if one["met"] else "not met"
        print(f"{one['name']}: {one['value']:g} ({one['low']:g} to {one['high']:g}), goal {one['goal']:g}: {met}")
    print("\n| network | unlabelled images | accuracy %, by seed |\n|---|---|---|")
    for name, more in dict.fromkeys((row["row"], row["unlabelled"]) for row in result["rows"]):
        each = [str(r["accuracy"]) for r in result["rows"] if (r["row"], r["unlabelled"]) == (name, more)]
        print(f"| {name} | {'-' if more is None else more} | {', '.join(each)} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    main()
