"""Which units OPTIN should keep in the same time: accuracy right after a cut.

The ViT of `vit-fashion-mnist` as `optin.py` trains it. Tables of its time are measured on this machine's CPU at one
thread; after that they are the clock, so that no disturbance decides which cut had more time. A cut for a share of the
MACs tells how much time the others get: those for a `max_latency` with a layer's units tried together, and summed up.

    python benchmarks/optin_worth.py --fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from _networks import answered, trained
from _results import Row, finished, host, keep, percent, points
from _timed import RECIPE, RUNS, Made, by_table, counts, made

from edgetl import intervals, plugins
from edgetl.methods.optin import Optin
from edgetl.methods.optin.latency import Table, measured
from edgetl.methods.optin.units import groups_of
from edgetl.network import cost
from edgetl.network.network import Network
from edgetl.recipe.load import find
from edgetl.recipe.read import read
from edgetl.recipe.schema import MaxLatency

RESULT = Path(__file__).parent / "results" / "optin_worth.json"
KEEPS = (0.5, 0.4, 0.3)
SAMPLES = 64
MINUTES = 15
OTHERS = {"over_macs": "keep_macs", "over_additive": "worth: additive"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, required=True, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--quick", action="store_true", help="one share of the MACs")
    parser.add_argument("--out", type=Path, help="JSON file [default: benchmarks/results/optin_worth.json]")
    options = parser.parse_args()
    keeps = KEEPS[1:2] if options.quick else KEEPS
    out = options.out or (RUNS / "optin_worth.json" if options.quick else RESULT)
    print(f"about {MINUTES} minutes, and 15 more to train; finished rows of {out} are kept", flush=True)
    given = [f"data.root={options.fashion_mnist.resolve()}"]
    net, data = trained(RECIPE, given, 0, RUNS / "optin" / f"{RECIPE}-0")
    bench = made(net, data, read(find(RECIPE), given).targets[0], RUNS / "optin-worth")
    table = measured(net, groups_of(net), bench.context.measure, bench.device)
    now = conditions(bench)
    rows = finished(out, now)
    for share in keeps:
        if not any(row["keep_macs"] == share for row in rows):
            rows.append(compared(bench, table, share))
            keep(out, now, rows, targets(rows, len(keeps)))
            print(rows[-1], file=sys.stderr, flush=True)
    show(json.loads(out.read_text("utf-8")))


def conditions(bench: Made) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "onnxruntime", "numpy")),
        "threads": 1,
        "model": f"ViT of {RECIPE}, trained",
        "network_sha256": bench.net.digest,
        "seeds": 1,
        "accuracy": percent(answered(bench.net, bench.context.data).mean()),
        "samples": SAMPLES,
        "code": plugins.digest("methods", "optin")[:16],
        "interval": "95 %, paired over test images (Agresti & Min)",
    }


def compared(bench: Made, table: Table, share: float) -> Row:
    """One cut for a share of the MACs, and two for the time that it takes: the points that `joint` keeps more."""
    clock = bench._replace(context=replace(bench.context, measure=partial(by_table, table)))
    peer = Optin(samples=SAMPLES, keep_macs=share).run(bench.net, bench.context)
    took = table.predict(counts(peer))
    cuts = {"keep_macs": peer, "joint": within(clock, took, "joint"), "additive": within(clock, took, "additive")}
    right = {name: answered(net, bench.context.data) for name, net in cuts.items()}
    return {
        "keep_macs": share,
        "n": len(right["joint"]),
        "time": round(took, 4),
        "macs": {name: round(cost.macs(net) / cost.macs(bench.net), 4) for name, net in cuts.items()},
        "accuracy": {name: percent(one.mean()) for name, one in right.items()},
        "over_macs": points(intervals.paired_difference(right["joint"], right["keep_macs"])),
        "over_additive": points(intervals.paired_difference(right["joint"], right["additive"])),
    }


def within(clock: Made, share: float, worth: Literal["joint", "additive"]) -> Network:
    asked = MaxLatency(device="local", share=share)
    return Optin(samples=SAMPLES, max_latency=asked, worth=worth).run(clock.net, clock.context)


def targets(rows: Sequence[Row], wanted: int) -> list[Row]:
    """What `worth: joint` is to keep more to be the default; an end of the interval on the wrong side of 0 misses."""
    return [
        {"name": f"in the time of keep_macs {row['keep_macs']:g}: worth: joint keeps more than {words}, points",
         "goal": 0, **row[field], "met": len(rows) == wanted and row[field]["low"] > 0}
        for row in rows for field, words in OTHERS.items()
    ]  # fmt: skip


def show(result: Row) -> None:
    print(f"\ndense {result['conditions']['accuracy']:.2f} %\n\n| time left | keep_macs | joint | additive |")
    print("|---|---|---|---|")
    for row in result["rows"]:
        cells = (f"{row['accuracy'][name]:.2f}" for name in ("keep_macs", "joint", "additive"))
        print(f"| {row['time']:.3f} | {' | '.join(cells)} |")
    for one in result["targets"]:
        print(f"{one['name']}: {one['value']:g} ({one['low']:g} to {one['high']:g}){'' if one['met'] else ', not met'}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
