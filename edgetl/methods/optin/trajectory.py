"""A network's way through some samples, block by block.

Letters: B samples, T positions, D width of the residual stream, N blocks, K sampled positions, C copies of the samples.
The places of a map of a convolutional network, (B, D, height, width), are its positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.network.family import Family
from edgetl.train import taps


@dataclass(frozen=True)
class Call(taps.Call):
    """The arguments of a block besides the hidden state, as the dense network passed them."""

    def copied(self, copies: int, samples: int) -> Call:
        """Return the arguments for C copies of the samples, one after the other."""
        if copies == 1:
            return self
        args = tuple(copied(x, copies, samples) for x in self.args)
        return Call(args, {name: copied(x, copies, samples) for name, x in self.kwargs.items()})


def copied(value: object, copies: int, samples: int) -> object:
    """Return C copies along the first axis of the tensors in a value that hold one entry per sample."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == samples:
        return repeated(value, copies)
    if type(value) is tuple:
        return tuple(copied(x, copies, samples) for x in value)
    return value


def repeated(value: Tensor, copies: int) -> Tensor:
    """Return C copies of a tensor along its first axis."""
    return value if copies == 1 else value.repeat(copies, *[1] * (value.ndim - 1))


@dataclass(frozen=True)
class Batch:
    """One batch as the dense network saw and answered it."""

    inputs: Mapping[str, Tensor]
    entry: Tensor  # (B, T, D) input of the first block
    calls: tuple[Call, ...]  # N
    rows: tuple[Tensor, ...]  # N of (k,) sampled positions, as rows of the block's output made `flat`
    log_p: Tensor  # (B, labels) float64


@dataclass(frozen=True)
class Trajectory:
    """The dense network's way through the samples, against which every unit is compared."""

    module: nn.Module
    family: Family
    blocks: Mapping[str, nn.Module]  # N by name, in order
    batches: tuple[Batch, ...]
    points: tuple[Tensor, ...]  # N of (K, D), unit vectors: outputs of the blocks at the sampled positions

    def answers(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Return the (B, labels) log-probabilities that follow from the last block's output."""
        return log_p(self.family.finish(self.module, hidden, batch.inputs))


def walk(trajectory: Trajectory, stage: int, hidden: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the (K, D) points of the blocks from `stage` on and the (B, labels) log-probabilities of each batch."""
    blocks = list(trajectory.blocks.values())
    points: list[list[Tensor]] = [[] for _ in blocks[stage:]]
    log_q = []
    for batch, entry in zip(trajectory.batches, hidden, strict=True):
        h = entry
        for z in range(stage, len(blocks)):
            h = batch.calls[z](blocks[z], h)
            points[z - stage].append(sampled(h, batch.rows[z])[0])
        log_q.append(trajectory.answers(batch, h))
    return tuple(torch.cat(p) for p in points), tuple(log_q)


def sampled(hidden: Tensor, rows: Tensor, copies: int = 1) -> Tensor:
    """Return the (C, k, D) unit vectors at sampled positions of C copies of the samples."""
    every = flat(hidden)
    return F.normalize(every.reshape(copies, -1, every.shape[-1])[:, rows], dim=-1)


def flat(hidden: Tensor) -> Tensor:
    """Return the (positions, D) rows of a (B, T, D) hidden state or a (B, D, height, width) map."""
    return (hidden.permute(0, 2, 3, 1).flatten(0, 2)) if hidden.ndim == 4 else hidden.flatten(0, 1)


@dataclass(frozen=True)
class Heard:
    """One full forward of a network, and what its blocks were given and gave."""

    entry: Tensor  # input of the first block
    calls: tuple[Call, ...]  # N
    shapes: tuple[torch.Size, ...]  # N, of the blocks' outputs
    logits: Tensor  # (B, labels)


def listen(module: nn.Module, family: Family, blocks: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> Heard:
    """Run the network once and return how each block was called and what it gave."""
    entries: list[Tensor] = []
    calls: list[Call] = []
    shapes: list[torch.Size] = []

    def hear(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        if not calls:
            entries.append(args[0])
        calls.append(Call(args[1:], kwargs))

    def measure(_: nn.Module, __: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        shapes.append((out[0] if isinstance(out, tuple) else out).shape)

    with ExitStack() as stack:
        for block in blocks.values():
            stack.callback(block.register_forward_pre_hook(hear, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(measure).remove)
        logits = family.logits(module, inputs)
    return Heard(entries[0], tuple(calls), tuple(shapes), logits)


def valid(inputs: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """Return the rows of a hidden state of this shape, made `flat`, that are not padding."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        return mask.flatten().nonzero().squeeze(1)
    return torch.arange(math.prod(shape) // shape[1 if len(shape) == 4 else -1])


def log_p(logits: Tensor) -> Tensor:
    """Return (B, labels) log-probabilities in float64."""
    return logits.double().log_softmax(dim=-1)
