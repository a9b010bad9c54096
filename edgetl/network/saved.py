"""The folder of a saved network: model.safetensors, then network.json, which names its sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from edgetl import store
from edgetl.errors import BadInput, Refused
from edgetl.network.family import Family, Prep
from edgetl.network.source import locate, read_json
from edgetl.types import Json

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
HEADER = "network.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
SEAL = "header_sha256"
AGAIN = "make it again, or copy the whole folder again"

KEYS: Mapping[str, type | tuple[type, ...]] = {
    "family": str,
    "config": dict,
    "labels": list,
    "edits": list,
    "weights": dict,
    "digest": str,
    "facts": dict,
}


def is_saved(folder: Path) -> bool:
    """Return whether a folder holds a saved network."""
    return (folder / HEADER).is_file()


def write(folder: Path, header: Mapping[str, Json], state: Mapping[str, Tensor], tokenizer: Path | None) -> None:
    """Write weights and tokenizer, and the header last; every file is whole or absent.

    Raises:
        OutOfResources: the disk is full.

    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEADER).unlink(missing_ok=True)
    data = save({k: v.clone() for k, v in state.items()})
    store.write_bytes(folder / WEIGHTS, data)
    whole = {"schema_version": SCHEMA_VERSION, **header, "weights": {"file": WEIGHTS, "sha256": _sha256(data)}}
    if tokenizer is not None:
        text = tokenizer.read_bytes()
        store.write_bytes(folder / TOKENIZER, text)
        whole["tokenizer"] = {"file": TOKENIZER, "sha256": _sha256(text)}
    store.write_json(folder / HEADER, {**whole, SEAL: store.digest(whole)})


def sealed(header: Mapping[str, Json]) -> bool:
    """Return whether a header is as it was written; it finds corruption, and proves no origin."""
    return bool(header.get(SEAL) == store.digest({k: v for k, v in header.items() if k != SEAL}))


def read(folder: Path) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """Return header and weights; every hash is compared before the file is parsed.

    Raises:
        Refused: a file is missing, damaged, changed, or of a later version.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(folder)
    data = _checked(folder, WEIGHTS, header["weights"])
    if "tokenizer" in header:
        _checked(folder, TOKENIZER, header["tokenizer"])
    try:
        return header, load(data)
    except (SafetensorError, ValueError) as error:
        raise Refused(f"{folder / WEIGHTS} is damaged ({error})", fix=AGAIN) from None


def read_header(folder: Path) -> dict[str, Json]:
    """Return network.json, its version and the types of its fields checked.

    Raises:
        Refused: it is missing, malformed or of a later version.

    """
    path = folder / HEADER
    if not path.is_file():
        raise Refused(f"{folder} has no {HEADER}", fix="give the folder of a saved network")
    header = read_versioned(path, SCHEMA_VERSION, Refused(f"{path} is no saved network", fix=AGAIN))
    wrong = [key for key, kind in KEYS.items() if not isinstance(header.get(key), kind)]
    if wrong:
        raise Refused(f"{path}: '{wrong[0]}' is missing or of a wrong type", fix=AGAIN)
    if not all(isinstance(label, str) for label in header["labels"]):
        raise Refused(f"{path}: a label is no text", fix=AGAIN)
    return dict(header)


def read_versioned(path: Path, known: int, other: Refused) -> dict[str, Json]:
    """Return a JSON object of the schema version that is known; `other` is raised for what is none.

    Raises:
        Refused: it is malformed, of a later version, or something else.

    """
    header = read_json(path)
    version = header.get("schema_version") if isinstance(header, dict) else None
    if type(version) is int and version > known:
        raise Refused(f"{path} was written by a later edgetl (schema {version})", fix="update edgetl")
    if version != known:
        raise other
    return dict(header)


def source_config(family: Family, where: str | Mapping[str, Json], labels: int) -> Json:
    """Return the complete configuration for any source: what `Family.config` takes, or a saved network's folder.

    Raises:
        BadInput: the source is not of this family, or a size is unknown or impossible.
        Refused: network.json is malformed.

    """
    folder = locate(where) if isinstance(where, str) else None
    if folder is None or not is_saved(folder):
        return family.config(where, labels)
    header = read_header(folder)
    if header["family"] != family.name:
        raise BadInput(f"{folder} holds a network of another family", fix=f"write family: {header['family'][:80]}")
    return family.config(header["config"], labels)


def saved_prep(folder: Path) -> Prep | None:
    """Return the pre-processing that a saved network recorded, or None where the folder holds no saved network."""
    if not is_saved(folder):
        return None
    header = read_header(folder)
    return prep_from_json(header["facts"].get("prep", {}), folder)


def prep_json(prep: Prep) -> Json:
    """Return a Prep as plain JSON, without the fields the family does not care about."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(prep).items() if v is not None}


def prep_from_json(recorded: Json, folder: Path) -> Prep:
    """Return the Prep of `prep_json`; a tokenizer lies in `folder`.

    Raises:
        Refused: an unknown field or a wrong type.

    """
    try:
        prep = TypeAdapter(Prep).validate_python(recorded)
    except ValidationError:
        raise Refused(f"{folder / HEADER}: 'prep' is malformed", fix=AGAIN) from None
    known = {f.name for f in fields(Prep)}
    if not recorded.keys() <= known:
        raise Refused(f"{folder / HEADER}: 'prep' has unknown fields", fix=AGAIN)
    return prep if prep.tokenizer is None else replace(prep, tokenizer=str(folder / TOKENIZER))


def _checked(folder: Path, name: str, recorded: Json) -> bytes:
    """Return a file's bytes once they have the recorded hash; the name is ours, never the header's."""
    path = folder / name
    if not path.is_file():
        raise Refused(f"{path} is missing", fix=AGAIN)
    data = path.read_bytes()
    if not isinstance(recorded, dict) or recorded.get("file") != name or recorded.get("sha256") != _sha256(data):
        raise Refused(f"{path} is not the file that {HEADER} names: its sha256 differs", fix=AGAIN)
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
