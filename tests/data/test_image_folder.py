"""Folders of images, with and without published parts, whole and damaged."""

import numpy as np
import pytest
from PIL import Image

from edgetl.data.image_folder import ImageFolder
from edgetl.errors import BadInput
from edgetl.network.family import Prep
from edgetl.prepare import prepare


def fill(folder, classes=("cat", "dog"), count=5, start=0):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8 + i, 9), (start + 40 * number, 10 * i, 5)).save(folder / name / f"{i}.png")


def test_every_folder_is_a_class_and_other_files_are_ignored(tmp_path):
    fill(tmp_path)
    (tmp_path / "cat/notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    e = ImageFolder(root=tmp_path).examples()
    assert (e.labels, e.y.tolist(), e.raw.kind) == (("cat", "dog"), [0] * 5 + [1] * 5, "image")
    assert e.read(7) == (tmp_path / "dog/2.png").read_bytes()
    assert e.describe(7).endswith("dog/2.png")


def test_published_parts_are_kept(tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        fill(tmp_path / part, count=count)
    e = ImageFolder(root=tmp_path).examples()
    assert {part: len(rows) for part, rows in e.parts.items()} == {"train": 8, "validation": 4, "test": 6}


def test_a_class_may_be_named_like_a_part(tmp_path):
    fill(tmp_path, ("train", "car"))
    assert ImageFolder(root=tmp_path).examples().labels == ("car", "train")


def test_the_digest_knows_bytes_and_classes_but_not_the_place(tmp_path):
    for name in "ab":
        fill(tmp_path / name)
    first, second = (ImageFolder(root=tmp_path / name).examples().digest for name in "ab")
    assert first == second
    (tmp_path / "b/cat").rename(tmp_path / "b/cow")
    assert ImageFolder(root=tmp_path / "b").examples().digest != first


def test_wrong_folders_are_named(tmp_path):
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(BadInput, match=root.name):
            ImageFolder(root=root).examples()
    fill(tmp_path, ("only",))
    with pytest.raises(BadInput, match="1 class"):
        ImageFolder(root=tmp_path).examples()


def test_a_test_class_that_train_lacks_is_named(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(BadInput, match="'cow' is no class"):
        ImageFolder(root=tmp_path).examples()


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", b"text"])
def test_a_damaged_image_stops_the_preparation_unless_few_may_be_skipped(tmp_path, damage):
    fill(tmp_path / "d")
    (tmp_path / "d/cat/1.png").write_bytes(damage)
    source = ImageFolder(root=tmp_path / "d", size=8)
    e = source.examples()
    operations = source.operations(e.raw, Prep())
    with pytest.raises(BadInput, match=r"1 of 10 examples cannot be read: .*cat/1\.png"):
        prepare(source, e, operations, 0, tmp_path / "p")
    source = ImageFolder(root=tmp_path / "d", size=8, skip_share=0.1)
    p = prepare(source, source.examples(), operations, 0, tmp_path / "p")
    assert [name[-9:] for name in p.recorded["skipped"]] == ["cat/1.png"]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_images_of_all_sizes_are_brought_to_the_one_asked_for(tmp_path, fit):
    fill(tmp_path / "d")
    source = ImageFolder(root=tmp_path / "d", size=(6, 4), fit=fit, channels=1)
    e = source.examples()
    p = prepare(source, e, source.operations(e.raw, Prep()), 0, tmp_path / "p")
    assert p.inputs["pixel_values"].shape == (10, 1, 6, 4)
    assert p.preprocess().feed([np.zeros((50, 20, 3), np.uint8)])["pixel_values"].shape == (1, 1, 6, 4)
