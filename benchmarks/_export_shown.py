"""The result of benchmarks/export.py as tables in Markdown."""

from __future__ import annotations

from _results import Row


def show(result: Row) -> None:
    """Print the targets and the rows as tables in Markdown."""
    for one in result["targets"]:
        ends = "" if one["low"] is None else f" ({one['low']:g} to {one['high']:g})"
        print(f"{one['name']}: {one['value']:g}{ends}, goal {one['goal']:g}: {'met' if one['met'] else 'not met'}")
    print("\n| network | row | accuracy % | lost | MB | CPU ms | time / fp32 (95 %) | at 2 threads | note |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        print(f"| {row['network']} | {row['row']} | {' | '.join(cells(row))} |")


def cells(row: Row) -> list[str]:
    if row["skipped"]:
        return ["-"] * 6 + [row["skipped"]]
    roof = row.get("roofline_percent")
    near = "" if "ships" not in row else f"; {roof or 'not available'} % of the roofline" if roof else "; roofline n/a"
    note = row.get("ships", "") + near + ("" if row["keeps_gate"] else " misses the gate")
    spans = [
        f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" if r else "-" for r in (row["ratio"], row["ratio_2"])
    ]
    mb = "-" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f}"
    ms = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.4f}"
    return [f"{row['accuracy']:.2f}", f"{row['drop']['value']:.2f}", mb, ms, *spans, note]
