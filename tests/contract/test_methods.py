"""Every file in methods/ keeps the promises of a step."""

from __future__ import annotations

import inspect

import pytest
import torch

from edgetl import plugins
from edgetl.listing import fields
from edgetl.network.network import load, save
from edgetl.recipe.schema import Schedule, Step

METHODS = plugins.names("methods")
QUICK = Schedule(epochs=1, lr=1e-3, batch=16)


def made(name: str) -> Step:
    """The step of `use:` alone, its schedules made short."""
    step = plugins.find("methods", name)(use=name)
    return step.model_copy(update={key: QUICK for key, value in step if isinstance(value, Schedule)})


@pytest.mark.parametrize("name", METHODS)
def test_use_alone_makes_a_working_step(name):
    step = plugins.find("methods", name)(use=name)
    assert isinstance(step, Step)
    assert step.reads() == ()
    assert inspect.getdoc(type(step))


@pytest.mark.parametrize("name", METHODS)
def test_every_field_has_a_meaning(name):
    lines = fields(name)
    assert {"use", "name"} < {key for key, _, _, _ in lines}
    assert [key for key, _, _, meaning in lines if not meaning] == []


@pytest.mark.parametrize("name", METHODS)
def test_unknown_keys_are_refused(name):
    with pytest.raises(ValueError, match="forbidden"):
        plugins.find("methods", name)(use=name, no_such_field=1)


@pytest.mark.parametrize("name", METHODS)
def test_result_is_plain_and_saves_to_the_same_bits(name, network, context, tiny, tmp_path):
    result = made(name).run(network(0), context())
    batch = tiny.batch(tiny.rows("test"))
    assert not result.module.training
    assert all(p.requires_grad and p.grad is None for p in result.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.module.modules())
    save(result, tmp_path / "saved", {})
    again = load(tmp_path / "saved")
    assert [type(m) for m in again.module.modules()] == [type(m) for m in result.module.modules()]
    with torch.no_grad():
        assert result.logits(batch).shape == (len(batch["labels"]), 3)
        assert torch.equal(result.logits(batch), again.logits(batch))
    assert again.digest == result.digest


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_network(name, network, context):
    first, second = (made(name).run(network(0), context(f"run{i}")) for i in range(2))
    assert first.digest == second.digest


@pytest.mark.parametrize("name", [n for n in METHODS if plugins.find("methods", n).trains])
def test_training_steps_depend_on_the_seed_and_leave_nothing_behind(name, network, context, tmp_path):
    start = network(0)
    before = start.digest
    first, second = (made(name).run(start.copy(), context(f"run{i}", seed=i)) for i in range(2))
    assert len({before, first.digest, second.digest}) == 3
    assert not [path for path in tmp_path.rglob("*.safetensors") if "shared" not in path.parts]
