"""Mixtures of two samples of a batch, and cross entropy with both of their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgetl.errors import BadInput
from edgetl.recipe.schema import Mix
from edgetl.train.batches import Batch

VALUES = ("pixel_values", "input_values")
"""The inputs that hold numbers, of which a mean or a box means something."""

MIXED = ("mixed", "kept", "other", "other_index")
"""What a batch holds besides where its samples are mixed."""


class Mixing:
    """What one global batch is mixed with: the same in every process, however the batch is shared out."""

    def __init__(self, mix: Mix, count: int, seed: Sequence[int]) -> None:
        draw = np.random.default_rng(seed)
        self.op = mix.op
        self.partner = draw.permutation(count)  # (B,): whose values come into each sample
        self.share = float(draw.beta(mix.alpha, mix.alpha)) if draw.random() < mix.probability else 1.0
        self.centre = draw.random(8)  # of the box, as a share of each axis

    def mixed(self, own: Batch, other: Batch) -> Batch:
        """Return `own` and, of the mixture, the input as `mixed`, the other's labels and rows, and what is `kept`.

        `kept` (B,) is the share of the sample's own values. The input of `own` stays as it is.

        Raises:
            BadInput: the input is text.

        """
        name = values_of(own)
        mine, theirs = own[name], other[name]
        if self.op == "mixup":
            values, kept = self.share * mine + (1 - self.share) * theirs, self.share
        else:
            box = self._box(mine.shape[2:])
            inside = torch.zeros(mine.shape[2:], dtype=torch.bool, device=mine.device)
            inside[tuple(box)] = True
            values = torch.where(inside, theirs, mine)
            kept = 1 - math.prod(b.stop - b.start for b in box) / inside.numel()
        share = torch.full((len(mine),), kept, device=mine.device)
        return own | {"mixed": values, "kept": share, "other": other["labels"], "other_index": other["index"]}

    def _box(self, shape: Sequence[int]) -> list[slice]:
        """Return a box that takes 1 - share of the volume, less what lies outside."""
        found = []
        for size, centre in zip(shape, self.centre, strict=False):
            half = int(size * (1 - self.share) ** (1 / len(shape))) // 2
            middle = int(centre * size)
            found.append(slice(max(0, middle - half), min(size, middle + half)))
        return found


def values_of(batch: Mapping[str, Tensor]) -> str:
    """Return the name of the input that can be mixed.

    Raises:
        BadInput: there is none, as in texts.

    """
    name = next((name for name in VALUES if name in batch), None)
    if name is None:
        raise BadInput("schedule.mix: texts cannot be mixed", fix="drop schedule.mix")
    return name


def cross_entropy(logits: Tensor, batch: Mapping[str, Tensor], smoothing: float = 0.0) -> Tensor:
    """Return the sum of cross entropies with the labels (B,), of mixtures by the share of either sample."""
    own = functional.cross_entropy(logits, batch["labels"], label_smoothing=smoothing, reduction="none")
    if "kept" not in batch:
        return own.sum()
    other = functional.cross_entropy(logits, batch["other"], label_smoothing=smoothing, reduction="none")
    return (batch["kept"] * own + (1 - batch["kept"]) * other).sum()
