"""A small residual network on log-mel spectrograms, for spoken words and sounds (Tang & Lin 2018, arXiv 1710.10361)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.audio import frames
from edgetl.errors import BadInput
from edgetl.families._channels import Own
from edgetl.families._residual import OWN, PARTS, ResNet, ScaledStem
from edgetl.network.family import Prep
from edgetl.operations import MAX_BANDS, MAX_RATE, MAX_SAMPLES, MAX_WINDOW
from edgetl.strict import Strict
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.train.batches import Data

SPECTROGRAM = ("rate", "samples", "window", "hop", "bands")
"""The sizes that say how recordings become what the network reads, under the names of the operations."""


class AudioSizes(Strict):
    """Sizes of the network and of the spectrogram that it reads."""

    model_type: Literal["audio_resnet"] = "audio_resnet"
    rate: int = Field(16000, ge=1, le=MAX_RATE)  # samples a second
    samples: int = Field(16000, ge=1, le=MAX_SAMPLES)  # of a recording; shorter ones end in silence
    window: int = Field(512, ge=2, le=MAX_WINDOW)  # samples of a frame
    hop: int = Field(256, ge=1, le=MAX_WINDOW)  # samples between frames
    bands: int = Field(40, ge=1, le=MAX_BANDS)
    channels: int = Field(16, ge=1, le=4096)  # of the first stage; each stage is twice as wide as the one before
    blocks: int = Field(1, ge=1, le=64)  # of every stage
    stem_stride: Literal[1, 2] = 2


class SpectrogramNet(ResNet):
    """A residual network of three stages on maps of one channel."""

    def __init__(self, sizes: AudioSizes, labels: int) -> None:
        widths = tuple(sizes.channels * factor for factor in (1, 2, 4))
        super().__init__(ScaledStem(1, widths[0], 3, sizes.stem_stride), widths, sizes.blocks, 3, labels)


class AudioResNet(Own):
    """For recordings of a fixed length."""

    name = "audio_resnet"
    data = "audio"
    names = (OWN,)
    parts = PARTS
    sizes = AudioSizes
    network = SpectrogramNet

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `AudioSizes` for the keys of a mapping."""
        found = super().config(source, labels)
        hop, window, samples = found["hop"], found["window"], found["samples"]
        if not hop <= window <= samples:
            problem = f"{self.name}: a hop of {hop}, a window of {window} and {samples} samples"
            raise BadInput(f"{problem} do not fit each other", fix="choose hop <= window <= samples")
        return found

    def fitted(self, sizes: Mapping[str, Json], data: Data) -> Mapping[str, Json]:
        """Return the sizes with those of the data's spectrograms."""
        given = {key: value for operation in data.prepared.operations for key, value in operation.items()}
        return {**{key: given[key] for key in SPECTROGRAM if key in given}, **sizes}

    def reads(self, config: Json) -> Prep:
        """Return how recordings become spectrograms."""
        rate, samples, window, hop, bands = (int(config[key]) for key in SPECTROGRAM)
        return Prep(rate=rate, samples=samples, window=window, hop=hop, bands=bands)

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return normal noise as `input_values` (B, 1, bands, frames)."""
        shape = (batch, 1, config["bands"], frames(config["samples"], config["window"], config["hop"]))
        return {"input_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(inputs["input_values"]))


PLUGIN = AudioResNet()
