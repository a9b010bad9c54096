from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from edgetl.errors import BadInput, GateMissed
from edgetl.evaluate import agreement, answers, calibration_error, drop, parity, score


def logits_of(answer: np.ndarray, labels: int) -> np.ndarray:
    return np.eye(labels, dtype=np.float32)[answer]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 6), st.integers(1, 40))
def test_scores_equal_scikit_learn(data: st.DataObject, labels: int, n: int) -> None:
    numbers = st.lists(st.integers(0, labels - 1), min_size=n, max_size=n)
    y, answer = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    found = score(logits_of(answer, labels), y, [str(k) for k in range(labels)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes without samples
        assert found.accuracy.value == pytest.approx(accuracy_score(y, answer))
        assert found.balanced.value == pytest.approx(balanced_accuracy_score(y, answer))
        assert found.macro_f1.value == pytest.approx(f1_score(y, answer, average="macro"))
        recalls = recall_score(y, answer, average=None, labels=range(labels))
    assert {k: v.value for k, v in found.per_class.items()} == {
        str(k): pytest.approx(recalls[k]) for k in set(y.tolist())
    }
    for interval in (found.accuracy, found.balanced, found.macro_f1, *found.per_class.values()):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_intervals_of_the_means_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        y = rng.integers(0, 3, 300)
        answer = np.where(rng.random(300) < 0.8, y, (y + 1) % 3)
        balanced = score(logits_of(answer, 3), y, "abc", seed=trial).balanced
        covered += balanced.low <= 0.8 <= balanced.high
    assert covered >= 88  # of 100 at a nominal 95 %


def test_perfect_answers_leave_room_for_doubt() -> None:
    found = score(logits_of(np.arange(20) % 2, 2), np.arange(20) % 2, "ab")
    assert found.balanced.value == found.macro_f1.value == 1
    assert found.balanced.low == found.macro_f1.low == found.accuracy.low < 0.9


def test_the_same_seed_gives_the_same_interval_and_ten_thousand_samples_are_fast() -> None:
    rng = np.random.default_rng(0)
    logits, y = rng.standard_normal((10_000, 10)), rng.integers(0, 10, 10_000)
    begin = time.process_time()
    first = score(logits, y, "0123456789")
    assert time.process_time() - begin < 1
    assert first == score(logits, y, "0123456789")


def test_nothing_and_misfits_are_bad_input() -> None:
    with pytest.raises(BadInput):
        score(np.zeros((0, 2)), np.zeros(0, int), "ab")
    with pytest.raises(BadInput):
        score(np.zeros((3, 2)), np.zeros(2, int), "ab")
    with pytest.raises(BadInput):
        score(np.zeros((3, 2)), np.zeros(3, int), "abc")
    with pytest.raises(BadInput, match="-1"):
        score(np.zeros((1, 2)), np.array([-1]), "ab")


def test_agreement_drop_and_parity() -> None:
    y = np.array([0, 1, 1, 0])
    reference, logits = logits_of(y, 2), logits_of(np.array([0, 1, 0, 0]), 2)
    assert agreement(reference, logits).value == 0.75
    assert drop(reference, logits, y).value == 0.25
    assert drop(reference, reference, y).value == 0
    near = parity(10 * reference, 10 * reference + np.float32(0.5))
    assert (near.max_abs, near.max_rel) == (0.5, 0.05)


class Double:
    """A session and a pre-processing: the answer is the input, doubled by the tail."""

    provider = "test"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def tail(self, feed):
        return {name: values * 2 for name, values in feed.items()}

    def run(self, feed):
        self.batches.append(len(feed["x"]))
        return {"logits": feed["x"]}

    def close(self) -> None: ...


def test_answers_run_batch_by_batch() -> None:
    double = Double()
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(answers(double, double, {"x": x}, batch=2), 2 * x)
    assert double.batches == [2, 2, 1]
    x[3, 1] = np.nan
    with pytest.raises(GateMissed, match="1 of 5"):
        answers(double, double, {"x": x})


class TestCalibration:
    def test_confidence_that_is_kept_has_no_error(self):
        """Of 10 answers given with 0.7, 7 are right; of 10 given with 0.9, 9."""
        logits, y = [], []
        for share in (0.7, 0.9):
            logits += [[np.log(share), np.log(1 - share)]] * 10
            y += [0] * round(10 * share) + [1] * round(10 * (1 - share))
        assert calibration_error(np.array(logits), np.array(y)) == pytest.approx(0, abs=1e-9)

    def test_sure_and_wrong_is_all_error(self):
        assert calibration_error(np.array([[50.0, 0.0]] * 4), np.ones(4, np.int64)) == pytest.approx(1)

    @settings(deadline=None)
    @given(st.integers(0, 999), st.integers(1, 40), st.integers(2, 5))
    def test_is_the_mean_gap_of_the_bins(self, seed, n, classes):
        draw = np.random.default_rng(seed)
        logits, y = 4 * draw.normal(size=(n, classes)), draw.integers(0, classes, n)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        confidence, right = p.max(1), p.argmax(1) == y
        expected = 0.0
        for k in range(10):
            inside = (confidence > k / 10) & (confidence <= (k + 1) / 10)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert calibration_error(logits, y) == pytest.approx(expected, abs=1e-9)
        assert score(logits, y, [str(k) for k in range(classes)]).ece == pytest.approx(expected, abs=1e-9)
