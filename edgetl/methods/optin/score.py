"""How much the answer, and the way to it, change when one unit is silent.

Only the blocks from the unit's own on run again: what lies before it cannot change.
Letters: B samples, T positions, D width of the residual stream, N blocks, K sampled positions. The places of a map of
a convolutional network, (B, D, height, width), are its positions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.errors import BadInput, Diverged
from edgetl.methods.optin.terms import Draw, divergence, manifold_distance
from edgetl.network.family import Family, Group

log = logging.getLogger("edgetl")

EVERY = 2.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Distortion:
    """What silencing each unit of a group does, per unit: (count,) each, 0 where nothing changes."""

    manifold: NDArray[np.float64]  # L_MD summed over the blocks compared (Eq. 2)
    output: NDArray[np.float64]  # L_KD: KL(dense || silenced) summed over the samples (Eq. 3)


@dataclass(frozen=True)
class Call:
    """The arguments of a block besides the hidden state, as the dense network passed them."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return the (B, T, D) output of the block."""
        out: Tensor | tuple[Tensor, ...] = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


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


@torch.no_grad()
def record(
    module: nn.Module,
    family: Family,
    blocks: Mapping[str, nn.Module],
    inputs: Sequence[Mapping[str, Tensor]],
    draw: Draw,
) -> Trajectory:
    """Run the dense network once and return its trajectory.

    Args:
        module: in eval mode.
        family: describes the module.
        blocks: the family's stages by name, in order.
        inputs: batches; where they hold an `attention_mask`, padding is never drawn.
        draw: which positions the manifold term compares.

    Raises:
        Diverged: a block gives values that are not finite; the message names it.
        BadInput: the blocks of the family do not follow one another directly.

    """
    heard = [listen(module, family, blocks, one) for one in inputs]
    # Blocks of one size share one draw: with the same seed and as many positions it is the same.
    drawn = [
        draw.rows([valid(one, h.shapes[z]) for one, h in zip(inputs, heard, strict=True)]) for z in range(len(blocks))
    ]
    batches = tuple(
        Batch(one, h.entry, h.calls, picked, log_p(h.logits))
        for one, h, picked in zip(inputs, heard, zip(*drawn, strict=True), strict=True)
    )
    bare = Trajectory(module, family, blocks, batches, ())
    points, answers = walk(bare, 0, [b.entry for b in batches])
    places = (*(f"block {name}" for name in blocks), "the classifier")
    for place, values in zip(places, (*points, torch.cat(answers)), strict=True):
        if not torch.isfinite(values).all():
            raise _diverged(place)
    if not all(torch.allclose(b.log_p, q, rtol=1e-4, atol=1e-4) for b, q in zip(batches, answers, strict=True)):
        raise BadInput(
            f"the blocks of family '{family.name}' do not follow one another directly, so optin cannot score them",
            fix="let the family's stages() name only blocks whose input is the output of the one before",
        )
    return Trajectory(module, family, blocks, batches, points)


@torch.no_grad()
def score(
    trajectory: Trajectory,
    groups: Sequence[Group],
    gates: Mapping[str, nn.Module],
    only: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Distortion]:
    """Return the distortions of all units by group, or of just some of them.

    Args:
        trajectory: of the dense network.
        groups: whose units are silenced one by one.
        gates: by group, the layer whose input (last axis) carries its units.
        only: by group, the units to silence; all where it is left out.

    Raises:
        Diverged: a unit's distortion is not finite.

    """
    found: dict[str, Distortion] = {}
    depth = len(trajectory.blocks)
    units = {g.name: range(g.count) if only is None else only[g.name] for g in groups}
    progress = Progress(sum(len(units[g.name]) * (depth - g.stage) for g in groups))
    hidden = [b.entry for b in trajectory.batches]
    for stage, block in enumerate(trajectory.blocks.values()):
        for group in (g for g in groups if g.stage == stage):
            found[group.name] = _score_group(trajectory, group, gates[group.name], units[group.name], hidden, progress)
        hidden = [b.calls[stage](block, h) for b, h in zip(trajectory.batches, hidden, strict=True)]
    return found


