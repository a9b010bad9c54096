"""What OPTIN's scores cost: the exact ones beside one forward of the network for each unit, the fast ones beside both.

The networks are the dense ones of the shipped recipes, trained as those say. The peer runs the whole network once for
every unit, in the same batches, with the dense network's features cached and the same two distances: what a competent
direct implementation does. Both score the same units in turns, part by part, and the ratio of CPU times at one thread
is that of the parts. The fast search is compared with the exact one by the mask and by the test samples lost.

    python benchmarks/optin_scoring.py --fashion-mnist DIR --sst2 DIR --minilm DIR
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import answered, jobs, trained
from _results import Row, finished, host, keep
from numpy.typing import NDArray
from torch import Tensor

from edgetl import intervals, plugins
from edgetl.methods.optin import fast
from edgetl.methods.optin.sampling import Sampling, gates, recorded
from edgetl.methods.optin.score import Distortion, Progress, combined, score
from edgetl.methods.optin.search import search
from edgetl.methods.optin.tail import silent
from edgetl.methods.optin.terms import divergence, manifold_distances
from edgetl.methods.optin.trajectory import Trajectory, sampled
from edgetl.network import cost
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "optin"
RESULT = Path(__file__).parent / "results" / "optin_scoring.json"
MINUTES = {"demo": 2, "vit-fashion-mnist": 12, "minilm-text": 45}
"""Of one network and all of its rows; a trained network is read in seconds."""
SAMPLINGS = {
    "demo": Sampling(samples=128, tokens=768, batch=32, seed=0),
    "vit-fashion-mnist": Sampling(samples=128, tokens=768, batch=32, seed=0),
    "minilm-text": Sampling(samples=16, tokens=768, batch=8, seed=0),
}
PARTS = 5
"""Of the units that both ways score, in turns: few, as what a scoring does once is done for each of them."""
UNITS = {"demo": 528, "vit-fashion-mnist": 792, "minilm-text": 1200}
"""That the peer scores too, spread evenly over all groups: all of the smaller networks'."""
WEIGHT = 0.1
KEEP = 0.5
RESCORE = 0.02
"""Share of the neurons that the fast search scores exactly."""
MOST_BLOCKS, LEAST_SPEED, LEAST_FAST, LEAST_COMMON, MOST_APART = 0.5, 2.5, 10.0, 0.95, 1e-5

Units = Mapping[str, Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the demo's digits only")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--sst2", type=Path, help="folder with SST-2 as train.tsv and test.tsv")
    parser.add_argument("--minilm", help="all-MiniLM-L6-v2: a folder, or the hub id")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "optin_scoring.json" if options.quick else RESULT)
    wanted = {"demo": []} if options.quick else dict(jobs(options))
    print(f"about {sum(MINUTES[name] for name in wanted)} minutes; finished rows of {out} are kept", flush=True)
    torch.set_num_threads(1)
    now = conditions()
    rows = finished(out, now)
    for name, sets in wanted.items():
        if not any(row["network"] == name for row in rows):
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append({"network": name, **measured(name, *trained(name, sets, 0, RUNS / f"{name}-0"))})
            keep(out, now, rows, [target for row in rows for target in targets(row)])
    show(rows)


def conditions() -> Row:
    """What the figures depend on; another machine or version begins anew."""
    packages = ("edgetl", "torch", "transformers", "numpy")
    return {
        **host(packages),
        "threads": 1,
        "quantity": "CPU time",
        "method": plugins.digest("methods", "optin")[:16],
        "sampling": {
            name: f"{s.samples} samples, {s.tokens} positions, batch {s.batch}" for name, s in SAMPLINGS.items()
        },
        "keep_macs": KEEP,
        "rescore": RESCORE,
        "interval": "95 %: Student's t on the logarithms of the ratios of parts; paired over test samples",
    }


