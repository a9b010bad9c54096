"""Several teachers, weighted by how close their tasks are to the target's.

"Distilling from Similar Tasks for Transfer Learning on a Budget", Borup, Phoo & Hariharan 2023, arXiv 2304.12314:
DistillNearest learns from the teacher whose features tell the target's classes apart best, DistillWeighted from all, by
similarity. Weights there are powers of PARC, which is ours too; a teacher of another task answers through a linear
classifier on its features, fitted to the training labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgetl.losses._similarity import features_of, parc, probed
from edgetl.losses.logits import softened
from edgetl.network.network import Network, create
from edgetl.recipe.objective import Objective
from edgetl.strict import Strict
from edgetl.train.answers import answers
from edgetl.train.course import Course
from edgetl.train.lesson import Loss
from edgetl.train.taps import Features
from edgetl.types import Json


class Source(Strict):
    """One teacher: an earlier step, or a network from elsewhere."""

    step: str | None = None  # name of an earlier step
    family: str | None = None  # file name in families/, of a network from elsewhere
    source: str | None = None  # its folder or hub id

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.step is None) == (self.family is None) or (self.family is None) != (self.source is None):
            raise ValueError("write {step: NAME}, or {family: NAME, source: PATH}")
        return self


@dataclass(frozen=True)
class Asked:
    """A teacher as it is asked: by what its classifier says, or by one that is fitted to its features."""

    title: str
    net: Network
    own: bool  # its classifier answers with the target's labels


class WeightedTeachers(Loss):
    """T^2 * the weighted sum of KL(teacher || student), from tables (S, N, labels) of the chosen teachers."""

    tables_of: Tensor
    shares: Tensor

    def __init__(self, logits: Tensor, weights: Sequence[float], temperature: float, facts: Mapping[str, Json]) -> None:
        super().__init__()
        self.temperature, self.facts = temperature, facts
        self.register_buffer("tables_of", logits, persistent=False)
        self.register_buffer("shares", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        each = [softened(table[batch["index"]], logits, self.temperature) for table in self.tables_of]
        loss = (self.shares * torch.stack(each)).sum()
        return loss, {"teachers": loss.detach()}


class Teachers(Objective):
    """The answers of several teachers, weighted by the similarity of their tasks."""

    use: Literal["teachers"] = "teachers"
    teachers: tuple[Source, ...] = ()  # [{step: NAME}, {family: NAME, source: PATH}]; default: the step's teacher
    choose: Literal["weighted", "nearest"] = "weighted"  # all by their similarity, or the most similar alone
    power: float = Field(4.0, ge=0)  # of the similarity in the weights; 0: equal ones
    temperature: float = Field(2.0, gt=0)  # above 1 softens all answers before they are compared
    samples: int = Field(500, ge=2)  # training samples that similarity is measured on
    taught: ClassVar[bool] = True

    def needs_teacher(self) -> bool:
        """Return whether none is named here."""
        return not self.teachers

    def reads(self) -> tuple[str, ...]:
        """Return the teachers that are earlier steps."""
        return tuple(t.step for t in self.teachers if t.step is not None)

    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return family and source of the others."""
        return tuple((t.family, t.source) for t in self.teachers if t.family is not None and t.source is not None)

    def loss(self, course: Course) -> WeightedTeachers:
        """Return the divergence from the chosen teachers, which are asked once for all branches."""
        named = [_asked(t, course) for t in self.teachers] or [Asked("teacher", course.source, own=True)]
        parts: dict[str, Json | Network] = {f"teacher {i}": one.net for i, one in enumerate(named)}
        parts["labels"], parts["samples"] = [*course.net.labels], self.samples
        folder = course.ctx.once("teachers", parts, lambda to, seed: _ask(named, course, self.samples, to, seed))
        similarity = json.loads((folder / "similarity.json").read_text("utf-8"))
        weights = weights_of(similarity, self.choose, self.power)
        chosen = [i for i, weight in enumerate(weights) if weight > 0]
        tables = np.stack([np.load(folder / f"{i}.npy", allow_pickle=False) for i in chosen])
        each = zip((one.title for one in named), similarity, weights, strict=True)
        told: Json = [{"teacher": t, "similarity": s, "weight": w} for t, s, w in each]
        return WeightedTeachers(
            torch.from_numpy(tables), [weights[i] for i in chosen], self.temperature, {"teachers": told}
        )


def weights_of(similarity: Sequence[float], choose: str, power: float) -> list[float]:
    """Return a weight for each teacher, 1 in sum: powers of what similarity is above 0, or all for the largest."""
    known = np.asarray(similarity, np.float64)
    if choose == "nearest":
        return [float(i == int(known.argmax())) for i in range(len(known))]
    powers = np.maximum(known, 0.0) ** power
    if not powers.sum() > 0:  # no teacher is like the target: none is better than another
        powers = np.ones_like(known)
    return [float(w) for w in powers / powers.sum()]


def _asked(teacher: Source, course: Course) -> Asked:
    if teacher.step is not None:
        net = course.ctx.past(teacher.step)
        return Asked(teacher.step, net, own=net.labels == course.net.labels)
    assert teacher.family is not None
    assert teacher.source is not None
    net = create(teacher.family, teacher.source, course.net.labels, course.ctx.seed)
    return Asked(f"{teacher.family} {Path(teacher.source).name}", net, own=net.facts.get("head") == "kept")


def _ask(named: Sequence[Asked], course: Course, samples: int, folder: Path, seed: int) -> None:
    """Write the similarity of all teachers, and a table of each one's logits (N, labels), NaN outside of training."""
    data, labels = course.ctx.data, course.net.labels
    rows, y = data.rows("train"), data.prepared.y
    some = np.random.default_rng(seed).permutation(len(rows))[:samples]
    similarity = []
    for number, one in enumerate(named):
        features = features_of(one.net, data, rows)
        similarity.append(parc(features[some], y[rows[some]], len(labels)))
        said = answers(one.net, data, rows) if one.own else probed(features, y[rows])
        table = np.full((len(y), len(labels)), np.nan, np.float32)
        table[rows] = said
        np.save(folder / f"{number}.npy", table, allow_pickle=False)
    (folder / "similarity.json").write_text(json.dumps(similarity), "utf-8")


PLUGIN = Teachers
