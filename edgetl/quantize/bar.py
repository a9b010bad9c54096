"""What a file of lower precision is calibrated, repaired and chosen on: never the test split. [host: onnx]"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import comparison, evaluate, gates, plugins
from edgetl.examples import Part
from edgetl.gates import Facts, Verdict
from edgetl.intervals import Interval, Z
from edgetl.prepare import Prepared
from edgetl.session import Session
from edgetl.types import Feed, Json

BATCH = 16
"""Samples of one calibration batch, which bounds the memory that it takes."""

INTERVALS = ("accuracy", "f1", "drop", "class_drop", "agreement")
"""The facts that validation samples tell."""

MOST_ROWS = 1000
"""Validation samples that a file is tried on, many times over."""

SURE = 1.0
"""Standard errors between a file and a gate's limit: what keeps it here will keep it on the test part 5 times in 6."""


@dataclass(frozen=True)
class Practice:
    """The training and validation parts of the data, and the gates to be kept."""

    prepared: Prepared
    gates: Mapping[str, Json]
    seed: int
    threads: int

    def batches(self, part: Part, samples: int) -> tuple[Feed, ...]:
        """Return pre-processed batches of that many samples drawn by the seed, of all where there are fewer."""
        rows, process = self._rows(part, samples), self.prepared.preprocess()
        return tuple(process.tail(self._heads(rows[i : i + BATCH])) for i in range(0, len(rows), BATCH))

    def answers(self, session: Session) -> NDArray[np.float32]:
        """Return the (n, K) answers of a file on at most 1,000 validation samples.

        Raises:
            GateMissed: one is not a finite number.

        """
        heads = self._heads(self._rows("validation", MOST_ROWS))
        return evaluate.answers(session, self.prepared.preprocess(), heads)

    def float_answers(self, base: Path) -> NDArray[np.float32]:
        """Return the (n, K) answers of a base ONNX file on the same samples."""
        session = plugins.find("targets", "onnx").open(base, {}, self.threads)
        try:
            return self.answers(session)
        finally:
            session.close()

    @property
    def y(self) -> NDArray[np.int64]:
        """The class numbers of those samples, (n,)."""
        return self.prepared.y[self._rows("validation", MOST_ROWS)]

    def _rows(self, part: Part, most: int) -> NDArray[np.int64]:
        rows = self.prepared.splits[part]
        drawn = np.random.default_rng(self.seed).permutation(len(rows))[:most]
        return rows[np.sort(drawn)]

    def _heads(self, rows: NDArray[np.int64]) -> Feed:
        return {name: np.asarray(values[rows]) for name, values in self.prepared.inputs.items()}


@dataclass(frozen=True)
class Bar:
    """The gates that a network's files must keep on the validation samples: those that its fp32 file keeps there.

    The test part will judge the pessimistic end of its own interval. Whether that keeps a gate is foretold from the
    validation samples: the interval that the test part's size gives, and beyond it `SURE` standard errors of a
    difference between the two parts. The fewer samples choose, the more distance from the limit they demand; where
    they are too few to prove even the fp32 file, a file must do as well as that one. A gate that the fp32 file itself
    would miss so, but keeps by its value, is judged by the value.
    """

    practice: Practice
    own: NDArray[np.float32]  # (n, K) answers of the network's fp32 file
    reference: NDArray[np.float32]  # (n, K) of the reference's

    def missed(self, answers: NDArray[np.float32]) -> list[Verdict]:
        """Return the gates that (n, K) answers miss and the fp32 file keeps."""
        found, facts = [], self._facts(answers)
        sure, plain = self._verdicts(facts, self._width(SURE)), self._verdicts(facts, 0.0)
        own_sure, own_plain = self._verdicts(self._own_facts, self._width(SURE)), self._verdicts(self._own_facts, 0.0)
        for gate, own in self._verdicts(self._own_facts, self._width(0.0)).items():
            if own.passes and not sure[gate].passes and not _as_good(sure[gate], own_sure[gate]):
                found.append(replace(sure[gate], note=f"foretold by {len(answers)} validation samples"))
            elif not own.passes and own_plain[gate].passes and not plain[gate].passes:
                found.append(plain[gate])
        return found

    def unproven(self) -> list[str]:
        """Return the gates that the fp32 file keeps, but that so few samples cannot prove even of it."""
        sure, tested = (self._verdicts(self._own_facts, self._width(errors)) for errors in (SURE, 0.0))
        return [gate for gate, verdict in tested.items() if verdict.passes and not sure[gate].passes]

    def _width(self, errors: float) -> float:
        """Return the width of the test part's interval, and so many standard errors, over that of these samples."""
        share = len(self.own) / len(self.practice.prepared.splits["test"])
        return math.sqrt(share) + errors / Z * math.sqrt(1 + share)

    def _verdicts(self, facts: Facts, width: float) -> dict[str, Verdict]:
        """Return the verdicts on facts whose intervals are so many times as wide; at 0 as if they were certain."""
        known: dict[str, Any] = {name: _scaled(getattr(facts, name), width) for name in INTERVALS}
        wanted = {name: limit for name, limit in self.practice.gates.items() if name != "faster"}
        return {v.gate: v for v in gates.judge(wanted, {}, replace(facts, **known))}

    @cached_property
    def _own_facts(self) -> Facts:
        return self._facts(self.own)

    def _facts(self, answers: NDArray[np.float32]) -> Facts:
        labels, y = self.practice.prepared.labels, self.practice.y
        score = evaluate.score(answers, y, labels)
        return Facts(
            accuracy=score.accuracy,
            f1=score.macro_f1,
            drop=evaluate.drop(self.reference, answers, y),
            class_drop=comparison.class_drop(self.reference, answers, y, labels)[1],
            agreement=evaluate.agreement(self.own, answers),
        )


def _scaled(known: Interval, width: float) -> Interval:
    value = known.value
    return Interval(value, value - width * (value - known.low), value + width * (known.high - value))


def _as_good(verdict: Verdict, other: Verdict) -> bool:
    """Say whether a pessimistic end is no worse than another of the same gate."""
    if verdict.value is None or other.value is None:
        return False
    worse = verdict.value - other.value
    return worse <= 0 if verdict.gate.endswith("drop") else worse >= 0
