from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgetl import remote
from edgetl.device import load_device, probe
from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.measure import measurement
from edgetl.recipe import yaml12
from edgetl.stages.profile import Request, profile, profile_all

Maker = Callable[..., Path]
SCHEMA = json.loads((Path(measurement.__file__).parents[1] / "schemas" / "profile-result-1.json").read_text())


def there(board: Any) -> Any:
    """The device as a file would describe it."""
    return probe().model_copy(update={"name": "board", "link": board.address})


def test_a_device_behind_ssh_answers_as_this_machine_does(board: Any, make: Maker, tmp_path: Path) -> None:
    device = load_device(board.address)
    assert (device.name, device.link, device.arch) == ("127.0.0.1", board.address, probe().arch)
    assert not board.runs()
    small, big = make("small", 64, 1), make("big", 512, 3)
    request = Request("quick", seed=3, baseline=big, out=tmp_path / "m", raw=True)
    found = profile_all([small, big], board.address, request)
    assert [m.bundle.name for m in found] == ["small", "big"]
    files = list((tmp_path / "m" / "127.0.0.1").glob("*.json"))
    assert len(files) == 2
    for file in files:
        jsonschema.validate(json.loads(file.read_text()), SCHEMA)
        check_samples(file)
    assert found[0].comparison is not None
    assert found[0].comparison.ratio < 1
    assert (found[0].run.rounds, found[0].run.seed, found[0].device.link) == (2, 3, board.address)
    assert not board.runs()
    assert not list((tmp_path / "notes").rglob("*.json"))


CUTS = {
    "copying": (3, 'head -c 100 | {ssh} "$@"; exit 255'),
    "copied": (8, "exit 255"),
    "starting": (9, '{ssh} "$@"; exit 255'),
    "measuring": (10, '{ssh} "$@" & sleep 0.7; kill -9 $!; exit 255'),
    "fetching": (11, "exit 255"),
}
"""Which call of ssh is cut, and how."""
SLOW = ("copying", "copied", "starting", "fetching")


