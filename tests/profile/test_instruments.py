from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetl.device import Power, probe
from edgetl.measure import instruments as shelf
from edgetl.measure import rounds, turns
from edgetl.measure.instruments import Ina3221, Rapl, Readings, instruments
from edgetl.measure.measurement import Measurement
from edgetl.measure.probing import Sample
from edgetl.measure.summary import Surroundings
from edgetl.stages.profile import profile


def fill(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    """A sysfs with two packages, of which the second counter wraps at 1000 microjoules, and a part of the first."""
    zones = tmp_path / "class" / "powercap"
    fill(zones / "intel-rapl:0", name="package-0", energy_uj=100, max_energy_range_uj=10**12)
    fill(zones / "intel-rapl:1", name="package-1", energy_uj=900, max_energy_range_uj=1000)
    fill(zones / "intel-rapl:0:0", name="core", energy_uj=50, max_energy_range_uj=10**12)
    return tmp_path


def test_rapl_adds_packages_and_follows_a_counter_that_wraps(rapl: Path) -> None:
    meter = Rapl.found(rapl)
    assert meter is not None
    assert meter.joules() == 0
    fill(rapl / "class/powercap/intel-rapl:0", energy_uj=2_000_100)
    fill(rapl / "class/powercap/intel-rapl:1", energy_uj=100)
    assert meter.joules() == pytest.approx(2.0002)
    fill(rapl / "class/powercap/intel-rapl:1", energy_uj=200)
    assert meter.joules() == pytest.approx(2.0003)


def test_no_meter_is_none(tmp_path: Path) -> None:
    assert Rapl.found(tmp_path) is None
    assert Ina3221.found(tmp_path) is None
    fill(tmp_path / "class" / "powercap" / "intel-rapl:0", name="package-0")  # its counter is for root only
    assert Rapl.found(tmp_path) is None
    fill(tmp_path / "class" / "hwmon" / "hwmon0", name="ina3221", in1_label="VDD_CPU", in1_input=5000, curr1_input=1)
    assert Ina3221.found(tmp_path) is None, "one rail of several is not the board"
    assert instruments(probe(), tmp_path).meter is None
    assert instruments(probe(), tmp_path).period_s is None


def test_ina3221_sums_up_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = tmp_path / "class" / "hwmon" / "hwmon3"
    fill(chip, name="ina3221", in1_label="VDD_CPU", in2_label="VDD_IN", in2_input=5000, curr2_input=2000)
    clock = iter([10.0, 11.0, 13.0])
    monkeypatch.setattr(shelf, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    meter = Ina3221.found(tmp_path)
    assert meter is not None
    assert meter.joules() == pytest.approx(10)  # 10 W for a second
    fill(chip, curr2_input=4000)
    assert meter.joules() == pytest.approx(10 + 30)  # from 10 to 20 W in two seconds


def test_the_meter_that_a_device_names_is_the_one_that_is_read(rapl: Path) -> None:
    found = instruments(probe(), rapl, idle_s=0.01)
    assert found.meter is not None
    assert found.meter.source == "rapl"
    assert found.idle_w == 0
    other = probe().model_copy(update={"power": Power(energy="ina3221")})
    assert instruments(other, rapl).meter is None


def test_energy_between_two_moments() -> None:
    seen = Readings([0, 100, 200, 300], [0.0, 1.0, 3.0, 3.0])
    assert seen.joules(50, 150) == pytest.approx(1.5)
    assert seen.joules(0, 300) == 3
    assert seen.joules(50, 301) is None
    assert Readings().joules(0, 1) is None
    assert Readings([0, 100], [0.0, float("nan")]).joules(0, 100) is None


def test_energy_for_each_inference(replay: Callable[..., Measurement]) -> None:
    around = Surroundings(0.0, False, None, False, idle_w=3.0, meter="rapl")
    one = replay([[5] * 64] * 3, around, joules=6.4, seconds=2.0).energy
    assert one is not None
    assert (one.gross_j_per_inf, one.source) == (pytest.approx(0.1), "rapl")
    assert one.net_j_per_inf == pytest.approx((6.4 - 6.0) / 64)
    assert replay([[5] * 64] * 3, around, joules=None).energy is None
    assert replay([[5] * 64] * 3, joules=6.4).energy is None


@pytest.mark.usefixtures("brief")
def test_energy_of_real_processes(make: Callable[..., Path], rapl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[Sample] = []

    def kept(*given: Any) -> Iterator[tuple[str, Sample | None]]:
        for key, sample in turns.one_round(*given):
            samples.extend([sample] if sample else [])
            yield key, sample

    monkeypatch.setattr(rounds, "one_round", kept)
    monkeypatch.setitem(rounds.EFFORTS, "quick", replace(rounds.EFFORTS["quick"], window_s=0.3))
    counter, over = rapl / "class/powercap/intel-rapl:0/energy_uj", threading.Event()

    def count() -> None:
        start = time.monotonic()
        while not over.wait(0.01):
            fresh = counter.with_name("new")
            fresh.write_text(str(100 + round(8e6 * (time.monotonic() - start))))
            fresh.replace(counter)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        found = instruments(probe(), rapl, idle_s=0.3)
        monkeypatch.setattr("edgetl.measure.rounds.instruments", lambda _: replace(found, idle_w=8.0))
        one = profile([make("energetic")], probe(), out=None)[0]
    finally:
        over.set()
        counting.join()
    assert found.idle_w == pytest.approx(8, rel=0.5)  # the counter is late where the machine is busy
    assert one.energy is not None
    watts = one.energy.gross_j_per_inf * sum(len(s.wall) for s in samples) / sum(s.seconds for s in samples)
    assert watts == pytest.approx(8, rel=0.5)
    assert abs(one.energy.net_j_per_inf) < one.energy.gross_j_per_inf
