"""The run folder: atomic writes, content keys, locks, things made once. [no torch]"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from edgetl import locks
from edgetl.errors import BadHost, BadInput, OutOfResources, Refused

if TYPE_CHECKING:
    from edgetl.types import Json

CHUNK = 1 << 20


def digest(value: Json) -> str:
    """Return the sha256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def source_digest(path: Path) -> str:
    """Return the sha256 of a plugin: a file, or all Python files of a package folder."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return digest([[f.relative_to(path.parent).as_posix(), file_digest(f)] for f in files])


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there is synced and takes its name.

    Raises:
        OutOfResources: the disk is full; the old file is intact.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as e:
        raise _space(e, path) from e
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old or the new bytes, never half of them."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Json) -> None:
    """Write JSON atomically, keys in the order given, one final newline."""
    write_bytes(path, _json(value))


def keep_bytes(path: Path, data: bytes) -> None:
    """Write a file unless it holds these very bytes; its time says when it changed."""
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def keep_json(path: Path, value: Json) -> None:
    """Write JSON unless the file holds it."""
    keep_bytes(path, _json(value))


def read_json(path: Path) -> Json:
    """Read JSON that this program wrote.

    Raises:
        Refused: it is not JSON.

    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as e:
        raise Refused(f"{path}: not valid JSON ({e})", fix="delete it; the command that wrote it makes it again") from e


@contextmanager
def folder_being_made(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `folder`, whole, when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    except OSError as e:
        raise _space(e, folder) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder's lock.

    Raises:
        BadHost: another process holds it, or the folder cannot be written.
        BadInput: a file lies in the place of the folder.

    """
    with _lock_file(run) as f:
        if not _lock(f.fileno()):
            fix = "wait for it, or write to another folder with --out"
            raise BadHost(f"another edgetl command is working in {run}", fix=fix)
        os.utime(f.fileno())  # the newest run is the one that was worked on last
        yield


def retire(path: Path, old: Path) -> None:
    """Move a stale folder or file out of the way, into `old`, keeping its name readable."""
    if path.exists():
        old.mkdir(parents=True, exist_ok=True)
        os.replace(path, old / f"{path.parent.name}-{path.name}-{secrets.token_hex(4)}")


def remove(path: Path) -> None:
    """Delete a folder with all in it, or nothing where there is none."""
    shutil.rmtree(path, ignore_errors=True)


def made_once(folder: Path, key: str, make: Callable[[Path], None], old: Path) -> Path:
    """Return `folder`, filled by `make` unless a whole folder of this key is there; `once.json` is written last."""
    if not whole(folder, key):
        retire(folder, old)
        with folder_being_made(folder) as temporary:
            make(temporary)
            write_json(temporary / "once.json", {"key": key, "files": _hashes(temporary)})
    return folder


def whole(folder: Path, key: str) -> bool:
    """Return whether `made_once` has filled a folder for this key, and no file of it changed since."""
    stamp = folder / "once.json"
    if not stamp.is_file():
        return False
    try:
        made: Mapping[str, Json] = read_json(stamp)
    except Refused:
        return False
    return made.get("key") == key and made.get("files") == _hashes(folder)


def stamp(path: Path, key: str, files: Sequence[Path]) -> None:
    """Note that these files were made for this key; written after them, it says that they are whole."""
    write_json(path, {"key": key, "files": [file_digest(f) for f in files]})


def stamped(path: Path, key: str, files: Sequence[Path]) -> bool:
    """Return whether these very files were noted for this key."""
    if not all(f.is_file() for f in (path, *files)):
        return False
    try:
        return bool(read_json(path) == {"key": key, "files": [file_digest(f) for f in files]})
    except Refused:
        return False


def sweep(run: Path) -> None:
    """Delete temporary files and folders that killed processes left behind; call it with the lock held."""
    for path in run.rglob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _lock_file(run: Path) -> TextIO:
    try:
        run.mkdir(parents=True, exist_ok=True)
        return (run / ".lock").open("a")
    except (FileExistsError, NotADirectoryError) as e:
        raise BadInput(f"{run} cannot be a run folder: a file is in its place", fix="name another with --out") from e
    except FileNotFoundError as e:  # such as below /proc
        raise BadHost(f"{run} cannot be made here", fix="choose a writable folder with --out") from e
    except OSError as e:
        raise _space(e, run) from e


def _lock(fd: int, seconds: float = 3.0) -> bool:
    """Try for a while: the stages of a run that was just killed take a moment to die."""
    deadline = time.monotonic() + seconds
    while True:
        if locks.take(fd):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "once.json")
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _space(error: OSError, path: Path) -> BaseException:
    short = error.errno is None and " requested and " in str(error)  # how numpy tells of a write that was cut short
    if short or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResources(f"no space left for {path}", fix="free some disk space and run the same command again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return BadHost(f"{path} cannot be written: {error.strerror}", fix="choose a writable folder with --out")
    return error
