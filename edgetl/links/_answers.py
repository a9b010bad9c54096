"""What a device answers, which is not trusted: sizes, types, names and the text in it are checked. [no torch]"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from edgetl.device import Device
from edgetl.errors import MEASURING, BadHost, EdgetlError, Refused
from edgetl.golden import read_npz
from edgetl.links import plain
from edgetl.measure.measurement import Latency, Measurement
from edgetl.types import Feed, Json

SAMPLES = ("offsets", "wall_ns", "cpu_ns", "turn_offsets", "turn_calls")
"""The arrays of `edgetl.measure.raw`."""

RESULT_BYTES, RAW_BYTES, UNPACKED_BYTES = 8 << 20, 256 << 20, 1 << 30
TEXT = 500
"""Most characters of one text in an answer."""

MOST = 1 << 63
"""Whole numbers stay below: sums and quotients of larger ones need not be numbers."""

_FLAG = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True)
class Expected:
    """What is known here of an artifact that was measured there."""

    sha256: str
    name: str
    precision: str


def event(address: str, line: bytes) -> tuple[str, Mapping[str, Json]]:
    """Return the kind and the content of one line.

    Raises:
        Refused: it is no JSON object with an event.

    """
    value = _object(address, line)
    kind = value.get("event")
    if not isinstance(kind, str):
        raise _wrong(address, "a line has no event")
    return kind, value


def device(address: str, name: str, value: Json) -> Device:
    """Return a machine that probed itself, under the name given here.

    Raises:
        Refused: it is no device.

    """
    try:
        found = Device.model_validate(value)
    except ValidationError as e:
        raise _wrong(address, f"no device: {_where(e)}") from e
    return found.model_copy(update={"name": name, "link": address})


def measurements(address: str, machine: str, data: bytes, expected: Sequence[Expected]) -> list[Measurement]:
    """Return the measurements in a result, in the order expected.

    Raises:
        Refused: it is malformed, or is about something else than what was asked.
        EdgetlError: what ended the measuring there.

    """
    value = _object(address, data)
    if "error" in value:
        raise _error(address, value["error"])
    found = value.get("measurements")
    if not isinstance(found, list) or len(found) != len(expected):
        raise _wrong(address, f"not {len(expected)} measurements")
    return [_measurement(address, machine, one, wanted) for one, wanted in zip(found, expected, strict=True)]


def check_samples(address: str, latency: Latency, data: bytes) -> None:
    """Check that a file holds the samples of a measurement, as `edgetl.measure.raw` packs them.

    Raises:
        Refused: it does not, or it would unpack to more than they take.

    """
    if hashlib.sha256(data).hexdigest() != latency.samples_sha256 or _unpacked(data) > UNPACKED_BYTES:
        raise _wrong(address, "other samples than it measured")
    arrays = read_npz(data, "a file of samples")
    counts = all(a.dtype == np.int64 and a.ndim == 1 and a.min(initial=0) >= 0 for a in arrays.values())
    if not counts or set(arrays) != set(SAMPLES) or not _fit(arrays, latency.n):
        raise _wrong(address, "samples that do not fit its measurement")


def _fit(arrays: Feed, n: int) -> bool:
    """Say whether flat arrays of numbers are the samples of so many calls."""
    offsets, wall, cpu, turn_offsets, turn_calls = (arrays[name].tolist() for name in SAMPLES)
    cuts = (offsets, n), (turn_offsets, len(turn_calls))
    sorted_well = all(ends == sorted(ends) and (ends[:1], ends[-1:]) == ([0], [size]) for ends, size in cuts)
    return sorted_well and len(offsets) == len(turn_offsets) and {len(wall), len(cpu), sum(turn_calls)} == {n}


def _unpacked(data: bytes) -> int:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError):
        return 0  # it is refused as what it is where it is read


def _measurement(address: str, machine: str, value: Json, wanted: Expected) -> Measurement:
    try:
        found = Measurement.model_validate(value)
    except ValidationError as e:
        raise _wrong(address, f"no measurement: {_where(e)}") from e
    bundle = found.bundle
    if (bundle.sha256, bundle.name, bundle.precision) != (wanted.sha256, wanted.name, wanted.precision):
        raise _wrong(address, "a measurement of another artifact")
    if found.device.profile != machine or not all(map(_FLAG.fullmatch, found.noise.flags)):
        raise _wrong(address, "a measurement of another device, or flags that are none")
    if not _possible(found):
        raise _wrong(address, "times that are none")
    return found.model_copy(update={"device": found.device.model_copy(update={"link": address})})


def _possible(found: Measurement) -> bool:
    """Say whether times and ratios are above 0 and within their intervals, as later sums expect of them."""
    medians = [found.latency.p50, found.latency.cpu_p50]
    ratios = [found.comparison.interval, found.comparison.judged] if found.comparison else []
    return all(0 < one.low <= one.value <= one.high for one in medians + ratios)


def _object(address: str, data: bytes) -> Mapping[str, Json]:
    """Return a JSON object whose texts are short and printable and whose numbers are finite."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_finite, parse_float=_finite, parse_int=_whole)
        texts = list(_texts(value))
    except (ValueError, RecursionError) as e:
        raise _wrong(address, "no JSON") from e
    if not isinstance(value, dict):
        raise _wrong(address, "no JSON object")
    if any(len(text) > TEXT or not text.isprintable() for text in texts):
        raise _wrong(address, "a text that is too long or not printable")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) >= MOST:
        raise ValueError(text[:20])
    return value


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _error(address: str, told: Json) -> EdgetlError:
    code, problem, fix = (told.get(key) if isinstance(told, dict) else None for key in ("code", "problem", "fix"))
    if not isinstance(code, int) or not isinstance(problem, str) or not isinstance(fix, str):
        return _wrong(address, "an error that is none")
    return MEASURING.get(code, BadHost)(f"{address}: {plain(problem)}", fix=plain(fix))


def _wrong(address: str, what: str) -> Refused:
    return Refused(f"{address} answered {what}", fix="do not trust this device before you know why")


def _where(error: ValidationError) -> str:
    first = error.errors()[0]
    return plain(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
