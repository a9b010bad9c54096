"""Replace the architecture: a student learns from the labels and from the network that it takes the place of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from edgetl import plugins
from edgetl.errors import BadInput
from edgetl.examples import UNLABELLED
from edgetl.methods._picked import picked
from edgetl.network.network import Network, create
from edgetl.preprocess import IDS, MASK
from edgetl.recipe.objective import Losses, check_mixed
from edgetl.recipe.schema import Branches, Context, Need, Schedule, Step, Teacher
from edgetl.strict import Strict
from edgetl.train.answers import table
from edgetl.train.batches import Data
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.texts import changed
from edgetl.train.training import usual
from edgetl.types import Json

log = logging.getLogger("edgetl")


class Student(Strict):
    """The architecture that takes over: a family, and a folder, a hub id, or sizes for random weights."""

    family: str  # file name in families/
    source: str | dict[str, Json] = Field(union_mode="left_to_right")  # hub id, folder, or sizes for random weights


class Distill(Step):
    """Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531) into another architecture.

    With `augmented` the teacher answers changed copies of the training texts too (train/texts.py).
    Without a `student` the network is born again, uncut, from random weights (Furlanello et al. 2018,
    arXiv 1805.04770); with `layers` it keeps that many of its blocks, and their weights (DistilBERT, Sanh et al. 2019,
    arXiv 1910.01108).
    """

    student: Student | None = None  # default: the incoming architecture, uncut, from random weights
    layers: Branches[int | None] = Field(None, ge=1)  # or: so many of its blocks, evenly spaced, with their weights
    temperature: float = Field(2.0, gt=0)  # above 1 softens both answers before they are compared
    weight: float = Field(0.5, ge=0, le=1)  # of the teacher's term; the labels' term gets the rest
    schedule: Schedule = Schedule()
    unlabelled: bool = True  # learn from the data's unlabelled part too, under the labels that the teacher gives it
    augmented: int = Field(0, ge=0, le=20)  # changed copies of every training text, which the teacher answers too
    losses: Losses = ()  # default: the labels and the softened answers, by `weight` and `temperature`
    trains: ClassVar[bool] = True
    cuts: ClassVar[bool] = True
    labels: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"trained"})

    @field_validator("losses")
    @classmethod
    def _fit_the_mix(cls, losses: Losses, info: ValidationInfo) -> Losses:
        check_mixed(losses, info.data.get("schedule"))
        return losses

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        if self.student and self.layers:
            raise ValueError("`student` and `layers` name two students")
        if self.augmented and not self.unlabelled:
            raise ValueError("`augmented` makes unlabelled texts, which `unlabelled: false` leaves out")
        return self

    def needed(self) -> frozenset[Need]:
        """Return what these settings need: copies are made of texts."""
        return super().needed() | {"text"} if self.augmented else super().needed()

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes of one sample it costs, copies included."""
        return super().passes(rows * (1 + self.augmented), units)

    def sources(self) -> tuple[tuple[str, str | Mapping[str, Json]], ...]:
        """Return family and source of the student, and of teachers from elsewhere."""
        own = ((self.student.family, self.student.source),) if self.student else ()
        return (*own, *(each for o in self.losses for each in o.sources()))

    def reads(self) -> tuple[str, ...]:
        """Return the steps of teachers besides the incoming network."""
        return tuple(dict.fromkeys(step for o in self.losses for step in o.reads()))

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the trained student.

        Raises:
            BadInput: the student's source is wrong, or it takes other inputs than the data gives.
            Diverged: the loss is not finite.

        """
        ctx = self._with_unlabelled(net, self._with_copies(ctx))
        student = picked(net, self.layers) if self.layers else self._created(net, ctx)
        teacher = Teacher(step="the incoming network", temperature=self.temperature, weight=self.weight)
        course = Course(student, net, ctx, self.schedule.epochs)
        objectives = self.losses or usual(teacher, live=self.schedule.mix is not None)
        fit(student, ctx.data, terms(objectives, course), self.schedule, ctx.seed, ctx.work)
        student.module.requires_grad_(True).eval()
        # the data is prepared as the incoming network wants it, so that is what the student has learnt to read
        return replace(student, facts={**student.facts, "prep": net.facts.get("prep")})

    def _created(self, net: Network, ctx: Context) -> Network:
        chosen = self.student or Student(family=net.family.name, source=net.config)
        source = chosen.source
        if not isinstance(source, str) and self.student:
            source = plugins.find("families", chosen.family).fitted(source, ctx.data)
        student = create(chosen.family, source, net.labels, ctx.seed)
        _check_inputs(student, chosen, ctx.data)
        return student

    def _with_copies(self, ctx: Context) -> Context:
        if not self.augmented:
            return ctx
        inputs = ctx.data.prepared.inputs
        if not {IDS, MASK} <= set(inputs):
            fix = "leave `augmented` out; pictures are changed by `augment` of the data"
            raise BadInput("`augmented` makes copies of texts, and the data has none", fix=fix)
        rows = ctx.data.rows("train")

        def make(folder: Path, seed: int) -> None:
            ids, mask = changed((inputs[IDS][rows], inputs[MASK][rows]), self.augmented, seed)
            np.save(folder / "ids.npy", ids, allow_pickle=False)
            np.save(folder / "mask.npy", mask, allow_pickle=False)

        made = ctx.once("copies", {"data": ctx.data.digest, "copies": self.augmented}, make)
        ids, mask = (np.load(made / name, allow_pickle=False) for name in ("ids.npy", "mask.npy"))
        return replace(ctx, data=ctx.data.extended({IDS: ids, MASK: mask}))

    def _with_unlabelled(self, teacher: Network, ctx: Context) -> Context:
        rows = ctx.data.rows(UNLABELLED)
        if not self.unlabelled or not len(rows):
            return ctx
        log.info("%s: the teacher labels %d examples", self.name or self.use, len(rows))
        asked = replace(ctx, data=ctx.data.labelled(ctx.data.prepared.y[rows], teacher.digest))
        said = table(teacher, asked)[rows].argmax(axis=1)  # which the training will read too
        return replace(ctx, data=ctx.data.labelled(said, teacher.digest))


def _check_inputs(student: Network, chosen: Student, data: Data) -> None:
    for name, example in student.family.example(student.config, 1).items():
        if name not in data.prepared.inputs:
            fix = "choose a student for the same kind of data"
            raise BadInput(f"student of family {chosen.family} reads {name}, which the data does not give", fix=fix)
        given, wanted = data.prepared.inputs[name].shape[1:], tuple(example.shape[1:])
        if name in ("pixel_values", "input_values") and given != wanted:
            fix = "choose a student of that size, or data of the student's"
            raise BadInput(f"the student reads {name} of shape {wanted}, the data has {given}", fix=fix)
    tokenizer = student.family.prep(chosen.source, student.config).tokenizer
    ours = data.prepared.folder / "tokenizer.json"
    if tokenizer and ours.is_file() and Path(tokenizer).read_bytes() != ours.read_bytes():
        fix = "choose a student with the same vocabulary; distilling between vocabularies is not supported"
        raise BadInput(f"the student's tokenizer ({tokenizer}) is not the one that the data is prepared with", fix=fix)


PLUGIN = Distill
