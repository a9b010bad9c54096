"""How far a comparison can be trusted: a bundle against itself, a smaller student, and its own int8 file.

One student of the demo is compared with itself over and over, by the rounds that `edgetl profile` runs: fresh
processes that take turns, paired by turn and round, CPU time at one thread. An interval of 95 % should contain 1 in 90
to 99 of 100 comparisons. Beside it stands what is often printed instead, from the same samples: the ratio of the means
over all calls, with 1.96 standard errors of the pooled calls. The last rows compare the reference with a pruned student
and with the same network in int8; where five rounds leave that open, the rounds that the tool then asks for are given.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _results import Row, finished, host, keep

from edgetl import intervals
from edgetl.bundle import open_bundle, read_golden
from edgetl.device import probe
from edgetl.measure import comparing, summary
from edgetl.measure.measurement import identity
from edgetl.measure.rounds import Bench, Effort, Samples, interleave, pinned
from edgetl.measure.summary import Subject

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks"
RESULT = Path(__file__).parent / "results" / "repeatability.json"
COMPARISONS, QUICK_COMPARISONS = 100, 12
ROUNDS = 5
WARMUP_S, WARMUP_N, WINDOW_S, WINDOW_N, CAP_S = 0.2, 3, 1.0, 64, 10.0
SECONDS_A_COMPARISON, SECONDS_OF_MAKING = 18, 120
LEAST_HELD, MOST_HELD, MOST_HALF_WIDTH = 90.0, 99.0, 3.0
REFERENCE, STUDENT = "dense", "optin-0.4"
FP32, INT8 = "onnx-fp32", "onnx-int8"
TARGETS = "[{use: onnx, precision: fp32}, {use: onnx, precision: int8}]"
DEMO = ("steps.dense.schedule.epochs=1", "steps.recover.schedule.epochs=1", "steps.optin.keep_macs=0.4")
MAKING = (*DEMO, "gates.accuracy_drop=100", "gates.agreement=0.01", f"targets={TARGETS}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_COMPARISONS} comparisons, not {COMPARISONS}")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    parser.add_argument("--comparisons", type=int, help="how many, for a try")
    options = parser.parse_args()
    wanted = options.comparisons or (QUICK_COMPARISONS if options.quick else COMPARISONS)
    out = options.out or (RUNS / "repeatability.json" if options.quick else RESULT)
    minutes = (SECONDS_OF_MAKING + (wanted + 2) * SECONDS_A_COMPARISON) / 60
    print(f"about {minutes:.0f} minutes; finished rows of {out} are kept", flush=True)
    with tempfile.TemporaryDirectory(prefix="edgetl-repeatability-") as scratch:
        files = ((REFERENCE, FP32), (STUDENT, FP32), (REFERENCE, INT8))
        reference, student, int8 = (subject(made(*file), Path(scratch)) for file in files)
        now = conditions(wanted) | {"shape": reference.shapes["pixel_values"], "file_sha256": reference.sha256}
        rows = finished(out, now)
        pairs = {f"itself {i + 1}": reference for i in range(wanted)} | {STUDENT: student, "int8": int8}
        for i, (name, against) in enumerate(pairs.items()):
            if not any(row["against"] == name for row in rows):
                rows.append({"against": name, **compared(reference, against, seed=i)})
                write(out, now, rows)
                print(f"{name}: {rows[-1]['paired']}", file=sys.stderr, flush=True)
    show(json.loads(out.read_text("utf-8")))


def conditions(wanted: int) -> Row:
    """What the figures depend on; another machine or version begins anew."""
    return {
        **host(("edgetl", "onnxruntime", "numpy")),
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "batch": 1,
        "dtype": "float32",
        "quantity": "CPU time of a call",
        "comparisons": wanted,
        "rounds": ROUNDS,
        "window_s": WINDOW_S,
        "model": f"{REFERENCE} of the demo, one epoch",
        "interval": "95 %, Student's t on the logarithms of the rounds' ratios, each the median over turns",
    }


def made(student: str, file: str) -> Path:
    """The bundle of one student of the demo, trained for an epoch: its time does not depend on its weights."""
    run_folder = RUNS / "repeatability"
    bundle = run_folder / "bundles" / student / file
    if not bundle.is_dir():
        sets = [word for item in MAKING for word in ("--set", item)]
        for words in (["compress", "--recipe", "demo", "--out", str(run_folder), *sets], ["export", str(run_folder)]):
            # A gate that one epoch misses (exit 3) does not matter here.
            code = subprocess.run([sys.executable, "-m", "edgetl", *words], stdout=sys.stderr, check=False).returncode
            if code not in (0, 3):
                sys.exit(code)
    return bundle


def subject(folder: Path, scratch: Path) -> Subject:
    """A bundle with its golden inputs where a measuring process reads them."""
    bundle = open_bundle(folder)
    inputs = {name: np.asarray(values)[:32] for name, values in read_golden(bundle).inputs.items()}
    file = scratch / f"{bundle.manifest['name']}-{folder.name}.npz"
    np.savez(file, **inputs)  # type: ignore[arg-type]
    shapes = {name: [1, *values.shape[1:]] for name, values in inputs.items()}
    return Subject(bundle, identity(bundle.sums), folder.parent.name, file, shapes, len(next(iter(inputs.values()))))


def compared(reference: Subject, other: Subject, seed: int) -> Row:
    """One comparison, by paired rounds and by pooled means; with the rounds that the tool asks for in another one."""
    samples, ratio = measured(reference, other, ROUNDS, seed)
    row = {
        "paired": {**cell(ratio), "word": comparing.word(ratio, None)},
        "pooled": cell(pooled(samples)),
        "n": sum(len(s.cpu) for one in samples.values() for s in one if s),
    }
    more = comparing.more_rounds(ratio, ROUNDS, None)
    if other.sha256 == reference.sha256 or not more:
        return row
    _, again = measured(reference, other, ROUNDS + more, seed + 1)
    return {**row, "asked_for": more, "given": {**cell(again), "word": comparing.word(again, None)}}


def measured(reference: Subject, other: Subject, rounds: int, seed: int) -> tuple[Samples, intervals.Interval]:
    """The samples of both in so many rounds, and the ratio of their times."""
    effort = Effort(rounds, rounds, 0, math.inf, math.inf, WARMUP_S, WARMUP_N, WINDOW_S, WINDOW_N, CAP_S, steady=False)
    samples = interleave({"base": reference, "other": other}, Bench(pinned(probe()), effort, seed))
    return samples, intervals.geometric_mean(summary.ratios(samples["base"], samples["other"], cpu=True))


def cell(ratio: intervals.Interval) -> Row:
    return {"ratio": round(ratio.value, 5), "low": round(ratio.low, 5), "high": round(ratio.high, 5)}


def pooled(samples: Samples) -> intervals.Interval:
    """The ratio of the means over all calls, with 1.96 standard errors as if the calls were independent."""
    base, other = (np.concatenate([s.cpu for s in samples[key] if s]) for key in ("base", "other"))
    errors = [float(v.std(ddof=1) / v.mean()) / math.sqrt(len(v)) for v in (base, other)]
    ratio = float(other.mean() / base.mean())
    half = 1.96 * ratio * math.hypot(*errors)
    return intervals.Interval(ratio, ratio - half, ratio + half)


def write(out: Path, now: Row, rows: Sequence[Row]) -> None:
    """Write what is finished, and judge it once all comparisons are."""
    twins = [row for row in rows if row["against"].startswith("itself")]
    targets = []
    for way in ("paired", "pooled") if twins else ():
        whole = len(twins) == now["comparisons"]
        held = sum(row[way]["low"] <= 1 <= row[way]["high"] for row in twins)
        share = intervals.wilson(held, len(twins))
        ends = {"value": 100 * share.value, "low": round(100 * share.low, 1), "high": round(100 * share.high, 1)}
        kept = LEAST_HELD <= ends["value"] <= MOST_HELD
        name = f"{way}: intervals of a model against itself that contain 1, %"
        targets.append({"name": name, "goal": [LEAST_HELD, MOST_HELD], **ends, "met": whole and kept})
        halves = sorted(100 * (row[way]["high"] / row[way]["ratio"] - 1) for row in twins)
        below = max(0, math.floor((len(halves) - 1.96 * math.sqrt(len(halves))) / 2))
        middle = statistics.median(halves)
        ends = {"value": middle, "low": halves[below], "high": halves[len(halves) - 1 - below]}
        name = f"{way}: median half-width, %"
        rounded = {key: round(value, 2) for key, value in ends.items()}
        targets.append({"name": name, "goal": MOST_HALF_WIDTH, **rounded, "met": whole and middle <= MOST_HALF_WIDTH})
    keep(out, now, rows, [*targets, *(narrow(row) for row in rows if row["against"] == "int8")])


def narrow(row: Row) -> Row:
    """Whether fp32 against int8 is narrow enough, or settled by the rounds that were asked for."""
    found = row["paired"]
    half = 100 * (found["high"] / found["ratio"] - 1)
    settled = row.get("given", found)["word"] != "inconclusive"
    ends = {"value": round(half, 2), "low": round(half, 2), "high": round(half, 2)}
    met = half <= MOST_HALF_WIDTH or ("given" in row and settled)
    name = "fp32 against int8: half-width, % (or settled by the rounds asked for)"
    return {"name": name, "goal": MOST_HALF_WIDTH, **ends, "met": met}


def show(result: Row) -> None:
    print(f"\n{'':<64} {'goal':>12} {'value':>8}  95 %")
    for one in result["targets"]:
        goal = one["goal"]
        limit = f"{goal[0]:g} to {goal[1]:g}" if isinstance(goal, list) else f"<= {goal:g}"
        ends = f"{one['low']:g} to {one['high']:g}"
        print(f"{one['name']:<64} {limit:>12} {one['value']:>8.4g}  {ends}{'' if one['met'] else '  not met'}")
    for row in result["rows"]:
        if not row["against"].startswith("itself"):
            for way in ("paired", "pooled"):
                found = row[way]
                ends = f"{found['low']:.3f} to {found['high']:.3f}"
                print(f"{way}: time of {row['against']} over that of {REFERENCE}: {found['ratio']:.3f} ({ends})")


if __name__ == "__main__":
    main()
