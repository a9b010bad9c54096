"""Measuring processes that are real in all but their clocks: no test depends on how busy the machine is."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgetl.measure import noise, probing, rounds, throughput, turns
from edgetl.measure._probe import Job
from edgetl.measure.instruments import NONE, Instruments
from edgetl.measure.probing import Sample
from edgetl.measure.turns import Start

if TYPE_CHECKING:
    import pytest

BRIEF = rounds.Effort(2, 2, 0.02, 20, 45, 0.0, 3, 0.02, 64, 30, False)
"""Two short rounds."""

CALL_NS, MAC_NS, INT8, JITTER = 50_000, 2.0, 0.5, 0.01
"""What a call costs and a multiplication, which share of it where that is of integers, and by how much times vary."""


class Patch(NamedTuple):
    """What stands in for an attribute of a module or for an entry of a table."""

    owner: object
    name: str
    value: object


def patches() -> Iterator[Patch]:
    """What gives the measuring of this process short rounds, times by the artifact's cost and a quiet machine."""
    found = {"quick": BRIEF, "standard": replace(BRIEF, control=True), "certify": rounds.EFFORTS["certify"]}
    yield Patch(rounds, "EFFORTS", found)
    yield Patch(rounds, "one_round", one_round)
    yield Patch(throughput, "probe", probe)
    yield Patch(noise, "state", quiet)


def wind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock of one test."""
    for patch in patches():
        monkeypatch.setattr(*patch)


def one_round(
    starts: Mapping[str, Start], watch: Instruments, draw: random.Random | None
) -> Iterator[tuple[str, Sample | None]]:
    """Real processes, with the times that their artifacts' costs make."""
    for key, sample in turns.one_round(starts, watch, draw):
        yield key, sample and clocked(sample, starts[key].job, starts[key].pad)


def probe(job: Job, pad: int, timeout_s: float, watch: Instruments = NONE) -> Sample | None:
    """One real process, with the times that its artifact's cost makes."""
    found = probing.probe(job, pad, timeout_s, watch)
    return found and clocked(found, job, pad)


def clocked(found: Sample, job: Job, pad: int) -> Sample:
    """What a process saw, by a clock that goes by its artifact's cost."""
    manifest = json.loads((Path(job.bundle) / "manifest.json").read_text())
    macs = manifest["cost"]["macs"] * (INT8 if manifest["precision"].startswith("int8") else 1)
    draw = random.Random(f"{macs} {pad}")
    # As many as a window has at least: with more on a quick machine, one in twenty controls would differ by chance.
    walls = [round((CALL_NS + MAC_NS * macs) * draw.uniform(1, 1 + JITTER)) for _ in found.wall[: BRIEF.window_n]]
    return replace(found, wall=walls, cpu=walls, turns=(), switches=0, others=0)


def quiet(*_given: object) -> noise.State:
    """A machine on which nothing else runs."""
    return noise.State(steal=0.0, total=1.0, throttle_count=0, throttle_word=None, battery=False)
