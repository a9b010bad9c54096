"""What saved networks and sources are known by in the keys of steps. [no torch]"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgetl import store
from edgetl.errors import Refused
from edgetl.network import saved, source
from edgetl.types import Json


def source_key(where: str | Mapping[str, Json]) -> Json:
    """Return what a source's key is: sizes as they are, else the hashes of the folder's files.

    Raises:
        BadInput: the source is missing.

    """
    if not isinstance(where, str):
        return dict(where)
    folder = source.locate(where)
    if source.is_weights(folder):
        return {"weights": store.file_digest(folder)}
    kept = [p for pattern in ("*.json", "*.safetensors", "*.txt", "*/config.json") for p in folder.glob(pattern)]
    return {p.relative_to(folder).as_posix(): store.file_digest(p) for p in sorted(kept)}


def network_key(folder: Path) -> str:
    """Return the digest of a saved network, without its weights being read.

    Raises:
        Refused: the folder holds none.

    """
    return str(saved.read_header(folder)["digest"])


def finished(folder: Path, key: str) -> bool:
    """Return whether a step of this key is saved there, whole and unchanged."""
    if not saved.is_saved(folder):
        return False
    try:
        header = saved.read_header(folder)
    except Refused:
        return False
    files = [header["weights"], *([header["tokenizer"]] if "tokenizer" in header else [])]
    names = {saved.WEIGHTS, saved.TOKENIZER}
    whole = all(
        isinstance(f, dict)
        and f.get("file") in names
        and (folder / f["file"]).is_file()
        and store.file_digest(folder / f["file"]) == f.get("sha256")
        for f in files
    )
    return whole and saved.sealed(header) and header.get("key") == key
