"""Saved datasets and folders of data files, without the hub."""

import io

import pytest
from PIL import Image

from edgetl.data.hf_dataset import HfDataset
from edgetl.errors import BadInput
from edgetl.network.family import Prep
from edgetl.prepare import prepare

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_saved_set_of_texts_keeps_its_parts_and_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    train = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["c"], "label": [-1]}, features=features)
    datasets.DatasetDict({"train": train, "validation": train, "test": hidden}).save_to_disk(tmp_path / "d")
    e = HfDataset(path=str(tmp_path / "d")).examples()
    assert (e.labels, e.y.tolist(), list(e.parts)) == (("no", "yes"), [1, 0, 1, 0], ["train", "validation"])
    assert e.read(1) == b"b"


def test_a_saved_set_of_images_prepares(tmp_path):
    def png(value):
        file = io.BytesIO()
        Image.new("L", (6, 6), value).save(file, "png")
        return {"bytes": file.getvalue(), "path": None}

    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [png(i * 20) for i in range(8)], "label": [i % 2 for i in range(8)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    source = HfDataset(path=str(tmp_path / "d"), size=4, channels=1)
    e = source.examples()
    p = prepare(source, e, source.operations(e.raw, Prep()), 0, tmp_path / "p")
    assert p.labels == ("0", "1")
    assert p.inputs["pixel_values"][5].max() == 100


def test_wrong_sets_are_named(tmp_path):
    for path in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(BadInput, match="cannot be loaded"):
            HfDataset(path=path).examples()
    datasets.Dataset.from_dict({"body": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path / "d")
    with pytest.raises(BadInput, match="body") as caught:
        HfDataset(path=str(tmp_path / "d")).examples()
    assert "data.column" in caught.value.fix
    with pytest.raises(BadInput, match="no column 'kind'"):
        HfDataset(path=str(tmp_path / "d"), column="body", label="kind").examples()
