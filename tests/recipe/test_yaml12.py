"""YAML 1.2 scalars, and what a recipe's YAML may not hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import BadInput
from edgetl.recipe import yaml12

SCALARS = [
    ("5e-4", 5e-4), ("1e5", 1e5), (".5", 0.5), ("1.", 1.0), ("-3", -3), ("+7", 7), ("0x10", 16), ("0o17", 15),
    ("010", 10), ("no", "no"), ("yes", "yes"), ("on", "on"), ("1:30", "1:30"), ("true", True), ("False", False),
    ("~", None), ("null", None), ("", None), ("2020-01-01", "2020-01-01"), ("1_000", "1_000"), ("'5'", "5"),
    ("-.inf", -math.inf),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_read_as_yaml_1_2(text: str, value: object) -> None:
    found = yaml12.read(f"a: {text}", "r.yaml")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "stands twice"),
        ("a: {b: 1, b: 2}", "stands twice"),
        ("a: &x 1\nb: 2", "anchors"),
        ("a: &x [1]\nb: *x", "anchors"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !include b.yaml", "tag"),
        ("a: [1", "expected"),
        ("a: 1\n---\nb: 2", "document"),
    ],
)
def test_what_is_not_allowed_is_named_with_file_and_line(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        yaml12.read(text, "r.yaml")
    assert caught.value.problem.startswith("r.yaml:")


def test_a_huge_or_deep_file_is_refused() -> None:
    with pytest.raises(BadInput, match="larger"):
        yaml12.read("a: " + "x" * yaml12.MOST_BYTES, "r.yaml")
    with pytest.raises(BadInput):
        yaml12.read("[" * 5000 + "]" * 5000, "r.yaml")


def test_required_is_a_word_that_is_known_again() -> None:
    value = yaml12.read('root: !required "the folder"', "r.yaml")["root"]
    assert isinstance(value, yaml12.Required)
    assert value == "the folder"


words = st.one_of(st.text(max_size=8), st.sampled_from([text for text, _ in SCALARS] + ["5e3", "NULL", "TRUE", "0X1"]))
scalars = st.one_of(words, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@given(st.dictionaries(words.filter(bool), values, max_size=4))
def test_what_is_written_reads_back(value: dict[str, object]) -> None:
    assert yaml12.read(yaml12.write(value), "r.yaml") == value
