"""What a data plugin delivers: raw examples, labels and published parts. [no torch]"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.preprocess import Raw
from edgetl.strict import Strict
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

Part: TypeAlias = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Examples:
    """All raw examples of one source, N of them."""

    raw: Raw
    labels: tuple[str, ...]  # class names; their order is the order of the logits
    y: NDArray[np.int64]  # (N,) class numbers
    parts: Mapping[Part, NDArray[np.int64]]  # published parts: row numbers; missing ones are cut from "train"
    read: Callable[[int], bytes]  # the raw bytes of a row
    digest: str  # sha256 over all bytes, labels and parts
    describe: Callable[[int], str]  # how a message names a row: "data/pets/cat/3.jpg"
    skip_share: float = 0.0  # most rows, as a share, that preparation may find unreadable and leave out
    groups: NDArray[np.int64] | None = None  # (N,): rows of one group, such as a person's, stay in one part


class Augmentation(Strict):
    """One random change of a training batch, made in torch; never part of pre-processing."""

    op: Literal["flip", "shift"]
    pixels: int = Field(2, ge=1)  # shift: most pixels in each direction, edges filled with zeros


class Source(Strict, ABC):
    """The `data:` line of a recipe. A plugin adds fields and reads the examples."""

    use: str
    validation: float = Field(0.1, gt=0, lt=1)  # share of train, where no part is published
    test: float = Field(0.2, gt=0, lt=1)  # share of everything, where no part is published
    augment: tuple[Augmentation, ...] = ()

    @abstractmethod
    def examples(self) -> Examples:
        """Open the data, check it whole and return it.

        Raises:
            BadInput: a file is missing, unreadable or empty; the message names it.

        """

    @abstractmethod
    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the pre-processing list: the plugin's own fields, else what the backbone's weights want.

        Raises:
            BadInput: a field contradicts what the weights want.

        """
