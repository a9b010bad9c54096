"""Train one network whose narrower parts work too, and cut a student of each width from it.

After Once-for-All (Cai et al. 2020, arXiv 1908.09791), DynaBERT (Hou et al. 2020, arXiv 2004.04037) and MatFormer
(Devvrit et al. 2023, arXiv 2310.07707). The heads and neurons of every layer are ranked once, by OPTIN's scores, and a
part keeps the first of each, so that narrower parts lie inside wider ones. Every step runs the whole network, the
narrowest part and one between (the sandwich rule of Yu & Huang 2019, arXiv 1903.05134); the whole learns from the
labels or its teacher, the parts from the whole's answers to the same batch. A part runs by masks, which its cut equals.

Depth varies by `tleg`, a step before this one; one training then serves all widths of that depth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from edgetl.errors import BadInput
from edgetl.losses.logits import softened
from edgetl.methods.optin.fast import masked
from edgetl.methods.optin.sampling import Sampling, distortions, gates
from edgetl.methods.optin.score import combined
from edgetl.network import network as networks
from edgetl.network.edits import Edit
from edgetl.network.family import Group
from edgetl.network.network import Network
from edgetl.recipe.objective import Losses
from edgetl.recipe.schema import Branches, Context, Need, Schedule, Share, Step, Teacher
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.lesson import Loss, Term
from edgetl.train.taps import Features, full
from edgetl.train.training import usual

ORDER = "order.npz"
POSITIONS, BATCH = 768, 32
"""Positions that the scores compare, and samples in one forward of them."""

log = logging.getLogger("edgetl")


class Elastic(Step):
    """Students of several widths from one training: the best heads and neurons of every layer."""

    use: Literal["elastic"] = "elastic"
    width: Branches[float] = Field(0.5, gt=0, le=1)  # share of every layer's heads and neurons that a student keeps
    widths: tuple[Share, ...] = Field((0.25, 0.5, 0.75), min_length=1)  # of the parts that train beside the whole
    learn: Schedule = Schedule()  # of the whole and its parts together, once for all students
    schedule: Schedule | None = Schedule(epochs=2, lr=1e-4)  # of a student after its cut; null: the part as it is
    teacher: Teacher | None = None  # of the whole network; a student's teacher is always the whole
    losses: Losses = ()  # that the whole learns from; default: the labels, and the answers of a teacher
    temperature: float = Field(2.0, gt=0)  # softens the whole's answers, which the parts learn from
    samples: int = Field(128, ge=1)  # training samples that heads and neurons are scored with, labels unused
    trains: ClassVar[bool] = True
    cuts: ClassVar[bool] = True
    shared: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"trained"})

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(widths)))

    def reads(self) -> tuple[str, ...]:
        """Return the teacher's step."""
        return (self.teacher.step,) if self.teacher else ()

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes it costs: every step runs three networks; half are narrow."""
        return 7.0 * rows * self.learn.epochs + 0.5 * self.samples * units + self.again(rows, units)

    def again(self, rows: int, units: int) -> float:
        """Return what the training of one width costs."""
        return 3.0 * rows * self.schedule.epochs if self.schedule else 0.0

    def run(self, net: Network, ctx: Context) -> Network:
        """Return the student of one width.

        Raises:
            BadInput: the network has no heads and neurons, or there are fewer training samples than asked for.
            Diverged: a loss, or a value of the network, is not finite.

        """
        self._check(net, ctx)
        teacher = ctx.past(self.teacher.step) if self.teacher else None
        options = self.model_dump(mode="json", include={"widths", "learn", "losses", "temperature", "samples"})
        softness = [self.teacher.temperature, self.teacher.weight] if self.teacher else []
        parts = {"network": net, **({"teacher": teacher} if teacher else {}), "softness": softness, **options}

        def make(folder: Path, seed: int) -> None:
            self._learn(net, teacher, replace(ctx, seed=seed), folder)

        folder = ctx.once("elastic", parts, make)
        whole = networks.load(folder)
        student = whole.edit(cut(whole, read_order(folder), self.width))
        return self._tuned(student, whole, ctx) if self.schedule else student

    def _check(self, net: Network, ctx: Context) -> None:
        name, there = self.name or self.use, len(ctx.data.rows("train"))
        if not groups(net):
            problem = f"{name}: family '{net.family.name}' has no heads and neurons whose number may vary"
            raise BadInput(problem, fix="choose a backbone of a family such as hf_vit or hf_bert")
        if self.samples > there:
            problem = f"{name}: {self.samples} samples to score with, but the training split holds {there}"
            raise BadInput(problem, fix=f"set samples to {there} or less")

    def _learn(self, net: Network, teacher: Network | None, ctx: Context, folder: Path) -> None:
        """Rank the units, train the whole network with its parts, and write both into a folder."""
        whole = net.copy()
        order = ranked(whole, ctx, self.samples)
        course = Course(whole, teacher, ctx, self.learn.epochs)
        beside = Term(Parts(whole, order, self.widths, self.temperature))
        chosen = terms(self.losses or usual(self.teacher), course)
        fit(whole, ctx.data, [*chosen, beside], self.learn, ctx.seed, ctx.work / "learn")
        whole.module.requires_grad_(True).eval()
        networks.save(replace(whole), folder)
        np.savez(folder / ORDER, allow_pickle=False, **order)

    def _tuned(self, student: Network, whole: Network, ctx: Context) -> Network:
        """Return a student after training of its own, taught by the whole network."""
        assert self.schedule is not None
        course = Course(student, whole, ctx, self.schedule.epochs)
        learnt = terms(usual(Teacher(step=self.use, temperature=self.temperature)), course)
        fit(student, ctx.data, learnt, self.schedule, ctx.seed, ctx.work)
        student.module.requires_grad_(True).eval()
        return replace(student)  # with no digest of the weights it had before


class Parts(Loss):
    """T^2 * KL(whole || part) of the narrowest part and of one other, drawn for every batch, halved."""

    def __init__(
        self, whole: Network, order: Mapping[str, NDArray[np.int64]], widths: Sequence[float], temperature: float
    ) -> None:
        super().__init__()
        # the network is no module of the loss: it trains as what the lesson is about
        self._whole, self._groups, self._temperature = whole, groups(whole), temperature
        self._gates = gates(whole, self._groups)
        self._masks = [{g.name: mask(g, order[g.name], width) for g in self._groups} for width in sorted(widths)]

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over the parts, summed over the samples."""
        wanted, (narrowest, *others) = logits.detach(), self._masks
        drawn = [others[int(torch.randint(len(others), ()))]] if others else []
        loss = logits.new_zeros(())
        for masks in (narrowest, *drawn):
            loss = loss + softened(wanted, self.answers(masks, batch), self._temperature)
        loss = loss / (1 + len(drawn))
        return loss, {"parts": loss.detach()}

    def answers(self, masks: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (B, labels) of a part."""
        device = batch["index"].device
        with masked(self._groups, self._gates, {name: kept.to(device) for name, kept in masks.items()}):
            return full(self._whole.logits(batch))


def groups(net: Network) -> tuple[Group, ...]:
    """Return the heads and neurons of every layer."""
    return tuple(g for g in net.family.units(net.module) if g.kind in ("heads", "neurons"))


def ranked(net: Network, ctx: Context, samples: int) -> dict[str, NDArray[np.int64]]:
    """Return the units of every group, the most important first, ties by number."""
    found = distortions(net, groups(net), ctx.data, Sampling(samples, POSITIONS, BATCH, ctx.seed))
    scores = combined(found, 1.0, normalised=True)
    return {name: np.argsort(-score, kind="stable").astype(np.int64) for name, score in scores.items()}


def read_order(folder: Path) -> dict[str, NDArray[np.int64]]:
    """Return the ranks that a folder holds."""
    with np.load(folder / ORDER, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def count(group: Group, width: float) -> int:
    """Return how many units of a group a part keeps: one at least."""
    return max(1, group.least, round(width * group.count))


def mask(group: Group, order: NDArray[np.int64], width: float) -> Tensor:
    """Return (1, count) ones for the units that a part keeps, zeros for the others."""
    kept = torch.zeros(1, group.count)
    kept[0, torch.from_numpy(order[: count(group, width)])] = 1.0
    return kept


def cut(net: Network, order: Mapping[str, NDArray[np.int64]], width: float) -> list[Edit]:
    """Return the edits that leave a part."""
    kept = {g: order[g.name][: count(g, width)].tolist() for g in groups(net)}
    return [g.keep(units) for g, units in kept.items() if len(units) < g.count]


PLUGIN = Elastic
