from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.network import cost
from edgetl.network.network import create


def blocks(layers, tokens, width, neurons):
    """Return the MACs of all blocks by the formulas of OPTIN (arXiv 2403.17921)."""
    return layers * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * neurons)


def test_a_vit_costs_stem_blocks_and_head():
    net = create("hf_vit", {"image_size": 8, "patch_size": 2, "num_channels": 1}, [str(i) for i in range(10)], 0)
    tokens = 16 + 1
    assert cost.macs(net) == 16 * 64 * 4 + blocks(4, tokens, 64, 128) + 64 * 10
    assert cost.prices(net)["layers.0.heads"] == 4 * tokens * 64 * 16 + 2 * tokens**2 * 16
    assert cost.prices(net)["layers.3.neurons"] == 2 * tokens * 64


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 40))
def test_a_text_is_priced_by_its_length(tokens):
    net = create("hf_bert", {}, ["a", "b"], 0)
    assert cost.macs(net, tokens) == blocks(2, tokens, 64, 128) + 64 * 2


def test_the_published_price_ratio_of_a_bert_head():
    net = create("hf_bert", {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1}, ["a", "b"], 0)
    prices = cost.prices(net, 39)
    assert prices["layers.0.heads"] / prices["layers.0.neurons"] == pytest.approx(131.25, abs=0.01)


def test_a_cut_saves_its_price_down_to_nothing():
    net = create("hf_vit", {"num_hidden_layers": 1}, ["a", "b"], 0)
    prices = cost.prices(net)
    heads, neurons = net.family.units(net.module)
    cut = net.edit([heads.keep([]), neurons.keep([3])])
    saved = 4 * prices["layers.0.heads"] + 127 * prices["layers.0.neurons"]
    assert cost.macs(net) - cost.macs(cut) == saved
    assert list(cost.prices(cut)) == ["layers.0.neurons"]


def test_parameters_are_counted():
    net = create("hf_bert", {"num_hidden_layers": 1}, ["a", "b"], 0)
    embeddings = (1000 + 128 + 2 + 2) * 64
    block = 4 * (64 * 64 + 64) + 64 * 128 + 128 + 128 * 64 + 64 + 4 * 64
    assert cost.parameters(net) == embeddings + block + 64 * 2 + 2
