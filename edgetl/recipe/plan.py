"""What a run will make, as plain data that every later stage reads. [no torch]"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from edgetl import store
from edgetl.errors import BadInput
from edgetl.recipe import yaml12
from edgetl.recipe.read import Recipe
from edgetl.types import Json

SCHEMA_VERSION = 1
COMPARED: Mapping[str, Json] = {"use": "onnx", "precision": "fp32"}
"""The file of the reference that accuracy is compared with."""


def plan(recipe: Recipe) -> Json:
    """Return the recipe with its branches expanded."""
    named = recipe.names()
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.frame.name,
        "reference": recipe.reference.name,
        "students": list(recipe.student_names()),
        "targets": [TypeAdapter(type(t)).dump_python(t, mode="json") for t in recipe.targets],
        "gates": recipe.frame.gates.model_dump(mode="json", exclude_none=True),
        "budgets": {k: b.model_dump(mode="json", exclude_none=True) for k, b in recipe.frame.budgets.items()},
        "steps": {name: [n.folder.removeprefix("steps/") for n in node.path] for name, node in named.items()},
    }


def files(plan: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """Return network and target of every file of a run, the reference's first.

    The reference stands at fp32 too where the recipe names no such target: accuracy is compared with that file.
    """
    targets, reference = plan["targets"], plan["reference"]
    fp32 = [] if any(t["precision"] == "fp32" for t in targets) else [COMPARED]
    students = [name for name in plan["students"] if name != reference]
    return [*((reference, t) for t in (*fp32, *targets)), *((name, t) for name in students for t in targets)]


def folder_name(target: Mapping[str, Json]) -> str:
    """Return the name of the folder of a target's bundle: "onnx-int8", or "auto" where the target is chosen too."""
    use, precision = target["use"], target["precision"]
    return str(use) if use == precision else f"{use}-{precision}"


def write_plan(recipe: Recipe, run: Path) -> None:
    """Write recipe.yaml and plan.json where they changed."""
    store.keep_bytes(run / "recipe.yaml", yaml12.write(recipe.resolved).encode())
    store.keep_json(run / "plan.json", plan(recipe))


def read_plan(run: Path) -> Json:
    """Return the plan of a run folder.

    Raises:
        BadInput: the folder is no run, or was written by a newer edgetl.

    """
    path = run / "plan.json"
    if not path.is_file():
        raise BadInput(f"{run} is no run folder: it has no plan.json", fix="name one that `edgetl compress` wrote")
    read = store.read_json(path)
    if read.get("schema_version") != SCHEMA_VERSION:
        fix = "upgrade edgetl, or run the recipe again with this version"
        problem = f"{path}: schema version {read.get('schema_version')}, this edgetl reads {SCHEMA_VERSION}"
        raise BadInput(problem, fix=fix)
    return read
