"""Pruning under a limit in milliseconds: how well tables predict, whether limits hold, what a saved MAC is worth.

The ViT of the recipe `vit-fashion-mnist`, trained for one epoch (with `--quick` not at all: no time depends on weights,
only which units OPTIN takes), on this machine's CPU at one thread. Networks with random numbers of heads and neurons,
none of which the tables have seen, are exported and timed beside the uncut one in fresh processes, interleaved; so are
the cuts that OPTIN makes for a `max_latency` and for a share of the MACs. All ratios are of CPU time; those of wall
time stand beside them.

    python benchmarks/latency.py --fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _results import Row, finished, host, keep
from repeatability import cell, subject

from edgetl import intervals, store
from edgetl.dataset import open_data
from edgetl.device import Device, probe
from edgetl.measure import summary
from edgetl.measure.measurement import Measurement
from edgetl.measure.rounds import Bench, Effort, Samples, interleave, pinned
from edgetl.methods.optin import Optin
from edgetl.methods.optin.latency import Table, measured, sizes
from edgetl.network import cost
from edgetl.network.network import Network, load
from edgetl.recipe.load import find
from edgetl.recipe.read import read
from edgetl.recipe.schema import Context, MaxLatency
from edgetl.stages import latency
from edgetl.stages.compress import compress
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks"
RESULT = Path(__file__).parent / "results" / "latency.json"
TRAINED, UNTRAINED = "steps=[{use: finetune, name: dense, schedule: {epochs: 1, lr: 1.5e-3, batch: 128}}]", "steps=[]"
HELD_OUT, QUICK_HELD_OUT = 20, 4
SHARES, QUICK_SHARES = (0.8, 0.65, 0.5, 0.35), (0.5,)
KEEPS, QUICK_KEEPS = (0.5, 0.4, 0.3), (0.4,)
TOGETHER = 4
EFFORT = Effort(7, 7, 0, math.inf, math.inf, 0.2, 3, 1.0, 64, 10.0, steady=False)
SAMPLES, ROUNDED = 64, 5
MINUTES, QUICK_MINUTES = 45, 9
LARGEST_ERROR, LEAST_WORTH, MOST_MACS = 3.0, 0.85, 0.5


class Made(NamedTuple):
    """The uncut network and all that is measured with."""

    net: Network
    context: Context
    device: Device
    timing: latency.Bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, required=True, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--quick", action="store_true", help="a fifth of the networks and one limit")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "latency.json" if options.quick else RESULT)
    print(f"about {QUICK_MINUTES if options.quick else MINUTES} minutes; finished rows of {out} are kept", flush=True)
    torch.set_num_threads(1)
    made = prepared(options.fashion_mnist.resolve(), quick=options.quick)
    groups = made.net.family.units(made.net.module)
    table = measured(made.net, groups, made.context.measure, made.device)
    now = conditions(made, options.quick)
    rows = finished(out, now)
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


def prepared(root: Path, *, quick: bool) -> Made:
    """The network, trained where it is not there yet, and a context like that of a run."""
    folder = RUNS / ("latency-quick" if quick else "latency")
    steps = [UNTRAINED, "reference=source"] if quick else [TRAINED]
    recipe = read(find("vit-fashion-mnist"), [f"data.root={root}", *steps])
    net = load(next(iter(compress(recipe, folder).values())))
    torch.set_num_threads(1)
    data = Data(open_data(recipe, folder)[1])
    scratch = folder / "timing"
    timing = latency.Bench(recipe.targets[0], latency.trial(data, 32), scratch, folder / "shared", folder / ".old")
    shared = partial(once, folder / "shared", data)
    context = Context(data, 0, scratch, lambda _: net, shared, partial(timed, timing))
    return Made(net, context, probe(), timing)


def timed(timing: latency.Bench, networks: Sequence[Network], device: Device) -> list[Measurement]:
    return latency.latencies(networks, device, timing)


def once(shared: Path, data: Data, what: str, parts: Mapping[str, Any], make: Callable[[Path, int], None]) -> Path:
    """What all cuts share, as a run keeps it."""
    plain = {k: v.digest if isinstance(v, Network) else v for k, v in parts.items()}
    key = store.digest([what, plain, data.digest, code()])
    return store.made_once(shared / f"{what}-{key[:16]}", key, lambda out: make(out, 0), shared / ".old")


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
    return {"limit": share, **compared(made, cut, seed=round(1000 * share))}


def shrunk(made: Made, share: float) -> Row:
    cut = Optin(samples=SAMPLES, keep_macs=share).run(made.net, made.context)
    return compared(made, cut, seed=round(1000 * share))


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


def code() -> str:
    """What the rows are made by."""
    folder = Path(sys.modules[Optin.__module__].__file__ or "").parent
    return hashlib.sha256(store.source_digest(folder).encode()).hexdigest()[:16]


def conditions(made: Made, quick: bool) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "onnxruntime", "numpy")),
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "batch": 1,
        "dtype": "float32",
        "model": f"ViT of vit-fashion-mnist, {'untrained' if quick else 'one epoch'}",
        "network_sha256": made.net.digest,
        "rounds": EFFORT.rounds,
        "window_s": EFFORT.window_s,
        "quick": quick,
        "code": code(),
        "quantity": "CPU time of a call; a prediction is compared with the ratio of the least medians of all rounds",
        "interval": "95 %, Student's t on the logarithms of the ratios of the rounds' medians",
    }


def targets(rows: Sequence[Row], now: Row) -> list[Row]:
    """What is claimed, as far as its rows are there."""
    wanted = {"held out": QUICK_HELD_OUT if now["quick"] else HELD_OUT,
              "max_latency": len(QUICK_SHARES if now["quick"] else SHARES),
              "keep_macs": len(QUICK_KEEPS if now["quick"] else KEEPS)}  # fmt: skip
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in wanted}
    whole = {kind: len(found) == wanted[kind] for kind, found in of.items()}
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
    small = [row for row in of["max_latency"] if row["macs"] <= MOST_MACS]
    for row in [*small, *of["keep_macs"]]:
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
    print(
        "\n| network | MACs | predicted | CPU time / uncut (95 %) | wall time / uncut (95 %) | speed-up / MACs saved |"
    )
    print("|---|---|---|---|---|---|")
    for row in result["rows"]:
        told = f"{row['predicted']:.3f}" if "predicted" in row else "-"
        found = (row[key] for key in ("cpu", "wall", "worth"))
        cells = [f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in found]
        print(f"| {row['kind']} {row['name']} | {row['macs']:.3f} | {told} | {' | '.join(cells)} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
