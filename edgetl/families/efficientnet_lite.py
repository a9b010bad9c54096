"""EfficientNet-Lite: EfficientNet (Tan & Le 2019, arXiv 1905.11946) with ReLU6 and without attention on channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.families._channels import TENSORS, ConvNorm, Pictures, Staged
from edgetl.network.family import Layout, Prep
from edgetl.network.saved import saved_prep
from edgetl.network.source import is_weights, locate, read_shapes
from edgetl.strict import Strict
from edgetl.types import Json

STAGES = ((24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))
"""Channels, blocks, kernel and stride of every stage of Lite0."""

STEM, FIRST, LAST = 32, 16, 1280
"""Channels of the first convolution, of the block in the stem and of the last convolution."""

EPS = 1e-3
EXPANSION = 6
PUBLISHED = 224
"""Pixels along the side of the images that Lite0's weights were trained on."""


class LiteSizes(Strict):
    """Sizes of the network; Lite0 as published has a width and depth of 1, and 224 pixels."""

    model_type: Literal["efficientnet_lite"] = "efficientnet_lite"
    width: float = Field(0.25, gt=0, le=16)  # factor of all channels, which are rounded to multiples of 8
    depth: float = Field(1.0, gt=0, le=16)  # factor of the blocks of every stage but the last, rounded up
    dropout: float = Field(0.2, ge=0, lt=1)  # before the classifier
    num_channels: int = Field(3, ge=1, le=256)
    image_size: int = Field(64, ge=8, le=8192)


class SameConvNorm(ConvNorm):
    """Padded as TensorFlow does: where a stride leaves an odd number to add, the last row and column get more."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, *, act: bool = True, depthwise: bool = False):
        super().__init__(ins, outs, kernel, stride, act=act, depthwise=depthwise)
        self.norm.eps = EPS
        self.act = nn.ReLU6() if act else nn.Identity()
        if stride > 1:
            self.conv.padding = (0, 0)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map, rounded up, of (B, ins, height, width)."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride > 1:
            missing = [max(0, (math.ceil(n / stride) - 1) * stride + kernel - n) for n in hidden.shape[:1:-1]]
            hidden = functional.pad(hidden, [side for n in missing for side in (n // 2, n - n // 2)])
        return super().forward(hidden)


class Stem(SameConvNorm):
    """The first convolution, and a block without expansion."""

    def __init__(self, ins: int, outs: int, last: int) -> None:
        super().__init__(ins, outs, 3, 2)
        self.depthwise = SameConvNorm(outs, outs, 3, depthwise=True)
        self.project = SameConvNorm(outs, last, 1, act=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, last, height / 2, width / 2) map of images (B, ins, height, width)."""
        return cast(Tensor, self.project(self.depthwise(super().forward(hidden))))


class Block(nn.Module):
    """An inverted residual: expanded, convolved channel by channel, projected; added where the shape stays."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * ins
        self.expand = SameConvNorm(ins, inner, 1)
        self.depthwise = SameConvNorm(inner, inner, kernel, stride, depthwise=True)
        self.project = SameConvNorm(inner, outs, 1, act=False)
        self.adds = (ins, stride) == (outs, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        made = cast(Tensor, self.project(self.depthwise(self.expand(hidden))))
        return hidden + made if self.adds else made


class EfficientNet(Staged):
    """Stem, six stages of blocks, a last convolution, the mean over all places and a linear classifier."""

    def __init__(self, sizes: LiteSizes, labels: int) -> None:
        super().__init__()
        ins = _channels(FIRST, sizes.width)
        self.stem = Stem(sizes.num_channels, _channels(STEM, sizes.width), ins)
        stages = {}
        for number, (channels, blocks, kernel, stride) in enumerate(STAGES, 1):
            outs = _channels(channels, sizes.width)
            count = blocks if number == len(STAGES) else math.ceil(sizes.depth * blocks)
            made = [Block(ins if i == 0 else outs, outs, kernel, stride if i == 0 else 1) for i in range(count)]
            stages[str(number)], ins = nn.Sequential(*made), outs
        self.layers = nn.ModuleDict(stages)
        self.last = SameConvNorm(ins, _channels(LAST, sizes.width), 1)
        self.dropout = nn.Dropout(sizes.dropout)
        self.head = nn.Linear(_channels(LAST, sizes.width), labels)

    def answer(self, hidden: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output."""
        return cast(Tensor, self.head(self.dropout(self.last(hidden).mean((2, 3)))))


def _layouts() -> tuple[Layout, Layout]:
    """Return our own names, and those of timm's `tf_efficientnet_lite0`."""
    own = Layout(tuple((name, name) for name in ("stem", "layers", "last", "head")))
    pairs = [("stem.conv", "conv_stem"), ("stem.norm", "bn1"), ("last.conv", "conv_head"), ("last.norm", "bn2")]
    pairs.append(("head", "classifier"))
    order = (("expand", "conv_pw", "bn1"), ("depthwise", "conv_dw", "bn2"), ("project", "conv_pwl", "bn3"))
    for ours, conv, norm in order:
        pairs.append((f"layers.{{}}.{{}}.{ours}.conv", f"blocks.{{}}.{{}}.{conv}"))
        pairs.append((f"layers.{{}}.{{}}.{ours}.norm", f"blocks.{{}}.{{}}.{norm}"))
    # by tensor, so that the block in the stem, which has no expansion, is matched before those of the stages
    for ours, conv, norm in (("depthwise", "conv_dw", "bn1"), ("project", "conv_pw", "bn2")):
        for tensor in (*TENSORS, "norm.num_batches_tracked"):
            layer, _, rest = tensor.partition(".")
            theirs = conv if layer == "conv" else norm
            pairs.append((f"stem.{ours}.{tensor}", f"blocks.0.0.{theirs}.{rest}"))
    return own, Layout(tuple(pairs))


class EfficientNetLite(Pictures):
    """EfficientNet-Lite0 as published, and smaller or larger ones."""

    name = "efficientnet_lite"
    data = "image"
    names = _layouts()
    parts = ("expand", "depthwise", "project")
    depthwise = frozenset({"depthwise"})
    sizes = LiteSizes
    network = EfficientNet

    def given(self, source: str) -> Mapping[str, Json]:
        """Return the sizes that a folder or hub id states, or that the weights of a bare file show."""
        where = locate(source)
        return _measured(where) if is_weights(where) else super().given(source)

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return size and channels, and for weights from elsewhere how the images were scaled that they saw."""
        own = super().prep(source, config)
        if not isinstance(source, str) or saved_prep(locate(source)) is not None:
            return own
        half = (0.5,) * int(config["num_channels"])
        return Prep(own.size, own.channels, mean=half, std=half, resample="bicubic")

    def passed_by(self, block: nn.Module) -> bool:
        """Return whether the block keeps its input's shape, and adds it."""
        return cast(Block, block).adds


def _measured(file: Path) -> dict[str, Json]:
    """Return the sizes of the published network that a bare file of weights holds."""
    stem = next((s for name, s in read_shapes(file).items() if name in ("conv_stem.weight", "stem.conv.weight")), ())
    if len(stem) != 4:
        raise BadInput(f"{file} holds no weights of an efficientnet_lite", fix="choose the family that reads it")
    return {"width": stem[0] / STEM, "num_channels": stem[1], "image_size": PUBLISHED}


def _channels(count: int, width: float) -> int:
    """Return the scaled count as a multiple of 8, at least 8 and not more than a tenth below it."""
    found = max(8, int(count * width + 4) // 8 * 8)
    return found + 8 if found < 0.9 * count * width else found


PLUGIN = EfficientNetLite()
