"""Files that only this user can have written: kept with a MAC under a key that never leaves the machine. [no torch]"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
from pathlib import Path

from edgetl import store
from edgetl.errors import EdgetlError
from edgetl.types import Json

KEY = "key"
SIZE = 32
"""Bytes of a key and of a MAC: SHA-256."""

log = logging.getLogger("edgetl")


def folder() -> Path:
    """Return where engines are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetl" / "engines"


def read(kind: str, facts: Json) -> bytes | None:
    """Return what was kept under these facts; None: nothing, or not by this user, or it was changed since."""
    path = folder() / name(kind, facts)
    try:
        held, key = path.read_bytes(), _key()
    except OSError:
        return None
    if hmac.compare_digest(held[:SIZE], _mac(key, kind, facts, held[SIZE:])):
        return held[SIZE:]
    log.warning("%s is not as it was written: it is not used, and made again", path)
    return None


def write(kind: str, facts: Json, data: bytes) -> None:
    """Keep data under these facts; where that is not possible, it has to be made again next time."""
    path = folder() / name(kind, facts)
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        store.write_bytes(path, _mac(_key(), kind, facts, data) + data)
    except (OSError, EdgetlError) as error:
        log.warning("%s cannot be kept: %s", path, str(error).splitlines()[0])


def name(kind: str, facts: Json) -> str:
    """Return the name of the file that is kept under these facts."""
    return f"{store.digest(facts)[:32]}.{kind}"


def _mac(key: bytes, kind: str, facts: Json, data: bytes) -> bytes:
    told = f"{kind} {store.digest(facts)} ".encode()
    return hmac.new(key, told + data, hashlib.sha256).digest()


def _key() -> bytes:
    """Return this user's key, made on first use; one that others can read or write is replaced.

    Raises:
        OSError: it can be neither read nor made.

    """
    path = folder() / KEY
    with contextlib.suppress(FileNotFoundError), path.open("rb") as f:
        facts = os.fstat(f.fileno())
        owned = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
        private = os.name == "nt" or not facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        found = f.read(SIZE + 1)
        if owned and private and len(found) == SIZE:
            return found
    temporary = path.with_name(f".{KEY}.{secrets.token_hex(4)}.tmp")
    made = secrets.token_bytes(SIZE)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(made)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return made
