"""The depth that a device gets: what is looked at, what is chosen, what is said where nothing can be.

The clock is a formula of the depth, so that the right answer is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgetl.device import Device
from edgetl.errors import BadHost, BadInput
from edgetl.gates import Verdict
from edgetl.measure.measurement import Measurement
from edgetl.methods.tleg.fleet import MARGIN, Choice, DepthFor, Seen, choose, deepest_kept, untrained
from edgetl.network import cost
from edgetl.network.network import Network, create
from edgetl.recipe.schema import Context
from edgetl.roofline import Prediction
from tests.profile import conftest as profiled

make, replay = profiled.make, profiled.replay

LABELS = ("left", "middle", "right")
SIZES = {
    "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 8,
    "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 8,
}  # fmt: skip
BASE_MS, BLOCK_MS = 1.0, 0.5
BASE_BYTES, BLOCK_BYTES = 1_000_000, 250_000

AWAY = """
schema: edgetl/device/1
name: away
arch: {isa: no-such-machine}
memory: {total_bytes: 1000000000}
"""


def depth_of(net: Network) -> int:
    return len(net.family.stages(net.module))


class Watch:
    """Measures and predicts by the depth; it remembers what it was asked for."""

    def __init__(self, replay: Callable[..., Measurement], ms: Callable[[int], float], rates: bool = True) -> None:
        self.replay, self.ms, self.rates = replay, ms, rates
        self.measured: list[list[int]] = []
        self.predicted: list[list[int]] = []

    def measure(self, networks: Sequence[Network], device: Device) -> list[Measurement]:
        self.measured.append([depth_of(net) for net in networks])
        return [self._one(depth) for depth in self.measured[-1]]

    def predict(self, networks: Sequence[Network], device: Device) -> list[Prediction]:
        self.predicted.append([depth_of(net) for net in networks])
        return [
            Prediction(self.ms(d) if self.rates else None, BASE_BYTES + BLOCK_BYTES * d, 4 * d, "datasheet")
            for d in self.predicted[-1]
        ]

    def _one(self, depth: int) -> Measurement:
        found = self.replay([[round(1e6 * self.ms(depth))] * 100] * 3, peak=BASE_BYTES + BLOCK_BYTES * depth)
        size = found.size.model_copy(update={"model_bytes": BASE_BYTES + BLOCK_BYTES * depth})
        return found.model_copy(update={"size": size})


@pytest.fixture
def net() -> Network:
    return create("hf_vit", SIZES, LABELS, 0)


@pytest.fixture
def choosing(
    net: Network, context: Callable[..., Context], replay: Callable[..., Measurement]
) -> Callable[..., tuple[Choice, Watch]]:
    """`choosing(DepthFor(...))`: what is chosen for a device by the clock, and what was asked of it."""

    def chosen(
        asked: DepthFor, ms: Callable[[int], float] = lambda d: BASE_MS + BLOCK_MS * d, rates: bool = True
    ) -> tuple[Choice, Watch]:
        watch = Watch(replay, ms, rates)
        ctx = replace(context(), measure=watch.measure, predict=watch.predict)
        return choose("tleg", asked, lambda depth: untrained(net, depth), 12, ctx), watch

    return chosen


@pytest.fixture
def away(tmp_path: Path) -> str:
    path = tmp_path / "away.yaml"
    path.write_text(AWAY)
    return str(path)


def looked(times: Mapping[int, float], limit: float) -> tuple[int | None, list[int]]:
    """Choose by a table of times; also every depth that was looked at, in order."""
    asked: list[int] = []

    def look(depths: Sequence[int]) -> list[Seen]:
        asked.extend(depths)
        return [Seen(d, (Verdict("p90_ms", limit, times[d], times[d] <= limit, "local"),)) for d in depths]

    return deepest_kept(sorted(times), look)[0], list(dict.fromkeys(asked))


tables = st.lists(st.floats(0.01, 10), min_size=1, max_size=24).map(
    lambda steps: {depth: sum(steps[:depth]) for depth in range(1, len(steps) + 1)}
)


@given(tables, st.floats(0.01, 250))
def test_what_is_chosen_keeps_the_limit_and_none_is_chosen_only_where_none_does(times, limit) -> None:
    depth, _ = looked(times, limit)
    assert (depth is None) == (times[1] > limit)
    assert depth is None or times[depth] <= limit


@given(st.integers(1, 24), st.floats(0.1, 5), st.floats(0.01, 5), st.floats(0.1, 150))
def test_where_the_time_is_a_line_the_deepest_that_keeps_the_limit_is_found_by_few_looks(count, base, block, limit):
    times = {depth: base + block * depth for depth in range(1, count + 1)}
    assume(not any(math.isclose(ms, limit) for ms in times.values()))  # there rounding decides, and one look more
    depth, asked = looked(times, limit)
    kept = [d for d, ms in times.items() if ms <= limit]
    assert depth == max(kept, default=None)
    assert len(asked) <= 4


@given(tables, st.lists(st.floats(0.01, 250), min_size=2, max_size=2))
def test_a_lower_limit_never_gives_a_slower_network_where_times_are_a_line(times, limits) -> None:
    line = {depth: 0.1 + times[1] * depth for depth in times}
    low, high = (looked(line, limit)[0] or 0 for limit in sorted(limits))
    assert low <= high


def test_the_deepest_that_keeps_the_time_is_chosen_before_others_are_measured(choosing) -> None:
    choice, watch = choosing(DepthFor(device="local", p90_ms=4.3 / (1 - MARGIN)))
    assert (choice.depth, choice.how, choice.device) == (6, "measured", "local")
    assert watch.measured[0] == [1, 12]
    assert len(watch.measured) <= 3
    assert not watch.predicted


def test_a_depth_that_uses_up_the_whole_limit_is_too_near_to_it(choosing) -> None:
    assert choosing(DepthFor(device="local", p90_ms=BASE_MS + BLOCK_MS * 6))[0].depth == 5


@pytest.mark.parametrize("limit", ["size_mb", "peak_mb"])
def test_size_and_memory_limit_the_depth_without_a_margin(choosing, limit) -> None:
    wanted = (BASE_BYTES + BLOCK_BYTES * 7) / 1e6
    assert choosing(DepthFor(device="local", **{limit: wanted}))[0].depth == 7
    assert choosing(DepthFor(device="local", p90_ms=3.0, **{limit: wanted}))[0].depth == 3


def test_the_deepest_is_chosen_where_it_keeps_the_limits_and_nothing_else_is_measured(choosing) -> None:
    choice, watch = choosing(DepthFor(device="local", p90_ms=100))
    assert choice.depth == 12
    assert watch.measured == [[1, 12]]


def test_only_depths_of_the_list_are_chosen(choosing) -> None:
    choice, watch = choosing(DepthFor(device="local", p90_ms=5, among=(9, 3, 6)))
    assert choice.depth == 6
    assert {d for pair in watch.measured for d in pair} <= {3, 6, 9}


def test_an_impossible_budget_names_the_smallest_that_can_be_reached_and_its_fix_works(choosing) -> None:
    with pytest.raises(BadInput, match=r"no depth keeps the budget of local; the smallest, 1, .*_ms 1.58") as caught:
        choosing(DepthFor(device="local", p90_ms=1.2))
    named = float(caught.value.fix.partition("p90_ms to ")[2].split()[0])
    assert choosing(DepthFor(device="local", p90_ms=named))[0].depth == 1


def test_a_device_without_limits_is_an_error(choosing) -> None:
    with pytest.raises(BadInput, match="nothing is limited on local"):
        choosing(DepthFor(device="local"))


def test_too_few_calls_for_a_percentile_are_no_reason_to_ship(choosing, net, context, replay) -> None:
    few = replay([[2_000_000] * 5] * 3)
    ctx = replace(context(), measure=lambda networks, device: [few for _ in networks])
    with pytest.raises(BadHost, match="p90_ms on local is not known"):
        choose("tleg", DepthFor(device="local", p90_ms=9), lambda depth: untrained(net, depth), 12, ctx)


def test_a_device_that_is_away_gets_what_it_takes_at_best_and_says_so(choosing, away, caplog) -> None:
    choice, watch = choosing(DepthFor(device=away, p90_ms=4.3 / (1 - MARGIN)))
    assert (choice.depth, choice.how, choice.device) == (6, "predicted", "away")
    assert not watch.measured
    assert "away.yaml is not attached" in caplog.text
    assert "never passes" in caplog.text
    told = choice.to_json()
    assert told["how"] == "predicted"
    assert {"depth": 6, "keeps": True, "p90_ms": 4.0} in told["tried"]


def test_without_rates_only_what_the_file_says_can_limit_a_device_that_is_away(choosing, away) -> None:
    with pytest.raises(BadInput, match="no rates to predict p90_ms from") as caught:
        choosing(DepthFor(device=away, p90_ms=5), rates=False)
    assert "calibrate" in caught.value.fix
    assert choosing(DepthFor(device=away, size_mb=28e-6), rates=False)[0].depth == 7


@pytest.mark.parametrize("among", [(), (0, 3), (3, 3)])
def test_depths_to_choose_from_are_positive_and_different(among) -> None:
    with pytest.raises(ValueError, match="among"):
        DepthFor(device="local", among=among)


def test_an_untrained_network_costs_what_a_network_of_that_depth_costs(net) -> None:
    small, block = untrained(net, 3), cost.macs(untrained(net, 2)) - cost.macs(untrained(net, 1))
    assert depth_of(small) == 3
    assert cost.macs(net) - cost.macs(small) == 9 * block
