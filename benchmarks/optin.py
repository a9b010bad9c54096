"""What OPTIN's options are worth: accuracy right after the cut, without any training.

A network is trained as a shipped recipe trains its dense one, for each of three seeds, and cut to several shares of its
MACs. All criteria share its test samples, the budgets, the split between heads and neurons and the samples to score
with; the network is asked in torch, because nothing but weights differs between the rows.

    python benchmarks/optin.py --fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl import intervals, plugins, store
from edgetl.device import cpu_model, usable_cpus
from edgetl.methods.optin import Optin
from edgetl.methods.optin.search import search
from edgetl.network import cost
from edgetl.network.network import Network, load
from edgetl.prepare import open_prepared
from edgetl.recipe import load as recipes
from edgetl.recipe.read import check
from edgetl.recipe.schema import Context
from edgetl.stages.compress import compress
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "optin"
RESULT = Path(__file__).parent / "results" / "optin.json"
MINUTES = {"demo": 2, "vit-fashion-mnist": 35}
"""Of one seed, on one thread."""
KEEPS = (0.8, 0.6, 0.4, 0.3)
JUDGED = 0.6
"""The targets pool the shares up to this one."""
SLACK = 0.3
"""Points that the fast search may cost."""
NORMALISED: dict[str, Any] = {"score": "normalised", "lambda_c": 1.0}
FITTED: dict[str, Any] = {"compensate": "least_squares"}
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": {"search": "fast"},
    "normalised": NORMALISED,
    "paper+least_squares": FITTED,
    "all": {**NORMALISED, **FITTED, "rounds": 3},
}
CRITERIA = ("random", "magnitude", *OPTIONS)

Row = dict[str, Any]
Right = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the demo's digits only")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind [default: 3]")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "optin.json" if options.quick else RESULT)
    jobs: dict[str, list[str]] = {"demo": []}
    if options.fashion_mnist and not options.quick:
        jobs["vit-fashion-mnist"] = [f"data.root={options.fashion_mnist.resolve()}"]
    minutes = options.seeds * sum(MINUTES[name] for name in jobs)
    print(f"about {minutes} minutes; finished rows of {out} and trained networks are kept", flush=True)
    torch.set_num_threads(1)
    now, rights = conditions(options.seeds), answers_of(out)
    rows = finished(out, now, rights)
    for name, sets in jobs.items():
        for seed in range(options.seeds):
            for row in measured(name, sets, seed, rows, rights):
                rows.append(row)
                write(out, now, rows, rights)
    write(out, now, rows, rights)
    show(rows)


def conditions(seeds: int) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    packages = ("edgetl", "torch", "transformers", "numpy")
    return {
        "cpu": cpu_model(),
        "cores": len(usable_cpus()),
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: version(name) for name in packages},
        "threads": 1,
        "seeds": seeds,
        "method": plugins.digest("methods", "optin")[:16],
        "options": OPTIONS,
        "random": "uniform, times the unit's MACs",
        "magnitude": "squared L2 norm of all the unit's slices",
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
    scores = {"random": random, "magnitude": magnitude}
    for criterion, keep in missing:
        print(f"{name}, seed {seed}: {criterion} at {keep:g}", file=sys.stderr, flush=True)
        if criterion == "dense":
            net = dense
        elif criterion in OPTIONS:
            context = Context(data, seed, folder, lambda step: load(folder / step), partial(once, folder, data))
            net = Optin(keep_macs=keep, **OPTIONS[criterion]).run(dense.copy(), context)
        else:
            net = cut(dense, keep, scores[criterion](dense, seed))
        key = (name, seed, criterion, keep)
        right = answered(net, data)
        file_of(rights, key).parent.mkdir(parents=True, exist_ok=True)
        np.save(file_of(rights, key), right)
        drop = intervals.paired_difference(np.load(file_of(rights, (name, seed, "dense", 1.0))), right)
        found = {"n": len(right), "macs": cost.macs(net), "accuracy": round(100 * float(right.mean()), 2)}
        told = {"value": percent(drop.value), "low": percent(drop.low), "high": percent(drop.high)}
        yield {**dict(zip(("network", "seed", "criterion", "keep_macs"), key, strict=True)), **found, "drop": told}


def trained(name: str, sets: Sequence[str], seed: int, folder: Path) -> tuple[Network, Data]:
    """The recipe's dense network and its data; one that is finished is read."""
    raw = recipes.load(recipes.find(name), [*sets, f"seed={seed}", "threads=1"])
    raw["steps"] = [step for step in raw["steps"] if step.get("name") == "dense"]
    recipe, errors = check(raw, name)
    if recipe is None:
        sys.exit("\n".join(map(str, errors)))
    made = compress(recipe, folder)
    torch.set_num_threads(1)
    return load(made["dense"]), Data(open_prepared(next(folder.glob("shared/data-*"))))


