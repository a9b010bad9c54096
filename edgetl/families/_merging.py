"""Token merging in the blocks of a vision transformer: bipartite soft matching between attention and FFN.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461. The tokens that may merge are dealt
out to two sides in turn; the r of the first side that resemble one of the second most become one with it, as averages
weighted by the number of patches in a token. From then on a token attracts attention as all of its patches would: the
logarithm of its size is added to the attention's logits. Alike is judged by the mean of the heads' keys, and in a
block without heads by what its attention reads, meaned to the width of a head: a block's merge costs the same however
many heads are cut.

Decisions where exported files ask for them:
- resemblance is rounded, and equals are taken in order of place, so that another runtime's last digits seldom decide;
- what stays keeps its order, so that a close choice here deals no other sides out in the blocks behind;
- averages are sums by a one-hot product: `scatter_reduce(mean)` is exported wrong.

Letters: B samples, N tokens, P protected ones in front, M = N - P, A and C the two sides, r merged, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.families._transformer import NoHeads, blocks
from edgetl.network.names import Live

GRID = 1024.0
"""Steps of a cosine that are told apart: far above rounding errors, far below what matters for an average."""


TINY = 1e-12
"""Keeps the direction of a vector without length a number."""


class Tokens(NamedTuple):
    """What one merging block gives to the next."""

    hidden: Tensor  # (B, N, D)
    size: Tensor  # (B, N, 1) patches in every token


class Matching(NamedTuple):
    """Which tokens of the first side stay, and which merge into which of the second."""

    kept: Tensor | None  # (B, A - r) ascending; None where none stays
    source: Tensor  # (B, r)
    target: Tensor  # (B, r)


def match(metric: Tensor, r: int) -> Matching:
    """Return the r pairs that resemble each other most; `metric` is (B, M, any), r at most half of M."""
    metric = metric / (metric.norm(dim=-1, keepdim=True) + TINY)
    one, other = metric[:, ::2], metric[:, 1::2]
    near, target = (one @ other.transpose(1, 2) * GRID).round().max(dim=-1)
    count = one.shape[1]
    place = torch.arange(count, device=metric.device)
    key = near * count - place  # no two are equal
    best = key.topk(r, dim=-1)
    stays = torch.where(key < best.values[:, -1:], place, count)
    kept = stays.topk(count - r, dim=-1, largest=False).indices if r < count else None
    return Matching(kept, best.indices, target.gather(1, best.indices))


def merged(values: Tensor, matching: Matching) -> Tensor:
    """Return what is left of (B, M, any) values, those merged added up: (B, M - r, any)."""
    one, other = values[:, ::2], values[:, 1::2]
    place = torch.arange(other.shape[1], device=values.device)
    into = (matching.target[:, None, :] == place[:, None]).to(values.dtype)  # (B, C, r)
    sums = other + into @ _rows(one, matching.source)
    return sums if matching.kept is None else torch.cat([_rows(one, matching.kept), sums], dim=1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


@dataclass(frozen=True)
class Settings:
    """What a block's layers do not tell."""

    protected: int  # P
    head_dim: int  # width of one head, which a cut never changes
    hidden_dropout: float
    attention_dropout: float


@dataclass(frozen=True)
class Parts:
    """The names of a block's layers in this version of the library; of the first four, inside its attention."""

    q: str
    k: str
    v: str
    o: str
    up: str
    act: str
    down: str


