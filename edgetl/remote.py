"""Measure on another device over a link: it runs the whole protocol itself, and its answer is fetched. [no torch]

A run lies in one folder of the device, named by what is asked, so that the same command finds it again: whatever a
lost link left undone is done then, and nothing twice. The folder is deleted once the answer is here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from edgetl import measurement, store
from edgetl._agent import BEGIN, PYTHON
from edgetl.device import Device, require_here
from edgetl.errors import BadHost, BadInput, EdgetlError, OutOfResources, Refused
from edgetl.links import LOCAL, Link, _answers, open_link, plain
from edgetl.links._answers import RESULT_BYTES, Expected
from edgetl.links._package import CORE, package
from edgetl.links._talk import Lost, ask, lines, send
from edgetl.measurement import Measurement, Mode
from edgetl.sealed import SUMS
from edgetl.summary import Subject
from edgetl.types import Json

LOG = logging.getLogger("edgetl")

SILENCE_S = 30.0
"""Without a line for so long, the link counts as lost; the device sends one every two seconds."""

_ID = re.compile(r"[0-9a-f]{16}")
_SEAL = (
    'for f in *.part; do [ -f "$f" ] || continue; h=$(sha256sum < "$f"); '
    '[ "${h%% *}" = "${f%.part}" ] && mv -f "$f" "${f%.part}" || rm -f "$f"; done; ls -1'
)
"""A copy that was cut short never gets its name."""


@dataclass(frozen=True)
class Remote:
    """One run on a device, as it is noted here until its answer has come."""

    id: str
    address: str
    pin: str | None
    spec: Json  # what the device does
    sources: Mapping[str, str]  # files of the bundles by sha256
    expected: Sequence[Expected]
    paths: Sequence[str] | None  # where the measurements go


def is_remote(device: Device) -> bool:
    """Return whether a device has to be reached over a link; a machine that bears its name is the device itself."""
    if device.link == LOCAL:
        return False
    return open_link(device.link, device.host_key_sha256).host.partition(".")[0] != platform.node().partition(".")[0]


def require(device: Device) -> None:
    """Check that a device can be measured: it answers over its link, or this machine can stand for it.

    Raises:
        BadHost, Refused: it cannot, or its key is not the known one.

    """
    if is_remote(device):
        ask(open_link(device.link, device.host_key_sha256), "true")
    else:
        require_here(device)


def reach(address: str) -> Device:
    """Return the machine at an address as a device that probed itself.

    Raises:
        BadInput: the address is malformed.
        BadHost, Refused: it cannot be reached, its key is not known, or it lacks Python or packages.

    """
    link = open_link(address)
    place = f"{link.home}/{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="edgetl-link-") as scratch:
        code = _stored(package(), Path(scratch))
        there = _contact(link, place)
        try:
            _push(link, place, {code: f"{scratch}/{code}"}, there)
            answer = _said(link, ask(link, _python(place, code, "probe", ",".join(CORE))))
        finally:
            with suppress(EdgetlError):
                ask(link, f"rm -rf {place}")
    name = re.sub(r"[^a-z0-9.-]", "-", link.host.lower())
    return _answers.device(address, name, answer.get("device"))


def measure(
    subjects: Sequence[Subject],
    base: Subject | None,
    device: Device,
    mode: Mode,
    seed: int,
    paths: Sequence[Path] | None,
) -> list[Measurement]:
    """Return one measurement for each subject, made on the device; `paths` is where they are going to be kept.

    Raises:
        BadHost: the link was lost, which the device does not notice (`attach` goes on), or it cannot measure.
        Refused: its host key is not the known one, or its answer is malformed.
        OutOfResources: the device has no memory or disk left.

    """
    bundles = [_files(s) for s in subjects]
    spec = {
        "schema_version": 1,
        "device": device.model_copy(update={"link": LOCAL}).model_dump(mode="json", by_alias=True),
        "bundles": bundles,
        "baseline": None if base is None else [s.sha256 for s in subjects].index(base.sha256),
        "mode": mode,
        "seed": seed,
    }
    remote = Remote(
        id=_noted(device.link, spec) or secrets.token_hex(8),
        address=device.link,
        pin=device.host_key_sha256,
        spec=spec,
        sources={
            digest: str(subject.bundle.folder.resolve() / name)
            for subject, names in zip(subjects, bundles, strict=True)
            for name, digest in names.items()
        },
        expected=[Expected(s.sha256, s.bundle.manifest["name"], s.bundle.manifest["precision"]) for s in subjects],
        paths=None if paths is None else [str(path.resolve()) for path in paths],
    )
    return _finish(remote)


def attach(run: str) -> list[Measurement]:
    """Return the measurements of a run whose link was lost, and write them where they would have gone.

    Raises:
        BadInput: no run of this name is noted here; besides what `measure` raises.

    """
    note = _read(_notes() / f"{run}.json") if _ID.fullmatch(run) else None
    if note is None:
        known = ", ".join(sorted(path.stem for path in _notes().glob("*.json"))) or "none"
        raise BadInput(f"no run '{run}' was left on a device", fix=f"known runs: {known}")
    found = _finish(note)
    for path, one in zip(note.paths or (), found, strict=False):
        measurement.write(one, Path(path))
    return found


def _finish(remote: Remote) -> list[Measurement]:
    """Do what is left of a run, whatever that is, fetch its answer and delete it there."""
    link = open_link(remote.address, remote.pin)
    place = f"{link.home}/{remote.id}"
    there = _contact(link, place)
    note = _notes() / f"{remote.id}.json"
    store.write_json(note, asdict(remote))
    try:
        if "result.json" not in there:
            _start(link, place, remote, there)
            _follow(link, place)
        data = ask(link, f"cat {place}/result.json", most=RESULT_BYTES)
    except Lost as e:
        fix = f"once it is there again: edgetl profile --attach {remote.id}"
        raise BadHost(f"{e.problem}; what was started there goes on", fix=fix) from e
    except (BadHost, OutOfResources, Refused):
        _delete(link, place, note)
        raise
    _delete(link, place, note)
    return _answers.measurements(remote.address, remote.spec["device"]["name"], data, remote.expected)


def _contact(link: Link, place: str) -> frozenset[str]:
    """Return the names of what the run's folder holds, which is made, for this user alone."""
    script = f"umask 077; mkdir -p {place}/files && cd {place} && ls -1 . files"
    return frozenset(ask(link, script).decode("utf-8", "replace").split())


