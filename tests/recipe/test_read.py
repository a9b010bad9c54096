"""Recipes: every error at once, with its key and the nearest name; overrides; what is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl import shipped
from edgetl.errors import BadInput, BadInputs
from edgetl.recipe import yaml12
from edgetl.recipe.load import find, load, required
from edgetl.recipe.read import check, read

SHIPPED = sorted(shipped.folder("recipes").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        """
name: small
model: {family: hf_vit, source: {image_size: 8, patch_size: 4}}
data: {use: digits}
steps:
  - {use: finetune, name: dense, schedule: {epochs: 2, lr: 5e-4}}
  - {use: optin, keep_macs: [0.8, 0.6]}
  - {use: lora, name: recover, teacher: {step: dense}}
gates: {accuracy_drop: 5}
budgets: {local: {p90_ms: 12}}
"""
    )
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_but_for_what_the_user_gives(path: Path) -> None:
    raw = load(path)
    recipe, errors = check(raw, path.name)
    assert not errors
    assert recipe is not None
    assert recipe.frame.name == path.stem
    assert path.read_text().startswith("# ")
    for key, _ in required(raw):
        with pytest.raises(BadInputs) as caught:
            read(path)
        assert f"--set {key}=" in str(caught.value)


def test_the_resolved_recipe_has_every_default_and_reads_back(file: Path, tmp_path: Path) -> None:
    recipe = read(file)
    assert recipe.resolved["steps"][1]["samples"] > 0
    assert recipe.resolved["steps"][1]["keep_macs"] == [0.8, 0.6]
    assert recipe.resolved["reference"] == "dense"
    again = tmp_path / "again.yaml"
    again.write_text(yaml12.write(recipe.resolved))
    assert read(again).resolved == recipe.resolved
    assert list(read(again).names()) == list(recipe.names())


def test_all_errors_come_at_once_with_keys_and_nearest_names(file: Path) -> None:
    sets = [
        "steps.optin.keep_mac=0.5",
        "steps.dense.schedule.epochs=zero",
        "steps.recover.teacher.step=dens",
        "data.use=digit",
        "model.family=hf_vitt",
        "gates.acuracy=3",
        "budgets.rpi6.p90_ms=1",
        "seed=-1",
    ]
    with pytest.raises(BadInputs) as caught:
        read(file, sets)
    said = str(caught.value)
    for part in ("steps[1] (optin): keep_mac", "'keep_macs'", "schedule.epochs", "'dens'", "'digits'", "'hf_vit'",
                 "gates.acuracy", "'accuracy'", "seed"):  # fmt: skip
        assert part in said, part
    assert all(e.fix for e in caught.value.errors)


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "half"])
def test_a_share_outside_its_range_is_an_error(file: Path, share: str) -> None:
    with pytest.raises(BadInputs, match="keep_macs"):
        read(file, [f"steps.optin.keep_macs={share}"])


def test_overrides_by_number_and_by_name_are_the_same(file: Path) -> None:
    a, b = read(file, ["steps.1.keep_macs=[0.5]"]), read(file, ["steps.optin.keep_macs=[0.5]"])
    assert a.resolved == b.resolved
    assert list(a.names()) == ["dense", "optin-0.5"]


@pytest.mark.parametrize("item", ["seed", "steps.nothing.rank=2", "steps.7.rank=2", "name.x=1"])
def test_a_wrong_override_is_an_error(file: Path, item: str) -> None:
    with pytest.raises(BadInput, match="--set"):
        read(file, [item])


def test_a_device_that_does_not_exist_is_named(file: Path) -> None:
    with pytest.raises(BadInputs, match="no device 'rpi55'"):
        read(file, ["budgets.rpi55.p90_ms=3"])


def test_pruning_random_weights_is_refused_before_anything_runs(file: Path) -> None:
    with pytest.raises(BadInputs, match="needs a trained network"):
        read(file, ["steps=[{use: optin}]"])


@pytest.mark.parametrize("step", ["{use: finetune, schedule: {by_length: true}}", "{use: distill, augmented: 2}"])
def test_what_is_for_texts_is_refused_for_pictures_before_anything_runs(file: Path, step: str) -> None:
    with pytest.raises(BadInputs, match=r"for text data, and family 'hf_vit' reads image data") as caught:
        read(file, [f"steps=[{{use: finetune, name: dense}}, {step}]", "reference=dense"])
    assert "steps[1]" in str(caught.value)


def test_a_reference_behind_a_fan_out_is_refused(file: Path) -> None:
    with pytest.raises(BadInputs, match="behind a fan-out"):
        read(file, ["reference=recover"])


def test_names_are_unique(file: Path) -> None:
    with pytest.raises(BadInputs, match="is taken"):
        read(file, ["steps.recover.name=dense"])


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(BadInput) as caught:
        find("dem")
    assert "demo" in caught.value.fix


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    for data in (b"\xff\xfe\x00", b"- a\n- b\n", b""):
        path = tmp_path / "x.yaml"
        path.write_bytes(data)
        with pytest.raises(BadInput):
            read(path)


def test_fields_that_do_not_go_together_are_told_and_the_rest_is_checked(file: Path) -> None:
    both = "{use: distill, name: mini, layers: 1, student: {family: hf_vit, source: {}}}"
    later = "{use: finetune, teacher: {step: mini}, schedule: {epochs: 0}}"
    with pytest.raises(BadInputs) as caught:
        read(file, [f"steps=[{{use: finetune, name: dense}}, {both}, {later}]"])
    first, second = caught.value.errors
    assert first.problem.endswith("steps[1] (distill): `student` and `layers` name two students")
    assert "schedule.epochs" in second.problem


def test_a_student_cannot_take_the_name_of_the_reference(file: Path) -> None:
    sets = ["steps.0.name=optin-1", "steps.optin.keep_macs=1", "steps.2.teacher.step=optin-1", "reference=optin-1"]
    with pytest.raises(BadInputs, match="'optin-1' is a step and a student"):
        read(file, sets)


def test_the_hash_of_a_recipe_says_nothing_of_where_files_lie(file: Path) -> None:
    found = set()
    for folder in ("/a", "/elsewhere/b"):
        sets = ["data.use=image_folder", f"data.root={folder}/pets", f"model.source={folder}/vit"]
        recipe = read(file, sets)
        found.add(recipe.digest(recipe.students[0], recipe.targets[0]))
    assert len(found) == 1
    assert recipe.digest(recipe.students[1], recipe.targets[0]) not in found


def test_losses_by_name(file: Path, tmp_path: Path) -> None:
    asked = "steps.recover.losses=[{use: labels, weight: 0.1}, {use: dkd, beta: 2}]"
    recipe = read(file, [asked])
    assert [o["use"] for o in recipe.resolved["steps"][2]["losses"]] == ["labels", "dkd"]
    assert recipe.resolved["steps"][2]["losses"][1]["temperature"] == 4.0
    again = tmp_path / "again.yaml"
    again.write_text(yaml12.write(recipe.resolved))
    assert read(again).resolved == recipe.resolved


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ("[{use: labels}, {use: dkdd}]", "did you mean 'dkd'?"),
        ("[{use: dkd, betta: 2}]", "did you mean 'beta'?"),
        ("[{use: dkd, beta: -2}]", "greater than or equal to 0"),
        ("[{weight: 1}]", "use: NAME"),
    ],
)
def test_wrong_losses_are_told_with_the_nearest_name(file: Path, losses: str, said: str) -> None:
    with pytest.raises(BadInputs) as caught:
        read(file, [f"steps.recover.losses={losses}"])
    assert "steps[2] (lora): losses" in str(caught.value)
    assert said in str(caught.value)


def test_a_loss_that_needs_a_teacher_gets_one(file: Path) -> None:
    with pytest.raises(BadInputs, match="'dkd' learns from a teacher"):
        read(file, ["steps.dense.losses=[{use: dkd}]"])
    with pytest.raises(BadInputs, match="give temperature and weight to the losses"):
        read(file, ["steps.recover.losses=[{use: dkd}]", "steps.recover.teacher.weight=0.3"])
