from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle, pairwise
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pytest

from edgetl.device import Runtime, probe
from edgetl.errors import BadHost, BadInput, OutOfResources
from edgetl.measure import measured, measurement, noise, rounds, throughput
from edgetl.measure.capacity import Batch, Throughput
from edgetl.measure.measurement import Measurement
from edgetl.measure.probing import Sample
from edgetl.measure.turns import Start
from edgetl.stages.profile import Request, judge, profile, profile_all

SCHEMA = json.loads((Path(measurement.__file__).parents[1] / "schemas" / "profile-result-1.json").read_text())
Maker = Callable[..., Path]
Replay = Callable[..., Measurement]


def closed(schema: dict[str, object]) -> dict[str, object]:
    """The schema without room for keys that it does not name."""
    made = copy.deepcopy(schema)
    for part in (made, *made["properties"].values()):  # type: ignore[attr-defined]
        if "properties" in part:
            part["additionalProperties"] = False
    return made


@pytest.mark.usefixtures("brief")
def test_the_standard_mode_measures_the_baseline_twice_and_keeps_the_samples(make: Maker, tmp_path: Path) -> None:
    big, small = make("big", 768, 3), make("small", 64, 1)
    request = Request(baseline=big, out=tmp_path, throughput=False)
    found = profile_all([small, big], "local", request)
    ends = {m.noise.aa_ratio_ci95 for m in found}
    assert len(ends) == 1
    floor = ends.pop()
    assert floor is not None
    assert floor[0] < floor[1]
    assert found[0].comparison is not None
    assert found[0].comparison.word == "faster"
    assert "noise floor" in str(measured.table(found).caption)
    files = sorted((tmp_path / "local").glob("*.json"))
    assert len(files) == 2
    for file in files:
        value = json.loads(file.read_text())
        jsonschema.validate(value, closed(SCHEMA))
        samples = file.with_suffix(".npz")
        assert hashlib.sha256(samples.read_bytes()).hexdigest() == value["latency"]["samples_sha256"]
        with np.load(samples, allow_pickle=False) as arrays:
            offsets, wall = arrays["offsets"], arrays["wall_ns"]
            assert len(arrays["turn_offsets"]) == len(offsets)
        assert (offsets[0], offsets[-1], len(offsets)) == (0, len(wall), 3)
        medians = [np.median(wall[a:b]) / 1e6 for a, b in pairwise(offsets)]
        assert medians == pytest.approx(value["latency"]["rounds_p50_ms"])
    (again,) = profile_all([small], "local", replace(request, mode="quick", baseline=None, fresh=True))
    assert again.run.id != found[0].run.id
    assert len(list((tmp_path / "local").iterdir())) == 4


def test_modes() -> None:
    quick, standard, certify = (rounds.EFFORTS[m] for m in ("quick", "standard", "certify"))
    assert quick.rounds < standard.rounds < certify.rounds
    assert (standard.enough, certify.enough, certify.long_s) == (0.02, 0.01, 600)
    assert not quick.control
    assert standard.control
    assert rounds.mode_named("certify") == "certify"
    with pytest.raises(BadInput, match="no mode 'standart'"):
        rounds.mode_named("standart")


def test_a_process_may_take_twenty_times_what_is_expected(make: Maker) -> None:
    from edgetl.bundle import open_bundle
    from edgetl.measure.summary import Subject

    subject = Subject(open_bundle(make("patient")), "0" * 64, "x", Path(), {}, 1)
    job = rounds.job_of(subject, probe(), rounds.EFFORTS["quick"])
    assert rounds.timeout_s(job, None) == pytest.approx(20 * 6.2)
    assert rounds.timeout_s(job, 30.0) == 600
    assert rounds.timeout_s(replace(job, warmup_s=0, window_s=0), None) >= 60


