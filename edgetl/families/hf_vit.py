"""Vision transformers of Hugging Face: ViT and DeiT, for image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.families._merging import Settings, counts, merge_in
from edgetl.families._prep import recorded
from edgetl.families._sizes import Sizes, complete, pick, read_sizes
from edgetl.families._transformer import Transformer, initialise
from edgetl.network.family import Layout, Prep
from edgetl.network.names import Live, live
from edgetl.network.saved import saved_prep
from edgetl.network.source import locate, read_config
from edgetl.types import Json

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

TEACHER = "DeiTForImageClassificationWithTeacher"


class ViTSizes(Sizes):
    """Sizes under the names of transformers' ViTConfig."""

    model_type: Literal["vit", "deit"] = "vit"
    image_size: int | tuple[int, int] = 32
    patch_size: int | tuple[int, int] = 4
    num_channels: int = Field(3, ge=1, le=256)
    qkv_bias: bool = True
    pooling: Literal["cls", "mean"] = "cls"  # what the classifier reads: the class token, or the mean of the patches

    def image(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return _pair(self.image_size)


class MeanNorm(nn.LayerNorm):
    """The last norm, which leaves the mean of the patches where the classifier reads the class token."""

    def __init__(self, norm: nn.LayerNorm, others: int) -> None:
        super().__init__(norm.normalized_shape, norm.eps)
        self.others = others  # tokens before the patches

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the normalised (B, N, D), the first token replaced."""
        normed = super().forward(hidden)
        return torch.cat([normed[:, self.others :].mean(1, keepdim=True), normed[:, 1:]], dim=1)


def _layouts() -> tuple[Layout, ...]:
    """Return the names in transformers 5 and 4 (and in every file, which keep 4's), with and without the prefix."""
    found = []
    for kind in ("vit", "deit"):
        for prefix in (f"{kind}.", ""):
            found += [_layout(prefix, f"{prefix}layers.{{}}", new=True)]
            found += [_layout(prefix, f"{prefix}encoder.layer.{{}}", new=False)]
    return tuple(found)


def _layout(prefix: str, block: str, *, new: bool) -> Layout:
    attention, out = ("attention", "attention.o_proj") if new else ("attention.attention", "attention.output.dense")
    q, k, v = ("q_proj", "k_proj", "v_proj") if new else ("query", "key", "value")
    up, down = ("mlp.fc1", "mlp.fc2") if new else ("intermediate.dense", "output.dense")
    act = "mlp.activation_fn" if new else "intermediate.intermediate_act_fn"
    inside = {
        "attn.q": f"{attention}.{q}",
        "attn.k": f"{attention}.{k}",
        "attn.v": f"{attention}.{v}",
        "attn.o": out,
        "attn": "attention",
        "ffn.up": up,
        "ffn.act": act,
        "ffn.down": down,
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    stem = {"patch": "patch_embeddings.projection", "cls": "cls_token", "distil": "distillation_token"}
    pairs = [(f"layers.{{}}.{ours}", f"{block}.{theirs}") for ours, theirs in inside.items()]
    pairs += [(ours, f"{prefix}embeddings.{theirs}") for ours, theirs in stem.items()]
    pairs += [("positions", f"{prefix}embeddings.position_embeddings"), ("norm", f"{prefix}layernorm")]
    pairs += [("layers.{}", block), ("head", "classifier")]
    ignored = (f"{prefix}pooler.*", f"{prefix}embeddings.mask_token", "decoder.*", "*_classifier.*")
    return Layout(tuple(pairs), ignored)


class HFViT(Transformer):
    """`ViTForImageClassification` and `DeiTForImageClassification`, by default read from the class token."""

    name = "hf_vit"
    data = "image"
    merges = True
    names = _layouts()

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `ViTSizes` for the keys of a mapping."""
        given = self._from_folder(source, labels) if isinstance(source, str) else source
        sizes = read_sizes(ViTSizes, given, self.name)
        for pixels, patch in zip(_pair(sizes.image_size), _pair(sizes.patch_size), strict=True):
            if not 1 <= patch <= pixels <= 8192 or pixels % patch:
                raise BadInput(
                    f"{self.name}: image_size {sizes.image_size} is no multiple of patch_size {sizes.patch_size}",
                    fix="choose an image_size of whole patches, at most 8192 pixels",
                )
        found = complete(sizes, labels)
        return found if sizes.pooling == "mean" else {k: v for k, v in found.items() if k != "pooling"}

    def _from_folder(self, source: str, labels: int) -> dict[str, Json]:
        folder = locate(source)
        config = read_config(folder)
        kind = config.get("model_type")
        if kind not in {"vit", "deit"}:
            raise BadInput(f"{source} is a '{kind}' model, not a ViT or DeiT", fix="choose the family that reads it")
        if TEACHER in (config.get("architectures") or ()) and len(config.get("id2label") or ()) == labels:
            raise BadInput(
                f"{source} answers with the mean of two heads, of which edgetl reads none",
                fix="use a DeiT without a distillation head, or give your own labels to start from a new head",
            )
        return pick(ViTSizes, config)

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return size and channels, and mean, deviation and filter where the folder records them."""
        size, channels = _pair(config["image_size"]), int(config["num_channels"])
        if not isinstance(source, str):
            return Prep(size=size, channels=channels)
        folder = locate(source)
        if (found := saved_prep(folder)) is not None:
            return found
        return recorded(folder, size, channels)

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        import transformers

        values = {k: v for k, v in config.items() if k not in {"model_type", "num_labels", "pooling"}}
        deit = config["model_type"] == "deit"
        sizes = (transformers.DeiTConfig if deit else transformers.ViTConfig)(
            **values, num_labels=config["num_labels"], attn_implementation="sdpa"
        )
        kind = transformers.DeiTForImageClassification if deit else transformers.ViTForImageClassification
        vit = cast("ViTForImageClassification", kind(sizes))
        if config.get("pooling") == "mean":
            vit.base_model.layernorm = MeanNorm(vit.base_model.layernorm, 1 + deit)
        module = cast(nn.Module, vit).eval()
        initialise(live(self, module), config["initializer_range"])
        return module

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return normal noise as `pixel_values` (B, C, height, width)."""
        shape = (batch, config["num_channels"], *_pair(config["image_size"]))
        return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(pixel_values=inputs["pixel_values"]).logits)

    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, N, D)."""
        vit = cast("ViTForImageClassification", module)  # called once per candidate: no look-up of names here
        return cast(Tensor, vit.classifier(vit.base_model.layernorm(hidden)[:, 0]))

    def tokens(self, module: nn.Module) -> tuple[int, ...]:
        """Return the numbers of patches; the class token, and that of a DeiT's teacher, never merge.

        Empty where the classifier reads the mean of the patches: merged ones would count as one.
        """
        if isinstance(live(self, module).at("norm"), MeanNorm):
            return ()
        return counts(names := live(self, module), _settings(module, names).protected)

    def merge(self, module: nn.Module, layer: int, r: int) -> None:
        """Let a block merge r tokens."""
        merge_in(names := live(self, module), layer, r, _settings(module, names))


def _settings(module: nn.Module, names: Live) -> Settings:
    config = cast("ViTForImageClassification", module).config
    return Settings(
        protected=2 if names.has("distil") else 1,
        head_dim=config.hidden_size // config.num_attention_heads,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
    )


def _pair(value: Json) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


PLUGIN = HFViT()
