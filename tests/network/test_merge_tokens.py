"""The edit that merges tokens: replayed, refused, counted, trained and exported."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgetl.errors import Refused
from edgetl.network import cost
from edgetl.network.edits import MergeTokens, from_json, to_json
from edgetl.network.network import Network, check_plain, create, load, save
from edgetl.network.to_onnx import node_costs, to_onnx

SIZES = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 3}
D, F, WIDTH, PATCHES = 16, 6, 4, 16


def network(kind: str = "vit") -> Network:
    """Return a network whose weights are large enough that every token matters."""
    net = create("hf_vit", {**SIZES, "intermediate_size": F, "model_type": kind}, ["a", "b"], seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net


@pytest.fixture(scope="module")
def net() -> Network:
    return network()


def cuts(net: Network) -> list:
    """Return edits of every kind, on blocks that merge and on others."""
    groups = {g.name: g for g in net.family.units(net.module)}
    kept = {"layers.0.heads": [0, 2, 3], "layers.1.heads": [], "layers.1.neurons": [], "layers.2.neurons": [1, 4]}
    return [MergeTokens(0, 8), MergeTokens(1, 3), *(groups[name].keep(units) for name, units in kept.items())]


def test_the_order_of_edits_decides_nothing(net):
    inputs = net.family.example(net.config, 3)
    first, *others = itertools.islice(itertools.permutations(cuts(net)), 0, 720, 71)
    expected = net.edit(first)
    for edits in others:
        again = net.edit(edits)
        assert torch.equal(again.logits(inputs), expected.logits(inputs))
        assert [type(m) for m in again.module.modules()] == [type(m) for m in expected.module.modules()]


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_merging_network_is_plain_and_comes_back_from_its_folder(kind, tmp_path):
    net = network(kind)
    merging = net.edit(cuts(net))
    save(merging, tmp_path / "merging")
    check_plain(merging, tmp_path / "merging")
    again, inputs = load(tmp_path / "merging"), net.family.example(net.config, 2)
    assert again.digest == merging.digest != net.digest
    assert torch.equal(again.logits(inputs), merging.logits(inputs))
    assert from_json(to_json(merging.edits)) == merging.edits


def test_every_weight_of_a_merging_network_learns(net):
    merging = net.edit([MergeTokens(0, 5), MergeTokens(1, 4)])
    merging.module.train()
    merging.logits(net.family.example(net.config, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in merging.module.parameters())


@pytest.mark.parametrize(
    "edits",
    [
        [MergeTokens(3, 1)],
        [MergeTokens(-1, 1)],
        [MergeTokens(0, 0)],
        [MergeTokens(0, 9)],
        [MergeTokens(0, 1), MergeTokens(0, 1)],
        [MergeTokens(0, 8), MergeTokens(1, 5)],
        [MergeTokens(1, 8), MergeTokens(0, 1)],
    ],
)
def test_a_merge_without_tokens_for_it_is_refused(net, edits):
    with pytest.raises(Refused) as caught:
        net.edit(edits)
    assert caught.value.code == 5


def test_a_family_without_merging_blocks_refuses():
    text = create("hf_bert", {}, ["a", "b"], seed=0)
    with pytest.raises(Refused, match="merges no tokens"):
        text.edit([MergeTokens(0, 1)])


MERGE = {"edit": "merge_tokens", "layer": 0, "r": 1}


@pytest.mark.parametrize(
    "wrong", [{"layer": -1}, {"layer": True}, {"layer": 0.0}, {"r": 0}, {"r": "1"}, {"r": None}, {"more": 1}]
)
def test_a_forged_merge_is_refused(wrong):
    assert from_json([MERGE]) == (MergeTokens(0, 1),)
    with pytest.raises(Refused) as caught:
        from_json([{**MERGE, **wrong}])
    assert caught.value.code == 5


def heard(net: Network) -> tuple[list[int], list[int]]:
    """Return how many tokens the attention and the feed-forward network of every block really read."""
    found: tuple[list[int], list[int]] = ([], [])
    handles = []
    for (i, path), block in itertools.product(enumerate(("attn.q", "ffn.up")), net.family.stages(net.module)):
        layer = net.at(f"{block}.{path}")
        handles.append(layer.register_forward_pre_hook(lambda _m, args, i=i: found[i].append(args[0].shape[1])))
    net.logits(net.family.example(net.config, 1))
    for handle in handles:
        handle.remove()
    return found


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(0, 8)] * 3))
def test_what_is_counted_is_what_runs(net, merged):
    left = [PATCHES]
    for r in merged:
        assume(2 * r <= left[-1])
        left.append(left[-1] - r)
    merging = net.edit([MergeTokens(layer, r) for layer, r in enumerate(merged) if r])
    assert merging.family.tokens(merging.module) == tuple(left)
    reads, feeds = heard(merging)
    assert reads == [n + 1 for n in left[:-1]]
    assert feeds == [n + 1 for n in left[1:]]
    expected = PATCHES * D * 4 + D * 2
    for n, f, r in zip(reads, feeds, merged, strict=True):
        one, other = (n - 1 + 1) // 2, (n - 1) // 2
        matching = one * other * WIDTH + other * r * (D + 1) if r else 0
        expected += 4 * n * D * D + 2 * n * n * D + matching + 2 * f * D * F
    assert cost.macs(merging) == expected


def test_a_unit_of_a_merging_block_saves_its_price_down_to_nothing(net):
    merging = net.edit([MergeTokens(0, 5), MergeTokens(2, 4)])
    prices = cost.prices(merging)
    for group in merging.family.units(merging.module):
        for kept in ([], [1]):
            saved = cost.macs(merging) - cost.macs(merging.edit([group.keep(kept)]))
            assert saved == (group.count - len(kept)) * prices[group.name]


@pytest.mark.parametrize("kind", [pytest.param("vit", marks=pytest.mark.slow), "deit"])
def test_the_exported_file_answers_alike_for_every_batch_and_counts_alike(kind, tmp_path):
    net = network(kind)
    merging = net.edit(cuts(net))
    to_onnx(merging, tmp_path / "base.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "base.onnx")
    for batch in (1, 2, 7, 32):
        inputs = net.family.example(net.config, batch)
        found = session.run(None, {"pixel_values": inputs["pixel_values"].numpy()})[0]
        np.testing.assert_allclose(found, merging.logits(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert sum(n["macs"] for n in node_costs(tmp_path / "base.onnx", {"batch": 1})) == cost.macs(merging)
