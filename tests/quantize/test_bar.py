"""Files chosen on few validation samples: what the gates will say of the test part is foretold, not hoped for."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl import evaluate
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.quantize.bar import Bar, Practice
from edgetl.quantize.produce import Standard
from tests.quantize.conftest import Case

LABELS = ("a", "b")


def bar(validation: int, test: int, **gates: float) -> Bar:
    """Return the bar of a file that answers every validation sample right; there are that many of each part."""
    rows = np.arange(1 + validation + test)
    parts = {"train": rows[:1], "validation": rows[1 : 1 + validation], "test": rows[1 + validation :]}
    y = rows % 2
    inputs = {"x": np.zeros((len(rows), 1), np.float32)}
    prepared = Prepared(Path(), Raw("array"), LABELS, (), y, parts, inputs, "ab" * 32, {})
    own = answers(y[parts["validation"]], np.zeros(validation, bool))
    return Bar(Practice(prepared, gates, 0, 1), own, own)


def answers(y: NDArray[np.int64], wrong: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.eye(2, dtype=np.float32)[np.where(wrong, 1 - y, y)]


def lost(of: Bar, count: int) -> NDArray[np.float32]:
    """Return answers of which that many are wrong."""
    return answers(of.practice.y, np.arange(len(of.own)) < count)


@pytest.mark.parametrize(
    ("validation", "test", "most"),
    [(100, 1000, 0), (200, 1000, 0), (1000, 1000, 3), (1000, 10_000, 5)],  # of 1,000, the limit itself is 10
)
def test_the_fewer_samples_choose_the_fewer_may_be_lost(validation: int, test: int, most: int) -> None:
    judge = bar(validation, test, accuracy_drop=1.0)
    passed = [count for count in range(10) if not judge.missed(lost(judge, count))]
    assert passed == [*range(most + 1)]


@given(validation=st.integers(20, 1000), test=st.integers(20, 5000), limit=st.floats(0.0, 10.0))
def test_the_answers_of_fp32_pass_however_few_samples_there_are(validation: int, test: int, limit: float) -> None:
    judge = bar(validation, test, accuracy_drop=limit, class_drop=limit, agreement=1 - limit / 100, accuracy=95.0)
    assert judge.missed(judge.own) == []


def test_what_is_let_through_keeps_the_gate_on_the_test_part_five_times_in_six() -> None:
    random, kept = np.random.default_rng(0), []
    judge = bar(400, 1000, accuracy_drop=3.0)
    for share in np.linspace(0.0, 0.05, 300):  # of samples that the file loses
        chosen = answers(judge.practice.y, random.random(400) < share)
        if not judge.missed(chosen):
            wrong = random.random(1000) < share
            y = np.arange(1000) % 2
            kept.append(evaluate.drop(answers(y, np.zeros(1000, bool)), answers(y, wrong), y).high <= 0.03)
    assert len(kept) > 40
    assert np.mean(kept) >= 5 / 6


def test_a_miss_says_how_few_samples_foretell_it() -> None:
    judge = bar(200, 1000, accuracy_drop=1.0)
    assert [str(v) for v in judge.missed(lost(judge, 1))] == [
        "accuracy_drop: 1.874, limit 1 (foretold by 200 validation samples)"
    ]


def test_too_few_samples_are_told_with_the_way_out(pictures: Case, caplog: pytest.LogCaptureFixture) -> None:
    practice = pictures.practice(accuracy_drop=4.0)
    with caplog.at_level(logging.WARNING, logger="edgetl"):
        assert Standard(practice, pictures.base, "key").bar(pictures.base, chooses=True) is not None
    count = len(pictures.prepared.splits["validation"])
    assert f"{count} validation samples are too few to prove accuracy_drop" in caplog.text
    assert "data.validation" in caplog.text
