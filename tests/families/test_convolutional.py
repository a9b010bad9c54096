"""Channels of convolutional networks: every cut is its mask, and weights are read as they are published."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from edgetl.errors import BadInput, Refused
from edgetl.families.resnet_cifar import PUBLISHED
from edgetl.network import cost
from edgetl.network.edits import Constant, from_json, to_json
from edgetl.network.network import Network, check_plain, create, load, save
from edgetl.network.to_onnx import to_onnx

LABELS = ("a", "b", "c")
FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL = {"image_size": 12, "num_channels": 1}
BOTTLENECK = {**SMALL, "layer_type": "bottleneck", "embedding_size": 6, "hidden_sizes": (16, 24), "depths": (1, 2)}


def network(family: str, sizes: Mapping[str, object], seed: int = 0) -> Network:
    """Return a network in float64 whose norms have seen something, so that no statistic is at its start."""
    net = create(family, sizes, LABELS, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net.module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean):
                    tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
                layer.running_var.mul_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    net.module.double()
    return net


def example(net: Network, batch: int = 2) -> dict[str, Tensor]:
    return {name: value.double() for name, value in net.family.example(net.config, batch).items()}


def masked(net: Network, kept: Mapping[str, list[int]], inputs: Mapping[str, Tensor]) -> Tensor:
    """The answer with all channels outside `kept` zeroed where their gates read them."""
    with ExitStack() as stack:
        for group in net.family.units(net.module):
            mask = torch.tensor([float(u in kept[group.name]) for u in range(group.count)]).double()[:, None, None]
            gate = net.at(group.gate)
            handle = gate.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask, *args[1:]))
            stack.callback(handle.remove)
        return net.logits(inputs)


cnns = st.one_of(
    st.tuples(
        st.just("resnet_cifar"),
        st.fixed_dictionaries(
            {
                "depth": st.sampled_from([8, 14]),
                "channels": st.integers(1, 5),
                "stem_stride": st.sampled_from([1, 2]),
                "num_channels": st.just(1),
                "image_size": st.integers(5, 11),  # odd sides too: a stride rounds up
            }
        ),
    ),
    st.tuples(
        st.just("hf_resnet"),
        st.fixed_dictionaries(
            {
                "layer_type": st.sampled_from(["basic", "bottleneck"]),
                "downsample_in_first_stage": st.booleans(),
                "downsample_in_bottleneck": st.booleans(),
                "hidden_sizes": st.sampled_from([(8, 12), (4, 4)]),
                "depths": st.sampled_from([(1, 2), (2, 1)]),
                "embedding_size": st.integers(3, 8),
                "image_size": st.integers(9, 14),
                "num_channels": st.just(1),
            }
        ),
    ),
    st.tuples(
        st.just("hf_mobilenet"),
        st.fixed_dictionaries(
            {
                "depth_multiplier": st.just(0.1),
                "depth_divisible_by": st.just(2),
                "min_depth": st.just(2),
                "expand_ratio": st.sampled_from([1.0, 2.0]),
                "tf_padding": st.booleans(),
                "output_stride": st.sampled_from([8, 32]),
                "image_size": st.integers(16, 19),
                "num_channels": st.just(1),
            }
        ),
    ),
)


@FEW
@given(cnns, st.data())
def test_any_cut_of_all_groups_in_any_order_equals_its_mask(cnn, data):
    net = network(*cnn)
    groups = net.family.units(net.module)
    kept = {
        g.name: sorted(data.draw(st.one_of(st.just(set()), st.sets(st.integers(0, g.count - 1)))))
        for g in data.draw(st.permutations(groups))
    }
    edits = [next(g for g in groups if g.name == name).keep(units) for name, units in kept.items()]
    cut = net.edit(edits)
    inputs = example(net)
    torch.testing.assert_close(cut.logits(inputs), masked(net, kept, inputs), rtol=1e-10, atol=1e-10)
    again = create(net.family.name, net.config, LABELS, 0).edit(from_json(to_json(cut.edits)))
    assert {k: v.shape for k, v in again.state().items()} == {k: v.shape for k, v in cut.state().items()}


@FEW
@given(cnns, st.integers(0, 99))
def test_a_cut_in_rounds_comes_back_from_its_folder(cnn, seed):
    rng = np.random.default_rng(seed)
    net = network(*cnn)
    net.module.float()
    for _ in range(2):
        kept = {g: np.flatnonzero(rng.random(g.count) < rng.choice([0.0, 0.7])) for g in net.family.units(net.module)}
        net = net.edit([g.keep(units.tolist()) for g, units in kept.items() if len(units) < g.count])
    with tempfile.TemporaryDirectory() as folder:
        save(net, Path(folder))
        check_plain(net, Path(folder))
        assert load(Path(folder)).digest == net.digest


def test_a_block_without_channels_has_no_work_and_no_weights_but_its_constant():
    net = create("resnet_cifar", {**SMALL, "depth": 8, "channels": 4}, LABELS, 0)
    group = net.family.units(net.module)[1]
    cut = net.edit([group.keep([])])
    assert [k for k in cut.state() if k.startswith("layers.2.0.")] == ["layers.2.0.second.bias"]
    layers = cost.work(net)[(group.name,)]
    assert cost.macs(net) - cost.macs(cut) == layers > 0
    assert group.name not in {g.name for g in cut.family.units(cut.module)}


def test_the_channels_of_a_bottleneck_around_a_constant_can_still_be_cut():
    net = network("hf_resnet", BOTTLENECK)
    first, second, *_ = net.family.units(net.module)
    assert (first.place, second.place) == ("layers.0.0.second", "layers.0.0.third")
    cut = net.edit([first.keep([])])
    left = {g.name: g for g in cut.family.units(cut.module)}
    assert left[second.name].tensors == (("layers.0.0.second.bias", 0), ("layers.0.0.third.conv.weight", 1))
    twice = cut.edit([left[second.name].keep([0, 2])])
    direct = net.edit([second.keep([0, 2]), first.keep([])])
    inputs = example(net)
    torch.testing.assert_close(twice.logits(inputs), direct.logits(inputs), rtol=1e-12, atol=1e-12)
    gone = net.edit([second.keep([]), first.keep([1])])
    assert not {first.name, second.name} & {g.name for g in gone.family.units(gone.module)}
    with pytest.raises(Refused):
        gone.edit([Constant(second.place)])


def test_a_unit_of_two_groups_costs_what_its_layers_cost():
    net = create("hf_resnet", BOTTLENECK, LABELS, 0)
    first, second, *_ = net.family.units(net.module)
    work = cost.work(net)
    assert sum(work.values()) == cost.macs(net)
    shared = work[first.name, second.name]
    cut = net.edit([first.keep([0]), second.keep([1, 2])])
    alone = work[(first.name,)] // first.count + 2 * work[(second.name,)] // second.count
    other = sum(n for names, n in work.items() if not {first.name, second.name} & set(names))
    assert cost.macs(cut) == other + alone + 2 * shared // (first.count * second.count)


def test_only_blocks_without_a_shortcut_need_a_channel():
    net = network("hf_mobilenet", {**SMALL, "image_size": 32})
    least = {g.place.rpartition(".")[0]: g.least for g in net.family.units(net.module)}
    assert least == {path: int(not net.at(path).use_residual) for path in net.family.stages(net.module)}
    assert set(least.values()) == {0, 1}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("resnet_cifar", {**SMALL, "depth": 14, "channels": 4}),
        ("hf_resnet", BOTTLENECK),
        pytest.param("hf_mobilenet", {**SMALL, "image_size": 17, "depth_multiplier": 0.1}, marks=pytest.mark.slow),
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


def published(net: Network) -> dict[str, Tensor]:
    """The weights under the names that published files have, without the norms' counters."""
    found = {}
    for name, tensor in net.state().items():
        new = name.replace("stem.conv", "conv1").replace("stem.norm", "bn1").replace("head.", "linear.")
        for ours, theirs in PUBLISHED.items():
            new = new.replace(ours, theirs)
        parts = new.split(".")
        new = ".".join([f"layer{parts[1]}", *parts[2:]]) if parts[0] == "layers" else new
        if not new.endswith("num_batches_tracked"):
            found[new] = tensor.float()
    return found


