"""A device behind the system's OpenSSH client, with the user's own keys, agent and configuration. [no torch]"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgetl.errors import BadHost, BadInput, EdgetlError, Refused
from edgetl.links import plain
from edgetl.links._ssh_address import parse

OPTIONS_VARIABLE = "EDGETL_SSH_OPTIONS"
"""More options of the client, such as `-F FILE` or `-i KEY`; they cannot undo those below, which come first."""

OPTIONS = (
    *("-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=DEBUG1"),
    *("-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
    *("-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "RemoteCommand=none"),
)
"""LogLevel: the fingerprint of a host's key is told at this level only. Forward: a device gets no use of our keys."""

_SENT = re.compile(r"^debug1: Server host key: (\S+) (SHA256:[A-Za-z0-9+/]+)", re.MULTILINE)
_LOGGED_IN = re.compile(r"^Authenticated to ", re.MULTILINE)
_OFFENDING = re.compile(r"Offending (?:\S+ )?key in (.+):(\d+)")
_OWN = ("debug1: ", "OpenSSH_", "Authenticated to ", "Transferred: ", "Bytes per second: ")
FAILED = 255
"""What the client exits with when the connection failed; everything else is the command's own."""


class Ssh:
    """One host. Every command is a connection of its own, unless the user's configuration shares one."""

    home = '"${XDG_CACHE_HOME:-$HOME/.cache}/edgetl"'

    def __init__(self, address: str, pin: str | None) -> None:
        self._at = parse(address)
        self.address, self.host, self._pin = address, self._at.host, pin

    def command(self, script: str) -> Sequence[str]:
        """Return the client's command line; the login shell there starts a POSIX one, whatever it is itself."""
        try:
            more = shlex.split(os.environ.get(OPTIONS_VARIABLE, ""))
        except ValueError as e:
            raise BadInput(f"{OPTIONS_VARIABLE}: {e}", fix="close the quotation mark") from e
        own = ("-o", "ControlPath=none") if self._pin else ()  # a shared connection does not tell the host's key
        return ["ssh", *OPTIONS, *own, *self._at.flags, *more, "--", self._at.target, shlex.join(["sh", "-c", script])]

    def sending(self, source: Path, target: str) -> tuple[Sequence[str], bool]:
        """Return a command that reads the file as its input."""
        return self.command(f"cat > {target}"), True

    def explain(self, code: int, errors: str) -> EdgetlError | None:
        """Return why the connection failed or may not be used; both keys are named where the host's has changed."""
        found = _SENT.search(errors)
        sent = f"{found[1]} {found[2]}" if found else "not shown"
        wrong = self._pin is not None and (found is None or _plain(found[2]) != _plain(self._pin))
        if wrong and (found or code != FAILED):
            problem = f"the host key of {self.address} is {sent}, and its device file pins {self._pin}"
            return Refused(problem, fix="find out why it differs; then correct host_key_sha256 in the device file")
        return self._failed(errors, sent) if code == FAILED else None

    def _failed(self, errors: str, sent: str) -> EdgetlError:
        """Return why there is no connection. What is said behind the log-in may be the device's own words."""
        before = errors if _LOGGED_IN.search(errors) is None else ""
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in before:
            return self._changed(before, sent)
        if "Host key verification failed" in before:
            return self._unknown(sent)
        if "Permission denied" in before:
            fix = f"run `{self._line('ssh-copy-id')}`, or name the right key in your ssh config"
            return BadHost(f"{self.address} refuses your key", fix=fix)
        why = plain(self.said(errors)) or "the connection was lost"
        return BadHost(f"{self.address} cannot be reached: {why}", fix=f"try `{self._line('ssh')} true`")

    def said(self, errors: str) -> str:
        """Return the last line that is not the client's own."""
        lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(_OWN)]
        return lines[-1] if lines else ""

    def _changed(self, errors: str, sent: str) -> EdgetlError:
        place = _OFFENDING.search(errors)
        known = _fingerprint(Path(place[1]), int(place[2])) if place else None
        where = f" in {plain(place[1])} line {place[2]}" if place else ""
        problem = f"the host key of {self.address} has changed: known is {known or 'another'}{where}, sent was {sent}"
        fix = f"if you know why it changed: ssh-keygen -R '{self._at.known_as}', then add the new one"
        return Refused(problem, fix=fix)

    def _unknown(self, sent: str) -> EdgetlError:
        fix = (
            f"compare it at the device, as `edgetl devices trust {self.address}` says, then run "
            f"`{self._line('ssh')}` and answer its question with that fingerprint"
        )
        return BadHost(f"the host key of {self.address} is not known here; sent was {sent}, known is none", fix=fix)

    def _line(self, tool: str) -> str:
        return " ".join((tool, *self._at.flags, self._at.target))


def _fingerprint(file: Path, line: int) -> str | None:
    """Return the fingerprint of one known host's key."""
    try:
        text = file.read_text("utf-8", "replace").splitlines()[line - 1]
        found = subprocess.run(
            ["ssh-keygen", "-l", "-f", "-"], input=text, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None
    return next((word for word in found.stdout.split() if word.startswith("SHA256:")), None)


def _plain(fingerprint: str) -> str:
    return fingerprint.removeprefix("SHA256:").rstrip("=")


PLUGIN = Ssh
