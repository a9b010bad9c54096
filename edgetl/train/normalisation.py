"""Statistics of batch normalisation, taken again where training saw other inputs than the network will."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.network.network import Network
from edgetl.train.batches import Data

BATCH = 256


@torch.no_grad()
def recalibrated(net: Network, data: Data) -> None:
    """Set running means and variances to the mean over all training samples, untransformed, in place.

    Layers whose weights do not train keep their statistics.
    """
    layers = [layer for layer in norms(net.module) if not frozen(layer)]
    if not layers:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.module.eval().to(device)
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # of equal weight, however many batches there are
        layer.train()
    rows = data.rows("train")
    size = len(rows) // max(1, len(rows) // BATCH)  # a short last batch would count as much as the others
    for i in range(len(rows) // size):
        net.logits(data.batch(rows[i * size : (i + 1) * size], device))
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    net.module.to("cpu").eval()


def frozen(layer: _BatchNorm) -> bool:
    """Return whether a layer has no weight that trains: its statistics stay too."""
    return not any(p.requires_grad for p in layer.parameters())


def shared(module: nn.Module, accelerator: Accelerator) -> None:
    """Set the statistics, which every process takes of its own part of a batch, to their mean, in place."""
    if accelerator.num_processes == 1:
        return
    for layer in norms(module):
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None:
                statistic.copy_(accelerator.reduce(statistic, reduction="mean"))


def norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the layers of batch normalisation."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
