"""Sixteen properties of layered self-distillation and of its lineage, each a test here or in the file named.

 1 inference identity        test_lsskd: test_the_network_answers_as_if_there_were_no_heads
 2 export                    test_the_file_holds_the_backbone_alone
 3 zero loss                 TestDivergence
 4 alpha's schedule          TestShare
 5 targets are distributions test_lsskd: test_soft_targets_are_distributions; test_losses: TestPreviousEpoch
 6 joint index               test_class_and_view_are_read_off_the_joint_label; test_lsskd: TestViews
 7 table                     test_lsskd: TestMemory; test_the_order_of_the_rows_does_not_mix_them
 8 stopped gradients         test_lsskd: test_what_teaches_is_not_taught; test_turned_views_do_not_teach_the_classifier
 9 normalisation             test_lsskd: test_repeating_a_batch_doubles_the_sums; test_one_view_is_ps_kd_with_byot
10 initial values            test_lsskd: test_zero_classifiers_start_at_the_logarithm_of_the_classes
11 SLA's identities          TestAggregation; test_lsskd: test_aggregated_reads_each_view_off_itself
12 gradient of PS-KD         test_losses: test_gradient_of_the_true_class_shrinks_where_it_was_known
13 DKD, DIST, standardised   test_losses: the first four tests
14 shapes of the heads       test_lsskd: TestHeads
15 ECE                       tests/test_evaluate.py: TestCalibration
16 other transformations     test_lsskd: TestViews
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgetl.losses._heads import heads, hints, stages_of
from edgetl.losses.byot import Byot, OwnTeacher
from edgetl.losses.labels import CrossEntropy
from edgetl.losses.logits import softened
from edgetl.losses.lsskd import Lsskd, aggregated
from edgetl.losses.ps_kd import PreviousEpoch
from edgetl.methods.finetune import Finetune
from edgetl.methods.lsskd import LayeredTraining
from edgetl.network.network import create
from edgetl.network.to_onnx import to_onnx
from edgetl.recipe.schema import Schedule
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.lesson import Lesson, Term
from edgetl.train.views import expanded

RESNET = {"depth": 14, "channels": 4, "num_channels": 1, "image_size": 8}
LABELS = ("left", "middle", "right")
QUICK = Schedule(epochs=3, lr=2e-3, batch=32)


def resnet(seed: int):
    return create("resnet_cifar", RESNET, LABELS, seed)


@pytest.fixture
def layered(context):
    def make(net, epochs=4, **options):
        (term,) = terms([Lsskd(**{"mode": "paper", **options})], Course(net, None, context("lsskd"), epochs))
        return term.loss

    return make


def test_the_file_holds_the_backbone_alone(context, tmp_path):
    step = LayeredTraining(use="lsskd", losses=[{"use": "lsskd", "heads": "light"}], schedule=QUICK)
    made = step.run(resnet(0), context())
    plain = Finetune(use="finetune", schedule=QUICK).run(resnet(0), context("plain"))
    files = []
    for name, net in (("made", made), ("plain", plain)):
        to_onnx(net, tmp_path / f"{name}.onnx")
        files.append(onnx.load(tmp_path / f"{name}.onnx").graph)
    ours, theirs = files
    assert [o.name for o in ours.output] == ["logits"]
    assert ours.output[0].type.tensor_type.shape.dim[1].dim_value == len(LABELS)
    assert sorted((i.name, tuple(i.dims)) for i in ours.initializer) == sorted(
        (i.name, tuple(i.dims)) for i in theirs.initializer
    )
    assert [n.op_type for n in ours.node] == [n.op_type for n in theirs.node]


def test_a_resnet_20_has_as_many_parameters_as_published():
    net = create("resnet_cifar", {"depth": 20, "channels": 16}, tuple(map(str, range(100))), 0)
    assert sum(p.numel() for p in net.module.parameters()) == 275_572


class TestDivergence:
    @settings(deadline=None)
    @given(st.integers(0, 999), st.floats(1, 8))
    def test_is_zero_for_equal_answers_and_never_negative(self, seed, temperature):
        a, b = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert abs(float(softened(a, a, temperature))) < 1e-6
        assert float(softened(a, b, temperature)) >= 0

    def test_its_gradient_keeps_its_order_over_temperatures(self):
        a, b = torch.randn(2, 64, 10, generator=torch.Generator().manual_seed(0))
        sizes = []
        for temperature in (1.0, 2.0, 4.0, 8.0):
            student = b.clone().requires_grad_()
            softened(a, student, temperature).backward()
            sizes.append(float(student.grad.norm()))
        assert max(sizes) / min(sizes) < 4

    def test_hints_of_equal_maps_are_nothing(self):
        last = torch.randn(3, 4, 5, 5)
        assert float(hints([last.clone(), last.clone()], last, {})) == 0
        assert float(hints([last + 1], last, {})) == pytest.approx(3, rel=1e-5)  # one per sample


class TestShare:
    @pytest.mark.parametrize("epoch", [2, 3, 5])
    def test_grows_by_equal_steps_to_its_last_value(self, epoch, tiny, layered):
        """Targets of another epoch, of known answers: the share of those is read off the loss."""
        net, loss = resnet(0), layered(resnet(0), epochs=5, alpha=0.6).eval()
        net.module.eval()
        batch = tiny.batch(tiny.rows("train")[:4])
        loss.memory.upright.fill_(1 / 3)
        loss.memory.heads.fill_(1 / 12)
        lesson = Lesson(net, [Term(loss)]).eval()
        first, now = (lesson(batch, (e - 1) / 5)[1] for e in (1, epoch))
        logits = net.logits(batch)
        soft = float(-logits.detach().log_softmax(-1).mean(-1).sum())
        share = (float(now["labels"]) - float(first["labels"])) / (soft - float(first["labels"]))
        assert share == pytest.approx(0.6 * epoch / 5, rel=1e-3)

    def test_without_earlier_answers_every_target_of_the_first_epoch_is_hard(self, tiny, layered):
        net, loss = resnet(0), layered(resnet(0), alpha=0.8)
        net.module.eval()
        wide = expanded(tiny.batch(tiny.rows("train")[:4]), 4)
        lesson = Lesson(net, [Term(loss)]).eval()
        hard = lesson(tiny.batch(tiny.rows("train")[:4]), 0.0)[1]["joint_labels"]
        logits = []
        for head in loss.heads:
            head.register_forward_hook(lambda _, __, out: logits.append(out[1]))
        lesson(tiny.batch(tiny.rows("train")[:4]), 0.0)
        truth = 4 * wide["labels"] + wide["view"]
        expected = sum(functional.cross_entropy(one, truth, reduction="sum") for one in logits) / 4
        torch.testing.assert_close(hard, expected.detach())

    def test_a_share_of_nothing_is_a_training_on_hard_labels(self, tiny, tmp_path):
        soft, hard = resnet(0), resnet(0)
        table = PreviousEpoch(torch.from_numpy(tiny.prepared.y), 3, 0.0, QUICK.epochs)
        fit(soft, tiny, [Term(table)], QUICK, 0, tmp_path / "a")
        fit(hard, tiny, [Term(CrossEntropy())], QUICK, 0, tmp_path / "b")
        for name, tensor in hard.state().items():
            torch.testing.assert_close(soft.state()[name], tensor, rtol=1e-4, atol=1e-5)

    def test_and_so_it_is_for_the_heads_whoever_would_remember(self, tiny, layered, tmp_path):
        ends = []
        for teacher in ("table", "snapshot"):
            net = resnet(0)
            loss = layered(net, epochs=3, alpha=0.0, teacher=teacher, heads="light")
            fit(net, tiny, [Term(loss)], QUICK, 0, tmp_path / teacher)
            ends.append(net.state())
        for name, tensor in ends[0].items():
            torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_class_and_view_are_read_off_the_joint_label(classes, views):
    joint = [views * y + j for y in range(classes) for j in range(views)]
    assert sorted(joint) == list(range(classes * views))
    assert [(k // views, k % views) for k in joint] == [(y, j) for y in range(classes) for j in range(views)]


def test_the_order_of_the_rows_does_not_mix_them(tiny, layered):
    rows = tiny.rows("train")[:6]
    tables = []
    for one in (rows, rows[::-1].copy(), np.random.default_rng(0).permutation(rows)):
        net = resnet(0)
        net.module.eval()
        loss = layered(net)
        loss.heads.eval()
        Lesson(net, [Term(loss)])(tiny.batch(one), 0.0)
        tables.append((loss.memory.upright.clone(), loss.memory.heads.clone()))
    for upright, joint in tables[1:]:
        torch.testing.assert_close(upright, tables[0][0])
        torch.testing.assert_close(joint, tables[0][1])


def test_turned_views_do_not_teach_the_classifier(tiny, layered, monkeypatch):
    net = resnet(0)
    net.module.eval()
    loss = layered(net).eval()
    wide = expanded(tiny.batch(tiny.rows("train")[:5]), 4)
    logits = net.logits(wide)
    changed = torch.where((wide["view"] > 0)[:, None], logits + 5 * torch.randn_like(logits), logits)
    maps = torch.zeros(20, 16, 2, 2)
    monkeypatch.setattr(type(loss.heads[0]), "forward", lambda *_: (maps, torch.zeros(20, 12)))
    one, two = (loss(x, {loss.taps[-1]: maps}, wide, 0.0)[1]["labels"] for x in (logits, changed))
    assert torch.equal(one, two)


def test_one_view_is_ps_kd_with_byot(tiny, layered):
    """Three terms agree for heads of the same weights; BYOT's teacher is the classifier, LSSKD's the deepest head."""
    net = resnet(0)
    net.module.eval()
    batch = tiny.batch(tiny.rows("train")[:6])
    loss = layered(net, views=1, epochs=4, alpha=0.8, hint=0.05).eval()
    table = PreviousEpoch(torch.from_numpy(tiny.prepared.y), 3, 0.8, 4).eval()
    before = torch.rand(len(table.table), 3).softmax(-1)
    loss.memory.upright.copy_(before)
    loss.memory.heads.fill_(1 / 3)
    table.table.copy_(before)
    lesson = Lesson(net, [Term(loss)]).eval()
    _, ours = lesson(batch, 0.5)
    _, theirs = Lesson(net, [Term(table)]).eval()(batch, 0.5)
    torch.testing.assert_close(ours["labels"], theirs["ps_kd"])
    byot = OwnTeacher(Byot(hint=0.05, alpha=0.0), list(loss.heads[:-1]), loss.taps[-1]).eval()
    _, said = Lesson(net, [Term(byot)]).eval()(batch, 0.5)
    torch.testing.assert_close(ours["hint"], said["hint"])


class TestAggregation:
    @settings(deadline=None)
    @given(st.integers(0, 99), st.sampled_from([2, 4]))
    def test_classes_add_up_over_the_views(self, seed, views):
        joint = torch.randn(6 * views, 3 * views, generator=torch.Generator().manual_seed(seed)).softmax(-1)
        assert torch.allclose(joint.view(-1, 3, views).sum(-1).sum(-1), torch.ones(6 * views))

    def test_all_views_together_know_no_less_than_one(self, tiny, layered, tmp_path):
        net = resnet(0)
        loss = layered(net, epochs=6, heads="light")
        fit(net, tiny, [Term(loss)], Schedule(epochs=6, lr=5e-3, batch=32), 0, tmp_path)
        rows = tiny.rows("test")
        batch = tiny.batch(rows)
        seen = []
        loss.heads[-1].register_forward_hook(lambda _, __, out: seen.append(out[1].detach()))
        Lesson(net, [Term(loss)]).eval()(batch, 0.0)
        single = seen[0][::4].view(len(rows), 3, 4)[..., 0].argmax(-1)
        every = aggregated(seen[0], 4).argmax(-1)
        right = [(answer == batch["labels"]).float().mean() for answer in (every, single)]
        assert right[0] >= right[1] - 0.05


class TestByot:
    def made(self, net, context, **options):
        (term,) = terms([Byot(**options)], Course(net, None, context("byot"), 2))
        return term.loss

    def test_is_the_papers_sum(self, tiny, context):
        net = resnet(0)
        loss = self.made(net, context, alpha=0.3, temperature=3.0, hint=0.2)
        net.module.eval()
        loss.eval()
        batch = tiny.batch(tiny.rows("train")[:6])
        seen = []
        for head in loss.heads:
            head.register_forward_hook(lambda _, __, out: seen.append(out))
        total, logs = Lesson(net, [Term(loss)]).eval()(batch, 0.0)
        last = []
        net.at(loss.taps[-1]).register_forward_hook(lambda _, __, out: last.append(out))
        p = net.logits(batch)
        expected = functional.cross_entropy(p, batch["labels"], reduction="sum")
        for features, q in seen:
            hard = functional.cross_entropy(q, batch["labels"], reduction="sum")
            soft = 9 * functional.kl_div(
                (q / 3).log_softmax(-1), (p / 3).log_softmax(-1), reduction="sum", log_target=True
            )
            far = (features - last[0]).square().mean((1, 2, 3)).sum()
            expected = expected + 0.7 * hard + 0.3 * soft + 0.2 * far
        torch.testing.assert_close(total, expected)
        assert len(seen) == 2  # behind every stage but the last
        assert set(logs) == {"labels", "shallow_labels", "deep_to_shallow", "hint"}

    def test_the_last_classifier_teaches_and_is_not_taught(self, tiny, context):
        net = resnet(0)
        loss = self.made(net, context, alpha=1.0, hint=0.0)
        logits = torch.randn(6, 3, requires_grad=True)
        batch = tiny.batch(tiny.rows("train")[:6])
        features = {place: torch.zeros(1) for place in loss.taps}
        answer = torch.randn(6, 3, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(loss.heads[0]), "forward", lambda *_: (torch.zeros(6, 1, 1), answer))
            features[loss.taps[-1]] = torch.zeros(6, 1, 1)
            total, _ = loss(logits, features, batch, 0.0)
        total.backward()
        plain = (logits.softmax(-1) - functional.one_hot(batch["labels"], 3)).detach()
        torch.testing.assert_close(logits.grad, plain)  # of its own cross entropy alone
        assert answer.grad.abs().sum() > 0

    def test_its_heads_are_gone(self, tiny, context, tmp_path):
        net, keys = resnet(0), set(resnet(0).state())
        fit(net, tiny, [Term(self.made(net, context))], QUICK, 0, tmp_path)
        assert set(net.state()) == keys
        assert len(heads(net, stages_of(net, 3), 3, "full", 0)) == 3
