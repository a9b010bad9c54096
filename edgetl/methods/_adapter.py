"""Merge a LoRA adapter that was trained elsewhere with peft. Nothing in its folder is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgetl.errors import BadInput, Refused
from edgetl.network.names import translate
from edgetl.network.network import Network
from edgetl.network.source import read_json
from edgetl.types import Json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
A, B = ".lora_A.weight", ".lora_B.weight"

# what changes nothing in a merge, or is read below; every other option must be off
KNOWN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "eva_config", "loftq_config", "megatron_core", "qalora_group_size"),
    *("runtime_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
}
NEUTRAL_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base weights as they were."""


@dataclass(frozen=True)
class Scaling:
    """How much of B A is added to a weight."""

    alpha: float
    by_layer: Mapping[str, float]  # alpha by the ends of layer names
    root: bool  # rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732): alpha / sqrt(rank)

    def of(self, layer: str, rank: int) -> float:
        """Return the factor for a layer, by the name that it had where the adapter was trained."""
        alpha = self.alpha
        for end, value in self.by_layer.items():
            if layer == end or layer.endswith(f".{end}"):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.root else rank)


def merge_adapter(net: Network, folder: Path) -> Network:
    """Return a fresh network with the adapter of a folder added to its weights.

    Names are those of any layout that the family reads, so it matters not which transformers version trained it.

    Raises:
        BadInput: it is no LoRA adapter, was made for another network, or uses an option that cannot be merged.
        Refused: its weights are a pickle or damaged.

    """
    scaling = _scaling(_config(folder), folder)
    scaled = {name: _scaled(name, tensor, scaling) for name, tensor in _tensors(folder).items()}
    known, unknown = translate(net.family.names, {_plain(name): tensor for name, tensor in scaled.items()})
    fresh = net.copy()
    names = fresh.names()
    unknown += [name for name in known if not names.has(_owner(name))]
    if unknown or not known:
        problem = (
            f"{folder} adapts {sorted(unknown)[0]}, which the network does not have"
            if unknown
            else f"{folder} is empty"
        )
        raise BadInput(problem, fix="merge it into the network that it was trained for, before that is cut")
    with torch.no_grad():
        for name, tensor in known.items():
            if name.endswith(A):
                _add(fresh, name.removesuffix(A), tensor, known.get(name.removesuffix(A) + B))
            elif not name.endswith(B):
                _replace(fresh, name, tensor)
    return replace(fresh)


def _config(folder: Path) -> dict[str, Json]:
    path = folder / CONFIG
    if not path.is_file():
        fix = f"give the folder that peft's save_pretrained wrote, with {CONFIG} and {WEIGHTS}"
        raise BadInput(f"{folder} is no adapter: it has no {CONFIG}", fix=fix)
    config = read_json(path)
    if not isinstance(config, dict):
        raise Refused(f"{path} holds no mapping", fix="get the adapter again from its origin")
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{folder} is a '{config.get('peft_type')}' adapter", fix="give a LoRA adapter")
    on = sorted(k for k, v in config.items() if k not in KNOWN and v not in (None, False, "", [], {}))
    start = config.get("init_lora_weights")
    if start not in NEUTRAL_STARTS:
        on.append(f"init_lora_weights={start}")
    if on:
        fix = "merge it with peft (merge_and_unload) and give the merged model as model.source"
        raise BadInput(f"{folder} uses {', '.join(on)}, which edgetl cannot merge", fix=fix)
    return config


def _scaling(config: Mapping[str, Json], folder: Path) -> Scaling:
    alpha, pattern = config.get("lora_alpha", 8), config.get("alpha_pattern") or {}
    numbers = [alpha, *(pattern.values() if isinstance(pattern, dict) else [None])]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise Refused(f"{folder / CONFIG}: lora_alpha or alpha_pattern is no number", fix="get the adapter again")
    for name in pattern:
        if not re.fullmatch(r"[\w.]+", name):  # a regular expression from a stranger can run for ever
            fix = "name the layers one by one, without regular expressions"
            raise BadInput(f"{folder / CONFIG}: alpha_pattern '{name[:80]}' is a regular expression", fix=fix)
    return Scaling(float(alpha), {k: float(v) for k, v in pattern.items()}, bool(config.get("use_rslora")))


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        if any(folder.glob("*.bin")):
            fix = "save it again where you trust it: model.save_pretrained(folder, safe_serialization=True)"
            raise Refused(f"{folder} holds its weights as a pickle, which can run code when opened", fix=fix)
        raise BadInput(f"{folder} has no {WEIGHTS}", fix="give the folder that peft's save_pretrained wrote")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise Refused(f"{path} is damaged ({error})", fix="get the adapter again from its origin") from None
    return tensors


def _plain(name: str) -> str:
    """Return a name of the file as it was before peft wrapped the layers."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return re.sub(r"\.(modules_to_save|lora_A|lora_B)\.default\.", r".\1.", name).replace(".modules_to_save.", ".")


def _owner(name: str) -> str:
    """Return the layer of an adapter's matrix, or the tensor itself."""
    return name.removesuffix(A).removesuffix(B)


def _scaled(name: str, tensor: Tensor, scaling: Scaling) -> Tensor:
    plain = _plain(name)
    if not plain.endswith(A) or tensor.dim() != 2 or len(tensor) == 0:
        return tensor
    return tensor.float() * scaling.of(plain.removesuffix(A), tensor.shape[0])


def _replace(net: Network, path: str, tensor: Tensor) -> None:
    owner, attribute = net.names().owner(path)
    old: Tensor = getattr(owner, attribute)
    if old.shape != tensor.shape:
        fix = "merge it into the network that it was trained for, with the same labels"
        raise BadInput(f"the adapter's {path} has shape {list(tensor.shape)}, the network's {list(old.shape)}", fix=fix)
    old.copy_(tensor)


def _add(net: Network, path: str, a: Tensor, b: Tensor | None) -> None:
    layer = net.at(path)
    if b is None or a.dim() != 2 or b.dim() != 2 or not isinstance(layer, nn.Linear):
        raise BadInput(f"the adapter of {path} is no pair of matrices for a linear layer", fix="give a LoRA adapter")
    if (b.shape[0], a.shape[1]) != layer.weight.shape or a.shape[0] != b.shape[1]:
        problem = f"the adapter of {path} is for {b.shape[0]} x {a.shape[1]}, the layer has {list(layer.weight.shape)}"
        raise BadInput(problem, fix="merge it into the network that it was trained for, before that is cut")
    layer.weight += b.float() @ a
