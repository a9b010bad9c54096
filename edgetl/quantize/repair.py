"""Files of lower precision, whose worst nodes are given back to float until the gates hold. [host: onnx]

The sensitivity of nodes is the KL divergence of the answers from the fp32 file's when they alone are lowered. That of
a group bounds its nodes' from above, nearly: the worst group is split until it is a node, so that one bad node of n is
found with about 2 log2(n) files, not n.
"""

from __future__ import annotations

import heapq
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import plugins
from edgetl.errors import BadInput, GateMissed, Refused
from edgetl.quantize.bar import Bar
from edgetl.recipe.schema import Material, Target
from edgetl.session import Session
from edgetl.types import Feed

MOST_FLOAT = 0.5
"""With a larger share of its nodes in float, a file of lower precision has lost its point."""

MOST_BATCHES = 4
"""Calibration batches that a node's sensitivity is measured on."""

MOST_FILES = 40
"""Files that are made to find the worst nodes; then groups that are not split yet go by their mean."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Lowered:
    """A file made from a base ONNX file, in a folder of its own."""

    target: Target
    file: Path
    given_back: tuple[str, ...] = ()  # nodes that repair left in float, the worst first
    missed: str = ""  # the gates that it misses on the validation samples, in words


@dataclass(frozen=True)
class Attempt:
    """How one file is made again and again with other nodes in float."""

    target: Target
    base: Path
    folder: Path
    material: Material
    bar: Bar

    def make(self, floats: Sequence[str]) -> Lowered:
        """Return the file with these nodes in float, in the place of the last one."""
        material = replace(self.material, floats=frozenset(floats))
        file = self.folder / self.target.lower(self.base, self.folder, material)
        session = self.target.judge(file, self.bar.practice.threads)
        try:
            missed = "; ".join(map(str, self.bar.missed(self.bar.practice.answers(session))))
        except GateMissed as e:  # the answers are not even numbers
            missed = e.problem
        finally:
            session.close()
        return Lowered(self.target, file, tuple(floats), missed)


def lowered(target: Target, base: Path, folder: Path, material: Material, bar: Bar | None) -> Lowered:
    """Return the file for a target, repaired where it misses a gate on the validation samples.

    Without a bar, or where giving back half the nodes does not help, it is the file as it was made first.

    Raises:
        BadInput: the network cannot be lowered, or too few samples calibrate it.

    """
    if bar is None or target.precision == "fp32":
        return Lowered(target, folder / target.lower(base, folder, material))
    attempt = Attempt(target, base, folder, material, bar)
    first = attempt.make(())
    if not first.missed or not target.nodes(base):
        return first
    named = f"{target.use} {target.precision}"
    log.warning("%s misses on validation samples: %s; nodes are given back to float", named, first.missed)
    worst = Worst(worst_first(target, base, material, bar.practice.threads))
    total = len(target.nodes(base))
    most = int(MOST_FLOAT * total)
    count = _fewest(attempt, worst, most)
    made = attempt.make(worst.first(count or 0))  # the last one tried need not be the one found
    if count is None:
        log.warning("%s cannot be repaired with %d of its %d nodes in float", named, most, total)
        return replace(made, missed=f"{made.missed} (nor is it kept with the {most} worst of {total} nodes in float)")
    log.warning("%s keeps the gates with these nodes in float: %s", named, ", ".join(made.given_back))
    return made


class Worst:
    """Nodes in the order in which they are found, which costs files: only as many as are asked for."""

    def __init__(self, found: Iterator[str]) -> None:
        self._found = found
        self._known: list[str] = []

    def first(self, count: int) -> list[str]:
        """Return so many nodes, the worst first."""
        while len(self._known) < count:
            self._known.append(next(self._found))
        return self._known[:count]


def worst_first(target: Target, base: Path, material: Material, threads: int) -> Iterator[str]:
    """Yield every node that the target lowers, the most sensitive first."""
    nodes, feeds = target.nodes(base), material.calibration[:MOST_BATCHES]
    wanted = _logits(plugins.find("targets", "onnx").open(base, {}, threads), feeds)
    tried = 0

    def group(names: tuple[str, ...]) -> tuple[float, int, tuple[str, ...]]:
        nonlocal tried
        tried += 1
        alone = replace(material, floats=frozenset(nodes) - set(names))
        with tempfile.TemporaryDirectory(prefix="edgetl-node-") as scratch:
            try:
                file = Path(scratch) / target.lower(base, Path(scratch), alone)
                found = divergence(wanted, _logits(target.judge(file, threads), feeds))
            except (BadInput, Refused):
                found = float("inf")
        log.info("sensitivity of %d nodes from %s on  %.3g", len(names), names[0], found, extra={"done": tried})
        return -found, nodes.index(names[0]), names

    heap = [(0.0, 0, nodes)] if nodes else []
    while heap and tried + 2 <= MOST_FILES:
        _, _, names = heapq.heappop(heap)
        if len(names) == 1:
            yield names[0]
        else:
            middle = len(names) // 2
            for half in (names[:middle], names[middle:]):
                heapq.heappush(heap, group(half))
    for _, _, names in sorted(heap, key=lambda one: (one[0] / len(one[2]), one[1])):
        yield from names


def divergence(wanted: NDArray[np.float32], answers: NDArray[np.float32]) -> float:
    """Return the mean KL divergence of (n, K) logits from others, in nats; endless where one is not finite."""
    if not np.isfinite(answers).all():
        return float("inf")
    p, q = _log_softmax(wanted), _log_softmax(answers)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _fewest(attempt: Attempt, worst: Worst, most: int) -> int | None:
    """Return how many of the worst nodes have to be float, found by doubling and then by bisection."""
    low, high = 0, 1
    while high <= most and attempt.make(worst.first(high)).missed:
        low, high = high, min(2 * high, most) if high < most else most + 1
    if high > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if attempt.make(worst.first(middle)).missed else (low, middle)
    return high


def _logits(session: Session, feeds: Sequence[Feed]) -> NDArray[np.float32]:
    try:
        return np.concatenate([np.asarray(session.run(feed)["logits"], np.float32) for feed in feeds])
    finally:
        session.close()


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
