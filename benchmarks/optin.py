"""What OPTIN's options are worth: accuracy right after the cut, without any training, beside pruning by the Fisher
information of Kwon et al. 2022.

A network is trained as a shipped recipe trains its dense one, for each of three seeds, and cut to several shares of its
MACs. All criteria share its test samples, the budgets, the split between heads and neurons and the samples to score
with; the network is asked in torch, because nothing but weights differs between the rows.

    python benchmarks/optin.py --fashion-mnist DIR --sst2 DIR --minilm DIR
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import _fisher
import numpy as np
import torch
from _networks import answered, jobs, trained
from _results import host, percent, points
from numpy.typing import NDArray

from edgetl import intervals, plugins, store
from edgetl.methods.optin import Optin
from edgetl.methods.optin.search import search
from edgetl.network import cost
from edgetl.network.network import Network, load
from edgetl.recipe import load as recipes
from edgetl.recipe.schema import Context
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "optin"
RESULT = Path(__file__).parent / "results" / "optin.json"
MINUTES = {"demo": 3, "vit-fashion-mnist": 30, "minilm-text": 120}
"""Of one seed, on one thread."""
KEEPS = (0.8, 0.6, 0.5, 0.4, 0.3)
JUDGED = 0.6
"""The targets pool the shares up to this one."""
SLACK = 0.3
"""Points that the fast search may cost, and that the default may lie behind the tuned peer."""
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"score": "paper"},
    "fast": {"score": "paper", "search": "fast"},
    "normalised": {"compensate": "none", "rounds": 1, "search": "exact"},
    "paper+least_squares": {"score": "paper", "compensate": "least_squares"},
    "default": {},
}
CRITERIA = ("random", "magnitude", "fisher", "fisher+tuned", *OPTIONS)

Row = dict[str, Any]
Right = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--quick", action="store_true", help="the demo's digits only")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--sst2", type=Path, help="folder with SST-2 as train.tsv and test.tsv")
    parser.add_argument("--minilm", help="all-MiniLM-L6-v2: a folder, or the hub id")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind [default: 3]")
    parser.add_argument("--networks", nargs="+", choices=tuple(MINUTES), help="only these [default: all]")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "optin.json" if options.quick else RESULT)
    wanted = {"demo": []} if options.quick else dict(jobs(options))
    wanted = {name: sets for name, sets in wanted.items() if name in (options.networks or MINUTES)}
    minutes = options.seeds * sum(MINUTES[name] for name in wanted)
    print(f"about {minutes} minutes; finished rows of {out} and trained networks are kept", flush=True)
    torch.set_num_threads(1)
    now, rights = conditions(), answers_of(out)
    rows = finished(out, now, rights)
    for name, sets in wanted.items():
        for seed in range(options.seeds):
            for row in measured(name, sets, seed, rows, rights):
                rows.append(row)
                write(out, now, rows, rights)
    write(out, now, rows, rights)
    show(rows)


def conditions() -> Row:
    """What the figures depend on; another machine or version begins anew."""
    packages = ("edgetl", "torch", "transformers", "numpy")
    return {
        **host(packages),
        "threads": 1,
        "method": plugins.digest("methods", "optin")[:16],
        "options": OPTIONS,
        "random": "uniform, times the unit's MACs",
        "magnitude": "squared L2 norm of all the unit's slices",
        "fisher": f"diagonal of the masks' Fisher information, {_fisher.SAMPLES} labelled samples at most",
        "fisher+tuned": "then re-arranged in each layer, and a factor for each unit by least squares",
        "interval": "95 %: paired over test samples; of the targets, samples are the unit and the networks are given",
    }


def answers_of(out: Path) -> Path:
    """The folder of what every row got right, which the pooled intervals need."""
    return RUNS / "right" / store.digest(str(out.resolve()))[:8]


def finished(out: Path, now: Row, rights: Path) -> list[Row]:
    """The rows that an earlier run wrote under the same conditions."""
    if not out.is_file():
        return []
    before = json.loads(out.read_text("utf-8"))
    if before["conditions"] != now:
        return []
    return [row for row in before["rows"] if file_of(rights, key_of(row)).is_file()]


def key_of(row: Row) -> tuple[str, int, str, float]:
    return row["network"], row["seed"], row["criterion"], row["keep_macs"]


def file_of(rights: Path, key: tuple[str, int, str, float]) -> Path:
    return rights / ("-".join(map(str, key)) + ".npy")


def measured(name: str, sets: Sequence[str], seed: int, rows: Sequence[Row], rights: Path) -> Iterator[Row]:
    """Yield the rows of one network that are not there yet, the dense one's first."""
    there = {key_of(row) for row in rows}
    wanted = [("dense", 1.0), *((criterion, keep) for keep in KEEPS for criterion in CRITERIA)]
    missing = [pair for pair in wanted if (name, seed, *pair) not in there]
    if not missing:
        return
    folder = RUNS / f"{name}-{seed}"
    dense, data = trained(name, sets, seed, folder)
    for criterion, keep in missing:
        print(f"{name}, seed {seed}: {criterion} at {keep:g}", file=sys.stderr, flush=True)
        net = dense if criterion == "dense" else student(Case(name, seed, folder, dense, data), criterion, keep)
        key = (name, seed, criterion, keep)
        right = answered(net, data)
        file_of(rights, key).parent.mkdir(parents=True, exist_ok=True)
        np.save(file_of(rights, key), right)
        drop = intervals.paired_difference(np.load(file_of(rights, (name, seed, "dense", 1.0))), right)
        found = {
            "n": len(right),
            "macs": cost.macs(net, data.mean_tokens()),
            "accuracy": round(100 * float(right.mean()), 2),
        }
        told = points(drop)
        yield {**dict(zip(("network", "seed", "criterion", "keep_macs"), key, strict=True)), **found, "drop": told}


