"""A device of its own for the tests: a real sshd on loopback, with its own Python, keys and home."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.profile import conftest as profiled

make = profiled.make  # tiny bundles, as for profiling here

BRIEF = """
import importlib.util, sys
from dataclasses import replace

class Brief:
    def find_spec(self, name, path=None, target=None):
        if name != "edgetl.measure.rounds":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            short = {"rounds": 2, "most": 2, "warmup_s": 0.02, "warmup_n": 3, "window_s": 0.05, "window_n": 30}
            module.EFFORTS["quick"] = replace(module.EFFORTS["quick"], **short)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Brief())
"""
"""A sitecustomize of the device: a profile takes two short rounds."""


@dataclass(frozen=True)
class Board:
    """The device: `cache` is where our files go, `bin` is the first folder of its PATH."""

    address: str
    cache: Path
    bin: Path
    python: Path
    keys: Path

    def runs(self) -> list[Path]:
        """The folders of runs that are there."""
        root = self.cache / "edgetl"
        return [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []

    def program(self, name: str, text: str) -> None:
        """Put a shell script on the device's PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def mend(self) -> None:
        """Give the device its good Python back, and nothing else."""
        for path in self.bin.iterdir():
            path.unlink()
        self.program("python3", f'exec {shlex.quote(str(self.python))} "$@"')


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages of this one, but without edgetl."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True)
    made = folder / "bin" / "python3"
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(own, "packages.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    Path(own, "sitecustomize.py").write_text(BRIEF)
    found = subprocess.run(
        [made, "-I", "-c", "import numpy, edgetl.errors"], capture_output=True, text=True, check=False
    )
    assert "edgetl" in found.stderr
    return made


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Iterator[Board]:
    """A running sshd on a free port of loopback."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not server or not shutil.which("ssh"):
        pytest.skip("no OpenSSH server and client here")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user", "other", "stranger"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(key, check=True, timeout=30)
    port = _free_port()
    (folder / "bin").mkdir()
    (folder / "cache").mkdir()
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        f"PermitRootLogin prohibit-password\nPidFile none\n"
        f"ForceCommand env XDG_CACHE_HOME={folder}/cache PATH={folder}/bin:/usr/local/bin:/usr/bin:/bin "
        'sh -c "$SSH_ORIGINAL_COMMAND"\n'  # after what the user's own shell sets
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log)
    try:
        _wait_for(port, process)
        yield Board(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder / "cache", folder / "bin", python, folder)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def board(sshd: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """The device, known here and with nothing of ours on it; our own notes go to a folder of the test."""
    shutil.rmtree(sshd.cache / "edgetl", ignore_errors=True)
    sshd.mend()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))
    _trust(sshd, monkeypatch, "host", "user")
    return sshd


@pytest.fixture
def trust(board: Board, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str], None]:
    """`trust(known, key)`: the client knows this host key, or none, and uses this key of the user's."""
    return lambda known, key: _trust(board, monkeypatch, known, key)


def _trust(board: Board, monkeypatch: pytest.MonkeyPatch, known: str | None, key: str) -> None:
    hosts = board.keys / f"known-{known}"
    port = board.address.rpartition(":")[2]
    words = (board.keys / f"{known}.pub").read_text().split() if known else []
    hosts.write_text(f"[127.0.0.1]:{port} {words[0]} {words[1]}\n" if known else "")
    monkeypatch.setenv(
        "EDGETL_SSH_OPTIONS",
        f"-F /dev/null -i {board.keys}/{key} -o IdentitiesOnly=yes -o UserKnownHostsFile={hosts} "
        "-o GlobalKnownHostsFile=/dev/null",
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.skip("sshd does not start here")
