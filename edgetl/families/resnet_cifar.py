"""ResNets for small images, with shortcuts that have no weights (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.families._channels import ConvNorm, initialise, noise
from edgetl.families._residual import OWN, Residual, ResNet
from edgetl.families._sizes import checked, complete, stated
from edgetl.network.family import Layout, Prep
from edgetl.network.names import live, to_canonical
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


PARTS = {"first.conv": "conv1", "first.norm": "bn1", "second.conv": "conv2", "second.norm": "bn2"}


class ResNetCifar(Residual):
    """ResNet-20, -32, -44, -56, ... for images such as CIFAR-10's."""

    name = "resnet_cifar"
    data = "image"
    names = (
        OWN,
        Layout(
            (
                *((f"layers.{{}}.{{}}.{ours}", f"layer{{}}.{{}}.{theirs}") for ours, theirs in PARTS.items()),
                *(("stem.conv", "conv1"), ("stem.norm", "bn1"), ("head", "linear")),
            )
        ),
    )

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `ResNetSizes` for the keys of a mapping."""
        given = self._read(source) if isinstance(source, str) else source
        sizes = checked(ResNetSizes, given, self.name)
        if (sizes.depth - 2) % 6:
            raise BadInput(
                f"{self.name}: a depth of {sizes.depth} is not 6 n + 2", fix="choose 8, 14, 20, 32, 44, 56, 110 ..."
            )
        return complete(sizes, labels)

    def _read(self, source: str) -> dict[str, Json]:
        where = locate(source)
        if is_weights(where):
            return self._measured(where)
        return stated(ResNetSizes, self.name, source)

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
        size, channels = (int(config["image_size"]),) * 2, int(config["num_channels"])
        if not isinstance(source, str):
            return Prep(size=size, channels=channels)
        found = saved_prep(locate(source))
        colour = channels == len(MEAN)
        return found or Prep(size, channels, MEAN if colour else None, STD if colour else None)

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        sizes = checked(ResNetSizes, config, self.name)
        widths = tuple(sizes.channels * factor for factor in (1, 2, 4))
        stem = ConvNorm(sizes.num_channels, widths[0], 3, sizes.stem_stride)
        module = ResNet(stem, widths, (sizes.depth - 2) // 6, 3, config["num_labels"]).eval()
        initialise(live(self, module))
        return module

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return normal noise as `pixel_values` (B, C, height, width)."""
        return noise(config, batch)

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(inputs["pixel_values"]))


PLUGIN = ResNetCifar()
