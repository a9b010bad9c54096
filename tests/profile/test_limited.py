from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.bundle import open_bundle
from edgetl.device import probe
from edgetl.errors import BadHost, OutOfResources
from edgetl.measure import containers, limits, rounds
from edgetl.measure.limits import limited
from edgetl.measure.probing import Sample
from edgetl.measure.summary import Subject
from edgetl.stages.profile import profile

STARVED = """
import numpy, os, resource, signal
from dataclasses import dataclass
from pathlib import Path
@dataclass(frozen=True)
class Target:
    use = "starved"
    precision = "fp32"
    @staticmethod
    def runtime(): return "json 1.0"
    @staticmethod
    def open(file, options, threads):
        {body}
class Fine:
    provider = "CPUExecutionProvider"
    def run(self, feed): return {{"logits": numpy.zeros((len(next(iter(feed.values()))), 10), numpy.float32)}}
    def close(self): pass
PLUGIN = Target
"""
ADDRESSES = "resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28)); return bytearray(1 << 30)"
KILLED = """group = next(Path({root!r}).glob('edgetl-*'), None)
        if group is None: return Fine()
        group.joinpath('memory.events').write_text('oom_kill 1'); os.kill(0, 9)"""


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("how", ["address space", "kernel"])
def test_a_process_without_memory_ends_the_profile(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    root = tmp_path / "cgroup"
    (tmp_path / "targets").mkdir()
    body = ADDRESSES if how == "address space" else KILLED.format(root=str(root))
    (tmp_path / "targets" / "starved.py").write_text(STARVED.format(body=body))
    monkeypatch.setenv("EDGETL_PLUGINS", str(tmp_path))
    root.mkdir()
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.controllers"):
        (root / name).write_text("memory\n")
    monkeypatch.setattr(limits, "CGROUPS", root)
    bundle = make("starved", target="starved", needs=("json", ">=1.0"))
    with pytest.raises(OutOfResources, match=r"no memory|memory limit of 300.0 MB"):
        profile([bundle], limited(probe(), "memory=300MB"), out=None, mode="quick")


@pytest.mark.usefixtures("brief")
def test_a_limit_that_cannot_be_kept_is_no_measurement(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setenv("EDGETL_IMAGE", "")
    with pytest.raises(BadHost, match="cannot be limited here"):
        profile([make("tiny", 64, 1)], limited(probe(), "memory=300MB"), out=None, mode="quick")


@pytest.mark.usefixtures("brief")
def test_a_container_measures_as_a_process_does(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "docker"
    run = '[ "$DOCKER_HOST" = unix:///there ] && while [ "$1" != board ]; do shift; done; shift; exec "$@"'
    tool.write_text(f'#!/bin/sh\n[ "$1" = run ] || exit 0\n{run}\n')
    tool.chmod(0o755)
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(containers, "TOOLS", ("docker",))
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("EDGETL_IMAGE", "board")
    monkeypatch.setenv("DOCKER_HOST", "unix:///there")
    (one,) = profile([make("boxed", 64, 1)], limited(probe(), "memory=300MB"), out=None, mode="quick")
    assert (one.device.profile, one.run.rounds) == ("local-300mb", 2)
    assert one.accuracy is not None
    assert one.memory.budget_bytes == 300_000_000
    assert one.memory.fits is not None


@pytest.mark.parametrize(("slower", "runtime", "fits"), [(1.0, "a 1", True), (1.3, "a 1", False), (1.0, "a 2", None)])
def test_what_fits_runs_as_fast_as_without_the_limit(
    make: Callable[..., Path], slower: float, runtime: str, fits: bool | None
) -> None:
    subject = Subject(open_bundle(make("fitting")), "0" * 64, "x", Path(), {}, 1)
    within, free = process(slower, "a 1"), process(1.0, runtime)
    assert rounds._fits(subject, {"0" * 64: [within] * 3, f"unlimited {'0' * 64}": [free, None, free]}) is fits
    assert rounds._fits(subject, {"0" * 64: [within] * 3}) is None


def process(times: float, runtime: str) -> Sample:
    return Sample(
        runtime=runtime, provider="x", wall=[round(1e6 * times)] * 9, cpu=[10**6] * 9, seconds=1.0, load_ns=1,
        first_ns=1, process_ns=1, base=1, load_peak=1, peak=1, steady_rss=1, growth=0.0, warm=1, steady=None,
        switches=0, others=0,
    )  # fmt: skip
