"""An Android device behind `adb`. It runs as a background process there, as the shell does. [no torch]"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edgetl.errors import BadHost, BadInput, EdgetlError

_ADDRESS = re.compile(r"adb://([A-Za-z0-9][A-Za-z0-9._:-]*)/?")
_LOST = ("error: device", "error: no devices", "no devices/emulators found", "device offline", "error: closed")


class Adb:
    """One device by its serial number."""

    home = "/data/local/tmp/edgetl"

    def __init__(self, address: str, pin: str | None) -> None:
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise BadInput(f"{address!r} is no adb address", fix="write adb://SERIAL, as `adb devices` lists it")
        if pin is not None:
            raise BadInput(f"{address}: adb has no host key", fix="remove host_key_sha256 from the device file")
        self.address = address
        self.host = self._serial = found[1]

    def command(self, script: str) -> Sequence[str]:
        """Return the command line of adb; its shell there is a POSIX one."""
        return ["adb", "-s", self._serial, "shell", script]

    def sending(self, source: Path, target: str) -> tuple[Sequence[str], bool]:
        """Return adb's own copying."""
        return ["adb", "-s", self._serial, "push", str(source), target], False

    def explain(self, code: int, errors: str) -> EdgetlError | None:
        """Return why adb does not reach the device."""
        if "unauthorized" in errors:
            fix = "unlock it and allow this computer to debug it, then run the same command again"
            return BadHost(f"{self.address} has not allowed this computer", fix=fix)
        if code != 0 and any(words in errors for words in _LOST):
            return BadHost(f"{self.address} is not connected", fix="see `adb devices`; connect it and try again")
        return None

    def said(self, errors: str) -> str:
        """Return the last line."""
        return errors.strip().rpartition("\n")[2]


PLUGIN = Adb
