"""LSSKD: heads inside the network learn class and transformation; the deep teach the shallow, the past teaches all.

Dahri et al. 2025, "A Layered Self-Supervised Knowledge Distillation Framework", arXiv 2506.07055. The paper could not
be read in full: the soft targets, the two groups of terms and their direction follow what was readable; the heads, the
joint label space and its temperature are those of HSAKD's code (arXiv 2109.03075), the growth of alpha PS-KD's (arXiv
2006.12000), the hint's reduction ours. With one view it is PS-KD with BYOT's terms (arXiv 1905.08094).

    sum of  CE((1 - a) y + a p_before, p)                                            upright views
            joint * CE((1 - a) [y, j] + a q_before, q) / M                           every head l and view j
            kl * T^2 KL(q of the deepest head || q) / M                              shallower heads
            hint * mean((features of the head - the network's last features)^2) / M  shallower heads
            aggregate * T^2 KL(mean of the deepest head over the views || p)         upright views

Letters: B samples, M views, N labels; class y and view j make the joint label M y + j. Mode `better` has one
view and the first two terms, which was best with few images and a small network (benchmarks/distill.py): where views
are counted, each takes the place of a pass over upright samples and taught less than that; answers of the epoch before
are what helped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from edgetl.losses._heads import Head, heads, hints, stages_of
from edgetl.losses._memory import Memory, Table, Twin, samples
from edgetl.losses.logits import softened, standardise
from edgetl.losses.ps_kd import with_earlier
from edgetl.recipe.objective import Objective
from edgetl.train.course import Course
from edgetl.train.lesson import Loss, epoch_of
from edgetl.train.mixing import cross_entropy
from edgetl.train.taps import Features
from edgetl.train.views import check

log = logging.getLogger("edgetl")

SAID = {
    "table": "a table of the answers of the epoch before",
    "snapshot": "its weights at the end of the epoch before, asked again in every step",
    "average": "the average of its weights, asked again in every step",
}

PAPER = {"views": 4, "alpha": 0.8, "joint": 1.0, "kl": 1.0, "hint": 0.05, "aggregate": 0.0}
"""Weights of the paper, of HSAKD's code where it names none, and the hint's ours."""

BYTES = 4
"""Of one float32."""


class Layered(Loss):
    """The terms above, and as an option what the deepest head says of all views, taught to the network's classifier.

    Where samples are mixed, the first term is about the mixtures, all others about whole samples.
    """

    whole = True

    def __init__(self, options: Lsskd, made: list[Head], memory: Memory | None, epochs: int) -> None:
        super().__init__()
        self.facts = {"self_teacher": memory.name if memory else None}
        self.options, self.epochs, self.views = options, epochs, options.views
        self.heads = nn.ModuleList(made)
        self.memory = memory
        self.taps = tuple(head.place for head in made)
        self.tables = tuple(f"memory.{name}" for name in memory.tables) if memory else ()

    def forward(
        self, logits: Tensor, features: Features, batch: Mapping[str, Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the samples."""
        m = self.views
        batch = batch if m > 1 else {**batch, "view": torch.zeros_like(batch["labels"])}
        upright, own = logits[::m], samples(batch, m)
        found = [head(features, batch) for head in self.heads]
        answers = torch.stack([answer for _, answer in found], 1)  # (B * M, L, M * N)
        epoch = epoch_of(progress, self.epochs)
        before = self.memory.read(batch, epoch) if self.memory else None
        share = self.options.alpha * epoch / self.epochs if before else 0.0
        p, q = before or (None, None)
        answered = batch.get("mixed_logits", upright)
        logs = {
            "labels": with_earlier(cross_entropy(answered, own), answered, p, share),
            "joint_labels": self.options.joint * with_earlier(self._joint(answers, batch), answers, q, share) / m,
            "deep_to_shallow": self.options.kl * self._downwards(answers) / m,
            "hint": self.options.hint * hints([h for h, _ in found[:-1]], features[self.taps[-1]], batch) / m,
            "aggregate": self.options.aggregate * self._aggregated(upright, answers[:, -1]),
        }
        if self.training and self.memory:
            self.memory.write(batch, (upright.detach().softmax(-1), answers.detach().softmax(-1)))
        loss = torch.stack([*logs.values()]).sum()
        return loss, {name: value.detach() for name, value in logs.items()}

    def _joint(self, answers: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the cross entropy of every head's answer with the number of class and view."""
        joint = self.views * batch["labels"] + batch["view"]
        truth = joint[:, None].expand(answers.shape[:2])
        return functional.cross_entropy(answers.flatten(0, 1), truth.flatten(), reduction="sum")

    def _downwards(self, answers: Tensor) -> Tensor:
        """Return T^2 KL of the deepest head's answers to those of the shallower ones."""
        answers = standardise(answers) if self.options.standardised else answers
        deepest = answers[:, -1:].detach().expand_as(answers[:, :-1])
        return softened(deepest, answers[:, :-1], self.options.temperature)

    def _aggregated(self, upright: Tensor, deepest: Tensor) -> Tensor:
        """Return T^2 KL of the deepest head's mean over the views, class by class, to the network's answer."""
        if not self.options.aggregate:
            return upright.new_zeros(())
        return softened(aggregated(deepest.detach(), self.views), upright, self.options.temperature)


def aggregated(joint: Tensor, views: int) -> Tensor:
    """Return (B, N): the logits of each class and view j, read off view j, averaged (Lee et al. 2020, 1910.05872)."""
    own = joint.reshape(-1, views, joint.shape[-1] // views, views)  # sample, view, class, view said
    return own.diagonal(dim1=1, dim2=3).mean(-1)


class Lsskd(Objective):
    """Layered self-supervised distillation."""

    use: Literal["lsskd"] = "lsskd"
    mode: Literal["better", "paper"] = "better"  # what fields left out are: the best known, or as published
    views: int = 1  # transformations of every sample: 4, 2, or 1 for none; what they are depends on the data
    alpha: float = Field(0.8, ge=0, le=1)  # share of earlier answers in the targets of the last epoch
    temperature: float = Field(3.0, gt=0)  # of the terms between classifiers
    joint: float = Field(0.5, ge=0)  # weight of what every head learns of class and view, averaged over the views
    kl: float = Field(0.0, ge=0)  # weight of what the deepest head teaches
    hint: float = Field(0.0, ge=0)  # weight of the features' error
    aggregate: float = Field(0.0, ge=0)  # weight of what the deepest head's mean over all views teaches the classifier
    standardised: bool = False  # compare the shapes of the heads' answers: mean 0 and deviation 1 per sample
    heads: Literal["full", "light"] = "full"  # all blocks of the stages after it, or one for each of them
    stages: int = Field(3, ge=2)  # of networks whose blocks all have one shape
    teacher: Literal["auto", "table", "snapshot", "average"] = "auto"  # its own past: answers, or weights asked again
    table_mb: float = Field(2000, gt=0)  # the largest table that `auto` takes; a snapshot where it would be larger
    decay: float = Field(0.999, ge=0, lt=1)  # of `average`, per step
    mixed: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        paper = isinstance(given, Mapping) and given.get("mode") == "paper"
        return {**PAPER, **given} if paper else given

    def loss(self, course: Course) -> Layered:
        """Return the terms with heads of random weights."""
        net, data = course.net, course.ctx.data
        shape = next(iter(data.prepared.inputs.values())).shape[1:]
        check(net.family.data, self.views, tuple(shape))
        stages = stages_of(net, self.stages)
        made = heads(net, stages, self.views * len(net.labels), self.heads, course.ctx.seed)
        return Layered(self, made, self._memory(course, made), course.epochs)

    def chosen(self, rows: int, labels: int, count: int) -> Literal["table", "snapshot", "average"]:
        """Return the self-teacher for R rows, N labels and this many heads: a table if it is small enough."""
        if self.teacher != "auto":
            return self.teacher
        size = rows * (labels + self.views * count * self.views * labels) * BYTES
        return "table" if size <= self.table_mb * 1e6 else "snapshot"

    def _memory(self, course: Course, made: list[Head]) -> Memory | None:
        if not self.alpha:
            return None
        rows, labels = len(course.ctx.data.prepared.y), len(course.net.labels)
        kind = self.chosen(rows, labels, len(made))
        log.info("lsskd: taught by its own past: %s", SAID[kind])
        if kind == "table":
            return Table(rows, labels, self.views, len(made))
        return Twin(course.net, made, self.views, self.decay if kind == "average" else None)


PLUGIN = Lsskd
