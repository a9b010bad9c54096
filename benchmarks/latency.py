"""Pruning under a limit in milliseconds: how well tables predict, whether limits hold, what a saved MAC is worth.

The ViT of the recipe `vit-fashion-mnist`, trained for one epoch (with `--quick` not at all: no time depends on weights,
only which units OPTIN takes), on this machine's CPU at one thread. Networks with random numbers of heads and neurons,
none of which the tables have seen, are exported and timed beside the uncut one in fresh processes, interleaved; so are
the cuts that OPTIN makes for a `max_latency` and for a share of the MACs. A ViT with the transformer of DeiT-Tiny,
untrained and evenly cut, tells what is due to the network's size. All ratios are of CPU time; those of wall time stand
beside them. A row that was disturbed is measured again by the next run of the same command.

    python benchmarks/latency.py --fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from _networks import answered
from _results import Row, finished, host, keep, percent, points
from _timed import RECIPE, RUNS, Made, prepared
from repeatability import cell, subject

from edgetl import intervals, plugins
from edgetl.measure import summary
from edgetl.measure.rounds import Bench, Effort, Samples, interleave, pinned
from edgetl.methods.optin import Optin
from edgetl.methods.optin.latency import Table, measured, sizes
from edgetl.network import cost
from edgetl.network.network import Network, create
from edgetl.recipe.schema import MaxLatency
from edgetl.stages import latency

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "latency.json"
HELD_OUT, QUICK_HELD_OUT = 20, 4
SHARES, QUICK_SHARES = (0.8, 0.65, 0.5, 0.35), (0.5,)
KEEPS, QUICK_KEEPS = (0.5, 0.4, 0.3), (0.4,)
LEFT, QUICK_LEFT = (0.5, 0.3), ()
DEIT_TINY = {"image_size": 28, "patch_size": 2, "num_channels": 1, "hidden_size": 192, "num_hidden_layers": 12,
             "num_attention_heads": 3, "intermediate_size": 768}  # fmt: skip
"""Its 197 tokens come from smaller patches of smaller images."""
EFFORT = Effort(7, 7, 0, math.inf, math.inf, 0.2, 3, 1.0, 64, 10.0, steady=False)
SAMPLES, ROUNDED = 64, 5
MINUTES, QUICK_MINUTES = 20, 5
LARGEST_ERROR, LEAST_WORTH, MOST_MACS = 3.0, 0.85, 0.5
AIMED = ("max_latency", "DeiT-Tiny")
"""Rows whose saved MACs are to become time; a cut for a share of the MACs does not know of times."""
DISTURBED = 0.05
"""Relative half-width of an interval from which on the row is measured again."""
COLUMNS = ("MACs", "predicted", "CPU time / uncut", "wall time / uncut", "speed-up / MACs saved", "points lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, required=True, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--quick", action="store_true", help="a fifth of the networks and one limit")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "latency.json" if options.quick else RESULT)
    print(f"about {QUICK_MINUTES if options.quick else MINUTES} minutes; finished rows of {out} are kept", flush=True)
    made = prepared(options.fashion_mnist.resolve(), quick=options.quick)
    groups = made.net.family.units(made.net.module)
    table = measured(made.net, groups, made.context.measure, made.device)
    now = conditions(made, options.quick)
    rows = [row for row in finished(out, now) if row["cpu"]["high"] / row["cpu"]["ratio"] - 1 < DISTURBED]
    for kind, name, work in jobs(made, table, quick=options.quick):
        if not any((row["kind"], row["name"]) == (kind, name) for row in rows):
            rows.append({"kind": kind, "name": name, **work()})
            keep(out, now, rows, targets(rows, now))
            print(f"{kind} {name}: {rows[-1]['cpu']}", file=sys.stderr, flush=True)
    show(json.loads(out.read_text("utf-8")))


def jobs(made: Made, table: Table, *, quick: bool) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Every row that is wanted: its kind, its name, and what makes it."""
    for seed in range(QUICK_HELD_OUT if quick else HELD_OUT):
        yield "held out", str(seed), partial(held_out, made, table, seed)
    for share in QUICK_SHARES if quick else SHARES:
        yield "max_latency", f"{share:g}", partial(limited, made, share)
    for share in QUICK_KEEPS if quick else KEEPS:
        yield "keep_macs", f"{share:g}", partial(shrunk, made, share)
    for share in QUICK_LEFT if quick else LEFT:
        yield "DeiT-Tiny", f"{share:g}", partial(larger, made, share)


def held_out(made: Made, table: Table, seed: int) -> Row:
    """A network with random counts: its time as predicted and as measured, shares of the uncut network's."""
    draw = np.random.default_rng([1, seed])
    groups = made.net.family.units(made.net.module)
    counts = {g.name: int(draw.choice(sizes(g))) for g in groups}
    cut = made.net.edit([g.keep(range(counts[g.name])) for g in groups if counts[g.name] < g.count])
    found = compared(made, cut, seed)
    predicted = table.predict(counts)
    return {
        "predicted": round(predicted, ROUNDED),
        "error": round(100 * abs(predicted / found["least"] - 1), 3),
        **found,
    }


def limited(made: Made, share: float) -> Row:
    """The cut for a limit, measured once more beside the uncut network."""
    asked = MaxLatency(device="local", share=share)
    cut = Optin(samples=SAMPLES, max_latency=asked).run(made.net, made.context)
    return {"limit": share, **compared(made, cut, seed=round(1000 * share)), **accuracy(cut, made)}


def shrunk(made: Made, share: float) -> Row:
    cut = Optin(samples=SAMPLES, keep_macs=share).run(made.net, made.context)
    return {**compared(made, cut, seed=round(1000 * share)), **accuracy(cut, made)}


