"""What a file of lower precision is calibrated, repaired and chosen on: never the test split. [host: onnx]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import comparison, evaluate, gates, plugins
from edgetl.examples import Part
from edgetl.gates import Facts, Verdict
from edgetl.intervals import Interval
from edgetl.prepare import Prepared
from edgetl.session import Session
from edgetl.types import Feed, Json

BATCH = 16
"""Samples of one calibration batch, which bounds the memory that it takes."""

MOST_ROWS = 1000
"""Validation samples that a file is tried on, many times over."""


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

    A gate is judged on the pessimistic end of its interval where the fp32 file keeps it so, else on its value: few
    samples prove little even of a file that loses nothing. The interval is the one that as many samples as the test
    split has would give, were they like these.
    """

    practice: Practice
    own: NDArray[np.float32]  # (n, K) answers of the network's fp32 file
    reference: NDArray[np.float32]  # (n, K) of the reference's

    def missed(self, answers: NDArray[np.float32]) -> list[Verdict]:
        """Return the gates that (n, K) answers miss and the fp32 file keeps."""
        found = []
        strict, plain = (self._verdicts(answers, certain=certain) for certain in (True, False))
        kept, likely = (self._verdicts(self.own, certain=certain) for certain in (True, False))
        for gate in strict:
            if kept[gate].passes and not strict[gate].passes:
                found.append(strict[gate])
            elif likely[gate].passes and not plain[gate].passes:
                found.append(plain[gate])
        return found

    def _verdicts(self, answers: NDArray[np.float32], *, certain: bool) -> dict[str, Verdict]:
        facts = self._facts(answers)
        wanted = {name: limit for name, limit in self.practice.gates.items() if name != "faster"}
        return {v.gate: v for v in gates.judge(wanted, {}, facts if certain else _values(facts))}

    def _facts(self, answers: NDArray[np.float32]) -> Facts:
        prepared, n = self.practice.prepared, len(answers)
        rows = np.resize(np.arange(n), max(n, len(prepared.splits["test"])))
        y, reference, own = self.practice.y[rows], self.reference[rows], self.own[rows]
        score = evaluate.score(answers[rows], y, prepared.labels)
        return Facts(
            accuracy=score.accuracy,
            f1=score.macro_f1,
            drop=evaluate.drop(reference, answers[rows], y),
            class_drop=comparison.class_drop(reference, answers[rows], y, prepared.labels)[1],
            agreement=evaluate.agreement(own, answers[rows]),
        )


def _values(facts: Facts) -> Facts:
    """Return the facts as if they were certain."""
    accuracy, f1, drop, worst, agreement = (
        None if known is None else Interval(known.value, known.value, known.value)
        for known in (facts.accuracy, facts.f1, facts.drop, facts.class_drop, facts.agreement)
    )
    return Facts(accuracy=accuracy, f1=f1, drop=drop, class_drop=worst, agreement=agreement)
