"""The folder that is shipped: written whole, and checked before anything in it is parsed [no torch, no pydantic]."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl import extras, plugins, versions
from edgetl.errors import BadHost, BadInput, OutOfResources, Refused
from edgetl.golden import Golden, dump, parse
from edgetl.manifest import GOLDEN, MANIFEST, SCHEMA_VERSION, check
from edgetl.preprocess import Preprocess, Raw
from edgetl.sealed import COPY, read_checked, read_sums, seal, swap
from edgetl.types import Json

if TYPE_CHECKING:
    from edgetl.recipe.schema import Target
    from edgetl.session import Session

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "Golden",
    "open_bundle",
    "open_preprocess",
    "open_session",
    "read_golden",
    "write_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file's name, size and hash is checked."""

    folder: Path
    manifest: Mapping[str, Json]
    sums: Mapping[str, str]  # sha256 by file name
    verified: Mapping[str, bytes] = field(repr=False)  # the very bytes that were hashed, but for the goldens

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, those that were hashed.

        Raises:
            Refused: there is no such file, or it changed since the bundle was opened.

        """
        if name not in self.sums:
            raise Refused(f"{self.folder} has no {name}", fix=COPY)
        if name in self.verified:
            return self.verified[name]
        return read_checked(self.folder, name, self.sums[name])


def open_bundle(folder: Path) -> Bundle:
    """Check names, sizes and hashes, then parse the manifest.

    Raises:
        BadInput: there is no such folder.
        Refused: it is not a bundle, is damaged, or its manifest is malformed or newer than this edgetl.

    """
    folder = Path(folder)
    sums = read_sums(folder)
    missing = {MANIFEST, GOLDEN} - set(sums)
    if missing:
        raise Refused(f"{folder} is not a bundle: it has no {min(missing)}", fix=COPY)
    # An app never reads the goldens, which may be large: hashed now, they are read and hashed again when asked for.
    kept = {name: read_checked(folder, name, digest, keep=name != GOLDEN) for name, digest in sums.items()}
    del kept[GOLDEN]
    try:
        manifest = json.loads(kept[MANIFEST])
    except (ValueError, RecursionError) as error:
        raise Refused(f"{folder / MANIFEST} is not JSON", fix=COPY) from error
    check(manifest, frozenset(sums))
    return Bundle(folder, manifest, sums, kept)


def open_preprocess(bundle: Bundle) -> Preprocess:
    """Return the pre-processing of a bundle.

    Raises:
        Refused: its list is malformed, or names a file that the bundle does not hold.

    """
    facts = bundle.manifest
    raw = Raw(facts["raw"]["kind"], facts["raw"]["dtype"], tuple(facts["raw"]["shape"]))
    named = [operation["file"] for operation in facts["preprocessing"] if isinstance(operation.get("file"), str)]
    tokenizer = bundle.read(named[0]) if named else None
    return Preprocess(facts["preprocessing"], raw, [i["name"] for i in facts["inputs"]], bundle.folder, tokenizer)


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """Open the model of a bundle on a number of threads (0: the runtime's choice).

    Raises:
        BadInput: the number of threads is negative.
        Refused: the target is unknown, or the runtime cannot read the model.
        BadHost: the runtime is missing, or older than the bundle needs.

    """
    if threads < 0:
        raise BadInput(f"{threads} threads are not possible", fix="use 1 or more, or 0 for the runtime's choice")
    runtime = bundle.manifest["runtime"]
    target = _target(bundle.manifest["target"])
    try:
        installed = target.runtime()
    except ImportError as error:
        fix = extras.install(runtime["name"]) or f'pip install "{runtime["name"]}{runtime["needs"]}"'
        raise BadHost(f"{runtime['name']} is not installed or broken: {error}", fix=fix) from error
    if not versions.fits(installed.split()[-1], runtime["needs"]):
        fix = f'pip install --upgrade "{runtime["name"]}{runtime["needs"]}"'
        raise BadHost(f"the bundle needs {runtime['name']} {runtime['needs']}, this is {installed}", fix=fix)
    return target.open(bundle.read(bundle.manifest["file"]), bundle.manifest["session"], threads)


def read_golden(bundle: Bundle) -> Golden:
    """Return the golden samples of a bundle.

    Raises:
        Refused: they changed since the bundle was opened, or are malformed.

    """
    golden = parse(bundle.read(GOLDEN), len(bundle.manifest["labels"]))
    if set(golden.inputs) != {item["name"] for item in bundle.manifest["inputs"]}:
        raise Refused(f"{bundle.folder / GOLDEN} has other inputs than the manifest", fix="export the bundle again")
    return golden


def write_bundle(folder: Path, manifest: Mapping[str, Json], files: Mapping[str, Path], golden: Golden) -> None:
    """Write a bundle whole, in the place of an older one. Equal content gives equal bytes.

    Raises:
        BadInput: the manifest or a file name is not one that `open_bundle` takes, or a file is missing.
        OutOfResources: the disk is full; the older bundle is intact.
        BadHost: the folder cannot be written.

    """
    full = {**manifest, "golden": {"raw": golden.raw is not None, "n": len(golden.y)}}
    try:
        check(full, frozenset({*files, MANIFEST, GOLDEN}))
    except Refused as error:
        raise BadInput(f"cannot write {folder}: {error.problem}", fix="give a complete manifest") from error
    for name, path in files.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or not path.is_file():
            raise BadInput(f"cannot put {path} into a bundle as {name!r}", fix="give a file and a plain file name")
    temporary = folder.with_name(f".{folder.name}.tmp")  # what a killed run left there is replaced
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, path in files.items():
            shutil.copyfile(path, temporary / name)
        text = json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / MANIFEST).write_text(f"{text}\n", "utf-8", newline="\n")
        dump(golden, temporary / GOLDEN)
        seal(temporary)
        swap(temporary, folder)
    except OSError as error:
        problem = f"cannot write {folder}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResources(problem, fix="free some disk space and run the same command again") from error
        raise BadHost(problem, fix="choose a folder that can be written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _target(name: str) -> type[Target]:
    try:
        plugin: type[Target] = plugins.find("targets", name)
    except BadInput as error:
        raise Refused(f"the bundle is for the target '{name}', unknown here", fix="upgrade edgetl") from error
    return plugin
