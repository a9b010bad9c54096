"""How close a teacher's task is to the target, and what the teacher says of it."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.network.network import Network
from edgetl.train.batches import Data, Rows

BATCH = 64
DIGITS = 10
"""Of a correlation: pairs that differ beyond are equally unlike, and rank together."""

Floats = NDArray[np.float64]


def parc(features: Floats, y: NDArray[np.int64], classes: int) -> float:
    """Return Spearman's correlation of how unlike the features (n, D) and the one-hot labels of n samples are, by pair.

    Unlike is 1 - Pearson's correlation (PARC, Bolya et al. 2021, arXiv 2111.06977); 0 where nothing varies.
    """
    pairs = np.triu_indices(len(y), 1)
    unlike = [_unlike(x)[pairs].round(DIGITS) for x in (features, np.eye(classes)[y])]
    if any(np.ptp(each) == 0 for each in unlike):
        return 0.0
    a, b = (ranks - ranks.mean() for ranks in map(_ranks, unlike))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def probed(features: Floats, y: NDArray[np.int64]) -> Floats:
    """Return the log probabilities (n, classes) of a linear classifier fitted to features (n, D) and classes (n,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features, y)
    return cast(Floats, model.predict_log_proba(features))


@torch.no_grad()
def features_of(net: Network, data: Data, rows: Rows) -> Floats:
    """Return what a network's classifier gets to see of each row, (len(rows), D), without augmentation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = net.module.eval().to(device)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(1).double().cpu())

    handle = net.at(net.family.head(module)).register_forward_pre_hook(keep)
    try:
        for i in range(0, len(rows), BATCH):
            net.logits(data.batch(rows[i : i + BATCH], device))
    finally:
        handle.remove()
        module.to("cpu")
    return cast(Floats, torch.cat(seen).numpy())


def _unlike(x: Floats) -> Floats:
    centred = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    unlike: Floats = 1 - unit @ unit.T
    return unlike


def _ranks(values: Floats) -> Floats:
    """Return the ranks, equal values the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = counts.cumsum() - (counts - 1) / 2
    return ranks[which]
