"""From a network to a bundle of lower precision: what ships, what is said of it, and why the rest does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetl import artifact
from edgetl.artifact import Trial
from edgetl.bundle import open_bundle
from edgetl.errors import BadInput
from edgetl.intervals import Interval
from edgetl.quantize import ladder, produce
from edgetl.quantize.bar import Practice
from edgetl.quantize.ladder import Rung
from edgetl.quantize.produce import Order, Standard
from edgetl.stages.verify import verify
from edgetl.targets.onnx import Onnx
from tests import clockwork
from tests.quantize.conftest import Case

pytestmark = pytest.mark.xdist_group("quantize")  # what the fixtures train and export is made once


@pytest.fixture
def order(pictures: Case, tmp_path: Path) -> Order:
    out = tmp_path / "students" / "dense"
    out.mkdir(parents=True)
    (out / "base.onnx").write_bytes(pictures.base.read_bytes())
    np.save(out / "logits.npy", artifact.torch_answers(pictures.net, _trial(pictures), _trial(pictures).n))
    facts = {"name": "dense", "provenance": {"recipe_sha256": ""}}
    return Order(Onnx(), out, tmp_path / "bundles" / "dense" / "onnx-asked", facts)


def _trial(case: Case) -> Trial:
    rows = case.prepared.splits["test"]
    heads = {"pixel_values": case.prepared.inputs["pixel_values"][rows]}
    return Trial(case.prepared.preprocess(), heads, case.prepared.y[rows], (0, 1, 2), None, None, "ab" * 32)


def _standard(case: Case, order: Order, **gates: float) -> Standard:
    return Standard(Practice(case.prepared, gates, 0, 1), order.out / "base.onnx", "key")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_dynamic"])
def test_a_bundle_says_what_it_computes_in_and_verifies(pictures: Case, order: Order, precision: str) -> None:
    order = replace(order, target=Onnx(precision=precision))  # type: ignore[arg-type]
    produce.produce(pictures.net, _trial(pictures), order, _standard(pictures, order, accuracy_drop=5.0))
    manifest = open_bundle(order.folder).manifest
    dtype = precision.partition("_")[0]
    assert manifest["precision"] == precision
    assert max(manifest["dtypes"], key=manifest["dtypes"].get) == dtype
    assert sum(manifest["dtypes"].values()) == pytest.approx(1)
    assert {node["dtype"] for node in manifest["cost"]["nodes"]} == set(manifest["dtypes"])
    assert ("calibration" in manifest["provenance"]) == (precision == "int8")
    assert verify(order.folder).agreement.value == 1
    assert (order.out / "onnx-asked.npy").is_file()
    assert [p.name for p in order.out.iterdir() if p.name.startswith(".")] == []


def test_calibration_is_counted_and_compared_with_validation(
    pictures: Case, order: Order, caplog: pytest.LogCaptureFixture
) -> None:
    far = {"pixel_values": pictures.prepared.inputs["pixel_values"].copy()}
    far["pixel_values"][pictures.prepared.splits["train"]] //= 4  # darker pictures than those of validation
    case = replace(pictures, prepared=replace(pictures.prepared, inputs=far))
    order = replace(order, target=Onnx(precision="int8", samples=10_000))
    produce.produce(pictures.net, _trial(pictures), order, _standard(case, order))
    found = open_bundle(order.folder).manifest["provenance"]["calibration"]
    assert (found["part"], found["samples"]) == ("train", len(pictures.prepared.splits["train"]))
    assert found["outside"]["share"] > 1
    assert "the training part has no more of the 10000 asked" in caplog.text
    assert "validation samples leave the calibrated range" in caplog.text


def test_static_int8_without_data_is_refused_with_the_way_out(pictures: Case, order: Order) -> None:
    order = replace(order, target=Onnx(precision="int8"))
    with pytest.raises(BadInput, match="0 training samples") as caught:
        produce.produce(pictures.net, _trial(pictures), order, None)
    assert "int8_dynamic" in caught.value.fix
    assert not order.folder.exists()


def test_auto_ships_fp32_unless_another_file_is_proven_faster_and_tells_why(
    pictures: Case, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    clockwork.wind(monkeypatch)
    order = replace(order, target=Onnx(precision="auto"))
    produce.produce(pictures.net, _trial(pictures), order, _standard(pictures, order, accuracy_drop=5.0))
    manifest = open_bundle(order.folder).manifest
    rungs = manifest["provenance"]["ladder"]
    assert json.loads(order.folder.with_name("onnx-asked.ladder.json").read_text())["rungs"] == rungs
    assert [r["precision"] for r in rungs if r["outcome"] == "ships"] == [manifest["precision"]]
    assert rungs[0]["precision"] == "fp32"
    assert all(r["reason"] for r in rungs)
    (ships,) = [rung for rung in rungs if rung["outcome"] == "ships"]
    assert ships["ratio"]["high"] < 1


def test_a_candidate_that_misses_a_gate_is_not_even_timed(
    pictures: Case, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Sequence[Path]] = []
    monkeypatch.setattr(ladder, "_timed", lambda bundles, *_: timed.append(bundles) or [None] * len(bundles))
    standard = _standard(pictures, order)
    trial, base = _trial(pictures), order.out / "base.onnx"
    bar = standard.bar(base, chooses=True)
    tried = []
    for precision in ("fp32", "int8_dynamic"):
        folder = order.out / precision
        folder.mkdir()
        one = produce.lowered(Onnx(precision=precision), base, folder, pictures.material(), bar)
        missed = "" if precision == "fp32" else "agreement: 0.5, limit 0.9"
        made = artifact.check(pictures.net, trial, replace(one, missed=missed), order.out, order.facts)
        tried.append((made, folder))
    other = Rung("onnx", "int8", "rejected", "3 training samples do not tell the ranges of int8")
    found = ladder.climb(tried, [other], None)  # type: ignore[arg-type]
    assert [(r.precision, r.outcome) for r in found.rungs] == [
        ("fp32", "ships"),
        ("int8_dynamic", "rejected"),
        ("int8", "rejected"),
    ]
    assert timed == [[order.out / "fp32"]]
    assert found.rungs[1].reason == "misses agreement: 0.5, limit 0.9"
    assert found.chosen.lowered.target.precision == "fp32"


@pytest.mark.parametrize(
    ("verdict", "flags", "counts"),
    [
        ("noisy", ["load"], True),
        ("invalid", ["instability"], True),  # the median of one file is uncertain, the ratio of two is not
        ("invalid", ["throttled"], False),
        ("invalid", ["failed_rounds"], False),
    ],
)
def test_a_ratio_counts_by_its_own_interval(verdict: str, flags: list[str], counts: bool) -> None:
    ratio = SimpleNamespace(word="faster", ratio=0.5, judged=Interval(0.5, 0.49, 0.51))
    m: Any = SimpleNamespace(verdict=verdict, noise=SimpleNamespace(flags=flags), comparison=ratio)
    assert ladder._proven(m) == (0.5 if counts else 1)
    assert ladder._reason(m, 0.4).startswith("faster than fp32" if counts else "its time is not known")
