"""Least squares after a cut: what is left of a layer learns to answer as the whole layer did.

The layers that carry units (the attention's output and the FFN's down-projection) are fitted one after another, each
on its inputs in the network as it is cut and fitted so far, towards its outputs in the dense network:

    argmin over W, b of  sum |W c + b - y|^2 + rho |[W, b] - [W, b] as cut|^2,   rho = ridge * mean diagonal of sum c c'

in closed form, in float64, padding left out. The centred ridge is why no layer's own fit can be worse than none.
A better layer can still make a worse network: after a fit, its answers on all samples, and on those of them that no
layer was fitted on, are compared with the dense ones, and a fit that does not help on both is taken back.
Letters: n rows (positions of samples), C kept inputs of a layer and one for its bias, D its outputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from edgetl.errors import Diverged
from edgetl.methods.optin.sampling import batches, by_length, placed
from edgetl.methods.optin.score import log_p, valid
from edgetl.methods.optin.terms import divergence
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.train.batches import Data

log = logging.getLogger("edgetl")

FITTED = 0.75
"""Share of the samples that layers are fitted on; the others only judge."""


@dataclass(frozen=True)
class Calibration:
    """Samples on a device, and what the dense network answers."""

    fitted: tuple[Mapping[str, Tensor], ...]
    judging: tuple[Mapping[str, Tensor], ...]
    answers: tuple[Tensor, ...]  # log-probabilities (B, labels) of both, in order


@dataclass(frozen=True)
class Fit:
    """How a layer is to change."""

    weight: Tensor | None  # (D, kept inputs); None: the layer is only a bias
    bias: Tensor | None  # (D,); None: the layer has none


@dataclass(frozen=True)
class Sample:
    """Which training samples a compensation reads."""

    count: int
    batch: int  # in one forward
    seed: int


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
    groups = [g for g in dense.family.units(dense.module) if g.kind in ("heads", "neurons")]
    groups.sort(key=lambda g: (g.stage, g.kind != "heads"))
    with placed(dense.module, cut.module) as device:
        calibration = _calibration(dense, data, sample, device)
        before = least = _errors(cut, calibration)
        taken = 0
        for group in groups:
            errors = _improved(dense, cut, group, calibration, least, ridge)
            taken += errors is not None
            least = errors or least
    said = "optin: least squares: %d of %d layers fitted, divergence from the dense answers %.3g -> %.3g"
    log.info(said, taken, len(groups), before[0], least[0])
    return replace(cut)  # with no digest of the weights it had before


def fit(dense: Network, cut: Network, group: Group, inputs: Sequence[Mapping[str, Tensor]], ridge: float) -> Fit:
    """Return how the layer that carries the group's units changes by least squares on these inputs."""
    gate = cut.at(group.gate)
    width = gate.in_features if isinstance(gate, nn.Linear) else 0
    biased = getattr(gate, "bias", None) is not None
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for batch in inputs:
        target, (c, answer) = _heard(dense, group.gate, batch)[1], _heard(cut, group.gate, batch)
        rows = valid(batch, answer.shape)
        c = c.flatten(0, 1)[rows, :width].double()
        c = torch.cat([c, c.new_ones(len(c), 1)], dim=1) if biased else c
        gram = gram + c.T @ c
        cross = cross + c.T @ (target - answer).flatten(0, 1)[rows].double()
    assert isinstance(gram, Tensor)
    assert isinstance(cross, Tensor)
    rho = ridge * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    change = torch.linalg.solve(gram + rho * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross).T
    return Fit(change[:, :width] if width else None, change[:, -1] if biased else None)


def _improved(
    dense: Network, cut: Network, group: Group, calibration: Calibration, least: tuple[float, float], ridge: float
) -> tuple[float, float] | None:
    """Fit one layer and return the network's errors; None: they are not smaller, and the layer is as it was."""
    change = fit(dense, cut, group, calibration.fitted, ridge)
    gate = cut.at(group.gate)
    old = {name: p.clone() for name, p in gate.named_parameters()}
    for name, difference in (("weight", change.weight), ("bias", change.bias)):
        if difference is not None:
            gate.get_parameter(name).add_(difference)
    errors = _errors(cut, calibration)
    if errors[0] < least[0] and errors[1] <= least[1]:
        return errors
    for name, parameter in gate.named_parameters():
        parameter.copy_(old[name])
    return None


def _calibration(dense: Network, data: Data, sample: Sample, device: torch.device) -> Calibration:
    rows = np.random.default_rng(sample.seed).choice(data.rows("train"), size=sample.count, replace=False)
    parts = np.split(rows, [max(1, math.floor(FITTED * len(rows)))])
    fitted, judging = (tuple(batches(data, by_length(data, p), sample.batch, device)) for p in parts)
    return Calibration(fitted, judging, tuple(log_p(dense.logits(b)) for b in (*fitted, *judging)))


def _errors(cut: Network, calibration: Calibration) -> tuple[float, float]:
    """Return KL(dense || cut) summed over all samples, and over the judging ones."""
    every = (*calibration.fitted, *calibration.judging)
    each = [divergence(p, log_p(cut.logits(b))) for b, p in zip(every, calibration.answers, strict=True)]
    total = math.fsum(each)
    if not math.isfinite(total):
        raise Diverged(
            "the network without its least important units gives values that are not finite",
            fix="train the step before optin with a lower learning rate",
        )
    return total, math.fsum(each[len(calibration.fitted) :])


def _heard(net: Network, path: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the (B, T, C) input and the (B, T, D) output of a layer in one forward."""
    heard: list[tuple[Tensor, Tensor]] = []

    def hear(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        heard.append((args[0], out))

    with ExitStack() as stack:
        stack.callback(net.at(path).register_forward_hook(hear).remove)
        net.logits(batch)
    return heard[0]
