"""Arrays of numbers: npz files, or the IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.data._arrays import array_examples, read_idx, read_npz
from edgetl.data._examples import check_classes, class_names, existing, joined, named_parts, names_beside, numbers
from edgetl.data._fields import ImageFields, image_operations
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part, Source
from edgetl.preprocess import Raw
from edgetl.types import Array, Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

X_NAMES = ("x", "X", "images", "data", "features")
Y_NAMES = ("y", "Y", "labels", "label", "targets", "target")


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
            _check_pair(x, y, f"{root} ({part})")
        _check_equal({part: x for part, (x, _) in pairs.items()}, root)
        x = _plain(np.concatenate([x for x, _ in pairs.values()]), root)
        names = names_beside(root if root.is_dir() else root.parent, self.labels)
        labels, y = _classes(np.concatenate([y for _, y in pairs.values()]), names, root)
        parts = joined({part: len(y) for part, (_, y) in pairs.items()})
        return array_examples(x, y, labels, parts, str(root))

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
            return {part: self._pair(read_npz(path), path, "") for part, path in npz.items()}
        fix = "set data.root to an npz file, or to a folder with train.npz or train-images-idx3-ubyte.gz"
        raise BadInput(f"{root} holds neither npz nor IDX files of a train part", fix=fix)

    def _inside(self, file: Path) -> Mapping[Part, tuple[Array, Array]]:
        if file.suffix != ".npz":
            raise BadInput(f"{file} is no npz file", fix="give an npz file, or the folder that holds the IDX files")
        arrays = read_npz(file)
        if "x_train" not in arrays:
            return {"train": self._pair(arrays, file, "")}
        found: dict[Part, tuple[Array, Array]] = {}
        endings: tuple[tuple[Part, str], ...] = (("train", "_train"), ("validation", "_val"), ("test", "_test"))
        for part, ending in endings:
            if f"x{ending}" in arrays:
                found[part] = self._pair(arrays, file, ending)
        return found

    def _pair(self, arrays: Mapping[str, Array], file: Path, ending: str) -> tuple[Array, Array]:
        found = []
        for key, own, usual in (("x", self.x, X_NAMES), ("y", self.y, Y_NAMES)):
            wanted = [f"{name}{ending}" for name in ((own,) if own is not None else usual)]
            name = next((name for name in wanted if name in arrays), None)
            if name is None:
                problem = f"{file} has no {' or '.join(wanted)}, only {', '.join(sorted(arrays)) or 'nothing'}"
                raise BadInput(problem, fix=f"give the name of the array as data.{key}")
            found.append(arrays[name])
        return found[0], found[1]


def _labels_of(images: Path) -> Path:
    stem = images.name.split("-images-")[0]
    path = next(iter(sorted(images.parent.glob(f"{stem}-labels-idx1-ubyte*"))), None)
    if path is None:
        raise BadInput(f"{images} has no {stem}-labels-idx1-ubyte beside it", fix="add the file with the labels")
    return path


def _check_pair(x: Array, y: Array, where: str) -> None:
    if x.ndim < 2 or len(x) == 0:
        raise BadInput(f"{where} holds no samples: its array is {x.shape}", fix="give samples as (N, ...)")
    if y.ndim != 1 or len(y) != len(x):
        raise BadInput(f"{where} has {len(x)} samples but labels of shape {y.shape}", fix="give one label a sample")
    if y.dtype.kind not in "iuU":
        raise BadInput(f"{where} has labels of type {y.dtype}", fix="give whole numbers or names")


def _check_equal(parts: Mapping[Part, Array], root: Path) -> None:
    kinds = {(x.shape[1:], x.dtype) for x in parts.values()}
    if len(kinds) > 1:
        shown = ", ".join(f"{part} {x.shape[1:]} {x.dtype}" for part, x in parts.items())
        raise BadInput(f"{root}: the parts differ: {shown}", fix="give samples of one shape and type")


def _plain(x: Array, root: Path) -> Array:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiu":
        raise BadInput(f"{root} holds samples of type {x.dtype}", fix="give numbers")
    plain = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(plain).all(axis=tuple(range(1, plain.ndim))))
    if len(bad):
        problem = f"{root} row {bad[0]} and {len(bad) - 1} more hold values that are not finite"
        raise BadInput(problem, fix="clean or drop these samples")
    return plain


def _classes(y: Array, names: tuple[str, ...] | None, root: Path) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    values = [str(value) for value in y.tolist()]
    labels = names or class_names(values)
    check_classes(labels, str(root))
    return labels, numbers(values, labels, lambda row: f"{root} label {row}")


PLUGIN = Arrays
