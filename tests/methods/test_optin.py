"""Scores mean what they say, and the cut keeps the budget, for both kinds of transformer block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edgetl.errors import BadInput, Diverged
from edgetl.methods.optin import Optin
from edgetl.methods.optin.sampling import Sampling, distortions
from edgetl.methods.optin.score import Trajectory, distort, record, silent
from edgetl.methods.optin.terms import Draw
from edgetl.network import cost
from edgetl.network.edits import Keep
from edgetl.network.network import Network, create
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Context
from edgetl.train.batches import Data

LABELS = ("a", "b", "c")
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 6}
SIZES = {
    "hf_vit": {"image_size": 8, "patch_size": 4, "num_channels": 1, **WIDTHS},
    "hf_bert": {"vocab_size": 40, "max_position_embeddings": 16, **WIDTHS},
}
N = 12
ALL = Sampling(samples=N, tokens=10_000, batch=N, seed=0)


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


def network(family: str) -> Network:
    """Return a network whose weights are large enough that every unit matters."""
    net = create(family, SIZES[family], LABELS, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def context(family: str, folder: Path) -> Context:
    def once(what: str, parts: Mapping[str, object], make: Callable[[Path, int], None]) -> Path:
        key = repr(sorted((k, v.digest if isinstance(v, Network) else v) for k, v in parts.items()))
        made = folder / f"{what}-{hash(key)}"
        if not made.exists():
            made.mkdir()
            make(made, 0)
        return made

    return Context(data(family), 0, folder, network, once)


def groups(net: Network):
    return net.family.units(net.module)


def scored(net: Network, sampling: Sampling = ALL):
    return distortions(net, groups(net), data(net.family.name), sampling)


def trajectory(net: Network, sampling: Sampling = ALL) -> Trajectory:
    blocks = {path: net.at(path) for path in net.family.stages(net.module)}
    batch = data(net.family.name).batch(np.arange(sampling.samples))
    return record(net.module, net.family, blocks, [batch], Draw(sampling.tokens, sampling.seed))


@torch.no_grad()
def block_outputs(net: Network, batch: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return every block's (rows, D) output without padding and the logits of one ordinary forward."""
    mask = batch.get("attention_mask")
    heard: list[Tensor] = []

    def hear(_: object, __: object, out: object) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        heard.append(hidden.flatten(0, 1) if mask is None else hidden[mask.bool()])

    hooks = [net.at(p).register_forward_hook(hear) for p in net.family.stages(net.module)]
    logits = net.logits(batch)
    for hook in hooks:
        hook.remove()
    return heard, logits


def gram(rows: Tensor) -> Tensor:
    unit = functional.normalize(rows.double(), dim=-1)
    return unit @ unit.T


families = pytest.mark.parametrize("family", ["hf_vit", "hf_bert"])


@families
def test_scores_equal_those_of_whole_forwards_with_whole_gram_matrices(family):
    net = network(family)
    found, batch = scored(net), data(family).batch(np.arange(N))
    dense, logits = block_outputs(net, batch)
    names, last = net.names(), len(dense) - 1
    for group in groups(net):
        for unit in range(group.count):
            with silent(names.at(group.gate), group, unit):
                masked, answer = block_outputs(net, batch)
            compared = range(min(group.stage + 1, last), last + 1)
            manifold = sum(float((gram(dense[z]) - gram(masked[z])).square().sum()) for z in compared)
            p, q = logits.double().log_softmax(-1), answer.double().log_softmax(-1)
            assert found[group.name].manifold[unit] == pytest.approx(manifold, rel=1e-3)
            assert found[group.name].output[unit] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-7)


@families
def test_without_a_silent_unit_nothing_is_distorted(family):
    net = network(family)
    way = trajectory(net)
    hidden = [b.entry for b in way.batches]
    with torch.no_grad():
        for stage, block in enumerate(way.blocks.values()):
            assert distort(way, stage, hidden) == (0.0, 0.0)
            hidden = [b.calls[stage](block, h) for b, h in zip(way.batches, hidden, strict=True)]


