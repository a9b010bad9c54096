from __future__ import annotations

from dataclasses import replace

import pytest

from edgetl.gates import Facts, Timing, Verdict, judge, judge_budget, missed
from edgetl.intervals import Interval

FAST = Timing("clean", Interval(10, 9, 11), 12.0, 50_000_000, Interval(0.6, 0.5, 0.7))
GOOD = Facts(
    accuracy=Interval(0.95, 0.93, 0.97),
    f1=Interval(0.94, 0.92, 0.96),
    drop=Interval(0.004, -0.001, 0.009),
    class_drop=Interval(0.02, 0.0, 0.05),
    agreement=Interval(0.99, 0.98, 1.0),
    size_bytes=2_000_000,
    cut=True,
    timings={"local": FAST},
)


def keeps(verdicts: list[Verdict], device: str | None) -> bool:
    return not missed(verdicts, device)


def only(verdicts: list[Verdict], gate: str) -> Verdict:
    return next(v for v in verdicts if v.gate == gate)


@pytest.mark.parametrize(
    ("gate", "kept", "missed", "value"),
    [
        ("accuracy", 93, 93.1, 93),
        ("f1", 92, 93, 92),
        ("agreement", 0.98, 0.985, 0.98),
        ("accuracy_drop", 0.9, 0.8, 0.9),
        ("class_drop", 5, 4.9, 5),
    ],
)
def test_a_gate_is_judged_on_the_pessimistic_end(gate: str, kept: float, missed: float, value: float) -> None:
    ends = {"accuracy": Interval(0.95, 0.93, 0.97)}
    assert only(judge({gate: missed}, {}, GOOD), gate).kept is False
    verdict = only(judge({gate: kept - 1e-9 if gate in (*ends, "f1", "agreement") else kept + 1e-9}, {}, GOOD), gate)
    assert verdict.kept is True
    assert verdict.value == pytest.approx(value)


@pytest.mark.parametrize("gate", ["accuracy", "f1", "agreement", "accuracy_drop", "class_drop"])
def test_what_is_not_measured_is_not_kept(gate: str) -> None:
    verdict = only(judge({gate: 0.5}, {}, Facts()), gate)
    assert verdict.kept is None
    assert not keeps([verdict], None)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ({"p50_ms": 11}, True), ({"p50_ms": 10.5}, False), ({"p90_ms": 12}, True), ({"p90_ms": 11.9}, False),
        ({"peak_mb": 50}, True), ({"peak_mb": 49}, False), ({"size_mb": 2}, True), ({"size_mb": 1.9}, False),
    ],
)  # fmt: skip
def test_budgets(budget: dict[str, float], kept: bool) -> None:
    (verdict,) = judge_budget(budget, GOOD, "local")
    assert verdict.kept is kept
    assert verdict.limit == next(iter(budget.values()))


def test_too_few_samples_for_p90_never_pass() -> None:
    facts = replace(GOOD, timings={"local": replace(FAST, p90_ms=None)})
    (verdict,) = judge_budget({"p90_ms": 100}, facts, "local")
    assert (verdict.kept, verdict.passes, verdict.note) == (None, False, "too few samples")


def test_noisy_may_pass_and_says_so() -> None:
    facts = replace(GOOD, timings={"local": replace(FAST, verdict="noisy")})
    verdicts = judge({}, {"local": {"p50_ms": 12}}, facts)
    assert all(v.kept for v in verdicts)
    assert {v.note for v in verdicts} == {"noisy"}


@pytest.mark.parametrize("budget", [{"p50_ms": 1e6}, {"size_mb": 1e6}, {}])
@pytest.mark.parametrize("timings", [{}, {"local": replace(FAST, verdict="invalid", flags=("throttled",))}])
def test_a_device_in_budgets_without_a_valid_measurement_never_passes(
    budget: dict[str, float], timings: dict[str, Timing]
) -> None:
    verdicts = judge({}, {"local": budget}, replace(GOOD, timings=timings))
    assert not keeps(verdicts, "local")
    assert all(v.kept is not False for v in verdicts)
    assert any("not measured" in str(v) for v in verdicts)


@pytest.mark.parametrize(
    ("asked", "cut", "ratio", "kept"),
    [
        (None, True, Interval(0.9, 0.8, 0.99), True),
        (None, True, Interval(0.9, 0.8, 1.0), False),
        (True, True, Interval(0.9, 0.8, 1.01), False),
        (False, True, Interval(1.5, 1.4, 1.6), "absent"),
        (None, False, Interval(1.5, 1.4, 1.6), "absent"),
    ],
)
def test_a_cut_must_be_faster(asked: bool | None, cut: bool, ratio: Interval, kept: bool | str) -> None:
    facts = replace(GOOD, cut=cut, timings={"local": replace(FAST, ratio=ratio)})
    verdicts = [v for v in judge({"faster": asked}, {}, facts) if v.gate == "faster"]
    assert ([v.kept for v in verdicts] or ["absent"]) == [kept]


def test_a_cut_that_saves_nothing_that_can_be_measured_says_so_and_fails_by_default() -> None:
    for ratio, words in ((Interval(0.97, 0.9, 1.04), True), (Interval(0.9, 0.85, 0.95), False)):
        facts = replace(GOOD, timings={"local": replace(FAST, ratio=ratio)})
        verdicts = judge({}, {}, facts)
        assert keeps(verdicts, "local") is not words
        assert ("no measurable gain" in str(only(verdicts, "faster"))) is words


def test_by_default_an_invalid_measurement_does_not_judge_speed() -> None:
    facts = replace(GOOD, timings={"local": replace(FAST, verdict="invalid")})
    assert keeps(judge({}, {}, facts), "local")
    assert not keeps(judge({"faster": True}, {}, facts), "local")


def test_a_limit_of_one_device_does_not_hold_on_another() -> None:
    facts = replace(GOOD, timings={"local": FAST, "rpi5": replace(FAST, p50_ms=Interval(90, 80, 100))})
    verdicts = judge({}, {"local": {"p50_ms": 12}, "rpi5": {"p50_ms": 12}}, facts)
    assert keeps(verdicts, "local")
    assert not keeps(verdicts, "rpi5")


def test_a_verdict_reads_as_gate_value_limit() -> None:
    verdict = only(judge({"accuracy_drop": 0.5}, {}, GOOD), "accuracy_drop")
    assert str(verdict) == "accuracy_drop: 0.9, limit 0.5"
