from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.device import load_device, probe
from edgetl.errors import BadHost, BadInput
from edgetl.stages.profile import profile

FAKE = """#!/bin/sh
[ "$1 $2" = "-s pixel-1" ] || {{ echo "adb: device '$2' not found; error: device '$2' not found" >&2; exit 1; }}
shift 2
here() {{ printf '%s' "$1" | sed "s|/data/local/tmp|{root}/tmp|g"; }}
case "$1" in
push) exec cp "$2" "$(here "$3")";;
shell) XDG_RUNTIME_DIR= PATH={root}/bin:$PATH exec sh -c "$(here "$2")";;
esac
"""


@pytest.fixture
def phone(tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of a phone's, behind an `adb` on the PATH."""
    root = tmp_path / "phone"
    for name in ("bin", "tmp", "adb"):
        (root / name).mkdir(parents=True)
    (root / "adb" / "adb").write_text(FAKE.format(root=root))
    (root / "bin" / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')
    for path in (root / "adb" / "adb", root / "bin" / "python3"):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'adb'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))
    return root


def test_a_device_behind_adb(phone: Path, make: Callable[..., Path], tmp_path: Path) -> None:
    device = load_device("adb://pixel-1")
    assert (device.name, device.link, device.arch) == ("pixel-1", "adb://pixel-1", probe().arch)
    (found,) = profile([make("tiny", 64, 1)], device, out=tmp_path / "m", mode="quick")
    assert (found.bundle.name, found.run.rounds, found.device.link) == ("tiny", 2, "adb://pixel-1")
    assert len(list((tmp_path / "m" / "pixel-1").glob("tiny-onnx-fp32-*.json"))) == 1
    assert not [p for p in (phone / "tmp" / "edgetl").iterdir() if p.is_dir()]


def test_a_phone_that_is_not_there(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadHost, match="not connected"):
        load_device("adb://pixel-2")
    monkeypatch.setenv("PATH", str(phone / "bin"))
    with pytest.raises(BadHost, match="adb cannot be started"):
        load_device("adb://pixel-1")
    with pytest.raises(BadInput, match="no adb address"):
        load_device("adb://a b")


@pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed")
def test_what_the_real_adb_says_of_a_phone_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "15037")  # of its own: somebody's may serve the usual one
    try:
        with pytest.raises(BadHost, match="adb://no-such-phone is not connected"):
            load_device("adb://no-such-phone")
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True, timeout=30)
