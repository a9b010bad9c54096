"""How good answers are: accuracy, parity, agreement [no torch, no pydantic].

Letters: n samples, K labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput, GateMissed
from edgetl.intervals import Interval, paired_difference, wilson
from edgetl.types import Array, Feed, Json

if TYPE_CHECKING:
    from edgetl.preprocess import Preprocess
    from edgetl.session import Session

Floats: TypeAlias = NDArray[np.floating]
Ints: TypeAlias = NDArray[np.integer]

FP32_LIMIT = 1e-4
"""The largest difference of an fp32 file's logits from its torch network's, absolute or relative."""

BINS = 10
"""Equal parts of the range of confidence, as in the literature on calibration."""

RESAMPLES = 1000
"""Bootstrap resamples of an interval."""


@dataclass(frozen=True)
class Score:
    """How well answers match the labels: shares in [0, 1] with 95 % intervals."""

    accuracy: Interval
    balanced: Interval  # mean of the accuracies per class
    macro_f1: Interval
    per_class: Mapping[str, Interval]  # accuracy of each class that has samples
    n: int
    ece: float  # expected calibration error: how far confidence is from accuracy, a share

    def to_json(self) -> dict[str, Json]:
        """Return the plain data that manifests and reports hold."""
        whole = {name: interval_json(getattr(self, name)) for name in ("accuracy", "balanced", "macro_f1")}
        per_class = {k: interval_json(v) for k, v in self.per_class.items()}
        return {**whole, "per_class": per_class, "n": self.n, "ece": self.ece}


@dataclass(frozen=True)
class Parity:
    """How far answers are from the reference's."""

    max_abs: float  # largest difference of a logit
    max_rel: float  # max_abs over the largest logit of the reference

    def within(self, limit: float) -> bool:
        """Say whether either difference is at most the limit; what is not finite never is."""
        return min(self.max_abs, self.max_rel) <= limit


def interval_json(interval: Interval) -> dict[str, Json]:
    """Return `{"value", "low", "high"}`."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def answers(session: Session, preprocess: Preprocess, heads: Feed, batch: int = 64) -> NDArray[np.float32]:
    """Return the (n, K) logits of head outputs, each (n, ...), run batch by batch.

    Raises:
        BadInput: there is no sample.
        GateMissed: an answer is not finite.

    """
    n = len(next(iter(heads.values())))
    if not n:
        raise BadInput("there is no sample to answer", fix="give data with at least one sample")
    parts = []
    for start in range(0, n, batch):
        rows = {name: np.asarray(values[start : start + batch]) for name, values in heads.items()}
        parts.append(np.asarray(session.run(preprocess.tail(rows))["logits"], np.float32))
    logits = np.concatenate(parts)
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise GateMissed(f"{bad} of {n} answers are not finite numbers", fix="export at a higher precision, fp32 first")
    return logits


def score(logits: Floats, y: Ints, labels: Sequence[str], seed: int = 0) -> Score:
    """Return accuracy, balanced accuracy and macro-F1 of (n, K) logits against (n,) class numbers.

    A class without samples has no accuracy and is left out of the balanced accuracy; the F1 mean runs over the
    classes that occur among truths or answers, as in scikit-learn. Accuracies have Wilson's interval, the two means
    the percentiles of resampled confusion matrices.

    Raises:
        BadInput: nothing to score, or shapes and labels that do not match.

    """
    _fits(logits, y, len(labels))
    matrix = _confusion(np.argmax(logits, axis=1), y, len(labels))
    right, truths = np.diag(matrix), matrix.sum(axis=1)
    accuracy = wilson(int(right.sum()), len(y))
    present = [k for k in range(len(labels)) if truths[k]]
    per_class = {labels[k]: wilson(int(right[k]), int(truths[k])) for k in present}
    balanced, f1 = _means(matrix, accuracy, seed)
    return Score(accuracy, balanced, f1, per_class, len(y), calibration_error(logits, y))


def calibration_error(logits: Floats, y: Ints) -> float:
    """Return the expected calibration error of (n, K) logits, a share (Guo et al. 2017, arXiv 1706.04599).

    Over `BINS` equal ranges of the confidence, (a, b], the mean distance of confidence from accuracy, by samples.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    confidence = 1 / np.exp(shifted).sum(axis=1)  # of the answer, whose shifted logit is 0
    right = np.argmax(logits, axis=1) == y
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(y))


