"""Processes of a round that take turns."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgetl.bundle import open_bundle
from edgetl.device import Device, probe
from edgetl.errors import BadHost
from edgetl.measure import rounds, summary, turns
from edgetl.measure.instruments import NONE, Instruments
from edgetl.measure.probing import Sample
from edgetl.measure.summary import Subject
from edgetl.measure.turns import Start
from edgetl.stages.profile import profile

Maker = Callable[..., Path]


@pytest.fixture
def subjects(make: Maker, tmp_path: Path) -> dict[str, Subject]:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, pixel_values=np.random.default_rng(0).random((4, 1, 8, 8), np.float32))
    found = {}
    for name, width in (("small", 64), ("large", 512)):
        found[name] = Subject(open_bundle(make(name, width)), name, name, inputs, {"pixel_values": [1, 1, 8, 8]}, 4)
    return found


@pytest.fixture
def starts(subjects: dict[str, Subject]) -> dict[str, Start]:
    effort = replace(rounds.EFFORTS["quick"], window_s=0.3, warmup_s=0.0)
    return {name: Start(rounds.job_of(one, probe(), effort), 7, 60.0) for name, one in subjects.items()}


def test_processes_alternate_until_every_window_is_full(starts: dict[str, Start]) -> None:
    found = dict(turns.one_round(starts, NONE, random.Random(0)))
    spans = sorted((*turn, name) for name, one in found.items() if one for turn in one.turns)
    assert all(end <= begin for (_, end, *_), (begin, *_) in pairwise(spans)), "two ran at once"
    names = [name for *_, name in spans]
    cycles = [set(names[i : i + 2]) for i in range(0, len(names) - 1, 2)]
    assert sum(cycle == set(starts) for cycle in cycles) >= len(cycles) - 1  # the last turn of a window is a short one
    for one in found.values():
        assert one is not None
        assert len(one.turns) >= 5
        assert sum(calls for _, _, calls in one.turns) == len(one.wall) == len(one.cpu)
        assert one.seconds == pytest.approx(sum(end - begin for begin, end, _ in one.turns) / 1e9)
        assert 0.3 <= one.seconds < 1
        assert all(end - begin >= turns.TURN_S * 1e9 for begin, end, _ in one.turns[:-1])
        assert one.pss is None, "pages that are shared with the other are no property of one"


def test_one_after_the_other_has_one_turn_each(starts: dict[str, Start]) -> None:
    first, second = (one for _, one in turns.one_round(starts, NONE, None) if one)
    assert (len(first.turns), len(second.turns)) == (1, 1)
    assert first.turns[0][1] < second.turns[0][0]


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, True),
        ({"kind": "cuda"}, False),
        ({"memory": {"total_bytes": 10**9, "limit_bytes": 10**8}}, False),
    ],
)
def test_turns_are_for_cpus_without_a_limit_of_memory(
    subjects: dict[str, Subject], changes: dict[str, object], shared: bool
) -> None:
    device = Device.model_validate({**probe().model_dump(by_alias=True), **changes})
    assert rounds.side_by_side(subjects, device) is shared
    assert not rounds.side_by_side({"small": subjects["small"]}, device), "alone there is nobody to take turns with"


def test_processes_that_do_not_fit_together_run_one_by_one(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=500 * 10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert not rounds.side_by_side(subjects, probe())


def hurt(monkeypatch: pytest.MonkeyPatch, victim: Start, number: int) -> set[psutil.Process]:
    """Send a process a signal once it has had two turns; return all that take turns."""
    seen: list[int] = []
    begun: set[psutil.Process] = set()
    real = turns._Guest.takes_turn

    def takes_turn(guest: turns._Guest, watch: Instruments) -> bool:
        seen.append(guest.one.process.pid)
        begun.add(psutil.Process(seen[-1]))
        again = real(guest, watch)
        if guest.one.job.bundle == victim.job.bundle and seen.count(seen[-1]) == 2:
            os.kill(seen[-1], number)
        return again

    monkeypatch.setattr(turns._Guest, "takes_turn", takes_turn)
    return begun


def test_a_crash_between_turns_ends_all_with_its_reason(
    starts: dict[str, Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = hurt(monkeypatch, starts["small"], signal.SIGSEGV)
    with pytest.raises(BadHost, match=r"crashed while running \(SIGSEGV\)"):
        list(turns.one_round(starts, NONE, random.Random(0)))
    assert len(begun) == 2
    assert not [one for one in begun if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_a_process_that_hangs_is_not_waited_for_and_the_others_finish(
    starts: dict[str, Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = hurt(monkeypatch, starts["small"], signal.SIGSTOP)
    monkeypatch.setattr(turns, "GRACE_S", 0.1)
    monkeypatch.setattr("edgetl.measure.probing.GRACE_S", 0.1)
    brief = {name: replace(start, timeout_s=10.0 if name == "large" else 2.0) for name, start in starts.items()}
    found = dict(turns.one_round(brief, NONE, random.Random(0)))
    assert found["small"] is None
    assert found["large"] is not None
    assert len(found["large"].wall) >= 64
    assert not [one for one in begun if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.usefixtures("brief")
def test_a_file_that_cannot_be_opened_ends_the_round_with_its_reason(make: Maker) -> None:
    good, bad = make("good"), make("bad", needs=("onnxruntime", ">=99"))
    with pytest.raises(BadHost, match="onnxruntime"):
        profile([good, bad], probe(), out=None)


def test_a_ratio_is_that_of_one_cycle_however_the_machine_changes(
    replay: Callable[..., object], starts: dict[str, Start]
) -> None:
    """The machine is slow in more than half of one's calls, but not of the other's."""
    speeds = [1, 1, 1, 3, 3, 3, 3]
    calls = {"base": [10, 10, 10, 2, 2, 2, 2], "other": [2, 2, 2, 10, 10, 10, 10]}
    cost = {"base": 1000, "other": 500}
    real = dict(turns.one_round(starts, NONE, None))["small"]
    assert real is not None
    made: dict[str, Sample] = {}
    for name, counts in calls.items():
        times = [cost[name] * speed for speed, count in zip(speeds, counts, strict=True) for _ in range(count)]
        made[name] = replace(real, wall=times, cpu=times, turns=[(0, 1, count) for count in counts])
    base, other = made["base"], made["other"]
    assert summary.medians([other], cpu=True)[0] / summary.medians([base], cpu=True)[0] > 1
    assert summary.ratios([base], [other], cpu=True) == [pytest.approx(0.5)]
    whole = [replace(one, turns=()) for one in (base, other)]
    assert summary.ratios([whole[0]], [whole[1]], cpu=True)[0] > 1


def test_energy_and_clocks_are_read_within_the_turns_of_each(
    starts: dict[str, Start], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A meter that runs five times as fast in the turns of the large network."""

    class Meter:
        source = "rapl"

        def __init__(self) -> None:
            self.watts, self.total, self.since = 2.0, 0.0, turns.time.perf_counter()

        def joules(self) -> float:
            now = turns.time.perf_counter()
            self.total, self.since = self.total + self.watts * (now - self.since), now
            return self.total

    meter = Meter()
    real = turns._Guest.takes_turn

    def takes_turn(guest: turns._Guest, watch: Instruments) -> bool:
        meter.joules()
        meter.watts = 10.0 if guest.one.job.bundle == starts["large"].job.bundle else 2.0
        return real(guest, watch)

    monkeypatch.setattr(turns._Guest, "takes_turn", takes_turn)
    found = dict(turns.one_round(starts, Instruments(meter=meter), random.Random(0)))
    for name, watts in (("small", 2.0), ("large", 10.0)):
        one = found[name]
        assert one is not None
        assert one.joules is not None
        assert one.joules / one.seconds == pytest.approx(watts, rel=0.1)
