"""What merging tokens is worth beside cutting heads and neurons: accuracy and time of exported files at equal MACs.

A network is trained as a shipped recipe trains its dense one and cut to several shares of its MACs, by heads and
neurons alone and with shares of the saving that are tokens'. Nothing is trained after the cut. Accuracy is that of the
exported file on all test samples, paired with the dense one's; times are CPU times of the files on one thread, in fresh
processes, interleaved with the dense one's.

    python benchmarks/optin_tokens.py --fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from _networks import trained
from _results import Row, finished, host, keep, percent, points
from numpy.typing import NDArray
from optin import once
from repeatability import cell, subject

from edgetl import intervals, plugins
from edgetl.device import probe
from edgetl.measure import summary
from edgetl.measure.rounds import Bench, Effort, Samples, interleave, pinned
from edgetl.methods.optin import Optin
from edgetl.network import cost
from edgetl.network.network import Network, load
from edgetl.recipe.schema import Context
from edgetl.stages import latency
from edgetl.train.batches import Data

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks" / "optin_tokens"
RESULT = Path(__file__).parent / "results" / "optin_tokens.json"
MINUTES = {"demo": 8, "vit-fashion-mnist": 45}
"""Of one seed, on one thread."""
QUICK_MINUTES = 5
KEEPS, QUICK_KEEPS = (0.8, 0.6, 0.5, 0.4), (0.5,)
SHARES = (0.0, 0.2, 0.8)
JUDGED = 0.6
"""The targets pool the shares of the MACs up to this one."""
EFFORT = Effort(7, 7, 0, math.inf, math.inf, 0.2, 3, 1.0, 64, 10.0, steady=False)
ROUNDED = 5

Right = NDArray[np.bool_]


class Subjects(NamedTuple):
    """A trained network and all that its cuts are measured with."""

    name: str
    seed: int
    dense: Network
    context: Context
    timing: latency.Bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the demo's digits at one share of the MACs, one seed")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind [default: 3]")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "optin_tokens.json" if options.quick else RESULT)
    jobs: dict[str, list[str]] = {"demo": []}
    if options.fashion_mnist and not options.quick:
        jobs["vit-fashion-mnist"] = [f"data.root={options.fashion_mnist.resolve()}"]
    seeds = 1 if options.quick else options.seeds
    minutes = QUICK_MINUTES if options.quick else seeds * sum(MINUTES[name] for name in jobs)
    print(f"about {minutes} minutes; finished rows of {out} and trained networks are kept", flush=True)
    torch.set_num_threads(1)
    keeps = QUICK_KEEPS if options.quick else KEEPS
    now = conditions(seeds, keeps)
    rows = finished(out, now)
    for name, sets in jobs.items():
        for seed in range(seeds):
            missing = [
                k for k in keeps if not any((r["network"], r["seed"], r["keep_macs"]) == (name, seed, k) for r in rows)
            ]
            folder = RUNS / f"{name}-{seed}"
            if missing:
                subjects = prepared(name, seed, *trained(name, sets, seed, folder), folder)
            for share in missing:
                rows += measured(subjects, share)
                keep(out, now, rows, targets(rows))
    keep(out, now, rows, targets(rows))
    show(rows)


def conditions(seeds: int, keeps: Sequence[float]) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "torch", "transformers", "onnxruntime", "numpy")),
        "threads": 1,
        "batch": 1,
        "seeds": seeds,
        "keep_macs": list(keeps),
        "token_shares": list(SHARES),
        "rounds": EFFORT.rounds,
        "window_s": EFFORT.window_s,
        "method": plugins.digest("methods", "optin")[:16],
        "family": plugins.digest("families", "hf_vit")[:16],
        "quantity": "accuracy of the exported file; CPU time of one call over the dense file's",
        "interval": "95 %: paired over test samples (drop), Student's t over rounds (CPU time)",
    }


def prepared(name: str, seed: int, dense: Network, data: Data, folder: Path) -> Subjects:
    """A network with a context like that of a run, and where its files go."""
    fields: dict[str, Any] = {"past": lambda step: load(folder / step), "measure": None}
    context = Context(data=data, seed=seed, work=folder, once=partial(once, folder, data), **fields)
    scratch = folder / "timing"
    timing = latency.Bench(
        plugins.find("targets", "onnx")(), latency.trial(data, 32), scratch, folder / "shared", folder / ".old"
    )
    return Subjects(name, seed, dense, context, timing)


def measured(of: Subjects, share: float) -> Iterator[Row]:
    """Yield a row for each split of the saving between tokens and other units, all timed together."""
    dense = latency.exported(of.dense, of.timing)
    before = answered(dense, of.context.data)
    nets = {s: Optin(keep_macs=share, token_share=s).run(of.dense.copy(), of.context) for s in SHARES}
    files = {s: latency.exported(net, of.timing) for s, net in nets.items()}
    samples = timed({"dense": dense, **{f"{s:g}": path for s, path in files.items()}}, of.seed)
    for split, net in nets.items():
        right = answered(files[split], of.context.data)
        drop = intervals.paired_difference(before, right)
        yield {
            "network": of.name,
            "seed": of.seed,
            "keep_macs": share,
            "token_share": split,
            "macs": round(cost.macs(net) / cost.macs(of.dense), ROUNDED),
            "tokens": list(net.family.tokens(net.module)),
            "n": len(right),
            "dense": percent(before.mean()),
            "accuracy": percent(right.mean()),
            "drop": points(drop),
            "cpu": cell(ratio(samples, "dense", f"{split:g}")),
            "cpu_to_units_alone": cell(ratio(samples, f"{SHARES[0]:g}", f"{split:g}")) if split else None,
        }


def timed(folders: Mapping[str, Path], seed: int) -> Samples:
    """The samples of all bundles, by key, of rounds in which each runs once."""
    with tempfile.TemporaryDirectory(prefix="edgetl-tokens-") as scratch:
        subjects = {key: subject(folder, Path(scratch)) for key, folder in folders.items()}
        return interleave(subjects, Bench(pinned(probe()), EFFORT, seed))


def ratio(samples: Samples, base: str, other: str) -> intervals.Interval:
    return intervals.geometric_mean(summary.ratios(samples[base], samples[other], cpu=True))


def answered(folder: Path, data: Data) -> Right:
    """Whether the file in a bundle answers each test sample right."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(next(folder.glob("*.onnx")), settings, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    rights = []
    for rows in np.array_split(data.rows("test"), max(1, len(data.rows("test")) // 100)):
        batch = {name: values.numpy() for name, values in data.batch(rows).items()}
        answers = session.run(None, {name: batch[name] for name in names})[0]
        rights.append(answers.argmax(1) == batch["labels"])
    return np.concatenate(rights)


def targets(rows: Sequence[Row]) -> list[Row]:
    """What tokens are to gain at equal MACs, means over seeds and budgets; ends are those of the rows' means."""
    found: list[Row] = []
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name and row["keep_macs"] <= JUDGED]
        units = {(r["seed"], r["keep_macs"]): r for r in mine if not r["token_share"]}
        for share in SHARES[1:]:
            pairs = [(r, units[r["seed"], r["keep_macs"]]) for r in mine if r["token_share"] == share]
            words = f"{name}, keep <= {JUDGED:g}, tokens {share:g} over units alone"
            gains = [r["accuracy"] - alone["accuracy"] for r, alone in pairs]
            times = [r["cpu_to_units_alone"]["ratio"] for r, _ in pairs]
            found.append(judged(f"{words}: points of accuracy", gains, 0.0, up=True))
            found.append(judged(f"{words}: CPU time", times, 1.0, up=False))
    return found


def judged(name: str, values: Sequence[float], goal: float, *, up: bool) -> Row:
    """A goal that is met where the end of the mean's interval that is nearer to failing meets it."""
    if len(values) < 2:
        return {
            "name": name,
            "goal": goal,
            "value": round(float(np.mean(values)), 3),
            "low": None,
            "high": None,
            "met": False,
        }
    mean = float(np.mean(values))
    half = intervals.student_t(0.95, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    low, high = round(mean - half, 3), round(mean + half, 3)
    met = low >= goal if up else high <= goal
    return {"name": name, "goal": goal, "value": round(mean, 3), "low": low, "high": high, "met": met}


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table in Markdown."""
    print("\n| net | seed | keep | tokens' share | MACs | tokens of blocks | accuracy | dense | CPU time / dense |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        left, cpu = ", ".join(map(str, row["tokens"])), row["cpu"]
        cells = [
            row["network"],
            row["seed"],
            f"{row['keep_macs']:g}",
            f"{row['token_share']:g}",
            f"{row['macs']:.3f}",
            left,
        ]
        cells += [
            f"{row['accuracy']:.2f}",
            f"{row['dense']:.2f}",
            f"{cpu['ratio']:.3f} ({cpu['low']:.3f} to {cpu['high']:.3f})",
        ]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