class ProportionalAttention(nn.Module):
    """An attention layer whose logits take a bias, and which gives its keys away."""

    def __init__(self, attention: nn.Module, parts: Parts, settings: Settings) -> None:
        super().__init__()
        _adopt(self, attention)
        self.parts, self.rate = parts, settings.attention_dropout
        self.head_dim = settings.head_dim  # the name that the library's own layers give it

    def forward(self, hidden: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the (B, N, D) answer and the mean (B, N, d) of the heads' keys, None where no head is left."""
        out, width = self.get_submodule(self.parts.o), self.head_dim
        if _part(self, self.parts.q) is None:
            return out(hidden), None
        names = (self.parts.q, self.parts.k, self.parts.v)
        q, k, v = (self.get_submodule(x)(hidden).unflatten(-1, (-1, width)).transpose(1, 2) for x in names)
        logits = q @ k.transpose(2, 3) * width**-0.5
        shares = (logits if bias is None else logits + bias).softmax(dim=-1)
        context = F.dropout(shares, self.rate, self.training) @ v
        return out(context.transpose(1, 2).flatten(2)), k.mean(dim=1)


class MergingBlock(nn.Module):
    """A block that knows the sizes of its tokens and merges `r` of them; its layers keep their names and weights."""

    def __init__(self, block: nn.Module, parts: Parts, settings: Settings) -> None:
        super().__init__()
        _adopt(self, block)
        self.parts, self.settings = parts, settings
        self.r = 0
        self.last = False

    def forward(self, tokens: Tensor | Tokens, *_: object, **__: object) -> Tensor | Tokens:
        """Return the tokens with their sizes; only the hidden state before any merge and behind the last block."""
        hidden, size = tokens if isinstance(tokens, tuple) else (tokens, None)
        normed = self.get_submodule("layernorm_before")(hidden)
        bias = None if size is None else size.log().transpose(1, 2)[:, None]
        attended, keys = self.get_submodule("attention")(normed, bias)
        hidden = hidden + F.dropout(attended, self.settings.hidden_dropout, self.training)
        if self.r:
            hidden, size = self._merge(hidden, size, self._stand_in(normed) if keys is None else keys)
        answer = self._feed(self.get_submodule("layernorm_after")(hidden))
        hidden = hidden + F.dropout(answer, self.settings.hidden_dropout, self.training)
        return hidden if self.last or size is None else Tokens(hidden, size)

    def _stand_in(self, normed: Tensor) -> Tensor:
        """Return (B, N, d) instead of keys."""
        return normed.reshape(*normed.shape[:2], -1, self.settings.head_dim).mean(dim=2)

    def _merge(self, hidden: Tensor, size: Tensor | None, metric: Tensor) -> Tokens:
        size = torch.ones_like(hidden[..., :1]) if size is None else size
        whole = torch.cat([hidden * size, size], dim=-1)
        apart = self.settings.protected
        first, rest = whole[:, :apart], whole[:, apart:]
        matching = match(metric.detach()[:, apart:], self.r)
        whole = torch.cat([first, merged(rest, matching)], dim=1)
        return Tokens(whole[..., :-1] / whole[..., -1:], whole[..., -1:])

    def _feed(self, hidden: Tensor) -> Tensor:
        up = _part(self, self.parts.up)
        if up is not None:
            hidden = self.get_submodule(self.parts.act)(up(hidden))
        return cast(Tensor, self.get_submodule(self.parts.down)(hidden))


def counts(names: Live, protected: int) -> tuple[int, ...]:
    """Return how many tokens that may merge enter every block, and how many leave the last."""
    owner, attribute = names.owner("positions")
    found = [int(cast(Tensor, getattr(owner, attribute)).shape[1]) - protected]
    for block in (names.at(path) for path in blocks(names)):
        found.append(found[-1] - (block.r if isinstance(block, MergingBlock) else 0))
    return tuple(found)


def merge_in(names: Live, layer: int, r: int, settings: Settings) -> None:
    """Let a block merge r tokens, in place; it and those behind it become merging blocks."""
    paths = blocks(names)
    for path in paths[layer:]:
        if not isinstance(names.at(path), MergingBlock):
            names.put(path, _merging(names, path, settings))
    first, final = names.at(paths[layer]), names.at(paths[-1])
    assert isinstance(first, MergingBlock)
    assert isinstance(final, MergingBlock)
    first.r = r
    final.last = True


def _merging(names: Live, path: str, settings: Settings) -> MergingBlock:
    within = [_inside(names, f"{path}.attn", f"{path}.attn.{x}") for x in "qkvo"]
    parts = Parts(*within, *(_inside(names, path, f"{path}.ffn.{x}") for x in ("up", "act", "down")))
    block = MergingBlock(names.at(path), parts, settings)
    attention = names.at(f"{path}.attn")
    if not isinstance(attention, NoHeads):
        block.add_module(_inside(names, path, f"{path}.attn"), ProportionalAttention(attention, parts, settings))
    return block


def _inside(names: Live, outer: str, inner: str) -> str:
    return names.name(inner).removeprefix(f"{names.name(outer)}.")


def _adopt(owner: nn.Module, other: nn.Module) -> None:
    """Take over all layers of another module, in their order and mode."""
    for name, child in other.named_children():
        owner.add_module(name, child)
    owner.train(other.training)


def _part(owner: nn.Module, name: str) -> nn.Module | None:
    """Return a layer inside a module; None where a constant took its place."""
    found: nn.Module | None = owner
    for step in name.split("."):
        found = getattr(found, step, None)
    return found