@pytest.mark.parametrize("phase", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in CUTS])
def test_a_run_whose_link_was_cut_is_collected(
    board: Any, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    call, how = CUTS[phase]
    bundle = make("tiny", 64, 1)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{cutting(tmp_path / 'cut', call, how)}:{path}")
    with pytest.raises(BadHost) as cut:
        profile([bundle], there(board), out=tmp_path / "m", mode="quick", seed=5)
    assert cut.value.fix.split()[-2] == "--attach"
    monkeypatch.setenv("PATH", path)
    with pytest.raises(BadInput, match="no run 'abc'"):
        remote.attach("abc")
    found = remote.attach(cut.value.fix.split()[-1])
    assert (found[0].bundle.name, found[0].run.seed) == ("tiny", 5)
    assert [measurement.read(p) for p in (tmp_path / "m").rglob("*.json")] == found
    assert not board.runs()
    with pytest.raises(BadInput, match="no run"):
        remote.attach(cut.value.fix.split()[-1])


@pytest.mark.slow
def test_the_command_line_attaches(board: Any, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edgetl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgetl", "profile", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path)

    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{cutting(tmp_path / 'cut', *CUTS['measuring'])}:{path}")
    cut = edgetl(str(make("tiny", 64, 1)), "--device", write(there(board), tmp_path), "--mode", "quick")
    assert cut.returncode == 4
    assert "Traceback" not in cut.stderr
    monkeypatch.setenv("PATH", path)
    found = edgetl("--attach", cut.stderr.split("--attach ")[1].split()[0], "--json", "--no-judge")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["measurements"][0]["device"]["link"] == board.address
    assert edgetl("--attach", "../x").returncode == 2


def check_samples(file: Path) -> None:
    """Check the samples beside a measurement, which came back as they were asked for."""
    one = measurement.read(file)
    data = file.with_suffix(".npz").read_bytes()
    assert hashlib.sha256(data).hexdigest() == one.latency.samples_sha256
    with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
        offsets, wall = arrays["offsets"], arrays["wall_ns"]
    medians = [np.median(wall[a:b]) / 1e6 for a, b in pairwise(offsets)]
    assert medians == pytest.approx(one.latency.rounds_p50_ms)


def test_samples_that_nobody_keeps_are_not_asked_for(board: Any, make: Maker, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--raw keeps"):
        profile_all([make("tiny", 64, 1)], write(there(board), tmp_path), Request("quick", raw=True))
    assert not board.runs()


def test_a_device_without_room_is_told_before_anything_is_copied(board: Any, make: Maker) -> None:
    board.program("df", "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/x 9 8 1 99% /")
    with pytest.raises(OutOfResources, match=r"has 0\.0 MB of disk left, and \S+ are needed"):
        profile([make("tiny", 64, 1)], there(board), out=None, mode="quick")
    assert not board.runs()
    board.program("df", "echo no; exit 1")
    assert load_device(board.address).kind == "cpu", "a device that does not say is tried"


@pytest.mark.parametrize(
    ("where", "device", "changes", "named"),
    [
        ([Path("runs/x")], "local", {}, "runs/x"),
        ([], "rpi5", {}, "--device"),
        ([], "local", {"throughput": True, "fresh": True}, "--fresh, --throughput"),
        ([], "local", {"limit": "cpus=1"}, "--limit"),
        ([], "local", {"mode": "quick"}, "--mode"),
        ([], "local", {"out": Path("x"), "baseline": Path("y"), "raw": True}, "--baseline, --out, --raw"),
    ],
)
def test_attach_refuses_what_it_would_ignore(
    where: list[Path], device: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(f"without {named}")) as error:
        profile_all(where, device, Request(attach="0123456789abcdef", **changes))
    assert error.value.fix == "edgetl profile --attach 0123456789abcdef"
    with pytest.raises(BadInput, match="no run"):
        profile_all([], "local", Request(attach="0123456789abcdef", gate="p90_ms=1"))


def write(device: Any, folder: Path) -> str:
    """Write a device file and return its path."""
    path = folder / "board.yaml"
    path.write_text(yaml12.write(device.model_dump(mode="json", by_alias=True, exclude_none=True)))
    return str(path)


def cutting(folder: Path, call: int, how: str) -> Path:
    """A folder with an ssh whose so-many-th call is cut."""
    folder.mkdir()
    (folder / "calls").write_text("0")
    ssh, calls = shutil.which("ssh"), folder / "calls"
    text = f"n=$(($(cat {calls}) + 1)); echo $n > {calls}\nif [ $n = {call} ]; then {how.format(ssh=ssh)}; fi\n"
    (folder / "ssh").write_text(f'#!/bin/sh\n{text}exec {ssh} "$@"\n')
    (folder / "ssh").chmod(0o755)
    return folder


def test_the_same_command_goes_on_and_a_restarted_device_fails_the_run(
    board: Any, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = make("tiny", 64, 1), os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{cutting(tmp_path / 'cut', 9, 'exit 255')}:{path}")
    with pytest.raises(BadHost, match="goes on"):
        profile([bundle], there(board), out=None, mode="quick")
    monkeypatch.setenv("PATH", path)
    (run,) = board.runs()
    (run / "boot").write_text("another start of the machine")
    with pytest.raises(BadHost, match="restarted"):
        profile([bundle], there(board), out=None, mode="quick")
    assert not board.runs()


def test_unknown_and_changed_host_keys_are_named(board: Any, monkeypatch: pytest.MonkeyPatch, trust: Any) -> None:
    trust(None, "user")
    with pytest.raises(BadHost, match=r"not known here; sent was ssh-ed25519 SHA256:\S+, known is none") as unknown:
        load_device(board.address)
    assert "`ssh -p" in unknown.value.fix
    assert "with that fingerprint" in unknown.value.fix
    trust("other", "user")
    with pytest.raises(
        Refused, match=r"changed: known is SHA256:(\S+) in .*, sent was ssh-ed25519 SHA256:(?!\1)"
    ) as changed:
        load_device(board.address)
    assert "ssh-keygen -R '[127.0.0.1]:" in changed.value.fix
    assert not board.runs()


def test_a_pinned_key_has_to_be_the_hosts(board: Any, make: Maker) -> None:
    device = there(board).model_copy(update={"host_key_sha256": "SHA256:another"})
    with pytest.raises(Refused, match=r"is ssh-ed25519 SHA256:\S+, and its device file pins SHA256:another"):
        profile([make("tiny", 64, 1)], device, out=None, mode="quick")


def test_a_refused_user_and_a_silent_port_say_what_to_do(board: Any, trust: Any) -> None:
    trust("host", "stranger")
    with pytest.raises(BadHost, match="refuses your key") as refused:
        load_device(board.address)
    assert "ssh-copy-id" in refused.value.fix
    with pytest.raises(BadHost, match=r"cannot be reached: .*refused"):
        load_device("ssh://127.0.0.1:1")


@pytest.mark.parametrize("address", ["ssh://-oProxyCommand=x", "ssh://a b", "ssh://host;id", "ssh://", "sshh://host"])
def test_no_other_addresses(address: str) -> None:
    with pytest.raises(BadInput):
        load_device(address)


def test_a_full_disk_and_an_unwritable_folder(board: Any) -> None:
    board.program("cat", "exec /bin/cat > /dev/full")
    with pytest.raises(OutOfResources, match="No space left"):
        load_device(board.address)
    assert not board.runs()
    board.mend()
    (board.cache / "edgetl").rmdir()
    (board.cache / "edgetl").write_text("")
    with pytest.raises(BadHost, match=r"Not a directory|File exists"):
        load_device(board.address)
    (board.cache / "edgetl").unlink()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("echo python3: not found >&2; exit 127", "has no python3"),
        ('case "$*" in *zipfile*) mkdir package.new;; *) echo \'{"event": "old", "python": "3.8.2"}\';; esac', "3.8.2"),
        ("exec {bare}", "lacks numpy, onnxruntime, .*pyyaml"),
    ],
)
def test_what_a_device_lacks_is_named(board: Any, program: str, words: str) -> None:
    bare = f'{board.python} -S "$@"'
    board.program("python3", program.replace("{bare}", bare))
    with pytest.raises(BadHost, match=words):
        load_device(board.address)
