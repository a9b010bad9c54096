"""Branches: their names, their order, their seeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import BadInput, BadInputs
from edgetl.recipe.read import Recipe, check

MODEL = {"family": "hf_vit", "source": {"image_size": 8, "patch_size": 4}}
DENSE = {"use": "finetune", "name": "dense"}


def recipe(*steps: dict[str, object], **more: object) -> Recipe:
    found, errors = check({"name": "r", "model": MODEL, "data": {"use": "digits"}, "steps": list(steps), **more}, "r")
    if found is None:
        raise BadInputs(errors)
    return found


def test_one_value_names_its_branch_too() -> None:
    found = recipe(DENSE, {"use": "optin", "keep_macs": 0.5})
    assert [n.folder for n in found.nodes] == ["steps/00-source/all", "steps/01-dense/all", "steps/02-optin/optin-0.5"]
    assert list(found.names()) == ["dense", "optin-0.5"]


def test_values_fan_out_and_later_steps_follow() -> None:
    found = recipe(DENSE, {"use": "optin", "keep_macs": [0.8, 0.40]}, {"use": "lora", "name": "recover"})
    assert [n.branch for n in found.students] == ["optin-0.8", "optin-0.4"]
    assert [n.name for n in found.students] == ["recover", "recover"]
    assert found.students[0].ancestor("dense") is found.nodes[1]


def test_two_fan_outs_multiply_and_join() -> None:
    found = recipe(
        DENSE, {"use": "optin", "keep_macs": [0.8, 0.6]}, {"use": "optin", "name": "again", "keep_macs": [0.9, 0.5]}
    )
    names = [n.branch for n in found.students]
    assert names == ["optin-0.8_again-0.9", "optin-0.8_again-0.5", "optin-0.6_again-0.9", "optin-0.6_again-0.5"]


def test_without_a_fan_out_the_student_is_called_so() -> None:
    found = recipe(DENSE, {"use": "lora"})
    assert list(found.names()) == ["lora"]  # the last training step is itself the reference
    assert list(recipe(DENSE, {"use": "lora"}, reference="dense").names()) == ["dense", "student"]


def test_a_value_listed_twice_is_an_error() -> None:
    with pytest.raises(BadInput, match="stands twice"):
        recipe(DENSE, {"use": "optin", "keep_macs": [0.5, 0.50]})


@given(st.lists(st.sampled_from([0.9, 0.7, 0.5, 0.3]), min_size=1, max_size=4, unique=True), st.randoms())
def test_the_order_of_values_changes_nothing(values: list[float], random: object) -> None:
    mixed = sorted(values)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    a, b = (recipe(DENSE, {"use": "optin", "keep_macs": v}) for v in (values, mixed))
    seeds = [{n.folder: n.seed(a.frame.seed) for n in r.nodes} for r in (a, b)]
    assert seeds[0] == seeds[1]
    assert {n.branch: a.digest(n, a.targets[0]) for n in a.students} == {
        n.branch: b.digest(n, b.targets[0]) for n in b.students
    }


def test_seeds_differ_between_steps_branches_and_recipes() -> None:
    found = recipe(DENSE, {"use": "optin", "keep_macs": [0.8, 0.6]})
    seeds = {n.seed(0) for n in found.nodes} | {n.seed(1) for n in found.nodes}
    assert len(seeds) == 2 * len(found.nodes)