@dataclass(frozen=True)
class Case:
    """One trained network."""

    name: str
    seed: int
    folder: Path
    dense: Network
    data: Data

    @cached_property
    def gradients(self) -> dict[str, NDArray[np.float64]]:
        """Those of the masks, which all budgets share."""
        return _fisher.gradients(self.dense, self.data, self.seed)


def student(case: Case, criterion: str, keep: float) -> Network:
    """The network cut by a criterion to a share of its MACs."""
    if criterion in OPTIONS:
        folder, data = case.folder, case.data
        context = Context(data, case.seed, folder, lambda step: load(folder / step), partial(once, folder, data))
        step = Optin(keep_macs=keep, **sampling(case.name), **OPTIONS[criterion])
        return step.run(case.dense.copy(), context)
    if criterion == "fisher+tuned":
        kept = chosen(case, keep, _fisher.diagonal(case.gradients))
        return _fisher.tuned(case.dense, _fisher.rearranged(case.gradients, kept), case.data, case.seed)
    scores = {"random": random, "magnitude": magnitude, "fisher": lambda c: _fisher.diagonal(c.gradients)}[criterion](
        case
    )
    kept, groups = chosen(case, keep, scores), case.dense.family.units(case.dense.module)
    return case.dense.edit([g.keep(kept[g.name]) for g in groups if len(kept[g.name]) < g.count])


def sampling(name: str) -> dict[str, Any]:
    """The samples that the recipe's own step scores with."""
    steps = recipes.load(recipes.find(name), [])["steps"]
    step = next(step for step in steps if step["use"] == "optin")
    return {key: step[key] for key in ("samples", "batch") if key in step}


def once(folder: Path, data: Data, what: str, parts: Mapping[str, Any], make: Callable[[Path, int], None]) -> Path:
    """What rows of one network share: its scores."""
    plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
    key = store.digest({"what": what, "parts": plain, "data": data.digest, "code": plugins.digest("methods", "optin")})
    seed = int(store.digest([what, data.digest])[:8], 16)  # the same samples for every criterion
    made = folder / "scores" / f"{what}-{key[:16]}"
    return store.made_once(made, key, lambda to: make(to, seed), folder / "scores" / ".old")


def random(case: Case) -> dict[str, NDArray[np.float64]]:
    """Uniform scores; times the price, so that heads and neurons are equally worth their MACs."""
    draw, prices = np.random.default_rng(case.seed), cost.prices(case.dense, case.data.mean_tokens())
    return {g.name: draw.uniform(size=g.count) * prices[g.name] for g in case.dense.family.units(case.dense.module)}


