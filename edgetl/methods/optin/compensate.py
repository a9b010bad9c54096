"""Least squares after a cut: what is left of a layer learns to answer as the whole layer did.

The layers that read units (the attention's output, the FFN's down-projection, the convolution behind channels) are
fitted one after another, each on its inputs in the network as it is cut and fitted so far, towards its outputs in the
dense network:

    argmin over W, b of  sum |W c + b - y|^2 + rho |[W, b] - [W, b] as cut|^2,   rho = ridge * mean diagonal of sum c c'

in closed form, in float64, padding left out. A convolution is the matrix of its patches, the zeros around the map
included. It has no bias of its own: what it would be goes into the mean that the batch normalisation behind it
subtracts, whose other statistics stay, as the layer is fitted to the outputs that they were taken of. The centred
ridge is why no layer's own fit can be worse than none.
A better layer can still make a worse network: after a fit, its answers on all samples, and on those of them that no
layer was fitted on, are compared with the dense ones, and a fit that does not help on both is taken back.
Letters: n rows (positions of samples), C kept inputs of a layer (of a convolution: times the places of a patch) and one
for its bias, D its outputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.errors import Diverged
from edgetl.methods.optin.passing import Passing
from edgetl.methods.optin.sampling import batches, by_length, placed
from edgetl.methods.optin.terms import divergence
from edgetl.methods.optin.trajectory import flat, valid
from edgetl.network.edits import Keep
from edgetl.network.family import Group
from edgetl.network.names import Live
from edgetl.network.network import Network
from edgetl.train.batches import Data

log = logging.getLogger("edgetl")

FITTED = 0.75
"""Share of the samples that layers are fitted on; the others only judge."""

PATCHES = 8_000_000
"""Numbers of a convolution's patches that are held at a time."""


@dataclass(frozen=True)
class Calibration:
    """The same samples on their way through both networks."""

    dense: Passing
    cut: Passing
    fitted: int  # batches that layers are fitted on, the first ones; the others only judge


@dataclass(frozen=True)
class Fit:
    """How a layer is to change."""

    weight: Tensor | None  # (D, kept inputs), of a convolution its weight's shape; None: the layer is only a bias
    bias: Tensor | None  # (D,); None: the layer has none, and no normalisation behind it


@dataclass(frozen=True)
class Sample:
    """Which training samples a compensation reads."""

    count: int
    batch: int  # in one forward
    seed: int
    limit: float = math.inf  # bytes of states that are held on the way


@torch.no_grad()
def compensated(dense: Network, cut: Network, data: Data, sample: Sample, ridge: float) -> Network:
    """Return the cut network with layers fitted to those of the dense one.

    The KL divergence of its answers from the dense ones, summed over all samples, is not larger than without.

    Args:
        dense: the network before any cut.
        cut: the same without some units; its weights are changed in place.
        data: whose training samples are read, labels unused.
        sample: how many of them.
        ridge: share of the Gram matrix's mean diagonal.

    Raises:
        Diverged: a network gives values that are not finite.

    """
    names = cut.names()
    groups = [g for g in dense.family.units(dense.module) if _path(names, g) is not None]
    groups.sort(key=lambda g: (g.stage, g.kind != "heads"))
    with placed(dense.module, cut.module) as device:
        calibration = _calibration((dense, cut), data, sample, device)
        before = least = _errors(calibration, calibration.cut.log_p)
        taken = 0
        for group in groups:
            errors = _improved(calibration, group, least, ridge)
            taken += errors is not None
            least = errors or least
    said = "optin: least squares: %d of %d layers fitted, divergence from the dense answers %.3g -> %.3g"
    log.info(said, taken, len(groups), before[0], least[0])
    return replace(cut)  # with no digest of the weights it had before


def fit(dense: Passing, cut: Passing, group: Group, count: int, ridge: float) -> Fit:
    """Return how the layer that carries the group's units changes by least squares on the first batches."""
    names = cut.net.names()
    path = _path(names, group) or group.gate
    whole, gate = dense.net.at(path), names.at(path)
    width = _width(gate)
    outputs = _outputs(dense.net, cut.net, group)
    for way in (dense, cut):
        way.to(group.stage)
    biased = _offset(names, group) is not None
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for i in range(count):
        target, (given, answer) = dense.heard(i, whole)[1], cut.heard(i, gate)
        target = target if outputs is None else target[:, outputs]
        for read, missed in _rows(gate, given, target - answer, valid(cut.inputs[i], answer.shape)):
            c = torch.cat([read, read.new_ones(len(read), 1)], dim=1) if biased else read
            gram = gram + c.T @ c
            cross = cross + c.T @ missed
    assert isinstance(gram, Tensor)
    assert isinstance(cross, Tensor)
    rho = ridge * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    change = torch.linalg.solve(gram + rho * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross).T
    weight = change[:, :width].reshape(gate.get_parameter("weight").shape) if width else None
    return Fit(weight, change[:, -1] if biased else None)


