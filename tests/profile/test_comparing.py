from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import BadInput
from edgetl.intervals import Interval, geometric_mean, half_width, paired_ratio, student_t
from edgetl.measure import measured
from edgetl.measure.comparing import Baseline, compare_all, holm, more_rounds, word
from edgetl.measure.measurement import CONTROL, Comparison, Measurement, timing

BASE = Baseline("dense-onnx-fp32", "0" * 64, "cpu_time_p50", None)
TIGHT = Interval(1.0, 0.999, 1.001)


def of(value: float, half: float) -> Interval:
    return Interval(value, value / (1 + half), value * (1 + half))


@pytest.mark.parametrize(
    ("ratio", "control", "said"),
    [
        (of(0.5, 0.01), None, "faster"),
        (of(0.5, 0.01), TIGHT, "faster"),
        (of(1.5, 0.01), TIGHT, "slower"),
        (of(1.0, 0.015), TIGHT, "equivalent"),
        (of(0.995, 0.005), TIGHT, "equivalent"),
        (of(1.0, 0.05), TIGHT, "inconclusive"),
        (of(0.985, 0.004), TIGHT, "faster"),
        (of(0.985, 0.01), TIGHT, "inconclusive"),
        (of(0.5, 0.01), Interval(1.05, 1.01, 1.09), "inconclusive"),  # the baseline differs from itself
        (of(0.95, 0.01), of(1.0, 0.08), "inconclusive"),  # by more than is claimed
        (of(1.0, 0.015), of(1.0, 0.05), "inconclusive"),
    ],
)
def test_words(ratio: Interval, control: Interval | None, said: str) -> None:
    assert word(ratio, control) == said


def test_rounds_that_are_still_needed() -> None:
    logs = np.random.default_rng(3).normal(math.log(0.96), 0.05, 5)
    more = more_rounds(geometric_mean(np.exp(logs).tolist()), 5, None)
    assert more is not None
    spread, distance = float(logs.std(ddof=1)), math.log(0.99) - float(logs.mean())
    halves = [student_t(0.95, n - 1) * spread / math.sqrt(n) for n in (4 + more, 5 + more)]
    assert halves[0] >= distance > halves[1]
    assert more_rounds(of(0.5, 0.01), 5, None) == 0
    assert more_rounds(of(1.0, 0.05), 5, None) is not None  # towards equivalent
    assert more_rounds(of(0.98, 0.3), 5, None) is None  # as close to both thresholds as to neither
    assert more_rounds(of(1.02, 0.3), 5, Interval(1.1, 1.05, 1.15)) is None  # more rounds do not mend the control


@pytest.mark.parametrize("delay", [1.01, 1.02, 1.05, 1.1])
def test_an_injected_delay_is_found_once_it_exceeds_what_can_be_found(delay: float) -> None:
    draw = np.random.default_rng(int(1000 * delay))
    found, possible = 0, 0
    for _ in range(200):
        drift = np.exp(draw.normal(0, 0.03, 7))
        base = drift * np.exp(draw.normal(0, 0.004, 7))
        slow = drift * delay * np.exp(draw.normal(0, 0.004, 7))
        ratio = paired_ratio(slow.tolist(), base.tolist())
        found += ratio.low > 1
        possible += half_width(ratio) < delay - 1
    assert found >= 0.8 * possible
    assert delay < 1.02 or found > 190


def test_a_model_against_itself_is_rarely_called_different() -> None:
    draw = np.random.default_rng(0)
    words = []
    for _ in range(500):
        a, b, c = (np.exp(draw.normal(0, 0.03, 5)) for _ in range(3))
        words.append(word(paired_ratio(b.tolist(), a.tolist()), paired_ratio(c.tolist(), a.tolist())))
    assert sum(said in ("faster", "slower") for said in words) < 0.05 * 500


def test_holm_as_in_his_procedure() -> None:
    levels = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert [round(1 - levels[key], 6) for key in "dacb"] == [0.0125, round(0.05 / 3, 6), 0.025, 0.025]
    assert holm({"only": 0.5}) == {"only": 0.95}
    assert holm({}) == {}


@given(st.dictionaries(st.integers(), st.floats(0, 1), max_size=12))
def test_holm_rejects_what_its_levels_say(chances: dict[int, float]) -> None:
    levels = holm({str(k): v for k, v in chances.items()})
    ordered = sorted(chances.values())
    rejected = 0
    while rejected < len(ordered) and ordered[rejected] < 0.05 / (len(ordered) - rejected):
        rejected += 1
    assert sum(v < 1 - levels[str(k)] - 1e-12 for k, v in chances.items()) <= rejected
    assert all(0.95 - 1e-12 <= level < 1 for level in levels.values())


