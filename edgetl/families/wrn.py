"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.families._channels import ConvNorm, Pictures, Staged
from edgetl.network.family import Layout
from edgetl.strict import Strict
from edgetl.types import Json


class WideSizes(Strict):
    """Sizes of WRN-depth-width: three stages of equally many blocks, of 16, 32 and 64 times `width` channels."""

    model_type: Literal["wrn"] = "wrn"
    depth: int = Field(16, ge=10, le=1204)  # layers with weights: 6 n + 4 for n blocks in a stage
    width: int = Field(1, ge=1, le=256)
    channels: int = Field(16, ge=1, le=4096)  # of the stem, and what `width` multiplies
    num_channels: int = Field(3, ge=1, le=256)
    image_size: int = Field(32, ge=4, le=8192)


class Conv(nn.Module):
    """A convolution whose normalisation is that of the next block."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        return cast(Tensor, self.conv(hidden))


class Block(nn.Module):
    """Two convolutions of the normalised input, and a shortcut around them."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(ins)
        self.first = ConvNorm(ins, outs, 3, stride)
        self.second = Conv(outs, outs, 3)
        self.shortcut = None if (ins, stride) == (outs, 1) else Conv(ins, outs, 1, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        opened = functional.relu(self.norm(hidden))
        around = hidden if self.shortcut is None else self.shortcut(opened)
        return cast(Tensor, self.second(self.first(opened)) + around)


class WideResNet(Staged):
    """A convolution, three stages of blocks, the mean over all places and a linear classifier."""

    def __init__(self, sizes: WideSizes, labels: int) -> None:
        super().__init__()
        self.stem = Conv(sizes.num_channels, sizes.channels, 3)
        stages, ins, count = {}, sizes.channels, (sizes.depth - 4) // 6
        for number in (1, 2, 3):
            outs = sizes.channels * sizes.width * 2 ** (number - 1)
            each = [(ins if i == 0 else outs, outs, 1 if i or number == 1 else 2) for i in range(count)]
            stages[str(number)], ins = nn.Sequential(*(Block(*one) for one in each)), outs
        self.layers = nn.ModuleDict(stages)
        self.norm = nn.BatchNorm2d(ins)
        self.head = nn.Linear(ins, labels)

    def answer(self, hidden: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output."""
        return cast(Tensor, self.head(functional.relu(self.norm(hidden)).mean((2, 3))))


class Wrn(Pictures):
    """WRN-16-2, -40-1, -28-10, ... for images such as CIFAR-10's."""

    name = "wrn"
    data = "image"
    names = (Layout((("stem", "stem"), ("layers", "layers"), ("norm", "norm"), ("head", "head"))),)
    parts = ("first", "second")
    sizes = WideSizes
    network = WideResNet

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `WideSizes` for the keys of a mapping."""
        found = super().config(source, labels)
        if (found["depth"] - 4) % 6:
            fix = "choose 10, 16, 22, 28, 40 ..."
            raise BadInput(f"{self.name}: a depth of {found['depth']} is not 6 n + 4", fix=fix)
        return found


PLUGIN = Wrn()
