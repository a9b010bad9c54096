"""Several teachers: who is like the target, what they are asked, how they are weighted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import pearsonr, rankdata
from torch.nn import functional

from edgetl.losses._similarity import features_of, parc, probed
from edgetl.losses.teachers import Source, Teachers, weights_of
from edgetl.methods.distill import Distill
from edgetl.methods.finetune import Finetune
from edgetl.network.network import create, save
from edgetl.recipe.schema import Schedule
from edgetl.train.course import Course

LONG = Schedule(epochs=8, lr=3e-3, batch=16)


@settings(deadline=None)
@given(st.integers(0, 999))
def test_parc_is_the_rank_correlation_of_what_is_unlike(seed):
    draw = np.random.default_rng(seed)
    features, y = draw.normal(size=(9, 5)), draw.permutation(np.arange(9) % 3)
    pairs = [(a, b) for a in range(9) for b in range(a + 1, 9)]
    far = [1 - pearsonr(features[a], features[b]).statistic for a, b in pairs]
    apart = [1 - pearsonr(np.eye(3)[y[a]], np.eye(3)[y[b]]).statistic for a, b in pairs]
    expected = pearsonr(rankdata(np.round(far, 10)), rankdata(np.round(apart, 10))).statistic
    assert parc(features, y, 3) == pytest.approx(expected, abs=1e-9)


def test_features_that_tell_the_classes_apart_are_more_alike_and_constant_ones_are_not():
    draw = np.random.default_rng(0)
    y = np.arange(60) % 3
    noise = draw.normal(size=(60, 8))
    clear = noise + 6 * np.eye(3, 8)[y]
    assert parc(clear, y, 3) > 0.6
    assert abs(parc(noise, y, 3)) < 0.2
    assert parc(np.ones((60, 8)), y, 3) == 0.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5), st.floats(0, 8))
def test_weights_are_shares_that_grow_with_similarity(similarity, power):
    weights = weights_of(similarity, "weighted", power)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    order = np.argsort(similarity)
    assert all(weights[a] <= weights[b] + 1e-12 for a, b in pairwise(order))
    assert weights_of(similarity, "nearest", power)[int(np.argmax(similarity))] == 1


def test_what_the_classifier_sees_gives_its_answer(network, tiny):
    net, rows = network(0), tiny.rows("train")[:70]
    seen = torch.from_numpy(features_of(net, tiny, rows)).float()
    torch.testing.assert_close(net.at("head")(seen), net.logits(tiny.batch(rows)), rtol=1e-4, atol=1e-5)
    assert not any(m._forward_pre_hooks for m in net.module.modules())


def test_a_probe_answers_for_features_of_another_task(network, tiny):
    rows = tiny.rows("train")
    y = tiny.prepared.y[rows]
    said = probed(features_of(network(0), tiny, rows), y)
    assert np.exp(said).sum(1) == pytest.approx(np.ones(len(rows)))
    assert (said.argmax(1) == y).mean() > 0.9


@pytest.fixture
def blind(network):
    """A network that sees nothing: all its inputs are alike to it."""
    net = network(9)
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.zero_()
    return net


@pytest.fixture
def trained(network, context):
    return Finetune(use="finetune", schedule=LONG).run(network(3), context("teacher"))


def made(objective, net, ctx):
    return objective.loss(Course(net, None, ctx, 2))


def test_the_nearest_alone_teaches_and_the_record_says_why(network, trained, blind, tiny, context):
    past = {"good": trained, "bad": blind}
    ctx = context("s", past=past)
    loss = made(Teachers(teachers=(Source(step="bad"), Source(step="good")), choose="nearest"), network(0), ctx)
    told = loss.facts["teachers"]
    assert [one["teacher"] for one in told] == ["bad", "good"]
    assert [one["weight"] for one in told] == [0.0, 1.0]
    assert told[1]["similarity"] > told[0]["similarity"]
    batch = tiny.batch(tiny.rows("train")[:6])
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    p = (trained.logits(batch) / 2).softmax(-1)
    expected = 4 * (p * (p.log() - functional.log_softmax(logits / 2, -1))).sum()
    torch.testing.assert_close(loss(logits, {}, batch, 0.0)[0], expected.detach(), rtol=1e-4, atol=1e-4)


def test_all_teach_by_their_weights(network, trained, tiny, context):
    past = {"good": trained, "bad": network(9)}
    batch, logits = tiny.batch(tiny.rows("train")[:6]), torch.randn(6, 3)
    alone = [
        float(made(Teachers(teachers=(Source(step=n),)), network(0), context(n, past=past))(logits, {}, batch, 0.0)[0])
        for n in ("good", "bad")
    ]
    both = Teachers(teachers=(Source(step="good"), Source(step="bad")), power=1.0)
    loss = made(both, network(0), context("both", past=past))
    weights = [one["weight"] for one in loss.facts["teachers"]]
    expected = sum(w * a for w, a in zip(weights, alone, strict=True))
    assert float(loss(logits, {}, batch, 0.0)[0]) == pytest.approx(expected, rel=1e-5)
    assert sum(weights) == pytest.approx(1)


def test_a_network_of_other_labels_from_elsewhere_teaches_through_a_probe(network, trained, tiny, context, tmp_path):
    other = create("hf_vit", trained.config, ("a", "b"), 1)
    other.module.load_state_dict(
        {k: v for k, v in trained.module.state_dict().items() if "classifier" not in k}, strict=False
    )
    save(other, tmp_path / "elsewhere")
    source = Source(family="hf_vit", source=str(tmp_path / "elsewhere"))
    step = Distill(use="distill", schedule=LONG, losses=[Teachers(teachers=(source,))])
    assert (source.family, source.source) in step.sources()
    net = step.run(network(0), context("s"))
    test = tiny.batch(tiny.rows("test"))
    assert float((net.logits(test).argmax(-1) == test["labels"]).float().mean()) > 0.9


def test_who_teaches_must_be_said():
    with pytest.raises(ValidationError, match="step: NAME"):
        Source(family="hf_vit")
    with pytest.raises(ValidationError, match="'teachers' learns from a teacher"):
        Finetune(use="finetune", losses=[{"use": "teachers"}])
    step = Finetune(use="finetune", losses=[{"use": "teachers", "teachers": [{"step": "a"}, {"step": "b"}]}])
    assert step.reads() == ("a", "b")
