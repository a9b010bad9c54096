"""What each way of distilling is worth: few images, texts, and the speed of the students that a user ships.

Images: a ResNet-8 with a hundred images a class, on CIFAR-10 and Fashion-MNIST; every row sees the same number of
views in as many steps, and in a second table has as much CPU time as LSSKD's default. A third table adds one option of
LSSKD at a time. Texts: a fine-tuned MiniLM teaches a small BERT and a bag of words. Speed: recipes are run as a user
would, and whole predictions, decoding or tokenizing included, are timed against the reference's fp32 ONNX file.

    python benchmarks/distill.py --cifar10 DIR --fashion-mnist DIR --weights FILE --text DIR --minilm DIR
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import _distill_text
import numpy as np
import torch
from _distill_gpu import gpu_rows
from _distill_images import FREE, OPTIONS, ROWS, SCHEDULE, VIEWS_A_STEP, Images, code_of, measured, wanted
from _distill_speed import SPEED_GOAL, speed_rows, speed_targets
from _distill_text import text_rows, text_targets
from _results import Row, finished, keep, unpacked, versions
from numpy.typing import NDArray

from edgetl import intervals, store
from edgetl.machine import cpu_model

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "distill"
RESULT = Path(__file__).parent / "results" / "distill.json"
PARTS = ("images", "text", "speed", "gpu")
MINUTES = {"images": 620, "text": 300, "speed": 240, "gpu": 80}
VIEWS, SHOTS = 100_000, 100
QUICK_VIEWS, QUICK_SHOTS = 12_000, 20

Key = tuple[str, ...]


def main() -> None:
    options = arguments()
    out = options.out or (RUNS / "distill.json" if options.quick else RESULT)
    minutes = 8 if options.quick else sum(MINUTES[part] for part in options.parts)
    print(f"about {minutes} minutes; finished rows of {out} are kept", flush=True)
    torch.set_num_threads(1)
    now = conditions(options)
    rows = [row for row in finished(out, now) if current(row)]

    def add(row: Row) -> None:
        rows[:] = [other for other in rows if key_of(other) != key_of(row)]
        rows.append({"code": every_method(), **row, "cpu": cpu_model()})
        keep(out, now, rows, targets(rows))

    if "images" in options.parts:
        image_rows(options, rows, add)
    if "text" in options.parts:
        text_rows(options, rows, RUNS / "text", add)
    if "speed" in options.parts:
        speed_rows(options, rows, RUNS / "speed", add)
    if "gpu" in options.parts and not options.quick:
        gpu_rows(options, rows, RUNS / "gpu", add)
    show(rows, targets(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the digits inside scikit-learn; two seeds; no recipes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which tables [default: all]")
    parser.add_argument("--cifar10", type=Path, help="folder with train*.npz and test.npz")
    parser.add_argument("--cifar100", type=Path, help="folder with train.npz and test.npz; needs a GPU")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--weights", type=Path, help="resnet56.safetensors, the teacher for CIFAR-10")
    parser.add_argument("--text", type=Path, help="folder with banking77/ and sst2/, each train.tsv and test.tsv")
    parser.add_argument("--minilm", help="all-MiniLM-L6-v2: a folder, or the hub id")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=VIEWS, help=f"of an image row [default: {VIEWS}]")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    return parser.parse_args()


def conditions(options: argparse.Namespace) -> Row:
    """What all figures depend on; other versions begin anew. Accuracy is the same on any machine; rows name theirs."""
    return {
        **versions(("edgetl", "torch", "transformers", "onnxruntime", "numpy")),
        "threads": 1,
        "quick": options.quick,
        "images": {
            "views": QUICK_VIEWS if options.quick else options.views,
            "shots": QUICK_SHOTS if options.quick else SHOTS,
            "views_a_step": VIEWS_A_STEP,
            "schedule": SCHEDULE,
            "selection": "none: one schedule for all rows, the network of the last epoch",
        },
        "interval": "95 %, Student's t over seeds of differences paired on the same test images",
    }


def current(row: Row) -> bool:
    """Whether today's settings and code would make this row."""
    if row["table"] in ("speed", "gpu"):
        return bool(row["code"] == every_method())
    if row["table"] == "text":
        loss = row["row"].partition(" ")[2]
        return bool(row["code"] == _distill_text.code_of(loss or "labels"))
    settings = {**ROWS, **OPTIONS}.get(row["row"])
    return settings is not None and row["code"] == code_of(settings)


def every_method() -> str:
    """The code of all methods and losses, for rows of whole recipes and schedules."""
    return store.digest([store.source_digest(ROOT / "edgetl" / part) for part in ("methods", "losses")])[:16]


