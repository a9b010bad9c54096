"""Changed copies of texts: made of what the texts are made of, in its order, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgetl.errors import BadInput
from edgetl.methods.distill import Distill
from edgetl.network.network import Network, create
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Context, Schedule
from edgetl.train.batches import Data
from edgetl.train.texts import Texts, changed

FIRST, LAST, PAD = 101, 102, 3
BERT = {"vocab_size": 110, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LABELS = ("a", "b")


def texts(lengths: list[int], width: int = 20) -> Texts:
    """Return texts of so many tokens between the special ones, no token twice."""
    ids, mask = np.full((len(lengths), width), PAD, np.int32), np.zeros((len(lengths), width), np.uint8)
    for row, length in enumerate(lengths):
        ids[row, : length + 2] = [FIRST, *range(10 + 10 * row, 10 + 10 * row + length), LAST]
        mask[row, : length + 2] = 1
    return ids, mask


def shown(made: Texts) -> Iterator[list[int]]:
    for ids, mask in zip(*made, strict=True):
        assert (np.diff(mask.astype(int)) <= 0).all()
        assert (ids[mask == 0] == PAD).all() or not (mask == 0).any()
        yield ids[mask > 0].tolist()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=9), st.integers(1, 5), st.integers(0, 99))
def test_copies_are_made_of_tokens_in_their_order_between_the_special_ones(
    lengths: list[int], copies: int, seed: int
) -> None:
    given_texts = texts(lengths)
    originals = [ids[1:-1] for ids in shown(given_texts)]
    made = changed(given_texts, copies, seed)
    assert [part.dtype for part in made] == [part.dtype for part in given_texts]
    for number, copy in enumerate(shown(made)):
        own, inner = originals[number // copies], copy[1:-1]
        assert (copy[0], copy[-1]) == (FIRST, LAST)
        if number % copies % 2 == 0:  # tokens left out
            assert set(inner) <= set(own)
            assert inner == sorted(inner)
        elif own:  # the beginning of this one, and the end of any
            count = next((i for i, token in enumerate(inner) if token not in own), len(inner))
            kept = next(n for n in range(count, 0, -1) if inner[:n] == own[:n])
            rest = inner[kept:]
            assert any(rest == text[len(text) - len(rest) :] for text in originals)
        assert bool(inner) == bool(own)


def test_a_copy_is_no_longer_than_texts_may_be() -> None:
    for copy in shown(changed(texts([9, 9, 9, 1], width=11), 6, 0)):
        assert len(copy) <= 11
        assert (copy[0], copy[-1]) == (FIRST, LAST)


def test_the_seed_decides() -> None:
    first, again, other = (changed(texts([9] * 9), 4, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


@pytest.fixture
def data(tmp_path: Path) -> Data:
    ids, mask = texts(list(range(1, 10)) * 4)
    rows = np.arange(len(ids))
    parts = {"train": rows[:20], "validation": rows[20:28], "test": rows[28:]}
    operations = ({"op": "tokenize", "file": "tokenizer.json", "length": 20},)
    inputs = {"input_ids": np.minimum(ids, 109), "attention_mask": mask}
    return Data(Prepared(tmp_path, Raw("text"), LABELS, operations, rows % 2, parts, inputs, "ab" * 32, {}))


def taught(context: Context, **fields: object) -> tuple[Network, Mapping[str, np.ndarray]]:
    """Return the student, and all that the step made to be shared."""
    step = Distill(use="distill", layers=1, schedule=Schedule(epochs=1, batch=16), **fields)
    student = step.run(create("hf_bert", BERT, LABELS, 0), context)
    return student, {file.stem: np.load(file) for file in context.work.glob("shared/*/*.npy")}


def test_the_teacher_answers_the_copies_of_training_texts_and_of_no_others(context, data: Data) -> None:
    ctx = replace(context(), data=data)
    student, made = taught(ctx, augmented=3)
    kept = sorted(folder.name.partition("-")[0] for folder in ctx.work.glob("shared/*"))
    assert kept == ["answers", "copies"]  # its labels are those answers: it is asked once
    train = data.rows("train")
    copies = changed((data.prepared.inputs["input_ids"][train], data.prepared.inputs["attention_mask"][train]), 3, 7)
    np.testing.assert_array_equal(made["ids"], copies[0])
    asked = np.flatnonzero(np.isfinite(made["logits"]).all(axis=1))
    np.testing.assert_array_equal(asked, [*train, *range(len(data.prepared.y), len(data.prepared.y) + 60)])
    plain, _ = taught(replace(context("plain"), data=data))
    assert student.digest != plain.digest


def test_steps_with_other_counts_of_copies_share_nothing_wrong(context, data: Data) -> None:
    shared = replace(context(), data=data)
    alone = [taught(replace(context(f"alone-{count}"), data=data), augmented=count)[0] for count in (1, 3)]
    together = [taught(shared, augmented=count)[0] for count in (1, 3)]
    assert [net.digest for net in together] == [net.digest for net in alone]


def test_copies_are_of_texts_and_need_the_teachers_labels(context) -> None:
    step = Distill(use="distill", augmented=1, schedule=Schedule(epochs=1, batch=16))
    with pytest.raises(BadInput, match="the data has none") as caught:
        step.run(create("hf_bert", BERT, LABELS, 0), context())
    assert "augment" in caught.value.fix
    with pytest.raises(ValidationError, match="leaves out"):
        Distill(use="distill", augmented=1, unlabelled=False)
