"""A bundle, ready to answer.

Letters: B batch, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, overload

import numpy as np

from edgetl.bundle import Bundle, open_bundle, open_preprocess, open_session
from edgetl.errors import BadInput
from edgetl.preprocess import stacked
from edgetl.runtime.inputs import fits, in_range, value
from edgetl.runtime.outputs import scores
from edgetl.types import Array, Feed, Operation

if TYPE_CHECKING:
    from typing import Self, TypeAlias, TypeVar

    from PIL.Image import Image

    Sample: TypeAlias = str | Path | bytes | Array | Image
    S = TypeVar("S", bound=Sample)

CHUNK = 32
"""Samples that run together at most: memory stays bounded however long the list is."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one sample."""

    label: str  # the one with the highest score
    score: float
    scores: dict[str, float]  # by label, in the order of the bundle's labels


class Model:
    """An opened bundle. Close it, or use it in a `with`, to free the runtime's memory."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Open the session and the pre-processing of a bundle; see `load`."""
        facts = bundle.manifest
        self.name: str = facts["name"]
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        self._inputs = facts["inputs"]
        self._post: Sequence[Operation] = facts["postprocessing"]
        self._preprocess = open_preprocess(bundle)
        self._chunk = min(CHUNK, (facts["axes"].get("batch") or [1, None])[1] or CHUNK)
        self._session = open_session(bundle, threads)

    @overload
    def predict(self, x: list[S]) -> list[Prediction]: ...

    @overload
    def predict(self, x: Sample) -> Prediction: ...

    def predict(self, x: Sample | list[S]) -> Prediction | list[Prediction]:
        """Return the answer for one sample, or a list of answers for a list of samples, run in batches.

        A sample is a path of an image, WAV or .npy file, the bytes of an image or WAV file, a PIL image, an array or a
        text.

        Raises:
            BadInput: a sample is of the wrong kind, shape or dtype, cannot be read, is empty or not finite.

        """
        if not isinstance(x, list):
            return self._run([x])[0]
        found = []
        for start in range(0, len(x), self._chunk):
            found += self._run(x[start : start + self._chunk])
        return found

    def close(self) -> None:
        """Free the runtime's memory."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, samples: Sequence[Sample]) -> list[Prediction]:
        logits = self._session.run(self._feed(samples))["logits"].astype(np.float64)  # (B, K)
        if not np.isfinite(logits).all():
            raise BadInput("the model's answer is not finite", fix="give values in the range of the training data")
        rows = scores(logits, self._post)
        best = rows.argmax(axis=1).tolist()
        by_label = [dict(zip(self.labels, row, strict=True)) for row in rows.tolist()]
        labels = [self.labels[i] for i in best]
        return [Prediction(label, each[label], each) for label, each in zip(labels, by_label, strict=True)]

    def _feed(self, samples: Sequence[Sample]) -> Feed:
        heads = []
        for sample in samples:
            head = self._preprocess.head(value(sample, self._preprocess))
            fits(head, self._inputs)
            heads.append(head)
        feed = self._preprocess.tail(stacked(heads))
        in_range(feed, self._inputs)
        return feed


def load(bundle: str | Path, threads: int | None = 1) -> Model:
    """Return the model of a bundle folder, checked and opened, on a number of threads (None: the runtime's choice).

    Raises:
        BadInput: there is no such folder.
        Refused: the bundle is damaged, malformed or newer than this edgetl.
        BadHost: the runtime that it needs is missing or too old.

    """
    return Model(open_bundle(Path(bundle)), 0 if threads is None else threads)
