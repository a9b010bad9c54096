"""A trained picture network and a lively text network as base files, with data to calibrate and judge them on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.methods.finetune import Finetune
from edgetl.network.network import Network, create
from edgetl.network.to_onnx import to_onnx
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.quantize.bar import Bar, Practice
from edgetl.recipe.schema import Context, Material, Schedule
from edgetl.train.batches import Data
from edgetl.types import Json
from tests.contract import conftest as contract

BERT: Mapping[str, Json] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Case:
    """A base file with its data."""

    net: Network
    base: Path
    prepared: Prepared

    def practice(self, **gates: Json) -> Practice:
        return Practice(self.prepared, gates, 0, 1)

    def bar(self, **gates: Json) -> Bar:
        own = self.practice().float_answers(self.base)
        return Bar(self.practice(**gates), own, own)

    def material(self, samples: int = 64) -> Material:
        return Material(self.practice().batches("train", samples))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    prepared = contract.tiny_prepared(folder, 420)
    schedule = Schedule(epochs=6, lr=3e-3, batch=16)
    start = create("hf_vit", contract.SIZES, contract.LABELS, 0)
    work = folder / "work"
    work.mkdir()
    context = Context(Data(prepared), 1, work, lambda _: start, lambda *_: work)
    net = Finetune(use="finetune", schedule=schedule).run(start, context)
    to_onnx(net, folder / "base.onnx")
    return Case(net, folder / "base.onnx", prepared)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Random weights, eight times as large: attention looks at single words, and answers differ between texts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("texts")
    net = create("hf_bert", dict(BERT), ("a", "b", "c"), 0)
    with torch.no_grad():
        for parameter in net.module.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    to_onnx(net, folder / "base.onnx")
    random, count = np.random.default_rng(0), 360
    ids = random.integers(1, 60, (count, 12)).astype(np.int32)
    mask = (np.arange(12) < random.integers(4, 13, count)[:, None]).astype(np.uint8)
    rows = np.arange(count, dtype=np.int64)
    parts = {"train": rows[:200], "validation": rows[200:280], "test": rows[280:]}
    operations = ({"op": "tokenize", "file": "tokenizer.json", "length": 12},)
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    y = random.integers(0, 3, count).astype(np.int64)
    prepared = Prepared(folder, Raw("text"), ("a", "b", "c"), operations, y, parts, inputs, "cd" * 32, {})
    return Case(net, folder / "base.onnx", prepared)
