"""BERT-like text encoders of Hugging Face with a classifier of our own: BERT, MiniLM and sentence encoders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgetl import store
from edgetl.errors import BadInput
from edgetl.families._sizes import Sizes, complete, pick, read_sizes
from edgetl.families._transformer import Transformer, initialise, texts
from edgetl.network.family import Layout, Prep
from edgetl.network.names import live
from edgetl.network.saved import saved_prep
from edgetl.network.source import locate, read_config, read_json
from edgetl.types import Json


class BertSizes(Sizes):
    """Sizes under the names of transformers' BertConfig, and how the tokens become one vector."""

    model_type: Literal["bert"] = "bert"
    num_hidden_layers: int = Field(2, ge=1, le=256)
    vocab_size: int = Field(1000, ge=2, le=2_000_000)
    max_position_embeddings: int = Field(128, ge=1, le=65536)
    type_vocab_size: int = Field(2, ge=1, le=64)
    pad_token_id: int = Field(0, ge=0)
    classifier_dropout: float | None = Field(None, ge=0, lt=1)
    pooling: Literal["mean", "cls"] = "mean"


class BertClassifier(nn.Module):
    """An encoder, the mean over its real tokens or BERT's pooler, and a linear head."""

    def __init__(self, encoder: nn.Module, sizes: BertSizes, labels: int) -> None:
        super().__init__()
        dropout = sizes.hidden_dropout_prob if sizes.classifier_dropout is None else sizes.classifier_dropout
        self.encoder = encoder
        self.pooler = nn.Linear(sizes.hidden_size, sizes.hidden_size) if sizes.pooling == "cls" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(sizes.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the (B, labels) answer to token ids and mask, both (B, N)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.answer(hidden, attention_mask)

    def answer(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, N, D)."""
        return cast(Tensor, self.head(self.dropout(self.pool(hidden, attention_mask))))

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per text, (B, D)."""
        if self.pooler is not None:
            return torch.tanh(self.pooler(hidden[:, 0]))
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def _layout(prefix: str, pooler: str, head: str) -> Layout:
    block = f"{prefix}encoder.layer.{{}}"
    inside = {
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense",
        "attn": "attention",
        "norm1": "attention.output.LayerNorm",
        "ffn.up": "intermediate.dense",
        "ffn.down": "output.dense",
        "norm2": "output.LayerNorm",
    }
    stem = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
    pairs = [(f"layers.{{}}.{ours}", f"{block}.{theirs}") for ours, theirs in inside.items()]
    pairs += [(ours, f"{prefix}embeddings.{theirs}") for ours, theirs in stem.items()]
    pairs += [("norm", f"{prefix}embeddings.LayerNorm"), ("layers.{}", block), ("pooler", pooler), ("head", head)]
    return Layout(tuple(pairs), ("*position_ids", "*token_type_ids", "cls.*", "qa_outputs.*"))


class HFBert(Transformer):
    """A `BertModel` without its unused parts, and a classifier that `BertForSequenceClassification` files fill."""

    name = "hf_bert"
    data = "text"
    names = (
        _layout("encoder.", "pooler", "head"),
        _layout("bert.", "bert.pooler.dense", "classifier"),
        _layout("", "pooler.dense", "classifier"),
    )

    def config(self, source: str | Mapping[str, Json], labels: int) -> Json:
        """Return the sizes of a source, complete; see `BertSizes` for the keys of a mapping."""
        given = self._from_folder(source) if isinstance(source, str) else source
        sizes = read_sizes(BertSizes, given, self.name)
        if sizes.pad_token_id >= sizes.vocab_size:
            raise BadInput(
                f"{self.name}: pad_token_id {sizes.pad_token_id} is outside vocab_size {sizes.vocab_size}",
                fix="give the tokenizer's padding token and vocabulary size",
            )
        return complete(sizes, labels)

    def _from_folder(self, source: str) -> dict[str, Json]:
        folder = locate(source)
        config = read_config(folder)
        if config.get("model_type") != "bert":
            raise BadInput(
                f"{source} is a '{config.get('model_type')}' model, not a BERT", fix="choose the family that reads it"
            )
        if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
            raise BadInput(f"{source} is a decoder or has relative positions", fix="use a plain BERT encoder")
        given = pick(BertSizes, config)
        if given.get("pad_token_id", 0) is None:
            del given["pad_token_id"]
        return {**given, "pooling": given.get("pooling") or _pooling(folder, config)}

    def prep(self, source: str | Mapping[str, Json], config: Json) -> Prep:
        """Return the tokenizer of the source and the most tokens it takes."""
        length = int(config["max_position_embeddings"])
        if not isinstance(source, str):
            return Prep(length=length)
        folder = locate(source)
        if (found := saved_prep(folder)) is not None:
            return found
        return Prep(tokenizer=_tokenizer(folder), length=length)

    def build(self, config: Json) -> nn.Module:
        """Return the module with weights from torch's current random state, in eval mode, uncut."""
        import transformers

        sizes = read_sizes(BertSizes, config, self.name)
        values = sizes.model_dump(exclude={"model_type", "pooling", "classifier_dropout"})
        encoder = transformers.BertModel(
            transformers.BertConfig(**values, attn_implementation="sdpa"), add_pooling_layer=False
        )
        module = BertClassifier(encoder, sizes, config["num_labels"]).eval()
        initialise(live(self, module), sizes.initializer_range)
        return module

    def example(self, config: Json, batch: int) -> dict[str, Tensor]:
        """Return random `input_ids` and `attention_mask`, both int64 (B, 8 or fewer); later rows are padded."""
        return texts(config, batch)

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer."""
        return cast(Tensor, module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]))

    def finish(self, module: nn.Module, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the (B, labels) answer from the last block's output (B, N, D)."""
        return cast(BertClassifier, module).answer(hidden, inputs["attention_mask"])


def _pooling(folder: Path, config: Mapping[str, Json]) -> str:
    """Return the mean for sentence encoders, BERT's own pooler for classifiers, else the mean."""
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        return "cls" if read_json(path).get("pooling_mode_cls_token") else "mean"
    classifier = any(str(a).endswith("ForSequenceClassification") for a in config.get("architectures") or ())
    return "cls" if classifier else "mean"


def _tokenizer(folder: Path) -> str | None:
    """Return the path of tokenizer.json, made in the user's cache where the source has only a vocab.txt."""
    vocabulary = folder / "vocab.txt"
    if (folder / "tokenizer.json").is_file():
        return str(folder / "tokenizer.json")
    if not vocabulary.is_file():
        return None
    from tokenizers import BertWordPieceTokenizer

    settings = folder / "tokenizer_config.json"
    lower = bool(read_json(settings).get("do_lower_case", True)) if settings.is_file() else True
    text = BertWordPieceTokenizer.from_file(str(vocabulary), lowercase=lower).to_str().encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetl"
    path = cache / hashlib.sha256(text).hexdigest() / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_bytes(path, text)
    return str(path)


PLUGIN = HFBert()