def larger(made: Made, share: float) -> Row:
    """A larger network with about this share of the units of every layer; which they are, no time depends on."""
    net = create("hf_vit", DEIT_TINY, made.net.labels, 0)
    groups = net.family.units(net.module)
    cut = net.edit([g.keep(range(min(sizes(g), key=lambda n: abs(n - share * g.count)))) for g in groups])
    return compared(made._replace(net=net), cut, seed=round(1000 * share))


def accuracy(cut: Network, made: Made) -> Row:
    """The accuracy on the test images, and what it loses of the uncut network's, in points."""
    dense, right = (answered(net, made.context.data) for net in (made.net, cut))
    return {"accuracy": percent(right.mean()), "lost": points(intervals.paired_difference(dense, right))}


def compared(made: Made, cut: Network, seed: int) -> Row:
    """The times of a cut network over those of the uncut one, and its share of the MACs."""
    with tempfile.TemporaryDirectory(prefix="edgetl-latency-") as scratch:
        folders = (latency.exported(net, made.timing) for net in (made.net, cut))
        base, other = (subject(folder, Path(scratch)) for folder in folders)
        samples = interleave({"base": base, "other": other}, Bench(pinned(made.device), EFFORT, seed))
    cpu, wall = (ratios(samples, cpu=cpu) for cpu in (True, False))
    least = [min(summary.medians(samples[key], cpu=True)) for key in ("other", "base")]
    share = cost.macs(cut) / cost.macs(made.net)
    worth = intervals.Interval(*(share / end for end in (cpu.value, cpu.high, cpu.low)))
    return {
        "macs": round(share, ROUNDED),
        "least": round(least[0] / least[1], ROUNDED),
        "cpu": cell(cpu),
        "wall": cell(wall),
        "worth": cell(worth),
        "dense_ms": round(statistics.median(summary.medians(samples["base"], cpu=True)), ROUNDED),
    }


def ratios(samples: Samples, *, cpu: bool) -> intervals.Interval:
    return intervals.geometric_mean(summary.ratios(samples["base"], samples["other"], cpu=cpu))


def conditions(made: Made, quick: bool) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "onnxruntime", "numpy")),
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "batch": 1,
        "dtype": "float32",
        "model": f"ViT of {RECIPE}, {'untrained' if quick else 'one epoch'}",
        "network_sha256": made.net.digest,
        "rounds": EFFORT.rounds,
        "window_s": EFFORT.window_s,
        "quick": quick,
        "code": plugins.digest("methods", "optin")[:16],
        "quantity": "CPU time of a call; a prediction is compared with the ratio of the least medians of all rounds",
        "interval": "95 %, Student's t on the logarithms of the ratios of the rounds' medians",
    }


def targets(rows: Sequence[Row], now: Row) -> list[Row]:
    """What is claimed, as far as its rows are there."""
    wanted = {"held out": QUICK_HELD_OUT if now["quick"] else HELD_OUT,
              "max_latency": len(QUICK_SHARES if now["quick"] else SHARES)}  # fmt: skip
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in ("held out", *AIMED)}
    whole = {kind: len(of[kind]) == wanted[kind] for kind in wanted}
    found = []
    if errors := [row["error"] for row in of["held out"]]:
        mean = statistics.fmean(errors)
        half = 1.96 * statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else math.nan
        ends = {"low": None if math.isnan(half) else round(mean - half, 3),
                "high": None if math.isnan(half) else round(mean + half, 3)}  # fmt: skip
        met = whole["held out"] and mean <= LARGEST_ERROR
        name = "error of the predicted latency of held-out networks, mean %"
        found.append({"name": name, "goal": LARGEST_ERROR, "value": round(mean, 3), **ends, "met": met})
    if cuts := of["max_latency"]:
        kept = sum(row["cpu"]["ratio"] <= row["limit"] for row in cuts)
        met = whole["max_latency"] and kept == len(cuts)
        name = "cuts for a max_latency that keep it when they are measured once more"
        found.append({"name": name, "goal": len(cuts), "value": kept, "low": None, "high": None, "met": met})
    for row in (row for kind in AIMED for row in of[kind] if row["macs"] <= MOST_MACS):
        name = f"speed-up over MACs saved at {row['kind']} {row['name']} ({row['macs']:.2f} of the MACs), lower end"
        value = row["worth"]
        ends = {"value": value["ratio"], "low": value["low"], "high": value["high"]}
        found.append({"name": name, "goal": LEAST_WORTH, **ends, "met": value["low"] >= LEAST_WORTH})
    return found


def show(result: Row) -> None:
    print(f"\n{'':<74} {'goal':>6} {'value':>8}  95 %")
    for one in result["targets"]:
        ends = "" if one["low"] is None else f"{one['low']:g} to {one['high']:g}"
        print(f"{one['name']:<74} {one['goal']:>6g} {one['value']:>8.4g}  {ends}{'' if one['met'] else '  not met'}")
    print(f"\n| network | {' | '.join(COLUMNS)} |\n{'|---' * (1 + len(COLUMNS))}|")
    for row in result["rows"]:
        told = f"{row['predicted']:.3f}" if "predicted" in row else "-"
        found = (row[key] for key in ("cpu", "wall", "worth"))
        cells = [f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in found]
        lost = "{value:.2f} ({low:.2f} to {high:.2f})".format(**row["lost"]) if "lost" in row else "-"
        print(f"| {row['kind']} {row['name']} | {row['macs']:.3f} | {told} | {' | '.join(cells)} | {lost} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
