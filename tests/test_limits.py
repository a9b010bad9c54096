from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgetl import limits
from edgetl.device import probe
from edgetl.errors import BadHost, BadInput, OutOfResources
from edgetl.limits import Group, enclosed, limited


def test_a_limited_device_says_so_in_its_name() -> None:
    device = limited(probe(), "memory=512MB,cpus=1")
    assert device.name == "local-512mb-1cpu"
    assert device.memory.limit_bytes == 512_000_000
    assert len(device.cpus or ()) == 1
    assert limited(probe(), "memory=0.25GiB").memory.limit_bytes == 1 << 28
    assert limited(probe(), None) == probe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory=", "'memory=' is not possible"),
        ("memory=512XB", "not possible"),
        ("memory=-1MB", "not possible"),
        (f"memory={'9' * 400}MB", "not possible"),
        ("memory=512", "so little memory"),
        ("memory=1MB", "so little memory"),
        ("cpus=0", "not possible"),
        ("cpus=1.5", "not possible"),
        ("cpus=1MB", "not possible"),
        ("cpu=1", "no limit 'cpu'"),
        ("", "no limit ''"),
    ],
)
def test_what_is_no_limit(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=re.escape(words)):
        limited(probe(), text)


def test_more_cores_than_there_are() -> None:
    with pytest.raises(BadHost, match="usable cpus"):
        limited(probe(), "cpus=4096")
    with pytest.raises(BadInput, match="which cpus"):
        limited(probe().model_copy(update={"cpus": None, "link": "ssh://board"}), "cpus=1")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree as the kernel shows it where groups may be made."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    (tmp_path / "cgroup.procs").write_text("")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    return tmp_path


def test_a_group_is_made_and_entered(kernel: Path) -> None:
    with enclosed(64_000_000) as group:
        assert group.folder is not None
        assert group.folder.parent == kernel
        assert (group.folder / "memory.max").read_text() == "64000000"
        assert (group.folder / "memory.swap.max").read_text() == "0"
        assert group.prefix[-1] == str(group.folder / "cgroup.procs")
    with enclosed(None) as group:
        assert group == Group()


def test_a_kill_for_memory_names_peak_and_budget(tmp_path: Path) -> None:
    group = Group(64_000_000, (), tmp_path)
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\n")
    (tmp_path / "memory.peak").write_text("63950000\n")
    group.check(-9, "student")  # somebody else's signal
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
    with pytest.raises(OutOfResources, match=r"student: killed at the memory limit of 64.0 MB \(peak: 64.0 MB\)"):
        group.check(-9, "student")
    with pytest.raises(OutOfResources, match="peak: not available"):
        Group(64_000_000, ("systemd-run",)).check(-9, "student")


def test_without_control_groups_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    with pytest.raises(BadHost, match="no cgroup v2 with memory"), enclosed(64_000_000):
        pass
