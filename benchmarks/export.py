"""Exported files side by side: what `edgetl export --target auto` ships, and what peers' defaults give.

Real trained networks; every row starts from the same weights, and where it calibrates, from the same 128 training
samples. Rounds of fresh processes, one for each row, which take turns of a few calls in an order shuffled anew, at one
thread (judged, CPU time) and at two (printed, wall time). A row counts as a peer where it loses at most 1 point of
accuracy of the fp32 ONNX file on the test samples. The fastest peer and `auto` are then compared in more rounds of
their own, so that the peer's luck in the first ones does not count. The rows called chain are students of the whole
chain: distilled, then exported with `auto`.

    python benchmarks/export.py --fashion-mnist DIR --sst2 DIR --banking77 DIR --minilm DIR --cifar10 DIR --weights DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from _export_networks import ROOT, RUNS, Job, jobs
from _export_peers import NAMES, Entry, Given, entries
from _export_rounds import SAMPLES, Made, answered, answers_of, interleaved
from _export_shown import show
from _results import Row, finished, host, keep, points
from numpy.typing import NDArray

from edgetl import device, intervals, store
from edgetl.bundle import open_bundle
from edgetl.device import Device
from edgetl.intervals import Interval
from edgetl.prepare import Prepared, open_prepared
from edgetl.recipe.plan import read_plan
from edgetl.roofline import roofline
from edgetl.types import Feed

Turns = Sequence[Sequence[float]]

RESULT = Path(__file__).parent / "results" / "export.json"
AUTO, CHAIN, DENSE = "edgetl auto", "edgetl chain", "onnx fp32"
GATE, LOSS, TIMES = 1.0, 1.03, 10.0
"""Points of accuracy; the ratio to the best peer that the interval has to stay below; the chain's speed-up."""

ROUNDS, QUICK_ROUNDS, TURNS, QUICK_TURNS = {1: 7, 2: 3}, {1: 5, 2: 3}, 20, 8
PAIRS, QUICK_PAIRS = 30, 4
"""Rounds in which `auto` and the fastest peer are alone."""

