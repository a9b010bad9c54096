"""The full schedules of the literature, for a machine with a CUDA GPU; elsewhere the table says "not run"."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _distill_images import AS_READ, Images, context, trained
from _results import Row, percent

from edgetl.evaluate import calibration_error
from edgetl.network.network import create
from edgetl.train.answers import answers

NETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "resnet20": ("resnet_cifar", {"depth": 20, "channels": 16}),
    "wrn16-2": ("wrn", {"depth": 16, "widen": 2}),
}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "ce": {"use": "finetune"},
    "ps_kd": {"use": "finetune", "losses": [{"use": "ps_kd"}]},
    "byot": {"use": "finetune", "losses": [{"use": "byot"}]},
    "lsskd": {"use": "lsskd", "losses": [AS_READ]},
    "lsskd_default": {"use": "lsskd"},
}
SHARES = {"25 %": 0.25, "full": 1.0}
EPOCHS = 200
"""Of every row without transformations; the others see as many views."""

SCHEDULE = {"precision": "bf16", "lr": 4.0e-3, "views_a_step": 1024}


def gpu_rows(options: argparse.Namespace, rows: Sequence[Row], runs: Path, add: Callable[[Row], None]) -> None:
    """Make the rows that are not there yet, or say of each that it was not run."""
    sets = {"cifar10": options.cifar10, "cifar100": options.cifar100}
    for data, folder in sets.items():
        runs_now = possible(folder)
        there = {(r["data"], r["row"]) for r in rows if r["table"] == "gpu" and (r["n"] or not runs_now)}
        for share in SHARES:
            for net in NETS:
                for row in ROWS:
                    key = (f"{data} {share}", f"{net} {row}")
                    if key not in there:
                        made = run(data, folder, share, net, row, runs) if runs_now else NOT_RUN
                        add({"table": "gpu", "data": key[0], "row": key[1], **made})


NOT_RUN: Row = {"n": None, "accuracy": None, "ece": None, "cpu_s": None, "note": "not run"}


def possible(folder: Path | None) -> bool:
    return folder is not None and torch.cuda.is_available()


def run(data: str, folder: Path | None, share: str, net: str, row: str, runs: Path) -> Row:
    """Train one row on the GPU."""
    print(f"gpu {data} {share} {net} {row}", file=sys.stderr, flush=True)
    images = Images(data, folder, None, 10_000, 0, 0, runs)
    few = images.part(round(SHARES[share] * images.most()) if SHARES[share] < 1 else None, "gpu")
    family, sizes = NETS[net]
    start = create(family, {**sizes, "num_channels": 3, "image_size": 32}, few.labels, 0)
    began = time.monotonic()
    settings = {**ROWS[row], "schedule": SCHEDULE}
    made = trained(start, few, settings, EPOCHS * len(few.rows("train")), context(few, 0, runs / "work"))
    seconds = time.monotonic() - began
    rows = few.rows("test")
    logits, y = answers(made, few, rows), few.prepared.y[rows]
    score = {"accuracy": percent(float((logits.argmax(1) == y).mean())), "ece": percent(calibration_error(logits, y))}
    return {"n": len(rows), **score, "wall_s": round(seconds, 1)}
