"""ResNets for small images, with shortcuts that have no weights (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgetl.errors import BadInput
from edgetl.families._channels import ConvNorm, Pictures
from edgetl.families._residual import OWN, PARTS, ResNet
from edgetl.network.family import Layout, Prep
from edgetl.network.names import to_canonical
from edgetl.network.saved import saved_prep
from edgetl.network.source import is_weights, locate, read_shapes
from edgetl.strict import Strict
from edgetl.types import Json

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What published weights were trained with, here as everywhere: ImageNet's, not CIFAR-10's."""


class ResNetSizes(Strict):
    """Sizes of the network; three stages of equally many blocks, each stage twice as wide as the one before."""

    model_type: Literal["resnet_cifar"] = "resnet_cifar"
    depth: int = Field(20, ge=8, le=1202)  # layers with weights: 6 n + 2 for n blocks in a stage
    channels: int = Field(16, ge=1, le=4096)  # of the first stage
    stem_stride: Literal[1, 2] = 1
    num_channels: int = Field(3, ge=1, le=256)
    image_size: int = Field(32, ge=4, le=8192)


class CifarNet(ResNet):
    """Three stages behind one convolution."""

    def __init__(self, sizes: ResNetSizes, labels: int) -> None:
        widths = tuple(sizes.channels * factor for factor in (1, 2, 4))
        stem = ConvNorm(sizes.num_channels, widths[0], 3, sizes.stem_stride)
        super().__init__(stem, widths, (sizes.depth - 2) // 6, 3, labels)


PUBLISHED = {"first.conv": "conv1", "first.norm": "bn1", "second.conv": "conv2", "second.norm": "bn2"}


class ResNetCifar(Pictures):
    """ResNet-20, -32, -44, -56, ... for images such as CIFAR-10's."""

    name = "resnet_cifar"
    data = "image"
    names = (
        OWN,
        Layout(
            (
                *((f"layers.{{}}.{{}}.{ours}", f"layer{{}}.{{}}.{theirs}") for ours, theirs in PUBLISHED.items()),
                *(("stem.conv", "conv1"), ("stem.norm", "bn1"), ("head", "linear")),
            )
        ),
    )
    parts = PARTS
    sizes = ResNetSizes
    network = CifarNet

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `ResNetSizes` for the keys of a mapping."""
        found = super().config(source, labels)
        if (found["depth"] - 2) % 6:
            fix = "choose 8, 14, 20, 32, 44, 56, 110 ..."
            raise BadInput(f"{self.name}: a depth of {found['depth']} is not 6 n + 2", fix=fix)
        return found

    def given(self, source: str) -> Mapping[str, Json]:
        """Return the sizes that a folder or hub id states, or that the weights of a bare file show."""
        where = locate(source)
        return self._measured(where) if is_weights(where) else super().given(source)

    def _measured(self, file: Path) -> dict[str, Json]:
        """Return the sizes that the weights of a bare file show."""
        shapes = read_shapes(file)
        known = {
            to_canonical(self.names[1], name) or to_canonical(self.names[0], name): s for name, s in shapes.items()
        }
        stem = known.get("stem.conv.weight", ())
        blocks = sum(1 for name in known if name is not None and name.endswith(".first.conv.weight"))
        if len(stem) != 4 or not blocks:
            raise BadInput(f"{file} holds no weights of a {self.name}", fix="choose the family that reads it")
        return {"depth": 2 * blocks + 2, "channels": stem[0], "num_channels": stem[1]}

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return size and channels, and for weights from elsewhere the mean and deviation they were trained with."""
        own = super().prep(source, config)
        if not isinstance(source, str) or saved_prep(locate(source)) is not None or own.channels != len(MEAN):
            return own
        return Prep(own.size, own.channels, MEAN, STD)


PLUGIN = ResNetCifar()
