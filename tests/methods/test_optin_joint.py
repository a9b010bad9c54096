"""What a layer loses with many of its units at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetl.errors import Diverged
from edgetl.methods.optin.joint import MOST, losses
from edgetl.methods.optin.limit import Ways
from edgetl.methods.optin.sampling import Sampling
from edgetl.methods.optin.units import groups_of
from edgetl.network.network import Network, create
from tests.methods.test_optin_latency import LABELS, SIZES

CHANNELS = {"depth": 8, "num_channels": 1}


def network(family: str) -> Network:
    """A network whose layers change the answer: as drawn, they hardly do."""
    net = create(family, SIZES if family == "hf_vit" else CHANNELS, LABELS, 0)
    with torch.no_grad():
        for group in groups_of(net):
            net.at(group.gate).weight.mul_(3)
    return net


def ways(net: Network, draw: np.random.Generator) -> dict[str, Ways]:
    """Every number of units of every group, in any order; times and values are not asked for."""
    nothing = np.zeros(0)
    return {
        g.name: Ways(draw.permutation(g.count), tuple(range(g.least, g.count + 1)), nothing, nothing)
        for g in groups_of(net)
    }


@pytest.mark.parametrize("family", ["hf_vit", "resnet_cifar"])
@pytest.mark.parametrize("batch", [3, 100])
def test_a_layers_loss_is_the_divergence_without_the_weights_of_its_lost_units(family, batch, context):
    net, data = network(family), context().data
    rows = data.rows("train")
    every = ways(net, np.random.default_rng(1))
    found = losses(net, groups_of(net), every, data, Sampling(len(rows), 16, batch, 0))
    with torch.no_grad():
        p = net.logits(data.batch(rows)).double().log_softmax(-1)
        for group in groups_of(net):
            way = every[group.name]
            tried = np.linspace(group.least, group.count, len(found[group.name])).round().astype(int)
            assert len(tried) == min(MOST, len(way.counts))
            for count, loss in zip(tried, found[group.name], strict=True):
                less = net.copy()
                weight = less.at(group.gate).weight
                for unit in way.order[count:]:
                    weight[:, unit * group.width : (unit + 1) * group.width] = 0
                q = less.logits(data.batch(rows)).double().log_softmax(-1)
                expected = float((p.exp() * (p - q)).sum())
                assert loss == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert any(loss[0] > 0.01 for loss in found.values())


def test_a_loss_that_is_not_finite_names_the_layer(context, monkeypatch):
    net = network("hf_vit")
    monkeypatch.setattr("edgetl.methods.optin.joint.answered", lambda *_: float("nan"))
    with pytest.raises(Diverged, match=r"without units of layers\.0"):
        losses(net, groups_of(net), ways(net, np.random.default_rng(0)), context().data, Sampling(8, 16, 8, 0))
