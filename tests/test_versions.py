from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.versions import WANTED, fits, numbers

VERSIONS = st.lists(st.integers(0, 30), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("version", "wanted", "holds"),
    [
        ("1.31.1", "", True),
        ("1.31.1+cpu", ">=1.20", True),
        ("1.9.0", ">=1.20", False),
        ("10.3.0.26", "10.3", True),
        ("10.30", "10.3", False),
        ("10.3.1", "==10.3", True),
        ("10.0.1", ">=10,<11", True),
        ("11.0", ">=10, <11", False),
        ("10", "<=10.0", True),
        ("10.0.1", ">10", True),
        ("unknown", ">=1", False),
    ],
)
def test_a_version_fits(version: str, wanted: str, holds: bool) -> None:
    assert re.fullmatch(WANTED, wanted)
    assert fits(version, wanted) is holds


@given(VERSIONS, VERSIONS)
def test_of_two_versions_one_is_below_the_other_or_they_are_equal(a: list[int], b: list[int]) -> None:
    one, two = (".".join(map(str, v)) for v in (a, b))
    assert numbers(one) == tuple(a)
    below, above = fits(one, f"<{two}"), fits(one, f">{two}")
    assert fits(one, f">={two}") is not below
    assert fits(one, f"<={two}") is not above
    assert (below, above) != (True, True)
    padded = [v + [0] * (3 - len(v)) for v in (a, b)]
    assert below is (padded[0] < padded[1])


@pytest.mark.parametrize("wanted", ["~=1.2", ">=", "1.x", ">=1,", "latest", ">=1;os"])
def test_what_is_no_version(wanted: str) -> None:
    assert not re.fullmatch(WANTED, wanted)
