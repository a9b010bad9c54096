"""Ways to reach a device: the scheme of an address is the file here that knows it. [no torch]"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgetl.errors import BadInput, EdgetlError
from edgetl.plugins import nearest

LOCAL = "local://"
"""The address of this machine."""


class Link(Protocol):
    """A device that takes files and runs commands; nothing of ours stays running on it between two of them."""

    address: str
    host: str  # its name, as a measurement's device is called where no device file names it
    home: str  # the folder for ours, as its shell expands it

    def command(self, script: str) -> Sequence[str]:
        """Return the local command that runs a POSIX shell script on the device, its input and output passed on."""
        ...

    def sending(self, source: Path, target: str) -> tuple[Sequence[str], bool]:
        """Return the local command that copies a file into `target`, and whether it reads the file as its input."""
        ...

    def explain(self, code: int, errors: str) -> EdgetlError | None:
        """Return what a failed command says of the link; None where the script itself failed."""
        ...

    def said(self, errors: str) -> str:
        """Return the last error that the script itself printed, as it is."""
        ...


def open_link(address: str, pin: str | None = None) -> Link:
    """Return the link of an address such as `ssh://user@host:port`; nothing is contacted yet.

    `pin` is the sha256 of the host's key, where its device file names one.

    Raises:
        BadInput: the scheme is unknown, or the address is malformed.

    """
    scheme = address.partition("://")[0]
    known = tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.name.startswith("_")))
    if scheme not in known:
        fix = f"{nearest(scheme, known)}, or copy the bundle to the device and run `edgetl profile` there"
        raise BadInput(f"{address}: no link '{scheme}://'", fix=fix)
    link: Link = importlib.import_module(f"edgetl.links.{scheme}").PLUGIN(address, pin)
    return link


def plain(text: str, most: int = 300) -> str:
    """Return text from a device as it may be printed: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text[:most]).strip()
