"""Check a bundle on the device it stands on: the goldens, and the accuracy of a whole split [no torch]."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.bundle import Bundle, open_bundle, open_preprocess, open_session, read_golden
from edgetl.errors import BadInput, GateMissed
from edgetl.evaluate import Parity, Score, agreement, answers, interval_json, parity, score, tolerance
from edgetl.golden import Golden, read_npz
from edgetl.intervals import Interval
from edgetl.preprocess import Preprocess
from edgetl.session import Session
from edgetl.types import Array, Feed, Json

INPUT_LIMIT = 1e-6
"""The largest difference of a pre-processed float; integers must be equal."""


@dataclass(frozen=True)
class Check:
    """What a bundle gave on this device. Shares are in [0, 1]."""

    name: str
    target: str
    precision: str
    provider: str  # the execution provider really used
    n: int  # golden samples
    preprocessing_max_abs: float | None  # None where the raw data did not leave the host
    parity: Parity  # of the goldens, to the torch network
    agreement: Interval  # top-1, on the goldens
    score: Score | None  # of the data given
    stated: Interval | None  # the manifest's accuracy; None where it was exported without data
    seconds: float

    def to_json(self) -> dict[str, Json]:
        """Return the plain data that `--json` prints."""
        return {
            "schema_version": 1,
            **{key: getattr(self, key) for key in ("name", "target", "precision", "provider", "n")},
            "preprocessing_max_abs": self.preprocessing_max_abs,
            "parity": {"max_abs": self.parity.max_abs, "max_rel": self.parity.max_rel},
            "agreement": interval_json(self.agreement),
            "accuracy": self.score.to_json() if self.score else None,
            "stated": interval_json(self.stated) if self.stated else None,
            "seconds": self.seconds,
        }


def verify(bundle: Path, data: Path | None = None, threads: int = 1) -> Check:
    """Repeat a bundle's goldens on this device; with the run's eval/test.npz also the accuracy of the whole split.

    Raises:
        GateMissed: the answers or the accuracy are not the ones that the bundle states.
        BadInput: the data is missing or made for another bundle.
        Refused: the bundle is damaged or malformed.
        BadHost: its runtime is missing here.

    """
    begin = time.perf_counter()
    opened = open_bundle(bundle)
    golden, facts = read_golden(opened), opened.manifest
    preprocess = open_preprocess(opened)
    off = _same_inputs(golden, preprocess)
    session = open_session(opened, threads)
    try:
        logits = np.asarray(session.run(golden.inputs)["logits"], np.float32)
        near = _near(golden, logits, opened)
        found = _accuracy(session, preprocess, data, opened) if data else None
    finally:
        session.close()
    return Check(
        facts["name"],
        facts["target"],
        facts["precision"],
        session.provider,
        len(golden.y),
        off,
        near,
        agreement(golden.logits, logits),
        found,
        _stated(opened),
        time.perf_counter() - begin,
    )


def _same_inputs(golden: Golden, preprocess: Preprocess) -> float | None:
    """The largest difference between this device's pre-processing and the host's."""
    if golden.raw is None:
        return None
    feed = preprocess.feed([preprocess.from_bytes(data) for data in golden.raw])
    largest = 0.0
    for name, wanted in golden.inputs.items():
        off = _largest(feed[name], wanted)
        limit = INPUT_LIMIT if wanted.dtype.kind == "f" else 0.0
        if not off <= limit:
            fix = "use the Pillow or tokenizers version that the bundle was made with, or export it here"
            raise GateMissed(f"pre-processing gives other {name} here: off by {off:.3g}, limit {limit:g}", fix=fix)
        largest = max(largest, off)
    return largest


def _largest(a: Array, b: Array) -> float:
    return float(np.abs(np.subtract(a, b, dtype=np.float64)).max()) if a.shape == b.shape else float("inf")


def _near(golden: Golden, logits: NDArray[np.float32], bundle: Bundle) -> Parity:
    """How far the answers are from the torch network's, within the limit of the bundle's precision."""
    found = parity(golden.logits, logits)
    limit = tolerance(bundle.manifest)
    if not found.within(limit):
        problem = f"the logits are off by {found.max_abs:.3g} ({found.max_rel:.3g} relative), limit {limit:g}"
        raise GateMissed(problem, fix="try another version of the runtime, or export for this device")
    return found


def _accuracy(session: Session, preprocess: Preprocess, data: Path, bundle: Bundle) -> Score:
    heads, y = _split(data, preprocess)
    found = score(answers(session, preprocess, heads), y, bundle.manifest["labels"])
    stated = _stated(bundle)
    if stated and found.accuracy.value < stated.low:
        problem = f"accuracy is {found.accuracy.value:.2%} on {found.n} samples here, limit {stated.low:.2%}"
        fix = f"the bundle states {stated.value:.2%}: give its own run's eval/test.npz, or export it again"
        raise GateMissed(problem, fix=fix)
    return found


def _stated(bundle: Bundle) -> Interval | None:
    whole = bundle.manifest["accuracy"]
    return Interval(**{end: float(whole["accuracy"][end]) for end in ("value", "low", "high")}) if whole else None


def _split(data: Path, preprocess: Preprocess) -> tuple[Feed, NDArray[np.int64]]:
    """Head outputs and labels of an eval/test.npz."""
    if not data.is_file():
        raise BadInput(f"there is no file {data}", fix="give the eval/test.npz of the run that made the bundle")
    arrays = read_npz(data.read_bytes(), str(data))
    missing = sorted({*preprocess.inputs, "y"} - set(arrays))
    if missing:
        raise BadInput(f"{data} has no '{missing[0]}'", fix="give the eval/test.npz of the run that made the bundle")
    y = arrays["y"]
    if y.ndim != 1 or y.dtype.kind not in "iu" or any(len(arrays[name]) != len(y) for name in preprocess.inputs):
        raise BadInput(f"{data}: the arrays do not fit together", fix="make it again with `edgetl run`")
    return {name: arrays[name] for name in preprocess.inputs}, y.astype(np.int64)


CELLS = ("bundle", "provider", "samples", "largest difference", "equal answers", "accuracy of the data")


def cells(check: Check) -> tuple[str, ...]:
    """Return a line of a table whose columns are `CELLS`."""
    score = check.score.accuracy if check.score else None
    accuracy = f"{score.value:.2%} [{score.low:.2%}, {score.high:.2%}]" if score else "not repeated"
    name = f"{check.name} {check.target} {check.precision}"
    return name, check.provider, str(check.n), f"{check.parity.max_rel:.1e}", f"{check.agreement.value:.1%}", accuracy
