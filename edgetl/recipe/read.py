"""From a recipe's file to what will be made: every error at once, every default written. [no torch at the top]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from edgetl import device, plugins, store
from edgetl.errors import BadInput, BadInputs
from edgetl.examples import Source
from edgetl.recipe import branches
from edgetl.recipe.branches import Node
from edgetl.recipe.load import load, required
from edgetl.recipe.schema import Budget, ForDevice, Gates, Model, Step, Target
from edgetl.recipe.valid import find_class, listed, plugin, target, valid
from edgetl.strict import Strict
from edgetl.types import Json

SCHEMA_VERSION: Final = 1


class Frame(Strict):
    """What of a recipe is no plugin."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)  # of training and scoring; 0: all that this process may use
    model: Model
    reference: str | None = None
    gates: Gates = Gates()
    budgets: dict[str, Budget] = Field(default_factory=dict)
    golden: int = Field(32, ge=1)  # test samples that the bundle carries
    golden_raw: bool = True  # false where raw data may not leave the host


@dataclass(frozen=True)
class Recipe:
    """A valid recipe with its branches."""

    frame: Frame
    data: Source
    nodes: tuple[Node, ...]  # by step, then by branch
    targets: tuple[Target, ...]
    reference: Node
    resolved: Json  # every default written; reads back to the same recipe

    @property
    def students(self) -> tuple[Node, ...]:
        """The last node of every branch."""
        return branches.students(self.nodes)

    def names(self) -> dict[str, Node]:
        """Return what is exported, by bundle name: the reference first, then every student."""
        named = {branches.student_name(n): n for n in self.students if n is not self.reference}
        return {self.reference.name: self.reference, **named}

    def student_names(self) -> tuple[str, ...]:
        """Return the names of what is compared with the reference."""
        return tuple(name for name, node in self.names().items() if node is not self.reference)

    def digest(self, node: Node, target: Target) -> str:
        """Return the sha256 of the recipe reduced to what led to this file; it says nothing of where files lie."""
        steps = [n.step.model_dump(mode="json") for n in node.path if n.step is not None]
        data = {k: v for k, v in self.resolved["data"].items() if not isinstance(getattr(self.data, k), Path)}
        targets = [TypeAdapter(type(target)).dump_python(target, mode="json")]
        reduced = {**self.resolved, "data": data, "steps": steps, "targets": targets, "budgets": None, "gates": None}
        return store.digest(placeless(reduced))


