from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgetl
from edgetl.errors import BadInput, EdgetlError, Refused
from edgetl.runtime import load

Make = Callable[..., Path]
APP = Path(__file__).parents[2] / "examples" / "python" / "classify.py"


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


def test_load_is_the_runtimes(make: Make) -> None:
    assert edgetl.load is load
    assert "load" in dir(edgetl)
    with pytest.raises(AttributeError, match="nonsense"):
        edgetl.nonsense  # noqa: B018


def test_the_version_is_the_packages() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{edgetl.__version__}"' in pyproject


def test_one_sample_gives_one_answer_and_a_list_a_list(make: Make, images: np.ndarray, truth: np.ndarray) -> None:
    with load(make()) as model:
        found = model.predict(list(images))
        one = model.predict(images[0])
    assert [p.label for p in found] == [model.labels[i] for i in truth.argmax(axis=1)]
    np.testing.assert_allclose([list(p.scores.values()) for p in found], softmax(truth), rtol=1e-5)
    assert one == found[0]
    assert one.score == max(one.scores.values()) == one.scores[one.label]


def test_every_form_of_a_sample_gives_the_same_answer(make: Make, images: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", images[0])
    forms = [
        images[0],
        images[0].astype(np.int64),
        images[0].astype(np.float64),
        images[0].tobytes(),
        Image.fromarray(images[0]),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        tmp_path / "a.npy",
    ]
    model = load(str(make()), threads=None)
    assert len(set(map(str, model.predict(forms)))) == 1


def test_a_long_list_runs_in_batches(make: Make, images: np.ndarray) -> None:
    model = load(make())
    assert model.predict([images[i % 6] for i in range(71)])[70] == model.predict(images[70 % 6])
    assert model.predict([]) == []
    one_by_one = load(make(axes={"batch": [1, 1]}))
    assert one_by_one.predict(list(images)) == model.predict(list(images))


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (np.zeros((5, 4), np.uint8), "shape"),
        (np.zeros((2, 4, 4), np.uint8), "shape"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), 0.5), "uint8"),
        (np.full((4, 4), 256), "uint8"),
        (np.full((4, 4), -1), "uint8"),
        (np.full((4, 4), "x"), "numbers"),
        ("no/such/file.png", "no file"),
        ("a text " * 1000, "no file"),
        ("nul\0", "no file"),
        (b"123", "3 bytes"),
        (None, "NoneType"),
        (3.5, "float"),
        ({}, "dict"),
    ],
)
def test_bad_samples_are_named_in_one_line(make: Make, sample: object, says: str) -> None:
    with load(make()) as model:
        for given in (sample, [np.zeros((4, 4), np.uint8), sample]):
            with pytest.raises(BadInput, match=says) as caught:
                model.predict(given)
            assert "\n" not in caught.value.problem
            assert caught.value.fix


def test_files_that_are_no_samples(make: Make, tmp_path: Path) -> None:
    model = load(make())
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY no")
    np.savez(tmp_path / "several.npz", a=np.zeros(1))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    (tmp_path / "a.png").write_bytes(b"no image")
    for name in ("a.npy", "several.npy", "objects.npy", "a.png"):
        with pytest.raises(BadInput):
            model.predict(tmp_path / name)
    with pytest.raises(BadInput):
        model.predict(tmp_path)


def test_readings_of_a_sensor(readings: Path) -> None:
    model = load(readings)
    x = np.random.default_rng(3).standard_normal(16)
    assert model.predict(x) == model.predict(x.astype(np.float32)) == model.predict(x.astype(np.float32).tobytes())
    for bad in (
        np.full(16, np.inf),
        np.zeros(15),
        "walking",
        np.full(16, 1e300),
        np.full(16, np.nan, np.float32).tobytes(),
    ):
        with pytest.raises(BadInput):
            model.predict(bad)


def test_a_closed_model_says_so(make: Make, images: np.ndarray) -> None:
    with load(make()) as model:
        pass
    with pytest.raises(BadInput, match="closed"):
        model.predict(images[0])


def test_unknown_operations_are_refused(make: Make, images: np.ndarray) -> None:
    with pytest.raises(Refused, match="argmin"):
        load(make(postprocessing=[{"op": "argmin"}])).predict(images[0])
    with pytest.raises(Refused):
        load(make(preprocessing=[{"op": "exec"}]))


def test_without_post_processing_the_scores_are_logits(make: Make, images: np.ndarray, truth: np.ndarray) -> None:
    found = load(make(postprocessing=[])).predict(images[0])
    np.testing.assert_allclose(list(found.scores.values()), truth[0], rtol=1e-5)


def run_app(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(APP), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_example_app(make: Make, images: np.ndarray, truth: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images[0])
    folder = make()
    expected = [edgetl.load(folder).labels[i] for i in truth.argmax(axis=1)]
    golden = run_app("--golden", folder)
    assert golden.stdout.splitlines() == expected
    one = run_app(folder, tmp_path / "a.npy")
    assert one.stdout.split()[1] == expected[0]
    assert "%" in one.stdout
    bad = run_app(folder, tmp_path / "none.png")
    assert bad.returncode == BadInput.code
    assert "Traceback" not in bad.stderr
    assert "fix:" in bad.stderr
    (folder / "model.onnx").write_bytes(b"")
    assert run_app(folder, tmp_path / "a.npy").returncode == Refused.code


def test_errors_of_loading_end_in_a_fix(tmp_path: Path) -> None:
    with pytest.raises(EdgetlError) as caught:
        load(tmp_path / "none")
    assert caught.value.fix
