"""Types shared by both halves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Not every tool that reads our annotations understands a recursive alias; leaves are checked where they are read.
Json: TypeAlias = Any
"""What JSON can hold: null, bool, int, float, str, list and dict of them."""

Array: TypeAlias = NDArray[np.generic]
Feed: TypeAlias = Mapping[str, Array]
"""Named arrays with the batch as their first axis."""

Operation: TypeAlias = Mapping[str, Json]
"""One pre- or post-processing operation: `{"op": name, **parameters}`."""
