"""What a run would make, what of it is there, and about how long the rest takes. [host: torch]"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from edgetl import plugins
from edgetl.examples import Examples
from edgetl.extras import MODULES, install
from edgetl.network import cost
from edgetl.network.network import Network
from edgetl.network.saved import source_config
from edgetl.recipe.branches import Node
from edgetl.recipe.read import Recipe
from edgetl.recipe.schema import Step
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
    """
    missing = tuple(m for m in MODULES["compress"] if find_spec(m) is None)
    if missing:
        steps = [(n.name, n.branch, False, 0.0) for n in recipe.nodes]
        return Forecast(steps, recipe.student_names(), recipe.reference.name, 0.0, missing)
    examples = recipe.data.all_examples()
    net = _stand_in(recipe, examples)
    seconds = _forward_seconds(net, recipe.frame.threads)
    rows = len(examples.y)
    units = sum(group.count for group in net.family.units(net.module))
    steps = []
    seen: set[str] = set()
    for node in recipe.nodes:
        origin = f"{node.name}/{_input(node)}"
        passes = _passes(node.step, rows, units, again=origin in seen)
        seen.add(origin)
        there = (run / node.folder / "network.json").is_file()
        steps.append((node.name, node.branch, there, passes * seconds / 60))
    size = cost.parameters(net) * BYTES_OF_WEIGHT
    copies = len(recipe.nodes) + 2 * len(recipe.names())
    return Forecast(steps, recipe.student_names(), recipe.reference.name, copies * size / 1e9, ())


def _passes(step: Step | None, rows: int, units: int, *, again: bool) -> float:
    if step is None:
        return 0.0
    return step.again(rows, units) if again else step.passes(rows, units)


def _input(node: Node) -> str:
    return node.parent.folder if node.parent is not None else ""


def _stand_in(recipe: Recipe, examples: Examples) -> Network:
    """Return the backbone with random weights: the time of a pass does not depend on them."""
    family = plugins.find("families", recipe.frame.model.family)
    config = source_config(family, recipe.frame.model.source, len(examples.labels))
    return Network(family.build(config), family, config, examples.labels)


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
