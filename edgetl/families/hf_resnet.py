"""ResNets of Hugging Face, basic and bottleneck (He et al. 2016, arXiv 1512.03385), for image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.families._channels import HFConvolutional, initialise
from edgetl.families._sizes import Activation, checked, complete
from edgetl.network.family import Layout
from edgetl.network.names import live
from edgetl.strict import Strict
from edgetl.types import Json

Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=16384)], ...], Field(min_length=1, max_length=16)]
Depths = Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=16)]
SIDES = 4
"""Inner channels of a bottleneck go into its outer ones so many times, in transformers always."""


class ResNetSizes(Strict):
    """Sizes under the names of transformers' ResNetConfig, and the side of its images, which that lacks."""

    model_type: Literal["resnet"] = "resnet"
    image_size: int = Field(32, ge=1, le=8192)
    num_channels: int = Field(3, ge=1, le=256)
    embedding_size: int = Field(16, ge=1, le=16384)
    hidden_sizes: Widths = (16, 32)
    depths: Depths = (2, 2)
    layer_type: Literal["basic", "bottleneck"] = "basic"
    hidden_act: Activation = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


def _layout(prefix: str, head: str) -> Layout:
    block = f"{prefix}encoder.stages.{{}}.layers.{{}}"
    places = {"first": "layer.0", "second": "layer.1", "third": "layer.2", "shortcut": "shortcut"}
    layers = {f"layers.{{}}.{{}}.{ours}": f"{block}.{theirs}" for ours, theirs in places.items()}
    layers["stem"] = f"{prefix}embedder.embedder"
    pairs = list(layers.items())
    pairs += [(f"{ours}.conv", f"{theirs}.convolution") for ours, theirs in layers.items()]
    pairs += [(f"{ours}.norm", f"{theirs}.normalization") for ours, theirs in layers.items()]
    return Layout((*pairs, ("layers.{}.{}", block), ("head", head)))


class HFResNet(HFConvolutional):
    """`ResNetForImageClassification`."""

    name = "hf_resnet"
    data = "image"
    names = (_layout("resnet.", "classifier.1"), _layout("", "classifier.1"))
    parts = ("first", "second", "third")
    kind = "resnet"
    sizes = ResNetSizes

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `ResNetSizes` for the keys of a mapping."""
        sizes = checked(ResNetSizes, self.given(source), self.name)
        if len(sizes.depths) != len(sizes.hidden_sizes):
            raise BadInput(
                f"{self.name}: {len(sizes.depths)} depths for {len(sizes.hidden_sizes)} hidden_sizes",
                fix="give one of each for every stage",
            )
        if sizes.layer_type == "bottleneck" and any(width < SIDES for width in sizes.hidden_sizes):
            raise BadInput(
                f"{self.name}: a bottleneck is {SIDES} channels wide or more, not {min(sizes.hidden_sizes)}",
                fix="choose larger hidden_sizes, or layer_type: basic",
            )
        return complete(sizes, labels)

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        import transformers

        values = {k: v for k, v in config.items() if k not in {"model_type", "num_labels", "image_size"}}
        sizes = transformers.ResNetConfig(**values, num_labels=config["num_labels"])
        module = cast(nn.Module, transformers.ResNetForImageClassification(sizes)).eval()
        initialise(live(self, module))
        return module

    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, C, height, width)."""
        return cast(Tensor, module.classifier(module.resnet.pooler(hidden)))  # type: ignore[operator,union-attr]

    def stages(self, module: nn.Module) -> tuple[str, ...]:
        """Return the blocks."""
        names = live(self, module)
        found, stage, block = [], 0, 0
        while names.has(f"layers.{stage}.0"):
            found.append(f"layers.{stage}.{block}")
            block += 1
            if not names.has(f"layers.{stage}.{block}"):
                stage, block = stage + 1, 0
        return tuple(found)


PLUGIN = HFResNet()
