"""The sizes of a backbone as a strict model, from a recipe's mapping or a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar

from pydantic import Field, ValidationError

from edgetl.errors import BadInput
from edgetl.network.source import locate, read_config
from edgetl.plugins import nearest
from edgetl.strict import Strict
from edgetl.types import Json

Activation: TypeAlias = Literal[
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu6", "silu", "mish", "tanh"
]


class Sizes(Strict):
    """What all transformers have, under transformers' own names; the bounds keep a forged file from asking for more."""

    hidden_size: int = Field(64, ge=1, le=16384)
    num_hidden_layers: int = Field(4, ge=1, le=256)
    num_attention_heads: int = Field(4, ge=1, le=1024)
    intermediate_size: int = Field(128, ge=1, le=65536)
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = Field(0.0, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(0.0, ge=0, lt=1)
    initializer_range: float = Field(0.02, gt=0, le=10)
    layer_norm_eps: float = Field(1e-12, gt=0, lt=1)


M = TypeVar("M", bound=Strict)
S = TypeVar("S", bound=Sizes)


def read_sizes(kind: type[S], given: Mapping[str, Json], where: str) -> S:
    """Return the checked sizes of a transformer; `num_labels`, part of a complete configuration, is passed over.

    Raises:
        BadInput: an unknown key, a wrong value, or heads that do not divide the width.

    """
    sizes = checked(kind, given, where)
    if sizes.hidden_size % sizes.num_attention_heads:
        raise BadInput(
            f"{where}: hidden_size {sizes.hidden_size} is not divisible by num_attention_heads "
            f"{sizes.num_attention_heads}",
            fix=f"use a hidden_size of {sizes.num_attention_heads} times the width of one head",
        )
    return sizes


def checked(kind: type[M], given: Mapping[str, Json], where: str) -> M:
    """Return the checked sizes of any backbone; `num_labels` is passed over.

    Raises:
        BadInput: an unknown key or a wrong value.

    """
    values = {k: v for k, v in given.items() if k != "num_labels"}
    known = tuple(kind.model_fields)
    for key in values:
        if key not in known:
            raise BadInput(f"{where} has no size '{key}'", fix=nearest(str(key), known))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        raise BadInput(f"{where}: {key}: {first['msg']}", fix=f"change '{key}' in the source") from None


def complete(sizes: Strict, labels: int) -> dict[str, Json]:
    """Return the complete configuration as plain JSON; given as a source it returns itself."""
    if labels < 2:
        raise BadInput(f"a classifier needs two labels or more, not {labels}", fix="name the labels in the recipe")
    return {**sizes.model_dump(mode="json"), "num_labels": labels}


def pick(kind: type[Strict], config: Mapping[str, Json]) -> dict[str, Json]:
    """Return the sizes in a config.json, which holds much else."""
    return {key: config[key] for key in kind.model_fields if key in config}


def stated(kind: type[Strict], model_type: str, source: str) -> dict[str, Json]:
    """Return the sizes that the config.json of a folder or hub id states.

    Raises:
        BadInput: the source is missing, or of another kind.

    """
    config = read_config(locate(source))
    if (found := config.get("model_type")) != model_type:
        raise BadInput(f"{source} is a '{found}' model, not a {model_type}", fix="choose the family that reads it")
    return pick(kind, config)
