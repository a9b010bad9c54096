"""Whether a device that is reached over ssh gives the figures that it gives by itself.

One bundle is profiled here, and by this very machine over `ssh://` to its own loopback address, in random order, pair
by pair, on CPU time at one thread. Start an sshd that your key opens, whose host key is known, and name its address:

    python benchmarks/remote.py BUNDLE --address ssh://me@localhost:2222
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from _results import Row, finished, host, keep

from edgetl import intervals
from edgetl.device import Device, load_device
from edgetl.stages.profile import profile

RESULT = Path(__file__).parent / "results" / "remote.json"
PAIRS, QUICK_PAIRS = 20, 4
SECONDS_A_PAIR = 20
SEED = 0
LOW, HIGH = 0.95, 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--address", required=True, help="ssh://user@localhost:port of this machine")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs, not {PAIRS}")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file")
    options = parser.parse_args()
    pairs = QUICK_PAIRS if options.quick else PAIRS
    print(f"about {pairs * SECONDS_A_PAIR / 60:.0f} minutes; finished rows of {options.out} are kept", flush=True)
    here, there = load_device("local"), load_device(options.address)
    now = conditions(pairs, options.bundle)
    rows = finished(options.out, now)
    draw = random.Random(SEED)
    for number in range(pairs):
        order = draw.sample([("local", here), ("ssh", there)], 2)
        if number < len(rows):
            continue
        row: Row = {name: measured(options.bundle, device, number) for name, device in order}
        rows.append(row)
        write(options.out, now, rows)
        print(f"pair {number + 1} of {pairs}: {row}", file=sys.stderr, flush=True)
    show(options.out)


def measured(bundle: Path, device: Device, seed: int) -> float:
    """The median CPU time of one run in milliseconds."""
    [one] = profile([bundle], device, out=None, mode="quick", seed=seed)
    return one.latency.cpu_time_p50_ms


def conditions(pairs: int, bundle: Path) -> Row:
    """What the figures depend on."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    return {
        **host(("edgetl", "onnxruntime", "numpy")),
        "model": manifest["name"],
        "macs": manifest["cost"]["macs"],
        "threads": 1,
        "batch": 1,
        "mode": "quick",
        "quantity": "median CPU time of a run, ms",
        "pairs": pairs,
        "seed": SEED,
        "interval": "95 %, Student's t on the logarithms of the paired ratios",
    }


def write(out: Path, now: Row, rows: list[Row]) -> None:
    """Write what is finished; the whole interval has to lie within the goal."""
    ratio = intervals.paired_ratio([row["ssh"] for row in rows], [row["local"] for row in rows])
    ends = {"value": ratio.value, "low": ratio.low, "high": ratio.high} if len(rows) > 1 else {}
    met = len(rows) == now["pairs"] and ratio.low >= LOW and ratio.high <= HIGH
    target = {"name": "CPU time over ssh / local", "goal": [LOW, HIGH], **ends, "met": met}
    keep(out, now, rows, [target])


def show(out: Path) -> None:
    """Print the result."""
    told = json.loads(out.read_text("utf-8"))
    [target] = told["targets"]
    print(
        f"{len(told['rows'])} pairs: ssh / local = {target['value']:.3f} ({target['low']:.3f} to {target['high']:.3f})"
    )


if __name__ == "__main__":
    main()