def measured(name: str, net: Network, data: Data) -> Row:
    """The row of one network."""
    groups = net.family.units(net.module)
    with recorded(net, data, SAMPLINGS[name]) as way:
        duel = against_forwards(way, groups, gates(net, groups), UNITS[name])
        counted = Progress()
        start = time.process_time()
        exact = score(way, groups, gates(net, groups), progress=counted)
        seconds = time.process_time() - start
        start = time.process_time()
        rough = fast_scores(net, data, way, groups)
        quick = time.process_time() - start
    masks = [kept(net, data, groups, one) for one in (exact, rough)]
    return {
        "units": sum(g.count for g in groups),
        "blocks": len(way.blocks),
        **duel,
        "blocks_run": round(counted.blocks / counted.whole, 4),
        "exact_s": round(seconds, 2),
        "fast_s": round(quick, 2),
        "fast_speedup": round(seconds / quick, 2),
        "mask_in_common": round(common(groups, *masks), 4),
        **lost(net, data, groups, masks),
    }


def against_forwards(way: Trajectory, groups: Sequence[Group], layers: Mapping[str, Any], most: int) -> Row:
    """How much faster the same scores are than by a forward each, in turns, part by part."""
    ours, peers, apart = [], [], 0.0
    for number, units in enumerate(parts(groups, most)):
        results = {}
        for which in ("ours", "peer") if number % 2 else ("peer", "ours"):
            start = time.process_time()
            results[which] = (score if which == "ours" else one_forward_each)(way, groups, layers, units)
            (ours if which == "ours" else peers).append(time.process_time() - start)
        one, other = (np.concatenate([*combined(results[k], WEIGHT).values()]) for k in ("ours", "peer"))
        apart = max(apart, float(np.max(np.abs(one - other) / np.maximum(np.abs(other), 1e-12))))
    ratio = intervals.paired_ratio(peers, ours)
    told = {"value": round(ratio.value, 3), "low": round(ratio.low, 3), "high": round(ratio.high, 3)}
    return {
        "units_compared": sum(len(u) for part in parts(groups, most) for u in part.values()),
        "speedup": told,
        "largest_relative_difference": apart,
    }


def parts(groups: Sequence[Group], most: int) -> Iterator[Units]:
    """Units of all groups in equal parts, as many as wanted, spread evenly."""
    total = sum(g.count for g in groups)
    picked = {g.name: np.linspace(0, g.count - 1, max(1, round(most * g.count / total))).round() for g in groups}
    for part in range(PARTS):
        yield {name: sorted(set(units[part::PARTS].astype(int).tolist())) for name, units in picked.items()}


@torch.no_grad()
def one_forward_each(
    way: Trajectory, groups: Sequence[Group], layers: Mapping[str, Any], units: Units
) -> dict[str, Distortion]:
    """The peer: a forward of the whole network for each unit, compared with the dense network's cached features."""
    heard: dict[int, Tensor] = {}

    def hear(z: int) -> Any:
        return lambda _, __, out: heard.update({z: out[0] if isinstance(out, tuple) else out})

    grams = [p.T @ p for p in way.points]
    found = {}
    with ExitStack() as stack:
        for z, block in enumerate(way.blocks.values()):
            stack.callback(block.register_forward_hook(hear(z)).remove)
        for group in groups:
            first = min(group.stage + 1, len(way.blocks) - 1)
            rows = []
            for unit in units[group.name]:
                points: list[list[Tensor]] = [[] for _ in way.blocks]
                output = 0.0
                with silent(layers[group.name], group, unit):
                    for batch in way.batches:
                        logits = way.family.logits(way.module, batch.inputs)
                        output += divergence(batch.log_p, logits.double().log_softmax(-1))
                        for z in range(first, len(way.blocks)):
                            points[z].append(sampled(heard[z], batch.rows[z]))
                later = range(first, len(way.blocks))
                distances = [manifold_distances(torch.cat(points[z], 1), way.points[z], grams[z]) for z in later]
                rows.append((sum(float(d) for d in distances), output))
            manifold, answers = np.array(rows, dtype=np.float64).reshape(-1, 2).T
            found[group.name] = Distortion(manifold, answers)
    return found


