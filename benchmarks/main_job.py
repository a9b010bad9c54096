"""What the shipped recipes give: accuracy, cost and speed of the reference and of every pruned student.

Each recipe is run as a user would (`edgetl run`), and the figures are those of its report: of the exported files, on
the whole test split, timed side by side on this machine's CPU. Recipes whose data is not given are left out.

    python benchmarks/main_job.py --fashion-mnist DIR --sst2 DIR --minilm DIR
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _results import host

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "benchmarks"
RESULT = Path(__file__).parent / "results" / "main_job.json"
MINUTES = {"demo": 3, "vit-fashion-mnist": 25, "minilm-text": 45}
PACKAGES = ("edgetl", "torch", "transformers", "onnxruntime", "numpy")

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the demo only")
    parser.add_argument("--fashion-mnist", type=Path, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--sst2", type=Path, help="folder with SST-2 as train.tsv and test.tsv")
    parser.add_argument("--minilm", help="all-MiniLM-L6-v2: a folder, or the hub id")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the run folders are; finished ones are read")
    parser.add_argument("--out", type=Path, help=f"JSON file [default: {RESULT.relative_to(ROOT)}; quick: below runs/]")
    options = parser.parse_args()
    out = options.out or (RUNS / "main_job.json" if options.quick else RESULT)
    jobs = {"demo": []} if options.quick else dict(wanted(options))
    print(f"about {sum(MINUTES[name] for name in jobs)} minutes; finished steps are kept", flush=True)
    rows, students = [], []
    for name, sets in jobs.items():
        folder = options.runs / name
        # One thread: results depend on the number of threads, and CPU time on a shared machine is only told by one.
        words = [word for item in ("threads=1", *sets) for word in ("--set", item)]
        command = [sys.executable, "-m", "edgetl", "run", name, "--out", str(folder), "--json", *words]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode not in (0, 3):  # a missed gate is a result too
            sys.exit(ended.returncode)
        report = json.loads(ended.stdout)["reports"][0]
        found = [row(name, one) for one in report["rows"]]
        rows += found
        students.append((name, found))
    told = {"schema_version": 1, "conditions": conditions(), "rows": rows, "targets": [kept(*s) for s in students]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    show(rows)


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Each recipe with its overrides, where its data is given."""
    yield "demo", []
    if options.fashion_mnist:
        yield "vit-fashion-mnist", [f"data.root={options.fashion_mnist.resolve()}"]
    if options.sst2 and options.minilm:
        yield "minilm-text", [f"data.root={options.sst2.resolve()}", f"model.source={options.minilm}"]


def conditions() -> Row:
    """What the figures depend on."""
    return {
        **host(PACKAGES),
        "threads": 1,
        "batch": 1,
        "seed": 0,
        "interval": "95 %: Wilson (accuracy), paired (drop), Student's t over rounds (times and ratios)",
    }


def row(recipe: str, told: Row) -> Row:
    """The figures of one exported file; null is not measured."""
    measured = told["measurements"].get("local")
    valid = measured is not None and measured["verdict"] != "invalid"
    score, ratio = told["accuracy"], measured["comparison"] if valid else None
    return {
        "recipe": recipe,
        "student": told["name"],
        "reference": told["reference"],
        "macs": told["macs"],
        "parameters": told["parameters"],
        "size_bytes": told["size_bytes"],
        "n": score["n"],
        "accuracy": score["accuracy"],
        "accuracy_drop": told["accuracy_drop"],
        "parity_max_abs": told["parity"]["max_abs"],
        "p50_ms": [measured["latency"]["p50_ms"], *measured["latency"]["p50_ci95_ms"]] if valid else None,
        "cpu_p50_ms": [measured["latency"]["cpu_time_p50_ms"], *measured["latency"]["cpu_time_p50_ci95_ms"]]
        if valid
        else None,
        "peak_bytes": measured["memory"]["peak_delta_max_bytes"] if valid else None,
        "ratio": {key: ratio[key] for key in ("quantity", "ratio", "low", "high", "rounds")} if ratio else None,
        "verdict": measured["verdict"] if measured else None,
        "flags": measured["noise"]["flags"] if measured else None,
        "keeps_every_gate": all(gate["passes"] for gate in told["gates"]),
    }


def kept(recipe: str, rows: list[Row]) -> Row:
    """The goal that at least one pruned student keeps every gate of its recipe."""
    count = sum(one["keeps_every_gate"] for one in rows if not one["reference"])
    name = f"{recipe}: pruned students that keep every gate"
    return {"name": name, "goal": 1, "value": count, "low": None, "high": None, "met": count >= 1}


def show(rows: list[Row]) -> None:
    """Print the rows as a table in Markdown."""
    print("| recipe | file | MACs | MB | accuracy % (95 %) | CPU p50 ms | time / reference (95 %) |")
    print("|---|---|---|---|---|---|---|")
    for one in rows:
        share, ratio, cpu = one["accuracy"], one["ratio"], one["cpu_p50_ms"]
        accuracy = f"{100 * share['value']:.2f} ({100 * share['low']:.2f} to {100 * share['high']:.2f})"
        against = f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio else "-"
        cells = (
            one["recipe"],
            one["student"],
            f"{one['macs'] / 1e6:.2f} M",
            f"{one['size_bytes'] / 1e6:.2f}",
            accuracy,
        )
        print("| " + " | ".join((*cells, f"{cpu[0]:.3g}" if cpu else "-", against)) + " |")


if __name__ == "__main__":
    main()
