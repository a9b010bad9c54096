from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.device import load_device, probe
from edgetl.errors import BadHost, EdgetlError, OutOfResources, Refused
from edgetl.links import _answers
from edgetl.links._answers import Expected
from edgetl.measure.measurement import Latency
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
        pytest.param("head -c 3000000 /dev/zero >&2", marks=pytest.mark.slow),
        """echo '{"event": "probed", "device": {"name": "../../x", "arch": {"isa": "x"}, "memory": {}}}'""",
        pytest.param("""printf '{"event": "probed", "device": "\\\\u001b[2J"}'""", marks=pytest.mark.slow),
        pytest.param("echo '[[[[[[]]]]]]'", marks=pytest.mark.slow),
        pytest.param("""echo '{"event": "missing", "modules": 5}'""", marks=pytest.mark.slow),
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
        pytest.param("echo garbage", marks=pytest.mark.slow),
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


@pytest.mark.parametrize(
    ("last", "kind", "told"),
    [
        ("no space left for result.json", OutOfResources, "no space left"),
        pytest.param("Killed", BadHost, "without a result: Killed", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_without_a_result(
    board: Any, make: Callable[..., Path], last: str, kind: type[EdgetlError], told: str
) -> None:
    act(board, follow=f"""echo {last} > agent.log; echo '{{"event": "gone"}}'""")
    device = probe().model_copy(update={"name": "board", "link": board.address})
    with pytest.raises(kind, match=told):
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


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


INTS = np.arange(4, dtype=np.int64)
SAMPLES = {
    "offsets": np.array([0, 2, 4]), "wall_ns": INTS, "cpu_ns": INTS,
    "turn_offsets": np.array([0, 1, 3]), "turn_calls": np.array([2, 1, 1]),
}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK nothing",
        npz(**SAMPLES, more=INTS),
        npz(**(SAMPLES | {"wall_ns": INTS[:3]})),
        npz(**(SAMPLES | {"cpu_ns": INTS.astype(np.float64)})),
        npz(**(SAMPLES | {"offsets": np.array([0, 5, 4])})),
        npz(**(SAMPLES | {"offsets": np.zeros(0, np.int64)})),
        npz(**(SAMPLES | {"turn_offsets": np.array([0, 3])})),
        npz(**(SAMPLES | {"turn_offsets": np.array([0, 1, 4])})),
        npz(**(SAMPLES | {"turn_calls": np.array([2, 1, 2])})),
        npz(**(SAMPLES | {"turn_calls": np.array([5, -2, 1])})),
        npz(**(SAMPLES | {"wall_ns": np.array(["x"] * 4, dtype=object)})),
        npz(offsets=INTS),
    ],
)
def test_samples_that_are_none_are_refused(latency: Latency, data: bytes) -> None:
    good = npz(**SAMPLES)
    _answers.check_samples("ssh://x", named(latency, good), good)
    with pytest.raises(Refused):
        _answers.check_samples("ssh://x", named(latency, good), data)
    with pytest.raises(Refused):
        _answers.check_samples("ssh://x", named(latency, data), data)


def test_samples_that_would_fill_the_memory_are_refused(latency: Latency, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_answers, "UNPACKED_BYTES", 1 << 20)
    data = npz(**(SAMPLES | {"wall_ns": np.zeros(1 << 18, np.int64)}))
    assert len(data) < 1 << 14
    with pytest.raises(Refused, match="other samples"):
        _answers.check_samples("ssh://x", named(latency, data), data)


@pytest.fixture
def latency() -> Latency:
    """The latency of four samples."""
    values = dict.fromkeys(("p50_ms", "rel_half_width", "mean_ms", "min_ms", "max_ms", "cpu_time_p50_ms"), 1.0)
    ends = {"p50_ci95_ms": (1, 1), "cpu_time_p50_ci95_ms": (1, 1), "p90_es_ms": None, "p99_es_ms": None}
    rounds = {"rounds_p50_ms": [1.0, 1.0], "rounds_cpu_time_p50_ms": [1.0, 1.0], "outliers": {}}
    return Latency.model_validate({**values, **ends, **rounds, "n": 4})


def named(latency: Latency, data: bytes) -> Latency:
    return latency.model_copy(update={"samples_sha256": hashlib.sha256(data).hexdigest()})