def combined(
    found: Mapping[str, Distortion], weight: float, *, normalised: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Return the scores by group: manifold + weight * output (Algorithm 1, line 7), or of their shares of all units."""
    manifold = output = 1.0
    if normalised:
        manifold = math.fsum(float(d.manifold.sum()) for d in found.values()) or 1.0
        output = math.fsum(float(d.output.sum()) for d in found.values()) or 1.0
    return {name: d.manifold / manifold + weight * (d.output / output) for name, d in found.items()}


def distort(trajectory: Trajectory, stage: int, hidden: Sequence[Tensor]) -> tuple[float, float]:
    """Return the manifold and output distortion of the network as it is now, run from one block on.

    The outputs of the blocks after `stage` are compared, and for the last block, which has none after it, its own.

    Args:
        trajectory: of the dense network.
        stage: the first block that may differ from the dense network.
        hidden: its dense input, (B, T, D) per batch.

    """
    first = min(stage + 1, len(trajectory.blocks) - 1)
    points, log_q = walk(trajectory, stage, hidden)
    pairs = list(zip(points, trajectory.points[stage:], strict=True))
    manifold = math.fsum(manifold_distance(s, t) for s, t in pairs[first - stage :])
    output = math.fsum(divergence(b.log_p, q) for b, q in zip(trajectory.batches, log_q, strict=True))
    return manifold, output


@contextmanager
def silent(gate: nn.Module, group: Group, unit: int) -> Iterator[None]:
    """Zero one unit's slice of the gate's input while open."""
    axis = unit_axis(gate)

    def zero(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x.narrow(axis, unit * group.width, group.width).zero_()
        return (x, *args[1:])

    handle = gate.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class Progress:
    """Logs how far the scores are and how long the rest will take, at most every two seconds."""

    total: int  # runs of a block
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def add(self, runs: int) -> None:
        """Count one unit, which ran this many blocks."""
        self.done += runs
        now = time.monotonic()
        if now - self.said >= EVERY:
            left = (now - self.started) / self.done * (self.total - self.done)
            counts = {"done": self.done, "total": self.total}
            log.info("scores: %.0f %%, about %.0f s left", 100 * self.done / self.total, left, extra=counts)
            self.said = now


def _score_group(
    trajectory: Trajectory,
    group: Group,
    gate: nn.Module,
    units: Sequence[int],
    hidden: Sequence[Tensor],
    progress: Progress,
) -> Distortion:
    rows = []
    for unit in units:
        with silent(gate, group, unit):
            rows.append(distort(trajectory, group.stage, hidden))
        if not np.isfinite(rows[-1]).all():
            raise _diverged(f"the network without unit {unit} of {group.name}")
        progress.add(len(trajectory.blocks) - group.stage)
    manifold, output = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return Distortion(manifold, output)


def walk(trajectory: Trajectory, stage: int, hidden: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the (K, D) points of the blocks from `stage` on and the (B, labels) log-probabilities of each batch."""
    blocks = list(trajectory.blocks.values())
    points: list[list[Tensor]] = [[] for _ in blocks[stage:]]
    log_q = []
    for batch, entry in zip(trajectory.batches, hidden, strict=True):
        h = entry
        for z in range(stage, len(blocks)):
            h = batch.calls[z](blocks[z], h)
            points[z - stage].append(F.normalize(flat(h)[batch.rows[z]], dim=-1))
        log_q.append(log_p(trajectory.family.finish(trajectory.module, h, batch.inputs)))
    return tuple(torch.cat(p) for p in points), tuple(log_q)


def unit_axis(gate: nn.Module) -> int:
    """Return the axis of a layer's input that carries units: channels lie before the places of a map."""
    return 1 if isinstance(gate, nn.Conv2d) else -1


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


def _diverged(what: str) -> Diverged:
    return Diverged(
        f"{what} gives values that are not finite", fix="train the step before optin with a lower learning rate"
    )
