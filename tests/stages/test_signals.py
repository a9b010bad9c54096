"""Windows of readings and recordings, from a recipe to an app: the bundle answers to raw samples as torch does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import edgetl
from edgetl.bundle import open_bundle, read_golden
from edgetl.errors import BadInput
from edgetl.network import network as networks
from edgetl.recipe import yaml12
from edgetl.recipe.read import read
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.verify import verify
from edgetl.types import Json
from tests.test_audio import wav

LABELS = ("high", "low")


def wave_of(label: str, random: np.random.Generator, length: int, rate: float) -> np.ndarray:
    """A noisy tone, quick or slow by its label."""
    hertz = {"high": 0.2, "low": 0.03}[label] * rate
    phase = random.random() * 2 * np.pi
    return np.sin(2 * np.pi * hertz * np.arange(length) / rate + phase) + 0.1 * random.normal(size=length)


def sensor(folder: Path) -> Json:
    random = np.random.default_rng(0)
    y = np.array([LABELS[i % 2] for i in range(80)])
    waves = np.stack([wave_of(label, random, 24, 50) for label in y])
    x = np.stack([9.8 + waves, 100 * random.normal(size=waves.shape)], axis=2).astype(np.float32)
    np.savez(folder / "train.npz", x=x, y=y, subject=np.arange(80) // 8)
    model = {"family": "cnn1d", "source": {"length": 24, "num_channels": 2, "widths": [4, 8]}}
    return {"model": model, "data": {"use": "sensor_windows", "root": str(folder)}}


def audio(folder: Path) -> Json:
    random = np.random.default_rng(0)
    for i in range(80):
        label = LABELS[i % 2]
        tone = wave_of(label, random, 300 + i, 8000) * 8000
        (folder / f"{label}_{i // 8}_{i}.wav").write_bytes(wav(tone.astype(np.int16)))
    sizes = {"rate": 8000, "samples": 320, "window": 64, "hop": 32, "bands": 8, "channels": 4}
    data = {"use": "audio_folder", "root": str(folder), "classes": "name", "speaker": 1}
    return {"model": {"family": "audio_resnet", "source": sizes}, "data": data}


@dataclass(frozen=True)
class Made:
    """A run of one kind of data."""

    run: Path
    bundle: Path
    manifest: Mapping[str, Json]


@pytest.fixture(scope="module", params=[sensor, audio])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    (folder / "data").mkdir()
    schedule = {"epochs": 12, "lr": 5e-3, "batch": 16}
    steps = [{"use": "finetune", "name": "dense", "schedule": schedule}]
    raw = {"name": "signals", "threads": 1, **request.param(folder / "data"), "steps": steps}
    (folder / "recipe.yaml").write_text(yaml12.write(raw))
    before = torch.get_num_threads()
    compress(read(folder / "recipe.yaml"), folder / "run")
    export(folder / "run")
    torch.set_num_threads(before)
    bundle = folder / "run/bundles/dense/onnx-fp32"
    return Made(folder / "run", bundle, open_bundle(bundle).manifest)


def test_an_app_gets_torchs_answers_from_raw_samples(made: Made) -> None:
    golden = read_golden(open_bundle(made.bundle))
    net = networks.load(made.run / "steps/01-dense/all")
    assert golden.raw is not None
    with torch.no_grad():
        wanted = net.logits({k: torch.from_numpy(np.array(v)) for k, v in golden.inputs.items()}).softmax(-1).numpy()
    with edgetl.load(made.bundle) as model:
        found = model.predict(list(golden.raw))
        assert [model.predict(data) for data in golden.raw[:3]] == found[:3]
    scores = np.array([[each.scores[label] for label in LABELS] for each in found])
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_both_kinds_are_learnt(made: Made) -> None:
    assert made.manifest["accuracy"]["accuracy"]["value"] > 0.8


def test_the_file_repeats_its_goldens_and_the_accuracy(made: Made) -> None:
    check = verify(made.bundle, made.run / "eval/test.npz")
    assert check.preprocessing_max_abs == 0
    assert check.agreement.value == 1.0
    assert check.score is not None
    assert check.stated == check.score.accuracy


def test_the_manifest_says_what_is_read_and_how(made: Made) -> None:
    operations = [operation["op"] for operation in made.manifest["preprocessing"]]
    (given,) = made.manifest["inputs"]
    assert given["name"] == "input_values"
    if made.manifest["raw"]["kind"] == "audio":
        assert operations == ["decode_wav", "pad_or_trim", "log_mel", "to_float"]
        assert given["shape"] == ["batch", 1, 8, 9]
    else:
        assert made.manifest["raw"] == {"kind": "array", "dtype": "float32", "shape": [24, 2]}
        assert operations == ["channels_first", "to_float"]
        assert given["shape"] == ["batch", 2, 24]


def test_files_arrays_and_bytes_are_the_same_sample(made: Made, tmp_path: Path) -> None:
    golden = read_golden(open_bundle(made.bundle))
    assert golden.raw is not None
    data = golden.raw[0]
    with edgetl.load(made.bundle) as model:
        wanted = model.predict(data)
        if made.manifest["raw"]["kind"] == "audio":
            (tmp_path / "a.wav").write_bytes(data)
            assert model.predict(tmp_path / "a.wav") == wanted
            assert model.predict(np.frombuffer(data[44:], np.int16)) == wanted
            wrong: tuple[object, ...] = (b"RIFF", tmp_path / "none.wav", wav(np.zeros(9, np.int16), 44100))
        else:
            window = np.frombuffer(data, np.float32).reshape(24, 2)
            np.save(tmp_path / "a.npy", window)
            assert model.predict(tmp_path / "a.npy") == model.predict(window) == wanted
            wrong = (data[:-1], window[:-1], np.full_like(window, np.nan), tmp_path / "none.npy")
        for sample in wrong:
            with pytest.raises(BadInput):
                model.predict(sample)  # type: ignore[call-overload]


def test_its_network_is_a_source_and_is_exported_by_itself(made: Made, tmp_path: Path) -> None:
    folder = made.run / "steps/01-dense/all"
    net = networks.load(folder)
    assert net.family.prep(str(folder), net.config) == net.family.prep({}, net.config)
    networks.save(net, tmp_path / "alone")
    [bundle] = export(tmp_path / "alone")
    assert open_bundle(bundle).manifest["preprocessing"] == made.manifest["preprocessing"]
    assert verify(bundle).agreement.value == 1.0


def test_pictures_need_another_family(made: Made, tmp_path: Path) -> None:
    raw = yaml12.read((made.run.parent / "recipe.yaml").read_text(), "recipe.yaml")
    raw["model"] = {"family": "resnet_cifar", "source": {}}
    (tmp_path / "recipe.yaml").write_text(yaml12.write(raw))
    with pytest.raises(BadInput, match="family 'resnet_cifar' reads image"):
        compress(read(tmp_path / "recipe.yaml"), tmp_path / "run")


def test_arrays_of_another_shape_are_named(tmp_path: Path) -> None:
    sensor(tmp_path)
    model = {"family": "cnn1d", "source": {"length": 24, "num_channels": 2}}
    raw = {"name": "signals", "model": model, "data": {"use": "arrays", "root": str(tmp_path)}, "steps": []}
    (tmp_path / "recipe.yaml").write_text(yaml12.write(raw))
    with pytest.raises(BadInput, match=r"input_values of shape \(24, 2\), the backbone reads \(2, 24\)"):
        compress(read(tmp_path / "recipe.yaml"), tmp_path / "run")
