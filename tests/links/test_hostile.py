from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.device import load_device, probe
from edgetl.errors import BadHost, EdgetlError, OutOfResources, Refused
from edgetl.links import _answers
from edgetl.links._answers import Expected
from edgetl.stages.profile import profile

EXPECTED = [Expected("a" * 64, "student", "fp32")]
ACTS = """
case "$*" in
*zipfile*) mkdir package.new;;
*" probe "*) {probe};;
*" start "*) echo '{{"event": "started"}}';;
*" follow "*) {follow};;
esac
"""


def act(board: Any, probe: str = "true", follow: str = "true") -> None:
    board.program("python3", ACTS.format(probe=probe, follow=follow))


@pytest.mark.parametrize(
    "answer",
    [
        "echo garbage",
        "head -c 10000000 /dev/zero",
        "head -c 3000000 /dev/zero >&2",
        """echo '{"event": "probed", "device": {"name": "../../x", "arch": {"isa": "x"}, "memory": {}}}'""",
        """printf '{"event": "probed", "device": "\\\\u001b[2J"}'""",
        "echo '[[[[[[]]]]]]'",
        """echo '{"event": "missing", "modules": 5}'""",
    ],
)
def test_a_hostile_probe_is_refused(board: Any, answer: str) -> None:
    act(board, probe=answer)
    with pytest.raises(Refused):
        load_device(board.address)
    assert not board.runs()


@pytest.mark.parametrize(
    "answer",
    [
        "echo garbage",
        pytest.param("""head -c 10000000 /dev/zero | tr '\\\\0' a""", marks=pytest.mark.slow),
        pytest.param("""while :; do echo '{"event": "beat"}'; done""", marks=pytest.mark.slow),
        """echo '{"measurements": [{"bundle": {"name": "../../etc/x"}}]}' > result.json; echo '{"event": "end"}'""",
        pytest.param("""head -c 20000000 /dev/zero > result.json; echo '{"event": "end"}'""", marks=pytest.mark.slow),
    ],
)
def test_a_hostile_run_is_refused_and_writes_nothing(
    board: Any, make: Callable[..., Path], tmp_path: Path, answer: str
) -> None:
    act(board, follow=answer)
    device = probe().model_copy(update={"name": "board", "link": board.address})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused):
        profile([make("tiny", 64, 1)], device, out=tmp_path / "m", mode="quick")
    assert not board.runs()
    after = (p for p in sorted(tmp_path.rglob("*")) if p.is_file() and "notes" not in p.parts)
    assert [p for p in after if p not in before] == []


def test_a_device_does_not_speak_for_the_client(board: Any) -> None:
    lies = "REMOTE HOST IDENTIFICATION HAS CHANGED; Offending key in /etc/passwd:1"
    act(board, probe=f"echo '{lies}' >&2; exit 255")
    with pytest.raises(BadHost, match="cannot be reached: REMOTE"):
        load_device(board.address)


def test_a_run_that_ends_without_a_result(board: Any, make: Callable[..., Path]) -> None:
    act(board, follow="""echo Killed > agent.log; echo '{"event": "gone"}'""")
    device = probe().model_copy(update={"name": "board", "link": board.address})
    with pytest.raises(BadHost, match="without a result: Killed"):
        profile([make("tiny", 64, 1)], device, out=None, mode="quick")
    act(board, follow="""echo no space left for result.json > agent.log; echo '{"event": "gone"}'""")
    with pytest.raises(OutOfResources, match="no space left"):
        profile([make("tiny", 64, 1)], device, out=None, mode="quick")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["measurements", "error", "x"]), inner),
    )
)
def test_any_answer_is_a_user_error(value: Any) -> None:
    with pytest.raises(EdgetlError):
        _answers.measurements("ssh://x", "board", json.dumps(value).encode(), EXPECTED)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_user_error(data: bytes) -> None:
    with pytest.raises(Refused):
        _answers.measurements("ssh://x", "board", data, EXPECTED)
    with pytest.raises(Refused):
        _answers.event("ssh://x", data)


@pytest.mark.parametrize(
    "text",
    ['{"x": 1e999}', '{"x": NaN}', "[" * 100_000, '{"x": "\\u001b[31m"}', "1" * 9999, '{"x": 1' + "0" * 400 + "}"],
)
def test_numbers_and_texts_that_would_do_harm(text: str) -> None:
    with pytest.raises(Refused):
        _answers.measurements("ssh://x", "board", text.encode(), EXPECTED)
