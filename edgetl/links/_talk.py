"""Run commands over a link and read what comes back, within bounds: a device may be broken or hostile. [no torch]"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.links import Link, plain

CHUNK = 1 << 16
LINE_BYTES = 1 << 16
STREAM_BYTES = 16 << 20
ERROR_BYTES = 1 << 20
SLOWEST = 50_000
"""Bytes a second below which a copy counts as lost."""


class Lost(BadHost):
    """The link cannot be used, or no longer."""


@dataclass
class _Heard:
    """What a command printed as errors, bytes of what else it printed, and its exit code in the end."""

    errors: bytearray = field(default_factory=bytearray)
    seen: int = 0
    code: int = -1


def ask(link: Link, script: str, *, most: int = LINE_BYTES, silence_s: float = 60) -> bytes:
    """Return what a shell script prints on the device, at most so many bytes.

    Raises:
        Lost: the link failed.
        Refused: it printed more, or the host's key is not the known one.
        BadHost, OutOfResources: the script failed there.

    """
    heard = _Heard()
    found = b"".join(_chunks(link, link.command(script), None, (most, silence_s), heard))
    _check(link, heard)
    return found


def send(link: Link, source: Path, target: str) -> None:
    """Copy a file to a place on the device, given as its shell spells it.

    Raises:
        BadInput: the file is not there any more.
        Lost, OutOfResources, BadHost: the link failed, the device is full or its folder cannot be written.

    """
    command, as_input = link.sending(source, target)
    try:
        patience = 60 + source.stat().st_size / SLOWEST
    except OSError as e:
        raise BadInput(f"{source} cannot be read: {e.strerror}", fix="export the bundle again") from e
    heard = _Heard()
    for _ in _chunks(link, command, source if as_input else None, (STREAM_BYTES, patience), heard):
        pass
    _check(link, heard)


def lines(link: Link, script: str, silence_s: float) -> Iterator[bytes]:
    """Yield the lines that a script prints, as they come.

    Raises:
        Lost: the link failed, or nothing came for so many seconds.
        Refused: a line, or all of them, are too long.
        BadHost: the script failed there.

    """
    heard, rest = _Heard(), b""
    for data in _chunks(link, link.command(script), None, (STREAM_BYTES, silence_s), heard):
        *whole, rest = (rest + data).split(b"\n")
        if max(map(len, (*whole, rest))) > LINE_BYTES:
            raise _too_long(link, LINE_BYTES)
        yield from whole
    _check(link, heard)


def _chunks(
    link: Link, command: Sequence[str], source: Path | None, bounds: tuple[int, float], heard: _Heard
) -> Iterator[bytes]:
    """Yield what a command prints and note its errors and exit code; `bounds` are bytes and seconds of silence."""
    most, silence_s = bounds
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(source.open("rb")) if source else subprocess.DEVNULL
        process = stack.enter_context(_running(command, given))
        waiting = stack.enter_context(selectors.DefaultSelector())
        assert process.stdout is not None
        assert process.stderr is not None
        waiting.register(process.stdout, selectors.EVENT_READ)
        waiting.register(process.stderr, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(silence_s)
            if not ready:
                raise Lost(f"{link.address} was silent for {silence_s:.0f} s", fix="check the device and its network")
            for key, _ in ready:
                data = os.read(key.fd, CHUNK)
                if not data:
                    waiting.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    heard.errors += data
                else:
                    heard.seen += len(data)
                    yield data
            if heard.seen > most or len(heard.errors) > ERROR_BYTES:
                raise _too_long(link, most)
        heard.code = process.wait(silence_s)


@contextlib.contextmanager
def _running(command: Sequence[str], given: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
    """Yield the started command, which does not outlive the block."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=given, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as e:
        raise BadHost(f"{command[0]} cannot be started: {e.strerror}", fix=f"install {command[0]} here") from e
    with process:
        try:
            yield process
        finally:
            process.kill()


def _check(link: Link, heard: _Heard) -> None:
    errors = heard.errors.decode("utf-8", "replace")
    explained = link.explain(heard.code, errors)
    if isinstance(explained, BadHost):
        raise Lost(explained.problem, fix=explained.fix)
    if explained is not None:
        raise explained
    if heard.code == 0:
        return
    last = plain(link.said(errors)) or f"code {heard.code}"
    if "No space left" in errors or "quota exceeded" in errors:
        raise OutOfResources(f"{link.address}: the disk is full: {last}", fix="free some space there and try again")
    if "python3" in last and heard.code == 127:
        raise BadHost(f"{link.address} has no python3", fix="install Python 3.11 or newer there")
    raise BadHost(f"{link.address}: {last}", fix="check that the folder of our files there can be written")


def _too_long(link: Link, most: int) -> Refused:
    problem = f"{link.address} answered with more than {most} bytes"
    return Refused(problem, fix="do not trust this device before you know why")
