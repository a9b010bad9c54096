"""A bag of words: the mean of embeddings and a small feed-forward network; order is lost, and speed is won.

A deep averaging network (Iyyer et al. 2015). With `kept`, only the tokens named have an embedding of their own, all
others share one: a vocabulary trimmed to what the training texts hold, behind the tokenizer of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl.errors import BadInput
from edgetl.families._sizes import checked, complete, stated
from edgetl.families._transformer import Transformer, initialise, texts
from edgetl.network.family import Layout, Prep
from edgetl.network.names import live
from edgetl.network.saved import saved_prep
from edgetl.network.source import locate
from edgetl.strict import Strict
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.train.batches import Data

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class BagSizes(Strict):
    """Sizes of the network."""

    model_type: Literal["bag"] = "bag"
    vocab_size: int = Field(1000, ge=2, le=2_000_000)
    kept: tuple[int, ...] | None = None  # tokens with an embedding of their own; default: all
    hidden_size: int = Field(64, ge=1, le=16384)
    num_hidden_layers: int = Field(1, ge=1, le=64)
    intermediate_size: int = Field(128, ge=1, le=65536)
    hidden_act: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    max_position_embeddings: int = Field(512, ge=1, le=65536)  # most tokens of a text
    pad_token_id: int = Field(0, ge=0)


class FeedForward(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, neurons: int, act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, neurons)
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Linear(neurons, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, 1, D) of (B, 1, D)."""
        return cast(Tensor, self.fc2(self.act(self.fc1(hidden))))


class Block(nn.Module):
    """A feed-forward network, and a way around it."""

    def __init__(self, width: int, neurons: int, act: str) -> None:
        super().__init__()
        self.ffn = FeedForward(width, neurons, act)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, 1, D) of (B, 1, D)."""
        return hidden + cast(Tensor, self.ffn(hidden))


class BagOfWords(nn.Module):
    """Embeddings, their mean over the real tokens, blocks, and a classifier."""

    rows: Tensor

    def __init__(self, sizes: BagSizes, labels: int) -> None:
        super().__init__()
        kept = sizes.kept
        self.words = nn.Embedding(sizes.vocab_size if kept is None else len(kept) + 1, sizes.hidden_size)
        if kept is not None:
            rows = torch.zeros(sizes.vocab_size, dtype=torch.int64, device="cpu")
            rows[torch.tensor(kept, device="cpu")] = torch.arange(1, len(kept) + 1, device="cpu")
            self.register_buffer("rows", rows, persistent=False)
        self.trimmed = kept is not None
        self.dropout = nn.Dropout(sizes.dropout)
        each = (sizes.hidden_size, sizes.intermediate_size, sizes.hidden_act)
        self.layers = nn.ModuleList(Block(*each) for _ in range(sizes.num_hidden_layers))
        self.head = nn.Linear(sizes.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the (B, labels) answer to token ids and mask, both (B, T)."""
        found = self.words(self.rows[input_ids] if self.trimmed else input_ids)
        real = attention_mask.unsqueeze(-1).to(found.dtype)
        hidden = (found * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1.0)
        for block in self.layers:
            hidden = block(hidden)
        return self.answer(hidden)

    def answer(self, hidden: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, 1, D)."""
        return cast(Tensor, self.head(self.dropout(hidden.squeeze(1))))


class Bag(Transformer):
    """A bag of words for texts whose order says little."""

    name = "bag"
    data = "text"
    names = (
        Layout(
            (
                *(("words", "words"), ("head", "head"), ("layers.{}", "layers.{}")),
                *(("layers.{}.ffn.up", "layers.{}.ffn.fc1"), ("layers.{}.ffn.down", "layers.{}.ffn.fc2")),
            )
        ),
    )

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `BagSizes` for the keys of a mapping."""
        given = stated(BagSizes, self.name, source) if isinstance(source, str) else source
        sizes = checked(BagSizes, given, self.name)
        if sizes.kept is not None and not _ascending(sizes.kept, sizes.vocab_size):
            problem = f"{self.name}: `kept` is not ascending numbers below vocab_size {sizes.vocab_size}"
            raise BadInput(problem, fix="list every token once, in order")
        return complete(sizes, labels)

    def fitted(self, sizes: Mapping[str, Json], data: Data) -> Mapping[str, Json]:
        """Return the sizes with the tokenizer's vocabulary, and of its tokens those that the training texts hold."""
        from tokenizers import Tokenizer

        inputs = data.prepared.inputs
        rows = np.sort(data.rows("train"))
        held = np.unique(inputs["input_ids"][rows][inputs["attention_mask"][rows] == 1])
        size = Tokenizer.from_file(str(data.prepared.folder / "tokenizer.json")).get_vocab_size()
        return {"vocab_size": size, "kept": held.tolist(), **sizes}

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return the most tokens it takes; the tokenizer is that of the data, or of a saved network."""
        found = saved_prep(locate(source)) if isinstance(source, str) else None
        return found or Prep(length=int(config["max_position_embeddings"]))

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        module = BagOfWords(checked(BagSizes, config, self.name), config["num_labels"]).eval()
        initialise(live(self, module), 0.02)
        return module

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return random `input_ids` and `attention_mask`, both int64 (B, 8 or fewer); later rows are padded."""
        return texts(config, batch)

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(inputs["input_ids"], inputs["attention_mask"]))

    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, 1, D)."""
        return cast(BagOfWords, module).answer(hidden)


def _ascending(tokens: tuple[int, ...], size: int) -> bool:
    return bool(tokens) and tokens[0] >= 0 and tokens[-1] < size and all(a < b for a, b in pairwise(tokens))


PLUGIN = Bag()
