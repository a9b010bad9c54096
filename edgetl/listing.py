"""What there is: recipes, devices, methods and runs, as lines of plain cells. [no torch but for methods]"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgetl import device, plugins, shipped, store
from edgetl.errors import BadInput, BadInputs
from edgetl.recipe import yaml12
from edgetl.recipe.load import find, load, required
from edgetl.recipe.plan import read_plan

_COMMENT = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)
"""A field and what its line says of it."""


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
            lines.append((str(name), ", ".join(recipe.names()), "; ".join(f"{k}: {h}" for k, h in required(raw))))
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


def methods() -> list[tuple[str, str]]:
    """Return the name of every method and the first line of what it says of itself."""
    return [(n, _first(plugins.module("methods", n).__doc__)) for n in plugins.names("methods")]


def fields(name: str) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of every field of a method."""
    cls = plugins.find("methods", name)
    said = dict(_COMMENT.findall("\n".join(inspect.getsource(c) for c in reversed(cls.__mro__) if hasattr(c, "reads"))))
    lines = []
    for key, field in cls.model_fields.items():
        kind = getattr(field.annotation, "__name__", str(field.annotation)).replace("typing.", "")
        default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
        lines.append((key, kind, default, field.description or said.get(key, "")))
    return lines


def runs(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """Return folder, recipe, students, bundles and size of every run."""
    lines = []
    for path in sorted(folder.glob("*/plan.json")):
        plan, run = read_plan(path.parent), path.parent
        bundles = len(list((run / "bundles").glob("[!.]*/*/SHA256SUMS")))
        size = sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) / 1e6
        lines.append((str(run), plan["name"], ", ".join(plan["students"]), str(bundles), f"{size:.0f}"))
    return lines


def remove_run(folder: Path, sure: bool) -> None:
    """Delete a run folder, and nothing that is not one."""
    read_plan(folder)
    if not sure:
        raise BadInput(f"{folder} was kept", fix="say yes, or give --yes")
    with store.locked(folder):
        shutil.rmtree(folder)


def _first(doc: str | None) -> str:
    return inspect.cleandoc(doc or "").split("\n", 1)[0]
