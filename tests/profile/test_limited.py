from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl import limits
from edgetl.device import probe
from edgetl.errors import BadHost, OutOfResources
from edgetl.limits import limited
from edgetl.stages.profile import profile

STARVED = """
import os, resource, signal
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
PLUGIN = Target
"""
ADDRESSES = "resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28)); return bytearray(1 << 30)"
KILLED = "next(Path({root!r}).glob('edgetl-*')).joinpath('memory.events').write_text('oom_kill 1'); os.kill(0, 9)"


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
    with pytest.raises(BadHost, match="cannot be limited here"):
        profile([make("tiny", 64, 1)], limited(probe(), "memory=300MB"), out=None, mode="quick")
