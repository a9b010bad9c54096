"""Every file in losses/ keeps the promises of a loss."""

from __future__ import annotations

import inspect

import pytest
import torch

from edgetl import plugins
from edgetl.network.names import live
from edgetl.train.lesson import Lesson, Loss, Term

LOSSES = plugins.names("losses")
TABLE = torch.randn(210, 3, generator=torch.Generator().manual_seed(0))


def made(name: str) -> Loss:
    """The loss with its defaults; `answers` is a teacher's table."""
    cls = plugins.find("losses", name)
    return cls(**({"answers": TABLE} if "answers" in inspect.signature(cls).parameters else {}))


@pytest.mark.parametrize("name", LOSSES)
def test_taps_are_places_of_the_network(name, network):
    net = network(0)
    for place in made(name).taps:
        assert live(net.family, net.module).has(place)


@pytest.mark.parametrize("name", LOSSES)
def test_sum_over_the_parts_of_a_batch_is_that_of_the_batch(name, network, tiny):
    lesson = Lesson(network(0), [Term(made(name))]).eval()
    rows = tiny.rows("train")[:7]
    whole, logs = lesson(tiny.batch(rows), 0.5)
    parts = [lesson(tiny.batch(part), 0.5) for part in (rows[:3], rows[3:])]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0], rtol=1e-5, atol=1e-5)
    for key, value in logs.items():
        torch.testing.assert_close(value, parts[0][1][key] + parts[1][1][key], rtol=1e-5, atol=1e-5)
        assert not value.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_network(name, network, tiny):
    net = network(0)
    loss, _ = Lesson(net, [Term(made(name))])(tiny.batch(tiny.rows("train")[:8]), 0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.module.parameters())
