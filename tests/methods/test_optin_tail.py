"""Scores by what is left of a block behind a gate equal those of whole forwards, whatever the block does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edgetl.methods.optin.score import Progress, record, score
from edgetl.methods.optin.tail import contributions, silent, tail
from edgetl.methods.optin.terms import Draw, divergence
from edgetl.methods.optin.trajectory import Call, flat
from edgetl.network.family import Group

D, F, B, T, BLOCKS = 6, 5, 4, 3, 3


class Residual(nn.Module):
    """Adds the gate's answer to its input, and does no more."""

    unit_axis: ClassVar[int] = -1

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.gate = nn.LayerNorm(D), nn.Linear(D, F), nn.GELU(), nn.Linear(F, D)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.gate(self.act(self.up(self.norm(x))))


class PostNorm(Residual):
    """Normalises behind the gate, and gives a tuple."""

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor]:
        return (self.norm(x + self.gate(self.act(self.up(x)))),)


class Shared(Residual):
    """Calls one module on both sides of the gate, and has matrices behind it."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        y = self.act(x + self.gate(self.act(self.up(self.norm(x)))))
        return x + self.gate.weight.new_ones(()) * functional.linear(self.act(self.up(y)), self.gate.weight)


class Table(Residual):
    """Reads a table with one entry per position."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return super().forward(x + table[:, None], table)


class Twice(Residual):
    """Asks its gate twice."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        y = self.gate(self.act(self.up(x)))
        return x + y + self.gate(self.act(self.up(self.norm(y))))


class Map(nn.Module):
    """Two convolutions, an activation behind the sum."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.up, self.gate = nn.Conv2d(D, F * groups, 3, padding=1), nn.Conv2d(F * groups, D, 3, 1, 1, groups=groups)
        self.norm = nn.BatchNorm2d(D).eval()

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.gate(functional.relu(self.up(x)))))


