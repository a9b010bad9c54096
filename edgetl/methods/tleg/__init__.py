"""Learn a learngene once and expand it into a network of any depth (TLEG, Xia et al. 2024, arXiv 2312.05614).

Stage 1, made once for all branches: an auxiliary network, whose blocks are a straight line through two sets of block
tensors, learns from a teacher; see learn.py. Stage 2, for every depth: the sets expand into a plain network, which is
fine-tuned without that constraint. The learngene is a folder of its own under shared/, of a size that no depth
changes; `learngene: FOLDER` expands it again without stage 1.

The text of the paper could not be read: the rules follow the authors' code and Figure 3. Decisions where these are
silent or disagree:
- the coefficient of block i of L is i/L, from 0, and never reaches 1; the file names this convention;
- the norm, the pooling and the classifier stand in one order in the auxiliary network and in what it expands to, so
  that both give the same answers, which in the released code they do not;
- a divergence is summed over the classes and averaged over the samples; the code divides by the classes too.

`mode: paper` is as published: random weights, one depth, the teacher's answers alone at temperature 1, on each batch
as the student sees it; no teacher in stage 2. The default adds what is not in it: a start from the backbone's blocks,
several depths in stage 1, the backbone's block outputs as a second teacher, and the teacher in stage 2. Options:
other forms of sharing (expansion.py), coefficients learnt for each depth, and students that stay constrained.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from edgetl.errors import BadInput
from edgetl.losses.labels import Labels
from edgetl.losses.logits import Logits
from edgetl.methods.tleg import fleet, learngene
from edgetl.methods.tleg.auxiliary import Auxiliary
from edgetl.methods.tleg.evidence import EVIDENCE
from edgetl.methods.tleg.expansion import Form, Sharing
from edgetl.methods.tleg.fleet import DepthFor
from edgetl.methods.tleg.learn import FIRST, Lessons, Plan, learn, tuned
from edgetl.methods.tleg.learngene import Learngene, expand
from edgetl.methods.tleg.start import Init, check
from edgetl.network.network import Network
from edgetl.recipe.objective import Losses, Objective, check_mixed
from edgetl.recipe.schema import Branches, Context, Measured, Need, Schedule, Step, Teacher
from edgetl.train import record
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.train.training import usual
from edgetl.types import Json

LOG = logging.getLogger("edgetl")

INCOMING = "the incoming network"
PAPER: Mapping[str, Json] = {"init": "random", "depths": "one", "match": 0.0, "distil": False}
"""What the paper does where the default does more."""

SMOOTHING = 0.1
"""Of the labels in the paper's stage 2."""


