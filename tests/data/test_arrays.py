"""npz and IDX files become examples; every kind of damage is named with its file."""

import gzip
import json
import struct

import numpy as np
import pytest

from edgetl.data.arrays import Arrays
from edgetl.errors import BadInput

X = np.random.default_rng(0).integers(0, 256, (12, 5, 4), np.uint8)
Y = np.arange(12) % 3


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    for part, rows in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(X[rows])))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(Y[rows].astype(np.uint8)))
    return tmp_path


def test_idx_files_keep_their_published_test_part(mnist):
    e = Arrays(root=mnist).examples()
    assert e.labels == ("0", "1", "2")
    assert (e.raw.kind, e.raw.dtype, e.raw.shape) == ("array", "uint8", (5, 4))
    assert {part: rows.tolist() for part, rows in e.parts.items()} == {"train": list(range(9)), "test": [9, 10, 11]}
    assert e.read(10) == X[10].tobytes()
    assert np.array_equal(e.y, Y)


@pytest.mark.parametrize("names", [("x", "y"), ("X", "label"), ("planes", "kinds")])
def test_one_npz_is_all_train(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)))
    own = dict(zip(("x", "y"), names, strict=True)) if names[0] == "planes" else {}
    e = Arrays(root=tmp_path / "a.npz", **own).examples()
    assert {part: len(rows) for part, rows in e.parts.items()} == {"train": 12}


def test_parts_come_as_files_or_inside_one_file_and_have_one_digest(tmp_path):
    (tmp_path / "many").mkdir()
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    for part, rows in parts.items():
        np.savez(tmp_path / f"many/{part}.npz", X=X[rows], y=Y[rows])
    inside = {f"{key}_{part}": a[rows] for part, rows in parts.items() for key, a in (("x", X), ("y", Y))}
    np.savez(tmp_path / "one.npz", **inside)
    many, one = Arrays(root=tmp_path / "many").examples(), Arrays(root=tmp_path / "one.npz").examples()
    assert list(many.parts) == ["train", "validation", "test"]
    assert many.digest == one.digest
    np.savez(tmp_path / "one.npz", **inside | {"x_test": X[9:] ^ np.uint8(1)})
    assert Arrays(root=tmp_path / "one.npz").examples().digest != many.digest


def test_names_come_from_the_file_beside_the_data_or_the_one_given(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    assert Arrays(root=tmp_path / "a.npz").examples().labels == ("cat", "dog", "bird")
    (tmp_path / "mine.json").write_text(json.dumps(["u", "v", "w"]))
    assert Arrays(root=tmp_path / "a.npz", labels=tmp_path / "mine.json").examples().labels == ("u", "v", "w")


def test_labels_that_are_names_or_odd_numbers_get_class_numbers_in_order(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.array(["dog", "cat", "elk"])[Y])
    e = Arrays(root=tmp_path / "a.npz").examples()
    assert (e.labels, e.y[:3].tolist()) == (("cat", "dog", "elk"), [1, 0, 2])
    np.savez(tmp_path / "a.npz", x=X, y=np.array([2, 10, 1])[Y])
    e = Arrays(root=tmp_path / "a.npz").examples()
    assert (e.labels, e.y[:3].tolist()) == (("1", "2", "10"), [1, 2, 0])


def test_other_numbers_pass_as_float32(tmp_path):
    np.savez(tmp_path / "a.npz", x=X.astype(np.float64) / 7, y=Y)
    e = Arrays(root=tmp_path / "a.npz").examples()
    assert e.raw.dtype == "float32"
    assert np.allclose(np.frombuffer(e.read(3), np.float32).reshape(5, 4), X[3] / 7)


WRONG = {
    "shorter labels": {"x": X, "y": Y[:5]},
    "float labels": {"x": X, "y": Y / 2},
    "no samples": {"x": X[:0], "y": Y[:0]},
    "no labels": {"x": X},
    "one class": {"x": X, "y": Y * 0},
    "objects": {"x": np.array([None] * 12, dtype=object), "y": Y},
    "not finite": {"x": np.where(X > 200, np.nan, X.astype(float)), "y": Y},
    "strings": {"x": X.astype(str), "y": Y},
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_named_with_their_file(tmp_path, case):
    np.savez(tmp_path / "a.npz", **WRONG[case])
    with pytest.raises(BadInput, match=r"a\.npz") as caught:
        Arrays(root=tmp_path / "a.npz").examples()
    assert caught.value.fix


def test_a_label_beyond_the_names_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "labels.json").write_text('["a", "b"]')
    with pytest.raises(BadInput, match="label 2: '2' is no class"):
        Arrays(root=tmp_path / "a.npz").examples()


@pytest.mark.parametrize("names", ['["a", "a", "b"]', '{"a": 1}', "[]", "[1, 2, 3]", "{"])
def test_a_wrong_file_of_names_is_named(tmp_path, names):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "labels.json").write_text(names)
    with pytest.raises(BadInput, match=r"labels\.json"):
        Arrays(root=tmp_path / "a.npz").examples()


def test_damaged_files_are_named(mnist, tmp_path):
    images = mnist / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for damaged in (whole[:-20], b"no gzip", gzip.compress(b"no idx"), gzip.compress(idx(X)[:-1]), gzip.compress(b"")):
        images.write_bytes(damaged)
        with pytest.raises(BadInput, match="train-images"):
            Arrays(root=mnist).examples()
    images.write_bytes(whole)
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(BadInput, match="t10k-labels"):
        Arrays(root=mnist).examples()
    (tmp_path / "b.npz").write_bytes(b"PK no zip")
    for root in (tmp_path / "b.npz", tmp_path / "none", tmp_path / "t10k-images-idx3-ubyte.gz"):
        with pytest.raises(BadInput, match=root.name):
            Arrays(root=root).examples()


def test_parts_of_different_shape_and_a_missing_train_part_are_errors(tmp_path):
    np.savez(tmp_path / "test.npz", x=X, y=Y)
    with pytest.raises(BadInput, match="no train part"):
        Arrays(root=tmp_path).examples()
    np.savez(tmp_path / "train.npz", x=X[:, 1:], y=Y)
    with pytest.raises(BadInput, match="the parts differ"):
        Arrays(root=tmp_path).examples()
