"""The folder is the registry: `use: optin` is edgetl/methods/optin.py and the `PLUGIN` it defines."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

from edgetl import store
from edgetl.errors import BadInput

Kind: TypeAlias = Literal["methods", "losses", "families", "data", "targets"]

WORDS: Mapping[Kind, str] = {
    "methods": "method",
    "losses": "loss",
    "families": "family",
    "data": "data source",
    "targets": "target",
}
"""What one plugin of a kind is called in messages."""

FOLDERS_VARIABLE = "EDGETL_PLUGINS"
"""Folders of the user's own plugins, inherited by the process of every stage."""


def names(kind: Kind) -> tuple[str, ...]:
    """Return the names of all plugins of a kind, sorted."""
    return tuple(sorted(_files(kind)))


def nearest(name: str, known: tuple[str, ...]) -> str:
    """Return the fix for an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"use one of: {', '.join(known)}"


def find(kind: Kind, name: str) -> Any:
    """Return the plugin `name`: a class for methods, losses, data and targets, an instance for families.

    Raises:
        BadInput: there is no such plugin.

    """
    return module(kind, name).PLUGIN


def module(kind: Kind, name: str) -> ModuleType:
    """Import and return the module of a plugin; an import error inside it propagates."""
    path = source(kind, name)
    if path.parent == _own(kind):
        return importlib.import_module(f"edgetl.{kind}.{name}")
    full = f"edgetl_plugins.{kind}.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


def source(kind: Kind, name: str) -> Path:
    """Return the file (or package folder) that defines a plugin; its bytes are part of a step's key."""
    found = _files(kind)
    if name not in found:
        raise BadInput(f"no {WORDS[kind]} '{name}'", fix=nearest(name, tuple(sorted(found))))
    return found[name]


def digest(kind: Kind, name: str) -> str:
    """Return the sha256 of a plugin's code, and of the helpers beside it, which any plugin of the folder may use."""
    path = source(kind, name)
    helpers = sorted(path.parent.glob("_*.py"))
    return store.digest([store.source_digest(part) for part in (path, *helpers)])


def _own(kind: Kind) -> Path:
    return Path(__file__).parent / kind


def _files(kind: Kind) -> Mapping[str, Path]:
    extra = [Path(p) / kind for p in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if p]
    found: dict[str, Path] = {}
    for folder in (_own(kind), *extra):
        for path in sorted(folder.glob("*")):
            package = path.is_dir() and (path / "__init__.py").exists()
            if path.name.startswith("_") or not (path.suffix == ".py" or package):
                continue
            if other := found.get(path.stem):
                problem = f"two plugins are the {WORDS[kind]} '{path.stem}': {other} and {path}"
                raise BadInput(problem, fix="rename your own")
            found[path.stem] = path
    return found