def agreement(a: Floats, b: Floats) -> Interval:
    """Return the share of samples with the same top-1 answer in (n, K) logits a and b."""
    return wilson(int((np.argmax(a, axis=1) == np.argmax(b, axis=1)).sum()), len(a))


def drop(reference: Floats, logits: Floats, y: Ints) -> Interval:
    """Return accuracy(reference) - accuracy(logits) as a share, paired on the same samples."""
    return paired_difference(np.argmax(reference, axis=1) == y, np.argmax(logits, axis=1) == y)


def parity(reference: Floats, logits: Floats) -> Parity:
    """Return the largest difference between (n, K) logits and the reference's, absolute and relative."""
    max_abs = float(np.abs(logits.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    return Parity(max_abs, max_abs / scale if scale else max_abs)


def tolerance(manifest: Mapping[str, Json]) -> float:
    """Return how far an artifact's logits may be from its goldens on any device, absolute or relative."""
    if manifest["precision"] == "fp32":
        return FP32_LIMIT
    # Kernels of low precision differ between processors; the host's own difference sets the scale.
    return max(FP32_LIMIT, 2 * float(manifest["parity"]["max_rel"]))


def _fits(logits: Array, y: Array, count: int) -> None:
    if logits.ndim != 2 or logits.shape != (len(y), count) or not len(y):
        problem = f"cannot score logits of shape {logits.shape} against {len(y)} labels of {count} classes"
        raise BadInput(problem, fix="score at least one sample with one logit for each label")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= count:
        outside = low if low < 0 else high
        raise BadInput(f"class number {outside} is not in 0..{count - 1}", fix="use data made with the same labels")


def _confusion(answer: Ints, y: Ints, count: int) -> NDArray[np.int64]:
    """(K, K) counts: rows are truths, columns answers."""
    pairs = y.astype(np.int64) * count + answer
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _means(matrix: NDArray[np.int64], accuracy: Interval, seed: int) -> tuple[Interval, Interval]:
    """Balanced accuracy and macro-F1. Resampling samples is resampling the counts of the confusion matrix."""
    rows, columns = np.nonzero(matrix)
    counts = matrix[rows, columns]
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    values = _balanced_f1(counts[None], rows, columns)
    resampled = _balanced_f1(drawn, rows, columns)
    # Resamples of a matrix without mistakes have none either; accuracy's bound is then the honest one.
    floor = accuracy.low if accuracy.value == 1 else 1.0
    intervals = []
    for value, samples in zip(values, resampled, strict=True):
        low, high = np.percentile(samples, (2.5, 97.5))
        v = float(value[0])
        intervals.append(Interval(v, min(v, float(low), floor), max(v, float(high))))
    return intervals[0], intervals[1]


def _balanced_f1(counts: NDArray[np.int64], rows: Ints, columns: Ints) -> tuple[Floats, Floats]:
    """Each (R,), of (R, C) counts of the C confusion cells (rows, columns), sorted by row."""
    classes = np.union1d(rows, columns)
    truths = _per_class(counts, rows, classes)
    answered = _per_class(counts, columns, classes)
    hit = rows == columns
    right = _per_class(counts[:, hit], rows[hit], classes)
    balanced = _mean_where(right, truths, truths > 0)
    f1 = _mean_where(2 * right, truths + answered, truths + answered > 0)
    return balanced, f1


def _per_class(counts: NDArray[np.int64], of: Ints, classes: Ints) -> NDArray[np.int64]:
    """(R, K) sums of the (R, C) counts whose class is `of`."""
    totals = np.zeros((len(counts), len(classes)), np.int64)
    if not len(of):
        return totals
    order = np.argsort(of, kind="stable")
    present, starts = np.unique(of[order], return_index=True)
    totals[:, np.searchsorted(classes, present)] = np.add.reduceat(counts[:, order], starts, axis=1)
    return totals


def _mean_where(top: NDArray[np.int64], bottom: NDArray[np.int64], where: NDArray[np.bool_]) -> Floats:
    ratios = np.divide(top, bottom, out=np.zeros(top.shape), where=where)
    return np.asarray(ratios.sum(axis=1) / where.sum(axis=1))