def test_a_bare_file_of_weights_is_a_source_and_shows_its_sizes(tmp_path, caplog):
    net = network("resnet_cifar", {**SMALL, "depth": 14, "channels": 6, "num_channels": 3, "image_size": 32})
    file = tmp_path / "resnet14.safetensors"
    save_file(published(net), file)
    read = create("resnet_cifar", str(file), LABELS, seed=3)
    assert read.config == net.config
    net.module.float()
    inputs = net.family.example(net.config, 2)
    assert torch.equal(read.logits(inputs), net.logits(inputs))
    assert read.facts["head"] == "kept"
    assert read.facts["prep"]["mean"] == [0.485, 0.456, 0.406]
    assert "names no labels" in caplog.text
    other = create("resnet_cifar", str(file), ("cat", "dog"), seed=3)
    assert other.facts["head"] == "new"
    assert other.logits(inputs).shape == (2, 2)


def test_a_folder_with_a_configuration_is_a_source_too(tmp_path):
    net = network("resnet_cifar", {"depth": 8, "channels": 2})
    config = {k: v for k, v in net.config.items() if k != "num_labels"}
    labels = {"id2label": {str(i): label for i, label in enumerate(LABELS)}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **labels}))
    save_file(published(net), tmp_path / "model.safetensors")
    assert create("resnet_cifar", str(tmp_path), LABELS, 0).facts["head"] == "kept"
    assert create("resnet_cifar", str(tmp_path), ("x", "y", "z"), 0).facts["head"] == "new"


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="holds no weights of a resnet_cifar"):
        create("resnet_cifar", str(tmp_path / "other.safetensors"), LABELS, 0)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(Refused, match="damaged"):
        create("resnet_cifar", str(tmp_path / "broken.safetensors"), LABELS, 0)


