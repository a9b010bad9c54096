"""A folder sealed by SHA256SUMS: nothing unlisted, no links, every byte hashed [no torch, no pydantic]."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from edgetl.errors import BadInput, Refused

SUMS = "SHA256SUMS"
SUMS_BYTES = 64_000
FILES = 64
FILE_BYTES = 8 << 30
CHUNK = 1 << 20
COPY = "copy the bundle again from where it was made, or export it again"

_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]{0,99})")


def read_sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every listed file by name, after checking that the folder holds just these.

    Raises:
        BadInput: there is no such folder.
        Refused: the list is missing or malformed, a name is not a plain file name, a file is missing or unlisted.

    """
    if not folder.is_dir():
        raise BadInput(f"there is no bundle at {folder}", fix="give the folder that holds manifest.json and SHA256SUMS")
    found = set(os.listdir(folder))
    if SUMS not in found:
        raise Refused(f"{folder} is not a bundle: it has no {SUMS}", fix="give a folder that `edgetl export` wrote")
    sums: dict[str, str] = {}
    for line in b"".join(_chunks(folder, SUMS, SUMS_BYTES, CHUNK)).decode("ascii", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] in sums or match[2] == SUMS or len(sums) == FILES:
            raise Refused(f"{folder / SUMS} has a line that is not allowed: {line[:120]!r}", fix=COPY)
        sums[match[2]] = match[1]
    wrong = sorted((found - {SUMS}) ^ set(sums))
    if wrong:
        what = f"is not listed in {SUMS}" if wrong[0] in found else "is missing"
        raise Refused(f"{folder}: {wrong[0]} {what}", fix=COPY)
    return sums


def read_checked(folder: Path, name: str, digest: str, *, keep: bool = True) -> bytes:
    """Return the bytes of a file, hashed as they are read from one descriptor; nothing unless `keep`.

    Raises:
        Refused: the bytes are not those of the digest, or it is no regular file of this folder alone.

    """
    found, kept = hashlib.sha256(), []
    # What is kept is read whole: a model in memory twice could be too much for a device.
    for chunk in _chunks(folder, name, FILE_BYTES, FILE_BYTES if keep else CHUNK):
        found.update(chunk)
        if keep:
            kept.append(chunk)
    if found.hexdigest() != digest:
        raise Refused(f"{folder / name} is damaged: its sha256 is not the one in {SUMS}", fix=COPY)
    return kept[0] if len(kept) == 1 else b"".join(kept)


def seal(folder: Path) -> None:
    """Sync every file of a folder to disk and write its SHA256SUMS."""
    lines = []
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
            os.fsync(file.fileno())
    with (folder / SUMS).open("w", encoding="ascii", newline="\n") as sums:
        sums.writelines(lines)
        sums.flush()
        os.fsync(sums.fileno())


def swap(finished: Path, folder: Path) -> None:
    """Put a finished folder in its place; a reader sees the old one, none, or the new one, never a mixture."""
    old = finished.with_name(f"{finished.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    _sync(finished)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _chunks(folder: Path, name: str, most: int, chunk_bytes: int) -> Iterator[bytes]:
    """The bytes of a regular file that has no other name, in chunks; a file of more than `most` bytes is refused."""
    path = folder / name
    handle = _open(path)
    with os.fdopen(handle, "rb", buffering=0) as file:
        size = os.fstat(handle).st_size
        if size > most:
            raise Refused(f"{path} holds {size} bytes, more than the {most} allowed", fix=COPY)
        left = size
        while left > 0:
            chunk = file.read(min(left, chunk_bytes))
            if not chunk:
                raise Refused(f"{path} became shorter while it was read", fix=COPY)
            left -= len(chunk)
            yield chunk


def _open(path: Path) -> int:
    """A descriptor of a regular file that has no other name; links are not followed."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise Refused(f"cannot open {path} as a file of the bundle: {error.strerror}", fix=COPY) from error
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or path.is_symlink():
        os.close(handle)
        raise Refused(f"{path} is a link or no regular file", fix="copy the bundle with its links followed")
    return handle


def _sync(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
