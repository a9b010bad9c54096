"""Statistics of batch normalisation, taken again where training saw other inputs than the network will."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.network.network import Network
from edgetl.train.batches import Data

BATCH = 256


@torch.no_grad()
def recalibrated(net: Network, data: Data) -> None:
    """Set every layer's running mean and variance to the mean over all training samples, untransformed, in place."""
    layers = [layer for layer in net.module.modules() if isinstance(layer, _BatchNorm)]
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
