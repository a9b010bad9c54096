"""Stage 1: a learngene learns through an auxiliary network of several depths, taught by the backbone.

TLEG (Xia et al. 2024, arXiv 2312.05614) trains one depth from random weights on a teacher's answers. Beyond it, as
defaults: the backbone's own blocks to start from, the best of several ways chosen by a short trial of each; a depth
drawn for every batch, the ends more often (the sandwich rule of Yu & Huang 2019, arXiv 1903.05134, at one network per
step); and the backbone's block outputs as a second teacher.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgetl.errors import BadInput
from edgetl.methods.tleg.auxiliary import Auxiliary, Matching, Recombined
from edgetl.methods.tleg.expansion import Sharing
from edgetl.methods.tleg.learngene import Learngene
from edgetl.methods.tleg.start import Init, Start, check, possible, started, told
from edgetl.network.network import Network
from edgetl.recipe.objective import Objective
from edgetl.recipe.schema import Context, Schedule
from edgetl.train.batches import Data
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.lesson import Term
from edgetl.types import Json

LOG = logging.getLogger("edgetl")

TUNING_LR = 1e-2
"""The learning rate of coefficients: they are of the order of one, where weights are of hundredths."""

TRIAL_SHARE = 0.1
"""The most that the trial of one start takes, as a share of the training it is for."""


FIRST = "stage-1"
"""The scratch folder of stage 1, below that of the step."""


@dataclass(frozen=True)
class Plan:
    """How a learngene is learnt."""

    sharing: Sharing
    schedule: Schedule
    losses: tuple[Objective, ...]
    match: float = 1.0  # weight of the backbone's block outputs
    depths: tuple[int, ...] = ()  # drawn from during training; none: that of the backbone
    start: Init = "auto"
    trial: int = 100  # steps


def learn(net: Network, ctx: Context, plan: Plan, teacher: Network | None = None) -> Learngene:
    """Return the learngene of a backbone, taught by it, or by another network of the same labels.

    Raises:
        BadInput: the backbone has no equal blocks, the teacher has other labels, or a loss looks at blocks.
        Diverged: a loss is not finite.

    """
    check(net)
    said = told(net, plan.sharing)
    LOG.info("learngene: %s", said)
    depths = plan.depths or (len(net.family.stages(net.module)),)
    lessons = Lessons(net, teacher or net, ctx, plan)
    gene, start = _begun(lessons, depths)
    auxiliary = Auxiliary(gene, chances(depths))
    lessons.fit(auxiliary, ctx.data, plan.schedule, ctx.work / FIRST)
    learnt = auxiliary.learnt()
    facts: Json = {"convention": plan.sharing.convention, "start": start, "fit": said, "depths": list(depths)}
    return replace(learnt, facts={**learnt.facts, "learngene": facts})


def chances(depths: Sequence[int]) -> dict[int, float]:
    """Return how often each depth is drawn: the deepest most, then the shallowest, the others equally."""
    first, *others = sorted(set(depths))
    if not others:
        return {first: 1.0}
    *between, last = others
    left = 0.4 if between else 0.0
    return {first: 0.2, **{depth: left / len(between) for depth in between}, last: 0.4}


def tuned(gene: Learngene, depth: int, steps: int, lessons: Lessons) -> Recombined:
    """Return the expansion to a depth with its coefficients trained for some steps, the sets as they are."""
    found = Recombined(gene, depth)
    batch = lessons.plan.schedule.batch
    data, epochs = few(lessons.ctx.data, steps, batch, lessons.ctx.seed)
    schedule = Schedule(epochs=epochs, lr=TUNING_LR, batch=batch, weight_decay=0)
    lessons.fit(found, data, schedule, lessons.ctx.work / "coefficients")
    return found


@dataclass(frozen=True)
class Lessons:
    """What every training of an auxiliary network learns from."""

    backbone: Network
    teacher: Network
    ctx: Context
    plan: Plan

    def fit(self, auxiliary: Auxiliary, data: Data, schedule: Schedule, work: Path) -> float:
        """Train what of an auxiliary network trains, in place; return the loss per sample of the last epoch."""
        terms = self._terms(auxiliary, schedule.epochs)
        return fit(auxiliary.network(), data, terms, schedule, self.ctx.seed, work)[-1]["loss"]

    def _terms(self, auxiliary: Auxiliary, epochs: int) -> list[Term]:
        # made for the backbone: an auxiliary network has no blocks to look at
        found = terms(self.plan.losses, Course(self.backbone, self.teacher, self.ctx, epochs))
        if any(term.loss.taps or term.loss.views > 1 or term.loss.whole for term in found):
            problem = "the depth changes while a learngene learns, so a loss cannot look at certain blocks or at views"
            raise BadInput(problem, fix="use losses of the answers, such as logits or dkd; `match` compares the blocks")
        matching = Matching(auxiliary.passage, self.backbone.copy())
        return [*found, *([Term(matching, self.plan.match)] if self.plan.match > 0 else [])]


def few(data: Data, steps: int, batch: int, seed: int) -> tuple[Data, int]:
    """Return part of the training samples, without validation, and the epochs that make about so many steps.

    There are two epochs or more, so that the last tells what the first have brought.
    """
    rows = data.rows("train")
    count = min(len(rows), max(1, steps // 2) * batch)
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    part = {**data.prepared.splits, "train": drawn, "validation": rows[:0]}
    epochs = max(1, round(steps / math.ceil(count / batch)))
    return Data(replace(data.prepared, splits=part), data.augment), epochs


def _begun(lessons: Lessons, depths: Sequence[int]) -> tuple[Learngene, Start]:
    """Return what to start from: the way asked for, or the one that learns best in a short trial."""
    plan, net, seed = lessons.plan, lessons.backbone, lessons.ctx.seed
    if plan.start != "auto":
        return started(net, plan.sharing, plan.start, seed), plan.start
    ways = (*possible(net, plan.sharing), "random")
    losses = {way: _tried(started(net, plan.sharing, way, seed), depths, lessons, way) for way in ways}
    best = min(ways, key=losses.__getitem__)
    words = ", ".join(f"{way} {loss:.4g}" for way, loss in losses.items())
    LOG.info("learngene: loss of a trial from each start: %s; %s is taken", words, best)
    return started(net, plan.sharing, best, seed), best


def _tried(gene: Learngene, depths: Sequence[int], lessons: Lessons, way: Start) -> float:
    """Return the loss at the end of a short training from a start."""
    schedule, data = lessons.plan.schedule, lessons.ctx.data
    whole = schedule.epochs * math.ceil(len(data.rows("train")) / schedule.batch)
    steps = max(2, min(lessons.plan.trial, round(TRIAL_SHARE * whole)))
    part, epochs = few(data, steps, schedule.batch, lessons.ctx.seed)
    short = schedule.model_copy(update={"epochs": epochs})
    return lessons.fit(Auxiliary(gene, chances(depths)), part, short, lessons.ctx.work / f"trial-{way}")
