"""What every transformer family shares: heads and neurons as groups, and the constants that are left without them.

Canonical names of block i: `layers.i.attn.{q,k,v,o}`, `layers.i.ffn.{up,down}`. Letters: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgetl.network.family import Family, Group
from edgetl.network.names import Live, live, put
from edgetl.types import Json


class Bias(nn.Module):
    """A linear layer without inputs: its bias at every token, (B, N, any) -> (B, N, D)."""

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the bias for every token of `hidden`, which must be D wide."""
        return self.bias + torch.zeros_like(hidden)


class NoHeads(nn.Module):
    """An attention layer, projection included, without heads."""

    def __init__(self, o_proj: Bias) -> None:
        super().__init__()
        self.o_proj = o_proj

    def forward(self, hidden: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        """Return the projection's bias and no attention weights."""
        return self.o_proj(hidden), None


class NoContext(nn.Module):
    """An attention layer without heads whose projection is a layer behind it."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        """Return what the projection only takes the shape of."""
        return hidden, None


class NoNeurons(nn.Module):
    """A feed-forward network, both layers, without neurons."""

    def __init__(self, fc2: Bias) -> None:
        super().__init__()
        self.fc2 = fc2

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the second layer's bias."""
        return cast(Tensor, self.fc2(hidden))


class Transformer(Family):
    """What a family of transformers describes in the same way as all others."""

    def head(self, module: nn.Module) -> str:
        """Return the classifier's path."""
        return "head"

    def stages(self, module: nn.Module) -> tuple[str, ...]:
        """Return the blocks."""
        return blocks(live(self, module))

    def units(self, module: nn.Module) -> tuple[Group, ...]:
        """Return heads and neurons of every block."""
        return groups(live(self, module))

    def constant(self, module: nn.Module, place: str) -> None:
        """Leave only a bias of an attention layer or feed-forward network."""
        replace_by_constant(live(self, module), place)

    def resized(self, module: nn.Module) -> None:
        """Match the head counts to the tensors."""
        match_heads(live(self, module))

    def adapted(self, module: nn.Module) -> tuple[str, ...]:
        """Return the linear layers of attention and feed-forward networks that are left."""
        return linears(live(self, module))


def blocks(names: Live) -> tuple[str, ...]:
    """Return the canonical paths of the blocks, in order."""
    count = 0
    while names.has(f"layers.{count}"):
        count += 1
    return tuple(f"layers.{i}" for i in range(count))


def groups(names: Live) -> tuple[Group, ...]:
    """Return heads, then neurons, of every block that has them."""
    found = []
    for i, block in enumerate(blocks(names)):
        if names.has(f"{block}.attn.q"):
            count = names.linear(f"{block}.attn.q").out_features // (width := head_width(names, block))
            slots = _slots(names, [f"{block}.attn.{x}" for x in "qkv"], f"{block}.attn.o")
            found.append(Group(f"{block}.heads", "heads", f"{block}.attn", i, f"{block}.attn.o", slots, count, width))
        if names.has(f"{block}.ffn.up"):
            count = names.linear(f"{block}.ffn.up").out_features
            slots = _slots(names, [f"{block}.ffn.up"], f"{block}.ffn.down")
            found.append(Group(f"{block}.neurons", "neurons", f"{block}.ffn", i, f"{block}.ffn.down", slots, count, 1))
    return tuple(found)


def _slots(names: Live, into: Sequence[str], out: str) -> tuple[tuple[str, int], ...]:
    rows = [(f"{path}.{kind}", 0) for path in into for kind in ("weight", "bias") if names.has(f"{path}.{kind}")]
    return (*rows, (f"{out}.weight", 1))


def head_width(names: Live, block: str) -> int:
    """Return the width of one head, which a cut never changes."""
    attention, _ = names.owner(f"{block}.attn.q")
    width = getattr(attention, "head_dim", None) or attention.attention_head_size
    return int(cast(int, width))


def linears(names: Live) -> tuple[str, ...]:
    """Return the paths of all linear layers inside the blocks, in order."""
    inner = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down")
    paths = [f"{block}.{part}" for block in blocks(names) for part in inner]
    return tuple(p for p in paths if names.has(p) and isinstance(names.at(p), nn.Linear))


def match_heads(names: Live) -> None:
    """Set the head counts that transformers keeps beside the tensors."""
    for block in blocks(names):
        if not names.has(f"{block}.attn.q"):
            continue
        attention, _ = names.owner(f"{block}.attn.q")
        rows = names.linear(f"{block}.attn.q").out_features
        counts = {"num_attention_heads": rows // head_width(names, block), "all_head_size": rows}
        for attribute, value in counts.items():
            if hasattr(attention, attribute):
                setattr(attention, attribute, value)


def replace_by_constant(names: Live, place: str) -> None:
    """Leave of an attention layer or a feed-forward network only the bias of its last layer."""
    block, _, part = place.rpartition(".")
    first, last = (f"{block}.attn.q", f"{block}.attn.o") if part == "attn" else (f"{block}.ffn.up", f"{block}.ffn.down")
    bias = Bias(nn.Parameter(cast(Tensor, names.linear(last).bias).detach().clone()))
    holder, other = (names.name(p).rpartition(".")[0] for p in (first, last))
    if holder == other:
        put(names.module, holder, NoHeads(bias) if part == "attn" else NoNeurons(bias))
        return
    put(names.module, holder, NoContext() if part == "attn" else nn.Identity())
    names.put(last, bias)


def initialise(names: Live, std: float) -> None:
    """Draw all weights anew, in an order that no library version changes: normal(0, std), biases 0, norms 1."""
    with torch.no_grad():
        for path in names.state():
            owner, attribute = names.owner(path)
            tensor = getattr(owner, attribute)
            if attribute == "bias":
                tensor.zero_()
            elif isinstance(owner, nn.LayerNorm):
                tensor.fill_(1.0)
            elif tensor.is_floating_point():
                nn.init.trunc_normal_(tensor, std=std)
            if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
                tensor[owner.padding_idx].zero_()


def texts(config: Json, batch: int) -> dict[str, Tensor]:
    """Return random `input_ids` and `attention_mask`, both int64 (B, 8 or fewer); later rows are padded."""
    length = min(8, config["max_position_embeddings"])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config["vocab_size"], (batch, length), generator=generator)
    real = length - torch.arange(batch) % max(1, length // 2)
    mask = (torch.arange(length)[None] < real[:, None]).long()
    return {"input_ids": torch.where(mask == 1, ids, config["pad_token_id"]), "attention_mask": mask}
