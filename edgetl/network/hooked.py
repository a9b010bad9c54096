"""What a torch network's layers answer, under the names of the values in its exported file. [host: torch]"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.explain.onnx_graph import Graph
from edgetl.network.names import ROOT, places
from edgetl.network.network import Network
from edgetl.types import Array, Feed


@dataclass(frozen=True)
class Spot:
    """The input or the output of a layer, by the layer's own name."""

    layer: str
    side: Literal["in", "out"]


class TorchAnswers:
    """The values of a network's layers for fixed inputs; each question is one forward."""

    def __init__(self, net: Network, graph: Graph, feed: Feed) -> None:
        self.net, self.feed = net, feed
        self.answer = graph.outputs[0]
        self.spots = _spots(net, graph, self._called())

    @property
    def seen(self) -> frozenset[str]:
        """The values of the file that torch can tell."""
        return frozenset({*self.spots, self.answer})

    def values(self, names: Collection[str]) -> Mapping[str, Array]:
        """Return these values by name; what torch did not compute is left out."""
        found: dict[str, Array] = {}
        with ExitStack() as stack, torch.inference_mode():
            for name in names:
                if spot := self.spots.get(name):
                    _listen(stack, self.net.module.get_submodule(spot.layer), spot, name, found)
            logits = self._logits()
        if self.answer in names:
            found[self.answer] = logits.float().numpy()
        return found

    def _called(self) -> tuple[str, ...]:
        """Return the layers that one forward calls once, in order: a list of layers is never called."""
        calls: Counter[str] = Counter()
        with ExitStack() as stack, torch.inference_mode():
            for name, layer in self.net.module.named_modules():
                stack.callback(layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name])).remove)
            self._logits()
        return tuple(name for name, count in calls.items() if count == 1)

    def _logits(self) -> Tensor:
        return self.net.logits({key: torch.as_tensor(value) for key, value in self.feed.items()})


def _listen(stack: ExitStack, layer: nn.Module, spot: Spot, name: str, found: dict[str, Array]) -> None:
    """Keep what the layer reads or answers under a name until the stack is closed."""

    def before(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        keep(next(iter((*args, *kwargs.values())), None))

    def after(_: nn.Module, __: object, answer: object) -> None:
        keep(answer)

    def keep(value: object) -> None:
        while isinstance(value, tuple | list | dict) and value:
            value = next(iter(value.values() if isinstance(value, dict) else value))
        if isinstance(value, Tensor):
            found[name] = value.detach().float().clone().numpy()  # a layer behind it may work in place

    if spot.side == "in":
        stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
    else:
        stack.callback(layer.register_forward_hook(after).remove)


def _spots(net: Network, graph: Graph, called: Sequence[str]) -> dict[str, Spot]:
    """Return which called layer's input or output a value of the file is, where that is clear.

    Outputs win, and the outermost of the layers that share a place. Values that several layers read are a block's
    stream, which is known as the output of the block before.
    """
    modules, named = graph.modules(), places(net.family, net.module)
    layers: dict[str, str] = {}
    for layer, place in named.items():
        if layer in called and place != ROOT:
            layers.setdefault(place, layer)
    spots: dict[str, Spot] = {}
    folded = _folded(net, called, {layer for layer, place in named.items() if place in modules.values()})
    for layer in layers.values():
        below = {place for name, place in named.items() if f"{name}.".startswith(f"{layer}.")}
        if value := _single(_left(graph, {name for name, module in modules.items() if module in below})):
            spots.setdefault(value, Spot(folded.get(layer, layer), "out"))
    for place, layer in layers.items():
        if any(net.module.get_submodule(layer).children()):
            continue
        if value := _single(_read(graph, {name for name, module in modules.items() if module == place})):
            spots.setdefault(value, Spot(layer, "in"))
    return spots


def _folded(net: Network, called: Sequence[str], there: Collection[str]) -> dict[str, str]:
    """Return the normalisations that the exporter folded into the layer before, by that layer."""
    layers = [layer for layer in called if not any(net.module.get_submodule(layer).children())]
    return {
        before: layer
        for before, layer in pairwise(layers)
        if layer not in there and isinstance(net.module.get_submodule(layer), _BatchNorm)
    }


def _left(graph: Graph, inside: Collection[str]) -> set[str]:
    """Return the values inside that others read, or that the graph gives."""
    read = {name for node in graph.nodes if not set(node.outputs) <= set(inside) for name in node.inputs}
    return set(inside) & {*read, *graph.outputs}


def _read(graph: Graph, inside: Collection[str]) -> set[str]:
    """Return the computed values from elsewhere that the nodes inside read."""
    read = {name for node in graph.nodes if set(node.outputs) & set(inside) for name in node.inputs}
    return (read & graph.producers().keys()) - set(inside)


def _single(names: Collection[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None
