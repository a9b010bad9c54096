"""Train a network without a teacher: layered self-supervised distillation (Dahri et al. 2025, arXiv 2506.07055).

What it learns is in losses/lsskd.py. Heads and a self-teacher are gone when the training ends; the statistics of batch
normalisation, which saw transformed views, are then taken again on the samples as they are.
"""

from __future__ import annotations

from dataclasses import replace

from edgetl.losses.lsskd import Lsskd
from edgetl.network.network import Network
from edgetl.recipe.objective import Losses
from edgetl.recipe.schema import Context
from edgetl.train.training import Training


class LayeredTraining(Training):
    """Full training by layered self-distillation."""

    losses: Losses = (Lsskd(),)  # its options go here: [{use: lsskd, mode: paper}]; others are added to it

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the trained network.

        Raises:
            BadInput: the data does not have that many views, or a loss lacks what it needs.
            Diverged: the loss is not finite.

        """
        net.module.requires_grad_(True)
        self.learn(net, ctx)
        net.module.requires_grad_(True).eval()
        return replace(net)  # with no digest of the weights it had before


PLUGIN = LayeredTraining
