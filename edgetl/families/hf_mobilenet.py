"""MobileNetV2 of Hugging Face (Sandler et al. 2018, arXiv 1801.04381), for image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn

from edgetl.families._channels import HFConvolutional, initialise
from edgetl.families._sizes import Activation, checked, complete
from edgetl.network.family import Layout
from edgetl.network.names import live
from edgetl.strict import Strict
from edgetl.types import Json

BLOCKS = 16
"""In transformers always."""

MOMENTUM = 0.1
"""Of the running statistics; transformers hands TensorFlow's decay on as PyTorch's opposite, so that only the last
batch would count."""


class MobileNetSizes(Strict):
    """Sizes under the names of transformers' MobileNetV2Config."""

    model_type: Literal["mobilenet_v2"] = "mobilenet_v2"
    image_size: int = Field(32, ge=1, le=8192)
    num_channels: int = Field(3, ge=1, le=256)
    depth_multiplier: float = Field(0.25, gt=0, le=16)
    depth_divisible_by: int = Field(8, ge=1, le=1024)
    min_depth: int = Field(8, ge=1, le=1024)
    expand_ratio: float = Field(6.0, ge=1, le=64)
    output_stride: Literal[2, 4, 8, 16, 32] = 8  # for small images; published weights want 32
    first_layer_is_expansion: bool = True
    finegrained_output: bool = False
    hidden_act: Activation = "relu6"
    tf_padding: bool = True
    classifier_dropout_prob: float = Field(0.2, ge=0, lt=1)
    layer_norm_eps: float = Field(0.001, gt=0, lt=1)


PARTS = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}


def _layout(prefix: str) -> Layout:
    layers = {f"layers.{{}}.{ours}": f"{prefix}layer.{{}}.{theirs}" for ours, theirs in PARTS.items()}
    layers |= {f"stem.{ours}": f"{prefix}conv_stem.{theirs}" for ours, theirs in PARTS.items()}
    layers |= {"stem.first": f"{prefix}conv_stem.first_conv", "last": f"{prefix}conv_1x1"}
    pairs = list(layers.items())
    pairs += [(f"{ours}.conv", f"{theirs}.convolution") for ours, theirs in layers.items()]
    pairs += [(f"{ours}.norm", f"{theirs}.normalization") for ours, theirs in layers.items()]
    return Layout((*pairs, ("layers.{}", f"{prefix}layer.{{}}"), ("head", "classifier")))


class HFMobileNet(HFConvolutional):
    """`MobileNetV2ForImageClassification`."""

    name = "hf_mobilenet"
    data = "image"
    names = (_layout("mobilenet_v2."), _layout(""))
    parts = tuple(PARTS)
    depthwise = frozenset({"depthwise"})
    kind = "mobilenet_v2"
    sizes = MobileNetSizes

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `MobileNetSizes` for the keys of a mapping."""
        return complete(checked(MobileNetSizes, self.given(source), self.name), labels)

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        import transformers

        values = {k: v for k, v in config.items() if k not in {"model_type", "num_labels"}}
        sizes = transformers.MobileNetV2Config(**values, num_labels=config["num_labels"])
        module = cast(nn.Module, transformers.MobileNetV2ForImageClassification(sizes)).eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = MOMENTUM
        initialise(live(self, module))
        return module

    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, C, height, width)."""
        body, classifier, dropout = module.mobilenet_v2, module.classifier, module.dropout
        pooled = body.pooler(body.conv_1x1(hidden)).flatten(1)  # type: ignore[operator,union-attr]
        return cast(Tensor, classifier(dropout(pooled)))  # type: ignore[operator]

    def stages(self, module: nn.Module) -> tuple[str, ...]:
        """Return the blocks behind the stem."""
        return tuple(f"layers.{i}" for i in range(BLOCKS))

    def passed_by(self, block: nn.Module) -> bool:
        """Return whether the block keeps its input's shape, and adds it."""
        return bool(block.use_residual)


PLUGIN = HFMobileNet()