def once(folder: Path, data: Data, what: str, parts: Mapping[str, Any], make: Callable[[Path, int], None]) -> Path:
    """What rows of one network share: its scores."""
    plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
    key = store.digest({"what": what, "parts": plain, "data": data.digest, "code": plugins.digest("methods", "optin")})
    seed = int(store.digest([what, data.digest])[:8], 16)  # the same samples for every criterion
    made = folder / "scores" / f"{what}-{key[:16]}"
    return store.made_once(made, key, lambda to: make(to, seed), folder / "scores" / ".old")


def random(net: Network, seed: int) -> dict[str, NDArray[np.float64]]:
    """Uniform scores; times the price, so that heads and neurons are equally worth their MACs."""
    draw, prices = np.random.default_rng(seed), cost.prices(net)
    return {g.name: draw.uniform(size=g.count) * prices[g.name] for g in net.family.units(net.module)}


def magnitude(net: Network, _: int) -> dict[str, NDArray[np.float64]]:
    """The sum of squares of all weights that go with a unit."""
    found, state = {}, net.state()
    for g in net.family.units(net.module):
        slices = [state[path].double().movedim(axis, 0).reshape(g.count, -1) for path, axis in g.tensors]
        found[g.name] = torch.cat(slices, dim=1).square().sum(dim=1).numpy()
    return found


def cut(net: Network, keep: float, scores: Mapping[str, NDArray[np.float64]]) -> Network:
    """The network with its best units by these scores, within the budget that OPTIN has."""
    groups, prices, dense = net.family.units(net.module), cost.prices(net), cost.macs(net)
    fixed = dense - sum(g.count * prices[g.name] for g in groups)
    kept = search(groups, scores, prices, math.floor(keep * dense) - fixed)
    return net.edit([g.keep(kept[g.name]) for g in groups if len(kept[g.name]) < g.count])


@torch.no_grad()
def answered(net: Network, data: Data) -> Right:
    """Whether each test sample is answered right."""
    parts = np.array_split(data.rows("test"), max(1, len(data.rows("test")) // 500))
    batches = (data.batch(rows) for rows in parts)
    return np.concatenate([(net.logits(b).argmax(1) == b["labels"]).numpy() for b in batches])


def percent(share: float) -> float:
    return round(100 * share, 2)


def write(out: Path, now: Row, rows: Sequence[Row], rights: Path) -> None:
    """Write what is finished."""
    goals = [target for name in dict.fromkeys(row["network"] for row in rows) for target in targets(name, rows, rights)]
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(out, {"schema_version": 1, "conditions": now, "rows": list(rows), "targets": goals})


def targets(name: str, rows: Sequence[Row], rights: Path) -> list[Row]:
    """The goals of one network, in points of accuracy; an end of the interval on the wrong side of 0 misses."""
    seeds = sorted({row["seed"] for row in rows if row["network"] == name})
    keeps = [keep for keep in KEEPS if keep <= JUDGED]
    wanted = {(name, s, c, k) for s in seeds for c in CRITERIA for k in keeps}
    if not seeds or not wanted <= {key_of(row) for row in rows}:
        return []

    def lost(criterion: str) -> NDArray[np.float64]:
        """Per test sample, the share of networks and budgets that lose it, less those that gain it."""
        dense = [np.load(file_of(rights, (name, s, "dense", 1.0))) for s in seeds]
        right = [[np.load(file_of(rights, (name, s, criterion, k))) for k in keeps] for s in seeds]
        return np.mean(dense, axis=0) - np.mean(right, axis=(0, 1))  # type: ignore[no-any-return]

    paper = lost("paper")
    gains = [(f"{c} keeps more than paper", paper - lost(c)) for c in OPTIONS if c not in ("paper", "fast")]
    gains.append((f"fast loses at most {SLACK} more than paper", paper - lost("fast") + SLACK / 100))
    gains.append(("all loses less than half of what paper loses", paper / 2 - lost("all")))
    gains.append(("paper keeps more than magnitude", lost("magnitude") - paper))
    return [judged(f"{name}, keep <= {JUDGED:g}: {words}, points", gain) for words, gain in gains]


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
