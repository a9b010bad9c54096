"""One training for several widths: parts lie inside each other, run as masks, and ship as cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import BadInput
from edgetl.losses.logits import softened
from edgetl.methods import elastic
from edgetl.methods.elastic import Elastic, Parts
from edgetl.methods.finetune import Finetune
from edgetl.network import cost
from edgetl.network.network import Network, create
from edgetl.recipe.schema import Context, Schedule, Teacher
from edgetl.train.batches import Data

QUICK = Schedule(epochs=2, lr=2e-3, batch=16)
LABELS = ("left", "middle", "right")
SIZES = {
    "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
}  # fmt: skip


@pytest.fixture
def net() -> Network:
    return create("hf_vit", SIZES, LABELS, 0)


def step(**more: object) -> Elastic:
    return Elastic.model_validate({"learn": QUICK, "schedule": None, "samples": 16, **more})


def kept(student: Network) -> dict[str, int]:
    return {g.name: g.count for g in elastic.groups(student)}


def test_a_student_is_the_part_that_was_trained(net: Network, tiny: Data, context: Callable[..., Context]) -> None:
    ctx = context()
    whole, half = (step(width=width).run(net, ctx) for width in (1.0, 0.5))
    order = elastic.read_order(next(ctx.work.glob("shared/elastic-*")))
    batch = tiny.batch(tiny.rows("test"))
    with torch.no_grad():
        part = Parts(whole, order, (0.5,), 1.0).answers(
            {g.name: elastic.mask(g, order[g.name], 0.5) for g in elastic.groups(whole)}, batch
        )
        assert half.logits(batch).allclose(part, rtol=1e-5, atol=1e-6)
        assert not half.logits(batch).allclose(whole.logits(batch), atol=1e-3)
    assert set(kept(half).values()) == {2, 12}


def test_one_training_serves_every_width_in_any_order(net: Network, context: Callable[..., Context]) -> None:
    found = {}
    for name, widths in (("up", (0.25, 0.75)), ("down", (0.75, 0.25))):
        ctx = context(name)
        for width in widths:
            found[name, width] = step(width=width).run(net, ctx).digest
        assert len(list(ctx.work.glob("shared/elastic-*"))) == 1
    assert found["up", 0.25] == found["down", 0.25]
    assert found["up", 0.75] == found["down", 0.75]


@settings(deadline=None, max_examples=15)
@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_narrower_parts_lie_inside_wider_ones_and_cost_less(one: float, other: float) -> None:
    net = create("hf_vit", SIZES, LABELS, 0)
    order = {
        g.name: torch.randperm(g.count, generator=torch.Generator().manual_seed(g.count)).numpy()
        for g in elastic.groups(net)
    }
    low, high = sorted((one, other))
    for group in elastic.groups(net):
        narrow, wide = (elastic.mask(group, order[group.name], width) for width in (low, high))
        assert bool((narrow <= wide).all())
        assert narrow.sum() >= 1
    narrow_cost, wide_cost = (cost.macs(net.edit(elastic.cut(net, order, width))) for width in (low, high))
    assert narrow_cost <= wide_cost


def test_the_units_that_stay_are_those_whose_silence_distorts_most(
    net: Network, context: Callable[..., Context]
) -> None:
    dead = net.copy()
    weights = dead.names().state()
    with torch.no_grad():
        weights["layers.0.ffn.down.weight"][:, 3] = 0
        weights["layers.1.attn.o.weight"][:, 4:8] = 0  # the second of four heads
    order = elastic.ranked(dead, context(), 16)
    assert order["layers.0.neurons"][-1] == 3
    assert order["layers.1.heads"][-1] == 1
    assert all(sorted(ranks) == list(range(len(ranks))) for ranks in order.values())


def test_parts_answer_as_the_whole_does_only_once_they_are_trained(
    net: Network, tiny: Data, context: Callable[..., Context]
) -> None:
    taught = Finetune(use="finetune", schedule=QUICK.model_copy(update={"epochs": 6})).run(net, context("dense"))
    ctx = context("elastic")
    alone = taught.edit(elastic.cut(taught, elastic.ranked(taught, ctx, 16), 0.25))
    whole, part = (step(width=w, learn=QUICK.model_copy(update={"epochs": 6})).run(taught, ctx) for w in (1.0, 0.25))
    batch = tiny.batch(tiny.rows("test"))
    with torch.no_grad():
        before = softened(taught.logits(batch), alone.logits(batch), 1.0)
        after = softened(whole.logits(batch), part.logits(batch), 1.0)
        right = (part.logits(batch).argmax(1) == batch["labels"]).float().mean()
    assert after < 0.5 * before
    assert right > 0.8


def test_the_whole_is_a_fixed_teacher_of_its_parts(net: Network, tiny: Data) -> None:
    order = {g.name: torch.arange(g.count).numpy() for g in elastic.groups(net)}
    batch = tiny.batch(tiny.rows("train")[:8])
    logits = net.logits(batch)
    same, _ = Parts(net, order, (1.0,), 2.0)(logits, {}, batch, 0.0)
    assert same.item() == pytest.approx(0, abs=1e-5)
    narrow, logs = Parts(net, order, (0.25,), 2.0)(logits, {}, batch, 0.0)
    assert narrow.item() > 0
    assert logs["parts"] == narrow
    (through,) = torch.autograd.grad(narrow, logits, allow_unused=True)
    assert through is None


def test_a_student_trains_on_after_its_cut_and_the_whole_stays(
    net: Network, tiny: Data, context: Callable[..., Context]
) -> None:
    ctx = context()
    part, tuned = (step(width=0.5, schedule=schedule).run(net, ctx) for schedule in (None, QUICK))
    assert kept(part) == kept(tuned)
    assert part.digest != tuned.digest
    assert step(width=0.5).run(net, ctx).digest == part.digest


def test_a_teacher_of_another_temperature_trains_another_whole(net: Network, context: Callable[..., Context]) -> None:
    ctx = context(past={"dense": net})
    for temperature in (1.0, 4.0):
        step(teacher=Teacher(step="dense", temperature=temperature)).run(net, ctx)
    assert len(list(ctx.work.glob("shared/elastic-*"))) == 2


def test_widths_follow_a_depth(net: Network, context: Callable[..., Context]) -> None:
    shallow = create("hf_vit", {**SIZES, "num_hidden_layers": 1}, LABELS, 0)
    student = step(width=0.5).run(shallow, context())
    assert len(student.family.stages(student.module)) == 1
    assert cost.macs(student) < cost.macs(shallow) < cost.macs(net)


def test_what_cannot_vary_and_what_is_not_there_is_told(net: Network, context: Callable[..., Context]) -> None:
    cnn = create("resnet_cifar", {"depth": 8, "channels": 4, "num_channels": 1, "image_size": 8}, LABELS, 0)
    with pytest.raises(BadInput, match="no heads and neurons whose number may vary"):
        step().run(cnn, context())
    with pytest.raises(BadInput, match="100000 samples to score with, but the training split holds"):
        step(samples=100_000).run(net, context())
    with pytest.raises(ValueError, match="width"):
        step(width=0)


def test_the_input_is_not_changed(net: Network, context: Callable[..., Context]) -> None:
    before = net.digest
    step(width=0.5).run(net, context())
    assert replace(net).digest == before
