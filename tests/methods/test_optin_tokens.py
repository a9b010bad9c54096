"""Tokens as units: their scores against whole forwards, their schedule, and the budget with them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.methods.lora import Lora
from edgetl.methods.optin import Optin, tokens
from edgetl.methods.optin.sampling import Sampling, recorded
from edgetl.network import cost
from edgetl.network.edits import MergeTokens
from edgetl.network.network import check_plain, create, save
from edgetl.recipe.read import check
from edgetl.recipe.schema import Schedule

SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 12,
}
PATCHES, K = 16, 10


@pytest.fixture
def net():
    """A network whose weights are large enough that every unit matters."""
    net = create("hf_vit", SIZES, ("left", "middle", "right"), seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net


def forward(net, batch, absent=None):
    """Return the outputs of all blocks and log-probabilities of one forward, a (block, place) absent behind a block."""
    heard = []

    def hear(stage, out):
        if absent is not None and stage == absent[0]:
            out = torch.cat([out[:, : absent[1]], out[:, absent[1] + 1 :]], dim=1)
        heard.append(out)
        return out

    stages = enumerate(net.family.stages(net.module))
    hooks = [net.at(p).register_forward_hook(lambda _m, _i, out, z=z: hear(z, out)) for z, p in stages]
    logits = net.logits(batch)
    for hook in hooks:
        hook.remove()
    return heard, logits.double().log_softmax(-1)


def alike(hidden):
    """Return the mean over tokens of the (K, K) cosines between samples."""
    unit = functional.normalize(hidden.double(), dim=-1)
    return torch.stack([unit[:, t] @ unit[:, t].T for t in range(unit.shape[1])]).mean(0)


@torch.no_grad()
@pytest.mark.parametrize("batch", [K, 4])
def test_scores_equal_those_of_whole_forwards_without_the_token(net, tiny, batch):
    with recorded(net, tiny, Sampling(K, 768, batch, seed=3)) as trajectory:
        found = tokens.score(trajectory, PATCHES)
    rows = np.random.default_rng(3).choice(tiny.rows("train"), K, False)
    dense, p = forward(net, tiny.batch(rows))
    assert found.manifold.shape == found.output.shape == (3, PATCHES)
    for stage in range(3):
        for token in range(PATCHES):
            without, q = forward(net, tiny.batch(rows), (stage, 1 + token))
            pairs = zip(dense[stage + 1 :], without[stage + 1 :], strict=True)
            manifold = sum(float((alike(a) - alike(b)).square().sum()) for a, b in pairs)
            # squares of small differences of fp32 values: their last digits differ from one processor to another
            assert found.manifold[stage, token] == pytest.approx(manifold, rel=1e-3, abs=1e-12)
            assert found.output[stage, token] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-9)
    assert not found.output[2].any()  # behind the last block only the class token is read
    assert found.output[:2].all()


scores = arrays.arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(0, 9))


@settings(max_examples=100, deadline=None)
@given(scores)
def test_every_step_of_a_schedule_can_run_and_leaves_fewer_tokens(values):
    depth, count = values.shape
    before = np.full(depth + 1, count)
    for step in tokens.schedules(values):
        left = count - np.concatenate([[0], np.cumsum(step)])
        assert all(r >= 0 and 2 * r <= n for r, n in zip(step, left, strict=False))
        assert (before - left).max() == 1  # at most one token less behind any block, and somewhere one
        assert (before >= left).all()
        before = left
    assert all(n - after == n // 2 for n, after in pairwise(before))


def test_the_least_important_tokens_leave_first_and_ties_in_order():
    values = np.array([[5.0, 6.0, 7.0, 8.0], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert list(tokens.schedules(values))[:4] == [(0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 2, 1)]


@settings(max_examples=4, deadline=None)
@given(st.floats(0, 0.5), st.integers(0, 9))
def test_the_fewest_tokens_merge_that_save_enough(saved, seed):
    net = create("hf_vit", SIZES, ("a", "b"), seed=0)
    values = np.random.default_rng(seed).uniform(size=(3, PATCHES))
    least = math.ceil(saved * cost.macs(net))

    def left(step):
        return cost.macs(net) - cost.macs(net.edit([MergeTokens(i, r) for i, r in enumerate(step) if r]))

    steps = [(0, 0, 0), *tokens.schedules(values)]
    enough = [step for step in steps if left(step) >= least]
    merges = tokens.merges(net, values, least)
    found = tuple(sum(m.r for m in merges if m.layer == i) for i in range(3))
    assert found == (enough[0] if enough else steps[-1])


@pytest.mark.parametrize(("keep", "share"), [(0.8, 0.2), (0.6, 0.5), (0.5, 0.8), (0.4, 1.0), (0.3, 0.8)])
def test_tokens_take_their_share_and_the_budget_holds(net, context, keep, share):
    cut = Optin(score="paper", keep_macs=keep, token_share=share, samples=K).run(net.copy(), context())
    dense, merges = cost.macs(net), [e for e in cut.edits if isinstance(e, MergeTokens)]
    assert cut.edits[-len(merges) :] == tuple(merges)
    assert cost.macs(cut) <= keep * dense
    most = tokens.merges(net, np.zeros((3, PATCHES)), dense)
    saved = dense - cost.macs(net.edit(merges))
    assert saved >= min(share * (1 - keep) * dense, dense - cost.macs(net.edit(most)))
    assert cost.macs(cut) > keep * dense - max(cost.prices(cut).values(), default=0) or share == 1.0


def test_without_a_share_no_token_merges(net, context):
    cut = Optin(score="paper", keep_macs=0.5, samples=K).run(net.copy(), context())
    assert not any(isinstance(edit, MergeTokens) for edit in cut.edits)


def test_tokens_whose_mean_is_read_do_not_merge(context):
    net = create("hf_vit", {**SIZES, "pooling": "mean"}, ("left", "middle", "right"), seed=0)
    with pytest.raises(BadInput, match="reads the mean of all patches"):
        Optin(keep_macs=0.6, token_share=0.5, samples=8).run(net, context())


def test_a_merging_network_trains_on_with_adapters(net, context, tmp_path):
    merging = net.edit([MergeTokens(0, 5)])
    trained = Lora(use="lora", rank=2, schedule=Schedule(epochs=1, lr=1e-2)).run(merging.copy(), context())
    save(trained, tmp_path / "trained")
    check_plain(trained, tmp_path / "trained")
    assert trained.edits == merging.edits
    assert not torch.equal(trained.state()["layers.0.attn.q.weight"], merging.state()["layers.0.attn.q.weight"])


def test_what_least_squares_fits_is_merged_after_it(net, context):
    step = Optin(
        score="paper", keep_macs=0.5, token_share=0.5, samples=K, compensate="least_squares", compensation_samples=20
    )
    cut = step.run(net.copy(), context())
    assert cost.macs(cut) <= 0.5 * cost.macs(net)
    tuned = {k: v for k, v in cut.state().items() if k.endswith(("o.weight", "down.weight"))}
    plain = Optin(score="paper", keep_macs=0.5, token_share=0.5, samples=K).run(net.copy(), context("plain")).state()
    assert any(not torch.equal(v, plain[k]) for k, v in tuned.items())


def test_a_merging_network_is_not_cut_again(net, context):
    with pytest.raises(BadInput, match="merges tokens already"):
        Optin(score="paper", keep_macs=0.5).run(net.edit([MergeTokens(0, 2)]), context())


RECIPE = {
    "name": "r",
    "model": {"family": "hf_vit", "source": {"image_size": 8}},
    "data": {"use": "digits"},
    "steps": [{"use": "finetune"}, {"use": "optin", "keep_macs": [0.8, 0.6], "token_share": 0.8}],
}


def test_a_recipe_that_merges_tokens_where_there_are_none_is_refused_before_anything_runs():
    assert check(RECIPE, "r.yaml")[1] == []
    recipe, errors = check({**RECIPE, "model": {"family": "hf_bert", "source": {}}}, "r.yaml")
    assert recipe is None
    (error,) = [e for e in errors if "merge no tokens" in e.problem]  # once, not for every branch
    assert error.code == 2
    assert "steps[1] (optin)" in error.problem
    assert "hf_vit" in error.fix


def test_tokens_share_a_budget_of_macs_only():
    steps = [RECIPE["steps"][0], {"use": "optin", "keep_params": 0.5, "token_share": 0.8}]
    _, errors = check({**RECIPE, "steps": steps}, "r.yaml")
    assert any("token_share" in e.problem and "keep_macs" in e.problem for e in errors)
