"""Students of several depths, made in five ways from as many training images: what `learngene.py` compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from _distill_images import Images, context
from _results import Row, percent

from edgetl import plugins
from edgetl.methods._picked import picked
from edgetl.methods.finetune import Finetune
from edgetl.methods.tleg import Tleg
from edgetl.methods.tleg.expansion import Sharing
from edgetl.methods.tleg.learn import TRIAL_SHARE, few
from edgetl.methods.tleg.learngene import DEPTH, WEIGHTS
from edgetl.methods.tleg.start import possible
from edgetl.network import cost
from edgetl.network.network import Network, create, load, save
from edgetl.network.saved import is_saved
from edgetl.recipe.schema import Context, Schedule, Teacher
from edgetl.train.answers import answers

TRIAL = 25
"""Steps in which every start of a learngene is tried; their images count."""


@dataclass(frozen=True)
class Case:
    """A data set with a network that fits it, and how long everything trains."""

    name: str
    depths: tuple[int, ...]  # of the students, ascending; the last is the backbone's
    sizes: Mapping[str, int]
    shots: int | None  # training images a class; None: all
    tested: int
    backbone: int  # epochs of the backbone, which is given: no row counts them
    epochs: int  # of each student from scratch
    batch: int = 128
    lr: float = 1e-3
    precision: str = "fp32"

    def schedule(self, epochs: int) -> Schedule:
        return Schedule(epochs=epochs, lr=self.lr, batch=self.batch, precision=self.precision)  # type: ignore[arg-type]


SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
GPU = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "patch_size": 4}
CASES = {
    "digits": Case("digits", (2, 4, 6), {**SMALL, "patch_size": 2}, None, 797, 16, 12, batch=32),
    "fashion-mnist": Case("fashion-mnist", (3, 6, 9, 12), {**SMALL, "patch_size": 7}, 600, 10_000, 30, 10, batch=64),
    "cifar10": Case("cifar10", (3, 6, 9, 12), GPU, None, 10_000, 40, 20, batch=512, precision="bf16"),
    "cifar100": Case("cifar100", (3, 6, 9, 12), GPU, None, 10_000, 40, 20, batch=512, precision="bf16"),
}
TLEG: Mapping[str, Mapping[str, Any]] = {
    "tleg_paper": {"mode": "paper"},
    "tleg": {},
    "sws": {"share": "stagewise"},
    "polynomial": {"share": "polynomial", "order": 3},
}
SLOWER = {"polynomial": 0.5}
"""Of the learning rate in stage 1: a step moves a block by what all of its sets move, and there are more of them."""
METHODS = ("scratch", "picked", *TLEG)
TABLES: Mapping[str, tuple[str, ...]] = {"equal": METHODS, "half": ("tleg",)}
"""Rows that see as many images as the students from scratch do all together, and rows that see half as many."""


@dataclass(frozen=True)
class Family:
    """The students of one data set and seed."""

    case: Case
    images: Images

    @property
    def seed(self) -> int:
        return self.images.seed

    @cached_property
    def backbone(self) -> Network:
        """The deepest network, trained on the labels of the same images once for all rows."""
        folder = self.images.runs / "backbones" / f"{self.case.name}-{self.seed}"
        if not is_saved(folder):
            net = self.untrained(self.case.depths[-1])
            step = Finetune(use="finetune", schedule=self.case.schedule(self.case.backbone))
            save(step.run(net, self.context("backbone")), folder)
        return load(folder)

    def untrained(self, depth: int) -> Network:
        data = self.images.data
        channels, size, _ = data.prepared.inputs["pixel_values"].shape[1:]
        sizes = {**self.case.sizes, "num_channels": int(channels), "image_size": int(size), DEPTH: depth}
        return create("hf_vit", sizes, data.labels, self.seed)

    def context(self, row: str, *, taught: bool = False) -> Context:
        code = plugins.digest("methods", "tleg")[:8]  # of the learngenes that are kept there
        work = self.images.runs / "work" / f"{self.case.name}-{row}-{self.seed}-{code}"
        return context(self.images.data, self.seed, work, self.backbone if taught else None)

    def spent(self, table: str, method: str) -> tuple[int, int]:
        """Return the epochs of stage 1 and those of every student."""
        whole, count = self.case.epochs * len(self.case.depths), len(self.case.depths)
        if method not in TLEG:
            return 0, self.case.epochs
        total = whole if table == "equal" else whole // 2
        second = total // (2 * count)
        return max(1, total - count * second - self._trials(table, method)), second

    def _trials(self, table: str, method: str) -> int:
        """Return the epochs that trying every start takes, rounded up: what the default spends before stage 1."""
        if TLEG.get(method, {"mode": "paper"}).get("mode") == "paper":
            return 0
        starts = len(possible(self.backbone, Sharing("linear", 2))) + 1
        each, share = len(self.images.data.rows("train")), 1.0 if table == "equal" else 0.5
        whole = share * self.case.epochs * len(self.case.depths) / 2 * each / self.case.batch
        steps = max(2, min(TRIAL, round(TRIAL_SHARE * whole)))
        part, epochs = few(self.images.data, steps, self.case.batch, self.seed)
        return -(-starts * epochs * len(part.rows("train")) // each)

    def rows(self, table: str, method: str, depths: Sequence[int]) -> Iterator[Row]:
        """Yield a row for each of these depths: the accuracy before its own training, after an epoch, and after all."""
        first, second = self.spent(table, method)
        each = len(self.images.data.rows("train"))
        total = (first + self._trials(table, method) + second * len(self.case.depths)) * each
        for depth in depths:
            after = {"0": 0, "1": 1, "all": second}
            found = {k: self._judged(self.student(table, method, depth, epochs)) for k, epochs in after.items()}
            told = {"data": self.case.name, "table": table, "method": method, "seed": self.seed, "depth": depth}
            spent = {"stage_1_epochs": first, "epochs": second, "images": total, "bytes": self._stored(table, method)}
            yield {**told, **spent, "n": len(self.images.data.rows("test")), "accuracy": found}

    def student(self, table: str, method: str, depth: int, epochs: int) -> Network:
        """Return the student of a depth after some epochs of its own training."""
        schedule = self.case.schedule(epochs) if epochs else None
        ctx = self.context(f"{table}-{method}", taught=method == "picked")
        if method in TLEG:
            step = Tleg.model_validate({**TLEG[method], "depth": depth, **self._first(table, method)})
            return step.model_copy(update={"schedule": schedule}).run(self.backbone.copy(), ctx)
        net = self.untrained(depth) if method == "scratch" else picked(self.backbone, depth)
        teacher = Teacher(step="backbone") if method == "picked" else None
        return Finetune(use="finetune", schedule=schedule, teacher=teacher).run(net, ctx) if schedule else net

    def _first(self, table: str, method: str) -> Mapping[str, Any]:
        learn = self.case.schedule(self.spent(table, method)[0])
        learn = learn.model_copy(update={"lr": self.case.lr * SLOWER.get(method, 1.0)})
        stages = min(5, self.case.depths[0] + 1)
        return {"learn": learn.model_dump(), "trial": TRIAL, "stages": stages}

    def _stored(self, table: str, method: str) -> int:
        """Return the bytes of weights from which all students come: their own, the backbone's, or the learngene's."""
        if method == "scratch":
            return sum(4 * cost.parameters(self.untrained(depth)) for depth in self.case.depths)
        if method == "picked":
            return 4 * cost.parameters(self.backbone)
        (file,) = self.context(f"{table}-{method}").work.glob(f"shared/*/{WEIGHTS}")
        return file.stat().st_size

    def _judged(self, net: Network) -> float:
        data = self.images.data
        rows = data.rows("test")
        return percent((answers(net, data, rows).argmax(1) == data.prepared.y[rows]).mean())
