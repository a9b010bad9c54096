from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import psutil
import pytest

from edgetl.device import Runtime, probe
from edgetl.errors import BadHost, BadInput, GateMissed, OutOfResources, Refused
from edgetl.intervals import Interval
from edgetl.measure import measurement, rounds, summary
from edgetl.measure._window import is_steady
from edgetl.measure.comparing import Baseline, compare_all
from edgetl.measure.measured import table
from edgetl.measure.probing import Sample
from edgetl.stages.profile import forget, judge, limits, profile, profile_all

SCHEMA = json.loads((Path(measurement.__file__).parents[1] / "schemas" / "profile-result-1.json").read_text())
Maker = Callable[..., Path]


def strict(schema: dict[str, object]) -> dict[str, object]:
    """The schema without room for keys that it does not name."""
    closed = copy.deepcopy(schema)
    for part in (closed, *closed["properties"].values()):  # type: ignore[attr-defined]
        if "properties" in part:
            part["additionalProperties"] = False
    return closed


@pytest.mark.usefixtures("brief")
def test_two_bundles_measured_together(make: Maker, tmp_path: Path) -> None:
    big, small = make("big", 768, 3), make("small", 64, 1)
    found = profile([small, big], probe(), out=tmp_path, baseline=big, seed=3)
    assert [m.bundle.name for m in found] == ["small", "big"]
    files = sorted((tmp_path / "local").glob("*.json"))
    assert [f.name.rpartition("-")[0] for f in files] == ["big-onnx-fp32", "small-onnx-fp32"]
    for file in files:
        jsonschema.validate(json.loads(file.read_text()), strict(SCHEMA))
    first, second = found
    assert first.comparison is not None
    assert first.comparison.high < 1
    assert second.comparison is None
    assert (first.run.seed, first.run.rounds) == (3, 2)
    assert first.config.distinct_inputs >= 16
    assert 0 < first.latency.min_ms <= first.latency.p50_ms <= first.latency.max_ms
    assert (first.latency.p90_es_ms is None) == (first.latency.n < 64)
    assert second.memory.peak_delta_bytes > second.size.model_bytes
    assert first.memory.peak_delta_bytes < second.memory.peak_delta_bytes
    assert first.cold.process_to_output_ms > first.cold.load_ms
    assert len(table(found).rows) == 2
    assert all(measurement.read(f).run.id == first.run.id for f in files)


@pytest.mark.usefixtures("brief")
def test_finished_measurements_are_read_back_unless_forgotten(planned: Callable[..., Path]) -> None:
    run = planned({}, {})
    first = profile_all([run], "local")
    again = profile_all([run], "local")
    assert {m.run.id for m in again} == {first[0].run.id}
    forget([run / "bundles" / "dense" / "onnx-fp32"], probe(), run / "measurements")
    assert len(list((run / "measurements" / "local").glob("*.json"))) == 1


def test_a_damaged_or_newer_measurement_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        measurement.read(_written(tmp_path, {"schema_version": 1}))
    with pytest.raises(BadInput, match="newer"):
        measurement.read(_written(tmp_path, {"schema_version": 2}))
    with pytest.raises(Refused):
        measurement.read(_written(tmp_path, []))


def _written(folder: Path, value: object) -> Path:
    path = folder / "m.json"
    path.write_text(json.dumps(value))
    return path


CRASH = """
import os, signal, time
from dataclasses import dataclass
@dataclass(frozen=True)
class Target:
    use = "{name}"
    precision = "fp32"
    @staticmethod
    def runtime(): return "json 1.0"
    @staticmethod
    def open(file, options, threads):
        {body}
class Bad:
    provider = "CPU"
    def run(self, feed): os.kill(os.getpid(), signal.SIGABRT)
    def close(self): pass
PLUGIN = Target
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`plugins(name, body)`: a target of the user's own whose `open` does what the body says."""

    def write(name: str, body: str) -> None:
        (tmp_path / "targets").mkdir()
        (tmp_path / "targets" / f"{name}.py").write_text(CRASH.format(name=name, body=body))
        monkeypatch.setenv("EDGETL_PLUGINS", str(tmp_path))

    return write


