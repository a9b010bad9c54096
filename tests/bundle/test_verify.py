from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import BadInput, GateMissed, Refused
from edgetl.stages.verify import verify

Make = Callable[..., Path]


@pytest.fixture
def split(tmp_path: Path, images: np.ndarray, truth: np.ndarray) -> Path:
    np.savez(tmp_path / "test.npz", pixel_values=images[:, None], y=truth.argmax(axis=1))
    return tmp_path / "test.npz"


def test_a_good_bundle_passes(make: Make, split: Path) -> None:
    check = verify(make(), split)
    assert check.preprocessing_max_abs == 0
    assert check.parity.max_rel < 1e-6
    assert check.agreement.value == 1
    assert check.score is not None
    assert check.score.accuracy.value == 1
    assert check.score.n == 6
    assert json.loads(json.dumps(check.to_json()))["accuracy"]["accuracy"]["low"] < 1


def test_without_data_there_is_no_accuracy(make: Make) -> None:
    assert verify(make()).to_json()["accuracy"] is None


def test_goldens_without_raw_data_check_the_model_only(readings: Path) -> None:
    check = verify(readings)
    assert check.preprocessing_max_abs is None
    assert check.parity.max_rel < 1e-6


def change_golden(
    folder: Path, reseal: Callable[[Path], None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> Path:
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    np.savez(folder / "golden.npz", **{**arrays, name: change(arrays[name])})
    reseal(folder)
    return folder


def test_other_logits_miss_the_gate_and_say_by_how_much(make: Make, reseal) -> None:
    folder = change_golden(make(), reseal, "logits", lambda a: a + np.float32(0.5))
    with pytest.raises(GateMissed, match=r"off by 0\.5.*limit 0\.0001"):
        verify(folder)


def test_other_pre_processing_misses_the_gate(make: Make, reseal) -> None:
    folder = change_golden(make(), reseal, "raw", lambda a: a ^ 1)
    with pytest.raises(GateMissed, match="pre-processing"):
        verify(folder)


def test_a_lower_accuracy_misses_the_gate(make: Make, split: Path, images: np.ndarray, truth: np.ndarray) -> None:
    np.savez(split, pixel_values=images[:, None], y=(truth.argmax(axis=1) + 1) % 3)
    with pytest.raises(GateMissed, match=r"accuracy is 0\.00%.*limit"):
        verify(make(), split)


def test_low_precision_is_judged_by_the_hosts_difference(make: Make, reseal) -> None:
    folder = make()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["precision"], manifest["parity"]["max_rel"] = "int8", 0.5
    (folder / "manifest.json").write_text(json.dumps(manifest))
    change_golden(folder, reseal, "logits", lambda a: a + np.float32(0.01))
    assert verify(folder).parity.max_abs == pytest.approx(0.01, rel=1e-3)


def test_bad_data_is_named(make: Make, split: Path, tmp_path: Path, images: np.ndarray) -> None:
    folder = make()
    with pytest.raises(BadInput, match="no file"):
        verify(folder, tmp_path / "none.npz")
    np.savez(split, pixel_values=images[:, None])
    with pytest.raises(BadInput, match="'y'"):
        verify(folder, split)
    np.savez(split, pixel_values=images[:, None], y=np.zeros(5, np.int64))
    with pytest.raises(BadInput, match="fit together"):
        verify(folder, split)
    np.savez(split, pixel_values=images[:, None], y=np.full(6, 7))
    with pytest.raises(BadInput, match=r"class number 7 is not in 0\.\.2"):
        verify(folder, split)
    np.savez(split, pixel_values=images[:0, None], y=np.zeros(0, np.int64))
    with pytest.raises(BadInput):
        verify(folder, split)
    split.write_bytes(b"PK no zip")
    with pytest.raises(Refused, match="plain arrays"):
        verify(folder, split)
