"""Branches: one value of a field that was given several. Lists are expanded before anything runs. [no torch]"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from edgetl.errors import BadInput
from edgetl.recipe.schema import FanOut, ForDevice, Step
from edgetl.types import Json

SOURCE = "source"
"""The name of the network before the first step."""

ALL = "all"
"""The branch of what lies before any fan-out."""


@dataclass(frozen=True)
class Node:
    """One step on one branch; the source, which has no step, is number 0."""

    number: int
    step: Step | None
    branch: str
    parent: Node | None

    @property
    def name(self) -> str:
        """The step's name, its handle for later steps."""
        return SOURCE if self.step is None else self.step.name or self.step.use

    @property
    def folder(self) -> str:
        """Where the step is saved, below the run folder."""
        return f"steps/{self.number:02d}-{self.name}/{self.branch}"

    @property
    def path(self) -> tuple[Node, ...]:
        """The nodes from the source to this one."""
        return (*(self.parent.path if self.parent else ()), self)

    def ancestor(self, name: str) -> Node | None:
        """Return the earlier step of this name on this branch."""
        return next((n for n in self.path[:-1] if n.name == name), None)

    def seed(self, seed: int) -> int:
        """Return the seed of this step on this branch."""
        text = f"{seed}/{self.name}/{self.branch}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def fan_outs(step: type[Step]) -> tuple[str, ...]:
    """Return the fields of a step class whose lists make branches."""
    fields = step.model_fields.items()
    return tuple(name for name, field in fields if any(isinstance(m, FanOut) for m in field.metadata))


def values(step: type[Step], raw: Mapping[str, Json]) -> Iterator[dict[str, Json]]:
    """Yield the settings of a step once for every combination of its lists."""
    lists = {name: raw[name] for name in fan_outs(step) if isinstance(raw.get(name), list)}
    for combination in itertools.product(*lists.values()):
        yield {**raw, **dict(zip(lists, combination, strict=True))}


def label(step: Step) -> str | None:
    """Return what a step calls its branch, `<step>-<value>`, or None where it has no such field."""
    parts = [part for name in fan_outs(type(step)) for part in _words(getattr(step, name))]
    return "-".join([step.name or step.use, *parts]) if parts else None


def students(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Return the last node of every branch."""
    parents = {id(n.parent) for n in nodes}
    return tuple(n for n in nodes if id(n) not in parents)


def student_name(node: Node) -> str:
    """Return the name of the student that a branch ends in."""
    return "student" if node.branch == ALL else node.branch


def grow(ends: tuple[Node, ...], number: int, steps: tuple[Step, ...]) -> tuple[Node, ...]:
    """Return the nodes that one line of `steps:` adds after every open branch.

    Raises:
        BadInput: two values of a field are the same.

    """
    labels = [label(step) for step in steps]
    for i, text in enumerate(labels):
        if text in labels[:i]:
            raise BadInput(f"steps[{number - 1}]: the branch '{text}' stands twice", fix="list every value once")
    return tuple(Node(number, step, _join(end.branch, text), end)
                 for end in ends for step, text in zip(steps, labels, strict=True))  # fmt: skip


def _join(branch: str, text: str | None) -> str:
    if text is None:
        return branch
    return text if branch == ALL else f"{branch}_{text}"


def _words(value: Json) -> list[str]:
    if value is None:
        return []
    if isinstance(value, BaseModel):
        return _words(value.device if isinstance(value, ForDevice) else value.model_dump())
    if isinstance(value, Mapping):
        return [word for v in value.values() for word in _words(v)]
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, int | float):
        return [f"{value:g}"]
    return [re.sub(r"[^A-Za-z0-9.+]+", "-", str(value)).strip("-.")]
