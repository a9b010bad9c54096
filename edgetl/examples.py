"""What a data plugin delivers: raw examples, labels and published parts. [no torch]"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.errors import BadInput
from edgetl.preprocess import Raw
from edgetl.strict import Strict
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

Part: TypeAlias = Literal["train", "validation", "test", "unlabelled"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
"""The parts that every set has."""

UNLABELLED: Part = "unlabelled"


@dataclass(frozen=True)
class Examples:
    """All raw examples of one source, N of them."""

    raw: Raw
    labels: tuple[str, ...]  # class names; their order is the order of the logits
    y: NDArray[np.int64]  # (N,) class numbers, -1 of an unlabelled row
    parts: Mapping[Part, NDArray[np.int64]]  # published parts: row numbers; missing ones are cut from "train"
    read: Callable[[int], bytes]  # the raw bytes of a row
    digest: str  # sha256 over all bytes, labels and parts
    describe: Callable[[int], str]  # how a message names a row: "data/pets/cat/3.jpg"
    skip_share: float = 0.0  # most rows, as a share, that preparation may find unreadable and leave out
    groups: NDArray[np.int64] | None = None  # (N,): rows of one group, such as a person's, stay in one part


@dataclass(frozen=True)
class Unlabelled:
    """Examples of no known class, as many as `count`."""

    count: int
    read: Callable[[int], bytes]  # the raw bytes of one of them
    describe: Callable[[int], str]  # how a message names it

    def behind(self, known: Examples) -> Examples:
        """Return labelled examples with these behind them, as a part of its own; no group is theirs."""
        n, groups = len(known.y), known.groups
        sha = hashlib.sha256(known.digest.encode())
        for i in range(self.count):
            sha.update(hashlib.sha256(self.read(i)).digest())
        return replace(
            known,
            y=np.append(known.y, np.full(self.count, -1)),
            parts={**known.parts, UNLABELLED: np.arange(n, n + self.count)},
            read=lambda row: known.read(row) if row < n else self.read(row - n),
            digest=sha.hexdigest(),
            describe=lambda row: known.describe(row) if row < n else self.describe(row - n),
            groups=None if groups is None else np.append(groups, np.full(self.count, -1)),
        )


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
    unlabelled: Path | None = None  # more examples, of no known class: `distill` has them labelled by the teacher

    def all_examples(self) -> Examples:
        """Open the data and return it, the unlabelled part too.

        Raises:
            BadInput: a file is missing, unreadable or empty, or this source reads no unlabelled examples.

        """
        known = self.examples()
        if self.unlabelled is None:
            return known
        if not self.unlabelled.exists():
            fix = "set data.unlabelled to the folder or file of the examples without classes"
            raise BadInput(f"there is nothing at {self.unlabelled}", fix=fix)
        return self.read_unlabelled(self.unlabelled, known.raw).behind(known)

    def read_unlabelled(self, path: Path, raw: Raw) -> Unlabelled:
        """Open examples like the labelled ones, without classes.

        Raises:
            BadInput: a file is missing, unreadable or empty, or this source reads none.

        """
        fix = "leave data.unlabelled out, or use text_csv, image_folder or arrays"
        raise BadInput(f"data source '{self.use}' reads no unlabelled examples", fix=fix)

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