def image_rows(options: argparse.Namespace, rows: Sequence[Row], add: Callable[[Row], None]) -> None:
    """Make the rows of images that are not there yet."""
    sets = {"digits": None} if options.quick else {"cifar10": options.cifar10, "fashion-mnist": options.fashion_mnist}
    given = [name for name, folder in sets.items() if options.quick or folder is not None]
    views = QUICK_VIEWS if options.quick else options.views
    for table, name, row, seed in wanted(given, 2 if options.quick else options.seeds, options=not options.quick):
        key = (table, name, row, str(seed))
        there = {key_of(r): r for r in rows}
        if key in there:
            continue
        print(" ".join(key), file=sys.stderr, flush=True)
        weights = options.weights if name == "cifar10" else None
        shots = QUICK_SHOTS if options.quick else SHOTS
        images = Images(name, sets[name], shots, 10_000, views, seed, RUNS, weights)
        settings = {**ROWS, **OPTIONS}[row]
        budget = views if table != "equal_time" else round(views * longer(there, name, row))
        told = {"table": table, "data": name, "row": row, "seed": seed, "code": code_of(settings)}
        add({**told, **measured(images, row, settings, budget)})


def longer(there: dict[Key, Row], name: str, row: str) -> float:
    """How many times the views a row may see in the time of LSSKD's default, by a seed that one machine made."""
    for seed in map(str, range(100)):
        default, own = (there.get(("equal_views", name, which, seed)) for which in ("lsskd_default", row))
        if default and own and default["cpu"] == own["cpu"]:
            return float(default["cpu_s"] / default["views"] * own["views"] / own["cpu_s"])
    sys.exit(f"{name}: no seed has rows of lsskd_default and {row} from one machine, so their times do not compare")


def key_of(row: Row) -> Key:
    return tuple(str(row.get(k)) for k in ("table", "data", "row", "seed"))


def targets(rows: Sequence[Row]) -> list[Row]:
    """The goals of the tables whose rows are there."""
    there = {key_of(row): row for row in rows}
    found = []
    for table in ("equal_views", "equal_time"):
        for name in dict.fromkeys(row["data"] for row in rows if row["table"] == table):
            seeds = [seed for seed in map(str, range(100)) if (table, name, "lsskd_default", seed) in there]
            others = [o for o in FREE if o != "lsskd_default"]
            if len(seeds) > 1 and {(table, name, o, s) for o in others for s in seeds} <= there.keys():
                found += [gain(there, table, name, other, seeds) for other in others]
    return [*found, *text_targets(rows), *speed_targets(rows)]


def gain(there: Mapping[Key, Row], table: str, name: str, other: str, seeds: Sequence[str]) -> Row:
    """What LSSKD's default answers right more often than another row, in points; met where the lower end is above 0."""

    def right(row: str, seed: str) -> NDArray[np.float64]:
        return unpacked(there[table, name, row, seed]).astype(np.float64)

    gains = [100 * float((right("lsskd_default", s) - right(other, s)).mean()) for s in seeds]
    mean = float(np.mean(gains))
    half = intervals.student_t(0.95, len(gains) - 1) * float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    ends = {"value": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2)}
    words = f"{name}, {table.replace('_', ' ')}: LSSKD's default above {other}, points"
    return {"name": words, "goal": 0, **ends, "met": mean - half > 0}


def show(rows: Sequence[Row], goals: Sequence[Row]) -> None:
    """Print every table in Markdown: means over the seeds, and the goals."""
    for table in dict.fromkeys(row["table"] for row in rows):
        print(f"\n{table}\n\n| data | row | seeds | accuracy % | ECE % | CPU s |\n|---|---|---|---|---|---|")
        for data, row in dict.fromkeys((r["data"], r["row"]) for r in rows if r["table"] == table):
            cells = [r for r in rows if (r["table"], r["data"], r["row"]) == (table, data, row)]
            means = [mean_of(cells, key) for key in ("accuracy", "ece", "cpu_s")]
            print(f"| {data} | {row} | {len(cells)} | " + " | ".join(means) + " |")
    print(f"\n(speed: goal {SPEED_GOAL}) | goal | value | low | high | met |\n|---|---|---|---|---|---|")
    for goal in goals:
        print("| " + " | ".join(str(goal[k]) for k in ("name", "goal", "value", "low", "high", "met")) + " |")


def mean_of(cells: Sequence[Row], key: str) -> str:
    values = [row[key] for row in cells if isinstance(row.get(key), int | float)]
    return f"{np.mean(values):.2f}" if values else "not run"


if __name__ == "__main__":
    main()
