"""A shallower network of some of another's blocks, as DistilBERT starts (Sanh et al. 2019, arXiv 1910.01108)."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgetl.errors import BadInput
from edgetl.methods.tleg.learngene import DEPTH
from edgetl.network.network import Network, create


def picked(net: Network, count: int) -> Network:
    """Return a network of `count` blocks of this one, evenly spaced from the first to the last, with their weights.

    Raises:
        BadInput: the network is cut, its blocks do not follow one shape, or it has fewer.

    """
    if net.edits:
        raise BadInput("`layers` picks blocks of an uncut network, and this one is cut", fix="put the cut behind it")
    places = net.family.stages(net.module)
    if places != tuple(f"layers.{i}" for i in range(net.config.get(DEPTH, 0))):
        fix = "leave `layers` out, and name a smaller `student`"
        raise BadInput(f"`layers` picks blocks of one shape, which {net.family.name} does not have", fix=fix)
    if count > len(places):
        raise BadInput(f"there are {len(places)} blocks, and `layers` asks for {count}", fix="ask for fewer")
    chosen = [round(i * (len(places) - 1) / max(1, count - 1)) for i in range(count)]
    student = create(net.family.name, {**net.config, DEPTH: count}, net.labels, seed=0)
    state = net.state()
    with torch.no_grad():
        for name, tensor in student.names().state().items():
            tensor.copy_(state[_source(name, chosen)])
    return replace(student, facts=net.facts)


def _source(name: str, chosen: list[int]) -> str:
    """Return the name in the deep network of a tensor of the shallow one."""
    first, _, rest = name.partition(".")
    if first != "layers":
        return name
    block, _, kind = rest.partition(".")
    return f"layers.{chosen[int(block)]}.{kind}"
