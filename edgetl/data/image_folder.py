"""A folder of images: root/<class>/*.jpg, or root/{train,validation,test}/<class>/*.jpg."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from edgetl.data._examples import (
    check_classes,
    class_names,
    digest,
    existing,
    file_bytes,
    joined,
    named_parts,
    names_beside,
    numbers,
)
from edgetl.data._fields import ImageFields, image_operations
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part, Source, Unlabelled
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


class ImageFolder(ImageFields, Source):
    """Image files, one folder a class; the folder's name is the class's."""

    use: str = "image_folder"
    root: Path
    labels: Path | None = None  # class names in order; default: labels.json or classes.txt in root, else by name
    skip_share: float = Field(0.001, ge=0, lt=1)  # most unreadable images, as a share, that are left out

    def examples(self) -> Examples:
        """List the images of every class and hash their bytes; they are decoded by the preparation."""
        root = existing(self.root)
        if not root.is_dir():
            raise BadInput(f"{root} is no folder", fix="set data.root to a folder with one folder a class")
        found = {part: _classes(folder) for part, folder in _folders(root).items()}
        files = [path for classes in found.values() for paths in classes.values() for path in paths]
        names = [name for classes in found.values() for name, paths in classes.items() for _ in paths]
        labels = names_beside(root, self.labels) or class_names(found["train"])
        check_classes(labels, str(root))
        y = numbers(names, labels, lambda row: str(files[row]))
        parts = joined({part: sum(map(len, classes.values())) for part, classes in found.items()})
        return Examples(
            raw=Raw("image"),
            labels=labels,
            y=y,
            parts=parts,
            read=lambda row: file_bytes(files[row]),
            digest=digest(map(file_bytes, files), labels, y, parts),
            describe=lambda row: str(files[row]),
            skip_share=self.skip_share,
        )

    def read_unlabelled(self, path: Path, raw: Raw) -> Unlabelled:
        """List the images in a folder and below it, in whatever folders they lie."""
        files = sorted(filter(_image, path.rglob("*"))) if path.is_dir() else []
        if not files:
            raise BadInput(f"{path} is no folder with images", fix=f"set data.unlabelled to one with {_known()}")
        return Unlabelled(len(files), lambda row: file_bytes(files[row]), lambda row: str(files[row]))

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list: decode, resize, channels first, to float, normalise."""
        return image_operations(self, raw, prep)


def _folders(root: Path) -> Mapping[Part, Path]:
    """Return the folders of the published parts; a class may well be named "train", so parts hold folders only."""
    inner = [path for path in _subfolders(root) if _subfolders(path) and not any(map(_image, path.iterdir()))]
    return named_parts(inner, lambda path: path.name, root) or {"train": root}


def _classes(folder: Path) -> Mapping[str, list[Path]]:
    classes = {path.name: sorted(filter(_image, path.rglob("*"))) for path in _subfolders(folder)}
    classes = {name: paths for name, paths in classes.items() if paths}
    if not classes:
        fix = f"make one folder a class with files {_known()}"
        raise BadInput(f"{folder} holds no images in class folders", fix=fix)
    return classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _known() -> str:
    return " ".join(sorted(SUFFIXES))


def _image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


PLUGIN = ImageFolder
