from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetl import gates, machine
from edgetl.bundle import open_bundle, read_golden, write_bundle
from edgetl.device import Limits, Runtime, Storage, Thermal, probe
from edgetl.errors import BadHost, GateMissed
from edgetl.measure import conditions, noise
from edgetl.measure.instruments import NONE, Instruments, Readings, clocks
from edgetl.measure.measurement import Measurement
from edgetl.stages.profile import judge, profile

Maker = Callable[..., Path]
Replay = Callable[..., Measurement]


def fill(root: Path, **files: object) -> None:
    """Write files below a root; two underscores are a slash."""
    for name, value in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.fixture
def sys_root(tmp_path: Path) -> Path:
    """A /sys as a board with two cores shows it, whose first runs slower."""
    cpu = tmp_path / "devices/system/cpu"
    for core, khz in ((0, 1_800_000), (1, 2_400_000)):
        fill(cpu / f"cpu{core}/cpufreq", scaling_governor="ondemand", scaling_max_freq=2_400_000, scaling_cur_freq=khz)
        fill(cpu / f"cpu{core}/thermal_throttle", core_throttle_count=3, package_throttle_count=4)
    fill(tmp_path / "class/thermal/thermal_zone0", temp=61_500)
    fill(tmp_path / "class/thermal/thermal_zone1", temp=48_000)
    fill(tmp_path / "class/hwmon/hwmon2", curr1_crit_alarm=0, curr1_max_alarm=0)
    return tmp_path


def test_what_the_kernel_shows_before_and_after(sys_root: Path) -> None:
    before = noise.state(sys_root)
    assert (before.throttle_count, before.temp_c, before.policy) == (14, 61.5, ("ondemand", 2400.0))
    assert not noise.throttled(before, noise.state(sys_root))
    fill(sys_root / "class/hwmon/hwmon2", curr1_max_alarm=1)
    assert noise.throttled(before, noise.state(sys_root)), "a rail beyond its limit"
    fill(sys_root / "class/hwmon/hwmon2", curr1_max_alarm=0)
    fill(sys_root / "devices/system/cpu/cpu1/thermal_throttle", core_throttle_count=4)
    assert noise.throttled(before, noise.state(sys_root))
    fill(sys_root / "devices/system/cpu/cpu1/cpufreq", scaling_max_freq=1_500_000)
    after = noise.state(sys_root)
    assert conditions.around(before, after, probe(), NONE).policy
    assert not conditions.around(before, before, probe(), NONE).policy


def test_a_machine_that_shows_nothing_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    state = noise.state(tmp_path)
    assert (state.throttle_count, state.throttle_word, state.temp_c, state.policy) == (0, None, None, (None, None))
    assert (machine.turbo(tmp_path), machine.clock_mhz(0, tmp_path)) == (None, None)
    assert clocks(probe(), tmp_path) is None
    assert not noise.readable("vcgencmd", tmp_path)
    assert not noise.readable("sysfs", tmp_path)


def test_turbo(tmp_path: Path) -> None:
    fill(tmp_path, cpufreq__boost=1)
    assert machine.turbo(tmp_path) is True
    fill(tmp_path, intel_pstate__no_turbo=1)
    assert machine.turbo(tmp_path) is False


def test_the_firmware_of_a_raspberry_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert noise.state(tmp_path).throttle_word == "0x50005"
    assert noise.throttled(noise.state(tmp_path), noise.state(tmp_path))
    fill(tmp_path, **{"devices__platform__soc@107c000000__soc@107c000000:firmware__get_throttled": "0x0"})
    assert noise.state(tmp_path).throttle_word == "0x0", "what the kernel shows needs no command"
    tool.write_text("#!/bin/sh\necho VCHI initialization failed; exit 255\n")
    assert noise.state(tmp_path / "elsewhere").throttle_word is None


def test_clocks_are_read_while_a_process_runs(sys_root: Path) -> None:
    shown = clocks(probe().model_copy(update={"cpus": (0, 1), "threads": 2}), sys_root)
    assert shown is not None
    watch, seen = Instruments(clocks=shown), Readings()
    seen.take(watch, 1)
    seen.take(watch, 1)  # too early for another
    ((when, mhz),) = seen.clocks
    assert (mhz, watch.period_s) == (1800, 0.25)
    assert (seen.mhz(when, when), seen.mhz(when + 1, when + 2)) == ([1800], [])
    for one_thread in ((1,), (0, 1)):  # the other core may idle
        only = clocks(probe().model_copy(update={"cpus": one_thread}), sys_root)
        assert only is not None
        assert only.mhz() == 2400


@pytest.mark.parametrize(
    ("changes", "around", "flags"),
    [
        ({"mhz": [2400, 2390]}, {}, []),
        ({"mhz": [2400, 2400, 1800]}, {}, ["frequency"]),
        ({}, {"policy": True}, ["clock_policy"]),
        ({}, {"hot": True}, ["hot_start"]),
    ],
)
def test_clocks_that_move_make_a_measurement_noisy(
    replay: Replay, changes: dict[str, object], around: dict[str, bool], flags: list[str]
) -> None:
    one = replay([[5] * 64] * 3, conditions.Surroundings(0.0, False, None, False, **around), **changes)  # type: ignore[arg-type]
    assert (one.noise.flags, one.verdict) == (flags, "noisy" if flags else "clean")
    mhz = changes.get("mhz")
    assert one.noise.clock_mhz_min == (min(mhz) if isinstance(mhz, list) else None)