@pytest.mark.parametrize(
    ("family", "sizes", "words"),
    [
        ("resnet_cifar", {"depth": 21}, "6 n"),
        ("resnet_cifar", {"widht": 2}, "no size 'widht'"),
        ("hf_resnet", {"depths": [1], "hidden_sizes": [8, 16]}, "1 depths for 2 hidden_sizes"),
        ("hf_resnet", {"layer_type": "bottleneck", "hidden_sizes": [2, 16]}, "a bottleneck is 4 channels"),
        ("hf_mobilenet", {"output_stride": 7}, "output_stride"),
    ],
)
def test_impossible_sizes_are_one_line(family, sizes, words):
    with pytest.raises(BadInput, match=words):
        create(family, sizes, LABELS, 0)


@pytest.mark.parametrize(
    ("family", "kind", "sizes"),
    [
        ("hf_resnet", "ResNet", {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}),
        ("hf_mobilenet", "MobileNetV2", {"depth_multiplier": 0.1, "min_depth": 2, "depth_divisible_by": 2}),
    ],
)
def test_a_folder_of_hugging_face_answers_as_transformers_does(family, kind, sizes, tmp_path):
    import transformers

    config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=3, id2label=dict(enumerate(LABELS)))
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    model.save_pretrained(tmp_path)
    shown = {"size": {"shortest_edge": 40}, "image_mean": [0.5] * 3, "image_std": [0.2] * 3, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(shown))
    net = create(family, str(tmp_path), LABELS, 0)
    assert net.facts["head"] == "kept"
    prep = {"size": [40, 40], "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3, "resample": "bicubic"}
    assert net.facts["prep"] == prep
    inputs = net.family.example(net.config, 2)
    torch.testing.assert_close(net.logits(inputs), model(**inputs).logits)


@pytest.mark.slow
@pytest.mark.skipif("EDGETL_DATA" not in os.environ, reason="EDGETL_DATA names no folder of real data")
def test_resnet_20_has_its_published_accuracy():
    root = Path(os.environ["EDGETL_DATA"])
    net = create("resnet_cifar", str(root / "weights/resnet-cifar10/resnet20.safetensors"), tuple("abcdefghij"), 0)
    prep = net.facts["prep"]
    with np.load(root / "cifar10/test.npz") as found:
        x = found["planes"].cumsum(3, dtype=np.uint8).cumsum(2, dtype=np.uint8)
        x[0] += x[1]
        x[2] += x[1]
        pixels, labels = x.transpose(1, 0, 2, 3), found["labels"]
    mean, std = (torch.tensor(prep[key])[:, None, None] for key in ("mean", "std"))
    right = 0
    with torch.no_grad():
        for part in np.array_split(np.arange(len(labels)), 20):
            batch = (torch.from_numpy(pixels[part]).float() / 255 - mean) / std
            right += int((net.logits({"pixel_values": batch}).argmax(1).numpy() == labels[part]).sum())
    assert right == 9173
