"""The data of a recipe, opened, matched with the backbone and pre-processed. [host]"""

from __future__ import annotations

from pathlib import Path

from edgetl import plugins, store
from edgetl.errors import BadInput
from edgetl.examples import Examples
from edgetl.prepare import Prepared, prepare
from edgetl.recipe.read import Recipe


def open_data(recipe: Recipe, run: Path) -> tuple[Examples, Prepared]:
    """Return the raw examples and their pre-processed form, which the run folder keeps.

    Raises:
        BadInput: the data is not there or damaged, is of another kind than the family reads, or has other labels.

    """
    model = recipe.frame.model
    family = plugins.find("families", model.family)
    examples = recipe.data.examples()
    kind = "text" if examples.raw.kind == "text" else "image"
    if kind != family.data:
        fix = f"choose a family for {kind} data, or another data source"
        raise BadInput(f"the data is {kind}, and family '{family.name}' reads {family.data}", fix=fix)
    _check_labels(model.labels, examples.labels)
    config = family.config(model.source, len(examples.labels))
    operations = recipe.data.operations(examples.raw, family.prep(model.source, config))
    shares = [recipe.data.validation, recipe.data.test, recipe.frame.seed]
    name = store.digest([examples.digest, [dict(o) for o in operations], shares])[:16]
    return examples, prepare(recipe.data, examples, operations, recipe.frame.seed, run / "shared" / f"data-{name}")


def _check_labels(given: tuple[str, ...] | None, found: tuple[str, ...]) -> None:
    if given is None or given == found:
        return
    odd = sorted(set(given) ^ set(found))
    problem = f"they differ in: {', '.join(odd[:8])}" if odd else "their order differs"
    fix = "leave model.labels out to take the data's, in the order of the data"
    raise BadInput(f"model.labels and the data's labels do not match; {problem}", fix=fix)
