"""The first module of a file whose answer is wrong: bisection over cuts of its graph. [no torch]

A cut divides a graph's values, in their order, into those before and those after it. Where every value before a cut
that is read behind it is right, all that went wrong went wrong behind the cut; so about log2(n) cuts find two
neighbours, a right one and a wrong one, and the value between them is the first whose inputs are right while it is
not. At each cut only the values that cross it are held.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgetl import _onnx_bytes, evaluate, plugins
from edgetl.errors import BadInput
from edgetl.explain.onnx_graph import Graph, read_graph
from edgetl.types import Array, Feed, Json


class Answers(Protocol):
    """A network that says what values inside it are for some fixed inputs."""

    def values(self, names: Collection[str]) -> Mapping[str, Array]:
        """Return these values by name; each call is a run."""


class FileAnswers:
    """The values inside an ONNX file, which is opened anew with the values asked for as outputs."""

    def __init__(self, file: bytes, options: Mapping[str, Json], feed: Feed) -> None:
        self.file, self.options, self.feed = file, options, feed
        self.outputs = frozenset(read_graph(file).outputs)

    def values(self, names: Collection[str]) -> Mapping[str, Array]:
        """Return these values by name.

        Raises:
            Refused, BadHost: the runtime cannot open or run the file.

        """
        file = _onnx_bytes.with_outputs(self.file, [name for name in names if name not in self.outputs])
        session = plugins.find("targets", "onnx").open(file, self.options, 1)
        try:
            found = session.run(self.feed)
        finally:
            session.close()
        return {name: found[name] for name in names}


@dataclass(frozen=True)
class Bad:
    """The outcome of a bisection."""

    module: str | None  # None: the last answer is within the tolerance
    value: str  # what the file calls it
    difference: float  # largest, over the largest of the right value
    runs: int  # of each side


def first_bad(graph: Graph, seen: Collection[str], right: Answers, tried: Answers, tolerance: float) -> Bad:
    """Return the first module of `graph`, that of `tried`, whose answer differs by more than the tolerance.

    `seen` are the values that both sides know under the same names, the graph's outputs among them.

    Raises:
        BadInput: the answers of both sides have other shapes, so they are not one network's.

    """
    order = [name for node in graph.nodes for name in node.outputs if name in seen]
    last = _last_reader(graph, order)
    low, high, runs = -1, len(order) - 1, 0
    worst = _worst(right, tried, graph.outputs)
    runs += 1
    if not worst[0]:
        raise BadInput("the answers have other shapes than the reference's", fix="export both from one network")
    if worst[1] <= tolerance:
        return Bad(None, *worst, runs)
    while high - low > 1:
        cut = (low + high) // 2
        found = _worst(right, tried, [name for name in order[: cut + 1] if last[name] > cut])
        runs += 1
        if found[1] > tolerance:
            high, worst = cut, found
        else:
            low = cut
    module = graph.modules()[order[high]]
    return Bad(module, order[high], worst[1], runs)


def common(tried: Graph, right: Graph) -> frozenset[str]:
    """Return the values that two files compute under the same names."""
    return frozenset(tried.producers()) & frozenset(right.producers())


def _last_reader(graph: Graph, order: Sequence[str]) -> dict[str, int]:
    """Return the place in the order of the last value that each one feeds, past the values that are not in it."""
    number, producers = {name: i for i, name in enumerate(order)}, graph.producers()
    last: dict[str, int] = {name: i for i, name in enumerate(order)}
    last |= {name: len(order) for name in graph.outputs if name in number}
    for i, name in enumerate(order):
        waiting, passed = [*producers[name].inputs], set[str]()
        while waiting:
            above = waiting.pop()
            if above in number:
                last[above] = max(last[above], i)
            elif above in producers and above not in passed:
                passed.add(above)
                waiting += producers[above].inputs
    return last


def _worst(right: Answers, tried: Answers, names: Collection[str]) -> tuple[str, float]:
    """Return the value that differs most, and by how much; "" where none has the same shape on both sides."""
    wanted, found = right.values(names), tried.values(names)
    worst = "", 0.0
    for name in wanted:
        a, b = (np.asarray(v[name], np.float64) for v in (wanted, found))
        if a.shape != b.shape or not a.size:
            continue
        finite = bool(np.isfinite(b).all()) or not np.isfinite(a).all()
        difference = evaluate.parity(a, b).max_rel if finite else math.inf
        if difference >= worst[1]:
            worst = name, difference
    return worst
