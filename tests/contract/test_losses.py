"""Every file in losses/ keeps the promises of a loss."""

from __future__ import annotations

import pytest
import torch

from edgetl import plugins
from edgetl.network.names import live
from edgetl.train.course import Course, terms
from edgetl.train.lesson import Lesson, Loss, Term

LOSSES = plugins.names("losses")


@pytest.fixture
def made(network, context):
    """The loss with its defaults, for a student and a teacher of one architecture."""

    def make(name: str, net) -> Loss:
        course = Course(net, network(1), context(name), epochs=2)
        return terms([plugins.find("losses", name)(use=name)], course)[0].loss

    return make


@pytest.mark.parametrize("name", LOSSES)
def test_taps_are_places_of_the_network(name, network, made):
    net = network(0)
    for place in made(name, net).taps:
        assert live(net.family, net.module).has(place)


@pytest.mark.parametrize("name", LOSSES)
def test_sum_over_the_parts_of_a_batch_is_that_of_the_batch(name, network, tiny, made):
    net = network(0)
    loss = made(name, net)
    if loss.coupled:
        pytest.skip("it says that it depends on the whole batch")
    lesson = Lesson(net, [Term(loss)]).eval()
    rows = tiny.rows("train")[:7]
    whole, logs = lesson(tiny.batch(rows), 0.5)
    parts = [lesson(tiny.batch(part), 0.5) for part in (rows[:3], rows[3:])]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0], rtol=1e-5, atol=1e-5)
    for key, value in logs.items():
        torch.testing.assert_close(value, parts[0][1][key] + parts[1][1][key], rtol=1e-5, atol=1e-5)
        assert not value.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_network_and_not_the_teacher(name, network, tiny, made):
    net = network(0)
    loss = made(name, net)
    total, _ = Lesson(net, [Term(loss)])(tiny.batch(tiny.rows("train")[:8]), 0.0)
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.module.parameters())
    assert all(p.grad is not None for p in loss.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_its_tables_have_a_row_for_every_row_of_the_data(name, network, tiny, made):
    loss = made(name, network(0))
    for table in loss.tables:
        assert len(loss.get_buffer(table)) == len(tiny.prepared.y)
