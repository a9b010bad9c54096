from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from edgetl.errors import BadInput, Diverged
from edgetl.examples import Augmentation
from edgetl.losses.labels import CrossEntropy
from edgetl.losses.logits import Divergence
from edgetl.network.network import create
from edgetl.recipe.schema import Schedule
from edgetl.train import checkpoint
from edgetl.train.batches import Data
from edgetl.train.fit import fit, rate
from edgetl.train.lesson import Lesson, Loss, Term

QUICK = Schedule(epochs=3, lr=2e-3, batch=16)


def test_learns_a_separable_task(network, tiny, tmp_path):
    net = network(0)
    logs = fit(net, tiny, [Term(CrossEntropy())], Schedule(epochs=8, lr=3e-3, batch=16), 0, tmp_path)
    assert len(logs) == 8
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert logs[-1]["validation_accuracy"] > 0.9
    assert not net.module.training


def test_a_last_sample_that_has_no_variance_of_its_own_joins_another_batch(tiny, tmp_path):
    sizes = {"depth": 8, "channels": 4, "stem_stride": 2, "num_channels": 1, "image_size": 8}  # to a map of one place
    net, rows = create("resnet_cifar", sizes, tiny.labels, 0), len(tiny.rows("train"))
    schedule = Schedule(epochs=1, batch=rows - 1)
    (log,) = fit(net, tiny, [Term(CrossEntropy())], schedule, 0, tmp_path)
    assert math.isfinite(log["loss"])
    with pytest.raises(BadInput, match="two samples") as caught:
        fit(net, tiny, [Term(CrossEntropy())], Schedule(epochs=1, batch=1), 0, tmp_path)
    assert "2 or more" in caught.value.fix


def test_pictures_have_no_length_to_batch_by(network, tiny, tmp_path):
    with pytest.raises(BadInput, match="by_length") as caught:
        fit(network(0), tiny, [Term(CrossEntropy())], Schedule(epochs=1, by_length=True), 0, tmp_path)
    assert "leave by_length out" in caught.value.fix


@pytest.mark.parametrize("stop", [1, 2])
def test_a_killed_training_ends_with_the_same_bytes(network, tiny, tmp_path, killed, stop):
    data = Data(tiny.prepared, (Augmentation(op="shift", pixels=1),))
    whole, parts = network(0), network(0)
    expected = fit(whole, data, [Term(CrossEntropy())], QUICK, 5, tmp_path / "whole")
    with killed(stop):
        fit(parts, data, [Term(CrossEntropy())], QUICK, 5, tmp_path / "parts")
    assert list((tmp_path / "parts").rglob("*.safetensors"))
    torch.manual_seed(99)  # a new process starts from another random state
    resumed = network(0)
    assert fit(resumed, data, [Term(CrossEntropy())], QUICK, 5, tmp_path / "parts") == expected
    assert resumed.digest == whole.digest
    assert [path.name for path in (tmp_path / "parts").rglob("*.*")] == ["training.json"]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_killed_training_of_convolutions_ends_with_the_same_bytes(tiny, tmp_path, killed, ema):
    sizes = {"depth": 8, "channels": 8, "num_channels": 1, "image_size": 8}
    nets = [create("resnet_cifar", sizes, tiny.labels, 0) for _ in range(3)]
    schedule = Schedule(epochs=3, lr=2e-3, batch=16, ema=ema)
    expected = fit(nets[0], tiny, [Term(CrossEntropy())], schedule, 5, tmp_path / "whole")
    with killed(2):
        fit(nets[1], tiny, [Term(CrossEntropy())], schedule, 5, tmp_path / "parts")
    assert fit(nets[2], tiny, [Term(CrossEntropy())], schedule, 5, tmp_path / "parts") == expected
    assert nets[2].digest == nets[0].digest
    assert all(parameter.is_contiguous() for parameter in nets[0].module.parameters())


