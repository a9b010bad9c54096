"""Which blocks of a student look at which of a teacher, and how padding is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgetl.errors import BadInput
from edgetl.network.network import Network


def pairs(student: Network, teacher: Network, wanted: Mapping[int, int] | None) -> list[tuple[str, str]]:
    """Return (student's block, teacher's block): as asked for by number, or evenly spread over both.

    Evenly is TinyBERT's map (Jiao et al. 2020, arXiv 1909.10351): block m of M looks at block m * N / M of N.

    Raises:
        BadInput: a number is out of range.

    """
    ours, theirs = (n.family.stages(n.module) for n in (student, teacher))
    if wanted is None:
        count = min(len(ours), len(theirs))
        return list(zip(_spread(ours, count), _spread(theirs, count), strict=True))
    for places, numbers, whose in ((ours, [*wanted], "student"), (theirs, [*wanted.values()], "teacher")):
        wrong = next((n for n in numbers if not 0 <= n < len(places)), None)
        if wrong is not None:
            fix = f"use numbers from 0 to {len(places) - 1}"
            raise BadInput(f"layers: the {whose} has no block {wrong}", fix=fix)
    return [(ours[a], theirs[b]) for a, b in wanted.items()]


def parts(net: Network, block: str, names: Sequence[str]) -> list[str]:
    """Return the paths of a block's layers, such as "attn.q".

    Raises:
        BadInput: the block has no such layer: another kind of network, or one that lost all its heads.

    """
    paths = [f"{block}.{name}" for name in names]
    known = net.names()
    if not all(known.has(path) for path in paths):
        problem = f"block {block} of family '{net.family.name}' has no attention to compare"
        raise BadInput(problem, fix="choose other layers, or another loss")
    return paths


def valid(batch: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Return the weights (B, T) of the positions of (B, T, D) features: equal without padding, 1 in sum per sample."""
    mask = batch.get("attention_mask")
    kept = torch.ones(features.shape[:2], device=features.device) if mask is None else mask.to(features.dtype)
    return kept / kept.sum(1, keepdim=True)


def rows(features: Tensor) -> Tensor:
    """Return (B, T, D) features; the places of a map (B, D, height, width) are its positions."""
    return features.flatten(2).mT if features.ndim == 4 else features


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, heads, T, d) of (B, T, heads * d)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _spread(places: Sequence[str], count: int) -> list[str]:
    return [places[(m + 1) * len(places) // count - 1] for m in range(count)]