def test_a_hot_device_cools_down_before_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="edgetl")
    monkeypatch.setattr(conditions, "COOL_S", 0.01)
    cool, degrees = noise.state(), iter([70.0, 65.0, 59.0])
    monkeypatch.setattr(noise, "temperature", lambda: next(degrees))
    monkeypatch.setattr(noise, "state", lambda: replace(cool, temp_c=59.0))
    device = probe().model_copy(update={"thermal": Thermal(max_start_temp_c=60, cooldown_s=30)})
    assert not conditions.around(conditions.begin(device), cool, device, NONE).hot
    assert not list(degrees), "three looks"
    monkeypatch.setattr(noise, "temperature", lambda: 70.0)
    monkeypatch.setattr(noise, "state", lambda: replace(cool, temp_c=70.0))
    brief = device.model_copy(update={"thermal": Thermal(max_start_temp_c=60, cooldown_s=0.05)})
    assert conditions.around(conditions.begin(brief), cool, brief, NONE).hot


def test_a_named_throttle_probe_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(noise, "readable", lambda _: False)
    conditions.begin(probe().model_copy(update={"thermal": Thermal(throttle_probe="vcgencmd")}))
    assert "throttling cannot be read here (vcgencmd)" in caplog.text


def test_another_runtime_than_the_files_is_told(caplog: pytest.LogCaptureFixture) -> None:
    device = probe().model_copy(update={"runtimes": (Runtime(name="onnxruntime", version=">=1.20,<1.30"),)})
    conditions.warn_of_version(device, "onnxruntime 1.22.1")
    conditions.warn_of_version(probe(), "onnxruntime 1.31.1")
    assert not caplog.text
    conditions.warn_of_version(device, "onnxruntime 1.31.1")
    assert "local is here with onnxruntime 1.31.1, its file says >=1.20,<1.30" in caplog.text


def test_a_devices_own_limits_are_judged(replay: Replay) -> None:
    one = replay([[5_000_000] * 64] * 3)

    def limited(**changes: object) -> Measurement:
        return one.model_copy(update={"device": one.device.model_copy(update=changes)})

    judge([], [limited(limit_p90_ms=6.0, limit_bundle_bytes=10**9)], "p90_ms=7")
    with pytest.raises(GateMissed, match="p90_ms on local: 5, limit 4"):
        judge([], [limited(limit_p90_ms=4.0)], "p90_ms=7")
    with pytest.raises(GateMissed, match="p90_ms on local: 5, limit 3"):
        judge([], [limited(limit_p90_ms=4.0)], "p90_ms=3")
    with pytest.raises(GateMissed, match=r"replayed takes .* MB, and local has 0\.0"):
        judge([], [limited(limit_bundle_bytes=1)])


def test_a_devices_own_limit_holds_for_the_students_of_a_run() -> None:
    asked = {"local": {"p90_ms": 9, "size_mb": 3}}
    assert gates.with_own(asked, {"local": 7.0, "rpi5": 5.0, "t4": None}) == {
        "local": {"p90_ms": 7, "size_mb": 3}, "rpi5": {"p90_ms": 5}
    }  # fmt: skip
    assert gates.with_own(asked, {"local": 11.0}) == asked
    assert gates.with_own({"local": {"p90_ms": None}}, {"local": 11.0}) == {"local": {"p90_ms": 11}}


@pytest.mark.usefixtures("brief")
def test_the_files_limits_are_kept_with_the_measurement(make: Maker) -> None:
    own = {"limits": Limits(latency_p90_ms=3.5), "storage": Storage(budget_bytes=12345)}
    (one,) = profile([make("own", 32, 1)], probe().model_copy(update=own), out=None)
    assert (one.device.limit_p90_ms, one.device.limit_bundle_bytes) == (3.5, 12345)
    assert one.accuracy is not None
    assert one.accuracy.parity.max_abs is not None
    assert one.accuracy.parity.max_abs <= one.accuracy.parity.limit
    assert one.accuracy.parity.n == 4 * one.run.rounds
    assert noise.WRONG not in one.noise.flags


@pytest.mark.usefixtures("brief")
def test_a_fast_wrong_answer_is_no_measurement(make: Maker, tmp_path: Path) -> None:
    right = open_bundle(make("liar", 32, 1))
    golden = read_golden(right)
    wrong = replace(golden, logits=golden.logits + np.float32(0.5))
    write_bundle(tmp_path / "wrong", right.manifest, {"model.onnx": right.folder / "model.onnx"}, wrong)
    (one,) = profile([tmp_path / "wrong"], probe(), out=None)
    assert one.verdict == "invalid"
    assert noise.WRONG in one.noise.flags
    assert one.accuracy is not None
    assert one.accuracy.parity.max_abs == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(BadHost, match="wrong_answers") as error:
        judge([], [one])
    assert "edgetl verify" in error.value.fix


def test_an_answer_that_is_not_finite_is_wrong(replay: Replay) -> None:
    one = replay([[5] * 64] * 3, checked=4)
    assert (one.verdict, one.noise.flags) == ("invalid", [noise.WRONG])
    assert one.accuracy is not None
    assert one.accuracy.parity.max_abs is None
