"""What benchmarks share: the dense networks of the shipped recipes, and their answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.network.network import Network, load
from edgetl.prepare import open_prepared
from edgetl.recipe import load as recipes
from edgetl.recipe.read import check
from edgetl.stages.compress import compress
from edgetl.train.batches import Data


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Each recipe with its overrides, where its data is given."""
    yield "demo", []
    if options.fashion_mnist:
        yield "vit-fashion-mnist", [f"data.root={options.fashion_mnist.resolve()}"]
    if options.sst2 and options.minilm:
        yield "minilm-text", [f"data.root={options.sst2.resolve()}", f"model.source={options.minilm}"]


def trained(name: str, sets: Sequence[str], seed: int, folder: Path) -> tuple[Network, Data]:
    """The recipe's dense network and its data; one that is finished is read."""
    raw = recipes.load(recipes.find(name), [*sets, f"seed={seed}", "threads=1"])
    raw["steps"] = [step for step in raw["steps"] if step.get("name") == "dense"]
    recipe, errors = check(raw, name)
    if recipe is None:
        sys.exit("\n".join(map(str, errors)))
    made = compress(recipe, folder)
    torch.set_num_threads(1)
    return load(made["dense"]), Data(open_prepared(next(folder.glob("shared/data-*"))))


@torch.no_grad()
def answered(net: Network, data: Data) -> NDArray[np.bool_]:
    """Whether each test sample is answered right."""
    parts = np.array_split(data.rows("test"), max(1, len(data.rows("test")) // 500))
    batches = (data.batch(rows) for rows in parts)
    return np.concatenate([(net.logits(b).argmax(1) == b["labels"]).numpy() for b in batches])
