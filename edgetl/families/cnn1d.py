"""A residual network of 1-D convolutions for windows of readings (Wang et al. 2017, arXiv 1611.06455)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.families._channels import Own
from edgetl.families._residual import OWN, PARTS, ResNet, ScaledStem
from edgetl.network.family import Prep
from edgetl.strict import Strict
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.train.batches import Data


class Cnn1dSizes(Strict):
    """Sizes of the network; the first layer learns the scale of every channel of the readings."""

    model_type: Literal["cnn1d"] = "cnn1d"
    length: int = Field(100, ge=1, le=1_000_000)  # readings of a window
    num_channels: int = Field(6, ge=1, le=4096)  # of a reading
    widths: tuple[int, ...] = Field((16, 32, 64), min_length=1, max_length=8)  # channels of every stage
    blocks: int = Field(1, ge=1, le=64)  # of every stage
    kernel: int = Field(5, ge=1, le=255)  # readings that a convolution sees; odd
    stem_stride: Literal[1, 2, 4] = 1


class Cnn(ResNet):
    """A residual network on maps of height 1."""

    def __init__(self, sizes: Cnn1dSizes, labels: int) -> None:
        kernel = (1, sizes.kernel)
        stem = ScaledStem(sizes.num_channels, sizes.widths[0], kernel, sizes.stem_stride)
        super().__init__(stem, sizes.widths, sizes.blocks, kernel, labels)


class Cnn1d(Own):
    """For sensor windows and other time series of fixed length."""

    name = "cnn1d"
    data = "sensor"
    names = (OWN,)
    parts = PARTS
    sizes = Cnn1dSizes
    network = Cnn

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `Cnn1dSizes` for the keys of a mapping."""
        found = super().config(source, labels)
        kernel, widths = found["kernel"], found["widths"]
        if kernel % 2 == 0:
            raise BadInput(f"{self.name}: a kernel of {kernel} has no middle", fix="choose an odd kernel")
        grows = all(0 < a <= b for a, b in zip((1, *widths), widths, strict=False))
        if not grows or widths[-1] > 65536:
            raise BadInput(f"{self.name}: widths {list(widths)} do not grow", fix="write them like [16, 32, 64]")
        return found

    def fitted(self, sizes: Mapping[str, Json], data: Data) -> Mapping[str, Json]:
        """Return the sizes with length and channels of the data's windows."""
        windows = data.prepared.inputs.get("input_values")
        return sizes if windows is None else {"length": windows.shape[-1], "num_channels": windows.shape[1], **sizes}

    def reads(self, config: Json) -> Prep:
        """Return the length and channels of a window."""
        return Prep(channels=int(config["num_channels"]), length=int(config["length"]))

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return normal noise as `input_values` (B, C, length)."""
        shape = (batch, config["num_channels"], config["length"])
        return {"input_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(inputs["input_values"].unsqueeze(2)))


PLUGIN = Cnn1d()
