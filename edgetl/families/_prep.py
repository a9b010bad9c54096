"""What a folder of Hugging Face records of the images that its weights want: preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgetl.network.family import Prep
from edgetl.network.source import read_json
from edgetl.types import Json

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as the file writes them."""


def recorded(folder: Path, size: tuple[int, int], channels: int) -> Prep:
    """Return size and channels as given, and mean, deviation and filter where the folder records them."""
    found = _read(folder)
    scaled = found.get("do_normalize", True) and "image_mean" in found and "image_std" in found
    return Prep(
        size=size,
        channels=channels,
        mean=tuple(map(float, found["image_mean"])) if scaled else None,
        std=tuple(map(float, found["image_std"])) if scaled else None,
        resample=RESAMPLE.get(found.get("resample", -1)),
    )


def side(folder: Path) -> int | None:
    """Return the side of the square images in pixels, or None where the folder does not record it."""
    found = _read(folder)
    size = found.get("crop_size") if found.get("do_center_crop") else None
    size = found.get("size") if size is None else size
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return size if type(size) is int else None


def _read(folder: Path) -> Mapping[str, Json]:
    path = folder / "preprocessor_config.json"
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, Mapping) else {}
