"""OPTIN on convolutional networks: the knapsack is optimal and in the budget, scores are right, fits help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from edgetl.methods.optin import Optin
from edgetl.methods.optin.bill import Bill, macs, weights
from edgetl.methods.optin.compensate import Sample, compensated, fit
from edgetl.methods.optin.passing import Passing
from edgetl.methods.optin.sampling import Sampling, distortions
from edgetl.methods.optin.search import counts, fill
from edgetl.methods.optin.terms import divergence
from edgetl.network import cost
from edgetl.network.family import Group
from edgetl.network.network import Network, check_plain, create, save
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Context
from edgetl.train.batches import Data

LABELS = ("a", "b", "c")
N = 12
MANY = 96
"""Samples enough for a fit to hold on others."""
FEW = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES: dict[str, dict[str, object]] = {
    "resnet_cifar": {"depth": 8, "channels": 4, "num_channels": 1, "image_size": 8},
    "hf_resnet": {
        "layer_type": "bottleneck",
        "hidden_sizes": (16, 16),
        "depths": (1, 2),
        "embedding_size": 6,
        "num_channels": 1,
        "image_size": 16,
    },
    "hf_mobilenet": {
        "depth_multiplier": 0.1,
        "depth_divisible_by": 2,
        "min_depth": 2,
        "expand_ratio": 3.0,
        "num_channels": 1,
        "image_size": 16,
    },
}
families = pytest.mark.parametrize("family", list(SIZES))
deep_slow = pytest.mark.parametrize(
    "family", ["resnet_cifar", "hf_resnet", pytest.param("hf_mobilenet", marks=pytest.mark.slow)]
)
"""Of the deepest family, hundreds of whole networks take long."""


def data(family: str, count: int = N) -> Data:
    side = SIZES[family]["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    rows = {"train": np.arange(count), "validation": np.arange(0), "test": np.arange(0)}
    raw, operations = Raw("array", "uint8", (1, side, side)), ({"op": "to_float"},)
    inputs = {"pixel_values": pixels}
    return Data(Prepared(Path("."), raw, LABELS, operations, np.arange(count) % 3, rows, inputs, "digest", {}))


def network(family: str) -> Network:
    """A network whose norms have seen the data, so that its channels matter."""
    net = create(family, SIZES[family], LABELS, 0)
    norms = [m for m in net.module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    net.module.train()
    with torch.no_grad():
        net.logits(data(family).batch(np.arange(N)))
    net.module.eval()
    with torch.no_grad():
        net.names().linear("head").weight.mul_(20)
    return net


def groups(net: Network) -> tuple[Group, ...]:
    return net.family.units(net.module)


@pytest.fixture
def context(tmp_path):
    def build(family: str, count: int = N) -> Context:
        def once(what: str, parts: Mapping[str, object], make) -> Path:
            folder = tmp_path / f"{what}-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            make(folder, 0)
            return folder

        return Context(data(family, count), 0, tmp_path, network, once)

    return build


def share_left(net: Network, part: float) -> float:
    """The share of the MACs at which about this part of what can be cut is kept."""
    bill = macs(net, None)
    return min(1.0, (bill.fixed + part * bill.units) / bill.whole + 1e-9)


@st.composite
def problems(draw, shared: bool = False):
    """Groups of channels with scores, prices and a budget; with `shared`, layers between neighbours too."""
    number = draw(st.integers(1, 4))
    found = [
        Group(f"g{i}", "channels", f"p{i}", i, f"gate{i}", (), draw(st.integers(1, 4)), 1, draw(st.integers(0, 1)))
        for i in range(number)
    ]
    sizes = {g.name: g.count for g in found}
    work: dict[tuple[str, ...], int] = {(): draw(st.integers(0, 50))}
    work |= {(g.name,): g.count * draw(st.integers(1, 30)) for g in found}
    if shared:
        pairs = [(a.name, b.name) for a, b in pairwise(found)]
        work |= {pair: sizes[pair[0]] * sizes[pair[1]] * draw(st.integers(1, 9)) for pair in pairs}
    scores = {g.name: np.array([draw(st.integers(0, 50)) for _ in range(g.count)], np.float64) for g in found}
    bill = Bill(work, sizes)
    least = sum(g.least * bill.prices[g.name] for g in found)
    return found, scores, bill, draw(st.integers(least, max(least, bill.units)))


def value(kept: Mapping[str, tuple[int, ...]], scores: Mapping[str, np.ndarray]) -> float:
    return float(sum(scores[name][list(units)].sum() for name, units in kept.items()))


def brute_force(found, scores, bill, budget, multiple) -> float:
    best = {g.name: np.concatenate([[0.0], np.cumsum(np.sort(scores[g.name])[::-1])]) for g in found}
    options = [[(g.name, int(n)) for n in counts(g, multiple)] for g in found]
    return max(sum(best[name][n] for name, n in one) for one in product(*options) if bill.of(dict(one)) <= budget)


@given(problems(), st.integers(1, 3))
def test_the_knapsack_is_as_good_as_trying_all_where_every_unit_has_one_price(problem, multiple):
    found, scores, bill, budget = problem
    kept = fill(found, scores, bill, budget, multiple)
    assert value(kept, scores) == brute_force(found, scores, bill, budget, multiple)


@given(problems(shared=True), st.integers(1, 3))
def test_the_budget_is_kept_and_counts_are_multiples_where_layers_are_shared(problem, multiple):
    found, scores, bill, budget = problem
    kept = fill(found, scores, bill, budget, multiple)
    assert bill.of({name: len(units) for name, units in kept.items()}) <= budget
    for g in found:
        count = len(kept[g.name])
        assert count >= g.least
        assert count % multiple == 0 or count in (g.count, g.least)
        inside, outside = scores[g.name][list(kept[g.name])], np.delete(scores[g.name], list(kept[g.name]))
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


@given(problems(shared=True))
def test_a_cut_never_costs_more_than_its_units_prices(problem):
    found, _, bill, _ = problem
    rng = np.random.default_rng(0)
    for _ in range(20):
        kept = {g.name: int(rng.integers(0, g.count + 1)) for g in found}
        assert bill.of(kept) <= sum(n * bill.prices[name] for name, n in kept.items())
    assert bill.of({g.name: g.count for g in found}) == bill.units


@families
def test_a_bill_is_what_the_cut_network_costs(family):
    net, rng = network(family), np.random.default_rng(3)
    for _ in range(3):
        kept = {g: sorted(rng.permutation(g.count)[: rng.integers(1, g.count + 1)].tolist()) for g in groups(net)}
        cut = net.edit([g.keep(units) for g, units in kept.items()])
        numbers = {g.name: len(units) for g, units in kept.items()}
        for bill, whole in ((macs(net, None), cost.macs), (weights(net), cost.parameters)):
            assert bill.fixed + bill.of(numbers) == whole(cut)


@deep_slow
@FEW
@given(part=st.floats(0.05, 1), rounds=st.integers(1, 3), multiple=st.sampled_from([1, 2]))
def test_every_budget_is_kept_and_used(family, part, rounds, multiple, tmp_path_factory):
    net = network(family)
    share = share_left(net, part)

    def once(what: str, parts: Mapping[str, object], make) -> Path:
        folder = tmp_path_factory.mktemp(what)
        make(folder, 0)
        return folder

    context = Context(data(family), 0, Path("."), network, once)
    bill = macs(net, None)
    least = bill.fixed + sum(g.least * bill.prices[g.name] for g in groups(net))
    assume(math.floor(share * bill.whole) >= least)
    cut = Optin(keep_macs=share, samples=N, rounds=rounds, multiple=multiple).run(net, context)
    assert cost.macs(cut) <= share * cost.macs(net)
    whole = {g.name: g.count for g in groups(net)}
    if rounds == 1:
        assert all(g.count % multiple == 0 or g.count in (whole[g.name], g.least) for g in groups(cut))


@deep_slow
def test_scores_equal_those_of_whole_networks_with_one_silent_channel(family):
    net = network(family)
    batch = data(family).batch(np.arange(N))
    found = distortions(net, groups(net), data(family), Sampling(N, 10_000, N, 0))
    with torch.no_grad():
        dense = net.logits(batch).double().log_softmax(-1)
        for group in groups(net)[::5]:
            for unit in range(group.count):
                rest = [u for u in range(group.count) if u != unit]
                without = net.edit([group.keep(rest)]).logits(batch).double().log_softmax(-1)
                assert found[group.name].output[unit] == pytest.approx(divergence(dense, without), rel=1e-3, abs=1e-9)


@deep_slow
@FEW
@given(seed=st.integers(0, 99), ridge=st.sampled_from([1e-6, 1e-3, 1.0]))
def test_a_fit_is_never_worse_on_what_it_was_fitted_to(family, seed, ridge):
    dense, rng = network(family), np.random.default_rng(seed)
    kept = {g: np.flatnonzero(rng.random(g.count) < 0.6).tolist() for g in groups(dense)}
    cut = dense.edit([g.keep(units) for g, units in kept.items()])
    batch = data(family).batch(np.arange(N))

    left = {path.removesuffix(".weight"): units for g, units in kept.items() for path, axis in g.tensors if axis == 0}

    def answer(net: Network, path: str) -> torch.Tensor:
        heard: list[torch.Tensor] = []
        hook = net.at(path).register_forward_hook(lambda _, __, out: heard.append(out.double()))
        net.logits(batch)
        hook.remove()
        return heard[0]

    with torch.no_grad():
        for group in groups(dense):
            path = group.gate if cut.names().has(group.gate) else group.place
            if isinstance(cut.at(path), nn.Identity):
                continue
            change = fit(Passing(dense, [batch]), Passing(cut, [batch]), group, 1, ridge)
            target = answer(dense, path)[:, left.get(group.gate, slice(None))]
            before = (answer(cut, path) - target).square().sum()
            if change.weight is not None:
                cut.at(path).weight.add_(change.weight)
            shifted = answer(cut, path) + change.bias[:, None, None]
            after = (shifted - target).square().sum()
            assert after <= before * (1 + 1e-5) + 1e-7


def test_a_fit_without_ridge_is_the_least_squares_solution_of_the_patches():
    dense = network("resnet_cifar")
    group = groups(dense)[0]
    cut = dense.edit([group.keep([0, 2])])
    batch = data("resnet_cifar").batch(np.arange(N))
    with torch.no_grad():
        change = fit(Passing(dense, [batch]), Passing(cut, [batch]), group, 1, 1e-12)
        read: list[torch.Tensor] = []
        answers = []
        for net in (cut, dense):
            gate = net.at(group.gate)
            hooks = [
                gate.register_forward_pre_hook(lambda _, args: read.append(args[0])),
                gate.register_forward_hook(lambda _, __, out: answers.append(out)),
            ]
            net.logits(batch)
            for hook in hooks:
                hook.remove()
        rows = [
            [*padded[s, :, i : i + 3, j : j + 3].flatten().tolist(), 1.0]
            for padded in [nn.functional.pad(read[0], (1, 1, 1, 1))]
            for s, i, j in product(range(N), range(8), range(8))
        ]
        target = answers[1].permute(0, 2, 3, 1).flatten(0, 2).double()
        solved = torch.linalg.lstsq(torch.tensor(rows, dtype=torch.float64), target).solution.T
    weight = cut.at(group.gate).weight.double() + change.weight
    torch.testing.assert_close(weight.flatten(1), solved[:, :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(change.bias, solved[:, -1], rtol=1e-4, atol=1e-5)


@families
def test_nothing_is_fitted_where_nothing_is_cut(family):
    net = network(family)
    assert compensated(net, net.copy(), data(family), Sample(N, 5, 0), 1e-3).digest == net.digest


@deep_slow
def test_compensation_helps_and_leaves_a_plain_network_of_the_same_cut(family, tmp_path, context):
    net = network(family)
    share = share_left(net, 0.6)
    bare = Optin(keep_macs=share, samples=N, rounds=1, compensate="none").run(net.copy(), context(family, MANY))
    step = Optin(keep_macs=share, samples=N, rounds=1, compensation_samples=MANY)
    fitted, again = (step.run(net.copy(), context(family, MANY)) for _ in range(2))
    assert fitted.edits == bare.edits
    assert fitted.digest == again.digest != bare.digest
    batch = data(family, MANY).batch(np.arange(MANY))
    with torch.no_grad():
        p, q, r = (n.logits(batch).double().log_softmax(-1) for n in (net, bare, fitted))
    assert divergence(p, r) < 0.9 * divergence(p, q)
    save(fitted, tmp_path / "saved")
    check_plain(fitted, tmp_path / "saved")


def test_a_fast_search_cuts_channels_too(context):
    net = network("resnet_cifar")
    share = share_left(net, 0.5)
    cut = Optin(keep_macs=share, samples=N, search="fast", rescore=0.5).run(net.copy(), context("resnet_cifar"))
    assert cost.macs(cut) <= share * cost.macs(net)
    exact, quick = (
        Optin(keep_macs=share, samples=N, search=how, rescore=1.0).run(net.copy(), context("resnet_cifar"))
        for how in ("exact", "fast")
    )
    assert quick.digest == exact.digest
