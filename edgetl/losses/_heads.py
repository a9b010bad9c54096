"""Auxiliary classifiers inside a network: what follows a stage, once more, with weights and classes of its own.

As in HSAKD's code (Yang et al. 2021, arXiv 2109.03075): the head behind a stage is a fresh copy of the stages after it,
the head behind the last one is one more stage of its shape, so that all of them end with maps of one shape.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from edgetl.losses._places import rows, valid
from edgetl.network.family import Family
from edgetl.network.names import live
from edgetl.network.network import Network
from edgetl.train.taps import Features, full, shapes_of, tapped

Depth = Literal["full", "light"]
"""All blocks of the stages after it, or one for each of them."""


Stages = tuple[tuple[str, ...], ...]
"""The blocks of a network, by stage."""


class Head(nn.Module):
    """Blocks and a classifier behind one place of a network."""

    def __init__(self, place: str, family: Family, blocks: Sequence[nn.Module], answer: nn.Module) -> None:
        super().__init__()
        self.place, self.family = place, family
        self.blocks = nn.ModuleList(blocks)
        self.answer = answer

    def forward(self, features: Features, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the last features and the (B, classes) logits."""
        hidden, call = features[self.place], features.calls[self.place]
        for block in self.blocks:
            hidden = call(block, hidden)
        return full(hidden), full(self.family.finish(self.answer, hidden, batch))


def hints(found: Sequence[Tensor], last: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean squared errors of features to the last ones, detached, padding left out; a sum over samples."""
    reference = rows(last.detach())
    share = valid(batch, reference)
    errors = [((rows(one) - reference).square().mean(-1) * share).sum() for one in found]
    return torch.stack(errors).sum() if errors else reference.new_zeros(())


def stages_of(net: Network, most: int) -> Stages:
    """Return the stages: of a convolutional network by the shape of their output, else `most` of as many blocks."""
    places = net.family.stages(net.module)
    shapes = shapes_of(net, places)
    if len(shapes[0]) == 4:
        starts = [i for i, shape in enumerate(shapes) if i == 0 or shape != shapes[i - 1]]
    else:
        starts = [i * len(places) // min(most, len(places)) for i in range(min(most, len(places)))]
    ends = [*starts[1:], len(places)]
    return tuple(places[a:b] for a, b in zip(starts, ends, strict=True))


def heads(net: Network, stages: Stages, classes: int, depth: Depth, seed: int) -> list[Head]:
    """Return a head of this many classes for every stage, with random weights."""
    torch.manual_seed(seed)
    return [_head(net, stages, number, classes, depth) for number in range(len(stages))]


def _head(net: Network, stages: Stages, number: int, classes: int, depth: Depth) -> Head:
    rest, last = stages[number + 1 :], stages[-1]
    twin = _twin(net, classes)
    if rest:
        wanted = [place for stage in rest for place in (stage if depth == "full" else stage[:1])]
        blocks = [copy.deepcopy(live(net.family, twin).at(place)) for place in wanted]
    elif depth == "full" and len(last) > 1:  # a stage's only block may change the shape
        blocks = [live(net.family, _twin(net, classes)).at(last[-1]) for _ in last]
    else:
        blocks = []
    return Head(stages[number][-1], net.family, blocks, _answering(net, twin))


def _twin(net: Network, classes: int) -> nn.Module:
    """Return the uncut network with other classes and random weights."""
    return net.family.build(net.family.config(net.config, classes))


def _answering(net: Network, twin: nn.Module) -> nn.Module:
    """Drop from a network all that `finish` does not use."""
    example = net.family.example(net.config, 2)
    last = net.family.stages(twin)[-1]
    with tapped({last: live(net.family, twin).at(last)}) as features:
        net.family.logits(twin, example)
    torch.autograd.backward(net.family.finish(twin, features[last].detach(), example).sum())
    for module in twin.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.grad is None:
                module.register_parameter(name, None)
            else:
                parameter.grad = None
    return twin
