"""A network's answers over the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.network.network import Network
from edgetl.train.batches import Data, Rows
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.recipe.schema import Context

BATCH = 64


def answers(net: Network, data: Data, rows: Rows) -> NDArray[np.float32]:
    """Return the logits (len(rows), labels) of a network in eval mode, without augmentation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = net.module.training
    net.module.eval().to(device)
    found, places = np.zeros((len(rows), len(net.labels)), np.float32), data.shortest_first(rows)
    with torch.no_grad():
        for i in range(0, len(rows), BATCH):
            part = places[i : i + BATCH]
            found[part] = net.family.logits(net.module, data.batch(rows[part], device)).float().cpu().numpy()
    net.module.to("cpu").train(training)
    return found


def table(source: Network, ctx: Context) -> NDArray[np.float32]:
    """Return a teacher's logits (N, labels) by row of the data, NaN outside of training, made once for all branches."""
    parts: Mapping[str, Json | Network] = {"teacher": source, "data": ctx.data.digest}

    def make(folder: Path, seed: int) -> None:
        every = np.full((len(ctx.data.prepared.y), len(source.labels)), np.nan, np.float32)
        rows = ctx.data.rows("train")
        every[rows] = answers(source, ctx.data, rows)
        np.save(folder / "logits.npy", every, allow_pickle=False)

    loaded: NDArray[np.float32] = np.load(ctx.once("answers", parts, make) / "logits.npy", allow_pickle=False)
    return loaded
