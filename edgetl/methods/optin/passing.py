"""Samples on their way through a network: what lies before the block that they have come to is not run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from torch import Tensor, nn

from edgetl.methods.optin.sampling import BYTES
from edgetl.methods.optin.trajectory import Call, listen, log_p
from edgetl.network.network import Network


class Enough(Exception):
    """What was wanted has been heard: what lies behind it need not run."""


class Passing:
    """Batches in front of one block of a network, whose weights from there on may change.

    Letters: B samples, T positions, C inputs and D outputs of a layer; of a map, the places are the positions.
    """

    def __init__(self, net: Network, inputs: Sequence[Mapping[str, Tensor]], limit: float = float("inf")) -> None:
        """Run every batch once; states of more than `limit` bytes are not held but computed again."""
        self.net = net
        self.inputs = tuple(inputs)
        self.stage = 0
        blocks = {path: net.at(path) for path in net.family.stages(net.module)}
        self._blocks = tuple(blocks.values())
        self._calls: list[tuple[Call, ...]] = []
        self._held: list[Tensor] | None = []
        self.log_p: list[Tensor] = []  # (B, labels) float64 of every batch, before anything changed
        size = 0
        for batch in self.inputs:
            heard = listen(net.module, net.family, blocks, batch)
            self._calls.append(heard.calls)
            self.log_p.append(log_p(heard.logits))
            size += BYTES * max(shape.numel() for shape in (heard.entry.shape, *heard.shapes))
            if self._held is not None:
                self._held = [*self._held, heard.entry] if size <= limit else None

    def to(self, stage: int) -> None:
        """Go on to a block; those behind it are left as they are."""
        if self._held is not None:
            for z in range(self.stage, stage):
                for i, calls in enumerate(self._calls):  # in place: what is held stays within the limit
                    self._held[i] = calls[z](self._blocks[z], self._held[i])
        self.stage = stage

    def heard(self, i: int, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the (B, T, C) input and the (B, T, D) output of a layer of the block for a batch."""
        found: list[tuple[Tensor, Tensor]] = []

        def hear(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            found.append((args[0], out))
            raise Enough

        with ExitStack() as stack:
            stack.callback(layer.register_forward_hook(hear).remove)
            stack.enter_context(suppress(Enough))
            self._calls[i][self.stage](self._blocks[self.stage], self._hidden(i))
        return found[0]

    def answers(self, i: int) -> Tensor:
        """Return the (B, labels) log-probabilities of a batch in float64."""
        hidden = self._hidden(i)
        for z in range(self.stage, len(self._blocks)):
            hidden = self._calls[i][z](self._blocks[z], hidden)
        return log_p(self.net.family.finish(self.net.module, hidden, self.inputs[i]))

    def _hidden(self, i: int) -> Tensor:
        """Return what the block reads."""
        if self._held is not None:
            return self._held[i]
        found: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0])
            raise Enough

        with ExitStack() as stack:
            stack.callback(self._blocks[self.stage].register_forward_pre_hook(stop).remove)
            stack.enter_context(suppress(Enough))
            self.net.family.logits(self.net.module, self.inputs[i])
        return found[0]
