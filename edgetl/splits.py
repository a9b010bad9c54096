"""The parts of the examples: published ones as they are, missing ones cut from train. [no torch]"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput, BadInputs
from edgetl.examples import PARTS, UNLABELLED, Examples, Part, Source

TRIES = 200
"""Random choices of groups, of which the one that keeps the shares of the classes best is taken."""


def split(
    examples: Examples, source: Source, seed: int, skipped: Sequence[int] = ()
) -> Mapping[Part, NDArray[np.int64]]:
    """Return the rows of every part: published parts as they are, missing ones cut from "train", class by class.

    A class gives its share to a part, rounded, and at least one example. Where the examples form groups, such as the
    windows of a person, whole groups go, about as many as the share asks for.

    Raises:
        BadInput: a class does not reach every part, or whole groups cannot be shared out so that it does.

    """
    parts = {part: np.setdiff1d(rows, skipped).astype(np.int64) for part, rows in examples.parts.items()}
    cuts: tuple[tuple[Part, float], ...] = (("test", source.test), ("validation", source.validation))
    missing = [(part, share) for part, share in cuts if part not in parts]
    _check_counts(examples, parts, 1 + len(missing))
    for number, (part, share) in enumerate(missing):
        left = len(missing) - number  # parts that are still to come from train, this one included
        cut = _by_class if examples.groups is None else _by_group
        parts["train"], parts[part] = map(np.sort, cut(examples, parts["train"], share, left, seed))
    return {part: parts[part] for part in (*PARTS, UNLABELLED) if part in parts}


def _by_class(
    examples: Examples, rows: NDArray[np.int64], share: float, left: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that stay and those that go: this share of each class, and one row at least of each."""
    from sklearn.model_selection import train_test_split

    kept, taken = [], []
    for number in range(len(examples.labels)):
        own = rows[examples.y[rows] == number]
        size = min(max(1, round(share * len(own))), len(own) - left)
        stay, go = train_test_split(own, test_size=size, random_state=seed)
        kept.append(stay)
        taken.append(go)
    return np.concatenate(kept), np.concatenate(taken)


def _by_group(
    examples: Examples, rows: NDArray[np.int64], share: float, left: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that stay and those that go, whole groups of them."""
    from sklearn.model_selection import GroupShuffleSplit

    assert examples.groups is not None
    y, groups = examples.y[rows], examples.groups[rows]
    total = np.bincount(y, minlength=len(examples.labels))
    best: tuple[float, NDArray[np.intp]] | None = None
    if len(np.unique(groups)) > left:
        for _, go in GroupShuffleSplit(TRIES, test_size=share, random_state=seed).split(rows, y, groups):
            counts = np.bincount(y[go], minlength=len(total))
            error = float(np.abs(counts / total - share).mean())
            if counts.min() > 0 and (total - counts).min() >= left and (best is None or error < best[0]):
                best = error, go
    if best is None:
        problem = f"no {left + 1} parts of whole groups, such as the people in the data, have examples of every class"
        raise BadInput(problem, fix="publish the parts (train, validation, test), or add examples of rare classes")
    stays = np.ones(len(rows), bool)
    stays[best[1]] = False
    return rows[stays], rows[~stays]


def _check_counts(examples: Examples, parts: Mapping[Part, NDArray[np.int64]], needed: int) -> None:
    errors = []
    for part, rows in ((part, rows) for part, rows in parts.items() if part != UNLABELLED):
        counts = np.bincount(examples.y[rows], minlength=len(examples.labels))
        least = needed if part == "train" else 1
        for number in np.flatnonzero(counts < least):
            name, count = examples.labels[number], counts[number]
            problem = f"class '{name}' has {count} of the {least} examples it needs in the {part} part"
            fix = f"add examples of '{name}', or leave the class out"
            errors.append(BadInput(problem, fix=fix))
    if len(errors) > 5:
        rest = BadInput(f"{len(errors) - 5} more classes lack examples", fix="check the labels of every part")
        errors = [*errors[:5], rest]
    if errors:
        raise errors[0] if len(errors) == 1 else BadInputs(errors)