class Tleg(Step):
    """A student of any depth from a learngene that is learnt once."""

    use: Literal["tleg"] = "tleg"
    mode: Literal["better", "paper"] = "better"  # what fields left out are: the best known, or as published
    depth: Branches[int | DepthFor | None] = None  # blocks, or {device: NAME}; default: half of the input's
    learngene: str | None = None  # folder of one learnt before, to expand without stage 1
    share: Form = "linear"  # two sets on a line (TLEG), runs of one block (SWS), or a polynomial (LDR)
    order: int = Field(3, ge=1, le=15)  # of the polynomial, which has one set of tensors more
    stages: int = Field(5, ge=1, le=64)  # blocks of the stage-wise form
    init: Init = "auto"  # what the sets start from: blocks of the input; auto tries every way
    trial: int = Field(100, ge=2)  # steps in which auto tries each way, at most a tenth of stage 1
    depths: Literal["several", "one"] | tuple[int, ...] = "several"  # drawn from in stage 1: a quarter to all, or all
    match: float = Field(1.0, ge=0)  # weight of the input's block outputs at the same share of the depth, in stage 1
    learn: Schedule = Schedule(epochs=20)  # stage 1, by default 20 epochs
    schedule: Schedule | None = Schedule(lr=2e-4)  # stage 2, by default at lr 2e-4; null: the expansion as it is
    teacher: Teacher | None = None  # default: the incoming network; in mode paper its answers alone
    distil: bool = True  # keep the teacher in stage 2; false: learn from the labels there
    losses: Losses = ()  # of both stages; default: the labels and the teacher's answers
    coefficients: int = Field(0, ge=0)  # steps in which a depth learns its own coefficients before stage 2
    constrained: bool = False  # fine-tune the sets, so that the blocks stay what they follow from
    trains: ClassVar[bool] = True
    cuts: ClassVar[bool] = True
    shared: ClassVar[bool] = True
    predicts: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"trained"})
    measured: ClassVar[Mapping[str, tuple[Measured, ...]]] = EVIDENCE

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        paper = isinstance(given, Mapping) and given.get("mode") == "paper"
        return {**PAPER, **given} if paper else given

    @field_validator("depth")
    @classmethod
    def _some_block(cls, depth: int | DepthFor | None) -> int | DepthFor | None:
        if isinstance(depth, int) and depth < 1:
            raise PydanticCustomError("depth", "a student has one block or more")
        return depth

    @field_validator("depths")
    @classmethod
    def _some_blocks(cls, depths: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if not isinstance(depths, str) and (not depths or min(depths) < 1):
            raise PydanticCustomError("depth", "list depths of one block or more, or write several or one")
        return depths

    @field_validator("losses")
    @classmethod
    def _fit_the_teacher(cls, losses: Losses, info: ValidationInfo) -> Losses:
        teacher = info.data.get("teacher")
        if losses and teacher is not None and teacher != Teacher(step=teacher.step):
            raise PydanticCustomError("objective", "give temperature and weight to the losses, not to the teacher")
        for name in ("learn", "schedule"):
            check_mixed(losses or _usual(teacher, info.data.get("mode")), info.data.get(name))
        return losses

    @field_validator("constrained")
    @classmethod
    def _with_a_second_stage(cls, constrained: bool, info: ValidationInfo) -> bool:
        if constrained and info.data.get("schedule") is None:
            raise PydanticCustomError("constrained", "an expansion that is not fine-tuned is constrained as it is")
        return constrained

    @property
    def handle(self) -> str:
        """The name of the step in messages."""
        return self.name or self.use

    def reads(self) -> tuple[str, ...]:
        """Return the teacher's step."""
        return (self.teacher.step,) if self.teacher else ()

    def sources(self) -> tuple[tuple[str, str | Mapping[str, Json]], ...]:
        """Return the folder of a learngene learnt before, and the family that it is of."""
        if self.learngene is None:
            return ()
        return ((str(learngene.read_header(Path(self.learngene).expanduser())["family"]), self.learngene),)

    def devices(self) -> tuple[str, ...]:
        """Return the device that a depth is chosen for."""
        return (self.depth.device,) if isinstance(self.depth, DepthFor) else ()

    def needed(self) -> frozenset[Need]:
        """Return what these settings need: where nothing learns from the input, it may be untrained."""
        return frozenset() if self.learngene is not None and not self._taught else self.needs

    def passes(self, rows: int, units: int) -> float:
        """Return about how many forward passes both stages cost; a teacher adds one to the three of a training step."""
        first = 0.0 if self.learngene else 4.0 * rows * self.learn.epochs * (1.5 if self.init == "auto" else 1)
        return first + self.again(rows, units)

    def again(self, rows: int, units: int) -> float:
        """Return what stage 2 costs, which every depth has of its own."""
        return 4.0 * rows * self.schedule.epochs if self.schedule else 0.0

    def run(self, net: Network, ctx: Context) -> Network:
        """Return a student of the depth asked for.

        Raises:
            BadInput: the input has no equal blocks, the teacher has other labels, the learngene is of another family,
                form or input, or no depth keeps the limits of a device.
            Refused: the learngene is damaged, or of a convention that is not known.
            Diverged: a loss is not finite.
            BadHost: a device is attached and cannot be measured.

        """
        check(net)
        teacher = ctx.past(self.teacher.step) if self.teacher else net.copy()
        stored = self._stored(net, ctx.seed) if self.learngene else None
        depth, chosen = self._depth(expand(stored, stored.depth) if stored else net, ctx)  # it may be of another width
        gene = stored or self._learnt(net, teacher, ctx)
        second = self._plan(net, self._second)
        lessons = Lessons(net, teacher, ctx, second if self.distil else replace(second, match=0.0))
        student = self._student(gene, depth, lessons)
        # the data is prepared as the incoming network wants it, so that is what the student has learnt to read
        facts = {**student.facts, **chosen, "prep": net.facts.get("prep")}
        return replace(student, facts=facts)

    @property
    def _taught(self) -> bool:
        """Whether stage 2 learns from the teacher."""
        return self.schedule is not None and self.distil

    @property
    def _first(self) -> tuple[Objective, ...]:
        return self.losses or _usual(self.teacher, self.mode)

    @property
    def _second(self) -> tuple[Objective, ...]:
        """The losses of stage 2."""
        if self.distil:
            return self._first
        own = tuple(o for o in self.losses if not o.taught)
        return own or (Labels(smoothing=SMOOTHING if self.mode == "paper" else 0.0),)

    def _depth(self, net: Network, ctx: Context) -> tuple[int, dict[str, Json]]:
        """Return the depth, before anything is trained, and what it was chosen by."""
        deepest = len(net.family.stages(net.module))
        if not isinstance(self.depth, DepthFor):
            return self.depth or -(-deepest // 2), {}
        choice = fleet.choose(self.handle, self.depth, partial(fleet.untrained, net), deepest, ctx)
        return choice.depth, {"chosen": choice.to_json()}

    def _learnt(self, net: Network, teacher: Network, ctx: Context) -> Learngene:
        """Return the learngene of the input, made once for all branches."""
        plan = self._plan(net, self._first)

        def make(folder: Path, seed: int) -> None:
            learn(net, replace(ctx, seed=seed), plan, teacher).save(folder)
            record.keep(ctx.work / FIRST, folder)

        names = ("share", "order", "stages", "init", "trial", "depths", "match", "learn")
        options = self.model_dump(mode="json", include=set(names))
        losses = [o.model_dump(mode="json") for o in plan.losses]
        folder = ctx.once("learngene", {"network": net, "teacher": teacher, "losses": losses, **options}, make)
        gene = learngene.load(folder)
        LOG.info("learngene: %.3g million numbers in %s", gene.size / 1e6, folder)
        return gene

    def _plan(self, net: Network, losses: tuple[Objective, ...]) -> Plan:
        deepest = len(net.family.stages(net.module))
        several = tuple(range(-(-deepest // 4), deepest + 1))
        drawn = (
            {"several": several, "one": (deepest,)}.get(self.depths) if isinstance(self.depths, str) else self.depths
        )
        sets = {"linear": 2, "stagewise": self.stages, "polynomial": self.order + 1}[self.share]
        return Plan(Sharing(self.share, sets), self.learn, losses, self.match, drawn or (), self.init, self.trial)

    def _stored(self, net: Network, seed: int) -> Learngene:
        """Return the learngene of a folder, for the labels of the input."""
        folder = Path(self.learngene or "").expanduser()
        gene = learngene.load(folder)
        if gene.family.name != net.family.name:
            problem = f"{folder} holds a learngene of family {gene.family.name}, and the input is {net.family.name}"
            raise BadInput(problem, fix=f"write model.family: {gene.family.name}")
        if gene.sharing.form != self.share:
            problem = f"{folder} holds a learngene of convention {gene.sharing.convention}: share: {gene.sharing.form}"
            raise BadInput(problem, fix=f"write share: {gene.sharing.form}")
        ours, theirs = _reads(net), _reads(gene)
        if ours != theirs:
            problem = f"{folder} holds a learngene that reads {theirs}, and the data has {ours}"
            raise BadInput(problem, fix="learn one from a backbone that reads this data")
        if len({Path(t).read_bytes() for t in (_tokenizer(net), _tokenizer(gene)) if t}) > 1:
            problem = f"{folder} holds a learngene with another tokenizer than the input's"
            raise BadInput(problem, fix="learn one from a backbone with this vocabulary")
        return learngene.relabelled(gene, net.labels, seed)

    def _student(self, gene: Learngene, depth: int, lessons: Lessons) -> Network:
        """Return the student of a depth, after stage 2."""
        tables = tuned(gene, depth, self.coefficients, lessons).found() if self.coefficients else None
        if self.schedule is None:
            return expand(gene, depth, tables)
        if self.constrained:
            auxiliary = Auxiliary(gene, {depth: 1.0}, tables)
            lessons.fit(auxiliary, lessons.ctx.data, self.schedule, lessons.ctx.work)
            return expand(auxiliary.learnt(), depth, tables)
        student, ctx = expand(gene, depth, tables), lessons.ctx
        course = Course(student, lessons.teacher, ctx, self.schedule.epochs)
        fit(student, ctx.data, terms(lessons.plan.losses, course), self.schedule, ctx.seed, ctx.work)
        student.module.requires_grad_(True).eval()
        return replace(student)  # with no digest of the weights it had before


def _usual(teacher: Teacher | None, mode: str | None) -> tuple[Objective, ...]:
    """Return the losses of a step that names none."""
    if mode == "paper" and teacher is None:
        return (Logits(temperature=1.0, live=True),)
    return usual(teacher or Teacher(step=INCOMING))


def _reads(one: Network | Learngene) -> str:
    """Return in words what inputs a network takes."""
    example, tokens = one.family.example(one.config, 1), one.config.get("vocab_size")
    shapes = ", ".join(f"{name} {tuple(tensor.shape[1:])}" for name, tensor in example.items())
    return f"{shapes} of {tokens} tokens" if tokens else shapes


def _tokenizer(one: Network | Learngene) -> str | None:
    found: str | None = (one.facts.get("prep") or {}).get("tokenizer")
    return found


PLUGIN = Tleg