def test_several_candidates_are_judged_on_wider_intervals() -> None:
    draw = np.random.default_rng(1)
    ratios = {name: np.exp(draw.normal(math.log(0.97), 0.02, 5)).tolist() for name in "abc"}
    found = compare_all(BASE, ratios)
    alone = compare_all(BASE, {"a": ratios["a"]})["a"]
    assert (alone.holm_low, alone.holm_high) == (alone.low, alone.high)
    assert alone.candidates == 1
    assert all(c.candidates == 3 and c.holm_high is not None and c.holm_high >= c.high for c in found.values())
    assert found["a"].interval == alone.interval
    assert compare_all(BASE, {"once": [0.5]}) == {}


def test_no_true_null_passes_more_often_than_holm_allows() -> None:
    draw = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        found = compare_all(BASE, {str(i): np.exp(draw.normal(0, 0.03, 5)).tolist() for i in range(4)})
        wrong += any(c.judged.high < 1 or c.judged.low > 1 for c in found.values())
    assert wrong / 300 < 0.09


Replay = Callable[..., Measurement]


def compared(m: Measurement, ratio: Interval, **changes: object) -> Measurement:
    comparison = Comparison(
        baseline="dense", baseline_sha256="1" * 64, quantity="cpu_time_p50", ratio=ratio.value, low=ratio.low,
        high=ratio.high, rounds=5,
    )  # fmt: skip
    return m.model_copy(update={"comparison": comparison, **changes})


def named(m: Measurement, name: str, sha256: str) -> Measurement:
    return m.model_copy(update={"bundle": m.bundle.model_copy(update={"name": name, "sha256": sha256})})


def test_a_ratio_across_runs_goes_by_the_shared_baseline(replay: Replay) -> None:
    new = compared(named(replay([[5] * 64] * 3), "new", "2" * 64), of(0.5, 0.03))
    old = compared(named(replay([[5] * 64] * 3), "old", "3" * 64), of(0.8, 0.04))
    one = measured.against([new], old)[0]
    assert one.ratio is not None
    assert one.ratio.value == pytest.approx(0.625)
    assert math.log(one.ratio.high / 0.625) == pytest.approx(math.hypot(math.log(1.03), math.log(1.04)))
    one.require()
    assert one.to_json()["ratio"]["word"] == "faster"
    assert one.cells()[-1] == "faster"
    base = named(old.model_copy(update={"comparison": None}), "dense", "1" * 64)
    assert measured.against([new], base)[0].ratio == pytest.approx(new.comparison.interval)  # type: ignore[union-attr]


def test_no_ratio_across_machines_or_without_a_shared_baseline(replay: Replay) -> None:
    new = compared(named(replay([[5] * 64] * 3), "new", "2" * 64), of(0.5, 0.03))
    old = compared(named(replay([[5] * 64] * 3), "old", "3" * 64), of(0.8, 0.04))
    elsewhere = old.model_copy(update={"device": old.device.model_copy(update={"fingerprint": "f" * 64})})
    stranger = old.model_copy(update={"comparison": None})
    for other, says in ((elsewhere, "differ"), (stranger, "share no baseline"), (new, "same artifact")):
        one = measured.against([new], other)[0]
        assert one.to_json()["ratio"] is None
        with pytest.raises(BadInput, match=says):
            one.require()


def test_a_speed_up_that_the_control_doubts_passes_no_gate(replay: Replay) -> None:
    quiet = replay([[5] * 64] * 3)
    sure = timing(compared(quiet, of(0.9, 0.02)))
    noise = quiet.noise.model_copy(update={"flags": [CONTROL]})
    doubted = timing(compared(quiet, of(0.9, 0.02), noise=noise))
    assert sure.ratio is not None
    assert doubted.ratio is not None
    assert sure.ratio.high < 1 <= doubted.ratio.high


def test_measurements_of_an_older_edgetl_are_read(replay: Replay, tmp_path: Path) -> None:
    from edgetl.measure import measurement

    value = compared(replay([[5] * 64] * 3), of(0.9, 0.02)).to_json()
    for key in ("word", "more_rounds", "candidates", "holm_low", "holm_high"):
        del value["comparison"][key]
    for key in ("throughput", "energy"):
        del value[key]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(value))
    old = measurement.read(path)
    assert old.comparison is not None
    assert old.comparison.judged == old.comparison.interval
    assert measured.table([old]).row_count == 1
