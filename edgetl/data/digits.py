"""The handwritten digits inside scikit-learn: 1,797 grey images of 8 x 8 pixels (Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.data._arrays import array_examples
from edgetl.data._fields import ImageFields, image_operations
from edgetl.errors import BadHost
from edgetl.examples import Examples, Part, Source
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep


class Digits(ImageFields, Source):
    """Handwritten digits, embedded: nothing is downloaded."""

    use: str = "digits"
    test: float = Field(0.3, gt=0, lt=1)

    def examples(self) -> Examples:
        """Return the digits, 0..16 stretched to 0..255."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise BadHost("scikit-learn is not installed", fix='pip install "edgetl[compress]"') from error
        data = load_digits()
        x = (data.images * 255 / 16).round().astype(np.uint8)
        parts: dict[Part, NDArray[np.int64]] = {"train": np.arange(len(x), dtype=np.int64)}
        return array_examples(x, data.target.astype(np.int64), tuple("0123456789"), parts, "digits")

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list for 8 x 8 grey images, or for what the backbone wants."""
        return image_operations(self, raw, prep)


PLUGIN = Digits
