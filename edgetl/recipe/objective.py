"""What a step learns from, as a recipe names it: `losses: [{use: labels}, {use: dkd, weight: 0.5}]`. [no torch]"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError
from pydantic_core import PydanticCustomError

from edgetl import plugins
from edgetl.errors import BadInput
from edgetl.recipe.schema import Schedule
from edgetl.strict import Strict

if TYPE_CHECKING:
    from edgetl.train.course import Course
    from edgetl.train.lesson import Loss


class Objective(Strict, ABC):
    """One loss of a step and its weight in the sum."""

    use: str  # file name in losses/
    weight: float = Field(1.0, ge=0)  # in the sum of the step's losses
    taught: ClassVar[bool] = False  # it learns from a teacher
    mixed: ClassVar[bool] = False  # it knows what mixtures of two samples should be answered with

    def mixes(self) -> bool:
        """Return whether these settings take mixtures of two samples."""
        return self.mixed

    def needs_teacher(self) -> bool:
        """Return whether the step has to name the teacher that it learns from."""
        return self.taught

    def reads(self) -> tuple[str, ...]:
        """Return the names of the earlier steps that it takes networks from, besides the step's teacher."""
        return ()

    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return (family, source) of networks that it takes from elsewhere; their bytes are in the step's key."""
        return ()

    @abstractmethod
    def loss(self, course: Course) -> Loss:
        """Return the module that computes it.

        Raises:
            BadInput: the network, the teacher or the data do not have what it needs.

        """


def _read(item: Any) -> Any:
    """Return the objective of a `use:`; an unknown name or key is told with the nearest known one."""
    if isinstance(item, Objective):
        return item
    if not isinstance(item, dict) or not isinstance(item.get("use"), str):
        names = ", ".join(plugins.names("losses"))
        raise PydanticCustomError("objective", "write {{use: NAME, ...}}, NAME one of {names}", {"names": names})
    try:
        cls = plugins.find("losses", item["use"])
    except BadInput as e:
        raise PydanticCustomError("objective", "{problem}; {fix}", {"problem": e.problem, "fix": e.fix}) from e
    unknown = sorted(set(item) - set(cls.model_fields))
    if unknown:
        facts = {"key": unknown[0], "fix": plugins.nearest(unknown[0], tuple(cls.model_fields))}
        raise PydanticCustomError("objective", "unknown key '{key}'; {fix}", facts)
    try:
        return cls.model_validate(item)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        facts = {"key": ".".join(map(str, first["loc"])), "said": first["msg"]}
        raise PydanticCustomError("objective", "'{key}': {said}", facts) from e


def check_mixed(losses: tuple[Objective, ...], schedule: Schedule | None) -> None:
    """Refuse losses that do not know what to learn from a mixture, where the schedule asks for mixtures."""
    if schedule is None or schedule.mix is None:
        return
    pure = next((o.use for o in losses if not o.mixes()), None)
    if pure:
        facts = {"op": schedule.mix.op, "use": pure, "names": ", ".join(_mixing())}
        text = "'{use}' learns from whole samples, not from those of {op}; drop schedule.mix, or use: {names}"
        raise PydanticCustomError("objective", text, facts)


def _mixing() -> list[str]:
    return [name for name in plugins.names("losses") if plugins.find("losses", name)(use=name).mixes()]


Losses: TypeAlias = tuple[Annotated[SerializeAsAny[Objective], BeforeValidator(_read)], ...]
"""The losses that a step sums; an empty list is the step's own default."""
