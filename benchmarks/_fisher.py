"""The peer of OPTIN that needs labels and gradients: pruning by the Fisher information of the masks.

Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, arXiv 2204.09656, written from its
description: the diagonal of the Fisher information of the mask variables ranks heads and neurons, the split between
them fills the MAC budget; then the units of a layer are re-arranged by the layer's whole block of the information, and
what is left is tuned: one factor for each head and neuron, by least squares, layer by layer.
Letters: B samples, R positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.train.batches import Data

SAMPLES = 2048
"""Of the training split, as the paper takes; all where there are fewer."""
BATCH = 64
RIDGE = 1e-3
"""Pull of the factors to 1, as a share of the mean squared contribution."""
MOST = 10.0
"""A factor beyond this, either way, ends the tuning, as in the paper."""
STREAM = {"hf_vit": ("norm2", "given"), "hf_bert": ("norm1", "gave")}
"""By family, the layer of a block whose input or output is the residual stream that the neurons add to."""

Kept = Mapping[str, Sequence[int]]


def gradients(net: Network, data: Data, seed: int) -> dict[str, NDArray[np.float64]]:
    """The (samples, count) gradients of the loss with respect to the masks, by group."""
    groups = net.family.units(net.module)
    found: dict[str, list[Tensor]] = {g.name: [] for g in groups}
    for batch in batches(data, seed):
        masks = {g.name: torch.ones(len(batch["labels"]), g.count, requires_grad=True) for g in groups}
        with ExitStack() as stack:
            for g in groups:
                whole = masks[g.name].repeat_interleave(g.width, dim=1)[:, None]
                stack.callback(net.at(g.gate).register_forward_pre_hook(_times(whole)).remove)
            loss = F.cross_entropy(net.logits(batch), batch["labels"], reduction="sum")
        for name, gradient in zip(masks, torch.autograd.grad(loss, [*masks.values()]), strict=True):
            found[name].append(gradient.double())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def diagonal(found: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """The diagonal of the Fisher information, (count,) by group."""
    return {name: np.square(g).sum(axis=0) for name, g in found.items()}


def rearranged(found: Mapping[str, NDArray[np.float64]], kept: Kept) -> dict[str, tuple[int, ...]]:
    """As many units of each group, exchanged one by one where by the layer's block of the information less is lost."""
    best = {}
    for name, grads in found.items():
        stays, order = set(kept[name]), np.argsort(np.square(grads).sum(axis=0)).tolist()
        gone = [u for u in order if u not in stays]
        for unit in (u for u in order if u in stays):
            if not gone:
                break
            gone.append(unit)
            # Without each of them in turn, what the others' leaving does together: the squared length of their sum.
            left = grads[:, gone].sum(axis=1, keepdims=True) - grads[:, gone]
            gone.pop(int(np.square(left).sum(axis=0).argmin()))
        best[name] = tuple(sorted(set(range(grads.shape[1])) - set(gone)))
    return best


@torch.no_grad()
def tuned(dense: Network, kept: Kept, data: Data, seed: int) -> Network:
    """The cut network with a factor for each unit, so that every layer answers as the dense one on its own stream."""
    every = dense.family.units(dense.module)
    net = dense.edit([g.keep(kept[g.name]) for g in every if len(kept[g.name]) < g.count])
    groups, samples = [g for g in every if kept[g.name]], list(batches(data, seed))
    wanted = [{name: h.gave + h.stream for name, h in _heard(dense, groups, batch).items()} for batch in samples]
    for group in groups:
        factors = _factors(net, group, len(kept[group.name]), samples, [heard[group.name] for heard in wanted])
        if float(factors.abs().max()) > MOST:
            break
        gate = net.names().linear(group.gate)
        gate.weight.mul_(factors.repeat_interleave(group.width).to(gate.weight))
    return net


class Heard(NamedTuple):
    """What goes into and comes out of a group's gate, and the residual stream that it adds to, at P real positions."""

    given: Tensor  # (P, count x width)
    gave: Tensor  # (P, D)
    stream: Tensor  # (P, D)


class Enough(Exception):
    """All that was listened for has been heard: what lies behind it need not run."""


def _factors(
    net: Network, group: Group, count: int, samples: Sequence[Mapping[str, Tensor]], wanted: Sequence[Tensor]
) -> Tensor:
    """The (count,) factors that bring the units' sum closest to what the stream lacks, close to 1 where it is free."""
    weight, bias = (
        p.detach().double() for p in (net.names().linear(group.gate).weight, net.names().linear(group.gate).bias)
    )
    inner, outer = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    overlap = weight.T @ weight
    for batch, dense in zip(samples, wanted, strict=True):
        own = _heard(net, [group], batch)[group.name]
        target = (dense - own.stream).double() - bias
        c = own.given.double()
        blocks = (c.T @ c * overlap).reshape(count, group.width, count, group.width)
        inner += blocks.sum(dim=(1, 3))
        outer += (c.T @ target * weight.T).sum(dim=1).reshape(count, group.width).sum(dim=1)
    ridge = RIDGE * inner.diagonal().mean().clamp(min=1e-30)
    return torch.linalg.solve(inner + ridge * torch.eye(count, dtype=torch.float64), outer + ridge)


def _heard(net: Network, groups: Sequence[Group], batch: Mapping[str, Tensor]) -> dict[str, Heard]:
    """What is heard of each group; no block behind the last of them runs."""
    blocks = net.family.stages(net.module)
    real = batch["attention_mask"].bool() if "attention_mask" in batch else ...
    heard = {}
    with ExitStack() as stack:
        for g in groups:
            layer, side = ("", "given") if g.kind == "heads" else STREAM[net.family.name]
            place = f"{blocks[g.stage]}.{layer}" if layer else blocks[g.stage]
            heard[g.name] = (
                stack.enter_context(_listening(net.at(g.gate))),
                stack.enter_context(_listening(net.at(place))),
                side,
            )
        last = net.at(blocks[max(g.stage for g in groups)]).register_forward_hook(_stop)
        stack.callback(last.remove)
        with suppress(Enough):
            net.logits(batch)
    return {
        name: Heard(*(part[real].flatten(0, -2) for part in (gate["given"], gate["gave"], stream[side])))
        for name, (gate, stream, side) in heard.items()
    }


def _stop(_: nn.Module, __: tuple[Tensor, ...], ___: object) -> None:
    raise Enough


@contextmanager
def _listening(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    heard: dict[str, Tensor] = {}

    def hear(_: nn.Module, args: tuple[Tensor, ...], out: object) -> None:
        heard["given"] = args[0]
        if isinstance(out, Tensor):
            heard["gave"] = out

    handle = module.register_forward_hook(hear)
    try:
        yield heard
    finally:
        handle.remove()


def _times(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, args: (args[0] * mask, *args[1:])


def batches(data: Data, seed: int) -> Iterator[Mapping[str, Tensor]]:
    """Training samples with their labels."""
    rows = data.rows("train")
    drawn = np.random.default_rng(seed).permutation(rows)[:SAMPLES]
    for start in range(0, len(drawn), BATCH):
        yield data.batch(drawn[start : start + BATCH])
