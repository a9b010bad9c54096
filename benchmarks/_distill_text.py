"""A fine-tuned MiniLM teaches a BERT-mini and a bag of words; validation selects, the test part judges."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _distill_images import context
from _results import Row, packed, points, unpacked

from edgetl import intervals, plugins, store
from edgetl.data.text_csv import TextCsv
from edgetl.evaluate import calibration_error
from edgetl.methods.distill import Distill
from edgetl.methods.finetune import Finetune
from edgetl.network.network import Network, create, load, save
from edgetl.network.saved import is_saved, prep_from_json
from edgetl.prepare import prepare
from edgetl.train.answers import answers
from edgetl.train.batches import Data

SETS = ("banking77", "sst2")
LENGTH = 64
MINI = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "bert-mini": {"family": "hf_bert", "source": {**MINI, "vocab_size": 30522, "max_position_embeddings": 128}},
    "bag": {"family": "bag", "source": {"hidden_size": 384, "intermediate_size": 384, "dropout": 0.3}},
}
RATES: Mapping[str, Sequence[float]] = {"bert-mini": (5e-4, 1e-3), "bag": (3e-3, 6e-3)}
EPOCHS = {"bert-mini": 5, "bag": 20}
TEACHING = {"epochs": 3, "lr": 1.0e-4, "batch": 32, "by_length": True}

LABELS = {"use": "labels", "weight": 0.1}
KD = {"use": "logits", "temperature": 2.0, "weight": 0.9}
ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "labels": [{"use": "labels"}],
    "kd": [LABELS, KD],
    "kd, batches at random": [LABELS, KD],
    "kd+standardised": [LABELS, {**KD, "standardised": True}],
    "dkd": [LABELS, {"use": "dkd", "temperature": 2.0, "beta": 2.0, "warmup": 2}],
    "dist": [LABELS, {"use": "dist"}],
    "kd+mi_alpha": [LABELS, KD, {"use": "mi_alpha"}],
    "kd+hidden": [LABELS, KD, {"use": "hidden", "weight": 0.1}],
    "kd+relations": [LABELS, KD, {"use": "relations"}],
    "kd+augmented": [LABELS, KD],
}
COPIES = {"kd+augmented": 4}
"""Changed copies of every text, with as many fewer epochs."""

AT_RANDOM = ("kd, batches at random",)
"""Rows whose batches are of texts of any length; those of all others are of texts of about one length."""

MOST_LOST = 1.0
"""Points that batches of one length may lose at most: the upper end of the interval."""

TOKENWISE = ("kd+hidden", "kd+relations")
"""Losses that compare positions, of which a bag of words has none. `attention` needs equally many heads: 12 and 4."""


def text_rows(options: argparse.Namespace, rows: Sequence[Row], runs: Path, add: Callable[[Row], None]) -> None:
    """Make the rows of texts that are not there yet."""
    if options.quick or options.text is None or options.minilm is None:
        return
    there = {(r["data"], r["row"]): r for r in rows if r["table"] == "text"}
    for name in SETS:
        missing = [key for key in keys() if (name, " ".join(key)) not in there]
        if not missing:
            continue
        data, teacher = taught(options.text / name, options.minilm, runs / name)
        own = judged(teacher, data)
        if there.get((name, "teacher"), {}).get("right") != own["right"]:  # rows of another teacher do not compare
            missing = [*keys()]
            add({"table": "text", "data": name, "row": "teacher", "code": code_of("labels"), **own})
        for student, row in missing:
            print(f"text {name} {student} {row}", file=sys.stderr, flush=True)
            found = made(data, teacher, student, row, runs / name)
            drop = points(intervals.paired_difference(unpacked(own), unpacked(found)))
            told = {"table": "text", "data": name, "row": f"{student} {row}", "code": code_of(row)}
            add({**told, **found, "drop": drop})


def code_of(row: str) -> str:
    """What a row's figures depend on besides the conditions: its losses, rates and epochs, and the code of all."""
    code = [plugins.digest("methods", "distill"), *(plugins.digest("losses", loss["use"]) for loss in ROWS[row])]
    return store.digest([ROWS[row], COPIES.get(row, 0), AT_RANDOM, STUDENTS, RATES, EPOCHS, TEACHING, code])[:16]


def keys() -> Iterator[tuple[str, str]]:
    """Yield every student with the losses that fit it."""
    for student in STUDENTS:
        yield from ((student, row) for row in ROWS if student != "bag" or row not in TOKENWISE)


def taught(source: Path, minilm: str, runs: Path) -> tuple[Data, Network]:
    """The data, and MiniLM fine-tuned on it, once."""
    opened = TextCsv(root=source, length=LENGTH)
    examples = opened.examples()
    start = create("hf_bert", minilm, examples.labels, 0)
    operations = opened.operations(examples.raw, prep_from_json(start.facts["prep"], Path(minilm)))
    data = Data(prepare(opened, examples, operations, 0, runs / "data"))
    if not is_saved(runs / "teacher"):
        step = Finetune(use="finetune", schedule=TEACHING)
        save(step.run(start, context(data, 0, runs / "work")), runs / "teacher", assets=data.prepared.folder)
    return data, load(runs / "teacher")


def made(data: Data, teacher: Network, student: str, row: str, runs: Path) -> Row:
    """The row of the learning rate that validation prefers."""
    found: list[tuple[float, float, Network]] = []
    started, copies = time.process_time(), COPIES.get(row, 0)
    for lr in RATES[student]:
        epochs = EPOCHS[student] // (1 + copies)
        schedule = {"epochs": epochs, "lr": lr, "batch": 32, "weight_decay": 0.01, "by_length": row not in AT_RANDOM}
        step = Distill(use="distill", student=STUDENTS[student], losses=ROWS[row], schedule=schedule, augmented=copies)
        net = step.run(teacher.copy(), context(data, 0, runs / "work"))
        rows = data.rows("validation")
        right = answers(net, data, rows).argmax(1) == data.prepared.y[rows]
        found.append((float(right.mean()), lr, net))
    best, lr, net = max(found, key=lambda one: one[0])
    store.remove(runs / "work" / "checkpoint")
    told = {"lr": lr, "validation": round(100 * best, 2), "cpu_s": round(time.process_time() - started, 1)}
    return {**told, **judged(net, data)}


def judged(net: Network, data: Data) -> Row:
    """Accuracy and calibration on the test part, and what is right there."""
    rows = data.rows("test")
    logits, y = answers(net, data, rows), data.prepared.y[rows]
    right = logits.argmax(1) == y
    told: Row = {"n": len(y), "accuracy": round(100 * float(right.mean()), 2)}
    return {**told, "ece": round(100 * calibration_error(logits, y), 2), "right": packed(right)}


def text_targets(rows: Sequence[Row]) -> list[Row]:
    """What every loss answers right more often than plain KD, and what batches of one length lose, paired."""
    found = []
    there = {(r["data"], r["row"]): r for r in rows if r["table"] == "text"}
    for (name, row), told in there.items():
        student, _, loss = row.partition(" ")
        plain = there.get((name, f"{student} kd"))
        if plain is None or loss in ("", "labels", "kd"):
            continue
        random = loss in AT_RANDOM
        ends = points(intervals.paired_difference(unpacked(told), unpacked(plain)))
        words = "batches of texts of one length lose, points" if random else f"{loss} above plain KD, points"
        met = ends["high"] <= MOST_LOST if random else ends["low"] > 0
        found.append({"name": f"{name}: {student}, {words}", "goal": MOST_LOST if random else 0, **ends, "met": met})
    return found
