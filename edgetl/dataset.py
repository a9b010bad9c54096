"""The data of a recipe, opened, matched with the backbone and pre-processed. [host]"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl import plugins
from edgetl.errors import BadInput
from edgetl.examples import Examples
from edgetl.network.family import Family
from edgetl.network.saved import source_config
from edgetl.operations import kind_of
from edgetl.prepare import Prepared, data_key, prepare
from edgetl.preprocess import load_tokenizer
from edgetl.recipe.read import Recipe
from edgetl.types import Json, Operation


def open_data(recipe: Recipe, run: Path) -> tuple[Examples, Prepared]:
    """Return the raw examples and their pre-processed form, which the run folder keeps.

    Raises:
        BadInput: the data is not there or damaged, is of another kind than the family reads, or has other labels.

    """
    model = recipe.frame.model
    family = plugins.find("families", model.family)
    examples = recipe.data.all_examples()
    kind = kind_of(examples.raw)
    if kind != family.data:
        fix = f"choose a family for {kind} data, or another data source"
        raise BadInput(f"the data is {kind}, and family '{family.name}' reads {family.data}", fix=fix)
    _check_labels(model.labels, examples.labels)
    config = source_config(family, model.source, len(examples.labels))
    operations = recipe.data.operations(examples.raw, family.prep(model.source, config))
    _check_tokenizer(operations, config)
    key = data_key(recipe.data, examples, operations, recipe.frame.seed)
    folder = run / "shared" / f"data-{key[:16]}"
    prepared = prepare(recipe.data, examples, operations, recipe.frame.seed, folder)
    _check_shapes(family, config, prepared)
    return examples, prepared


def _check_shapes(family: Family, config: Json, prepared: Prepared) -> None:
    """Refuse data of another shape than the backbone reads; texts are of any length."""
    for name, example in family.example(config, 1).items():
        given, wanted = prepared.inputs[name].shape[1:], tuple(example.shape[1:])
        if family.data != "text" and given != wanted:
            problem = f"the data gives {name} of shape {given}, the backbone reads {wanted}"
            raise BadInput(problem, fix="set the sizes in model.source to the data's, or choose another data source")


def _check_tokenizer(operations: Sequence[Operation], config: Json) -> None:
    """Refuse a tokenizer that makes ids which the backbone has no row for."""
    if not operations or operations[0].get("op") != "tokenize":
        return
    tokenizer = load_tokenizer(Path(operations[0]["file"]), operations[0]["length"])
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= config["vocab_size"]:
        problem = f"the tokenizer makes ids up to {highest}, and the backbone knows {config['vocab_size']} tokens"
        raise BadInput(problem, fix="give data.tokenizer, the tokenizer.json that the backbone was made with")


def _check_labels(given: tuple[str, ...] | None, found: tuple[str, ...]) -> None:
    if given is None or given == found:
        return
    odd = {"the recipe": sorted(set(given) - set(found)), "the data": sorted(set(found) - set(given))}
    parts = [f"only {where} has {', '.join(names[:8])}" for where, names in odd.items() if names]
    problem = "; ".join(parts) or "their order differs"
    fix = "leave model.labels out to take the data's, in the order of the data"
    raise BadInput(f"model.labels and the data's labels do not match; {problem}", fix=fix)
