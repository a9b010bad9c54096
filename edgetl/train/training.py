"""What every step that trains has in common: how long, and what from."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from edgetl.losses.labels import Labels
from edgetl.losses.logits import Logits
from edgetl.network.network import Network
from edgetl.recipe.objective import Losses, Objective, check_mixed
from edgetl.recipe.schema import Context, Schedule, Step, Teacher
from edgetl.train.course import Course, terms
from edgetl.train.fit import fit
from edgetl.types import Json


class Training(Step, ABC):
    """A step that fits the weights of its input to the labels, to a teacher, or to the losses named."""

    schedule: Schedule = Schedule()
    teacher: Teacher | None = None
    losses: Losses = ()  # [{use: NAME, weight: ...}]; default: the labels, and the answers of a teacher if there is one
    trains: ClassVar[bool] = True

    @field_validator("losses")
    @classmethod
    def _fit_the_teacher(cls, losses: Losses, info: ValidationInfo) -> Losses:
        teacher = info.data.get("teacher")
        pupil = next((o.use for o in losses if o.needs_teacher()), None)
        if pupil and teacher is None:
            text = "'{use}' learns from a teacher; add teacher: {{step: NAME}}"
            raise PydanticCustomError("objective", text, {"use": pupil})
        # compared by value: a resolved recipe has every default written
        if losses and teacher is not None and teacher != Teacher(step=teacher.step):
            raise PydanticCustomError("objective", "give temperature and weight to the losses, not to the teacher")
        check_mixed(losses, info.data.get("schedule"))
        return losses

    def reads(self) -> tuple[str, ...]:
        """Return the steps of all teachers."""
        own = (self.teacher.step,) if self.teacher else ()
        return tuple(dict.fromkeys([*own, *(step for o in self.losses for step in o.reads())]))

    def sources(self) -> tuple[tuple[str, str | Mapping[str, Json]], ...]:
        """Return family and source of the teachers from elsewhere."""
        return tuple(each for o in self.losses for each in o.sources())

    def learn(self, net: Network, ctx: Context, smoothing: float = 0.0) -> tuple[Mapping[str, float], ...]:
        """Train the parameters of the network that require a gradient, in place; return what was logged of each epoch.

        Raises:
            BadInput: the teacher has other labels, or lacks what a loss needs.
            Diverged: the loss is not finite.

        """
        source = ctx.past(self.teacher.step) if self.teacher else None
        chosen = self.losses or usual(self.teacher, smoothing, live=self.schedule.mix is not None)
        course = Course(net, source, ctx, self.schedule.epochs)
        learnt = terms(chosen, course)
        return fit(net, ctx.data, learnt, self.schedule, ctx.seed, ctx.work)


def usual(teacher: Teacher | None, smoothing: float = 0.0, *, live: bool = False) -> tuple[Objective, ...]:
    """Return the losses of a step that names none: the labels, and the answers of a teacher by its weight."""
    if teacher is None:
        return (Labels(smoothing=smoothing),)
    own = Labels(smoothing=smoothing, weight=1 - teacher.weight)
    return own, Logits(temperature=teacher.temperature, weight=teacher.weight, live=live)
