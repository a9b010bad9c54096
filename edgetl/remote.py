"""Measure on another device over a link: it runs the whole protocol itself, and its answer is fetched. [no torch]

A run lies in one folder of the device, named by what is asked, so that the same command finds it again: whatever a
lost link left undone is done then, and nothing twice. The folder is deleted once the answer is here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgetl import store
from edgetl._agent import BEGIN, PYTHON
from edgetl.device import Device, require_here
from edgetl.errors import BadHost, EdgetlError, OutOfResources, Refused
from edgetl.links import LOCAL, Link, _answers, _notes, open_link, plain
from edgetl.links._answers import RAW_BYTES, RESULT_BYTES, Expected
from edgetl.links._notes import Remote
from edgetl.links._package import CORE, package
from edgetl.links._talk import Lost, ask, lines, send
from edgetl.measure import raw
from edgetl.measure.measurement import Measurement, Mode
from edgetl.measure.summary import Subject
from edgetl.sealed import SUMS
from edgetl.types import Json

LOG = logging.getLogger("edgetl")

SILENCE_S = 30.0
"""Without a line for so long, the link counts as lost; the device sends one every two seconds."""

COPIES = 2
"""Of every pushed file: under its hash, and under its name in its bundle."""

_SEAL = (
    'for f in *.part; do [ -f "$f" ] || continue; h=$(sha256sum < "$f"); '
    '[ "${h%% *}" = "${f%.part}" ] && mv -f "$f" "${f%.part}" || rm -f "$f"; done; ls -1'
)
"""A copy that was cut short never gets its name."""


class Answer(NamedTuple):
    """A measurement that a device made, and the file of its samples where that was asked for."""

    measurement: Measurement
    samples: bytes | None


@dataclass(frozen=True)
class Asked:
    """What the device measures, besides the artifacts."""

    base: Subject | None
    mode: Mode
    seed: int
    raw: bool = False  # the samples are fetched too


class _There(NamedTuple):
    """What is in the run's folder on the device."""

    names: frozenset[str]
    free_bytes: int | None  # None: it does not say


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
    name = re.sub(r"[^a-z0-9.-]", "-", link.host.lower()).strip("-.")
    return _answers.device(address, name, answer.get("device"))


def measure(subjects: Sequence[Subject], device: Device, asked: Asked, paths: Sequence[Path] | None) -> list[Answer]:
    """Return one answer for each subject, made on the device; `paths` is where the measurements are going to be kept.

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
        "baseline": None if asked.base is None else [s.sha256 for s in subjects].index(asked.base.sha256),
        "mode": asked.mode,
        "seed": asked.seed,
        "raw": asked.raw,
    }
    remote = Remote(
        id=_notes.doing(device.link, spec) or secrets.token_hex(8),
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
    remote = _notes.left(run)
    found = _finish(remote)
    for path, one in zip(remote.paths or (), found, strict=False):
        raw.keep(one.measurement, one.samples, Path(path))
    return [one.measurement for one in found]


def _finish(remote: Remote) -> list[Answer]:
    """Do what is left of a run, whatever that is, fetch its answer and delete it there."""
    link = open_link(remote.address, remote.pin)
    place = f"{link.home}/{remote.id}"
    there = _contact(link, place)
    _notes.note(remote)
    try:
        if "result.json" not in there.names:
            _start(link, place, remote, there)
            _follow(link, place)
        data = ask(link, f"cat {place}/result.json", most=RESULT_BYTES)
        found = _answers.measurements(remote.address, remote.spec["device"]["name"], data, remote.expected)
        answers = [_with_samples(link, place, one, wanted=remote.spec.get("raw", False)) for one in found]
    except Lost as e:
        fix = f"once it is there again: edgetl profile --attach {remote.id}"
        raise BadHost(f"{e.problem}; what was started there goes on", fix=fix) from e
    except EdgetlError:
        _delete(link, place, remote)
        raise
    _delete(link, place, remote)
    return answers


def _with_samples(link: Link, place: str, one: Measurement, *, wanted: bool) -> Answer:
    """Return a measurement with the file of its samples, fetched where it is wanted."""
    sha256 = one.latency.samples_sha256
    if not wanted or sha256 is None:  # else they stay on the device
        return Answer(one.model_copy(update={"latency": one.latency.model_copy(update={"samples_sha256": None})}), None)
    data = ask(link, f"cat {place}/raw/{sha256}.npz", most=RAW_BYTES)
    _answers.check_samples(link.address, one.latency, data)
    return Answer(one, data)


def _contact(link: Link, place: str) -> _There:
    """Return the names of what the run's folder holds, which is made, for this user alone, and what room it has."""
    script = f"umask 077; mkdir -p {place}/files && cd {place} && ls -1 . files && {{ df -Pk . || echo; }} | tail -n 1"
    *listed, room = ask(link, script).decode("utf-8", "replace").splitlines() or [""]
    words = room.split()
    free = int(words[3]) * 1024 if len(words) > 3 and re.fullmatch("[0-9]{1,15}", words[3]) else None
    return _There(frozenset(listed), free)


def _push(link: Link, place: str, files: Mapping[str, str], there: _There) -> None:
    """Copy what is not there yet; a copy gets its name when it has its hash."""
    missing = {digest: Path(path) for digest, path in files.items() if digest not in there.names}
    needed = COPIES * sum(path.stat().st_size for path in missing.values() if path.is_file())
    if there.free_bytes is not None and needed > there.free_bytes:
        problem = f"{link.address} has {there.free_bytes / 1e6:.1f} MB of disk left, and {needed / 1e6:.1f} are needed"
        raise OutOfResources(problem, fix="free some space there and try again")
    for number, (digest, path) in enumerate(missing.items(), 1):
        LOG.info("profile: copying to %s, %d of %d", link.host, number, len(missing))
        send(link, path, f"{place}/files/{digest}.part")
    found = ask(link, f"cd {place}/files && {_SEAL}").decode("utf-8", "replace").split()
    if absent := sorted(set(files) - set(found)):
        raise BadHost(f"{link.address}: {len(absent)} files arrived damaged", fix="run the same command again")


def _start(link: Link, place: str, remote: Remote, there: _There) -> None:
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


def _delete(link: Link, place: str, remote: Remote) -> None:
    _notes.forget(remote)
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
