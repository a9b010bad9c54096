"""Tiny networks with every combination of norm and pooling that a family has, and learngenes with arbitrary numbers."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgetl.methods.tleg.expansion import Sharing
from edgetl.methods.tleg.learngene import Learngene
from edgetl.methods.tleg.start import started
from edgetl.network.network import Network, create

VIT = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_attention_heads": 2}
BERT = {"vocab_size": 32, "max_position_embeddings": 8, "hidden_size": 16, "num_attention_heads": 2}
KINDS = {
    "cls, norm before": ("hf_vit", VIT),
    "mean, norm before": ("hf_vit", {**VIT, "pooling": "mean"}),
    "mean, norm behind": ("hf_bert", {**BERT, "pooling": "mean"}),
    "cls, norm behind": ("hf_bert", {**BERT, "pooling": "cls"}),
}
LABELS = ("left", "middle", "right")
LINE = Sharing("linear", 2)
SHARINGS = (LINE, Sharing("stagewise", 3), Sharing("polynomial", 4))


def backbone(kind: str = "cls, norm before", depth: int = 12, seed: int = 0) -> Network:
    family, sizes = KINDS[kind]
    net = create(family, {**sizes, "num_hidden_layers": depth, "intermediate_size": 24}, LABELS, seed)
    return stirred(net, seed)


def stirred(net: Network, seed: int = 0) -> Network:
    """The network with every number moved: fresh biases are all zero and fresh norms all one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return replace(net)


def gene(kind: str = "cls, norm before", sharing: Sharing = LINE, depth: int = 12) -> Learngene:
    """A learngene whose sets have nothing to do with each other."""
    return started(backbone(kind, depth), sharing, "secant", 0)