def magnitude(case: Case) -> dict[str, NDArray[np.float64]]:
    """The sum of squares of all weights that go with a unit."""
    found, state = {}, case.dense.state()
    for g in case.dense.family.units(case.dense.module):
        slices = [state[path].double().movedim(axis, 0).reshape(g.count, -1) for path, axis in g.tensors]
        found[g.name] = torch.cat(slices, dim=1).square().sum(dim=1).numpy()
    return found


def chosen(case: Case, keep: float, scores: Mapping[str, NDArray[np.float64]]) -> dict[str, tuple[int, ...]]:
    """The best units by these scores, within the budget that OPTIN has."""
    net, tokens = case.dense, case.data.mean_tokens()
    groups, prices, dense = net.family.units(net.module), cost.prices(net, tokens), cost.macs(net, tokens)
    fixed = dense - sum(g.count * prices[g.name] for g in groups)
    return search(groups, scores, prices, math.floor(keep * dense) - fixed)


def write(out: Path, now: Row, rows: Sequence[Row], rights: Path) -> None:
    """Write what is finished."""
    goals = [target for name in dict.fromkeys(row["network"] for row in rows) for target in targets(name, rows, rights)]
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(out, {"schema_version": 1, "conditions": now, "rows": list(rows), "targets": goals})


def targets(name: str, rows: Sequence[Row], rights: Path) -> list[Row]:
    """The goals of one network, in points of accuracy; an end of the interval on the wrong side of 0 misses."""
    seeds = sorted({row["seed"] for row in rows if row["network"] == name})
    wanted = {(name, s, c, k) for s in seeds for c in CRITERIA for k in KEEPS}
    if not seeds or not wanted <= {key_of(row) for row in rows}:
        return []

    def lost(criterion: str, keeps: Sequence[float]) -> NDArray[np.float64]:
        """Per test sample, the share of networks and budgets that lose it, less those that gain it."""
        dense = [np.load(file_of(rights, (name, s, "dense", 1.0))) for s in seeds]
        right = [[np.load(file_of(rights, (name, s, criterion, k))) for k in keeps] for s in seeds]
        return np.mean(dense, axis=0) - np.mean(right, axis=(0, 1))  # type: ignore[no-any-return]

    low = [keep for keep in KEEPS if keep <= JUDGED]
    paper, every = lost("paper", low), lost("default", low)
    where = f"{name}, keep <= {JUDGED:g}"
    better = [c for c in OPTIONS if c not in ("paper", "fast")]
    gains = [(f"{where}: {c} keeps more than paper", paper - lost(c, low)) for c in better]
    gains.append((f"{where}: fast loses at most {SLACK} more than paper", paper - lost("fast", low) + SLACK / 100))
    gains.append((f"{where}: default loses less than half of what paper loses", paper / 2 - every))
    gains.append((f"{where}: paper keeps more than magnitude", lost("magnitude", low) - paper))
    for keep in KEEPS:
        gain = lost("fisher+tuned", [keep]) - lost("default", [keep]) + SLACK / 100
        gains.append((f"{name}, keep {keep:g}: default loses at most {SLACK} more than fisher+tuned", gain))
    return [judged(f"{words}, points", gain) for words, gain in gains]


def judged(name: str, gain: NDArray[np.float64]) -> Row:
    """A goal that is met where the lower end of the mean's interval is above 0."""
    mean, half = float(gain.mean()), intervals.Z * float(gain.std(ddof=1)) / math.sqrt(len(gain))
    ends = {"value": percent(mean), "low": percent(mean - half), "high": percent(mean + half)}
    return {"name": name, "goal": 0, **ends, "met": mean - half > 0}


def show(rows: Sequence[Row]) -> None:
    """Print the mean accuracy over seeds as a table in Markdown."""
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        dense = np.mean([row["accuracy"] for row in mine if row["criterion"] == "dense"])
        print(
            f"\n{name}: dense {dense:.2f} %\n\n| keep | "
            + " | ".join(CRITERIA)
            + " |\n|---"
            + "|---" * len(CRITERIA)
            + "|"
        )
        for keep in KEEPS:
            cells = []
            for criterion in CRITERIA:
                found = [r["accuracy"] for r in mine if (r["criterion"], r["keep_macs"]) == (criterion, keep)]
                cells.append(f"{np.mean(found):.2f}" if found else "-")
            print(f"| {keep:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
