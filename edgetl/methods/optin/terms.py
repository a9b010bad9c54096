"""The two terms of a unit's score, and the positions that the first one compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Draws the positions that the manifold term compares, the same for the dense network and every unit."""

    tokens: int  # K, or all where there are fewer
    seed: int

    def rows(self, valid: Sequence[Tensor]) -> list[Tensor]:
        """Return the drawn ones of each batch's (n,) valid rows, without replacement over all batches."""
        ends = np.cumsum([len(v) for v in valid])
        total = int(ends[-1])
        picked = np.random.default_rng(self.seed).choice(total, size=min(self.tokens, total), replace=False)
        parts = np.split(np.sort(picked), np.searchsorted(np.sort(picked), ends[:-1]))
        starts = ends - [len(v) for v in valid]
        return [v[torch.from_numpy(p - s).to(v.device)] for v, p, s in zip(valid, parts, starts, strict=True)]


def manifold_distance(a: Tensor, b: Tensor) -> float:
    """Return sum((A Aᵀ - B Bᵀ)²), the squared difference of two Gram matrices of K rows.

    Args:
        a: (K, D)
        b: (K, D)

    """
    return float(manifold_distances(a[None], b, b.T @ b)[0])


def manifold_distances(changed: Tensor, dense: Tensor, gram: Tensor) -> Tensor:
    """Return sum((A Aᵀ - B Bᵀ)²) of each A, in float64, (C,).

    With S = (A + B) / 2 and Δ = A - B the difference is Δ Sᵀ + S Δᵀ, which loses nothing where A is close to B, as a
    difference of two large matrices would in float32. Its square is 2 <ΔᵀΔ, SᵀS> + 2 <SᵀΔ, (SᵀΔ)ᵀ>, which is cheaper
    than K x K matrices where K > 2 D.

    Args:
        changed: C of A, (C, K, D).
        dense: B, (K, D).
        gram: BᵀB, (D, D), the same for every A.

    """
    delta = changed - dense
    k, width = dense.shape
    if k <= 2 * width:
        half = delta @ (dense + delta / 2).mT
        total = (half + half.mT).square().sum(dim=(1, 2), dtype=torch.float64)
    else:
        square, across = delta.mT @ delta, dense.T @ delta
        means = gram + (across + across.mT) / 2 + square / 4
        across = across + square / 2
        total = 2 * (square * means).sum(dim=(1, 2), dtype=torch.float64)
        total += 2 * (across * across.mT).sum(dim=(1, 2), dtype=torch.float64)
    # Not max(): a value that is not finite must stay one.
    return total.clamp(min=0)


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return KL(p || q) summed over the samples, at least 0; both (B, labels) in logarithms."""
    return float(F.kl_div(log_q, log_p, reduction="sum", log_target=True).clamp(min=0))
