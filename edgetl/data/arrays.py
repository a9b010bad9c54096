"""Arrays of numbers: npz files, or the IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl.data._arrays import (
    array_examples,
    check_equal,
    check_pair,
    classes,
    named,
    pair,
    plain,
    read_idx,
    read_npz,
)
from edgetl.data._examples import existing, joined, named_parts, names_beside
from edgetl.data._fields import ImageFields, image_operations
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part, Source, Unlabelled
from edgetl.preprocess import Raw
from edgetl.types import Array, Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep


class Arrays(ImageFields, Source):
    """Samples (N, ...) and their classes (N,). uint8 (N, H, W[, C]) are images, all else passes as float32."""

    use: str = "arrays"
    root: (
        Path  # x.npz, or a folder of train.npz [test.npz, validation.npz] or of IDX files (train-images-idx3-ubyte.gz)
    )
    labels: Path | None = None  # class names; default: labels.json or classes.txt beside the data, else the numbers
    x: str | None = None  # the samples' name inside the npz
    y: str | None = None  # the classes' name inside the npz

    def examples(self) -> Examples:
        """Read every part, published ones kept apart."""
        root = existing(self.root)
        pairs = self._pairs(root)
        for part, (x, y) in pairs.items():
            check_pair(x, y, f"{root} ({part})")
        check_equal({part: x for part, (x, _) in pairs.items()}, root)
        x = plain(np.concatenate([x for x, _ in pairs.values()]), root)
        names = names_beside(root if root.is_dir() else root.parent, self.labels)
        labels, y = classes(np.concatenate([y for _, y in pairs.values()]), names, root)
        parts = joined({part: len(y) for part, (_, y) in pairs.items()})
        return array_examples(x, y, labels, parts, str(root))

    def read_unlabelled(self, path: Path, raw: Raw) -> Unlabelled:
        """Read the samples of an npz file, or an IDX file of images."""
        found = named(read_npz(path), "x", self.x, path) if path.suffix == ".npz" else read_idx(path)
        x = np.ascontiguousarray(plain(found, path))
        if (x.dtype.name, x.shape[1:]) != (raw.dtype, raw.shape):
            problem = f"{path} holds samples of {x.shape[1:]} {x.dtype}, the labelled ones are {raw.shape} {raw.dtype}"
            raise BadInput(problem, fix="give samples of one shape and type")
        return Unlabelled(len(x), lambda row: x[row].tobytes(), lambda row: f"{path} row {row}")

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list for images, or only `to_float` for other arrays."""
        return image_operations(self, raw, prep)

    def _pairs(self, root: Path) -> Mapping[Part, tuple[Array, Array]]:
        if root.is_file():
            return self._inside(root)
        idx = named_parts(root.glob("*-images-idx*-ubyte*"), lambda p: p.name.split("-")[0], root)
        if idx:
            return {part: (read_idx(path), read_idx(_labels_of(path))) for part, path in idx.items()}
        npz = named_parts(root.glob("*.npz"), lambda p: p.stem, root)
        if npz:
            return {part: pair(read_npz(path), (self.x, self.y), path) for part, path in npz.items()}
        fix = "set data.root to an npz file, or to a folder with train.npz or train-images-idx3-ubyte.gz"
        raise BadInput(f"{root} holds neither npz nor IDX files of a train part", fix=fix)

    def _inside(self, file: Path) -> Mapping[Part, tuple[Array, Array]]:
        if file.suffix != ".npz":
            raise BadInput(f"{file} is no npz file", fix="give an npz file, or the folder that holds the IDX files")
        arrays = read_npz(file)
        if "x_train" not in arrays:
            return {"train": pair(arrays, (self.x, self.y), file)}
        found: dict[Part, tuple[Array, Array]] = {}
        endings: tuple[tuple[Part, str], ...] = (("train", "_train"), ("validation", "_val"), ("test", "_test"))
        for part, ending in endings:
            if f"x{ending}" in arrays:
                found[part] = pair(arrays, (self.x, self.y), file, ending)
        return found


def _labels_of(images: Path) -> Path:
    stem = images.name.split("-images-")[0]
    path = next(iter(sorted(images.parent.glob(f"{stem}-labels-idx1-ubyte*"))), None)
    if path is None:
        raise BadInput(f"{images} has no {stem}-labels-idx1-ubyte beside it", fix="add the file with the labels")
    return path


PLUGIN = Arrays
