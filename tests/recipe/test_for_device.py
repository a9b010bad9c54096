"""Values that are left to a device: they keep its budgets, and name their branch by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.errors import BadInput, BadInputs
from edgetl.recipe import yaml12
from edgetl.recipe.read import Recipe, check, read

BUDGETS = {"local": {"p90_ms": 12, "size_mb": 2}, "rpi5": {"p90_ms": 30}}


def recipe(depth: object, budgets: object = BUDGETS) -> Recipe:
    raw = {
        "name": "r",
        "model": {"family": "hf_vit", "source": {"image_size": 8, "patch_size": 4}},
        "data": {"use": "digits"},
        "steps": [{"use": "finetune", "name": "dense"}, {"use": "tleg", "depth": depth}],
        "budgets": budgets,
    }
    found, errors = check(raw, "r.yaml")
    if found is None:
        raise BadInputs(errors)
    return found


def limits(found: Recipe) -> list[object]:
    return [getattr(node.step, "depth", None) for node in found.students]


def test_each_device_names_its_branch_beside_plain_depths() -> None:
    found = recipe([{"device": "local"}, {"device": "rpi5", "among": [2, 4]}, 3])
    assert list(found.student_names()) == ["tleg-local", "tleg-rpi5", "tleg-3"]


def test_limits_are_the_budgets_of_the_device_unless_they_are_given() -> None:
    one, two = limits(recipe([{"device": "local", "p90_ms": 5}, {"device": "rpi5"}]))
    assert one.limits == {"p90_ms": 5, "size_mb": 2}
    assert two.limits == {"p90_ms": 30}


def test_the_resolved_recipe_states_the_limits_and_reads_back(tmp_path: Path) -> None:
    found = recipe([{"device": "local"}, 3])
    assert found.resolved["steps"][1]["depth"][0]["p90_ms"] == 12
    again = tmp_path / "again.yaml"
    again.write_text(yaml12.write(found.resolved))
    assert read(again).resolved == found.resolved


def test_a_changed_budget_changes_the_step_and_another_devices_budget_does_not() -> None:
    steps = [node.step for node in recipe([{"device": "local"}, {"device": "rpi5"}]).students]
    tighter = {**BUDGETS, "rpi5": {"p90_ms": 20}}
    others = [node.step for node in recipe([{"device": "local"}, {"device": "rpi5"}], tighter).students]
    assert [a == b for a, b in zip(steps, others, strict=True)] == [True, False]


def test_a_device_without_a_limit_is_told_with_its_key() -> None:
    with pytest.raises(BadInput, match=r"steps\[1\] \(tleg\): depth: nothing is limited on rpi5") as caught:
        recipe([{"device": "local"}, {"device": "rpi5"}], {"local": {"p90_ms": 12}})
    assert "budgets.rpi5" in str(caught.value)


def test_an_unknown_device_is_told_with_the_nearest_name() -> None:
    with pytest.raises(BadInput, match=r"no device 'rpi55', did you mean 'rpi5'"):
        recipe({"device": "rpi55"})


def test_the_same_device_twice_is_an_error() -> None:
    with pytest.raises(BadInput, match="the branch 'tleg-local' stands twice"):
        recipe([{"device": "local"}, {"device": "local", "among": [1, 2]}])