@families
def test_a_unit_that_is_never_read_scores_zero_and_goes_first(family, tmp_path):
    net = network(family)
    names = net.names()
    picked = {g.name: (g, g.count - 1) for g in groups(net) if g.stage == 1}
    with torch.no_grad():
        for group, unit in picked.values():
            names.linear(group.gate).weight[:, unit * group.width : (unit + 1) * group.width] = 0
    found = scored(net)
    for name, d in found.items():
        zero = (d.manifold == 0) & (d.output == 0)
        assert zero.nonzero()[0].tolist() == ([picked[name][1]] if name in picked else [])
    before = {g.name: g.count for g in groups(net)}
    prices = [cost.price(net, g, data(family).mean_tokens()) for g, _ in picked.values()]
    share = 1 - sum(prices) / cost.macs(net, data(family).mean_tokens())
    cut = Optin(score="paper", keep_macs=share + 1e-9, samples=N).run(net, context(family, tmp_path))
    assert {g.name: before[g.name] - g.count for g in groups(cut)} == {n: int(n in picked) for n in before}


@families
def test_a_group_alone_scores_as_in_the_whole_sweep(family):
    net = network(family)
    everything = scored(net)
    for group in reversed(groups(net)):
        alone = distortions(net, [group], data(family), ALL)[group.name]
        assert np.array_equal(alone.manifold, everything[group.name].manifold)
        assert np.array_equal(alone.output, everything[group.name].output)


@families
def test_reordered_units_have_reordered_scores(family):
    net = network(family)
    expected, names = scored(net), net.names()
    order = {g.name: np.random.default_rng(g.stage).permutation(g.count) for g in groups(net)}
    for group in groups(net):
        indices = torch.tensor([u * group.width + i for u in order[group.name] for i in range(group.width)])
        for path, axis in group.tensors:
            owner, attribute = names.owner(path)
            tensor = getattr(owner, attribute)
            tensor.data = tensor.data.index_select(axis, indices)
    for name, d in scored(net).items():
        assert d.manifold == pytest.approx(expected[name].manifold[order[name]], rel=1e-3)
        assert d.output == pytest.approx(expected[name].output[order[name]], rel=1e-3, abs=1e-7)


@families
def test_neither_the_batch_nor_the_seed_matters_where_every_position_is_compared(family):
    net = network(family)
    one, other = scored(net), scored(net, replace(ALL, batch=5, seed=7))
    for name in one:
        assert other[name].manifold == pytest.approx(one[name].manifold, rel=1e-3)
        assert other[name].output == pytest.approx(one[name].output, rel=1e-3, abs=1e-7)


@families
def test_the_same_seed_gives_the_same_scores(family):
    net, few = network(family), Sampling(samples=5, tokens=7, batch=2, seed=3)
    one, same, other = scored(net, few), scored(net, few), scored(net, replace(few, seed=4))
    assert all(np.array_equal(one[n].manifold, same[n].manifold) for n in one)
    assert not all(np.array_equal(one[n].manifold, other[n].manifold) for n in one)


def fixed_share(net: Network, family: str) -> float:
    tokens = data(family).mean_tokens()
    prices = cost.prices(net, tokens)
    return 1 - sum(g.count * prices[g.name] for g in groups(net)) / cost.macs(net, tokens)


@families
def test_every_share_is_kept_to_within_one_neuron(family, tmp_path):
    net, ctx = network(family), context(family, tmp_path)
    tokens, low = ctx.data.mean_tokens(), fixed_share(net, family)
    neuron = cost.prices(net, tokens)["layers.0.neurons"]
    neurons = sum(g.count for g in groups(net) if g.kind == "neurons")

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.floats(low + 1e-6, 1))
    def check(share: float) -> None:
        cut = Optin(score="paper", keep_macs=share, samples=N).run(net, ctx)
        allowed, used = share * cost.macs(net, tokens), cost.macs(cut, tokens)
        left = sum(g.count for g in groups(cut) if g.kind == "neurons")
        assert used <= allowed
        assert allowed - used < neuron or left == neurons

    check()


