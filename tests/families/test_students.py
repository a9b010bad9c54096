"""The small convolutional families: sizes as published, every cut its mask, files that answer as torch does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl.data._signals import AudioFields, audio_operations
from edgetl.errors import BadInput
from edgetl.network import cost
from edgetl.network.family import Prep
from edgetl.network.network import check_plain, create, save
from edgetl.network.to_onnx import to_onnx
from edgetl.plugins import find
from edgetl.recipe.schema import Schedule
from edgetl.train.batches import Data
from tests.contract import conftest as contract
from tests.families.test_convolutional import FEW, example, masked, network

LABELS = ("a", "b", "c")
tiny, context = contract.tiny, contract.context
SMALL = {"image_size": 12, "num_channels": 1}
TINY_LITE = {"width": 0.1, "depth": 0.25}

students = st.one_of(
    st.tuples(
        st.just("cnn1d"),
        st.fixed_dictionaries(
            {
                "length": st.integers(1, 23),
                "num_channels": st.integers(1, 3),
                "widths": st.sampled_from([(4,), (3, 5), (2, 4, 9)]),
                "blocks": st.integers(1, 2),
                "kernel": st.sampled_from([1, 3, 7]),
                "stem_stride": st.sampled_from([1, 2]),
            }
        ),
    ),
    st.tuples(
        st.just("audio_resnet"),
        st.fixed_dictionaries(
            {
                "samples": st.integers(64, 300),
                "window": st.just(64),
                "hop": st.sampled_from([16, 64]),
                "bands": st.integers(1, 9),
                "channels": st.integers(1, 4),
                "stem_stride": st.sampled_from([1, 2]),
            }
        ),
    ),
    st.tuples(
        st.just("wrn"),
        st.fixed_dictionaries(
            {
                "depth": st.sampled_from([10, 16]),
                "width": st.integers(1, 2),
                "channels": st.integers(2, 4),
                "image_size": st.integers(5, 11),
                "num_channels": st.just(1),
            }
        ),
    ),
    st.tuples(
        st.just("shufflenet"),
        st.fixed_dictionaries(
            {
                "stem": st.integers(2, 5),
                "stem_stride": st.sampled_from([1, 2]),
                "widths": st.sampled_from([(4, 8), (6,)]),
                "depths": st.just((2, 1)),
                "last": st.just(8),
                "image_size": st.integers(9, 14),
                "num_channels": st.just(1),
            }
        ).map(lambda sizes: {**sizes, "depths": sizes["depths"][: len(sizes["widths"])]}),
    ),
    st.tuples(
        st.just("efficientnet_lite"),
        st.fixed_dictionaries(
            {
                "width": st.just(0.1),
                "depth": st.just(0.5),
                "image_size": st.integers(31, 36),
                "num_channels": st.just(1),
            }
        ),
    ),
)


@FEW
@given(students, st.data())
def test_any_cut_of_all_groups_equals_its_mask(student, data):
    net = network(*student)
    groups = net.family.units(net.module)
    drawn = st.one_of(st.just(set()), st.sets(st.integers(0, 99), max_size=4))
    kept = {g.name: sorted({unit % g.count for unit in data.draw(drawn)}) for g in groups}
    cut = net.edit([g.keep(kept[g.name]) for g in groups])
    inputs = example(net)
    torch.testing.assert_close(cut.logits(inputs), masked(net, kept, inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("cnn1d", {"length": 21, "num_channels": 3, "widths": (4, 6)}),
        ("shufflenet", {**SMALL, "widths": (8, 16), "depths": (2, 2), "last": 16}),
        ("efficientnet_lite", {**SMALL, **TINY_LITE, "image_size": 33}),
    ],
)
def test_the_exported_file_of_a_cut_network_answers_as_torch_does(family, sizes, tmp_path):
    net = network(family, sizes)
    net.module.float()
    groups = net.family.units(net.module)
    cut = net.edit([g.keep([] if i % 3 == 0 else range(0, g.count, 2)) for i, g in enumerate(groups)])
    to_onnx(cut, tmp_path / "base.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "base.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = cut.family.example(cut.config, batch)
        (answer,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_allclose(answer, cut.logits(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "sizes", "weights"),
    [
        ("wrn", {"depth": 16, "width": 2}, 703_284),  # as in the tables of distillation on CIFAR-100
        ("wrn", {"depth": 40, "width": 1}, 569_780),
        ("shufflenet", {"widths": [116, 232, 464]}, 1_356_104),
    ],
)
def test_they_have_as_many_weights_as_published_for_100_classes(family, sizes, weights):
    net = create(family, sizes, tuple(map(str, range(100))), 0)
    assert cost.parameters(net) == weights


@pytest.mark.parametrize(
    ("family", "sizes", "words"),
    [
        ("wrn", {"depth": 20}, "6 n"),
        ("cnn1d", {"kernel": 4}, "odd"),
        ("cnn1d", {"widths": [16, 8]}, "grow"),
        ("cnn1d", {"lenght": 8}, "did you mean 'length'"),
        ("audio_resnet", {"window": 20000, "samples": 16000}, "do not fit"),
        ("shufflenet", {"widths": [47, 96, 192]}, "make no stages"),
        ("shufflenet", {"depths": [4, 8]}, "make no stages"),
        ("shufflenet", {"depths": [4, 0, 4]}, "out of range"),
        ("efficientnet_lite", {"width": 0}, "width"),
    ],
)
def test_impossible_sizes_are_one_line(family, sizes, words):
    with pytest.raises(BadInput) as caught:
        create(family, sizes, LABELS, 0)
    assert words in str(caught.value)
    assert "\n" not in caught.value.problem


def test_a_series_is_seen_by_its_neighbours_only():
    """A convolution of a series mixes times, not channels of height: one reading reaches kernel / 2 to each side."""
    sizes = {"length": 31, "num_channels": 2, "widths": (4,), "kernel": 5}
    net = network("cnn1d", sizes)
    x = torch.randn(1, 2, 31, dtype=torch.float64)
    other = x.clone()
    other[0, :, 15] += 1
    found = []
    handle = net.at("stem").register_forward_hook(lambda _m, _i, out: found.append(out))
    net.logits({"input_values": x})
    net.logits({"input_values": other})
    handle.remove()
    changed = (found[0] != found[1]).any(1)[0, 0]
    assert found[0].shape == (1, 4, 1, 31)
    assert set(torch.nonzero(changed).flatten().tolist()) <= {13, 14, 15, 16, 17}


def test_readings_of_any_scale_start_the_same():
    """The first layer learns every channel's scale: in training, units of measurement change nothing."""
    net = create("cnn1d", {"length": 20, "num_channels": 2}, LABELS, 0)
    net.module.train()
    x = torch.randn(16, 2, 20)
    scaled = x * torch.tensor([1000.0, 0.2])[:, None] + torch.tensor([-9.8, 3.0])[:, None]
    plain, other = (net.logits({"input_values": v}) for v in (x, scaled))
    torch.testing.assert_close(plain, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("wrn", {"depth": 10, "channels": 4}),
        ("shufflenet", {"widths": (8, 16), "depths": (2, 2), "last": 16}),
        ("efficientnet_lite", TINY_LITE),
    ],
)
def test_they_learn_without_a_teacher_and_are_cut(family, sizes, tiny, context, tmp_path):
    net = create(family, {**sizes, "image_size": 8, "num_channels": 1}, tiny.labels, 0)
    learnt = find("methods", "lsskd")(use="lsskd", schedule=Schedule(epochs=1, lr=5e-3, batch=16)).run(
        net.copy(), context("lsskd")
    )
    cut = find("methods", "optin")(use="optin", keep_macs=0.8, samples=8).run(learnt.copy(), context("optin"))
    assert 0.7 * cost.macs(learnt) < cost.macs(cut) <= 0.8 * cost.macs(learnt)
    save(cut, tmp_path / "cut")
    check_plain(cut, tmp_path / "cut")


@pytest.mark.parametrize("family", ["wrn", "shufflenet", "efficientnet_lite", "resnet_cifar", "hf_mobilenet"])
def test_a_student_of_pictures_takes_their_size_from_the_data(family, tiny):
    assert find("families", family).fitted({}, tiny) == {"image_size": 8, "num_channels": 1}
    assert find("families", family).fitted({"image_size": 16}, tiny)["image_size"] == 16


def test_students_of_signals_take_their_sizes_from_the_data(tiny):
    values = np.zeros((len(tiny.prepared.y), 3, 24), np.float32)
    windows = Data(replace(tiny.prepared, operations=({"op": "to_float"},), inputs={"input_values": values}))
    assert find("families", "cnn1d").fitted({}, windows) == {"length": 24, "num_channels": 3}
    sizes = {"rate": 8000, "samples": 400, "window": 64, "hop": 32, "bands": 8}
    operations = audio_operations(AudioFields(**sizes), Prep())
    recordings = Data(replace(tiny.prepared, operations=operations))
    assert find("families", "audio_resnet").fitted({"bands": 9}, recordings) == {**sizes, "bands": 9}