@pytest.mark.parametrize(
    ("name", "body", "ends"),
    [
        ("segfault", "os.kill(os.getpid(), signal.SIGSEGV)", (Refused, "SIGSEGV")),
        ("oom", "os.kill(os.getpid(), signal.SIGKILL)", (OutOfResources, "killed")),
        ("hungry", "raise MemoryError", (OutOfResources, "memory")),
        ("abort", "return Bad()", (BadHost, "SIGABRT")),
        ("bug", "raise KeyError('what')", (BadHost, "what")),
    ],
)
@pytest.mark.usefixtures("brief")
def test_how_a_measuring_process_ends_is_told(
    make: Maker, plugins: Callable[[str, str], None], name: str, body: str, ends: tuple[type[Exception], str]
) -> None:
    plugins(name, body)
    bundle = make(f"crash-{name}", target=name, needs=("json", ">=0.1"))
    with pytest.raises(ends[0], match=ends[1]):
        profile([bundle], probe(), out=None)


@pytest.mark.usefixtures("brief")
def test_a_process_that_hangs_is_stopped(
    make: Maker, plugins: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins("hang", "time.sleep(60)")
    monkeypatch.setattr(rounds, "LEAST_S", 0.5)
    monkeypatch.setattr(rounds, "TIMES", 0)
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(BadHost, match="did not finish"):
        profile([make("hang", target="hang", needs=("json", ">=0.1"))], probe(), out=None)
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert {p.pid for p in left} <= before


@pytest.mark.usefixtures("brief")
def test_a_provider_that_the_device_does_not_name_is_an_error(make: Maker) -> None:
    runtime = Runtime(name="onnxruntime", providers=("CUDAExecutionProvider",))
    device = probe().model_copy(update={"runtimes": (runtime,)})
    with pytest.raises(BadHost, match="CPUExecutionProvider"):
        profile([make("cpu-only")], device, out=None)


def test_a_damaged_bundle_is_refused(make: Maker) -> None:
    bundle = make("damaged")
    (bundle / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(Refused):
        profile([bundle], probe(), out=None)


def test_a_run_without_bundles(tmp_path: Path) -> None:
    value = {
        "schema_version": 1,
        "name": "x",
        "reference": "a",
        "students": [],
        "targets": [],
        "gates": {},
        "budgets": {},
    }
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(BadInput, match="no bundles"):
        profile_all([tmp_path], "local")


def test_limits_of_the_command_line() -> None:
    assert limits("p90_ms=12, peak_mb=200") == {"p90_ms": 12, "peak_mb": 200}
    assert limits(None) == {}
    for wrong in ("p91_ms=1", "p90_ms=fast", "p90_ms"):
        with pytest.raises(BadInput):
            limits(wrong)


def sample(wall: list[int], **changes: object) -> Sample:
    facts: dict[str, object] = {
        "runtime": "onnxruntime 1.0", "provider": "CPUExecutionProvider", "wall": wall, "cpu": wall, "seconds": 1.0,
        "load_ns": 2_000_000, "first_ns": 1_000_000, "process_ns": 9_000_000, "base": 100, "load_peak": 50, "peak": 70,
        "steady_rss": 60, "growth": 0.0, "warm": 10, "steady": None, "switches": 0, "others": 0,
    }  # fmt: skip
    return Sample(**(facts | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def subject(make: Maker) -> summary.Subject:
    from edgetl.bundle import open_bundle

    return summary.Subject(
        open_bundle(make("fake")), "0" * 64, "fake-onnx-fp32", Path(), {"pixel_values": [1, 1, 8, 8]}, 20
    )


RUN = measurement.Run(
    id="1", started_utc="2026-01-01T00:00:00+00:00", tool_version="0", mode="quick", seed=0, rounds=3, failed_rounds=0,
    wall_s=1.0,
)  # fmt: skip
QUIET = summary.Surroundings(0.0, False, None, False)


def test_statistics_of_replayed_clocks(subject: summary.Subject) -> None:
    replay = [sample([k * 1_000_000, k * 1_010_000] * 30 + [k * 1_000_000], peak=k) for k in (100, 101, 102)]
    ratios = summary.ratios(replay, replay, cpu=True)
    compared = compare_all(Baseline("base", "1" * 64, "cpu_time_p50", None), {"": ratios})
    m = summary.summarise(subject, probe(), RUN, replay, QUIET, compared[""])
    assert m.latency.rounds_p50_ms == [100, 101, 102]
    assert m.latency.p50_ms == pytest.approx((100 * 101 * 102) ** (1 / 3))
    assert m.latency.n == 183
    assert m.latency.p90_es_ms is not None
    assert m.latency.p99_es_ms is None
    assert (m.memory.peak_delta_bytes, m.memory.peak_delta_max_bytes) == (101, 102)
    assert (m.cold.load_ms, m.cold.first_ms) == (2, 1)
    assert m.comparison is not None
    assert m.comparison.interval == Interval(1, 1, 1)
    assert (m.verdict, m.noise.flags) == ("clean", [])


@pytest.mark.parametrize(
    ("samples", "around", "flag", "verdict"),
    [
        ([sample([2] * 64, cpu=[1] * 64)] * 3, QUIET, "contention", "noisy"),
        ([sample([5] * 64, switches=30)] * 3, QUIET, "switches", "noisy"),
        ([sample([5] * 64)] * 3, summary.Surroundings(0.02, False, None, False), "steal", "noisy"),
        ([sample([5] * 64)] * 3, summary.Surroundings(0, True, "0x4", False), "throttled", "invalid"),
        ([sample([5] * 64)] * 3, summary.Surroundings(0, False, None, True), "battery", "invalid"),
        ([sample([100] * 64), sample([150] * 64), sample([220] * 64)], QUIET, None, "invalid"),
        ([*[sample([5] * 64)] * 5, None], QUIET, "failed_rounds", "noisy"),
        ([*[sample([5] * 64)] * 3, None], QUIET, "failed_rounds", "invalid"),
        ([sample([5] * 64, growth=0.05)] * 3, QUIET, "memory_growth", "noisy"),
        ([sample([1, 9] * 32)] * 3, QUIET, "instability", "noisy"),
    ],
)
def test_verdicts(
    subject: summary.Subject,
    samples: list[Sample | None],
    around: summary.Surroundings,
    flag: str | None,
    verdict: str,
) -> None:
    m = summary.summarise(subject, probe(), RUN, samples, around, None)
    assert (m.noise.flags, m.verdict) == ([flag] if flag else [], verdict)
    if verdict == "invalid":
        with pytest.raises(BadHost, match="invalid"):
            judge([], [m])
    with pytest.raises(GateMissed, match="size_mb"):
        judge([], [m], "size_mb=0.000001")


def test_steady_state() -> None:
    assert is_steady([9, 1.0, 1.01, 1.0])
    assert not is_steady([1.0, 1.0])
    assert not is_steady([1.01, 1.005, 1.0])  # still falling
    assert not is_steady([1.0, 1.05, 1.0])


def test_modes_need_what_the_percentile_needs() -> None:
    assert rounds.EFFORTS["quick"].window_n >= 64
    assert rounds.EFFORTS["standard"].window_n >= 200


@pytest.mark.parametrize("text", ["p90_ms=nan", "p90_ms=-1", "p90_ms=inf", "p90_ms=0"])
def test_a_gate_that_is_no_limit_is_an_error(text: str) -> None:
    with pytest.raises(BadInput, match="is no limit"):
        limits(text)


def test_results_that_cannot_be_kept_are_told_before_anything_is_measured(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadHost, match="cannot be written"):
        profile([make("a")], probe(), out=tmp_path / "file" / "out")


def test_a_result_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nope\.json cannot be read"):
        measurement.read(tmp_path / "nope.json")
