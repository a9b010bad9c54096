"""Post-processing as data: what turns logits into scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import Refused
from edgetl.types import Operation


def scores(logits: NDArray[np.float64], operations: Sequence[Operation]) -> NDArray[np.float64]:
    """Return the (B, K) scores that a list of post-processing operations makes of (B, K) logits.

    Raises:
        Refused: an operation is unknown.

    """
    for operation in operations:
        if operation["op"] != "softmax":
            problem = f"the bundle asks for the post-processing '{operation['op']}', unknown here"
            raise Refused(problem, fix="pip install --upgrade edgetl")
        powers = np.exp(logits - np.maximum.reduce(logits, 1, keepdims=True))  # quicker than max() on a row
        logits = powers / np.add.reduce(powers, 1, keepdims=True)
    return logits
