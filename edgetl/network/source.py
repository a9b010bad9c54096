"""Folders and hub ids that weights come from: found, checked and read. Nothing in them is ever executed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.errors import BadInput, Refused
from edgetl.types import Json

if TYPE_CHECKING:
    from torch import Tensor

WANTED = ("*.json", "*.safetensors", "vocab.txt", "README.md")
"""What is fetched for a hub id; pickles and code stay where they are."""

JSON_BYTES = 64_000_000
"""The largest JSON file that is parsed."""


def locate(source: str) -> Path:
    """Return the folder of a source: a folder as it is, or a hub id fetched into Hugging Face's cache.

    A safetensors file, which is all that some publish, is returned as it is; few families read it.

    Raises:
        BadInput: neither, or the hub cannot be reached and the cache does not hold it.

    """
    path = Path(source).expanduser()
    if path.is_dir() or is_weights(path):
        return path
    if path.suffix.lower() == ".onnx":
        raise BadInput(
            f"{source} is an ONNX file, and networks are compressed before they are exported",
            fix="give the folder with config.json and model.safetensors that it was exported from",
        )
    if path.is_file():
        raise BadInput(f"{source} is a file, not a folder", fix=f"give its folder: {path.parent}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source):
        raise BadInput(f"no folder {source}", fix="give the path of a folder with config.json and model.safetensors")
    return _fetch(source)


def is_weights(path: Path) -> bool:
    """Return whether a source is a bare file of weights, with no configuration and no labels."""
    return path.suffix == ".safetensors" and path.is_file()


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadInput(
            f"there is no folder {name}, and the hub did not deliver it ({type(error).__name__})",
            fix="correct the path or hub id, or download the model on a machine with a connection and give its folder",
        ) from None


def read_json(path: Path) -> Json:
    """Return the content of a JSON file that nobody vouches for.

    Raises:
        Refused: it is too large, or no JSON.

    """
    if path.stat().st_size > JSON_BYTES:
        raise Refused(f"{path} is larger than {JSON_BYTES // 1_000_000} MB", fix="get the file again from its origin")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Refused(f"{path} is no JSON", fix="get the file again from its origin") from None


def read_config(folder: Path) -> dict[str, Json]:
    """Return config.json of a Hugging Face folder.

    Raises:
        BadInput: there is none.
        Refused: the model needs code of its own.

    """
    path = folder / "config.json"
    if not path.is_file():
        onnx = sorted(p.name for p in folder.glob("*.onnx"))
        extra = f"; {onnx[0]} is an ONNX file, which cannot be trained or cut" if onnx else ""
        bare = sorted(folder.glob("*.safetensors"))
        other = f", or to a family that reads bare weights the file {bare[0]}" if bare else ""
        raise BadInput(f"{folder} has no config.json{extra}", fix=f"give the folder that save_pretrained wrote{other}")
    config = read_json(path)
    if not isinstance(config, dict):
        raise Refused(f"{path} holds no mapping", fix="get the file again from its origin")
    if "auto_map" in config:
        raise Refused(
            f"{path} asks for code of its own (auto_map), which edgetl never runs",
            fix="use a model of a class that ships with transformers",
        )
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder's safetensors, one file or several with an index, or of a bare file, by name.

    Raises:
        BadInput: there are none, or a part is missing.
        Refused: there are only pickles, a file is damaged, or the index points outside the folder.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in _files(folder):
        try:
            tensors.update(load_file(path))
        except (SafetensorError, ValueError) as error:
            raise Refused(f"{path} is damaged ({error})", fix="get the file again from its origin") from None
    return tensors


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file by their names there; no tensor is read.

    Raises:
        Refused: the file is damaged.

    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise Refused(f"{file} is damaged ({error})", fix="get the file again from its origin") from None


def _files(folder: Path) -> list[Path]:
    if is_weights(folder):
        return [folder]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _shards(folder, read_json(index))
    if any(p for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)):
        raise Refused(
            f"{folder} holds its weights only as a pickle, which can run code when opened",
            fix="convert it to safetensors where you trust it: model.save_pretrained(folder, safe_serialization=True)",
        )
    raise BadInput(f"{folder} has no model.safetensors", fix="give the folder that save_pretrained wrote")


def _shards(folder: Path, index: Json) -> list[Path]:
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise Refused(f"{folder}/model.safetensors.index.json has no weight_map", fix="get it again from its origin")
    names = sorted(set(where.values()))
    for name in names:
        if not re.fullmatch(r"[\w][\w.-]*\.safetensors", name):
            raise Refused(f"the index in {folder} names {name[:80]}", fix="get the file again from its origin")
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name} is missing", fix="download every part that the index names")
    return [folder / name for name in names]


def file_labels(config: Mapping[str, Json]) -> tuple[str, ...]:
    """Return the class names that a config.json records, in the order of the logits; empty where there are none."""
    names = config.get("id2label")
    if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))):
        return ()
    return tuple(str(names[str(i)]) for i in range(len(names)))


def licence(folder: Path) -> str | None:
    """Return the licence that the model card's front matter names, or None."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_bytes()[:100_000].decode("utf-8", "replace")
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:\s*[\"']?([^\s\"'#]+)", front[1], re.MULTILINE) if front else None
    return line[1] if line else None