class Net(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(D, 3)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(x, table)
            x = out[0] if isinstance(out, tuple) else out
        return self.answer(x)

    def answer(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x.mean(1))


class Toy:
    """What recording and scoring ask of a family."""

    name = "toy"

    def logits(self, module: Net, inputs: Mapping[str, Tensor]) -> Tensor:
        return module(**inputs)

    def finish(self, module: Net, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return module.answer(hidden)


def whole_forwards(net: Net, way, groups, inputs) -> dict[str, list[tuple[float, float]]]:
    """The definition: a forward of the whole network for each unit, whole Gram matrices."""
    heard: dict[int, Tensor] = {}
    for z, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _, __, out, z=z: heard.update({z: out[0] if type(out) is tuple else out}))

    def forward() -> tuple[list[Tensor], Tensor]:
        answers, points = [], [[] for _ in net.blocks]
        for batch, one in zip(way.batches, inputs, strict=True):
            answers.append(net(**one).log_softmax(-1))
            for z, rows in enumerate(batch.rows):
                points[z].append(functional.normalize(flat(heard[z])[rows], dim=-1))
        return [torch.cat(p) @ torch.cat(p).T for p in points], torch.cat(answers)

    dense, p = forward()
    found: dict[str, list[tuple[float, float]]] = {}
    for g in groups:
        found[g.name] = []
        for unit in range(g.count):
            with silent(net.blocks[g.stage].gate, g, unit):
                masked, q = forward()
            after = range(min(g.stage + 1, BLOCKS - 1), BLOCKS)
            manifold = sum(float((dense[z] - masked[z]).square().sum()) for z in after)
            found[g.name].append((manifold, divergence(p, q)))
    return found


@pytest.mark.parametrize("kind", [Residual, PostNorm, Shared, Table, Twice, Map, lambda: Map(2)])
@pytest.mark.parametrize("size", [B, T])
@torch.no_grad()
def test_scores_are_those_of_whole_forwards_whatever_the_block_does(kind, size):
    torch.manual_seed(0)
    net = Net([kind() for _ in range(BLOCKS)]).double().eval()
    maps = isinstance(net.blocks[0], Map)
    # As many positions as samples make the table look as if it held one entry per sample.
    shape = (size, D, 4, 4) if maps else (size, T, D)
    inputs = [{"x": torch.randn(shape).double(), "table": torch.randn(T).double()} for _ in range(2)]
    count = net.blocks[0].gate.in_channels if maps else F
    groups = [Group(f"{i}", "neurons", f"{i}", i, f"{i}", (), count, 1) for i in range(BLOCKS)]
    blocks = {f"{i}": block for i, block in enumerate(net.blocks)}
    way = record(net, Toy(), blocks, inputs, Draw(15, 0))
    found = score(way, groups, {f"{i}": block.gate for i, block in enumerate(net.blocks)})
    for name, rows in whole_forwards(net, way, groups, inputs).items():
        manifold, output = zip(*rows, strict=True)
        assert found[name].manifold == pytest.approx(manifold, rel=1e-5, abs=1e-18)
        assert found[name].output == pytest.approx(output, rel=1e-5, abs=1e-14)


@pytest.mark.parametrize(
    ("kind", "repeats", "adds", "runs"),
    [
        (Residual, True, True, False),
        (PostNorm, True, False, False),
        (Shared, True, False, True),
        (Map, True, False, False),
    ],
)
@torch.no_grad()
def test_what_is_left_of_a_block_is_found_by_running_it(kind, repeats, adds, runs):
    torch.manual_seed(0)
    block = kind().eval()
    x = torch.randn(B, D, 4, 4) if kind is Map else torch.randn(B, T, D)
    rest = tail(block, block.gate, Call((torch.zeros(T),), {}), x)
    assert (rest.repeats(), rest.adds(), rest.runs) == (repeats, adds, runs)
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_a_gate_that_is_asked_twice_has_no_tail():
    block = Twice()
    assert tail(block, block.gate, Call((torch.zeros(T),), {}), torch.randn(B, T, D)) is None


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99), st.sampled_from(["linear", "map", "groups"]))
@torch.no_grad()
def test_a_unit_contributes_what_the_gate_loses_without_it(width, count, seed, kind):
    torch.manual_seed(seed)
    ins = 2 * width * count
    if kind == "linear":
        gate, given = nn.Linear(ins, 4), torch.randn(2, 3, ins)
    else:
        gate, given = nn.Conv2d(ins, 4, 3, 2, 1, groups=2 if kind == "groups" else 1), torch.randn(2, ins, 5, 5)
    gate, given = gate.double(), given.double()
    group = Group("u", "neurons", "u", 0, "u", (), 2 * count, width)
    units = list(range(0, 2 * count, 2))
    gave = gate(given)
    for unit, lost in zip(units, contributions(gate, given, gave, group, units), strict=True):
        with silent(gate, group, unit):
            assert torch.allclose(gave - lost, gate(given), atol=1e-12)


@torch.no_grad()
def test_at_most_half_of_the_work_of_one_forward_for_each_unit_is_done():
    depth = 6
    net = Net([Residual() for _ in range(depth)]).eval()
    inputs = [{"x": torch.randn(32, T, D), "table": torch.zeros(T)}]
    groups = [Group(f"{i}", "neurons", f"{i}", i, f"{i}", (), F, 1) for i in range(depth)]
    way = record(net, Toy(), {f"{i}": b for i, b in enumerate(net.blocks)}, inputs, Draw(8, 0))

    def work(each: int) -> tuple[Progress, int]:
        progress = Progress()
        with FlopCounterMode(display=False) as counted:
            only = {g.name: range(each) for g in groups}
            score(way, groups, {g.name: net.blocks[g.stage].gate for g in groups}, only, progress)
        return progress, counted.get_total_flops()

    with FlopCounterMode(display=False) as once:
        net(**inputs[0])
    (progress, all_units), (_, first_units) = work(F), work(1)
    assert progress.whole == depth * F * depth
    assert progress.blocks == F * sum(range(depth)) <= 0.5 * progress.whole
    assert progress.done == progress.total == progress.blocks + depth * F
    # The count is no mere claim: as few multiplications are done, besides a few runs of the dense network.
    assert all_units - first_units <= 0.5 * depth * (F - 1) * once.get_total_flops()
