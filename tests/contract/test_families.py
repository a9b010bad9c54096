"""Every family keeps the promises that steps, stages and targets build on."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from edgetl import plugins
from edgetl.network import cost
from edgetl.network.family import Group
from edgetl.network.network import Network, check_plain, create, load, save

FAMILIES = plugins.names("families")
LABELS = ("a", "b", "c")


@functools.cache
def network(family: str) -> Network:
    return create(family, {}, LABELS, seed=0)


@pytest.fixture(params=FAMILIES)
def net(request: pytest.FixtureRequest) -> Network:
    return network(request.param).copy()


def masked(net: Network, group: Group, units: list[int], inputs: dict[str, Tensor]) -> Tensor:
    """Return the answer with all other units zeroed where the gate reads them."""
    mask = torch.zeros(group.count * group.width, dtype=next(net.module.parameters()).dtype)
    for unit in units:
        mask[unit * group.width : (unit + 1) * group.width] = 1

    def gate(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * (mask[:, None, None] if args[0].dim() == 4 else mask),)

    handle = net.at(group.gate).register_forward_pre_hook(gate)
    try:
        return net.logits(inputs)
    finally:
        handle.remove()


def lively(net: Network) -> Network:
    """Return the network with the statistics of real batches, so that no channel is silent from the start."""
    norms = [m for m in net.module.modules() if isinstance(m, nn.BatchNorm2d)]
    net.module.train()
    for norm in norms:
        norm.momentum = None  # all batches count the same
        norm.reset_running_stats()
    if norms:
        net.logits(net.family.example(net.config, 16))
    net.module.eval()
    return net


def test_its_name_is_its_file(net):
    assert net.family.name in FAMILIES
    assert plugins.find("families", net.family.name) is net.family


def test_a_complete_configuration_returns_itself(net):
    assert net.family.config(net.config, len(LABELS)) == net.config


def test_answers_have_a_row_per_sample_and_a_column_per_label(net):
    for batch in (1, 3):
        inputs = net.family.example(net.config, batch)
        assert all(len(value) == batch for value in inputs.values())
        assert net.logits({**inputs, "labels": torch.zeros(batch)}).shape == (batch, 3)


def test_the_seed_decides_the_weights(net):
    again, other = (create(net.family.name, {}, LABELS, seed=s) for s in (0, 1))
    assert again.digest == net.digest
    assert other.digest != net.digest


def test_every_path_exists(net):
    names = net.names()
    family, module = net.family, net.module
    assert isinstance(names.at(family.head(module)), nn.Module)
    assert all(isinstance(names.at(path), nn.Linear) for path in family.adapted(module))
    stages = family.stages(module)
    assert len(stages) > 0
    state = net.state()
    for group in family.units(module):
        assert names.has(group.gate)
        assert 0 <= group.stage < len(stages)
        for path, axis in group.tensors:
            assert state[path].shape[axis] == group.count * group.width
    assert len({group.name for group in family.units(module)}) == len(family.units(module))


def test_the_last_stage_and_finish_give_the_answer(net):
    inputs = net.family.example(net.config, 2)
    found = []
    layer = net.at(net.family.stages(net.module)[-1])
    handle = layer.register_forward_hook(lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out))
    answer = net.logits(inputs)
    handle.remove()
    assert torch.equal(net.family.finish(net.module, found[0], inputs), answer)


@pytest.mark.parametrize("kept", ["all but one", "one", "none"])
def test_a_cut_equals_its_mask(net, kept):
    lively(net).module.double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in net.family.example(net.config, 2).items()}
    dense = net.logits(inputs)
    for group in net.family.units(net.module):
        units = {"all but one": list(range(1, group.count)), "one": [group.count - 1], "none": []}[kept]
        cut = net.edit([group.keep(units)])
        expected = masked(net, group, units, inputs)
        torch.testing.assert_close(cut.logits(inputs), expected, rtol=1e-10, atol=1e-12)
        assert not torch.equal(expected, dense)


def test_a_cut_network_is_plain_and_comes_back_from_its_folder(net, tmp_path):
    groups = net.family.units(net.module)
    edits = [group.keep([] if i % 3 == 0 else range(group.count // 2 or 1)) for i, group in enumerate(groups)]
    cut = net.edit(edits)
    save(cut, tmp_path / "cut")
    check_plain(cut, tmp_path / "cut")
    again = load(tmp_path / "cut")
    inputs = net.family.example(net.config, 2)
    assert again.digest == cut.digest != net.digest
    assert torch.equal(again.logits(inputs), cut.logits(inputs))


def test_prices_add_up_to_what_a_cut_saves(net):
    before, prices = cost.macs(net), cost.prices(net)
    for group in net.family.units(net.module)[:4]:
        cut = net.edit([group.keep(range(1, group.count))])
        assert before - cost.macs(cut) == prices[group.name] == cost.price(net, group)
