"""Files that are broken at one node: the node is named, given back to float, and the gates hold again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgetl import plugins
from edgetl.quantize import repair
from edgetl.quantize.repair import divergence, lowered, worst_first
from edgetl.recipe.schema import Material
from edgetl.targets.onnx import FILE, Onnx
from tests.quantize.conftest import BERT, Case

pytestmark = pytest.mark.xdist_group("quantize")  # what the fixtures train and export is made once

BROKEN = "patch/Conv"


class WrongZeroPoint(Onnx):
    """Static int8 with a zero point that no pixel above 0 fits behind."""

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        name = super().lower(base, folder, material)
        if BROKEN in material.floats:
            return name
        model = onnx.load(folder / name)
        made = {output: node for node in model.graph.node for output in node.output}
        restore = made[next(n for n in model.graph.node if n.name == BROKEN).input[0]]
        restore.input[2] = made[restore.input[0]].input[2] = "wrong"
        model.graph.initializer.append(numpy_helper.from_array(np.array(255, np.uint8), "wrong"))
        (folder / name).write_bytes(model.SerializeToString())
        return name


class Hopeless(Onnx):
    """A lowered file of which every node is broken, whatever is given back."""

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        name = super().lower(base, folder, material)
        model = onnx.load(folder / name)
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[0] = "before"
        minus = numpy_helper.from_array(np.array(-1, np.float32), "minus")
        model.graph.initializer.append(minus)
        model.graph.node.append(onnx.helper.make_node("Mul", ["before", "minus"], ["logits"]))
        (folder / name).write_bytes(model.SerializeToString())
        return name


def test_a_wrong_zero_point_is_caught_named_and_repaired(pictures: Case, tmp_path: Path) -> None:
    target, material, bar = WrongZeroPoint(precision="int8"), pictures.material(), pictures.bar(agreement=0.9)
    session = target.open(tmp_path / target.lower(pictures.base, tmp_path, material), {}, 1)
    assert bar.missed(pictures.practice().answers(session)), "the planted fault must be one that the gate sees"
    assert next(worst_first(target, pictures.base, material, 1)) == BROKEN
    made = lowered(target, pictures.base, tmp_path, material, bar)
    assert made.given_back == (BROKEN,)
    assert not made.missed
    assert target.dtypes(made.file, target.nodes(pictures.base))[BROKEN] == "fp32"


class Counted(WrongZeroPoint):
    """One that notes how many files were made."""

    made: ClassVar[list[frozenset[str]]] = []

    def lower(self, base: Path, folder: Path, material: Material) -> str:
        self.made.append(material.floats)
        return super().lower(base, folder, material)


def test_one_bad_node_is_found_with_few_files_and_every_node_comes_once(pictures: Case) -> None:
    target, material = Counted(precision="int8"), pictures.material()
    nodes = target.nodes(pictures.base)
    Counted.made.clear()
    found = worst_first(target, pictures.base, material, 1)
    assert next(found) == BROKEN
    assert len(Counted.made) <= 2 * math.ceil(math.log2(len(nodes))) < len(nodes)
    assert sorted([BROKEN, *found]) == sorted(nodes)
    assert len(Counted.made) <= 2 * len(nodes)


def test_when_files_run_out_groups_go_by_their_mean(pictures: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MOST_FILES", 4)
    target, material = Counted(precision="int8"), pictures.material()
    Counted.made.clear()
    order = list(worst_first(target, pictures.base, material, 1))
    assert len(Counted.made) == 4
    assert sorted(order) == sorted(target.nodes(pictures.base))
    assert order.index(BROKEN) <= math.ceil(len(order) / 4)


def test_the_mask_that_bert_adds_is_given_back(texts: Case, tmp_path: Path) -> None:
    target = Onnx(precision="int8", operators=("MatMul", "Gemm", "Add"))
    made = lowered(target, texts.base, tmp_path, texts.material(), texts.bar(agreement=0.97))
    assert made.given_back
    assert set(made.given_back) <= {"layers.0.attn/Add", "layers.1.attn/Add"}
    assert not made.missed


def test_the_operators_that_int8_takes_by_itself_leave_the_mask_alone(texts: Case, tmp_path: Path) -> None:
    made = lowered(Onnx(precision="int8"), texts.base, tmp_path, texts.material(), texts.bar(agreement=0.97))
    assert (made.given_back, made.missed) == ((), "")


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_large_embeddings_are_stored_short(
    texts: Case, tmp_path: Path, precision: Literal["int8", "int8_dynamic"]
) -> None:
    files = {}
    for operators in (("MatMul", "Gemm", "Conv", "Gather"), ("MatMul", "Gemm", "Conv")):
        target, folder = Onnx(precision=precision, operators=operators), tmp_path / str(len(operators))
        folder.mkdir()
        files[len(operators)] = folder / target.lower(texts.base, folder, texts.material())
    table = int(np.prod([BERT["vocab_size"], BERT["hidden_size"]]))
    assert files[3].stat().st_size - files[4].stat().st_size > 3 * table - 1000  # a byte a weight, and its nodes
    found = Onnx(precision=precision).dtypes(files[4], ("words/Gather", "types/Gather"))
    assert found == {"words/Gather": "w8", "types/Gather": "fp32"}


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
def test_an_embedding_with_an_outlier_is_given_back(
    texts: Case, tmp_path: Path, precision: Literal["int8", "int8_dynamic"]
) -> None:
    model = onnx.load(texts.base)
    table = next(t for t in model.graph.initializer if "word_embeddings" in t.name)
    values = numpy_helper.to_array(table).copy()
    values[0] = 1e4  # the padding, which the mask hides: no answer changes, but 8 bits hold nothing else beside it
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    base = tmp_path / "base.onnx"
    onnx.save(model, base)
    planted = replace(texts, base=base)
    made = lowered(Onnx(precision=precision), base, tmp_path, planted.material(), planted.bar(agreement=0.98))
    assert made.given_back == ("words/Gather",)
    assert not made.missed


def test_what_cannot_be_repaired_is_made_plainly_and_says_what_it_misses(pictures: Case, tmp_path: Path) -> None:
    target, bar = Hopeless(precision="int8_dynamic"), pictures.bar(agreement=0.9)
    made = lowered(target, pictures.base, tmp_path, pictures.material(), bar)
    assert made.missed.startswith("agreement: ")
    assert "worst of" in made.missed
    assert made.given_back == ()
    found = target.dtypes(made.file, target.nodes(pictures.base))
    assert "int8" in found.values()


def test_without_a_bar_nothing_is_tried_twice(pictures: Case, tmp_path: Path) -> None:
    made = lowered(WrongZeroPoint(precision="int8"), pictures.base, tmp_path, pictures.material(), None)
    assert made == made.__class__(made.target, tmp_path / FILE)


def test_a_bar_asks_for_no_gate_that_the_float_file_misses(pictures: Case) -> None:
    own = pictures.practice().float_answers(pictures.base)
    wrong = np.roll(own, 1, axis=1)
    assert pictures.bar(accuracy=50.0).missed(own) == []
    assert [v.gate for v in pictures.bar(accuracy=50.0).missed(wrong)] == ["accuracy"]
    assert pictures.bar(accuracy=100.0, accuracy_drop=0.0).missed(own) == []
    gates = {"accuracy": 50.0, "accuracy_drop": 5.0, "class_drop": 5.0, "f1": 50.0, "agreement": 0.9, "faster": True}
    assert {v.gate for v in pictures.bar(**gates).missed(wrong)} == set(gates) - {"faster"}


def test_the_test_split_is_never_read(pictures: Case) -> None:
    practice, splits = pictures.practice(), pictures.prepared.splits
    shown = np.concatenate([batch["pixel_values"] for batch in practice.batches("train", 10**6)])
    pixels = pictures.prepared.inputs["pixel_values"][splits["train"]]
    np.testing.assert_array_equal(shown, pixels.astype(np.float32) / 255)
    assert len(practice.y) == len(splits["validation"])
    np.testing.assert_array_equal(practice.y, pictures.prepared.y[splits["validation"]])


def test_divergence_is_that_of_the_probabilities() -> None:
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a, b))
    assert divergence(a, b) == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-5)
    assert divergence(a, a + 3) == pytest.approx(0, abs=1e-6)
    b[2, 1] = np.nan
    assert divergence(a, b) == float("inf")


@pytest.mark.parametrize("precision", ["fp16", "int8_dynamic", "w8", "w4"])
def test_real_networks_at_every_precision_answer_as_their_float_files(
    pictures: Case, texts: Case, tmp_path: Path, precision: str
) -> None:
    for case in (pictures, texts):
        target = plugins.find("targets", "onnx")(precision=precision)
        if not target.nodes(case.base):
            continue
        session = target.open(tmp_path / target.lower(case.base, tmp_path, case.material()), {}, 1)
        own, answers = case.practice().float_answers(case.base), case.practice().answers(session)
        session.close()
        assert (own.argmax(axis=1) == answers.argmax(axis=1)).mean() > 0.9
        assert np.abs(answers - own).max() < 0.2 * np.abs(own).max()
