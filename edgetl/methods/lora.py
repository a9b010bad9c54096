"""Train low-rank adapters beside the frozen weights, then add them to the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput, Diverged
from edgetl.methods._adapter import merge_adapter
from edgetl.network.family import Family
from edgetl.network.network import Network
from edgetl.recipe.schema import Context
from edgetl.train.training import Training

__all__ = ["PLUGIN", "Lora", "merge_adapter"]

MERGED = 1e-5
"""Largest difference that merging may make to an answer, relative to the largest answer."""

CHECKED = 8
"""Samples that the merge is checked on."""


class Lora(Training):
    """LoRA (Hu et al. 2022, arXiv 2106.09685): each weight W becomes W + alpha / rank * B A, B starting at zero."""

    rank: int = Field(8, ge=1)  # inner width of the adapters
    alpha: float | None = Field(None, gt=0)  # default: twice the rank
    dropout: float = Field(0.0, ge=0, lt=1)  # of the adapters' inputs
    targets: tuple[str, ...] = ()  # patterns of canonical layer paths, "*.attn.q"; default: all that the family names
    train_head: bool = True  # the classifier's own weights train too

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the network with the trained adapters merged into its weights.

        Raises:
            BadInput: a target names no layer, or the teacher has other labels.
            Diverged: the loss is not finite, or the adapters are too large to be merged exactly.

        """
        plain = net.copy()
        torch.manual_seed(ctx.seed)
        _attach(self, net)
        self.learn(net, ctx)
        batch = ctx.data.batch(ctx.data.rows("validation")[:CHECKED])
        before = _exact(net.family, net.module, batch)
        plain.module.load_state_dict(_merged(net.module))
        plain.module.requires_grad_(True).eval()
        _check(before, _exact(net.family, plain.module, batch))
        return replace(plain)


def _attach(step: Lora, net: Network) -> None:
    """Put adapters beside the target layers, in place, and leave only them and the head trainable."""
    from peft import LoraConfig, inject_adapter_in_model

    names, head = net.names(), net.at(net.family.head(net.module))
    config = LoraConfig(
        r=step.rank,
        lora_alpha=2 * step.rank if step.alpha is None else step.alpha,
        lora_dropout=step.dropout,
        target_modules=[names.name(path) for path in _targets(step, net)],
    )
    inject_adapter_in_model(config, net.module)
    head.requires_grad_(step.train_head)


def _targets(step: Lora, net: Network) -> list[str]:
    known = net.family.adapted(net.module)
    for pattern in step.targets:
        if not any(fnmatchcase(path, pattern) for path in known):
            fix = f"use patterns of: {', '.join(sorted({path.split('.', 2)[-1] for path in known}))}"
            raise BadInput(f"lora: target '{pattern}' names no layer that can be adapted", fix=fix)
    chosen = [path for path in known if not step.targets or any(fnmatchcase(path, p) for p in step.targets)]
    if not chosen:
        raise BadInput("lora: the network has no layer left that can be adapted", fix="use: finetune")
    return chosen


def _merged(module: nn.Module) -> dict[str, Tensor]:
    """Return the state that the module would have without adapters, their products added to the weights."""
    from peft.tuners.lora import LoraLayer

    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    return {k.replace(".base_layer.", "."): v for k, v in module.state_dict().items() if ".lora_" not in k}


def _exact(family: Family, module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the answers in float64, where the order of additions does not show."""
    double = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        return family.logits(double, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()})


def _check(before: Tensor, after: Tensor) -> None:
    error = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    if not error <= MERGED:  # also where it is not a number
        fix = "lower schedule.lr or alpha: the adapters have grown far beyond the weights"
        raise Diverged(f"merging the adapters changes the answers by {error:.1e} of the largest", fix=fix)


PLUGIN = Lora