def test_the_order_of_weights_in_memory_changes_nothing(network, tiny, tmp_path, killed):
    nets = [network(0) for _ in range(3)]
    for net in nets[1:]:  # what a merge or a cut may leave behind
        for parameter in net.module.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.t().contiguous().t()
    expected = fit(nets[0], tiny, [Term(CrossEntropy())], QUICK, 5, tmp_path / "whole")
    with killed(1):
        fit(nets[1], tiny, [Term(CrossEntropy())], QUICK, 5, tmp_path / "parts")
    assert fit(nets[2], tiny, [Term(CrossEntropy())], QUICK, 5, tmp_path / "parts") == expected
    assert nets[2].digest == nets[0].digest


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_used(network, tiny, tmp_path, caplog):
    net = network(0)
    lesson = Lesson(net, [Term(CrossEntropy())])
    optimizer = torch.optim.AdamW(lesson.parameters())
    checkpoint.save(tmp_path, "key", lesson, optimizer, [{"loss": 1.0}])
    assert checkpoint.load(tmp_path, "key", lesson, optimizer) == [{"loss": 1.0}]
    assert checkpoint.load(tmp_path, "other", lesson, optimizer) == []
    file = tmp_path / "epoch-1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert checkpoint.load(tmp_path, "key", lesson, optimizer) == []
    assert "damaged" in caplog.text
    (tmp_path / "checkpoint.json").write_text("{")
    assert checkpoint.load(tmp_path, "key", lesson, optimizer) == []


def test_frozen_parameters_stay(network, tiny, tmp_path):
    net = network(0)
    before = {k: v.clone() for k, v in net.state().items()}
    net.module.requires_grad_(False)
    net.at(net.family.head(net.module)).requires_grad_(True)
    fit(net, tiny, [Term(CrossEntropy())], QUICK, 0, tmp_path)
    assert {k for k, v in net.state().items() if not torch.equal(v, before[k])} == {"head.weight", "head.bias"}


def test_a_loss_that_is_not_finite_is_reported_with_epoch_and_fix(network, tiny, tmp_path):
    net = network(0)
    with torch.no_grad():
        net.at("head").weight.fill_(math.inf)
    with pytest.raises(Diverged, match=r"epoch 1, step 1") as caught:
        fit(net, tiny, [Term(CrossEntropy())], QUICK, 0, tmp_path)
    assert caught.value.code == 7
    assert "lr" in caught.value.fix


def test_a_loss_with_parameters_and_taps_trains_with_the_network(network, tiny, tmp_path):
    class Bright(Loss):
        taps = ("layers.0",)

        def __init__(self):
            super().__init__()
            self.guess = torch.nn.Linear(16, 1)

        def forward(self, logits, features, batch, progress):
            assert 0 <= progress < 1
            hidden = features["layers.0"][:, 0]
            loss = (self.guess(hidden)[:, 0] - batch["labels"]).square().sum()
            return loss, {"guess": loss.detach()}

    loss = Bright()
    before = loss.guess.weight.detach().clone()
    net = network(0)
    logs = fit(net, tiny, [Term(CrossEntropy()), Term(loss, 0.5)], QUICK, 0, tmp_path)
    assert logs[-1]["guess"] < logs[0]["guess"]
    assert not torch.equal(before, loss.guess.weight)
    assert not any(m._forward_hooks for m in net.module.modules())


def test_one_lesson_is_one_forward(network, tiny):
    net, calls = network(0), []
    net.module.register_forward_hook(lambda *_: calls.append(1))
    table = torch.zeros(210, 3)
    Lesson(net, [Term(CrossEntropy(), 0.5), Term(Divergence(table), 0.5)])(tiny.batch(tiny.rows("test")), 0.0)
    assert len(calls) == 1


def test_teacher_loss_is_hintons(tiny):
    table, logits = torch.randn(210, 3), torch.randn(4, 3)
    batch = tiny.batch(tiny.rows("train")[:4])
    loss, _ = Divergence(table, temperature=3.0)(logits, {}, batch, 0.0)
    t = functional.softmax(table[batch["index"]] / 3, -1)
    expected = 9 * (t * (t.log() - functional.log_softmax(logits / 3, -1))).sum()
    torch.testing.assert_close(loss, expected)
    same, _ = Divergence(table)(table[batch["index"]], {}, batch, 0.0)
    assert abs(same.item()) < 1e-5


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99))
def test_rate_warms_up_and_decays(steps, warmup):
    rates = [rate(step, steps, warmup) for step in range(steps)]
    warm = round(warmup * steps)
    assert all(0 < r <= 1 for r in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    if warm < steps:
        assert rates[warm] == 1
