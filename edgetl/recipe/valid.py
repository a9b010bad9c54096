"""Plain data of a recipe -> checked objects; everything that is wrong is collected. [no torch at the top]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from edgetl import plugins
from edgetl.errors import BadInput
from edgetl.types import Json


def plugin(kind: plugins.Kind, raw: Json, where: str, errors: list[BadInput]) -> Any:
    cls = find_class(kind, raw, where, errors)
    return None if cls is None else valid(cls, raw, f"{where} ({raw['use']}): ", errors)


def target(raw: Json, where: str, errors: list[BadInput]) -> Any:
    cls = find_class("targets", raw, where, errors)
    given = raw.get("precision") if cls is not None else None
    if reason := cls.refuses.get(given) if isinstance(given, str) else None:
        fix = f"use one of: {', '.join(cls.precisions)}"
        errors.append(BadInput(f"{where} ({raw['use']}): precision: no {given}: {reason}", fix=fix))
        return None
    return None if cls is None else valid(cls, raw, f"{where} ({raw['use']}): ", errors)


def find_class(kind: plugins.Kind, raw: Json, where: str, errors: list[BadInput]) -> Any:
    if not isinstance(raw, dict) or not isinstance(raw.get("use"), str):
        names = ", ".join(plugins.names(kind))
        errors.append(BadInput(f"{where}: no `use:`", fix=f"write {{use: NAME, ...}}, NAME one of: {names}"))
        return None
    try:
        return plugins.find(kind, raw["use"])
    except BadInput as e:
        errors.append(BadInput(f"{where}: {e.problem}", fix=e.fix))
        return None


def valid(cls: Any, raw: Json, where: str, errors: list[BadInput]) -> Any:
    try:
        return TypeAdapter(cls).validate_python(raw)
    except ValidationError as e:
        errors.extend(_told(error, _keys(cls, error["loc"][:-1]), where) for error in e.errors(include_url=False))
        return None


def _keys(cls: Any, place: Sequence[str | int]) -> tuple[str, ...]:
    """Return the keys that a class, or what lies at a place inside it, may have."""
    for part in place:
        field = cls.model_fields.get(part) if hasattr(cls, "model_fields") else None
        inner = [field.annotation, *get_args(field.annotation)] if field is not None else []
        cls = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), cls)
    return tuple(cls.model_fields if hasattr(cls, "model_fields") else cls.__dataclass_fields__)


def _told(error: Any, known: tuple[str, ...], where: str) -> BadInput:
    key = ".".join(str(part) for part in error["loc"])
    if not key and error["type"] == "value_error":  # the fields are right one by one, but not together
        return BadInput(f"{where}{error['msg'].removeprefix('Value error, ')}", fix="correct one of them")
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return BadInput(f"{where}{key}: unknown key", fix=plugins.nearest(key.split(".")[-1], known))
    got = repr(error.get("input"))
    shown = f", got {got[:60]}" if error["type"] != "missing" else ""
    if error["type"] == "string_pattern_mismatch":
        return BadInput(f"{where}{key}: not a plain name{shown}", fix="use lower-case letters, digits and '-' only")
    return BadInput(f"{where}{key}: {error['msg'][:1].lower()}{error['msg'][1:]}{shown}", fix=f"correct '{key}'")


def listed(raw: Json, where: str, errors: list[BadInput]) -> list[Json]:
    if isinstance(raw, list):
        return raw
    errors.append(BadInput(f"{where}: must be a list", fix="start every entry with '- '"))
    return []
