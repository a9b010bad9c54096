"""ShuffleNetV2 for small images (Ma et al. 2018, arXiv 1807.11164): no pooling, and a stem that keeps the size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.families._channels import ConvNorm, Pictures, Staged
from edgetl.network.family import Layout
from edgetl.strict import Strict
from edgetl.types import Json


class ShuffleSizes(Strict):
    """Sizes of the network; the defaults are those of the width 0.5."""

    model_type: Literal["shufflenet"] = "shufflenet"
    stem: int = Field(24, ge=1, le=4096)  # channels of the first convolution
    stem_stride: Literal[1, 2] = 1
    widths: tuple[int, ...] = Field((48, 96, 192), min_length=1, max_length=8)  # channels of every stage, even
    depths: tuple[int, ...] = Field((4, 8, 4), min_length=1, max_length=8)  # blocks of every stage
    last: int = Field(1024, ge=1, le=65536)  # channels of the last convolution
    num_channels: int = Field(3, ge=1, le=256)
    image_size: int = Field(32, ge=4, le=8192)


class Block(nn.Module):
    """Half of the channels pass three convolutions, the other half passes by; then both are shuffled.

    The first block of a stage halves the map: there all channels go both ways, the other one with convolutions too.
    """

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        half = outs // 2
        own = ins if stride == 2 else half
        self.expand = ConvNorm(own, half, 1)
        self.depthwise = ConvNorm(half, half, 3, stride, act=False, depthwise=True)
        self.project = ConvNorm(half, half, 1)
        around = (ConvNorm(ins, ins, 3, 2, act=False, depthwise=True), ConvNorm(ins, half, 1))
        self.shortcut = nn.Sequential(*around) if stride == 2 else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        if self.shortcut is None:
            around, own = hidden.chunk(2, 1)
        else:
            around, own = self.shortcut(hidden), hidden
        both = torch.stack((around, self.project(self.depthwise(self.expand(own)))), 2)
        return both.flatten(1, 2)


class ShuffleNet(Staged):
    """A convolution, stages of blocks, a last convolution, the mean over all places and a linear classifier."""

    def __init__(self, sizes: ShuffleSizes, labels: int) -> None:
        super().__init__()
        self.stem = ConvNorm(sizes.num_channels, sizes.stem, 3, sizes.stem_stride)
        stages, ins = {}, sizes.stem
        for number, (outs, depth) in enumerate(zip(sizes.widths, sizes.depths, strict=True), 1):
            blocks = [Block(ins if i == 0 else outs, outs, 1 if i else 2) for i in range(depth)]
            stages[str(number)], ins = nn.Sequential(*blocks), outs
        self.layers = nn.ModuleDict(stages)
        self.last = ConvNorm(ins, sizes.last, 1)
        self.head = nn.Linear(sizes.last, labels)

    def answer(self, hidden: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output."""
        return cast(Tensor, self.head(self.last(hidden).mean((2, 3))))


class ShuffleNetV2(Pictures):
    """ShuffleNetV2 for images such as CIFAR-10's."""

    name = "shufflenet"
    data = "image"
    names = (Layout((("stem", "stem"), ("layers", "layers"), ("last", "last"), ("head", "head"))),)
    parts = ("expand", "depthwise", "project")
    depthwise = frozenset({"depthwise"})
    sizes = ShuffleSizes
    network = ShuffleNet

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `ShuffleSizes` for the keys of a mapping."""
        found = super().config(source, labels)
        widths, depths = found["widths"], found["depths"]
        if len(widths) != len(depths) or not all(0 < w <= 65536 and w % 2 == 0 for w in widths):
            fix = "write as many even widths as depths, like [48, 96, 192] and [4, 8, 4]"
            raise BadInput(f"{self.name}: widths {list(widths)} and depths {list(depths)} make no stages", fix=fix)
        if not all(0 < depth <= 256 for depth in depths):
            raise BadInput(
                f"{self.name}: depths {list(depths)} are out of range", fix="give every stage 1 to 256 blocks"
            )
        return found


PLUGIN = ShuffleNetV2()
