"""What a schedule may ask for besides length and speed: mixtures, an average of the weights, half precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from edgetl import plugins
from edgetl.errors import BadHost, BadInput, Diverged
from edgetl.losses.labels import CrossEntropy, Labels
from edgetl.losses.lsskd import Lsskd
from edgetl.losses.ps_kd import PreviousEpoch, PsKd
from edgetl.methods.distill import Distill
from edgetl.methods.finetune import Finetune
from edgetl.network.network import create
from edgetl.recipe.schema import Mix, Schedule
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.lesson import Lesson, Term
from edgetl.train.mixing import MIXED, Mixing, cross_entropy
from edgetl.train.precision import Stepper

QUICK = Schedule(epochs=3, lr=2e-3, batch=16)
RESNET = {"depth": 8, "channels": 4, "num_channels": 1, "image_size": 8}
LABELS = ("left", "middle", "right")


def resnet(seed: int):
    return create("resnet_cifar", RESNET, LABELS, seed)


def mixed(tiny, mix: Mix, seed: int = 0, count: int = 6):
    rows = tiny.rows("train")[:count]
    mixing = Mixing(mix, count, [seed])
    return mixing.mixed(tiny.batch(rows), tiny.batch(rows[mixing.partner])), mixing, rows


class TestMixtures:
    @settings(deadline=None)
    @given(st.integers(0, 500))
    def test_cutmix_keeps_the_share_of_places_it_says(self, seed):
        own = {"pixel_values": torch.zeros(3, 2, 9, 7), "labels": torch.zeros(3).long(), "index": torch.arange(3)}
        other = {"pixel_values": torch.ones(3, 2, 9, 7), "labels": torch.ones(3).long(), "index": torch.arange(3, 6)}
        batch = Mixing(Mix(op="cutmix", probability=1), 3, [seed]).mixed(own, other)
        assert batch["mixed"].unique().tolist() in ([0], [1], [0, 1])
        assert batch["mixed"].mean((1, 2, 3)).tolist() == pytest.approx((1 - batch["kept"]).tolist(), abs=1e-6)
        inside = batch["mixed"][0, 0].nonzero()
        if len(inside):  # one box
            size = inside.max(0).values - inside.min(0).values + 1
            assert int(size.prod()) == len(inside)
        assert torch.equal(batch["pixel_values"], own["pixel_values"])

    def test_mixup_is_the_weighted_mean_and_names_its_partner(self, tiny):
        batch, mixing, rows = mixed(tiny, Mix(op="mixup", probability=1))
        whole = tiny.batch(rows)["pixel_values"]
        expected = mixing.share * whole + (1 - mixing.share) * whole[mixing.partner]
        torch.testing.assert_close(batch["mixed"], expected)
        assert batch["kept"].tolist() == pytest.approx([mixing.share] * 6)
        assert batch["other_index"].tolist() == rows[mixing.partner].tolist()
        assert batch["other"].tolist() == tiny.prepared.y[rows[mixing.partner]].tolist()

    def test_windows_and_spectrograms_mix_and_texts_do_not(self):
        for shape in ((4, 3, 20), (4, 1, 8, 12)):
            part = {"input_values": torch.randn(shape), "labels": torch.zeros(4), "index": torch.arange(4)}
            other = {**part, "input_values": torch.full(shape, 9.0)}
            batch = Mixing(Mix(probability=1), 4, [3]).mixed(part, other)
            share = (batch["mixed"] == 9).float().mean((*range(1, len(shape)),))
            assert share.tolist() == pytest.approx((1 - batch["kept"]).tolist(), abs=1e-6)
        with pytest.raises(BadInput, match="texts") as told:
            Mixing(Mix(), 4, [3]).mixed({"input_ids": torch.ones(4, 3)}, {"input_ids": torch.ones(4, 3)})
        assert told.value.fix

    def test_a_share_of_the_batches_stays_whole(self):
        shares = [Mixing(Mix(probability=0.5), 2, [k]).share for k in range(300)]
        assert 0.4 < np.mean([share == 1 for share in shares]) < 0.6

    def test_labels_are_weighted_as_the_samples_are(self, tiny, network):
        batch, mixing, _ = mixed(tiny, Mix(op="mixup", probability=1))
        net = network(0)
        loss, _ = Lesson(net, [Term(CrossEntropy())])(batch, 0.0)
        logits = net.logits({"pixel_values": batch["mixed"]})
        own, other = (functional.cross_entropy(logits, batch[k], reduction="sum") for k in ("labels", "other"))
        torch.testing.assert_close(loss, mixing.share * own + (1 - mixing.share) * other)

    def test_earlier_answers_are_mixed_as_well_and_kept_of_whole_samples(self, tiny, network):
        batch, mixing, rows = mixed(tiny, Mix(op="mixup", probability=1))
        net = network(0)
        loss = PreviousEpoch(torch.from_numpy(tiny.prepared.y), 3, 0.8, epochs=1)
        loss.table.copy_(torch.rand(len(loss.table), 3).softmax(-1))
        old = loss.table.clone()
        total, _ = Lesson(net, [Term(loss)])(batch, 0.0)
        answers = net.logits({"pixel_values": batch["mixed"]})
        soft = mixing.share * old[rows] + (1 - mixing.share) * old[rows[mixing.partner]]
        expected = 0.2 * cross_entropy(answers, batch) - 0.8 * (soft * answers.log_softmax(-1)).sum()
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(loss.table[rows], net.logits(tiny.batch(rows)).softmax(-1))

    @pytest.mark.parametrize("views", [1, 4])
    def test_only_the_first_term_of_lsskd_sees_the_mixture(self, views, tiny, context):
        batch, _, rows = mixed(tiny, Mix(op="mixup", probability=1))
        net = resnet(0)
        net.module.eval()
        (term,) = terms([Lsskd(views=views)], Course(net, None, context(), 2))
        lesson = Lesson(net, [term]).eval()
        _, told = lesson(batch, 0.0)
        _, plain = lesson(tiny.batch(rows), 0.0)
        for name in plain.keys() - {"labels"}:
            torch.testing.assert_close(told[name], plain[name])
        answers = net.logits({"pixel_values": batch["mixed"]})
        torch.testing.assert_close(told["labels"], cross_entropy(answers, batch).detach())

    def test_losses_of_one_step_get_what_each_asks_for(self, tiny, network, context):
        batch, _, _ = mixed(tiny, Mix(op="cutmix", probability=1))
        net = network(0)
        one = terms([Labels(), PsKd(), Lsskd(views=4)], Course(net, None, context(), 2))
        _, logs = Lesson(net, one)(batch, 0.0)
        alone = {k: v for t in one for k, v in Lesson(net, [t]).eval()(batch, 0.0)[1].items()}
        for name in logs:
            torch.testing.assert_close(logs[name], alone[name], rtol=1e-4, atol=1e-5)

    def test_a_loss_that_needs_whole_samples_is_refused_by_name(self):
        with pytest.raises(ValidationError, match=r"'dkd' learns from whole samples.*labels.*lsskd"):
            Distill(use="distill", schedule=Schedule(mix=Mix()), losses=[{"use": "dkd"}])
        with pytest.raises(ValidationError, match="'logits'"):
            Finetune(use="finetune", schedule=Schedule(mix=Mix()), teacher={"step": "a"}, losses=[{"use": "logits"}])

    @pytest.mark.parametrize("name", [n for n in plugins.names("losses") if n != "logits"])
    def test_whoever_says_that_it_mixes_does(self, name, tiny, network, context):
        objective = plugins.find("losses", name)(use=name)
        if not objective.mixes():
            return
        batch, _, _ = mixed(tiny, Mix(probability=1))
        net = network(0)
        (term,) = terms([objective], Course(net, network(1), context(name), 2))
        total, _ = Lesson(net, [term])(batch, 0.0)
        total.backward()
        assert torch.isfinite(total)
        assert "mixed" in MIXED

    def test_the_usual_teacher_is_asked_about_the_mixtures(self, tiny, network, context):
        step = Distill(use="distill", schedule=QUICK.model_copy(update={"mix": Mix(probability=1)}))
        made = step.run(network(0), context())
        assert torch.isfinite(made.logits(tiny.batch(tiny.rows("test")))).all()


class TestAverage:
    def test_what_ships_is_the_average_of_the_steps(self, tiny, tmp_path, monkeypatch):
        """With a decay that never grows beyond its start the average is followed by hand."""
        seen = []
        real = Stepper.step
        monkeypatch.setattr(
            Stepper,
            "step",
            lambda self, loss: (real(self, loss), seen.append(net.module.head.weight.detach().clone()))[0],
        )
        net = resnet(0)
        fit(net, tiny, [Term(CrossEntropy())], QUICK.model_copy(update={"ema": 0.99}), 0, tmp_path)
        average = seen[0]
        for number, weight in enumerate(seen[1:], 1):
            decay = min(0.99, (1 + number) / (10 + number))
            average = decay * average + (1 - decay) * weight
        torch.testing.assert_close(net.module.head.weight.detach(), average, rtol=1e-4, atol=1e-6)
        assert not torch.equal(seen[-1], average)

    def test_its_statistics_are_those_of_the_samples(self, tiny, tmp_path):
        net = resnet(0)
        fit(net, tiny, [Term(CrossEntropy())], QUICK.model_copy(update={"ema": 0.9}), 0, tmp_path)
        seen = []
        net.at("stem.conv").register_forward_hook(lambda _, __, out: seen.append(out))
        net.logits(tiny.batch(tiny.rows("train")))
        torch.testing.assert_close(net.at("stem.norm").running_mean, seen[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(
        "schedule",
        [{"ema": 0.9}, {"mix": Mix(op="cutmix")}, {"precision": "bf16"}, {"ema": 0.9, "mix": Mix(op="mixup")}],
    )
    def test_a_killed_training_ends_with_the_same_bytes(self, schedule, tiny, tmp_path, killed):
        options = QUICK.model_copy(update=schedule)
        whole, parts = resnet(0), resnet(0)
        expected = fit(whole, tiny, [Term(CrossEntropy())], options, 5, tmp_path / "whole")
        with killed(2):
            fit(parts, tiny, [Term(CrossEntropy())], options, 5, tmp_path / "parts")
        torch.manual_seed(99)
        resumed = resnet(0)
        assert fit(resumed, tiny, [Term(CrossEntropy())], options, 5, tmp_path / "parts") == expected
        assert resumed.digest == whole.digest


class TestPrecision:
    def test_bf16_learns_with_weights_in_fp32(self, network, tiny, tmp_path):
        net = network(0)
        schedule = Schedule(epochs=8, lr=3e-3, batch=16, precision="bf16")
        logs = fit(net, tiny, [Term(CrossEntropy())], schedule, 0, tmp_path)
        assert logs[-1]["validation_accuracy"] > 0.9
        assert {p.dtype for p in net.module.parameters()} == {torch.float32}
        full = network(0)
        fit(full, tiny, [Term(CrossEntropy())], schedule.model_copy(update={"precision": "fp32"}), 0, tmp_path)
        assert full.digest != net.digest

    @pytest.mark.parametrize("name", plugins.names("losses"))
    def test_every_loss_is_summed_in_fp32(self, name, tiny, network, context):
        net = network(0)
        course = Course(net, network(1), context(name), 2)
        (term,) = terms([plugins.find("losses", name)(use=name)], course)
        whole, half = (Lesson(net, [term], dtype).eval() for dtype in (torch.float32, torch.bfloat16))
        batch = tiny.batch(tiny.rows("train")[:6])
        exact, rough = (float(lesson(batch, 0.0)[0].detach()) for lesson in (whole, half))
        assert half(batch, 0.0)[0].dtype == torch.float32
        assert rough == pytest.approx(exact, rel=0.05, abs=0.05)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
    def test_fp16_without_a_gpu_is_refused(self, network, tiny, tmp_path):
        with pytest.raises(BadHost, match="fp16") as told:
            fit(network(0), tiny, [Term(CrossEntropy())], Schedule(precision="fp16"), 0, tmp_path)
        assert (told.value.code, "bf16" in told.value.fix) == (4, True)

    def test_a_step_that_overflows_waits_until_the_scale_cannot_be_what_is_wrong(self):
        weight = torch.nn.Parameter(torch.ones(1))
        stepper = Stepper(torch.optim.SGD([weight], lr=0.1), 1.0, "fp16", torch.device("cpu"))
        saved = stepper.state_dict()
        steps = 0
        while stepper.step((weight - 1).sqrt().sum()):  # 0, with an endless slope
            steps += 1
            assert steps < 40
        assert weight.item() == 1.0
        assert steps > 10
        stepper.load_state_dict(saved)
        assert stepper.step(weight.sum())
        assert weight.item() == pytest.approx(0.9)


def test_a_mixed_training_that_diverges_says_so(tiny, tmp_path):
    net = resnet(0)
    with torch.no_grad():
        net.at("head").weight.fill_(math.inf)
    with pytest.raises(Diverged):
        fit(net, tiny, [Term(CrossEntropy())], Schedule(mix=Mix()), 0, tmp_path)
