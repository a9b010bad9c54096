"""What passes through some layers of a network while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetl.network.network import Network


@dataclass(frozen=True)
class Call:
    """The arguments of a layer besides its first."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return the layer's output for another first argument."""
        return first(layer(hidden, *self.args, **self.kwargs))

    def part(self, which: slice, count: int) -> Call:
        """Return the call for some of the `count` samples."""

        def cut(value: object) -> object:
            return value[which] if isinstance(value, Tensor) and value.dim() and len(value) == count else value

        return Call(tuple(map(cut, self.args)), {name: cut(value) for name, value in self.kwargs.items()})


class Features(dict[str, Tensor]):
    """The outputs of layers by canonical path, and how they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}

    def part(self, which: slice, count: int) -> Features:
        """Return those of some of the `count` samples."""
        found = Features()
        found.update({place: output[which] for place, output in self.items()})
        found.calls = {place: call.part(which, count) for place, call in self.calls.items()}
        return found

    def full(self) -> Features:
        """Return them in float32 where they were computed in half precision."""
        found = Features()
        found.update({place: full(output) for place, output in self.items()})
        found.calls = self.calls
        return found


def full(output: Tensor) -> Tensor:
    """Return an output in float32 where it was computed in half precision."""
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return a layer's output, the first where it gives several."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def tapped(layers: Mapping[str, nn.Module]) -> Iterator[Features]:
    """Collect the outputs of the layers, by name, for as long as the block lasts."""
    features = Features()

    def keep(place: str, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
        features[place], features.calls[place] = first(output), Call(args[1:], kwargs)

    with ExitStack() as hooks:
        for place, layer in layers.items():
            handle = layer.register_forward_hook(
                lambda _, args, kwargs, output, place=place: keep(place, args, kwargs, output), with_kwargs=True
            )
            hooks.callback(handle.remove)
        yield features


@torch.no_grad()
def shapes_of(net: Network, places: tuple[str, ...]) -> list[torch.Size]:
    """Return the shapes of the places' outputs for one sample."""
    with tapped({place: net.at(place) for place in places}) as features:
        net.logits(net.family.example(net.config, 1))
    return [features[place].shape for place in places]


def width_of(net: Network, place: str) -> int:
    """Return the number of features of a place's output: of positions, or the channels of a map."""
    (shape,) = shapes_of(net, (place,))
    return shape[1 if len(shape) == 4 else -1]
