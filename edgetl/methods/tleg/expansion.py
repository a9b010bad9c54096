"""What the blocks of a network are, in terms of the sets of tensors of a learngene.

Block i of L is the sum of the sets, each times a coefficient that only i and L decide:
- linear: the first set and i/L times the second (TLEG, Xia et al. 2024, arXiv 2312.05614);
- stage-wise: one of the sets as it is, each for a run of blocks (SWS, Xia et al. 2024, arXiv 2404.16897);
- polynomial: Chebyshev polynomials of i/L (LDR, NeurIPS 2024), of which the linear form is the first two.

Letters: L blocks, K sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

Form: TypeAlias = Literal["linear", "stagewise", "polynomial"]

CONVENTIONS: dict[Form, str] = {"linear": "tleg-1", "stagewise": "sws-1", "polynomial": "ldr-1"}
"""What a file calls each rule for the coefficients. A rule that changes gets a new name; two are never mixed."""


@dataclass(frozen=True)
class Sharing:
    """How the blocks share tensors: a form, and how many sets of tensors it has."""

    form: Form
    sets: int

    @property
    def convention(self) -> str:
        """Return the name of the rule for the coefficients."""
        return CONVENTIONS[self.form]

    def coefficients(self, depth: int) -> Tensor:
        """Return the (L, K) coefficients of the blocks of a network of this depth."""
        position = np.arange(depth) / depth  # from 0; 1 is never reached
        if self.form == "stagewise":
            return torch.eye(self.sets)[stages(self.sets, depth)]
        return torch.from_numpy(np.polynomial.chebyshev.chebvander(position, self.sets - 1)).float()


def stages(sets: int, depth: int) -> list[int]:
    """Return the stage of every block: runs of equal length, earlier ones longer by one; or spread where too few."""
    if depth < sets:
        return [round(i * (sets - 1) / max(1, depth - 1)) for i in range(depth)]
    return [int(stage) for stage, part in enumerate(np.array_split(np.arange(depth), sets)) for _ in part]


def combined(sets: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Return one tensor (L, ...) for all blocks, of K tensors (...) and (L, K) coefficients."""
    wide = coefficients.reshape(*coefficients.shape, *[1] * sets[0].dim())
    total = wide[:, 0] * sets[0]
    for k in range(1, len(sets)):
        total = total + wide[:, k] * sets[k]
    return total
