"""A recipe's file, found and read with its overrides, not yet checked. [no torch]"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgetl import plugins, shipped
from edgetl.errors import BadInput
from edgetl.recipe import yaml12
from edgetl.types import Json

_KEYS = "`edgetl recipes show` prints the keys"


def find(recipe: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one.

    Raises:
        BadInput: there is no such file.

    """
    path = Path(recipe)
    if path.is_file():
        return path
    known = {p.stem: p for p in sorted(shipped.folder("recipes").glob("*.yaml"))}
    if recipe in known:
        return known[recipe]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise BadInput(f"there is no file {recipe}", fix=f"correct the path, or name a shipped one: {', '.join(known)}")
    raise BadInput(f"no recipe '{recipe}'", fix=f"{plugins.nearest(recipe, tuple(known))}, or give the path of a file")


def load(path: Path, sets: Sequence[str] = ()) -> dict[str, Json]:
    """Return the raw recipe with overrides, unchecked but for being a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: cannot be read as text", fix="give a recipe's YAML file") from e
    raw = yaml12.read(text, str(path))
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: a recipe is a mapping", fix="start from one that `edgetl recipes list` shows")
    for item in sets:
        key, found, value = item.partition("=")
        if not found:
            raise BadInput(f"--set {item}: no '='", fix="write --set key=value")
        _assign(raw, key, yaml12.read(value, f"--set {key}"))
    return raw


def named(recipe: str, sets: Sequence[str], seed: int | None, out: Path | None) -> tuple[Path, list[str], Path]:
    """Return a recipe's file, all overrides and the run folder, from what the command line says."""
    path = find(recipe)
    overrides = [*sets, *([f"seed={seed}"] if seed is not None else [])]
    return path, overrides, out or Path("runs") / str(load(path, overrides).get("name", path.stem))


def required(raw: Json, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, hint) of everything that the user still has to give."""
    if isinstance(raw, yaml12.Required):
        yield key, str(raw)
    elif isinstance(raw, dict | list):
        for k, v in raw.items() if isinstance(raw, dict) else enumerate(raw):
            yield from required(v, f"{key}.{k}" if key else str(k))


def _assign(raw: dict[str, Json], key: str, value: Json) -> None:
    """Set `steps.0.keep_macs` or `steps.optin.keep_macs` in a raw recipe."""
    place: Json = raw
    *inner, last = key.split(".")
    for part in inner:
        if isinstance(place, list):
            place = place[_position(place, part, key)]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise BadInput(f"--set {key}: '{part}' is inside a plain value", fix=_KEYS)
    if isinstance(place, list):
        place[_position(place, last, key)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise BadInput(f"--set {key}: '{last}' is inside a plain value", fix=_KEYS)


def _position(items: list[Json], part: str, key: str) -> int:
    names = [str(i.get("name") or i.get("use")) if isinstance(i, dict) else "" for i in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise BadInput(f"--set {key}: no entry '{part}'", fix=plugins.nearest(part, tuple(names)))