def _path(names: Live, group: Group) -> str | None:
    """Return what to fit: the layer that reads the units, what is constant in its place, or None, where nothing is."""
    if names.has(group.gate):
        return group.gate
    return group.place if names.has(f"{group.place}.bias") else None


def _outputs(dense: Network, cut: Network, group: Group) -> list[int] | None:
    """Return which outputs of the dense layer are left, where they are channels of another group; None: all."""
    own = {(f"{group.gate}.weight", 0), (f"{group.place}.bias", 0)}
    left: list[int] | None = None
    for edit in cut.edits[len(dense.edits) :]:
        if isinstance(edit, Keep) and own & set(edit.tensors):
            left = [i if left is None else left[i] for i in edit.indices]
    return left


def _offset(names: Live, group: Group) -> tuple[Tensor, int] | None:
    """Return the tensor that moves the answers of what to fit, and its sign; None: there is none."""
    bias = getattr(names.at(_path(names, group) or group.gate), "bias", None)
    if isinstance(bias, Tensor):
        return bias, 1
    norm = f"{group.place}.norm"
    return (names.at(norm).get_buffer("running_mean"), -1) if names.has(norm) else None


def _width(gate: nn.Module) -> int:
    match gate:
        case nn.Linear():
            return gate.in_features
        case nn.Conv2d():
            return gate.weight[0].numel()
    return 0


def _rows(gate: nn.Module, given: Tensor, missed: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a layer reads, (n, width), and what its answers lack, (n, D), in float64."""
    if isinstance(gate, nn.Conv2d):
        padding = cast(tuple[int, ...], gate.padding)
        most = max(1, PATCHES // (_width(gate) * missed[0, 0].numel()))
        for some, lack in zip(torch.split(given, most), torch.split(missed, most), strict=True):
            patches = F.unfold(some.double(), gate.kernel_size, gate.dilation, padding, gate.stride)
            yield patches.transpose(1, 2).flatten(0, 1), flat(lack).double()
    else:
        lack = flat(missed)[rows].double()
        yield (given.flatten(0, 1)[rows].double() if isinstance(gate, nn.Linear) else lack[:, :0]), lack


def _improved(
    calibration: Calibration, group: Group, least: tuple[float, float], ridge: float
) -> tuple[float, float] | None:
    """Fit one layer and return the network's errors; None: they are not smaller, and the layer is as it was."""
    cut = calibration.cut
    change = fit(calibration.dense, cut, group, calibration.fitted, ridge)
    names = cut.net.names()
    moves: list[tuple[Tensor, Tensor]] = []
    if change.weight is not None:
        moves.append((names.at(group.gate).get_parameter("weight"), change.weight))
    if change.bias is not None and (offset := _offset(names, group)) is not None:
        moves.append((offset[0], offset[1] * change.bias))
    old = [tensor.clone() for tensor, _ in moves]
    for tensor, move in moves:
        tensor.add_(move)
    errors = _errors(calibration, [cut.answers(i) for i in range(len(cut.inputs))])
    if errors[0] < least[0] and errors[1] <= least[1]:
        return errors
    for (tensor, _), before in zip(moves, old, strict=True):
        tensor.copy_(before)
    return None


def _calibration(nets: tuple[Network, Network], data: Data, sample: Sample, device: torch.device) -> Calibration:
    rows = np.random.default_rng(sample.seed).choice(data.rows("train"), size=sample.count, replace=False)
    parts = np.split(rows, [max(1, math.floor(FITTED * len(rows)))])
    fitted, judging = (tuple(batches(data, by_length(data, p), sample.batch, device)) for p in parts)
    dense, cut = (Passing(net, (*fitted, *judging), sample.limit / 2) for net in nets)
    return Calibration(dense, cut, len(fitted))


def _errors(calibration: Calibration, answers: Sequence[Tensor]) -> tuple[float, float]:
    """Return KL(dense || cut) summed over all samples, and over the judging ones."""
    each = [divergence(p, q) for p, q in zip(calibration.dense.log_p, answers, strict=True)]
    total = math.fsum(each)
    if not math.isfinite(total):
        raise Diverged(
            "the network without its least important units gives values that are not finite",
            fix="train the step before optin with a lower learning rate",
        )
    return total, math.fsum(each[calibration.fitted :])