def read(path: Path, sets: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, with `--set` overrides applied.

    Raises:
        BadInputs: everything that is wrong, each with file and key.

    """
    raw = load(path, sets)
    missing = [f"{key}: {hint}" for key, hint in required(raw)]
    if missing:
        fixes = [BadInput(f"{path}: {m}", fix=f"give it with --set {m.split(':')[0]}=...") for m in missing]
        raise BadInputs(fixes)
    recipe, errors = check(raw, path.name)
    if recipe is None or errors:
        raise BadInputs(errors)
    return recipe


def check(raw: dict[str, Json], name: str) -> tuple[Recipe | None, list[BadInput]]:
    """Return the recipe, or all that is wrong with it."""
    version = raw.get("schema_version", SCHEMA_VERSION)
    if type(version) is int and version > SCHEMA_VERSION:
        problem = f"{name}: schema_version {version}, this edgetl reads up to {SCHEMA_VERSION}"
        return None, [BadInput(problem, fix="pip install --upgrade edgetl")]
    errors: list[BadInput] = []
    frame_keys = {k: v for k, v in raw.items() if k not in ("data", "steps", "targets")}
    frame = valid(Frame, frame_keys, f"{name}: ", errors)
    data = plugin("data", raw.get("data"), f"{name}: data", errors)
    nodes, raw_steps = _nodes(raw.get("steps", []), frame.budgets if frame else {}, name, errors)
    items = listed(raw.get("targets", [{"use": "onnx"}]), f"{name}: targets", errors)
    targets = [target(item, f"{name}: targets[{i}]", errors) for i, item in enumerate(items)]
    kinds = [None if t is None else (t.use, t.precision) for t in targets]
    if twice := next((t for i, t in enumerate(targets) if t is not None and kinds[i] in kinds[:i]), None):
        problem = f"{name}: targets: {twice.use} at {twice.precision} stands twice"
        errors.append(BadInput(problem, fix="list every file once"))
    reference = _reference(raw.get("reference"), nodes, name, errors)
    errors += _orders(nodes, raw, name)
    errors += _unsuited(nodes, raw, name)
    errors += _limitless(nodes, name) if frame else []
    errors += _names(raw, name)
    if data is not None and data.unlabelled is not None and not any(n.step and n.step.labels for n in nodes):
        fix = "add a distill step, whose teacher labels it, or leave data.unlabelled out"
        errors.append(BadInput(f"{name}: data: no step learns from the unlabelled examples", fix=fix))
    if reference is not None and reference.name in {branches.student_name(n) for n in branches.students(nodes)}:
        errors.append(BadInput(f"{name}: '{reference.name}' is a step and a student", fix="rename the step"))
    if errors or frame is None or data is None or reference is None:
        return None, errors
    resolved = _resolved(frame, data, raw_steps, nodes, targets, reference)
    return Recipe(frame, data, nodes, tuple(targets), reference, resolved), []


def _nodes(
    raw: Json, budgets: Mapping[str, Budget], name: str, errors: list[BadInput]
) -> tuple[tuple[Node, ...], list[dict[str, Json]]]:
    source = Node(0, None, branches.ALL, None)
    ends: tuple[Node, ...] = (source,)
    nodes, kept = [source], []
    for i, item in enumerate(listed(raw, f"{name}: steps", errors)):
        where = f"{name}: steps[{i}]"
        cls = find_class("methods", item, where, errors)
        if cls is None:
            continue
        steps = [_within(s, budgets) for s in _steps(cls, item, f"{where} ({item['use']}): ", errors)]
        if not steps:
            continue
        handle = steps[0].name or steps[0].use
        if handle in {n.name for n in nodes} | {branches.ALL, "student"}:
            errors.append(BadInput(f"{where}: the name '{handle}' is taken", fix="give the step a `name:` of its own"))
            continue
        try:
            ends = branches.grow(ends, i + 1, tuple(steps))
        except BadInput as e:
            errors.append(BadInput(f"{name}: {e.problem}", fix=e.fix))
            continue
        nodes.extend(ends)
        kept.append(item)
    return tuple(nodes), kept


def _steps(cls: type[Step], item: Mapping[str, Json], where: str, errors: list[BadInput]) -> list[Step]:
    """Return one step per branch; wrong fields are told and take their defaults, so that the rest is checked."""
    found: list[Step] = []
    for given in branches.values(cls, item):
        step, rest = valid(cls, given, where, errors), given
        while step is None:
            wrong = _wrong(cls, rest)
            rest = {k: v for k, v in rest.items() if k not in wrong}
            if not wrong:  # each field is right, but not all together
                rest = {k: v for k, v in rest.items() if k in ("use", "name")}
            step = valid(cls, rest, where, []) or (None if wrong else cls(use=item["use"]))
        found.append(step)
    if not found:
        errors.append(BadInput(f"{where}an empty list of values", fix="give at least one value"))
    return found


def _within(step: Step, budgets: Mapping[str, Budget]) -> Step:
    """Return a step whose values for devices keep the budgets there."""
    values = {name: getattr(step, name) for name in branches.fan_outs(type(step))}
    left = {n: v.within(budgets.get(v.device, Budget())) for n, v in values.items() if isinstance(v, ForDevice)}
    return step.model_copy(update=left) if left else step


def _limitless(nodes: Sequence[Node], name: str) -> Iterator[BadInput]:
    """Yield values that are left to devices on which nothing is limited."""
    for node in nodes:
        for field in branches.fan_outs(type(node.step)) if node.step is not None else ():
            value = getattr(node.step, field)
            if isinstance(value, ForDevice) and not value.limits:
                where = f"{name}: steps[{node.number - 1}] ({node.name}): {field}"
                fix = f"give budgets.{value.device}, such as {{p90_ms: 12}}, or limits beside `device`"
                yield BadInput(f"{where}: nothing is limited on {value.device}", fix=fix)


def _wrong(cls: type[Step], raw: Mapping[str, Json]) -> set[str]:
    """Return the keys of a step that are given and wrong."""
    try:
        cls.model_validate(raw)
    except ValidationError as e:
        return {str(key) for error in e.errors() for key in error["loc"][:1]} & set(raw)
    return set()


def _orders(nodes: Sequence[Node], raw: Mapping[str, Json], name: str) -> Iterator[BadInput]:
    """Yield steps that read what is not there, or need what no earlier step gives."""
    model = raw.get("model")
    untrained = isinstance(model, dict) and not isinstance(model.get("source"), str)
    seen: set[tuple[int, str]] = set()
    for node in nodes:
        if node.step is None:
            continue
        where = f"{name}: steps[{node.number - 1}] ({node.name})"
        before = tuple(n.name for n in node.path[:-1])
        for wanted in node.step.reads():
            if wanted not in before and (node.number, wanted) not in seen:
                seen.add((node.number, wanted))
                yield BadInput(f"{where}: no earlier step '{wanted}'", fix=plugins.nearest(wanted, before))
        trained = any(n.step is not None and n.step.trains for n in node.path[:-1])
        if "trained" in node.step.needed() and untrained and not trained and (node.number, "") not in seen:
            seen.add((node.number, ""))
            fix = "put a training step (finetune, lora) before it, or start from trained weights"
            yield BadInput(f"{where}: needs a trained network, and the source is random weights", fix=fix)


def _unsuited(nodes: Sequence[Node], raw: Mapping[str, Json], name: str) -> Iterator[BadInput]:
    """Yield steps for another kind of data than the backbone reads, and those that merge tokens where none merge.

    A backbone that a step puts in place of the recipe's may have tokens to merge; it reads the same data.
    """
    model = raw.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    asking = {n.number: (n, n.step.needed() - {"trained"}) for n in nodes if n.step is not None}
    for node, needed in asking.values():
        if not needed or family not in plugins.names("families"):
            continue
        known = plugins.find("families", family)
        where = f"{name}: steps[{node.number - 1}] ({node.name})"
        for kind in sorted(needed & {"image", "text"} - {known.data}):
            problem = f"{where}: its settings are for {kind} data, and family '{family}' reads {known.data} data"
            yield BadInput(problem, fix=f"leave those settings out, or choose a family that reads {kind} data")
        replaced = any(n.step is not None and n.step.sources() for n in node.path[:-1])
        if "tokens" in needed and not replaced and not known.merges:
            fix = "leave token_share out, or choose a family such as hf_vit"
            yield BadInput(f"{where}: the blocks of family '{family}' merge no tokens", fix=fix)


def _reference(given: Json, nodes: Sequence[Node], name: str, errors: list[BadInput]) -> Node | None:
    """Return the named step, or the last training step before the first cut or fan-out, else the source."""
    trunk = [n for n in nodes if n.branch == branches.ALL]
    if given is not None:
        found = next((n for n in trunk if n.name == given), None)
        if found is None:
            behind = any(n.name == given for n in nodes)
            problem = "lies behind a fan-out" if behind else "names no step"
            fix = plugins.nearest(str(given), tuple(n.name for n in trunk))
            errors.append(BadInput(f"{name}: reference: '{given}' {problem}", fix=fix))
        return found
    reference = trunk[0]
    for node in trunk[1:]:
        if node.step is not None and node.step.cuts:
            break
        if node.step is not None and node.step.trains:
            reference = node
    return reference


def _names(raw: Mapping[str, Json], name: str) -> Iterator[BadInput]:
    """Yield the family and the devices that do not exist, whatever else is wrong."""
    model, budgets = raw.get("model"), raw.get("budgets")
    family, families = model.get("family") if isinstance(model, dict) else None, plugins.names("families")
    if isinstance(family, str) and family not in families:
        yield BadInput(f"{name}: model.family: no family '{family}'", fix=plugins.nearest(family, families))
    known = device.names()
    for key in budgets if isinstance(budgets, dict) else ():
        if key not in known:
            yield BadInput(f"{name}: budgets.{key}: no device '{key}'", fix=plugins.nearest(key, known))


def _resolved(frame: Frame, data: Source, raw_steps: Sequence[Mapping[str, Json]], nodes: Sequence[Node],
              targets: Sequence[Target], reference: Node) -> Json:  # fmt: skip
    steps = []
    for raw in raw_steps:
        alike = [n.step for n in nodes if n.step is not None and n.name == (raw.get("name") or raw["use"])]
        dumped = {**alike[0].model_dump(mode="json"), "name": raw.get("name") or raw["use"]}
        for field in branches.fan_outs(type(alike[0])):
            if isinstance(raw.get(field), list):
                every = [s.model_dump(mode="json")[field] for s in alike]
                dumped[field] = [v for i, v in enumerate(every) if v not in every[:i]]
        steps.append(dumped)
    top = frame.model_dump(mode="json")
    plain = [TypeAdapter(type(t)).dump_python(t, mode="json") for t in targets]
    tail = {"reference": reference.name, "targets": plain, "gates": top["gates"], "budgets": top["budgets"]}
    head = {k: v for k, v in top.items() if k not in tail}
    return {**head, "data": data.model_dump(mode="json"), "steps": steps, **tail}


def placeless(value: Json) -> Json:
    """Return plain data in which the path or hub id of weights or data is reduced to its last part."""
    if isinstance(value, list):
        return [placeless(v) for v in value]
    if not isinstance(value, dict):
        return value
    places = ("source", "path", "learngene")
    return {k: Path(v).name if k in places and isinstance(v, str) else placeless(v) for k, v in value.items()}
