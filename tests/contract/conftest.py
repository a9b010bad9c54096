"""A tiny task that every method must be able to work on: 3 classes of 8x8 pictures, told apart by what is bright."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl import store
from edgetl.network.network import Network, create
from edgetl.prepare import Prepared
from edgetl.preprocess import Raw
from edgetl.recipe.schema import Context
from edgetl.train import checkpoint
from edgetl.train.batches import Data
from edgetl.types import Json

LABELS = ("left", "middle", "right")
SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_prepared(folder: Path, count: int = 210) -> Prepared:
    random = np.random.default_rng(0)
    y = np.arange(count, dtype=np.int64) % 3
    pixels = random.integers(0, 60, (count, 1, 8, 8), dtype=np.uint8)
    for row, number in enumerate(y):
        pixels[row, 0, :, 3 * number : 3 * number + 2] += 180
    rows = random.permutation(count).astype(np.int64)
    parts = {
        "train": rows[: count * 2 // 3],
        "validation": rows[count * 2 // 3 : count * 5 // 6],
        "test": rows[count * 5 // 6 :],
    }
    operations = ({"op": "decode", "mode": "L"}, {"op": "channels_first"}, {"op": "to_float"})
    raw = Raw("array", "uint8", (8, 8))
    return Prepared(folder, raw, LABELS, operations, y, parts, {"pixel_values": pixels}, "ab" * 32, {})


@pytest.fixture
def tiny(tmp_path: Path) -> Data:
    return Data(tiny_prepared(tmp_path))


@pytest.fixture
def network() -> Callable[[int], Network]:
    return lambda seed: create("hf_vit", SIZES, LABELS, seed)


@pytest.fixture
def context(tiny: Data, tmp_path: Path) -> Callable[..., Context]:
    """Return a context for a step; `past` holds the networks it may read."""

    def make(name: str = "step", seed: int = 1, past: Mapping[str, Network] | None = None) -> Context:
        work = tmp_path / name
        work.mkdir(exist_ok=True)

        def once(what: str, parts: Mapping[str, Json | Network], fill: Callable[[Path, int], None]) -> Path:
            key = store.digest({k: v.digest if isinstance(v, Network) else v for k, v in parts.items()})
            folder = work / "shared" / f"{what}-{key[:16]}"
            if not folder.exists():
                folder.mkdir(parents=True)
                fill(folder, 7)
            return folder

        return Context(tiny, seed, work, lambda step: (past or {})[step].copy(), once)

    return make


class KilledError(Exception):
    """A training ends where it is."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[None]]:
    """`with killed(after=2):` a training that dies once it has saved its second epoch."""

    @contextmanager
    def dies(after: int = 1) -> Iterator[None]:
        real, calls = checkpoint.save, count(1)

        def save_then_die(*args: Any) -> None:
            real(*args)
            if next(calls) == after:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", save_then_die)
            with pytest.raises(KilledError):
                yield

    return dies
