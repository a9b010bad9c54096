"""What there is: recipes, devices, methods and runs, as lines of plain cells. [no torch but for methods]"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgetl import device, plugins, shipped, store
from edgetl.errors import BadInput, BadInputs
from edgetl.recipe import yaml12
from edgetl.recipe.branches import fan_outs
from edgetl.recipe.load import find, load, required
from edgetl.recipe.plan import read_plan
from edgetl.recipe.schema import Measured

_COMMENT = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)
"""A field and what its line says of it."""

Line: TypeAlias = tuple[str, str, str, str]

PARTS: tuple[plugins.Kind, ...] = ("methods", "losses")
"""What a step is made of."""


def recipes() -> list[tuple[str, str]]:
    """Return the name and the first comment of every shipped recipe."""
    found = []
    for path in sorted(shipped.folder("recipes").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found.append((path.stem, first.removeprefix("#").strip()))
    return found


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a recipe to a file or into a folder, and return the new file; nothing is overwritten."""
    source = find(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise BadInput(f"{target} is there already", fix="choose another name, or delete it first")
    store.write_bytes(target, source.read_bytes())
    return target


def check_recipes(names: Sequence[str], sets: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return name, students and what is still to give of every recipe, all of them valid.

    Raises:
        BadInputs: everything that is wrong in any of them.

    """
    from edgetl.recipe.read import check

    lines, errors = [], []
    for name in names or [r for r, _ in recipes()]:
        path = find(name)
        raw = load(path, sets)
        recipe, wrong = check(raw, path.name)
        errors += wrong
        if recipe is not None:
            lines.append(
                (str(name), ", ".join(recipe.student_names()), "; ".join(f"{k}: {h}" for k, h in required(raw)))
            )
    if errors:
        raise BadInputs(errors)
    return lines


def devices() -> list[tuple[str, str, str, str]]:
    """Return name, kind, processor and threads of every shipped device."""
    known = [device.load_device(name) for name in device.names()]
    return [(d.name, d.kind, d.arch.cpu, str(d.threads)) for d in known]


def show_device(name: str) -> str:
    """Return a device as YAML; `local` is probed."""
    return yaml12.write(device.load_device(name).model_dump(mode="json", by_alias=True, exclude_none=True))


def methods() -> list[tuple[str, str, str]]:
    """Return every method, and every loss that it can learn from: name, which of both, and the first line it says."""
    return [
        (name, plugins.WORDS[kind], _first(plugins.module(kind, name).__doc__))
        for kind in PARTS
        for name in plugins.names(kind)
    ]


def fields(name: str) -> list[Line]:
    """Return name, type, default and meaning of every field of a method or loss, and of the mappings among them."""
    known = [kind for kind in PARTS if name in plugins.names(kind)] or ["methods"]
    found = [plugins.find(kind, name) for kind in known]
    # a method and a loss of one name: the loss is an entry of the method's `losses`
    before = ["", *["losses." for _ in found[1:]]]
    return [line for b, cls in zip(before, found, strict=True) for key in cls.model_fields
            for line in _field(cls, key, b, fan_outs(cls))]  # fmt: skip


def measured(name: str) -> list[Line]:
    """Return field, benchmark, result and value of what was measured of a method's options."""
    if name not in plugins.names("methods"):
        return []
    found: Mapping[str, tuple[Measured, ...]] = plugins.find("methods", name).measured
    return [(field, one.benchmark, one.target, _interval(one)) for field, every in found.items() for one in every]


def _interval(one: Measured) -> str:
    return f"{one.value:g}" if one.low is None or one.high is None else f"{one.value:g} ({one.low:g} to {one.high:g})"


def _field(cls: type[BaseModel], key: str, before: str, branching: Sequence[str] = ()) -> Iterator[Line]:
    """Yield the line of one field; of a mapping, those of its own fields too."""
    field = cls.model_fields[key]
    inner = _mapping(field.annotation)
    default = "required" if field.is_required() else "-"
    if not field.is_required() and not isinstance(value := field.get_default(call_default_factory=True), BaseModel):
        plugged = isinstance(value, tuple) and value and isinstance(value[0], BaseModel)
        default = ", ".join(v.use for v in value) if plugged else "-" if value in (None, "", ()) else str(value)
    said = _said(cls).get(key) or (_first(inner.__doc__) if inner else "")
    kind = "a mapping" if inner else _kind(field) + (", or a list" if key in branching else "")
    yield before + key, kind, default, said
    if inner:
        for each in inner.model_fields:
            yield from _field(inner, each, f"{before}{key}.")


def _mapping(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, if it holds one."""
    every = (annotation, *get_args(annotation))
    return next((t for t in every if isinstance(t, type) and issubclass(t, BaseModel)), None)


def _kind(field: FieldInfo) -> str:
    """Return a field's type and bounds in words: "float, > 0, <= 1"."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        each = get_args(annotation)[0]
        return f"list of {(get_args(each)[0] if get_origin(each) is Annotated else each).__name__.lower()}"
    parts = [t for t in get_args(annotation) if t is not type(None)] or [annotation]
    words = " | ".join(getattr(get_origin(t) or t, "__name__", str(t)) for t in parts)
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    bounds = [f"{sign} {getattr(m, end):g}" for m in field.metadata for end, sign in signs if hasattr(m, end)]
    return ", ".join([words.replace("dict", "mapping"), *bounds])


def _said(cls: type[BaseModel]) -> dict[str, str]:
    """Return what the lines of a class and its parents say of their fields."""
    own = [c for c in reversed(cls.__mro__) if c.__module__.startswith("edgetl") and issubclass(c, BaseModel)]
    return dict(_COMMENT.findall("\n".join(inspect.getsource(c) for c in own)))


def runs(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """Return folder, recipe, students, bundles and size of every run."""
    lines = []
    for path in sorted(folder.glob("*/plan.json")):
        plan, run = read_plan(path.parent), path.parent
        bundles = len(list((run / "bundles").glob("[!.]*/*/SHA256SUMS")))
        size = sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) / 1e6
        lines.append((str(run), plan["name"], ", ".join(plan["students"]), str(bundles), f"{size:.0f}"))
    return lines


def remove_run(folder: Path, sure: Callable[[], bool]) -> None:
    """Delete a run folder, and nothing that is not one; `sure` is asked before."""
    read_plan(folder)
    if not sure():
        raise BadInput(f"{folder} was kept", fix="say yes, or give --yes")
    with store.locked(folder):
        shutil.rmtree(folder)


def _first(doc: str | None) -> str:
    return inspect.cleandoc(doc or "").split("\n", 1)[0]