def fast_scores(net: Network, data: Data, way: Trajectory, groups: Sequence[Group]) -> dict[str, Distortion]:
    """The scores of `search: fast`."""
    rough = fast.estimate(way, groups, gates(net, groups), 0)
    prices = cost.prices(net, data.mean_tokens())
    chosen = fast.near(groups, combined(rough, WEIGHT), prices, budget(net, data, groups), RESCORE)
    return fast.merged(groups, rough, score(way, groups, gates(net, groups), chosen), chosen)


def budget(net: Network, data: Data, groups: Sequence[Group]) -> int:
    """The MACs that are left for units."""
    tokens = data.mean_tokens()
    dense, prices = cost.macs(net, tokens), cost.prices(net, tokens)
    return math.floor(KEEP * dense) - dense + sum(g.count * prices[g.name] for g in groups)


def kept(
    net: Network, data: Data, groups: Sequence[Group], found: Mapping[str, Distortion]
) -> Mapping[str, Sequence[int]]:
    """The units that stay."""
    prices = cost.prices(net, data.mean_tokens())
    return search(groups, combined(found, WEIGHT), prices, budget(net, data, groups))


def common(groups: Sequence[Group], one: Units, other: Units) -> float:
    """The share of units of which both masks say the same."""
    differ = sum(len(set(one[g.name]) ^ set(other[g.name])) for g in groups)
    return 1 - differ / sum(g.count for g in groups)


def lost(net: Network, data: Data, groups: Sequence[Group], masks: Sequence[Units]) -> Row:
    """The accuracy of both cuts, and of the first less the second, in points."""
    right: list[NDArray[np.bool_]] = []
    for mask in masks:
        cut = net.edit([g.keep(mask[g.name]) for g in groups if len(mask[g.name]) < g.count])
        right.append(answered(cut, data))
    drop = intervals.paired_difference(*right)
    told = {end: round(100 * getattr(drop, end), 2) for end in ("value", "low", "high")}
    accuracy = {
        f"{way}_accuracy": round(100 * float(r.mean()), 2) for way, r in zip(("exact", "fast"), right, strict=True)
    }
    return {"n": len(right[0]), **accuracy, "exact_less_fast": told}


def targets(row: Row) -> list[Row]:
    """The goals of one network."""
    speed, drop = row["speedup"], row["exact_less_fast"]
    found = [
        ("blocks run, of those of one forward for each unit", MOST_BLOCKS, row["blocks_run"], None, None, -1),
        ("times faster than one forward for each unit", LEAST_SPEED, speed["value"], speed["low"], speed["high"], 1),
        ("largest relative difference of a score", MOST_APART, row["largest_relative_difference"], None, None, -1),
        ("fast: times faster than exact", LEAST_FAST, row["fast_speedup"], None, None, 1),
        ("fast: share of the mask in common", LEAST_COMMON, row["mask_in_common"], None, None, 1),
    ]
    goals = []
    for words, goal, value, low, high, sign in found:
        judged = value if low is None else low
        met = bool(judged <= goal if sign < 0 else judged >= goal)
        goals.append(
            {"name": f"{row['network']}: {words}", "goal": goal, "value": value, "low": low, "high": high, "met": met}
        )
    inside = drop["low"] <= 0
    name = f"{row['network']}: fast loses no more accuracy than exact, points"
    return [*goals, {"name": name, "goal": 0, **drop, "met": inside}]


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table in Markdown."""
    print("| network | units | blocks run | faster than forwards | difference | fast / exact | mask | accuracy |")
    print("|---" * 8 + "|")
    for row in rows:
        speed = row["speedup"]
        cells = (
            row["network"],
            row["units"],
            f"{100 * row['blocks_run']:.0f} %",
            f"{speed['value']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})",
            f"{row['largest_relative_difference']:.1e}",
            f"{row['fast_speedup']:.1f}",
            f"{100 * row['mask_in_common']:.1f} %",
            f"{row['exact_accuracy']:.2f} / {row['fast_accuracy']:.2f}",
        )
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
