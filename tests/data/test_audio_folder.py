"""Recordings in folders and zip files: classes and parts by folder or name, whole speakers, and damage named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgetl.data.audio_folder import AudioFolder
from edgetl.errors import BadInput
from edgetl.network.family import Prep
from edgetl.prepare import prepare
from tests.test_audio import noise, wav

PREP = Prep(rate=8000, samples=200, window=64, hop=32, bands=8)


def spoken(folder: Path, speakers: int = 5, takes: int = 4) -> Path:
    """Write <digit>_<speaker>_<take>.wav for two digits, each of other sound."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in (0, 1):
        for speaker in range(speakers):
            for take in range(takes):
                samples = noise(100 + 10 * take) // (1 + digit + speaker)
                (folder / f"{digit}_s{speaker}_{take}.wav").write_bytes(wav(samples))
    return folder


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path("recordings") / path.relative_to(folder))
    return file


def test_a_folder_and_its_zip_file_hold_the_same(tmp_path):
    folder = spoken(tmp_path / "digits")
    archive = zipped(folder, tmp_path / "digits.zip")
    a, b = (AudioFolder(root=root, classes="name", test_files="*_0.wav").examples() for root in (folder, archive))
    assert a.digest == b.digest
    assert a.labels == b.labels == ("0", "1")
    assert {part: len(rows) for part, rows in a.parts.items()} == {"train": 30, "test": 10}
    assert all(a.describe(row).endswith("_0.wav") for row in a.parts["test"])
    assert a.read(3) == b.read(3) == (folder / a.describe(3)).read_bytes()


def test_classes_and_parts_are_folders(tmp_path):
    for part in ("train", "val", "test"):
        for name in ("cat", "test"):  # a class may be called like a part
            spoken(tmp_path / part / name, speakers=1, takes=2)
    e = AudioFolder(root=tmp_path).examples()
    assert e.labels == ("cat", "test")
    assert {part: len(rows) for part, rows in e.parts.items()} == {"train": 8, "validation": 8, "test": 8}
    assert np.bincount(e.y).tolist() == [12, 12]


def test_whole_speakers_go_into_one_part(tmp_path):
    source = AudioFolder(root=spoken(tmp_path / "digits"), classes="name", speaker=1)
    e = source.examples()
    p = prepare(source, e, source.operations(e.raw, PREP), 0, tmp_path / "p")
    who = [{e.describe(row).split("_")[1] for row in rows} for rows in p.splits.values()]
    assert sum(map(len, who)) == len(set.union(*who)) == 5
    with pytest.raises(BadInput, match="has no part 3"):
        AudioFolder(root=tmp_path / "digits", classes="name", speaker=3).examples()


def test_recordings_are_prepared_as_spectrograms(tmp_path):
    source = AudioFolder(root=spoken(tmp_path / "digits"), classes="name")
    e = source.examples()
    p = prepare(source, e, source.operations(e.raw, PREP), 0, tmp_path / "p")
    assert p.inputs["input_values"].shape == (40, 1, 8, 5)
    feed = p.preprocess().feed([tmp_path / "digits" / e.describe(7)])
    assert np.array_equal(feed["input_values"][0], p.inputs["input_values"][7])


def test_damaged_files_are_counted_and_named(tmp_path):
    folder = spoken(tmp_path / "digits")
    (folder / "1_s0_0.wav").write_bytes(b"RIFF")
    source = AudioFolder(root=folder, classes="name")
    e = source.examples()
    with pytest.raises(BadInput, match=r"1 of 40 examples cannot be read: 1_s0_0\.wav"):
        prepare(source, e, source.operations(e.raw, PREP), 0, tmp_path / "p")
    (folder / "1_s0_0.wav").write_bytes(wav(noise(99), 16000))
    with pytest.raises(BadInput, match="16000 samples a second"):
        prepare(source, source.examples(), source.operations(e.raw, PREP), 0, tmp_path / "p")


def test_zip_files_that_lie_are_named(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"PK no zip")
    with pytest.raises(BadInput, match="no zip file"):
        AudioFolder(root=tmp_path / "no.zip").examples()
    archive = zipped(spoken(tmp_path / "digits"), tmp_path / "digits.zip")
    data = bytearray(archive.read_bytes())
    data[60:90] = bytes(30)
    archive.write_bytes(data)
    with pytest.raises(BadInput, match="cannot be unpacked"):
        AudioFolder(root=archive, classes="name").examples()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("b/x.wav", wav(noise(10)))
        with bomb.open("a/x.wav", "w") as file:
            for _ in range(130):
                file.write(bytes(10**6))
    with pytest.raises(BadInput, match=r"a/x\.wav: larger than"):
        AudioFolder(root=tmp_path / "bomb.zip").examples()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(BadInput, match="holds no wav files"):
        AudioFolder(root=tmp_path).examples()
    folder = spoken(tmp_path / "digits")
    with pytest.raises(BadInput, match="lies in no folder of a class"):
        AudioFolder(root=folder).examples()
    with pytest.raises(BadInput, match="no train part"):
        AudioFolder(root=folder, classes="name", test_files="*").examples()


def test_fields_and_backbone_agree_or_are_named(tmp_path):
    source = AudioFolder(root=tmp_path, bands=8)
    mel = source.operations(None, PREP)[2]
    assert (mel["rate"], mel["window"], mel["hop"], mel["bands"], mel["high"]) == (8000, 64, 32, 8, 4000)
    with pytest.raises(BadInput, match=r"data\.bands is 9, but the weights of the backbone want 8"):
        AudioFolder(root=tmp_path, bands=9).operations(None, PREP)
    with pytest.raises(BadInput, match="is not given"):
        source.operations(None, Prep())
    with pytest.raises(BadInput, match="do not fit each other"):
        AudioFolder(root=tmp_path, rate=8000, samples=50, window=64, hop=32, bands=8).operations(None, Prep())
    with pytest.raises(BadInput, match="does not tell 64 bands apart"):
        AudioFolder(root=tmp_path, rate=8000, samples=200, window=64, hop=32, bands=64).operations(None, Prep())
    with pytest.raises(ValidationError, match="leave augment out"):
        AudioFolder(root=tmp_path, augment=[{"op": "shift"}])
