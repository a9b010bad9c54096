"""What the losses of the shelf promise, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.losses.attention import Attention, scores
from edgetl.losses.dist import Correlation, Dist
from edgetl.losses.dkd import Decoupled, Dkd, decoupled
from edgetl.losses.hidden import Hidden
from edgetl.losses.logits import Divergence
from edgetl.losses.mi_alpha import bound
from edgetl.losses.ps_kd import PreviousEpoch, PsKd
from edgetl.losses.relations import Relation, related
from edgetl.recipe.schema import Schedule
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.lesson import Lesson

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int, count: int, classes: int) -> dict[str, torch.Tensor]:
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, count))
    return {"labels": labels, "index": torch.arange(count)}


@given(SEEDS, st.integers(1, 5), st.integers(2, 6))
def test_dkd_with_the_teachers_own_weight_is_the_ordinary_divergence(seed, count, classes):
    student, teacher = drawn(seed, 2, count, classes)
    one = batch(seed, count, classes)
    whole = 0.0
    for i in range(count):  # the weight differs by sample
        own = {"labels": one["labels"][i : i + 1]}
        target, other = decoupled(student[i : i + 1], teacher[i : i + 1], own)
        rest = 1 - teacher[i].softmax(-1)[one["labels"][i]]
        whole += float(target + rest * other)
    usual, _ = Divergence(teacher, 1.0)(student, {}, one, 0.0)
    assert whole == pytest.approx(float(usual), rel=1e-9, abs=1e-12)


def test_dkd_grows_over_the_first_epochs():
    student, teacher = drawn(0, 2, 4, 3)
    loss = Decoupled(teacher, Dkd(warmup=4), epochs=8)
    first, fourth, last = (float(loss(student, {}, batch(0, 4, 3), p)[0]) for p in (0.0, 3 / 8, 7 / 8))
    assert (first / last, fourth / last) == (pytest.approx(0.25), pytest.approx(1.0))


@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_standardised_answers_are_blind_to_scale_and_shift(seed, scale, shift):
    student, teacher = drawn(seed, 2, 4, 5)
    loss = Divergence(teacher, 2.0, standardised=True)
    plain, _ = loss(student, {}, batch(seed, 4, 5), 0.0)
    moved, _ = loss(scale * student + shift, {}, batch(seed, 4, 5), 0.0)
    assert float(moved) == pytest.approx(float(plain), rel=1e-4, abs=1e-6)


def test_dist_is_nothing_for_equal_answers_and_matches_pearson():
    student, teacher = drawn(3, 2, 6, 4)
    one = batch(3, 6, 4)
    same, _ = Correlation(teacher, Dist())(teacher, {}, one, 0.0)
    assert abs(float(same)) < 1e-12
    found, _ = Correlation(teacher, Dist(temperature=2.0, gamma=0.0))(student, {}, one, 0.0)
    p, q = ((x / 2).softmax(-1).numpy() for x in (teacher, student))
    expected = 4 * sum(1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True))
    assert float(found) == pytest.approx(expected)


class TestPreviousEpoch:
    labels = torch.tensor([0, 1, 2, 1])

    def step(self, loss, seed, rows, progress):
        one = {"labels": self.labels[rows], "index": torch.tensor(rows)}
        logits = drawn(seed, len(rows), 3).requires_grad_()
        total, _ = loss(logits, {}, one, progress)
        total.backward()
        return total, logits

    def test_first_epoch_is_the_cross_entropy(self):
        loss = PreviousEpoch(self.labels, 3, 0.8, epochs=2)
        total, logits = self.step(loss, 0, [0, 2, 3], 0.0)
        plain = functional.cross_entropy(logits.detach(), self.labels[[0, 2, 3]], reduction="sum")
        assert float(total.detach()) == pytest.approx(float(plain), rel=1e-6)

    def test_remembers_the_rows_it_saw_and_reads_before_it_writes(self):
        loss = PreviousEpoch(self.labels, 3, 0.8, epochs=2).double()
        _, logits = self.step(loss, 0, [2, 0], 0.0)
        torch.testing.assert_close(loss.table[[2, 0]], logits.detach().softmax(-1))
        torch.testing.assert_close(loss.table[[1, 3]], functional.one_hot(self.labels[[1, 3]], 3).double())
        before = loss.table[2].clone()
        total, again = self.step(loss, 1, [2], 0.5)
        target = 0.2 * functional.one_hot(self.labels[2], 3) + 0.8 * before
        assert float(total.detach()) == pytest.approx(float(-(target * again.detach().log_softmax(-1)).sum()))

    def test_gradient_of_the_true_class_shrinks_where_it_was_known(self):
        loss = PreviousEpoch(self.labels, 3, 0.6, epochs=1).double()
        self.step(loss, 0, [1], 0.0)
        known = float(loss.table[1, self.labels[1]])
        _, logits = self.step(loss, 5, [1], 0.9)
        p = float(logits.detach().softmax(-1)[0, self.labels[1]])
        assert float(logits.grad[0, self.labels[1]]) == pytest.approx((p - 1) * (1 - 0.6 * (1 - known) / (1 - p)))

    def test_evaluation_remembers_nothing(self):
        loss = PreviousEpoch(self.labels, 3, 0.6, epochs=1).eval()
        before = loss.table.clone()
        self.step(loss, 0, [0, 1], 0.0)
        assert torch.equal(loss.table, before)


@given(SEEDS, st.integers(2, 8), st.floats(0.05, 1.0))
def test_the_bound_is_infonce_at_one_and_never_above_the_log_of_the_batch(seed, count, alpha):
    critic = 5 * drawn(seed, count, count)
    nce = bound(critic, 1.0, torch.zeros(()))
    expected = (critic.diagonal() - critic.logsumexp(1)).mean() + math.log(count)
    assert float(nce) == pytest.approx(float(expected), abs=1e-9)
    assert float(nce) <= math.log(count) + 1e-9
    assert math.isfinite(float(bound(critic, alpha, torch.zeros(()))))


def test_relations_leave_padding_out():
    x = drawn(0, 2, 5, 8)
    share = torch.tensor([[0.2] * 5, [1 / 3] * 3 + [0.0] * 2])
    whole = related(x, share, 2)
    cut = related(x[1:, :3], torch.full((1, 3), 1 / 3), 2)
    torch.testing.assert_close(whole[1:, :, :3, :3], cut)


def test_scores_are_those_of_attention():
    q, k, v = drawn(0, 3, 2, 5, 8)
    weights = scores(q, k, 2).softmax(-1)
    heads = [x.reshape(2, 5, 2, 4).transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(weights @ heads[2], functional.scaled_dot_product_attention(*heads))


@pytest.mark.parametrize("objective", [Hidden(), Attention()])
def test_a_network_has_nothing_to_learn_from_its_twin(objective, network, context, tiny):
    net = network(0)
    loss, _ = Lesson(net, terms([objective], Course(net, network(0), context(), 1)))(
        tiny.batch(tiny.rows("train")[:4]), 0.0
    )
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("objective", [Hidden(layers={2: 0}), Attention(layers={0: 5}), Relation(heads=7)])
def test_what_cannot_be_compared_is_told(objective, network, context):
    with pytest.raises(BadInput) as told:
        terms([objective], Course(network(0), network(1), context(), 1))
    assert told.value.fix


def test_a_killed_training_with_its_own_earlier_answers_ends_with_the_same_bytes(
    network, tiny, context, tmp_path, killed
):
    schedule = Schedule(epochs=3, lr=2e-3, batch=16)
    objectives = [PsKd(), Hidden()]

    def trained(name: str):
        net = network(0)
        learnt = terms(objectives, Course(net, network(1), context(name), schedule.epochs))
        return net, fit(net, tiny, learnt, schedule, 5, tmp_path / name)

    expected, logs = trained("whole")
    with killed():
        trained("parts")
    resumed, again = trained("parts")
    assert again == logs
    assert resumed.digest == expected.digest
