from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.intervals import (
    allowed_above,
    early_stopping,
    geometric_mean,
    half_width,
    paired_difference,
    paired_ratio,
    student_t,
    student_within,
    theil_sen,
    wilson,
)


@pytest.mark.parametrize(
    ("freedom", "published"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (9, 2.262), (14, 2.145), (30, 2.042)],
)
def test_student_t_equals_published_tables(freedom: int, published: float) -> None:
    assert student_t(0.95, freedom) == pytest.approx(published, abs=5e-4)


def test_student_t_tends_to_the_normal_quantile() -> None:
    assert student_t(0.95, 100_000) == pytest.approx(1.95996, abs=1e-4)


@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=15))
def test_geometric_mean_closed_form(values: list[float]) -> None:
    mean = geometric_mean(values)
    assert mean.value == pytest.approx(math.prod(v ** (1 / len(values)) for v in values))
    assert mean.low <= mean.value * (1 + 1e-12)
    assert mean.high >= mean.value * (1 - 1e-12)


def test_geometric_mean_of_three_rounds() -> None:
    mean = geometric_mean([1.0, math.e, math.e**2])
    assert mean.value == pytest.approx(math.e)
    assert math.log(mean.high) == pytest.approx(1 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert half_width(mean) == pytest.approx(mean.high / math.e - 1)


def test_one_round_has_no_finite_interval() -> None:
    mean = geometric_mean([2.0])
    assert (mean.value, mean.low, mean.high) == (pytest.approx(2.0), 0.0, math.inf)


def test_pairing_removes_a_shared_drift() -> None:
    drift = np.array([1.0, 1.5, 0.7, 2.0, 1.1])
    ratio = paired_ratio((0.5 * drift).tolist(), drift.tolist())
    assert ratio.value == pytest.approx(0.5)
    assert ratio.high - ratio.low < 1e-9


def test_paired_interval_covers_the_truth_about_95_times_of_100() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        base, new = np.exp(draw.normal(0, 0.05, 5)), 0.8 * np.exp(draw.normal(0, 0.05, 5))
        ratio = paired_ratio(new.tolist(), base.tolist())
        hits += ratio.low <= 0.8 <= ratio.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(("percentile", "least"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662)])
def test_early_stopping_needs_as_many_as_loadgen(percentile: float, least: int) -> None:
    assert next(n for n in count(1) if early_stopping(range(n), percentile) is not None) == least


@pytest.mark.parametrize(
    ("percentile", "above", "least"),
    [(0.9, 0, 44), (0.99, 0, 459), (0.999, 0, 4603), (0.999, 1, 6636), (0.9, 10, 197), (0.99, 10, 2010)],
)
def test_samples_above_a_percentile_as_in_loadgens_table(percentile: float, above: int, least: int) -> None:
    assert allowed_above(least, percentile) == above
    assert allowed_above(least - 1, percentile) == above - 1


def test_early_stopping_drops_what_is_allowed() -> None:
    assert early_stopping(range(64), 0.9) == 63  # one above: none is dropped
    assert early_stopping(range(81), 0.9) == 79  # two above: the largest is dropped
    assert early_stopping(range(127), 0.9) == 122  # five


@given(st.integers(64, 3000), st.sampled_from([0.5, 0.9]))
def test_early_stopping_lies_above_the_plain_percentile(n: int, percentile: float) -> None:
    estimate = early_stopping(range(n), percentile)
    assert estimate is not None
    assert estimate >= np.percentile(np.arange(n), 100 * percentile)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    interval = wilson(k, n)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1


def test_a_paired_difference_has_the_interval_of_agresti_and_min() -> None:
    a = np.arange(40) < 30
    b = np.roll(a, 3)  # 3 right only in a, 3 only in b
    found = paired_difference(a, b)
    half = 1.959963984540054 * np.sqrt(7) / 42
    assert (found.value, found.low, found.high) == pytest.approx((0, -half, half))


def test_few_samples_without_a_difference_prove_little() -> None:
    same = np.ones(5, bool)
    assert paired_difference(same, same).high > 0.2
    many = np.ones(10_000, bool)
    assert 0 < paired_difference(many, many).high < 0.0003


def test_the_paired_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        kind = draw.choice(4, size=200, p=(0.9, 0.03, 0.01, 0.06))  # both right, only a, only b, none
        found = paired_difference((kind == 0) | (kind == 1), (kind == 0) | (kind == 2))
        held += found.low <= 0.02 <= found.high
    assert 0.935 < held / 2000 < 0.985


def test_student_within_inverts_student_t() -> None:
    for freedom in (1, 2, 5, 14):
        assert student_within(student_t(0.9, freedom), freedom) == pytest.approx(0.9)


def test_rounds_that_differ_wildly_have_a_finite_interval() -> None:
    mean = geometric_mean([1e-9, 1e9], 0.9999)
    assert math.isfinite(mean.high)
    assert mean.low < 1e-9


@given(st.floats(-5, 5), st.integers(2, 2000))
def test_theil_sen_of_a_line_is_its_rise(slope: float, n: int) -> None:
    assert theil_sen(10 + slope * np.arange(n)) == pytest.approx(slope * (n - 1), abs=1e-6 * n)


def test_theil_sen_is_not_moved_by_outliers() -> None:
    draw = np.random.default_rng(0)
    values = 100 + np.linspace(0, 3, 5000) + draw.normal(0, 1, 5000)
    values[draw.random(5000) < 0.05] *= 20
    assert theil_sen(values) == pytest.approx(3, abs=0.3)
    assert theil_sen([7.0]) == theil_sen([7.0, 7.0]) == 0
    assert theil_sen([1, 9] * 32) == 0