@families
def test_the_cut_answers_as_the_network_with_its_lost_units_silent(family, tmp_path):
    net, ctx = network(family), context(family, tmp_path)
    cut = Optin(score="paper", keep_macs=0.5 * (1 + fixed_share(net, family)), samples=N).run(net.copy(), ctx)
    kept = {e.tensors: set(e.indices) for e in cut.edits if isinstance(e, Keep)}
    left = {g.name for g in groups(cut)}
    with torch.no_grad():
        for group in groups(net):
            whole = set(range(group.count * group.width))
            stay = kept.get(group.tensors, whole) if group.name in left else set()
            net.names().linear(group.gate).weight[:, sorted(whole - stay)] = 0
        batch = ctx.data.batch(np.arange(N))
        assert cut.edits
        assert torch.allclose(net.logits(batch), cut.logits(batch), rtol=1e-5, atol=1e-5)


@families
def test_a_cut_network_can_be_cut_again_also_without_some_layers(family, tmp_path):
    net = network(family)
    first = [g for g in groups(net) if g.stage == 1]
    net = net.edit([g.keep([]) for g in first] + [groups(net)[0].keep([0, 2])])
    tokens, ctx = data(family).mean_tokens(), context(family, tmp_path)
    share = 0.5 * (1 + fixed_share(net, family))
    cut = Optin(score="paper", keep_macs=share, samples=N).run(net, ctx)
    assert cost.macs(cut, tokens) <= share * cost.macs(net, tokens)
    assert cut.logits(ctx.data.batch(np.arange(2))).shape == (2, len(LABELS))


def test_three_budgets_share_one_scoring(tmp_path):
    net, ctx = network("hf_vit"), context("hf_vit", tmp_path)
    macs = [cost.macs(Optin(score="paper", keep_macs=s, samples=N).run(net, ctx)) for s in (0.9, 0.7, 0.5)]
    assert macs == sorted(macs, reverse=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_whole_share_changes_nothing(tmp_path):
    net = network("hf_vit")
    cut = Optin(score="paper", keep_macs=1.0, samples=N).run(net, context("hf_vit", tmp_path))
    assert (cut.edits, cut.digest) == ((), net.digest)


def test_a_share_below_what_cannot_be_cut_names_the_smallest_one(tmp_path):
    net, ctx = network("hf_vit"), context("hf_vit", tmp_path)
    low = fixed_share(net, "hf_vit")
    with pytest.raises(BadInput, match="cannot be cut") as caught:
        Optin(score="paper", keep_macs=low / 2, samples=N).run(net, ctx)
    smallest = float(caught.value.fix.split()[3])
    assert low <= smallest <= low + 1e-3
    assert cost.macs(Optin(score="paper", keep_macs=smallest, samples=N).run(net, ctx)) <= smallest * cost.macs(net)


def test_more_samples_than_there_are_is_an_error(tmp_path):
    with pytest.raises(BadInput, match=f"holds {N}") as caught:
        Optin(score="paper", samples=N + 1).run(network("hf_vit"), context("hf_vit", tmp_path))
    assert f"{N} or less" in caught.value.fix


@families
def test_a_network_that_is_not_finite_is_refused_by_the_name_of_its_block(family, tmp_path):
    net = network(family)
    with torch.no_grad():
        net.names().linear("layers.1.ffn.down").bias[0] = math.nan
    with pytest.raises(Diverged, match=r"layers\.1 "):
        Optin(score="paper", samples=N, keep_macs=0.9).run(net, context(family, tmp_path))


def test_scoring_leaves_the_network_as_it_was():
    net = network("hf_vit")
    before = replace(net).digest
    scored(net)
    assert replace(net).digest == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.module.modules())
