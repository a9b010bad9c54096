from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgetl._peak import Job, rate
from edgetl.cli import app
from edgetl.device import load_device, probe, read_device
from edgetl.device_file import write_calibrated
from edgetl.errors import BadHost, OutOfResources
from edgetl.measure import noise
from edgetl.stages import calibrate as stage
from edgetl.stages.calibrate import Effort, calibrate, lines

SMALL = Effort(rounds=2, most=2, window_s=0.01, side=64, streamed=1 << 20)


def seconds(call: Callable[[], object]) -> float:
    def once() -> int:
        before = time.process_time_ns()
        call()
        return time.process_time_ns() - before

    return min(once() for _ in range(20)) / 1e9


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop's battery or heat is not what these tests are about."""
    quiet = replace(noise.state(), throttle_count=0, throttle_word=None, battery=False)
    monkeypatch.setattr(noise, "state", lambda: quiet)


def test_a_calibrated_machine_has_measured_rates_and_noise(tmp_path: Path) -> None:
    device = calibrate(probe(), SMALL)
    roof, floor = device.roofline, device.noise
    assert roof is not None
    assert floor is not None
    assert (roof.source, roof.threads) == ("measured", device.threads)
    assert set(roof.peak) == {"fp32_gflops", "int8_gops"}
    assert roof.bandwidth_gbs
    for name, value in {**roof.peak, "bandwidth_gbs": roof.bandwidth_gbs}.items():
        low, high = roof.ci95[name]
        assert 0 < low <= value <= high
    assert floor.aa_ratio_ci95[0] <= floor.aa_ratio_ci95[1]
    assert floor.mde >= 0
    assert [line[0] for line in lines(device)][:2] == ["fp32_gflops", "int8_gops"]
    write_calibrated(device, tmp_path / "here.yaml")
    assert read_device(tmp_path / "here.yaml").roofline == roof


def test_rates_are_of_the_size_that_numpy_reaches() -> None:
    """A wrong count of operations or bytes, or a wrong unit, would be off by more."""
    a, big = np.ones((256, 256), np.float32), np.ones(16 << 20, np.float32)
    assert 0.1 < rate(Job("fp32", 256, 1, None, 0.1)) / (2 * 256**3 / seconds(lambda: a @ a) / 1e9) < 10
    assert 0.1 < rate(Job("stream", big.nbytes, 1, None, 0.1)) / (big.nbytes / seconds(big.max) / 1e9) < 10


def test_a_launch_costs_less_than_a_millisecond() -> None:
    seen = rate(Job("launch", 16, 1, None, 0.05))
    assert math.isfinite(seen)
    assert seen < 1000


@pytest.mark.parametrize("name", ["h200", "jetson-orin-nano-8g", "android"])
def test_only_processors_are_calibrated(name: str) -> None:
    with pytest.raises(BadHost, match=name):
        calibrate(load_device(name), SMALL)


def test_a_device_that_is_elsewhere_is_not_calibrated_here() -> None:
    elsewhere = probe().model_copy(update={"arch": probe().arch.model_copy(update={"isa": "mips"})})
    with pytest.raises(BadHost, match="mips"):
        calibrate(elsewhere, SMALL)
    with pytest.raises(BadHost, match="mips") as error:
        calibrate(elsewhere.model_copy(update={"link": "ssh://pi@board"}), SMALL)
    assert "on local itself" in error.value.fix
    with pytest.raises(BadHost, match="behind ssh://pi@board"):
        calibrate(probe().model_copy(update={"link": "ssh://pi@board"}), SMALL)


def test_a_working_set_beyond_the_memory_is_refused() -> None:
    with pytest.raises(OutOfResources, match="MB"):
        calibrate(probe(), Effort(streamed=1 << 50))


@pytest.mark.parametrize("change", [{"throttle_count": 1}, {"throttle_word": "0x4"}, {"battery": True}])
def test_a_slowed_machine_gives_no_peaks(change: dict[str, Any]) -> None:
    before = noise.state()
    stage._undisturbed(before, before)
    with pytest.raises(BadHost) as error:
        stage._undisturbed(before, replace(before, **change))
    assert error.value.fix


def test_a_failing_process_ends_in_a_fix() -> None:
    with pytest.raises(BadHost, match="int8_gops") as error:
        stage._rate("int8_gops", Job("int8", -1, 1, None, 0.01), 0)
    assert "doctor" in error.value.fix


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "Effort", lambda: SMALL)
    done = CliRunner().invoke(app, ["devices", "calibrate", "--json"])
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["file"] == "local.yaml"
    assert said["device"]["roofline"]["source"] == "measured"
    assert load_device("./local.yaml").roofline is not None
    before = (tmp_path / "local.yaml").read_bytes()
    again = CliRunner().invoke(app, ["devices", "calibrate"])
    assert again.exit_code != 0
    assert (tmp_path / "local.yaml").read_bytes() == before


@pytest.mark.slow
def test_two_calibrations_agree() -> None:
    one, two = (calibrate(probe()).roofline for _ in range(2))
    assert one is not None
    assert two is not None
    assert two.peak["fp32_gflops"] == pytest.approx(one.peak["fp32_gflops"], rel=0.25)
    assert one.peak["int8_gops"] > one.peak["fp32_gflops"]