def test_rounds_are_shuffled_by_the_seed(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make("a"), make("b", 32)

    def order(seed: int) -> list[str]:
        ran: list[str] = []

        def one_round(starts: Mapping[str, Start], *_: object) -> Iterator[tuple[str, Sample]]:
            for key, start in starts.items():
                ran.append(start.job.bundle)
                yield key, one_process(100, 1)

        monkeypatch.setattr(rounds, "one_round", one_round)
        monkeypatch.setitem(rounds.EFFORTS, "quick", replace(rounds.EFFORTS["quick"], rounds=9, most=9))
        assert profile([a, b], probe(), out=None, seed=seed)[0].run.seed == seed
        return ran

    first, other = order(1), order(2)
    assert order(1) == first != other
    assert {frozenset(first[i : i + 2]) for i in range(0, 18, 2)} == {frozenset((str(a), str(b)))}


def batch(size: int, rate: float, peak: int) -> Batch:
    return Batch(batch=size, items_per_s=rate, low=rate, high=rate, n=10, peak_delta_bytes=peak)


@pytest.mark.parametrize(
    ("rates", "most", "why"),
    [
        ([batch(1, 100, 10)], 1024, None),
        ([batch(1, 100, 10), batch(2, 104, 12)], 1024, None),
        ([batch(1, 100, 10), batch(2, 90, 12), batch(4, 104, 13)], 1024, "gain"),
        ([batch(1, 100, 10), batch(2, 90, 12), batch(4, 130, 13)], 1024, None),
        ([batch(1, 100, 10), batch(2, 106, 12)], 1024, None),
        ([batch(1, 100, 10), batch(2, 190, 500)], 1024, "memory"),  # the next would need about 980 more
        ([batch(1, 100, 1001)], 1024, "memory"),
        ([batch(1, 100, 10)], 1, "shape"),
        ([batch(512, 100, 10), batch(1024, 200, 10)], 1 << 20, "most"),
    ],
)
def test_where_a_throughput_sweep_ends(rates: list[Batch], most: int, why: str | None) -> None:
    assert throughput.why_stop(rates, most, 1000) == why


@pytest.mark.usefixtures("brief")
def test_throughput_is_kept_in_the_measurement(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "EFFORT", replace(rounds.EFFORTS["quick"], window_s=0.1))
    monkeypatch.setattr(throughput, "MOST", 2)
    monkeypatch.setattr(throughput, "PROCESSES", 2)
    monkeypatch.setattr(noise, "HALF_WIDTH", 100.0)
    request = Request("quick", out=tmp_path, throughput=True)
    (one,) = profile_all([make("busy", 256, 2)], "local", request)
    assert one.throughput is not None
    assert [b.batch for b in one.throughput.sweep] == [1, 2]
    assert one.throughput.best_items_per_s == max(b.items_per_s for b in one.throughput.sweep)
    assert all(b.low <= b.items_per_s <= b.high for b in one.throughput.sweep)
    (file,) = (tmp_path / "local").glob("*.json")
    jsonschema.validate(json.loads(file.read_text()), closed(SCHEMA))
    assert measurement.read(file).throughput == one.throughput
    assert "items/s" in [column.header for column in measured.table([one]).columns]


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_the_command_line_compares_with_another_run(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetl import cli

    base, old, new = (str(make(name, width, 2)) for name, width in (("base", 512), ("old", 300), ("new", 128)))

    def edgetl(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["edgetl", "profile", *words, "-q", "--no-judge", "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().out

    assert edgetl(old, "--baseline", base, "--mode", "quick", "--out", str(tmp_path))[0] == 0
    saved = str(next((tmp_path / "local").glob("old-*.json")))
    code, said = edgetl(new, "--baseline", base, "--against", saved)
    (one,) = json.loads(said)["against"]
    assert (code, one["name"], one["against"], one["ratio"]["kind"]) == (0, "new", "old", "cross-run")
    assert one["ratio"]["low"] < one["ratio"]["value"] < one["ratio"]["high"]
    code, said = edgetl(new, "--mode", "quick", "--against", saved)  # its baseline is itself
    assert (code, json.loads(said)["against"][0]["ratio"]) == (2, None)
    assert json.loads(said)["measurements"], "what was measured is not lost"
    assert edgetl(new, "--mode", "standart")[0] == 2


@pytest.mark.usefixtures("brief")
def test_cuda_on_a_machine_without_it_ends_with_code_4(make: Maker) -> None:
    bundle = make("gpu")
    everywhere = probe()
    on_gpu = everywhere.model_copy(update={"kind": "cuda"})
    named = on_gpu.model_copy(update={"runtimes": (Runtime(name="onnxruntime", providers=("CUDAExecutionProvider",)),)})
    for device in (on_gpu, named):
        with pytest.raises(BadHost, match="CPUExecutionProvider") as error:
            profile([bundle], device, out=None)
        assert error.value.code == 4


def one_process(items_per_s: float, size: int, **changes: object) -> Sample:
    """A process that ran 60 batches of a size at a rate."""
    wall = round(1e9 * size / items_per_s)
    facts: dict[str, object] = {
        "runtime": "onnxruntime 1.0", "provider": "CPUExecutionProvider", "wall": [wall] * 60, "cpu": [wall] * 60,
        "seconds": 60 * wall / 1e9, "load_ns": 1, "first_ns": 1, "process_ns": 1, "base": 1, "load_peak": 10,
        "peak": 10, "steady_rss": 10, "growth": 0.0, "warm": 10, "steady": None, "switches": 0, "others": 0,
    }  # fmt: skip
    return Sample(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rates", "changes", "verdict", "flag"),
    [
        ([100], {}, "clean", None),
        ([100], {"switches": 10**6}, "noisy", "switches"),
        ([100], {"checked": 4, "max_abs": 3.0, "max_rel": 0.5}, "invalid", "wrong_answers"),
        ([60, 100, 170], {}, "invalid", None),  # a rate that even twelve processes leave uncertain
    ],
)
def test_a_throughput_has_a_verdict(
    make: Maker, monkeypatch: pytest.MonkeyPatch, rates: list[float], changes: dict[str, object], verdict: str,
    flag: str | None,
) -> None:  # fmt: skip
    from edgetl.bundle import open_bundle
    from edgetl.measure.summary import Subject

    drawn, quiet = cycle(rates), noise.state()
    monkeypatch.setattr(throughput, "_sample", lambda _s, _d, size, _r: one_process(next(drawn), size, **changes))
    monkeypatch.setattr(noise, "state", lambda: quiet)
    found = throughput.sweep(Subject(open_bundle(make("rated")), "0" * 64, "x", Path(), {}, 1), probe(), 0)
    assert (found.verdict, list(found.flags)) == (verdict, [flag] if flag else [])


def test_a_judged_throughput_that_is_invalid_ends_with_code_4(replay: Replay) -> None:
    rates = Throughput(
        best_items_per_s=1, best_batch=1, sweep=[batch(1, 1, 1)], stopped="most", verdict="invalid", flags=("battery",)
    )
    with pytest.raises(BadHost, match=r"the throughput of replayed .* is invalid: battery"):
        judge([], [replay([[1000] * 64] * 3).model_copy(update={"throughput": rates})])


def test_no_memory_for_a_larger_batch_ends_the_sweep(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetl.bundle import open_bundle
    from edgetl.measure.summary import Subject

    subject = Subject(open_bundle(make("hungry")), "0" * 64, "x", Path(), {}, 1)

    def sample(_subject: object, _device: object, size: int, _draw: object) -> Sample:
        if size > 2:
            raise OutOfResources("no memory", fix="use less")
        return one_process(100.0 * size, size)

    monkeypatch.setattr(throughput, "_sample", sample)
    found = throughput.sweep(subject, probe(), 0)
    assert (found.best_batch, found.stopped) == (2, "memory")


START = """
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from edgetl.measure import rounds
from edgetl.device import probe
from edgetl.stages.profile import profile
rounds.EFFORTS["quick"] = replace(rounds.EFFORTS["quick"], window_s=60, cap_s=60)
profile([Path(sys.argv[1])], probe(), out=Path(sys.argv[2]))
"""


def test_a_killed_profile_leaves_no_process_and_no_half_file(make: Maker, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", START, str(make("killed")), str(tmp_path)]) as parent:
        found: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            time.sleep(0.02)
            found = [
                p for p in psutil.Process(parent.pid).children() if "edgetl.measure._probe" in " ".join(p.cmdline())
            ]
        time.sleep(0.5)  # until it measures
        os.kill(parent.pid, signal.SIGKILL)
    assert found
    _, alive = psutil.wait_procs(found, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("walls", "flag"),
    [
        ([[1000 + i for i in range(100)]] * 3, "thermal_or_drift"),
        ([[1000 - i for i in range(100)]] * 3, "thermal_or_drift"),
        ([[1000, 1020] * 50] * 3, None),
        ([[1000 + i // 20 for i in range(100)]] * 3, None),
        ([[1000 + 2 * i for i in range(100)], [1200 - 2 * i for i in range(100)]] * 2, None),  # noise, not drift
    ],
)
def test_drift_within_windows(replay: Replay, walls: list[list[int]], flag: str | None) -> None:
    one = replay(walls)
    assert ("thermal_or_drift" in one.noise.flags) is (flag is not None)
    assert one.latency.trend is not None
    assert abs(one.latency.trend) < 0.25


def test_the_99_9th_percentile_needs_its_samples(replay: Replay) -> None:
    draw = np.random.default_rng(0)
    walls = [(1e6 * np.exp(draw.normal(0, 0.1, n))).astype(int).tolist() for n in (2212, 2212, 2211, 2212)]
    assert replay(walls[:3]).latency.p999_es_ms is None
    full = replay(walls).latency
    assert full.p999_es_ms is not None
    assert full.p99_es_ms is not None
    assert full.p90_es_ms is not None
    assert full.p90_es_ms < full.p99_es_ms < full.p999_es_ms < full.max_ms


@pytest.mark.slow
def test_twenty_real_comparisons_of_a_model_with_itself(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    effort = rounds.Effort(5, 5, 0.02, 60, 60, 0.2, 3, 0.4, 64, 30, False, True)
    monkeypatch.setitem(rounds.EFFORTS, "standard", effort)
    bundle = make("twin", 768, 3)
    ends = [profile([bundle], probe(), out=None, mode="standard", seed=i, baseline=bundle)[0].noise for i in range(20)]
    held = sum(n.aa_ratio_ci95 is not None and n.aa_ratio_ci95[0] <= 1 <= n.aa_ratio_ci95[1] for n in ends)
    assert held >= 17  # of 20 at 95 %, fewer come by chance once in 60


def test_one_thread_is_kept_on_one_core_and_the_parent_on_all() -> None:
    before = os.sched_getaffinity(0)
    device = probe()
    assert len(rounds.pinned(device).cpus or ()) == 1
    assert os.sched_getaffinity(0) == before
    assert rounds.pinned(device.model_copy(update={"threads": 2})).cpus == device.cpus
