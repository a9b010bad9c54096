"""What a run would make, what of it is there, and about how long the rest takes. [host: torch]"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from edgetl import plugins
from edgetl.examples import UNLABELLED
from edgetl.extras import MODULES, install
from edgetl.methods.distill import Distill
from edgetl.methods.tleg.learngene import DEPTH
from edgetl.network import cost
from edgetl.network.network import Network
from edgetl.network.saved import source_config
from edgetl.recipe.branches import Node
from edgetl.recipe.read import Recipe
from edgetl.splits import split
from edgetl.types import Json

BYTES_OF_WEIGHT = 4


@dataclass(frozen=True)
class Forecast:
    """One entry per step and branch: name, branch, whether it is there, minutes."""

    steps: Sequence[tuple[str, str, bool, float]]
    students: tuple[str, ...]
    reference: str
    gigabytes: float
    missing: tuple[str, ...]

    @property
    def minutes(self) -> float:
        """Minutes of all that is not there yet, of training and scoring."""
        return sum(minutes for _, _, there, minutes in self.steps if not there)

    def lines(self) -> list[tuple[str, str, str, str]]:
        """Return the cells of a table."""
        return [(n, b, "is there" if there else "to make", f"{m:.1f}") for n, b, there, m in self.steps]

    def summary(self) -> str:
        """Return the sums in words."""
        students = f"students: {', '.join(self.students) or 'none'}; reference: {self.reference}"
        if self.missing:
            return f"{students}\nmissing: {', '.join(self.missing)} ({install(self.missing[0])})"
        time = f"{self.minutes:.1f} minutes" if self.minutes >= 0.1 else "seconds"
        size = f"{self.gigabytes:.2f} GB" if self.gigabytes >= 0.01 else f"{self.gigabytes * 1000:.1f} MB"
        return f"{students}\nabout {time} and {size}"

    def to_json(self) -> Json:
        """Return the plain data."""
        keys = ("step", "branch", "finished", "minutes")
        steps = [dict(zip(keys, s, strict=True)) for s in self.steps]
        sums = {"minutes": self.minutes, "gigabytes": self.gigabytes, "missing": list(self.missing)}
        return {"steps": steps, "students": list(self.students), "reference": self.reference, **sums}


def forecast(recipe: Recipe, run: Path) -> Forecast:
    """Return what a run of the recipe in this folder would make; nothing is written.

    The time is that of one forward pass on random weights here, times the passes that each step says it needs.

    Raises:
        BadInput: the data cannot be read or shared out, or a source is missing or of another family.

    """
    missing = tuple(m for m in MODULES["compress"] if find_spec(m) is None)
    if missing:
        steps = [(n.name, n.branch, False, 0.0) for n in recipe.nodes]
        return Forecast(steps, recipe.student_names(), recipe.reference.name, 0.0, missing)
    examples = recipe.data.all_examples()
    parts = split(examples, recipe.data, recipe.frame.seed)
    net = _stand_in(recipe.frame.model.family, recipe.frame.model.source, examples.labels)
    clock = Clock(len(parts["train"]), len(parts.get(UNLABELLED, ())), net, recipe.frame.threads)
    steps = []
    for node in recipe.nodes:
        there = (run / node.folder / "network.json").is_file()
        steps.append((node.name, node.branch, there, clock.seconds(node) / 60))
    size = cost.parameters(net) * BYTES_OF_WEIGHT
    copies = len(recipe.nodes) + 2 * len(recipe.names())
    return Forecast(steps, recipe.student_names(), recipe.reference.name, copies * size / 1e9, ())


class Clock:
    """Says how long each step of a recipe trains and scores, asked in the order in which they run."""

    def __init__(self, rows: int, unlabelled: int, net: Network, threads: int) -> None:
        self._rows, self._unlabelled, self._threads = rows, unlabelled, threads
        self._nets: dict[str, tuple[Network, float]] = {"": (net, _forward_seconds(net, threads))}
        self._seen: set[str] = set()

    def seconds(self, node: Node) -> float:
        """Return the seconds of a step; what an earlier branch shares with it is not counted again."""
        origin = node.parent.folder if node.parent is not None else ""
        net, each = self._nets[origin]
        self._nets[node.folder] = net, each
        again = f"{node.name}/{origin}" in self._seen
        self._seen.add(f"{node.name}/{origin}")
        step = node.step
        if step is None:
            return 0.0
        rows = self._rows + self._unlabelled * step.labels
        units = sum(group.count for group in net.family.units(net.module))
        passes = step.again(rows, units) if again else step.passes(rows, units)
        if not isinstance(step, Distill):
            return passes * each
        student = _student(step, net)
        own = _forward_seconds(student, self._threads)
        self._nets[node.folder] = student, own
        asked = 0 if again else rows * (1 + step.augmented)  # the teacher, once about every sample
        return passes * own + asked * each


def _student(step: Distill, net: Network) -> Network:
    """Return a network of the architecture that takes over."""
    if step.student is not None:
        return _stand_in(step.student.family, step.student.source, net.labels)
    if step.layers is not None and DEPTH in net.config:
        return _stand_in(net.family.name, {**net.config, DEPTH: step.layers}, net.labels)
    return net


def _stand_in(family: str, source: str | Mapping[str, Json], labels: Sequence[str]) -> Network:
    """Return a network with random weights: the time of a pass does not depend on them."""
    kind = plugins.find("families", family)
    config = source_config(kind, source, len(labels))
    return Network(kind.build(config), kind, config, tuple(labels))


def _forward_seconds(net: Network, threads: int, batch: int = 16) -> float:
    """Return the seconds that one sample costs forward, the fastest of three batches."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    example = net.family.example(net.config, batch)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            net.logits(example)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return min(times) / batch
