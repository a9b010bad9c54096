"""A limit in milliseconds: the tables, the choice, and the loop that believes only what it measures.

The clock is a formula of the network's own shapes, so that the right answer is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.device import Device, probe
from edgetl.errors import BadHost, BadInput, GateMissed
from edgetl.intervals import geometric_mean
from edgetl.measure.measurement import Comparison, Measurement
from edgetl.methods.optin import Optin, bill
from edgetl.methods.optin.knapsack import knapsack
from edgetl.methods.optin.latency import Table, design, measured, sizes
from edgetl.network import cost
from edgetl.network.network import Network, create
from edgetl.recipe.schema import Context, MaxLatency
from tests.profile import conftest as profiled

make, replay = profiled.make, profiled.replay

LABELS = ("left", "middle", "right")
SIZES = {
    "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16,
    "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32,
}  # fmt: skip
BASE, HEAD, ATTENTION, NEURON = 0.4, 0.05, 0.03, 0.004
"""Milliseconds of the clock: of every network, a head, an attention layer that has any, a neuron."""

TABLES = 3
"""How many sets of networks the tables of this network are measured in."""

FEED_FORWARD = ("ffn.up", "ffn.down")

Replay = Callable[..., Measurement]
Clock = Callable[[Mapping[str, int]], float]


def counts(net: Network) -> dict[str, int]:
    return {g.name: g.count for g in net.family.units(net.module)}


def additive(kept: Mapping[str, int]) -> float:
    heads = [n for name, n in kept.items() if name.endswith("heads")]
    neurons = sum(n for name, n in kept.items() if name.endswith("neurons"))
    return BASE + HEAD * sum(heads) + ATTENTION * len(heads) + NEURON * neurons


class Watch:
    """Measures networks by a clock; it remembers what it was asked for."""

    def __init__(self, replay: Replay, clock: Clock, spread: float = 0.001) -> None:
        self.replay, self.clock, self.spread = replay, clock, spread
        self.asked: list[list[dict[str, int]]] = []

    def __call__(self, networks: Sequence[Network], device: Device) -> list[Measurement]:
        self.asked.append([counts(net) for net in networks])
        times = [self.clock(one) for one in self.asked[-1]]
        return [self._one(t, times[0] if i else None) for i, t in enumerate(times)]

    def _one(self, ms: float, base: float | None) -> Measurement:
        rounds = [ms * (1 + self.spread * x) for x in (-1, 0, 1)]
        found = self.replay([[round(1e6 * r)] * 10 for r in rounds])
        if base is None:
            return found
        ratio = geometric_mean([r / base for r in rounds])
        compared = Comparison(
            baseline="uncut", baseline_sha256="0" * 64, quantity="cpu_time_p50", ratio=ratio.value, low=ratio.low,
            high=ratio.high, rounds=3,
        )  # fmt: skip
        return found.model_copy(update={"comparison": compared})


@pytest.fixture
def net() -> Network:
    return create("hf_vit", SIZES, LABELS, 0)


@pytest.fixture
def timed(context: Callable[..., Context], replay: Replay) -> Callable[..., tuple[Context, Watch]]:
    numbers = itertools.count()

    def make(clock: Clock = additive, **more: float) -> tuple[Context, Watch]:
        watch = Watch(replay, clock, **more)
        plain = context(f"run{next(numbers)}")
        return Context(plain.data, plain.seed, plain.work, plain.past, _again(plain), watch), watch

    return make


def _again(plain: Context) -> Callable[..., Path]:
    """`once` that may be asked twice for the same thing."""
    found: dict[str, Path] = {}

    def once(what: str, parts: Mapping[str, object], make: Callable[[Path, int], None]) -> Path:
        key = f"{what}-{sorted((k, getattr(v, 'digest', v)) for k, v in parts.items())}"
        if key not in found:
            found[key] = plain.work / f"{len(found)}"
            found[key].mkdir()
            make(found[key], 0)
        return found[key]

    return once


def tables(net: Network, watch: Watch) -> Table:
    return measured(net, net.family.units(net.module), watch, probe())


def step(**more: object) -> Optin:
    return Optin(score="paper", samples=8, max_latency=MaxLatency(device="local", **more))  # type: ignore[arg-type]


def test_tables_of_an_additive_clock_predict_every_network(net: Network, replay: Replay) -> None:
    table = tables(net, Watch(replay, additive))
    draw, dense = np.random.default_rng(1), additive(counts(net))
    groups = net.family.units(net.module)
    assert table.error < 1e-4
    for _ in range(30):
        kept = {g.name: int(draw.choice(sizes(g))) for g in groups}
        true = additive({name: n for name, n in kept.items() if n})
        assert table.predict(kept) == pytest.approx(true / dense, rel=1e-4)


def test_few_networks_are_measured_and_layers_alike_share_a_table(net: Network, replay: Replay) -> None:
    deeper = create("hf_vit", {**SIZES, "num_hidden_layers": 6}, LABELS, 0)
    few, many = (len(design(n, n.family.units(n.module))[1]) for n in (net, deeper))
    assert few == many < 16
    table = tables(deeper, Watch(replay, additive))
    assert len(table.kinds) == 2
    assert {len(kind.groups) for kind in table.kinds} == {6}


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_no_table_falls_however_noisy_the_clock(net: Network, replay: Replay, noise: float) -> None:
    draw = np.random.default_rng(2)
    table = tables(net, Watch(replay, lambda kept: additive(kept) * float(np.exp(noise * draw.standard_normal()))))
    for _, times in table.times.values():
        assert (np.diff(times) >= 0).all()
        assert times[0] == 0
    assert table.fixed > 0


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), min_size=0, max_size=3), min_size=1, max_size=4
    ),
    st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_the_knapsack_equals_brute_force(items: list[list[tuple[int, int]]], budget: int) -> None:
    values = [np.array([0.0, *(float(v) for v, _ in one)]) for one in items]
    costs = [np.array([0.0, *(float(c) for _, c in one)]) for one in items]
    picked = knapsack(values, costs, budget * 1.001)  # rounding up loses less than the slack of whole costs
    spent = sum(c[i] for c, i in zip(costs, picked, strict=True))
    worth = sum(v[i] for v, i in zip(values, picked, strict=True))
    every = itertools.product(*(range(len(v)) for v in values))
    within = [p for p in every if sum(c[i] for c, i in zip(costs, p, strict=True)) <= budget]
    assert spent <= budget * 1.001
    assert worth == max(sum(v[i] for v, i in zip(values, p, strict=True)) for p in within)


@pytest.mark.parametrize("asked", [{"share": 0.7}, {"p50_ms": 0.8}, {"share": 0.45}])
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_limit_holds_as_measured_and_is_used(net, timed, asked, rounds):
    ctx, watch = timed()
    cut = step(**asked).model_copy(update={"rounds": rounds}).run(net, ctx)
    dense = additive(counts(net))
    limit = asked.get("p50_ms", asked.get("share", 0) * dense)
    took = additive(counts(cut))
    assert 0.9 * limit < took < limit
    assert watch.asked[-1] == [counts(net), counts(cut)]  # measured beside the uncut network, and it is what was taken
    assert all(n in sizes(g) for g in net.family.units(net.module) if (n := counts(cut).get(g.name, 0)) is not None)


def test_channels_keep_a_limit_too_in_whole_steps(timed):
    net = create("resnet_cifar", {"depth": 8, "num_channels": 1}, LABELS, 0)
    before = counts(net)

    def clock(kept: Mapping[str, int]) -> float:
        return 0.1 + sum(0.2 * n / before[name] for name, n in kept.items())

    ctx, _ = timed(clock)
    cut = step(share=0.6).run(net, ctx)
    assert 0.5 < clock(counts(cut)) / clock(before) <= 0.6
    groups = net.family.units(net.module)
    assert {g.kind for g in groups} == {"channels"}
    assert all(0 < counts(cut)[g.name] in sizes(g) for g in groups)


def test_the_units_worth_most_stay(net, timed):
    """With all layers alike to the clock, each group keeps its best units."""
    ctx, _ = timed()
    cut = step(share=0.6).run(net, ctx)
    stored = next(p for p in Path(ctx.work).rglob("scores.npz"))
    with np.load(stored) as scores:
        for edit in cut.edits:
            if hasattr(edit, "indices") and len(edit.tensors) == 3:  # neurons: up's weight and bias, down's weight
                layer = edit.tensors[0][0].split(".")[1]
                worth = scores[f"layers.{layer}.neurons.manifold"] + 0.1 * scores[f"layers.{layer}.neurons.output"]
                lost = sorted(set(range(len(worth))) - set(edit.indices))
                assert worth[list(edit.indices)].min() >= worth[lost].max()


def test_a_clock_that_is_slower_than_its_tables_corrects_the_next_cut(net, timed):
    dense = counts(net)
    ctx, watch = timed()

    def slower(kept: Mapping[str, int]) -> float:
        measured_before = len(watch.asked) > TABLES
        return additive(kept) * (1.15 if measured_before and dict(kept) != dense else 1)

    watch.clock = slower
    cut = step(share=0.6).run(net, ctx)
    took = 1.15 * additive(counts(cut)) / additive(dense)
    assert len(watch.asked) > TABLES + 1
    assert 0.5 < took <= 0.6


def test_a_limit_that_no_cut_keeps_says_how_far_the_closest_is(net, timed):
    dense = counts(net)
    ctx, watch = timed()
    watch.clock = lambda kept: additive(kept) * (3 if len(watch.asked) > TABLES and kept != dense else 1)
    with pytest.raises(GateMissed, match=r"above the limit") as caught:
        step(share=0.5).run(net, ctx)
    assert "% above" in caught.value.problem
    assert 2 <= len(watch.asked) - TABLES <= 4


def test_an_impossible_limit_names_the_smallest_latency(net, timed):
    ctx, watch = timed()
    for asked, least in (({"p50_ms": 0.1}, BASE), ({"share": 0.01}, BASE / additive(counts(net)))):
        with pytest.raises(BadInput, match="smallest latency") as caught:
            step(**asked).run(net, ctx)
        named = float(caught.value.fix.split()[3])
        assert least <= named < 1.01 * least
    assert len(watch.asked) == 2 * TABLES  # no cut was tried


def test_a_limit_that_the_network_keeps_changes_nothing(net, timed):
    for asked in ({"p50_ms": 100.0}, {"share": 1.0}):
        ctx, watch = timed()
        assert step(**asked).run(net, ctx).digest == net.digest
        assert len(watch.asked) == TABLES


def test_the_same_measurements_give_the_same_cut(net, timed):
    first, second = (step(share=0.6).run(net, timed()[0]) for _ in range(2))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "more",
    [
        {"worth": "joint"},
        {"worth": "joint", "search": "fast", "rounds": 2},
        {"search": "fast"},
        {"compensate": "least_squares", "compensation_samples": 32},
    ],
)
def test_the_options_of_the_method_keep_the_limit_too(net, timed, more):
    ctx, _ = timed()
    cut = step(share=0.6).model_copy(update=more).run(net, ctx)
    assert additive(counts(cut)) <= 0.6 * additive(counts(net))


def test_units_that_undo_each_other_are_worth_nothing_together(net, timed):
    """One by one they are worth most: what they add up to is in no single score."""
    with torch.no_grad():
        up, down = (net.at(f"layers.1.{name}") for name in FEED_FORWARD)
        up.weight[1::2], up.bias[1::2] = up.weight[::2], up.bias[::2]
        down.weight[:, ::2] *= 30
        down.weight[:, 1::2] = -down.weight[:, ::2]
    kept = {}
    for worth in ("additive", "joint"):
        cut = step(share=0.6).model_copy(update={"worth": worth}).run(net, timed()[0])
        kept[worth] = counts(cut).get("layers.1.neurons", 0)
    assert kept["additive"] > 0 == kept["joint"]


def test_what_layers_lose_is_measured_once_for_all_limits_of_a_step(net, timed):
    ctx, _ = timed()
    for share in (0.7, 0.6):
        step(share=share).model_copy(update={"worth": "joint"}).run(net, ctx)
    assert len(list(Path(ctx.work).rglob("joint.npz"))) == 1


def test_without_a_run_nothing_is_measured(net, context):
    with pytest.raises(BadHost, match="nothing can be measured"):
        step(share=0.5).run(net, context())


def test_a_budget_in_weights_is_kept_to_within_one_neuron(net, context):
    whole = cost.parameters(net)
    for share in (0.9, 0.7):
        cut = Optin(score="paper", keep_params=share, samples=8).run(net, context(f"share-{share}"))
        neuron = max(price for name, price in bill.weights(net).prices.items() if name.endswith("neurons"))
        assert share * whole - neuron < cost.parameters(cut) <= share * whole
    with pytest.raises(BadInput, match=r"keep_params 0\.01 is below"):
        Optin(score="paper", keep_params=0.01, samples=8).run(net, context("none"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"keep_macs": 0.5, "max_latency": {"device": "local", "p50_ms": 1}}, "one budget at a time"),
        ({"keep_macs": 0.5, "keep_params": 0.5}, "one budget at a time"),
        ({"max_latency": {"device": "locale", "p50_ms": 1}}, "'local'"),
        ({"max_latency": {"device": "local"}}, "one of p50_ms and share"),
        ({"max_latency": {"device": "local", "p50_ms": 1, "share": 0.5}}, "one of p50_ms and share"),
        ({"max_latency": {"device": "local", "p50_ms": 0}}, "greater than 0"),
        ({"max_latency": {"device": "local", "share": 1.5}}, "less than or equal to 1"),
        ({"max_latency": {"device": "local", "p50_ms": float("inf")}}, "finite"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Optin(**given)


def test_without_a_budget_it_keeps_the_default_share() -> None:
    assert Optin().keep_macs == Optin(keep_macs=None).keep_macs == 0.6
    assert Optin(keep_params=0.5).keep_macs is None
