"""The keys with which a device proves who it is, as OpenSSH sees them; nothing is trusted here. [no torch]"""

from __future__ import annotations

import re
import subprocess

from edgetl.device import load_device, names
from edgetl.errors import BadHost, BadInput
from edgetl.links._ssh_address import SSH, Address, parse

_KEY = re.compile(r"(\d+) (SHA256:\S+) .*\((\S+)\)")
_WAIT_S = 5
PORT = 22
"""Where ssh answers unless told otherwise."""


def address(text: str) -> Address:
    """Return the address in `user@host:port`, or that of a device's ssh link.

    Raises:
        BadInput: it is neither.

    """
    if text in names() or text.endswith((".yaml", ".yml")):
        link = load_device(text).link
        if not link.startswith(SSH):
            raise BadInput(f"{text!r} is not reached by ssh", fix="write user@host, user@host:port or a device")
        return parse(link)
    return parse(text)


def fingerprints(at: Address) -> list[tuple[str, str, str]]:
    """Return bits, SHA-256 fingerprint and kind of every key that the host shows.

    Raises:
        BadHost: OpenSSH is not installed, or the host does not answer.

    """
    keys = _said(["ssh-keyscan", "-T", str(_WAIT_S), "-p", str(at.port or PORT), at.host], b"")
    found = _KEY.findall(_said(["ssh-keygen", "-l", "-f", "-"], keys).decode("ascii", "replace")) if keys else []
    if not found:
        fix = "check its name, that it is switched on and that its ssh server runs"
        raise BadHost(f"{at.target} shows no ssh key at port {at.port or PORT}", fix=fix)
    return sorted(found)


def advice(at: Address) -> str:
    """Return what to do with the fingerprints."""
    command = " ".join(("ssh", *at.flags, at.target))
    return (
        "Anyone between here and the device could have shown these keys. Compare them at the device itself:\n"
        "  for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done\n"
        f"If one is equal, run `{command}` and answer its question with that fingerprint:\n"
        "it is noted in ~/.ssh/known_hosts. It may also stand in the device file as host_key_sha256."
    )


def _said(command: list[str], fed: bytes) -> bytes:
    """Return what a tool of OpenSSH prints; nothing where it fails."""
    try:
        return subprocess.run(command, input=fed, capture_output=True, timeout=6 * _WAIT_S, check=False).stdout
    except FileNotFoundError as e:
        raise BadHost(f"{command[0]} is not installed", fix="install the OpenSSH client") from e
    except subprocess.TimeoutExpired:
        return b""
