"""What a manifest must hold. Manifests are untrusted: every key that is read later is checked here [no pydantic]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import TypeAlias

from edgetl.errors import Refused
from edgetl.types import Json

SCHEMA_VERSION = 1
MANIFEST, GOLDEN = "manifest.json", "golden.npz"

Spec: TypeAlias = type | tuple["Spec", ...] | list["Spec"] | dict[str, "Spec"] | None
"""A type; one of several (a tuple); a list of one spec; keys that must be there; null."""

_NUMBER: Spec = (int, float)
_INTERVAL: Spec = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_OPERATIONS: Spec = [{"op": str}]
_MANIFEST: dict[str, Spec] = {
    "schema_version": int,
    "task": str,
    "name": str,
    "labels": [str],
    "raw": {"kind": str, "dtype": str, "shape": [int]},
    "inputs": [{"name": str, "dtype": str, "shape": [(int, str)], "range": (None, [_NUMBER])}],
    "outputs": [{"name": str, "dtype": str, "shape": [(int, str)]}],
    "axes": dict,
    "preprocessing": _OPERATIONS,
    "postprocessing": _OPERATIONS,
    "target": str,
    "precision": str,
    "session": dict,
    "runtime": {"name": str, "needs": str, "made_with": str},
    "file": str,
    "cost": {"macs": _NUMBER, "parameters": int, "nodes": [dict]},
    "parity": {"max_abs": _NUMBER, "max_rel": _NUMBER, "agreement": _INTERVAL, "n": int},
    "accuracy": (
        None,
        {"accuracy": _INTERVAL, "balanced": _INTERVAL, "macro_f1": _INTERVAL, "per_class": dict, "n": int},
    ),
    "provenance": {"edgetl": str, "recipe_sha256": str, "backbone": dict, "data_sha256": str},
}

_OPTIONAL: dict[str, Spec] = {
    "dtypes": dict,
    "parity.shapes": [dict],
    "provenance.exporter": str,
    "provenance.given_back": [str],
    "provenance.calibration": {"part": str, "samples": int, "outside": {"tensor": str, "share": _NUMBER}},
    "provenance.ladder": [
        {
            "precision": str,
            "outcome": str,
            "reason": str,
            "size_bytes": (None, int),
            "given_back": [str],
            "time_ms": (None, _INTERVAL),
            "ratio": (None, _INTERVAL),
        }
    ],
}
"""Keys that older bundles lack."""

MOST_RUNGS, MOST_NODES, MOST_WORDS = 100, 100_000, 2000
"""Files of a ladder, nodes of a network, and characters of a name or reason: more are in no real manifest."""

_CHOICES = {"task": ("classification",), "raw.kind": ("image", "text", "audio", "array")}
_AGAIN = "export the bundle again"
_MOST = 1e100
"""What no number of a real file exceeds: beyond, sums and quotients need not be numbers."""


def check(manifest: Json, files: frozenset[str]) -> None:
    """Check a parsed manifest against what this version reads; `files` are the names beside it.

    Raises:
        Refused: a key is missing, of the wrong type or has an impossible value, or the schema is newer.

    """
    if not isinstance(manifest, dict):
        raise Refused(f"{MANIFEST} holds no mapping", fix=_AGAIN)
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        problem = f"the bundle has schema_version {version}; this edgetl reads up to {SCHEMA_VERSION}"
        raise Refused(problem, fix="pip install --upgrade edgetl")
    _fits(manifest, _MANIFEST, "")
    for key, spec in _OPTIONAL.items():
        if (found := _at(manifest, key)) is not None:
            _fits(found, spec, key)
    for key, allowed in _CHOICES.items():
        value = _at(manifest, key)
        _need(value in allowed, key, f"is {value!r}, not one of: {', '.join(allowed)}")
    _values(manifest, files)
    _made(manifest)


def _at(manifest: Json, key: str) -> Json:
    """Return what stands at a key with dots, None where it is not there."""
    for part in key.split("."):
        manifest = manifest.get(part)
        if manifest is None:
            return None
    return manifest


def _values(manifest: Mapping[str, Json], files: frozenset[str]) -> None:
    labels, inputs = manifest["labels"], manifest["inputs"]
    _need(1 <= manifest["schema_version"] <= SCHEMA_VERSION, "schema_version", "is not a version that was ever written")
    _need(len(labels) > 1 and len(set(labels)) == len(labels), "labels", "must be at least two, all different")
    _need(manifest["file"] in files - {MANIFEST, GOLDEN}, "file", f"names {manifest['file']!r}, which is not there")
    _need(bool(inputs), "inputs", "is empty")
    names = [i["name"] for i in inputs]
    _need(len(set(names)) == len(names), "inputs", "has a name twice")
    _need([o["name"] for o in manifest["outputs"]] == ["logits"], "outputs", "must be one, called logits")
    _need(min(manifest["cost"]["macs"], manifest["cost"]["parameters"]) >= 0, "cost", "has a negative count")
    _need(manifest.get("opset") is None or _is(manifest["opset"], int), "opset", "is no whole number")
    _need(all(n >= 0 for n in manifest["raw"]["shape"]), "raw.shape", "has a negative size")
    plain = re.fullmatch(r"[a-z][a-z0-9_]{0,30}", manifest["target"]) is not None
    _need(plain, "target", f"is {manifest['target']!r}, not a target's name")
    needs = re.fullmatch(r">=\d+(\.\d+){0,3}", manifest["runtime"]["needs"]) is not None
    _need(needs, "runtime.needs", f"is {manifest['runtime']['needs']!r}, not like '>=1.20'")
    for axis, ends in manifest["axes"].items():
        good = (
            isinstance(ends, list) and len(ends) == 2 and _is(ends[0], int) and (ends[1] is None or _is(ends[1], int))
        )
        _need(good and ends[0] >= 1 and (ends[1] is None or ends[1] >= ends[0]), f"axes.{axis}", "is not [low, high]")
    for i, item in enumerate(inputs):
        axes = [size for size in item["shape"] if isinstance(size, str)]
        _need(item["shape"][:1] == ["batch"], f"inputs.{i}.shape", "does not begin with 'batch'")
        _need(set(axes) <= set(manifest["axes"]), f"inputs.{i}.shape", "has an axis that `axes` does not describe")
        _need(item["range"] is None or len(item["range"]) == 2, f"inputs.{i}.range", "is not [low, high]")


def _made(manifest: Mapping[str, Json]) -> None:
    """Check how the file says that it was lowered and chosen."""
    dtypes, calibration = manifest.get("dtypes") or {}, _at(manifest, "provenance.calibration")
    shares = all(_is(share, int | float) and 0 <= share <= 1 + 1e-6 for share in dtypes.values())
    _need(shares and len(dtypes) <= MOST_RUNGS, "dtypes", "holds no shares of the work")
    sizes = [size for one in _at(manifest, "parity.shapes") or () for size in one.values()]
    _need(all(_is(size, int | float) and size >= 0 for size in sizes), "parity.shapes", "holds what is no size")
    _need(calibration is None or calibration["samples"] >= 0, "provenance.calibration", "has a negative count")
    rungs = _at(manifest, "provenance.ladder") or []
    _need(len(rungs) <= MOST_RUNGS, "provenance.ladder", f"has more than {MOST_RUNGS} entries")
    for i, rung in enumerate(rungs):
        key = f"provenance.ladder.{i}"
        _need(rung["outcome"] in ("ships", "rejected"), f"{key}.outcome", f"is {rung['outcome'][:60]!r}")
        _need((rung["size_bytes"] or 0) >= 0, f"{key}.size_bytes", "is negative")
        _need(isinstance(rung.get("target", ""), str), f"{key}.target", "has the wrong type")
        _names([rung["reason"], rung["precision"], rung.get("target", ""), *rung["given_back"]], key)
    _need(sum(rung["outcome"] == "ships" for rung in rungs) == bool(rungs), "provenance.ladder", "ships not one file")
    _names([*dtypes, *(_at(manifest, "provenance.given_back") or ())], "provenance.given_back")


def _names(names: Sequence[str], key: str) -> None:
    _need(len(names) <= MOST_NODES, key, f"has more than {MOST_NODES} entries")
    _need(all(len(name) <= MOST_WORDS for name in names), key, f"has a text of more than {MOST_WORDS} characters")


def _fits(value: Json, spec: Spec, key: str) -> None:
    if isinstance(spec, dict):
        _need(isinstance(value, dict), key, "must be a mapping")
        for name, inner in spec.items():
            inside = f"{key}.{name}" if key else name
            _need(name in value, inside, "is missing")
            _fits(value[name], inner, inside)
    elif isinstance(spec, list):
        _need(isinstance(value, list), key, "must be a list")
        for i, item in enumerate(value):
            _fits(item, spec[0], f"{key}.{i}")
    elif isinstance(spec, tuple):
        _one_of(value, spec, key)
    else:
        _need(value is None if spec is None else _is(value, spec), key, f"has the wrong type: {str(value)[:60]!r}")


def _one_of(value: Json, specs: tuple[Spec, ...], key: str) -> None:
    for spec in specs[:-1]:
        if (value is None and spec is None) or (isinstance(spec, type) and _is(value, spec)):
            return
    _fits(value, specs[-1], key)


def _is(value: Json, kind: type | UnionType) -> bool:
    """Whether a JSON value has a type; true and false are no numbers, nor is what is not finite or too large."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    return not isinstance(value, int | float) or -_MOST < value < _MOST


def _need(holds: bool, key: str, problem: str) -> None:
    if not holds:
        raise Refused(f"{MANIFEST}: {key} {problem}", fix=_AGAIN)
