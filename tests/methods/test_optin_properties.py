"""The properties of a correct OPTIN, for networks and budgets of many sizes, and those of its options.

What is tested where:
1. physical = masked: test_optin `the_cut_answers_as_...`; with fitted weights `a_fitted_cut_answers_as_...` here
2. a unit that is never read scores zero: test_optin `a_unit_that_is_never_read_...`
3. an open mask is the identity: test_optin `without_a_silent_unit_...`, here `an_open_mask_...`
4. no leakage: test_optin `a_group_alone_...`, here `one_unit_alone_...`
5. suffix = whole forward: here `the_suffix_...` (float64), test_optin `scores_equal_those_of_...` (float32)
6. equivariance: test_optin `reordered_units_...`
7. invariances of the manifold term: test_optin_terms
8. budget and prices: here `every_budget_is_kept_...`, `a_head_costs_...`; test_optin `every_share_...`
9. optimal split: test_optin_search; all units at the whole budget: test_optin `the_whole_share_...`
10. determinism: test_optin `the_same_seed_...`, `neither_the_batch_...`; power of K: here `twice_the_positions_...`
11. compensation: here `a_fit_is_never_worse_...`, `nothing_is_fitted_...`, `compensation_never_...`
12. tokens: optin drops none; here `every_block_still_sees_every_token`
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgetl.errors import OutOfResources
from edgetl.methods.optin import Optin, fast
from edgetl.methods.optin.compensate import Sample, compensated, fit
from edgetl.methods.optin.passing import Passing
from edgetl.methods.optin.sampling import Memory, Sampling, distortions, fitting, gates, memory, recorded
from edgetl.methods.optin.score import Distortion, combined, record, score, silent
from edgetl.methods.optin.terms import Draw, divergence, manifold_distance
from edgetl.network import cost
from edgetl.network.family import Group
from edgetl.network.network import Network, check_plain, create, save
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Context
from edgetl.train.batches import Data

LABELS = ("a", "b", "c")
N = 12
ALL = Sampling(samples=N, tokens=10_000, batch=N, seed=0)
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
families = pytest.mark.parametrize("family", ["hf_vit", "hf_bert"])
shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 7))


def data(family: str) -> Data:
    rng = np.random.default_rng(0)
    if family == "hf_vit":
        inputs = {"pixel_values": rng.integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)}
        raw, operations = Raw("array", "uint8", (1, 8, 8)), ({"op": "to_float"},)
    else:
        mask = (np.arange(10) < rng.integers(3, 11, (N, 1))).astype(np.uint8)
        inputs = {"input_ids": rng.integers(5, 40, (N, 10), dtype=np.int32) * mask, "attention_mask": mask}
        raw, operations = Raw("text"), ({"op": "tokenize", "file": "tokenizer.json", "length": 10},)
    rows = {"train": np.arange(N), "validation": np.arange(0), "test": np.arange(0)}
    return Data(Prepared(Path("."), raw, LABELS, operations, np.arange(N) % 3, rows, inputs, "digest", {}))


def network(family: str, shape: tuple[int, int, int] = (3, 4, 6)) -> Network:
    """A network of (blocks, heads, neurons) whose weights are large enough that every unit matters."""
    blocks, heads, neurons = shape
    sizes = {"hidden_size": 16, "num_hidden_layers": blocks, "num_attention_heads": heads, "intermediate_size": neurons}
    if family == "hf_vit":
        sizes |= {"image_size": 8, "patch_size": 4, "num_channels": 1}
    else:
        sizes |= {"vocab_size": 40, "max_position_embeddings": 16}
    net = create(family, sizes, LABELS, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return net


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """Make a context that shares nothing and notes what is made."""

    def build(family: str, made: list[str]) -> Context:
        def once(what: str, parts: Mapping[str, object], make: Callable[[Path, int], None]) -> Path:
            folder = tmp_path_factory.mktemp(what)
            make(folder, 0)
            made.append(what)
            return folder

        return Context(data(family), 0, Path("."), network, once)

    return build


def groups(net: Network):
    return net.family.units(net.module)


def scored(net: Network, **changed):
    return distortions(net, groups(net), data(net.family.name), replace(ALL, **changed))


def some_cut(net: Network, seed: int) -> Network:
    """The network without some units at random; whole layers go now and then."""
    rng = np.random.default_rng(seed)
    kept = {g: np.flatnonzero(rng.random(g.count) < rng.random()).tolist() for g in groups(net)}
    return net.edit([g.keep(units) for g, units in kept.items() if len(units) < g.count])


def share_left(net: Network, family: str, part: float) -> float:
    """The share of the MACs at which about this part of what can be cut is kept."""
    tokens = data(family).mean_tokens()
    prices = cost.prices(net, tokens)
    units = sum(g.count * prices[g.name] for g in groups(net)) / cost.macs(net, tokens)
    return min(1.0, 1 - units + part * units + 1e-9)


@torch.no_grad()
def apart(dense: Network, cut: Network) -> float:
    batch = data(dense.family.name).batch(np.arange(N))
    p, q = (n.logits(batch).double().log_softmax(-1) for n in (dense, cut))
    return divergence(p, q)


@families
@FEW
@given(shape=shapes)
@torch.no_grad()
def test_the_suffix_scores_as_whole_forwards_do_to_1e_5(family, shape):
    net = network(family, shape)
    net.module.double()
    batch = data(family).batch(np.arange(N))
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    blocks = {path: net.at(path) for path in net.family.stages(net.module)}
    way = record(net.module, net.family, blocks, [batch], Draw(10_000, 0))
    found = score(way, groups(net), gates(net, groups(net)))
    heard: dict[str, torch.Tensor] = {}
    for path, block in blocks.items():
        block.register_forward_hook(lambda _, __, out, p=path: heard.update({p: out[0] if type(out) is tuple else out}))
    picked = way.batches[0].rows[0]

    def forward() -> tuple[list[torch.Tensor], torch.Tensor]:
        answer = net.logits(batch).log_softmax(-1)
        rows = [nn.functional.normalize(heard[p].flatten(0, 1)[picked], dim=-1) for p in blocks]
        return [a @ a.T for a in rows], answer

    dense, p = forward()
    for group in groups(net):
        after = range(min(group.stage + 1, len(blocks) - 1), len(blocks))
        for unit in range(group.count):
            with silent(net.at(group.gate), group, unit):
                masked, q = forward()
            manifold = sum(float((dense[z] - masked[z]).square().sum()) for z in after)
            assert found[group.name].manifold[unit] == pytest.approx(manifold, rel=1e-5, abs=1e-20)
            assert found[group.name].output[unit] == pytest.approx(divergence(p, q), rel=1e-5, abs=1e-14)


@FEW
@given(shape=shapes)
def test_an_open_mask_changes_no_bit(shape):
    net = network("hf_vit", shape)
    everything = [g.keep(range(g.count)) for g in groups(net)]
    batch = data("hf_vit").batch(np.arange(N))
    with torch.no_grad():
        assert torch.equal(net.edit(everything).logits(batch), net.logits(batch))


@families
@FEW
@given(st.data())
def test_one_unit_alone_scores_as_in_the_whole_sweep(family, drawn):
    net = network(family)
    group = drawn.draw(st.sampled_from(groups(net)))
    unit = drawn.draw(st.integers(0, group.count - 1))
    only = {g.name: [unit] if g == group else [] for g in groups(net)}
    with recorded(net, data(family), ALL) as way:
        alone = score(way, groups(net), gates(net, groups(net)), only)[group.name]
    whole = scored(net)[group.name]
    # Not to the bit: how many units share a forward decides how its sums are rounded.
    assert alone.manifold[0] == pytest.approx(whole.manifold[unit], rel=1e-3)
    assert alone.output[0] == pytest.approx(whole.output[unit], rel=1e-3, abs=1e-7)


@families
@FEW
@given(shape=shapes, part=st.floats(0, 1), rounds=st.integers(1, 4), options=st.integers(0, 3))
def test_every_budget_is_kept_to_within_one_neuron_by_every_option(family, shape, part, rounds, options, context):
    net = network(family, shape)
    share = share_left(net, family, part)
    more = {"score": "paper"} if options & 1 else {"compensation_samples": N}
    more |= {"search": "fast", "rescore": 0.5} if options & 2 else {}
    cut = Optin(keep_macs=share, samples=N, rounds=rounds, **more).run(net, context(family, []))
    tokens = data(family).mean_tokens()
    prices = cost.prices(net, tokens)
    unused = share * cost.macs(net, tokens) - cost.macs(cut, tokens)
    left = {g.name: g.count for g in groups(cut)}
    every = all(left.get(g.name) == g.count for g in groups(net) if g.kind == "neurons")
    assert unused >= 0
    # What an earlier round took does not come back, so that later ones may have no neurons left to fill up with.
    assert unused < prices["layers.0.neurons" if rounds == 1 and not every else "layers.0.heads"] or not cut.edits


def test_a_head_costs_what_the_formula_says_in_neurons():
    net = network("hf_vit")
    prices = cost.prices(net)
    tokens, width, head = 5, 16, 4
    assert prices["layers.0.heads"] / prices["layers.0.neurons"] == 2 * head + head * tokens / width
    cut = some_cut(net, 3)
    left = {g.name: g.count for g in groups(cut)}
    lost = sum((g.count - left.get(g.name, 0)) * prices[g.name] for g in groups(net))
    assert cost.macs(cut) == cost.macs(net) - lost


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_twice_the_positions_have_four_times_the_distance(seed, times):
    a, b = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    repeated = manifold_distance(a.repeat(times, 1), b.repeat(times, 1))
    assert repeated == pytest.approx(times**2 * manifold_distance(a, b), rel=1e-10)


@families
@FEW
@given(shape=shapes, seed=st.integers(0, 99))
def test_a_fit_is_never_worse_on_what_it_was_fitted_to(family, shape, seed):
    dense = network(family, shape)
    cut, batch = some_cut(dense, seed), data(family).batch(np.arange(N))
    real = batch.get("attention_mask", torch.ones(N, 5)).bool()

    def heard(net: Network, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        out: list[torch.Tensor] = []
        hook = net.at(path).register_forward_hook(lambda _, args, answer: out.extend((args[0], answer)))
        net.logits(batch)
        hook.remove()
        return out[0][real].double(), out[1][real].double()

    with torch.no_grad():
        for group in groups(dense):
            change = fit(Passing(dense, [batch]), Passing(cut, [batch]), group, 1, 1e-3)
            target, (c, answer) = heard(dense, group.gate)[1], heard(cut, group.gate)
            fitted = answer + change.bias
            if change.weight is not None:
                fitted = fitted + c @ change.weight.T
            before, after = ((x - target).square().sum() for x in (answer, fitted))
            assert after <= before * (1 + 1e-9) + 1e-12


@families
def test_nothing_is_fitted_where_nothing_is_cut(family):
    net = network(family)
    same = compensated(net, net.copy(), data(family), Sample(N, 5, 0), 1e-3)
    assert same.digest == net.digest


@families
def test_states_that_are_not_held_are_computed_again_and_equal(family):
    dense = network(family)
    held, again = (
        compensated(dense, some_cut(dense, 1), data(family), Sample(N, 5, 0, limit), 1e-3)
        for limit in (float("inf"), 0.0)
    )
    assert held.digest == again.digest


@families
@FEW
@given(shape=shapes, seed=st.integers(0, 99), ridge=st.sampled_from([1e-6, 1e-3, 1.0]))
def test_compensation_never_moves_the_answers_further_from_the_dense_ones(family, shape, seed, ridge):
    dense = network(family, shape)
    cut = some_cut(dense, seed)
    before = apart(dense, cut)
    assert apart(dense, compensated(dense, cut, data(family), Sample(N, 5, seed), ridge)) <= before * (1 + 1e-5) + 1e-9


@families
def test_compensation_helps_and_leaves_a_plain_network_of_the_same_cut(family, tmp_path, context):
    net = network(family)
    share = share_left(net, family, 0.5)
    cut = Optin(keep_macs=share, samples=N, rounds=1, compensate="none").run(net.copy(), context(family, []))
    step = Optin(keep_macs=share, samples=N, rounds=1, compensation_samples=N)
    fitted, again = (step.run(net.copy(), context(family, [])) for _ in range(2))
    assert fitted.edits == cut.edits
    assert fitted.digest == again.digest != cut.digest
    assert apart(net, fitted) < 0.9 * apart(net, cut)
    save(fitted, tmp_path / "saved")
    check_plain(fitted, tmp_path / "saved")


@families
@FEW
@given(seed=st.integers(0, 99))
@torch.no_grad()
def test_a_fitted_cut_answers_as_the_fitted_network_with_its_lost_units_silent(family, seed):
    net = network(family)
    cut = some_cut(net, seed)
    fitted = compensated(net, cut, data(family), Sample(N, N, 0), 1e-3)
    kept = {e.tensors: list(e.indices) for e in fitted.edits if hasattr(e, "indices")}
    left = {g.name for g in groups(fitted)}
    for group in groups(net):
        whole, small = net.names().linear(group.gate), fitted.at(group.gate)
        stay = kept.get(group.tensors, list(range(group.count * group.width))) if group.name in left else []
        if stay:
            whole.weight[:, stay] = small.weight
        whole.weight[:, sorted(set(range(group.count * group.width)) - set(stay))] = 0
        whole.bias.copy_(small.bias)
    batch = data(family).batch(np.arange(N))
    assert torch.allclose(net.logits(batch), fitted.logits(batch), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_has_no_part_in_a_fit():
    dense = network("hf_bert")
    cut, batch = some_cut(dense, 1), data("hf_bert").batch(np.arange(N))
    padded = {k: torch.cat([batch[k], torch.zeros(N, 4, dtype=torch.long)], 1) for k in ("input_ids", "attention_mask")}
    group = next(g for g in groups(dense) if g.name in {h.name for h in groups(cut)})
    one, other = (fit(Passing(dense, [b]), Passing(cut, [b]), group, 1, 1e-3) for b in (batch, padded))
    assert torch.allclose(one.weight, other.weight, rtol=1e-3, atol=1e-4)
    assert torch.allclose(one.bias, other.bias, rtol=1e-3, atol=1e-4)


def test_every_block_still_sees_every_token(context):
    net = network("hf_vit")
    cut = Optin(keep_macs=share_left(net, "hf_vit", 0.3), samples=N).run(net, context("hf_vit", []))
    seen: list[int] = []
    for path in cut.family.stages(cut.module):
        cut.at(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    cut.logits(data("hf_vit").batch(np.arange(2)))
    assert seen == [5, 5, 5]  # four patches and the class token


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_normalised_terms_weigh_the_same_whatever_their_scales(a, b):
    rng = np.random.default_rng(0)
    found = {name: Distortion(rng.random(4), rng.random(4)) for name in ("x", "y")}
    scaled = {name: Distortion(d.manifold * a, d.output * b) for name, d in found.items()}
    one, other = (combined(f, 1.0, normalised=True) for f in (found, scaled))
    assert sum(s.sum() for s in one.values()) == pytest.approx(2)
    assert all(np.allclose(one[name], other[name], rtol=1e-9) for name in found)


def test_no_distortion_at_all_is_no_division_by_zero():
    nothing = {"x": Distortion(np.zeros(3), np.zeros(3))}
    assert combined(nothing, 1.0, normalised=True)["x"].tolist() == [0, 0, 0]


def test_every_round_scores_what_the_one_before_left(context):
    net, made = network("hf_vit"), []
    share = share_left(net, "hf_vit", 0.4)
    cut = Optin(keep_macs=share, samples=N, rounds=3).run(net, context("hf_vit", made))
    assert len(made) == 3
    assert len(cut.edits) > len({e.tensors for e in cut.edits if hasattr(e, "tensors")})


def test_the_score_of_the_paper_brings_the_rest_of_it():
    paper = Optin(score="paper")
    assert paper == Optin(score="paper", compensate="none", rounds=1, search="exact", lambda_c=0.1)
    assert Optin(**paper.model_dump()) == paper
    assert Optin(score="paper", rounds=2, lambda_c=1.0) == paper.model_copy(update={"rounds": 2, "lambda_c": 1.0})


@families
def test_a_fast_search_that_scores_everything_again_is_the_exact_one(family, context):
    net = network(family)
    share = share_left(net, family, 0.5)
    exact, quick = (
        Optin(keep_macs=share, samples=N, search=how, rescore=1.0).run(net.copy(), context(family, []))
        for how in ("exact", "fast")
    )
    assert quick.digest == exact.digest


@families
def test_estimates_rank_units_as_exact_scores_do(family):
    net = network(family, (3, 4, 24))
    exact = scored(net)
    with recorded(net, data(family), ALL) as way:
        rough = fast.estimate(way, groups(net), gates(net, groups(net)), 0)
    for term in ("manifold", "output"):
        one, other = (
            np.concatenate([getattr(d[g.name], term) for g in groups(net) if g.kind == "neurons"])
            for d in (exact, rough)
        )
        ranks = [np.argsort(np.argsort(x)) for x in (one, other)]
        assert np.corrcoef(*ranks)[0, 1] > 0.75


@torch.no_grad()
def test_estimates_of_small_units_are_right_on_average():
    net = network("hf_vit", (3, 4, 24))
    for group in groups(net):
        net.names().linear(group.gate).weight.mul_(0.01)
    single = replace(ALL, samples=1)  # of several, what one does to another is left out
    exact = distortions(net, groups(net), data("hf_vit"), single)
    with recorded(net, data("hf_vit"), single) as way:
        found = [fast.estimate(way, groups(net), gates(net, groups(net)), seed) for seed in range(60)]
    for term in ("manifold", "output"):
        known = sum(getattr(d, term).sum() for d in exact.values())
        guessed = np.mean([sum(getattr(d, term).sum() for d in one.values()) for one in found])
        assert guessed == pytest.approx(known, rel=0.25)


@given(st.integers(1, 30), st.floats(0.01, 1), st.integers(0, 10**6))
def test_units_near_the_cut_are_as_many_as_asked(count, share, budget):
    gs = [Group(k, k, k, 0, k, (), n, 1) for k, n in (("heads", 3), ("neurons", count))]
    scores = {"heads": np.arange(3.0), "neurons": np.arange(float(count))}
    chosen = fast.near(gs, scores, {"heads": 100, "neurons": 10}, budget, share)
    assert len(set(chosen["heads"])) == (3 if share > 2 / 3 else 2)
    assert len(set(chosen["neurons"])) == math.ceil(share * count)
    assert set(chosen["neurons"]) <= set(range(count))


@given(st.tuples(*[st.integers(0, 1000)] * 3, st.integers(1, 1000)), st.integers(1, 64), st.integers(0, 10**5))
def test_the_batch_is_the_largest_that_keeps_the_memory(parts, asked, limit):
    needed = Memory(*parts)
    if needed.total(1) > limit:
        with pytest.raises(OutOfResources, match="of 1 samples") as caught:
            fitting(needed, asked, limit)
        assert "memory_mb" in caught.value.fix
        return
    batch = fitting(needed, asked, limit)
    assert 1 <= batch <= asked
    assert needed.total(batch) <= limit
    assert batch == asked or needed.total(batch + 1) > limit


@families
def test_the_memory_is_said_and_kept(family, caplog, context):
    net = network(family)
    needed = memory(net, groups(net), data(family), replace(ALL, tokens=768))
    share = share_left(net, family, 0.5)
    caplog.set_level("INFO", "edgetl")
    exactly = needed.total(1) / 1e6
    small = Optin(keep_macs=share, samples=N, batch=8, memory_mb=exactly).run(net.copy(), context(family, []))
    assert "MB beyond the weights" in caplog.text
    assert cost.macs(small) <= cost.macs(net)
    with pytest.raises(OutOfResources, match="memory_mb"):
        Optin(keep_macs=share, samples=N, memory_mb=0.9 * exactly).run(net.copy(), context(family, []))


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self.seen:
                self.seen.add(place)
                self.now += (size := tensor.untyped_storage().nbytes())
                self.most = max(self.most, self.now)
                weakref.finalize(tensor.untyped_storage(), self.free, place, size)
        return out

    def free(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.now -= size


@families
@pytest.mark.parametrize("graph", [False, True])
def test_the_peak_is_at_most_the_estimate_and_not_far_below(family, graph):
    net = network(family, (3, 4, 24))
    needed = memory(net, groups(net), data(family), ALL, graph=graph)
    with Peak() as peak, recorded(net, data(family), ALL) as way:
        if graph:
            fast.estimate(way, groups(net), gates(net, groups(net)), 0)
        score(way, groups(net), gates(net, groups(net)))
    assert needed.total(N) / 8 < peak.most <= needed.total(N)


def test_more_samples_to_compensate_with_than_there_are_means_all_of_them(context):
    net = network("hf_vit")
    every, more = (
        Optin(samples=N, keep_macs=0.9, compensation_samples=n).run(net.copy(), context("hf_vit", []))
        for n in (N, 100 * N)
    )
    assert every.digest == more.digest
