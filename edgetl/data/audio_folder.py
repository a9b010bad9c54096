"""Recordings: wav files in a folder or a zip file, the class from the folder or the file's name."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.audio import MAX_BYTES
from edgetl.data._examples import (
    check_classes,
    class_names,
    digest,
    existing,
    file_bytes,
    names_beside,
    numbers,
    part_of,
)
from edgetl.data._signals import AudioFields, audio_operations
from edgetl.errors import BadInput
from edgetl.examples import PARTS, Examples, Part, Source
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep


@dataclass(frozen=True)
class Recordings:
    """The wav files below a folder or inside a zip file."""

    paths: tuple[PurePosixPath, ...]  # relative, in order
    read: Callable[[PurePosixPath], bytes]


class AudioFolder(AudioFields, Source):
    """16-bit WAV files of one rate; nothing is resampled."""

    use: str = "audio_folder"
    root: Path  # a folder or a zip file: <class>/x.wav, {train,validation,test}/<class>/x.wav, or <class>_more.wav
    labels: Path | None = None  # class names; default: labels.json or classes.txt beside the files, else by name
    classes: Literal["folder", "name"] = "folder"  # the class: the file's folder, or its name up to the first _
    test_files: str | None = None  # published test part, a pattern of file names such as "*_[0-4].wav"
    speaker: int | None = Field(None, ge=0)  # which part of the file's name, from 0 and between _, says who speaks
    skip_share: float = Field(0.001, ge=0, lt=1)  # most unreadable files, as a share, that are left out

    def examples(self) -> Examples:
        """List the recordings and hash their bytes; they are decoded by the preparation."""
        root = existing(self.root)
        found = _files(root)
        if not found.paths:
            raise BadInput(f"{root} holds no wav files", fix="give a folder or zip file of .wav files")
        names = [self._class(path) for path in found.paths]
        parts = self._parts(found.paths)
        labels = names_beside(root if root.is_dir() else root.parent, self.labels)
        labels = labels or class_names(names[row] for row in parts["train"])
        check_classes(labels, str(root))
        y = numbers(names, labels, lambda row: str(found.paths[row]))
        groups = self._groups(found.paths)
        known = [] if groups is None else [groups.tobytes()]
        return Examples(
            raw=Raw("audio"),
            labels=labels,
            y=y,
            parts=parts,
            read=lambda row: found.read(found.paths[row]),
            digest=digest((*map(found.read, found.paths), *known), labels, y, parts),
            describe=lambda row: str(found.paths[row]),
            skip_share=self.skip_share,
            groups=groups,
        )

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list: decode, pad or trim, log-mel, to float, and with mean or std given, normalise."""
        return audio_operations(self, prep)

    def _class(self, path: PurePosixPath) -> str:
        if self.classes == "name":
            return path.stem.split("_")[0]
        if not path.parent.name:
            fix = 'make one folder a class, or set data.classes to "name" where file names begin with the class'
            raise BadInput(f"{path} lies in no folder of a class", fix=fix)
        return path.parent.name

    def _parts(self, paths: Sequence[PurePosixPath]) -> dict[Part, NDArray[np.int64]]:
        where = [self._part(path) for path in paths]
        rows = {part: np.flatnonzero([each == part for each in where]).astype(np.int64) for part in PARTS}
        if not len(rows["train"]):
            raise BadInput(f"{self.root} has no train part", fix="leave files to train on")
        return {part: found for part, found in rows.items() if len(found)}

    def _part(self, path: PurePosixPath) -> Part:
        if self.test_files is not None:
            return "test" if fnmatch(path.name, self.test_files) else "train"
        above = path.parts[: -2 if self.classes == "folder" else -1]  # a class may well be named "test"
        return next((part for part in map(part_of, above) if part is not None), "train")

    def _groups(self, paths: Sequence[PurePosixPath]) -> NDArray[np.int64] | None:
        if self.speaker is None:
            return None
        named = [path.stem.split("_") for path in paths]
        short = next((path for path, words in zip(paths, named, strict=True) if len(words) <= self.speaker), None)
        if short is not None:
            raise BadInput(f"the name of {short} has no part {self.speaker}", fix="count the parts of the name from 0")
        return np.unique([words[self.speaker] for words in named], return_inverse=True)[1].astype(np.int64)


def _files(root: Path) -> Recordings:
    if root.is_dir():
        found = sorted(path for path in root.rglob("*") if _sound(path.name) and path.is_file())
        return Recordings(
            tuple(PurePosixPath(path.relative_to(root).as_posix()) for path in found),
            lambda path: file_bytes(root / path),
        )
    try:
        archive = zipfile.ZipFile(root)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{root} is no zip file ({error})", fix="give a folder or a zip file of .wav files") from error
    entries = {PurePosixPath(entry.filename): entry for entry in archive.infolist() if _sound(entry.filename)}
    return Recordings(tuple(sorted(entries)), lambda path: _unpacked(archive, entries[path]))


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of one file; its size is looked at before anything is unpacked."""
    if entry.file_size > MAX_BYTES:
        raise BadInput(f"{entry.filename}: larger than {MAX_BYTES // 10**6} MB", fix="cut it into shorter ones")
    try:
        return archive.read(entry)
    except (OSError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{entry.filename} cannot be unpacked: {error}", fix="make the zip file again") from error


def _sound(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() == ".wav" and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


PLUGIN = AudioFolder
