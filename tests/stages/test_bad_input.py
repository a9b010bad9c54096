"""What a user does wrong, or finds broken: one line for the problem, one for the fix, the code, results intact."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from edgetl.errors import BadHost, BadInput, BadInputs, EdgetlError, GateMissed, OutOfResources, Refused
from edgetl.recipe.read import read
from edgetl.runtime import load
from edgetl.stages.compress import compress
from edgetl.stages.export import export
from edgetl.stages.report import report
from edgetl.stages.verify import verify
from tests.stages.conftest import Write, files, flip, times

BERT = {
    "family": "hf_bert",
    "source": {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
    },
}
TRAIN = [{"use": "finetune", "schedule": {"epochs": 1}}]


def fails(kind: type[EdgetlError], recipe: Path, run: Path, sets: Sequence[str] = ()) -> EdgetlError:
    with pytest.raises(kind) as caught:
        compress(read(recipe, sets), run)
    assert caught.value.fix
    return caught.value


def pictures(folder: Path, counts: dict[str, int]) -> Path:
    random = np.random.default_rng(0)
    for name, many in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(many):
            Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def tokenizer(path: Path, words: int) -> Path:
    vocabulary = {"[UNK]": 0, "[PAD]": 1, **{f"w{i}": i + 2 for i in range(words)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))
    return path


def table(path: Path, empty: bool = False) -> Path:
    lines = [f"w{i % 7} w{i % 5},{'ab'[i % 2]}" for i in range(40)]
    lines += [",a"] if empty else []
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def test_every_error_of_a_recipe_is_told_at_once_with_key_and_nearest_name(tiny: Write) -> None:
    recipe = tiny(modle={}, steps__0__schedule={"epochs": "many"}, steps__1__use="optn", budgets={"lokal": {}})
    with pytest.raises(BadInputs) as caught:
        read(recipe)
    told = "\n".join(str(e) for e in caught.value.errors)
    assert "modle: unknown key\n  fix: did you mean 'model'?" in told
    assert "schedule.epochs: input should be a valid integer" in told
    assert "no method 'optn'\n  fix: did you mean 'optin'?" in told
    assert "budgets.lokal: no device 'lokal'\n  fix: did you mean 'local'?" in told


def test_a_recipe_of_a_newer_schema_is_refused_with_the_upgrade(tiny: Write) -> None:
    with pytest.raises(BadInput, match="schema_version 2, this edgetl reads up to 1") as caught:
        read(tiny(schema_version=2))
    assert "pip install --upgrade edgetl" in str(caught.value)


def test_a_missing_file_is_named(tiny: Write, tmp_path: Path) -> None:
    recipe = tiny(data={"use": "image_folder", "root": str(tmp_path / "nothing"), "size": 8})
    assert "nothing" in fails(BadInput, recipe, tmp_path / "run").problem


def test_labels_that_do_not_match_the_data(tiny: Write, tmp_path: Path) -> None:
    error = fails(BadInput, tiny(model__labels=["cat", "dog"]), tmp_path / "run")
    assert "model.labels and the data's labels do not match" in error.problem
    assert "only the recipe has cat, dog; only the data has 0, 1, 2" in error.problem


def test_a_class_with_one_sample(tiny: Write, tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", {"many": 9, "one": 1})
    error = fails(BadInput, tiny(data={"use": "image_folder", "root": str(root), "size": 8}), tmp_path / "run")
    assert "class 'one' has 1 of the 3 examples" in error.problem


def test_a_corrupted_image_is_named(tiny: Write, tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", {"a": 9, "b": 9})
    (root / "b" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    error = fails(BadInput, tiny(data={"use": "image_folder", "root": str(root), "size": 8}), tmp_path / "run")
    assert "3.png" in error.problem


def test_an_empty_text_is_named(tiny: Write, tmp_path: Path) -> None:
    file, words = table(tmp_path / "texts.csv", empty=True), tokenizer(tmp_path / "tokenizer.json", 20)
    data = {"use": "text_csv", "root": str(file), "tokenizer": str(words)}
    error = fails(BadInput, tiny(model=BERT, data=data, steps=TRAIN), tmp_path / "run")
    assert "texts.csv" in error.problem


def test_a_tokenizer_with_more_words_than_the_backbone_is_refused_before_training(tiny: Write, tmp_path: Path) -> None:
    file, words = table(tmp_path / "texts.csv"), tokenizer(tmp_path / "tokenizer.json", 60)
    data = {"use": "text_csv", "root": str(file), "tokenizer": str(words)}
    error = fails(BadInput, tiny(model=BERT, data=data, steps=TRAIN), tmp_path / "run")
    assert "ids up to 61, and the backbone knows 30 tokens" in error.problem
    assert not (tmp_path / "run" / "steps").exists()


def test_an_onnx_file_where_a_network_is_expected(tiny: Write, made_run: Path, tmp_path: Path) -> None:
    source = made_run / "students" / "dense" / "base.onnx"
    error = fails(BadInput, tiny(model={"family": "hf_vit", "source": str(source)}), tmp_path / "run")
    assert "is an ONNX file" in error.problem


def test_a_share_that_cannot_be_reached_names_the_smallest_and_keeps_earlier_steps(
    copied: Path, made_run: Path, tiny: Write
) -> None:
    error = fails(BadInput, tiny(steps__1__keep_macs=0.01), copied)
    assert "0.0572" in error.problem
    assert "set keep_macs to" in error.fix
    before = {k: v for k, v in files(made_run / "steps").items() if k.startswith(("00", "01"))}
    assert before.items() <= files(copied / "steps").items()


def test_a_budget_of_a_device_that_was_not_measured_is_missed(copied: Path, tiny: Write) -> None:
    compress(read(tiny(budgets={"rpi5": {"p90_ms": 5}})), copied)
    with pytest.raises(GateMissed, match=r"on rpi5.*not measured"):
        report(copied).judge()


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json", "golden.npz"])
def test_a_bundle_with_one_flipped_byte_is_refused_everywhere(copied: Path, file: str) -> None:
    bundle = copied / "bundles" / "optin-0.4" / "onnx-fp32"
    flip(bundle / file, 99)
    for use in (verify, load, lambda _: report(copied)):
        with pytest.raises(Refused, match=file):
            use(bundle)


def test_a_bundle_whose_list_leaves_its_folder_is_refused(copied: Path) -> None:
    bundle = copied / "bundles" / "optin-0.4" / "onnx-fp32"
    (bundle.parent / "x").write_bytes(b"outside")
    with (bundle / "SHA256SUMS").open("a") as f:
        f.write(f"{hashlib.sha256(b'outside').hexdigest()}  ../x\n")
    with pytest.raises(Refused, match="not allowed"):
        verify(bundle)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_earlier_results_intact(
    copied: Path, tiny: Write, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = times(copied)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recipe = read(tiny(seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OutOfResources, match="no space left"):
            compress(recipe, copied)
    assert not list(copied.rglob("*.tmp"))
    assert times(copied) == before


def test_a_full_disk_in_the_export_leaves_no_half_of_a_bundle(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(copied / "bundles" / "optin-0.4" / "onnx-fp32" / "model.onnx")
    before = times(copied / "bundles" / "dense")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutOfResources):
            export(copied)
    assert times(copied / "bundles" / "dense") == before
    assert not list(copied.rglob("*.tmp"))
    export(copied)
    assert verify(copied / "bundles" / "optin-0.4" / "onnx-fp32").agreement.value == 1.0


def test_a_locked_run_folder(copied: Path, tiny: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with (copied / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for use in (lambda: compress(read(tiny()), copied), lambda: export(copied)):
            with pytest.raises(BadHost, match="another edgetl command is working"):
                use()


def test_an_out_that_cannot_be_a_run_folder(tiny: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "a file is in its place" in fails(BadInput, tiny(), out).problem
    assert "--out" in fails(BadHost, tiny(), Path("/proc/run")).fix


def test_an_out_without_permission(tiny: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(BadHost, match="cannot be written"):
        compress(read(tiny()), tmp_path / "run")
