"""Where a device answers ssh: one reading of `ssh://user@host:port`, IPv6 in brackets. [no torch]"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgetl.errors import BadInput

SSH = "ssh://"

_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9.-]*)|\[(?P<six>[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
_MOST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A host, an IPv6 address without its brackets, and what else the client has to know to reach it."""

    host: str
    user: str = ""  # empty: the client's choice, as is the port
    port: int | None = None

    @property
    def target(self) -> str:
        """What the client is told to connect to."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def known_as(self) -> str:
        """The name under which OpenSSH keeps the host's key."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host

    @property
    def flags(self) -> tuple[str, ...]:
        """The client's flags for the port."""
        return () if self.port is None else ("-p", str(self.port))


def parse(text: str) -> Address:
    """Return the address in a text such as `ssh://user@host:port` or `user@[fe80::1]`; nothing is contacted.

    Raises:
        BadInput: it is none.

    """
    found = _ADDRESS.fullmatch(text.removeprefix(SSH))
    if found is None:
        fix = "write ssh://user@host or ssh://user@host:port, an IPv6 address in brackets"
        raise BadInput(f"{text!r} is no ssh address", fix=fix)
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= _MOST_PORT:
        raise BadInput(f"{text!r}: there is no port {port}", fix=f"give a port from 1 to {_MOST_PORT}")
    return Address(found["name"] or found["six"], found["user"] or "", port)
