"""EfficientNet-Lite: padded as TensorFlow pads, and read under the names that its weights are published with."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.families.efficientnet_lite import STAGES, SameConvNorm
from edgetl.network import cost
from edgetl.network.network import Network, create
from tests.families.test_convolutional import FEW, network

LABELS = ("a", "b", "c")


@given(st.integers(1, 20), st.sampled_from([3, 5]), st.sampled_from([1, 2]))
@FEW
def test_padding_is_tensorflows(size, kernel, stride):
    part = SameConvNorm(2, 3, kernel, stride, act=False).eval()
    x = torch.randn(1, 2, size, size + 1)
    total = [max(0, (math.ceil(n / stride) - 1) * stride + kernel - n) for n in (size, size + 1)]
    (top, left), (bottom, right) = [n // 2 for n in total], [n - n // 2 for n in total]
    padded = functional.pad(x, (left, right, top, bottom))
    wanted = functional.conv2d(padded, part.conv.weight, stride=stride) / math.sqrt(1 + 1e-3)
    torch.testing.assert_close(part(x), wanted, rtol=1e-5, atol=1e-5)


def timm_names(net: Network) -> dict[str, Tensor]:
    """The weights as timm would have written them, by walking its architecture."""
    state, found = {name: value.float() for name, value in net.state().items()}, {}

    def take(ours: str, theirs: str) -> None:
        found.update({theirs + k.removeprefix(ours): v for k, v in state.items() if k.startswith(f"{ours}.")})

    for ours, conv, norm in (("stem", "conv_stem", "bn1"), ("last", "conv_head", "bn2")):
        take(f"{ours}.conv", conv)
        take(f"{ours}.norm", norm)
    for ours, conv, norm in (("depthwise", "conv_dw", "bn1"), ("project", "conv_pw", "bn2")):
        take(f"stem.{ours}.conv", f"blocks.0.0.{conv}")
        take(f"stem.{ours}.norm", f"blocks.0.0.{norm}")
    for stage, (_, blocks, _, _) in enumerate(STAGES, 1):
        for i in range(blocks):
            parts = (("expand", "conv_pw", "bn1"), ("depthwise", "conv_dw", "bn2"), ("project", "conv_pwl", "bn3"))
            for ours, conv, norm in parts:
                take(f"layers.{stage}.{i}.{ours}.conv", f"blocks.{stage}.{i}.{conv}")
                take(f"layers.{stage}.{i}.{ours}.norm", f"blocks.{stage}.{i}.{norm}")
    take("head", "classifier")
    return {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")}


def test_weights_under_timms_names_are_read(tmp_path):
    net = network("efficientnet_lite", {"image_size": 224})
    save_file(timm_names(net), tmp_path / "lite.safetensors")
    read = create("efficientnet_lite", str(tmp_path / "lite.safetensors"), LABELS, seed=3)
    assert read.config == net.config
    assert read.facts["prep"]["mean"] == [0.5, 0.5, 0.5]
    net.module.float()
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64)}
    assert torch.equal(read.logits(inputs), net.logits(inputs))
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="holds no weights of an efficientnet_lite"):
        create("efficientnet_lite", str(tmp_path / "other.safetensors"), LABELS, 0)
    with pytest.raises(BadInput, match=r"has no config\.json") as caught:  # the folder they were published in
        create("efficientnet_lite", str(tmp_path), LABELS, 0)
    assert str(tmp_path / "lite.safetensors") in str(caught.value.fix)


@pytest.mark.slow
@pytest.mark.skipif("EDGETL_DATA" not in os.environ, reason="EDGETL_DATA names no folder of real data")
def test_efficientnet_lite0_answers_as_its_weights_were_published():
    root = Path(os.environ["EDGETL_DATA"])
    weights = root / "weights/efficientnet-lite0-imagenet/model.safetensors"
    net = create("efficientnet_lite", str(weights), tuple(map(str, range(1000))), 0)
    assert cost.parameters(net) == 4_652_008
    known = {
        "chelsea.png": {282: 0.383, 285: 0.358, 281: 0.168},
        "coffee.png": {967: 0.951, 968: 0.015, 925: 0.007},
        "rocket.jpg": {657: 0.298, 744: 0.201, 540: 0.087},
    }
    for name, wanted in known.items():
        image = Image.open(root / "photos" / name).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - 224) // 2 for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32).transpose(2, 0, 1) / 255
        with torch.no_grad():
            found = net.logits({"pixel_values": torch.from_numpy((pixels[None] - 0.5) / 0.5)}).softmax(-1)[0]
        best = found.topk(3).indices.tolist()
        assert {number: round(float(found[number]), 3) for number in best} == wanted
