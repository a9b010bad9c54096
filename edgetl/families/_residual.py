"""Residual networks of plain blocks, for pictures, spectrograms and series (He et al. 2016, arXiv 1512.03385).

A series is a map of height 1, its convolutions have kernels of height 1: what cuts, scores, exports and quantizes the
channels of pictures does it to those of a series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.nn import functional

from edgetl.families._channels import ConvNorm, Staged
from edgetl.network.family import Layout

Kernel: TypeAlias = int | tuple[int, int]
"""One side of a square, or height and width; odd, so that a convolution can keep the size."""

OWN = Layout((("stem", "stem"), ("layers", "layers"), ("head", "head")))
PARTS = ("first", "second")
"""Of a block."""


class ScaledStem(ConvNorm):
    """A first convolution that brings raw readings to mean 0 and deviation 1, as training saw them, by channel."""

    def __init__(self, ins: int, outs: int, kernel: Kernel, stride: int = 1) -> None:
        super().__init__(ins, outs, kernel, stride)
        self.scale = nn.BatchNorm2d(ins)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        return super().forward(self.scale(hidden))


class Shrink(nn.Module):
    """The shortcut where the shape changes: every second place, and channels of zeros on both sides (option A)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.added = (outs - ins) // 2, outs - ins - (outs - ins) // 2

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, outs, height / 2, width / 2) of `hidden` (B, ins, height, width)."""
        return functional.pad(hidden[:, :, ::2, ::2], (0, 0, 0, 0, *self.added))


class Block(nn.Module):
    """Two convolutions, and a shortcut around them."""

    def __init__(self, ins: int, outs: int, kernel: Kernel, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(ins, outs, kernel, stride)
        self.second = ConvNorm(outs, outs, kernel, act=False)
        self.shortcut = nn.Identity() if ins == outs else Shrink(ins, outs)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the (B, outs, height / stride, width / stride) map of `hidden` (B, ins, height, width)."""
        return functional.relu(self.second(self.first(hidden)) + self.shortcut(hidden))


class ResNet(Staged):
    """A stem, stages of equally many blocks, the mean over all places and a linear classifier.

    Every stage but the first halves the map, and is wider than the one before.
    """

    def __init__(self, stem: nn.Module, widths: Sequence[int], blocks: int, kernel: Kernel, labels: int) -> None:
        super().__init__()
        self.stem = stem
        stages, ins = {}, widths[0]
        for number, outs in enumerate(widths, 1):
            sizes = [(ins if i == 0 else outs, outs, kernel, 1 if i or number == 1 else 2) for i in range(blocks)]
            stages[str(number)], ins = nn.Sequential(*(Block(*each) for each in sizes)), outs
        self.layers = nn.ModuleDict(stages)
        self.head = nn.Linear(widths[-1], labels)

    def answer(self, hidden: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output."""
        return cast(Tensor, self.head(hidden.mean((2, 3))))
