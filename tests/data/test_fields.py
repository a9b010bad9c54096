"""The pre-processing list follows the fields, then the backbone; a contradiction is an error."""

import pytest

from edgetl.data._fields import ImageFields, TextFields, image_operations, text_operations
from edgetl.errors import BadInput
from edgetl.network.family import Prep
from edgetl.operations import check_operations
from edgetl.preprocess import Raw

GREY = Raw("array", "uint8", (8, 8))


def by_name(operations):
    return {operation["op"]: operation for operation in operations}


def test_what_the_recipe_leaves_open_the_backbone_decides():
    prep = Prep(size=(32, 24), channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), resample="bicubic")
    ops = by_name(image_operations(ImageFields(), GREY, prep))
    assert (ops["resize"]["height"], ops["resize"]["width"], ops["resize"]["resample"]) == (32, 24, "bicubic")
    assert (ops["decode"]["mode"], ops["normalise"]["mean"]) == ("RGB", [0.1, 0.2, 0.3])


def test_what_nobody_says_comes_from_the_data():
    ops = by_name(image_operations(ImageFields(), GREY, Prep()))
    assert (ops["resize"]["height"], ops["decode"]["mode"], ops["normalise"]["std"]) == (8, "L", [0.5])


@pytest.mark.parametrize("raw", [GREY, Raw("image"), Raw("array", "uint8", (5, 6, 3)), Raw("array", "float32", (9, 2))])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_every_list_is_valid(raw, fit):
    check_operations(image_operations(ImageFields(size=(5, 7), fit=fit), raw, Prep()), raw)


@pytest.mark.parametrize(
    ("fields", "prep"),
    [
        ({"size": 16}, {"size": (32, 32)}),
        ({"channels": 1}, {"channels": 3}),
        ({"mean": (0.1,)}, {"mean": (0.5,)}),
        ({"resample": "nearest"}, {"resample": "bilinear"}),
    ],
)
def test_a_field_that_contradicts_the_weights_is_an_error(fields, prep):
    with pytest.raises(BadInput, match=f"data.{next(iter(fields))} is") as caught:
        image_operations(ImageFields(**fields), GREY, Prep(**prep))
    assert "leave" in caught.value.fix


@pytest.mark.parametrize("fields", [{"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"size": 0}, {"size": 10**6}])
def test_impossible_fields_are_errors(fields):
    with pytest.raises(BadInput):
        image_operations(ImageFields(**fields), GREY, Prep())


def test_files_need_a_size():
    with pytest.raises(BadInput, match="size"):
        image_operations(ImageFields(), Raw("image"), Prep())


def test_the_tokenizer_is_the_recipes_or_the_backbones_and_they_agree(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    (tmp_path / "other.json").write_text("[]")
    want = ({"op": "tokenize", "file": str(file), "length": 128},)
    assert text_operations(TextFields(tokenizer=tmp_path), Prep()) == want
    assert text_operations(TextFields(), Prep(tokenizer=str(file), length=512)) == want
    assert text_operations(TextFields(), Prep(tokenizer=str(file), length=64))[0]["length"] == 64
    for fields, prep in (
        (TextFields(), Prep()),
        (TextFields(tokenizer=tmp_path / "none.json"), Prep()),
        (TextFields(tokenizer=tmp_path / "other.json"), Prep(tokenizer=str(file))),
        (TextFields(length=600), Prep(tokenizer=str(file), length=512)),
    ):
        with pytest.raises(BadInput) as caught:
            text_operations(fields, prep)
        assert "data." in caught.value.fix or "leave it out" in caught.value.fix
