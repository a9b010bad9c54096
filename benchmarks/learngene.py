"""One learngene for a family of depths, beside training each depth from scratch and picking layers of the backbone.

Every data set has a ViT that is trained once, the backbone, from which or by which all rows but "scratch" learn. Table
(i) gives every row as many training images for the whole family, the backbone's not counted; table (ii) gives the
default learngene half of them. Accuracy is that of the network on all test images, without, with one and with all
epochs of a student's own training.

    python benchmarks/learngene.py --fashion-mnist DIR [--cifar10 DIR] [--cifar100 DIR]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from _distill_images import Images
from _family import CASES, METHODS, TABLES, TRIAL, Family
from _results import Row, finished, host, keep
from optin_tokens import judged

from edgetl import plugins

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "learngene"
RESULT = Path(__file__).parent / "results" / "learngene.json"
MINUTES = {"digits": 5, "fashion-mnist": 40, "cifar10": 60, "cifar100": 60}
"""Of one seed; on one thread, or on a GPU for those that need one."""
ON_GPU = ("cifar10", "cifar100")
PAIRS = (
    ("tleg", "picked"), ("tleg", "tleg_paper"), ("sws", "tleg"), ("polynomial", "tleg"), ("polynomial", "picked")
)  # fmt: skip
"""Rows that are compared on the mean over depths; the first is the goal, the others say what an option is worth."""
NOT_RUN = "not run: it needs a CUDA GPU and the data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the digits only, smaller depths, one seed")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10 as train*.npz and test.npz, for a CUDA GPU")
    parser.add_argument("--cifar100", type=Path, help="the same of CIFAR-100")
    parser.add_argument("--seeds", type=int, default=3, help="backbones of each kind [default: 3]")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "learngene.json" if options.quick else RESULT)
    jobs, skipped = chosen(options)
    seeds = 1 if options.quick else options.seeds
    minutes = seeds * sum(MINUTES[name] for name in jobs)
    print(f"about {minutes} minutes; finished rows of {out} and trained backbones are kept", flush=True)
    torch.set_num_threads(1)
    now = conditions(seeds, jobs)
    rows = [row for row in finished(out, now) if "note" not in row] + skipped
    for seed in range(seeds):
        for name, source in jobs.items():
            for row in missing(Family(CASES[name], images(name, source, seed)), rows):
                rows.append(row)
                keep(out, now, rows, targets(rows))
    keep(out, now, rows, targets(rows))
    show(rows)


def chosen(options: argparse.Namespace) -> tuple[dict[str, Path | None], list[Row]]:
    """The data sets to run, and a row for each that is not."""
    if options.quick:
        return {"digits": None}, []
    given = {"fashion-mnist": options.fashion_mnist, "cifar10": options.cifar10, "cifar100": options.cifar100}
    runs = {name: path for name, path in given.items() if path and (name not in ON_GPU or torch.cuda.is_available())}
    return runs, [{"data": name, "note": NOT_RUN} for name in ON_GPU if name not in runs]


def images(name: str, source: Path | None, seed: int) -> Images:
    return Images(name, source, CASES[name].shots, CASES[name].tested, 0, seed, RUNS)


def conditions(seeds: int, jobs: dict[str, Path | None]) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "transformers", "numpy")),
        "threads": 1,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "seeds": seeds,
        "cases": {name: vars(CASES[name]) | {"depths": list(CASES[name].depths)} for name in jobs},
        "trial": TRIAL,
        "method": plugins.digest("methods", "tleg")[:16],
        "picked": "evenly spaced blocks of the backbone, then fine-tuned with the backbone as teacher",
        "images": "of all training steps of the whole family, the trials of starts too; the backbone's are not counted",
        "bytes": "of the float32 weights that all students come from",
        "interval": "95 %: Student's t over seeds, paired by seed",
    }


def missing(family: Family, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows of one seed that are not there yet."""
    for table, methods in TABLES.items():
        for method in methods:
            mine = (family.case.name, table, method, family.seed)
            there = [r for r in rows if "note" not in r and key(r) == mine]
            if len(there) < len(family.case.depths):
                print(*mine, file=sys.stderr, flush=True)
                known = {row["depth"] for row in there}
                yield from family.rows(table, method, [d for d in family.case.depths if d not in known])


def key(row: Row) -> tuple[str, str, str, int]:
    return row["data"], row["table"], row["method"], row["seed"]


def at(row: Row, after: str = "all") -> float:
    """The accuracy after no, one or all epochs of a student's own training."""
    return float(row["accuracy"][after])


def targets(rows: Sequence[Row]) -> list[Row]:
    """What a learngene is to gain, in points of accuracy, for every data set whose rows are all there."""
    done = [row for row in rows if "note" not in row]
    return [target for name in dict.fromkeys(row["data"] for row in done) for target in _targets(name, done)]


def _targets(name: str, rows: Sequence[Row]) -> list[Row]:
    found = {(r["table"], r["method"], r["seed"], r["depth"]): at(r) for r in rows if r["data"] == name}
    seeds, depths = sorted({seed for *_, seed, _ in found}), CASES[name].depths
    if len(found) < len(seeds) * len(depths) * sum(map(len, TABLES.values())):
        return []
    made = []
    for depth in depths:
        gains = [found["half", "tleg", s, depth] - found["equal", "scratch", s, depth] for s in seeds]
        made.append((f"{name}, depth {depth}: tleg with half of the images over scratch, points", gains))
    for one, other in PAIRS:
        means = [
            float(np.mean([found["equal", one, s, d] - found["equal", other, s, d] for d in depths])) for s in seeds
        ]
        made.append((f"{name}, equal images: {one} over {other}, mean over depths, points", means))
    return [above(judged(words, gains, 0.0, up=True)) for words, gains in made]


def above(target: Row) -> Row:
    """A gain whose interval has to leave out 0."""
    return {**target, "met": target["low"] is not None and target["low"] > 0}


def show(rows: Sequence[Row]) -> None:
    """Print both tables in Markdown, means over seeds."""
    done = [row for row in rows if "note" not in row]
    for name in dict.fromkeys(row["data"] for row in done):
        depths = CASES[name].depths
        wanted = {"(i) as many images": [("equal", m) for m in METHODS]}
        wanted |= {"(ii) half of the images": [("equal", "scratch"), ("half", "tleg")]}
        for title, lines in wanted.items():
            print(f"\n{name}, {title}: accuracy in % after 0 / 1 / all epochs\n")
            print(f"| | images | MB | {' | '.join(f'depth {depth}' for depth in depths)} |")
            print("|---" * (3 + len(depths)) + "|")
            for line in lines:
                mine = [row for row in done if (row["data"], row["table"], row["method"]) == (name, *line)]
                print(f"| {line[1]} | {' | '.join(cells(mine, depths))} |")
    for row in rows:
        if "note" in row:
            print(f"\n{row['data']}: {row['note']}")


def cells(rows: Sequence[Row], depths: Sequence[int]) -> Iterator[str]:
    yield f"{rows[0]['images'] / 1e3:.0f} k" if rows else "-"
    yield f"{rows[0]['bytes'] / 1e6:.2f}" if rows else "-"
    for depth in depths:
        mine = [row for row in rows if row["depth"] == depth]
        means = [f"{np.mean([at(row, after) for row in mine]):.1f}" for after in ("0", "1", "all") if mine]
        yield " / ".join(means) or "-"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