CALIBRATION = 128
PACKAGES = ("edgetl", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
TARGETS = "[{use: onnx, precision: fp32}, {use: auto}]"


def main() -> None:
    options = parsed()
    out = options.out or (RUNS / "export.json" if options.quick else RESULT)
    wanted = [job for job in jobs(options) if not options.only or job.name in options.only]
    print(f"about {sum(job.minutes for job in wanted)} minutes; finished rows of {out} are kept", flush=True)
    here, networks = machine(), networks_of(out)
    if not (rows := finished(out, conditions(networks, quick=options.quick))):
        networks = {}
    for job in wanted:
        if networks.get(job.name) != here:
            rows = [row for row in rows if row["network"] != job.name] + measured(job, options)
            networks[job.name] = here
            keep(out, conditions(networks, quick=options.quick), rows, targets(rows))
    show(json.loads(out.read_text("utf-8")))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--sst2", type=Path, help="folder with SST-2 as train.tsv and test.tsv")
    parser.add_argument("--banking77", type=Path, help="folder with BANKING77 as train.tsv and test.tsv")
    parser.add_argument("--minilm", help="all-MiniLM-L6-v2: a folder, or the hub id")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10 as train*.npz and test.npz")
    parser.add_argument("--weights", type=Path, help="folder with resnet-cifar10/ and efficientnet-lite0-imagenet/")
    parser.add_argument("--optimum", type=Path, help="the Python of an environment with edgetl[optimum]")
    parser.add_argument("--olive", type=Path, help="the Python of an environment with olive-ai and requests")
    parser.add_argument(
        "--device", default=device.LOCAL, help="what `edgetl devices calibrate` wrote, for the roofline"
    )
    parser.add_argument("--only", nargs="+", help="these networks alone")
    parser.add_argument("--quick", action="store_true", help="the demo's digits only")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    return parser.parse_args()


def machine() -> Row:
    """What the figures of a network depend on; on another machine or version it is measured anew."""
    code = [store.source_digest(ROOT / "edgetl" / part) for part in ("quantize", "targets")]
    return {**host(PACKAGES), "code": store.digest(code)[:16]}


def networks_of(out: Path) -> dict[str, Row]:
    """The machine and the versions of each network that an earlier run finished."""
    return dict(json.loads(out.read_text("utf-8"))["conditions"]["networks"]) if out.is_file() else {}


def conditions(networks: Mapping[str, Row], *, quick: bool) -> Row:
    """How every network is measured, and with what each of them was."""
    return {
        "batch": 1,
        "threads": [1, 2],
        "quick": quick,
        "gate": f"at most {GATE:g} point of accuracy below the fp32 ONNX file, on the same test samples",
        "calibration": f"{CALIBRATION} training samples",
        "quantity": "median CPU time of a call at one thread, wall time at two",
        "interval": "95 %, Student's t on the logarithms of the rounds' ratios: the median over cycles of turns",
        "networks": dict(networks),
    }


def measured(job: Job, options: argparse.Namespace) -> list[Row]:
    """All rows of one network."""
    made = prepared(job)
    pythons = {"optimum": options.optimum, "olive": options.olive}
    every = rows_of(made, pythons, compiles=not options.quick)
    running = {name: entry for name, entry in every.items() if not entry.skipped}
    for name in [name for name, entry in running.items() if (problem := answered(made, name, entry))]:
        every[name] = Entry(skipped=f"failed: {problem}")
        del running[name]
    turns, rounds = (QUICK_TURNS, QUICK_ROUNDS) if options.quick else (TURNS, ROUNDS)
    times = {
        threads: interleaved(made, running, f"rounds-{threads}", threads, rounds[threads], turns) for threads in rounds
    }
    here = device.load_device(options.device)
    rows = {name: row(made, name, entry, times, here) for name, entry in every.items()}
    if peer := fastest_peer(rows):
        both = {name: every[name] for name in (AUTO, peer)}
        alone = interleaved(made, both, "pair", 1, QUICK_PAIRS if options.quick else PAIRS, turns)
        ours, theirs = (turns_of(alone[name], "cpu_ms") for name in (AUTO, peer))
        rows[AUTO]["pair"] = {"peer": peer, "ours": ours, "theirs": theirs}
    return [*rows.values()]


def prepared(job: Job) -> Made:
    """The run of a network, compressed and exported, and the samples that all rows share."""
    run, work = RUNS / job.name, RUNS / "peers" / job.name
    gates = (f"gates.accuracy_drop={GATE}", "gates.agreement=null", f"targets={TARGETS}", "threads=1")
    sets = [word for item in (*job.sets, *gates) for word in ("--set", item)]
    for words in (["compress", "--recipe", job.recipe, "--out", str(run), *sets], ["export", str(run), "--no-judge"]):
        if code := subprocess.run([sys.executable, "-m", "edgetl", *words], stdout=sys.stderr, check=False).returncode:
            sys.exit(code)
    work.mkdir(parents=True, exist_ok=True)
    data, plan = open_prepared(next(run.glob("shared/data-*"))), read_plan(run)
    test = data.splits["test"][: job.tested]
    save(work / "test.npz", feed(data, test))
    save(work / "inputs.npz", feed(data, test[np.linspace(0, len(test) - 1, SAMPLES).astype(int)]))
    students = tuple(name for name in plan["students"] if name != plan["reference"])
    return Made(job, run, work, plan["reference"], students, data.y[test])


def feed(data: Prepared, rows: NDArray[np.int64]) -> Feed:
    return data.preprocess().tail({name: np.asarray(values[rows]) for name, values in data.inputs.items()})


def save(path: Path, arrays: Feed) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def rows_of(made: Made, pythons: Mapping[str, Path | None], *, compiles: bool) -> dict[str, Entry]:
    """What runs each row: the peers, the bundle that `auto` chose, and those of the chain's students."""
    plan, data = read_plan(made.run), open_prepared(next(made.run.glob("shared/data-*")))
    drawn = np.random.default_rng(0).permutation(data.splits["train"])[:CALIBRATION]
    network = made.run / "steps" / plan["steps"][made.reference][-1]
    base = made.run / "students" / made.reference / "base.onnx"
    single = [feed(data, drawn[i : i + 1]) for i in range(len(drawn))]
    found = entries(Given(network, base, single, pythons, compiles), made.work)
    bundles = made.run / "bundles"
    found[AUTO] = Entry("edgetl", bundles / made.reference / "auto")
    for student in made.students:
        found[f"{CHAIN} {student}"] = Entry("edgetl", bundles / student / "auto")
    return found


def row(made: Made, name: str, entry: Entry, times: Mapping[int, Mapping[str, list[Row]]], here: Device) -> Row:
    """The figures of one row; null is not measured."""
    found: Row = {"network": made.job.name, "row": name, "skipped": entry.skipped or None}
    if entry.skipped:
        return found
    right, dense = (right_of(made, one) for one in (name, DENSE))
    drop = intervals.paired_difference(dense, right)
    quality: Row = {"n": len(right), "accuracy": round(100 * float(right.mean()), 3), "drop": points(drop, 3)}
    quality["keeps_gate"] = quality["drop"]["value"] <= GATE
    one, two = times[1][name], times[2][name]
    return {
        **found,
        **quality,
        "size_bytes": size(entry.file),
        "cpu_ms": middle(one, "cpu_ms"),
        "ratio": told(ratio(turns_of(one, "cpu_ms"), turns_of(times[1][DENSE], "cpu_ms"))),
        "turns_cpu_ms": turns_of(one, "cpu_ms"),
        "wall_ms_2": middle(two, "wall_ms"),
        "ratio_2": told(ratio(turns_of(two, "wall_ms"), turns_of(times[2][DENSE], "wall_ms"))),
        **(chosen(entry, middle(one, "cpu_ms"), here) if entry.kind == "edgetl" else {}),
    }


def chosen(entry: Entry, cpu_ms: float | None, here: Device) -> Row:
    """What `auto` shipped, its ladder, and how near the time comes to the device's roofline where that is known."""
    manifest = open_bundle(entry.file).manifest
    roof = roofline(manifest, here, cpu_ms) if cpu_ms else None
    near = None if roof is None else round(roof.pct_of_roofline, 1)
    ladder = manifest["provenance"]["ladder"]
    return {"ships": f"{manifest['target']} {manifest['precision']}", "roofline_percent": near, "ladder": ladder}


def right_of(made: Made, name: str) -> NDArray[np.bool_]:
    return np.asarray(np.load(answers_of(made, name)).argmax(axis=1) == made.y)


def size(file: Path) -> int | None:
    """Bytes of a row's file, of a bundle's model; of a network in torch those of its weights."""
    if file.is_dir():
        kept = [p for p in file.iterdir() if p.name.startswith("model.")]
        return sum(p.stat().st_size for p in kept) or None
    return sum(p.stat().st_size for p in {file, *file.parent.glob(f"{file.stem}.bin")})


def turns_of(samples: Sequence[Row], key: str) -> Turns:
    """The times of the turns of every round; none where its process failed."""
    return [sample.get(key, []) for sample in samples]


def ratio(times: Turns, base: Turns) -> Interval | None:
    """The times over those of the base, cycle by cycle of each round that both finished."""
    each = []
    for ours, theirs in zip(times, base, strict=True):
        if ours and theirs:
            each.append(statistics.median(a / b for a, b in zip(ours, theirs, strict=False)))
    return intervals.geometric_mean(each) if len(each) > 1 else None


def middle(samples: Sequence[Row], key: str) -> float | None:
    known = [statistics.median(sample[key]) for sample in samples if key in sample]
    return round(statistics.median(known), 5) if known else None


def told(interval: Interval | None) -> Row | None:
    return None if interval is None else {end: round(getattr(interval, end), 4) for end in ("value", "low", "high")}


def targets(rows: Sequence[Row]) -> list[Row]:
    """What is claimed of every network that is measured."""
    found, fast = [], []
    for network in dict.fromkeys(row["network"] for row in rows):
        of = {row["row"]: row for row in rows if row["network"] == network and not row["skipped"]}
        found += against_best(network, of)
        fast += [one for name in of if name.startswith(CHAIN) for one in chain(network, of[name], of[DENSE])]
    count = sum(one["met"] for one in fast)
    ends = {"value": count, "low": None, "high": None, "met": count >= 2}
    return [*found, *fast, {"name": f"networks whose chain is {TIMES:g} times faster", "goal": 2, **ends}]


def fastest_peer(rows: Mapping[str, Row]) -> str | None:
    """The peer that is fastest among those that keep the gate; none where there is nothing to compare."""
    found = [rows[name] for name in NAMES if name in rows and rows[name].get("keeps_gate") and rows[name]["ratio"]]
    if AUTO not in rows or rows[AUTO]["skipped"] or not found:
        return None
    return str(min(found, key=lambda row: row["ratio"]["value"])["row"])


def against_best(network: str, of: Mapping[str, Row]) -> list[Row]:
    """The time of `auto` over that of the fastest peer that keeps the gate, where the two were compared."""
    if AUTO not in of or "pair" not in of[AUTO]:
        return []
    ours, pair = of[AUTO], of[AUTO]["pair"]
    over = ratio(pair["ours"], pair["theirs"])
    name = f"{network}: time of auto ({ours['ships']}) over the best peer's ({pair['peer']}), upper end"
    met = over is not None and over.high <= LOSS and ours["keeps_gate"]
    return [{"name": name, "goal": LOSS, **(told(over) or {}), "met": met}]


def chain(network: str, student: Row, dense: Row) -> list[Row]:
    """How many times faster a chain's student is than the dense fp32 file."""
    faster = ratio(dense["turns_cpu_ms"], student["turns_cpu_ms"])
    lost = student["drop"]["value"]
    name = f"{network}: {student['row']} over dense fp32, lower end, {lost:g} points lost"
    met = faster is not None and faster.low >= TIMES and student["keeps_gate"]
    return [{"name": name, "goal": TIMES, **(told(faster) or {}), "met": met}]


if __name__ == "__main__":
    main()
