"""The split between heads and neurons is exact, stays in the budget and is repeatable."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgetl.methods.optin.search import rank, search, split
from edgetl.network.family import Group


def group(kind: str, stage: int, count: int) -> Group:
    return Group(f"layers.{stage}.{kind}", kind, f"layers.{stage}", stage, "gate", (), count, 1)


def price_of(kept: dict[str, tuple[int, ...]], prices: dict[str, int]) -> int:
    return sum(len(units) * prices[name] for name, units in kept.items())


def value_of(kept: dict[str, tuple[int, ...]], scores: dict[str, np.ndarray]) -> float:
    return float(sum(scores[name][list(units)].sum() for name, units in kept.items()))


@st.composite
def problems(draw, prices_differ: bool = False):
    layers = draw(st.integers(1, 3))
    groups = [group(k, i, draw(st.integers(0, 4))) for i in range(layers) for k in ("heads", "neurons")]
    values = st.integers(0, 50)  # exact in float64, with ties and zeros
    scores = {g.name: np.array([draw(values) for _ in range(g.count)], dtype=np.float64) for g in groups}
    head, neuron = draw(st.integers(1, 40)), draw(st.integers(1, 10))
    prices = {g.name: head if g.kind == "heads" else neuron for g in groups}
    if prices_differ:
        prices = {name: draw(st.integers(1, 40)) for name in prices}
    budget = draw(st.integers(0, sum(g.count * prices[g.name] for g in groups)))
    return groups, scores, prices, budget


@given(problems())
def test_the_split_is_as_good_as_trying_every_pair_of_counts(problem):
    groups, scores, prices, budget = problem
    heads = np.sort(np.concatenate([scores[g.name] for g in groups if g.kind == "heads"]))[::-1]
    neurons = np.sort(np.concatenate([scores[g.name] for g in groups if g.kind == "neurons"]))[::-1]
    m_head, m_neuron = prices["layers.0.heads"], prices["layers.0.neurons"]
    best = max(
        heads[:h].sum() + neurons[:n].sum()
        for h, n in product(range(len(heads) + 1), range(len(neurons) + 1))
        if h * m_head + n * m_neuron <= budget
    )
    assert value_of(search(groups, scores, prices, budget), scores) == best


@given(problems(prices_differ=True))
def test_the_budget_is_kept_also_where_prices_differ(problem):
    groups, scores, prices, budget = problem
    assert price_of(search(groups, scores, prices, budget), prices) <= budget


@given(problems())
def test_nothing_that_still_fits_is_left_out(problem):
    groups, scores, prices, budget = problem
    kept = search(groups, scores, prices, budget)
    neurons = [g for g in groups if g.kind == "neurons"]
    if any(len(kept[g.name]) < g.count for g in neurons):
        assert budget - price_of(kept, prices) < prices[neurons[0].name]


@given(problems(prices_differ=True))
def test_the_whole_budget_keeps_every_unit(problem):
    groups, scores, prices, _ = problem
    everything = sum(g.count * prices[g.name] for g in groups)
    assert search(groups, scores, prices, everything) == {g.name: tuple(range(g.count)) for g in groups}


@given(problems(prices_differ=True), st.integers(0, 100))
def test_a_larger_budget_never_keeps_less_importance(problem, more):
    groups, scores, prices, budget = problem
    small, large = search(groups, scores, prices, budget), search(groups, scores, prices, budget + more)
    assert value_of(small, scores) <= value_of(large, scores)


def test_no_head_is_kept_where_the_budget_has_no_room_for_one():
    groups = [group("heads", 0, 2), group("neurons", 0, 4)]
    scores = {"layers.0.heads": np.array([9.0, 8.0]), "layers.0.neurons": np.array([1.0, 4.0, 2.0, 3.0])}
    prices = {"layers.0.heads": 100, "layers.0.neurons": 3}
    assert search(groups, scores, prices, 8) == {"layers.0.heads": (), "layers.0.neurons": (1, 3)}
    assert search(groups, scores, prices, 0) == {"layers.0.heads": (), "layers.0.neurons": ()}


def test_ties_go_to_the_earlier_stage_then_to_the_lower_index():
    groups = [group("neurons", 1, 2), group("neurons", 0, 2)]
    scores = {g.name: np.ones(2) for g in groups}
    ranking = rank(groups, scores, {g.name: 1 for g in groups})
    assert ranking.units == tuple((f"layers.{s}.neurons", u) for s in (0, 1) for u in (0, 1))


def test_a_family_with_one_kind_of_unit_is_a_plain_ranking():
    groups = [group("neurons", 0, 3)]
    prices = {"layers.0.neurons": 2}
    scores = {"layers.0.neurons": np.array([1.0, 3.0, 2.0])}
    neurons = rank(groups, scores, prices)
    assert split(rank([], {}, {}), neurons, 5) == (0, 2)
    assert search(groups, scores, prices, 5) == {"layers.0.neurons": (1, 2)}
