"""distill with `layers`: a student of some of the teacher's blocks."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from edgetl.errors import BadInput
from edgetl.methods._picked import picked
from edgetl.methods.distill import Distill
from edgetl.network.edits import Keep
from edgetl.network.network import Network, create
from edgetl.recipe.branches import fan_outs
from edgetl.recipe.schema import Schedule
from tests.contract.conftest import LABELS, SIZES

FFN = (("layers.0.ffn.up.weight", 0), ("layers.0.ffn.up.bias", 0), ("layers.0.ffn.down.weight", 1))


def deep(blocks: int, family: str = "hf_vit") -> Network:
    own = {"hf_vit": SIZES, "hf_bert": {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2}}
    return create(family, {**own[family], "num_hidden_layers": blocks}, LABELS, 0)


@pytest.mark.parametrize("family", ["hf_vit", "hf_bert"])
@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_blocks_are_spread_and_keep_their_weights(family: str, count: int, chosen: list[int]) -> None:
    net = deep(5, family)
    before, after = net.state(), picked(net, count).state()
    for name, tensor in after.items():
        _, block, kind = name.split(".", 2) if name.startswith("layers.") else ("", "", "")
        assert torch.equal(tensor, before[f"layers.{chosen[int(block)]}.{kind}" if kind else name])
    assert len({name.split(".")[1] for name in after if name.startswith("layers.")}) == count


def test_all_blocks_answer_as_the_network_does() -> None:
    net = deep(3)
    inputs = net.family.example(net.config, 2)
    assert torch.equal(picked(net, 3).logits(inputs), net.logits(inputs))


def test_distill_trains_what_is_picked(context) -> None:
    net = deep(3)
    student = Distill(use="distill", layers=1, schedule=Schedule(epochs=1, batch=16)).run(net, context())
    assert student.config["num_hidden_layers"] == 1
    assert student.facts["prep"] == net.facts["prep"]
    untouched = Distill(use="distill", layers=1, schedule=Schedule(epochs=1, batch=16, lr=1e-12)).run(net, context("b"))
    torch.testing.assert_close(untouched.state()["layers.0.ffn.up.weight"], net.state()["layers.0.ffn.up.weight"])


@pytest.mark.parametrize(
    ("net", "count", "problem"),
    [
        (deep(2), 3, "there are 2 blocks"),
        (deep(2).edit([Keep(FFN, (0, 1, 2))]), 1, "this one is cut"),
        (create("resnet_cifar", {}, LABELS, 0), 1, "blocks of one shape"),
    ],
)
def test_what_cannot_be_picked_is_refused(net: Network, count: int, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        picked(net, count)


@pytest.mark.parametrize("given", [{"layers": 0}, {"layers": 1, "student": {"family": "hf_vit", "source": {}}}])
def test_a_student_is_named_once(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Distill.model_validate({"use": "distill", **given})


def test_several_counts_are_several_students() -> None:
    assert "layers" in fan_outs(Distill)
