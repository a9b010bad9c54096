"""Real public sets, in the folder that EDGETL_DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgetl.audio import decode
from edgetl.data.arrays import Arrays
from edgetl.data.audio_folder import AudioFolder
from edgetl.data.image_folder import ImageFolder
from edgetl.data.sensor_windows import SensorWindows
from edgetl.data.text_csv import TextCsv
from edgetl.network.family import Prep
from edgetl.prepare import prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("EDGETL_DATA" not in os.environ, reason="EDGETL_DATA names no folder of real data"),
]
DATA = Path(os.environ.get("EDGETL_DATA", ""))


def counts(e):
    return {part: np.bincount(e.y[rows], minlength=len(e.labels)).tolist() for part, rows in e.parts.items()}


def test_fashion_mnist_is_whole_and_prepares(tmp_path):
    source = Arrays(root=DATA / "fashion-mnist")
    e = source.examples()
    assert counts(e) == {"train": [6000] * 10, "test": [1000] * 10}
    p = prepare(source, e, source.operations(e.raw, Prep()), 0, tmp_path / "p")
    train = p.inputs["pixel_values"][:60_000] / 255
    assert abs(train.mean() - 0.2860) < 1e-4
    assert abs(train.std() - 0.3530) < 1e-4
    assert {part: len(rows) for part, rows in p.splits.items()} == {"train": 54_000, "validation": 6000, "test": 10_000}


def test_cifar10_images_are_those_of_the_lossless_arrays(tmp_path):
    source = ImageFolder(root=DATA / "cifar10/image_folder_sample", labels=DATA / "cifar10/classes.txt", size=32)
    e = source.examples()
    assert counts(e) == {"train": [20] * 10}
    p = prepare(source, e, source.operations(e.raw, Prep()), 0, tmp_path / "p")
    with np.load(DATA / "cifar10/test.npz", allow_pickle=False) as z:
        x = z["planes"].cumsum(3, dtype=np.uint8).cumsum(2, dtype=np.uint8)
    x[0] += x[1]
    x[2] += x[1]
    known = {image.tobytes() for image in np.ascontiguousarray(x.transpose(1, 0, 2, 3))}
    assert all(image.tobytes() in known for image in p.inputs["pixel_values"])


def test_sst2_keeps_its_three_parts():
    e = TextCsv(root=DATA / "text/sst2").examples()
    assert e.labels == ("0", "1")
    assert counts(e) == {"train": [3310, 3610], "validation": [428, 444], "test": [912, 909]}


def test_banking77_keeps_quotes_and_odd_names():
    e = TextCsv(root=DATA / "text/banking77").examples()
    assert len(e.labels) == 77
    assert {"Refund_not_showing_up", "reverted_card_payment?"} <= set(e.labels)
    assert (len(e.parts["train"]), counts(e)["test"]) == (10_003, [40] * 77)
    assert (min(counts(e)["train"]), max(counts(e)["train"])) == (35, 187)
    assert sum(b'"' in e.read(row) for row in range(len(e.y))) == 29


def test_sensor_windows_keep_their_split_by_subject():
    e = SensorWindows(root=DATA / "timeseries/phone-har").examples()
    assert counts(e)["train"] == [115, 144, 963, 229, 219]
    assert counts(e)["test"] == [29, 49, 478, 102, 55]
    assert (e.raw.dtype, e.raw.shape) == ("float32", (100, 6))
    assert {part: len(np.unique(e.groups[rows])) for part, rows in e.parts.items()} == {
        "train": 14,
        "validation": 3,
        "test": 6,
    }


def test_spoken_digits_have_their_published_split_and_speakers():
    root = DATA / "audio/fsdd/recordings.zip"
    e = AudioFolder(root=root, classes="name", test_files="*_[0-4].wav", speaker=1).examples()
    assert e.labels == tuple("0123456789")
    assert counts(e) == {"train": [270] * 10, "test": [30] * 10}
    assert len(np.unique(e.groups)) == 6
    lengths = [len(decode(e.read(row), 8000)) for row in range(len(e.y))]
    assert (min(lengths), max(lengths)) == (1148, 18262)
    assert sum(length > 8000 for length in lengths) == 20
