"""Multiply-accumulates and parameters, counted on the network as it is: stem, blocks and head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgetl.network.family import Group
from edgetl.network.names import Live
from edgetl.network.network import Network


def macs(net: Network, tokens: int | None = None) -> int:
    """Return the MACs of one sample; `tokens` is the length of a text, padding left out."""
    return _counts(net, tokens)[""]


def parameters(net: Network) -> int:
    """Return the number of weights, shared ones counted once."""
    return sum(p.numel() for p in net.module.parameters())


def prices(net: Network, tokens: int | None = None) -> dict[str, int]:
    """Return the MACs of one unit of every group, by the group's name, from one forward pass.

    A head costs 4 N D d + 2 N^2 d, a neuron 2 N D (N tokens, D width, d head width).
    """
    counts, names = _counts(net, tokens), net.names()
    return {group.name: _price(names, group, counts) for group in net.family.units(net.module)}


def price(net: Network, group: Group, tokens: int | None = None) -> int:
    """Return the MACs of one unit of a group; `prices` is cheaper for several groups."""
    return _price(net.names(), group, _counts(net, tokens))


def work(net: Network, tokens: int | None = None) -> dict[tuple[str, ...], int]:
    """Return the MACs of one sample by the groups that they are in proportion to, () for those that no cut changes.

    A convolution between two groups is in proportion to the product of both counts.
    """
    counts, names = _counts(net, tokens), net.names()
    layers: dict[str, tuple[str, ...]] = {}
    found: Counter[tuple[str, ...]] = Counter()
    for group in net.family.units(net.module):
        for name in _layers(names, group):
            layers[name] = (*layers.get(name, ()), group.name)
        found[group.name,] += _inside(names, group, counts)
    for name, groups in layers.items():
        found[groups] += counts.get(name, 0)
    return {(): counts[""] - found.total(), **found}


def shared_parameters(net: Network) -> dict[tuple[str, ...], int]:
    """Return the number of weights by the groups that they are in proportion to, () for those that no cut changes."""
    owners: dict[str, tuple[str, ...]] = {}
    for group in net.family.units(net.module):
        for path, _ in group.tensors:
            owners[path] = (*owners.get(path, ()), group.name)
    names, found = net.names(), Counter[tuple[str, ...]]()
    for path, groups in owners.items():
        owner, attribute = names.owner(path)
        tensor = getattr(owner, attribute)
        if isinstance(tensor, nn.Parameter):
            found[groups] += tensor.numel()
    return {(): parameters(net) - found.total(), **found}


def _price(names: Live, group: Group, counts: Mapping[str, int]) -> int:
    """Share the MACs of every layer that the unit is a slice of, and of the attention between them."""
    own = sum(counts.get(name, 0) for name in _layers(names, group))
    return (own + _inside(names, group, counts)) // group.count


def _layers(names: Live, group: Group) -> tuple[str, ...]:
    """Return the module's own names of the layers that a unit is a slice of."""
    found: dict[str, None] = {}
    for path, _ in group.tensors:
        owner, attribute = names.owner(path)
        if attribute == "weight" and isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d):
            found[names.name(path).rpartition(".")[0]] = None
    return tuple(found)


def _inside(names: Live, group: Group, counts: Mapping[str, int]) -> int:
    """Return the MACs of the attention between the layers that a head is a slice of."""
    if group.kind != "heads":
        return 0
    place = names.name(group.place)
    layers = [name for name in _layers(names, group) if name.startswith(f"{place}.")]
    return counts.get(place, 0) - sum(counts.get(name, 0) for name in layers)


def _counts(net: Network, tokens: int | None) -> dict[str, int]:
    """Return the MACs of one sample by the module's own layer names, "" for all."""
    inputs = _sample(net, tokens)
    # Other attention kernels hide their matrix products from the counter.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.logits(inputs)
    root = type(net.module).__name__
    found = {"": counter.get_total_flops() // 2}
    for name, operations in counter.get_flop_counts().items():
        if name.startswith(f"{root}."):
            found[name.removeprefix(f"{root}.")] = sum(cast(int, n) for n in operations.values()) // 2
    return found


def _sample(net: Network, tokens: int | None) -> dict[str, Tensor]:
    """Return one sample on the module's device, a text of the length asked."""
    device = next(net.module.parameters()).device
    inputs = net.family.example(net.config, 1)
    if tokens is not None and net.family.data == "text":
        inputs = {name: value[:, :1].repeat(1, tokens) for name, value in inputs.items()}
    return {name: value.to(device) for name, value in inputs.items()}
