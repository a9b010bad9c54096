"""Runs a block only from one of its layers on, with one unit after another taken out of what the layer answers.

The layer that reads the units is linear in them, so a unit's absence changes its answer by just the unit's own product
with the weights: a rank-one change for a neuron. What the block's modules answered before that layer does not change,
and is recited. Where the block adds the answer to its residual stream and does no more, nothing runs at all.
Letters: B samples, C copies of them, one for each unit in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.methods.optin.trajectory import Call, copied, repeated
from edgetl.network.family import Group

NEAR = 1e-4
"""How far, of the largest value, a recited block may lie from the block itself: rounding, and no more."""


@dataclass(frozen=True)
class Tail:
    """What is left of a block behind a gate, on one batch."""

    block: nn.Module
    gate: nn.Module
    call: Call
    hidden: Tensor  # input of the block
    given: Tensor  # input of the gate
    gave: Tensor  # its answer
    out: Tensor  # answer of the block
    before: Mapping[nn.Module, tuple[object, ...]]  # answers, call by call, of the modules that were done by then
    runs: bool  # whether layers with matrices of weights lie behind the gate

    def without(self, group: Group, units: Sequence[int], *, adds: bool) -> tuple[Tensor, list[bool]]:
        """Return the block's output (C x B, ...) without each of C units, and whether a unit was in it at all.

        With `adds` the output moves as the gate's answer does, and nothing runs.
        """
        lost = contributions(self.gate, self.given, self.gave, group, units)
        changed = ((self.out if adds else self.gave) - lost).flatten(0, 1)
        return changed if adds else self.replay(changed), [bool(x.any()) for x in lost]

    def replay(self, changed: Tensor) -> Tensor:
        """Return the block's output (C x B, ...) where the gate answers as given."""
        samples = len(self.hidden)
        copies = len(changed) // samples
        ready = {m: [copied(x, copies, samples) for x in answers] for m, answers in self.before.items()}
        with _reciting({**ready, self.gate: [changed]}):
            entry = repeated(self.hidden, copies)
            return self.call.copied(copies, samples)(self.block, entry)

    def repeats(self) -> bool:
        """Return whether the recited block answers as the block itself."""
        return _close(self.replay(self.gave), self.out, self.out)

    def adds(self) -> bool:
        """Return whether the block's output moves just as the gate's answer does, tried with noise."""
        noise = torch.randn(self.gave.shape, generator=torch.Generator().manual_seed(0)).to(self.gave)
        noise *= self.gave.std()
        return noise.shape == self.out.shape and _close(self.replay(self.gave + noise) - self.out, noise, self.out)


def tail(block: nn.Module, gate: nn.Module, call: Call, hidden: Tensor) -> Tail | None:
    """Return what is left of a block behind a gate; None where the gate is not asked just once."""
    script = _Script(gate)
    with ExitStack() as stack:
        for module in block.modules():
            stack.callback(module.register_forward_pre_hook(script.enter).remove)
            stack.callback(module.register_forward_hook(script.leave).remove)
        out = call(block, hidden)
    if len(script.gave) != 1:
        return None
    return Tail(block, gate, call, hidden, script.given[0], script.gave[0], out, script.before, script.runs)


def contributions(gate: nn.Module, given: Tensor, gave: Tensor, group: Group, units: Sequence[int]) -> Tensor:
    """Return what each of C units adds to the gate's answer, (C, B, ...).

    Args:
        gate: the layer that reads the units.
        given: its input.
        gave: its answer.
        group: of the units.
        units: C of them.

    """
    count = len(units)
    entries = _entries(group, units, given.device)
    if type(gate) is nn.Linear:
        read = given[..., entries].reshape(-1, count, group.width).transpose(0, 1)
        weight = gate.weight[:, entries].reshape(-1, count, group.width).permute(1, 2, 0)
        return (read @ weight).reshape(count, *gave.shape)
    if type(gate) is nn.Conv2d and gate.groups == 1 and gate.padding_mode == "zeros":
        parts = gate.weight[:, entries].unfold(1, group.width, group.width)  # (outs, C, height, width, of one unit)
        weight = parts.permute(1, 0, 4, 2, 3).flatten(0, 1)
        each = F.conv2d(given[:, entries], weight, None, gate.stride, gate.padding, gate.dilation, count)
        return each.reshape(len(gave), count, *gave.shape[1:]).transpose(0, 1)
    axis = unit_axis(gate)
    return torch.stack([gave - gate(_zeroed(given, axis, group, [unit])) for unit in units])


@contextmanager
def silent(gate: nn.Module, group: Group, *units: int) -> Iterator[None]:
    """Zero these units' slices of the gate's input while open."""
    axis = unit_axis(gate)

    def zero(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_zeroed(args[0], axis, group, units), *args[1:])

    handle = gate.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def unit_axis(gate: nn.Module) -> int:
    """Return the axis of a layer's input that carries units: channels lie before the places of a map."""
    return 1 if isinstance(gate, nn.Conv2d) else -1


def _zeroed(given: Tensor, axis: int, group: Group, units: Sequence[int]) -> Tensor:
    return given.index_fill(axis, _entries(group, units, given.device), 0)


def _entries(group: Group, units: Sequence[int], device: torch.device) -> Tensor:
    """Return where the units lie on the axis that carries them."""
    return torch.tensor([u * group.width + i for u in units for i in range(group.width)], device=device)


def _close(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    return bool((a - b).abs().max() <= NEAR * scale.abs().max())


class _Script:
    """Notes which modules of a block are done when the gate is called, and what they answered."""

    def __init__(self, gate: nn.Module) -> None:
        self.gate = gate
        self.given: list[Tensor] = []
        self.gave: list[Tensor] = []
        self.before: dict[nn.Module, tuple[object, ...]] = {}
        self.runs = False
        self._open: list[list[tuple[nn.Module, object]]] = [[]]  # of each module that runs, what ran inside it

    def enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module is self.gate:
            self.given.append(args[0])
            for done, answer in (pair for level in self._open for pair in level):
                self.before[done] = (*self.before.get(done, ()), answer)
        self._open.append([])

    def leave(self, module: nn.Module, _: tuple[Tensor, ...], answer: object) -> None:
        self._open.pop()
        self._open[-1].append((module, answer))
        if module is self.gate and isinstance(answer, Tensor):
            self.gave.append(answer)
        elif self.gave and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            self.runs = True


@contextmanager
def _reciting(answers: Mapping[nn.Module, Iterable[object]]) -> Iterator[None]:
    """Let modules give these answers to their next calls instead of working, while open."""
    own = {module: vars(module).get("forward") for module in answers}
    for module, ready in answers.items():
        module.forward = _recite(iter(ready), module.forward)
    try:
        yield
    finally:
        for module, before in own.items():
            if before is None:
                del module.forward
            else:
                module.forward = before


def _recite(ready: Iterator[object], work: Callable[..., object]) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> object:
        for answer in ready:
            return answer
        return work(*args, **kwargs)

    return forward
