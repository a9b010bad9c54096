"""Train the network's own weights on the labels: all of them, or the classifier only."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from edgetl.network.network import Network
from edgetl.recipe.schema import Context
from edgetl.train.training import Training


class Finetune(Training):
    """Full fine-tuning, or of the head alone."""

    part: Literal["all", "head"] = "all"  # which weights train: all of them, or the classifier's only
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # share of the true class that is spread over all classes

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the trained network.

        Raises:
            Diverged: the loss is not finite.
            BadInput: the teacher has other labels.

        """
        trained = [net.at(net.family.head(net.module))] if self.part == "head" else [net.module]
        net.module.requires_grad_(False)
        for layer in trained:
            layer.requires_grad_(True)
        self.learn(net, ctx, self.label_smoothing)
        net.module.requires_grad_(True).eval()
        return replace(net)  # with no digest of the weights it had before


PLUGIN = Finetune