def _push(link: Link, place: str, files: Mapping[str, str], there: frozenset[str]) -> None:
    """Copy what is not there yet; a copy gets its name when it has its hash."""
    missing = {digest: path for digest, path in files.items() if digest not in there}
    for number, (digest, path) in enumerate(missing.items(), 1):
        LOG.info("profile: copying to %s, %d of %d", link.host, number, len(missing))
        send(link, Path(path), f"{place}/files/{digest}.part")
    found = ask(link, f"cd {place}/files && {_SEAL}").decode("utf-8", "replace").split()
    if absent := sorted(set(files) - set(found)):
        raise BadHost(f"{link.address}: {len(absent)} files arrived damaged", fix="run the same command again")


def _start(link: Link, place: str, remote: Remote, there: frozenset[str]) -> None:
    """Bring what is missing and start measuring, unless it is under way."""
    with tempfile.TemporaryDirectory(prefix="edgetl-link-") as scratch:
        code = _stored(package(), Path(scratch))
        job = _stored(json.dumps(remote.spec, sort_keys=True).encode(), Path(scratch))
        own = {digest: f"{scratch}/{digest}" for digest in (code, job)}
        _push(link, place, {**remote.sources, **own}, there)
    said = _said(link, ask(link, _python(place, code, "start", ".", job, ",".join(CORE))))
    LOG.info("profile: %s on %s, run %s", said["event"], link.host, remote.id)


def _follow(link: Link, place: str) -> None:
    """Log what the device says until it has a result."""
    script = f"cd {place} && python3 -I -c {shlex.quote(BEGIN)} package follow ."
    for line in lines(link, script, SILENCE_S):
        kind, value = _answers.event(link.address, line)
        if kind == "log":
            LOG.info("%s: %s", link.host, plain(str(value.get("text"))))
        elif kind == "end":
            return
        elif kind == "gone":
            said = plain(ask(link, f"tail -c 300 {place}/agent.log").decode("utf-8", "replace"))
            problem = f"the program on {link.address} ended without a result" + (f": {said}" if said else "")
            full = "space left" in said
            fix = f"see whether the device ran out of {'disk' if full else 'memory'}, and run the same command again"
            raise (OutOfResources if full else BadHost)(problem, fix=fix)
    raise Lost(f"{link.address} stopped answering", fix="check the device and its network")


def _python(place: str, code: str, *words: str) -> str:
    """Return the script that unpacks the package once and runs a command of it."""
    unpack = f"rm -rf package.new && python3 -m zipfile -e files/{code} package.new && mv package.new package"
    command = shlex.join(["python3", "-I", "-c", BEGIN, "package", *words])
    return f"cd {place} && {{ [ -d package ] || {{ {unpack}; }}; }} && {command}"


def _said(link: Link, answer: bytes) -> Mapping[str, Json]:
    """Return the one line that a command of the package answers, where the device has all it needs."""
    kind, value = _answers.event(link.address, answer)
    if kind == "old":
        need = ".".join(map(str, PYTHON))
        raise BadHost(
            f"{link.address} has Python {plain(str(value.get('python')))}", fix=f"install Python {need} there"
        )
    if kind == "missing":
        named = value.get("modules")
        lacks = [name for module, name in CORE.items() if isinstance(named, list) and module in named]
        if not lacks:
            raise Refused(f"{link.address} lacks modules that were not asked for", fix="see what its python3 is")
        problem = f"{link.address} lacks {', '.join(lacks)} in its python3"
        raise BadHost(problem, fix=f"there: python3 -m pip install {' '.join(lacks)}")
    return value


def _delete(link: Link, place: str, note: Path) -> None:
    note.unlink(missing_ok=True)
    try:
        ask(link, f"rm -rf {place}")
    except EdgetlError as e:
        LOG.warning("profile: the folder %s on %s is left: %s", place, link.host, e.problem)


def _files(subject: Subject) -> dict[str, str]:
    """Return the sha256 of every file of a bundle by name."""
    return {**subject.bundle.sums, SUMS: store.file_digest(subject.bundle.folder / SUMS)}


def _stored(data: bytes, folder: Path) -> str:
    """Write bytes under their sha256, and return that."""
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return digest


def _notes() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgetl" / "attach"


def _noted(address: str, spec: Json) -> str | None:
    """Return the run that was left while it did just this."""
    notes = (_read(path) for path in sorted(_notes().glob("*.json")))
    return next((one.id for one in notes if one and one.address == address and one.spec == spec), None)


def _read(path: Path) -> Remote | None:
    """Return a noted run; None without a note of this version."""
    try:
        value = store.read_json(path)
        return Remote(**{**value, "expected": [Expected(**one) for one in value["expected"]]})
    except (OSError, EdgetlError, TypeError, KeyError):
        return None
