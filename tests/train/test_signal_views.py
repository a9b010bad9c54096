"""Transformations of readings and spectrograms: exact, each its own inverse, and told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import BadInput
from edgetl.losses.lsskd import Lsskd
from edgetl.methods.lsskd import LayeredTraining
from edgetl.network.network import check_plain, create, save
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Schedule
from edgetl.train.batches import Data
from edgetl.train.views import check, expanded, signal

GROUP = [{"backwards": bool(k & 1), "inverted": bool(k & 2)} for k in range(4)]


@given(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(1, 9))
def test_they_are_a_group_in_which_each_undoes_itself(a, b, spectrogram, length):
    x = torch.randn((2, 1, 5, length) if spectrogram else (2, 3, length))
    once = signal(x, **GROUP[a])
    assert torch.equal(signal(once, **GROUP[a]), x)
    assert torch.equal(signal(once, **GROUP[b]), signal(x, **GROUP[a ^ b]))
    assert torch.equal(signal(x, **GROUP[0]), x)


@pytest.mark.parametrize("shape", [(3, 2, 6), (3, 1, 5, 6)])
@pytest.mark.parametrize("count", [2, 4])
def test_views_are_ordered_by_sample_and_differ(shape, count):
    x = torch.randn(shape)
    batch = expanded({"input_values": x, "labels": torch.tensor([2, 0, 1]), "index": torch.tensor([7, 8, 9])}, count)
    views = batch["input_values"].unflatten(0, (3, count))
    assert torch.equal(views[:, 0], x)
    assert torch.equal(views[:, 1], x.flip(-1))
    if count == 4:
        assert torch.equal(views[:, 2], x.flip(-2) if x.dim() == 4 else -x)
        assert torch.equal(views[:, 3], views[:, 2].flip(-1))
    assert batch["labels"].tolist() == [2] * count + [0] * count + [1] * count
    assert batch["view"].tolist() == [*range(count)] * 3


def test_any_length_is_taken_and_other_counts_are_not():
    check("sensor", 4, (3, 100))
    check("audio", 4, (1, 40, 61))
    with pytest.raises(BadInput, match="not known for audio"):
        check("audio", 3, (1, 40, 61))


@pytest.mark.parametrize(
    ("family", "sizes", "shape"),
    [
        ("cnn1d", {"length": 12, "num_channels": 2, "widths": [4, 6]}, (2, 12)),
        ("audio_resnet", {"samples": 96, "window": 32, "hop": 16, "bands": 6, "channels": 4}, (1, 6, 5)),
    ],
)
def test_layered_training_sees_four_of_them_and_leaves_a_plain_network(family, sizes, shape, tiny, context, tmp_path):
    values = np.random.default_rng(0).normal(size=(len(tiny.prepared.y), *shape)).astype(np.float32)
    values += tiny.prepared.y.reshape(-1, *[1] * len(shape))
    raw, operations = Raw("array", "float32", shape[::-1]), ({"op": "to_float"},)
    data = Data(replace(tiny.prepared, raw=raw, operations=operations, inputs={"input_values": values}))
    ctx = replace(context("lsskd"), data=data)
    step = LayeredTraining(use="lsskd", losses=(Lsskd(views=4),), schedule=Schedule(epochs=2, lr=1e-2, batch=16))
    net = create(family, sizes, tiny.labels, 0)
    made = step.run(net.copy(), ctx)
    assert made.digest != net.digest
    save(made, Path(tmp_path) / "made")
    check_plain(made, Path(tmp_path) / "made")
    rows = data.rows("train")
    inside = made.at("stem.scale").running_mean
    wanted = values[rows].mean(axis=(0, 2) if family == "cnn1d" else (0, 2, 3))
    torch.testing.assert_close(inside, torch.from_numpy(wanted), rtol=0, atol=0.05)  # of upright samples only
