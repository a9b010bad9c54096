from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.device import probe
from edgetl.errors import BadHost, BadInput, OutOfResources
from edgetl.measure import containers, limits
from edgetl.measure.limits import Group, enclosed, limited


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
    monkeypatch.setattr(containers, "TOOLS", ("no-docker-here",))
    with pytest.raises(BadHost, match="no cgroup v2 with memory, no no-docker-here"), enclosed(64_000_000):
        pass


DOCKER = """#!/bin/sh
echo "$@" >> {log}
case $1 in
image) [ "$3" = board:1 ] ;;
run) while [ "$1" != board:1 ]; do shift; done; shift; {run} ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`docker(run)`: a tool that has the image board:1 and runs what is left with these words; its log is returned."""
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "none")
    monkeypatch.setattr(containers, "TOOLS", ("docker", "no-podman-here"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("EDGETL_IMAGE", "board:1")

    def install(run: str) -> Path:
        (tmp_path / "docker").write_text(DOCKER.format(log=tmp_path / "log", run=run))
        (tmp_path / "docker").chmod(0o755)
        return tmp_path / "log"

    return install


def test_a_container_is_the_last_resort(docker: Callable[[str], Path], tmp_path: Path) -> None:
    log = docker('exec "$@"')
    with enclosed(64_000_000, [tmp_path / "a b"]) as group:
        assert group.contained
        command = [*group.prefix, "sh", "-c", "echo noise; echo result >&3"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == "result\n", "what a runtime prints is no part of the result"
    asked, run, removed = log.read_text().splitlines()
    assert asked == "image inspect board:1"
    assert "--memory 64000000 --memory-swap 64000000" in run
    for words in ("--network none", "--pull never", "--read-only", f"src={tmp_path}/a b,dst={tmp_path}/a b,readonly"):
        assert words in run
    assert removed == "rm --force " + run.split("--name ")[1].split()[0]


def test_a_container_that_is_killed_for_memory_names_the_limit(docker: Callable[[str], Path]) -> None:
    docker("exit 137")
    with (
        enclosed(64_000_000) as group,
        pytest.raises(OutOfResources, match=r"x: killed at the memory limit of 64\.0 MB"),
    ):
        group.check(subprocess.run(group.prefix, check=False).returncode, "x")


@pytest.mark.parametrize(
    ("image", "problem", "fix"),
    [("", "EDGETL_IMAGE names no image", "EDGETL_IMAGE="), ("--privileged", "names no image", "EDGETL_IMAGE="),
     ("other:1", "docker shows no image other:1", "docker image inspect")],
)  # fmt: skip
def test_a_container_without_an_image_is_refused(
    docker: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, image: str, problem: str, fix: str
) -> None:
    docker("exit 0")
    monkeypatch.setenv("EDGETL_IMAGE", image)
    with pytest.raises(BadHost, match=problem) as error, enclosed(64_000_000):
        pass
    assert error.value.code == 4
    assert fix in error.value.fix


def test_a_path_that_would_be_read_as_more_words_is_not_mounted(docker: Callable[[str], Path]) -> None:
    docker("exit 0")
    with pytest.raises(BadHost, match="cannot be mounted"), enclosed(64_000_000, [Path("/a,src=/")]):
        pass
