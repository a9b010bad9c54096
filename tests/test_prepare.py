"""Splits reach every class, and prepared folders hold what the per-sample path computes."""

import json
import logging
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgetl.data._arrays import array_examples
from edgetl.data.digits import Digits
from edgetl.errors import BadInput, Refused
from edgetl.examples import Examples
from edgetl.prepare import open_prepared, prepare, split
from edgetl.preprocess import Raw

LIST = (
    {"op": "decode", "mode": "L"},
    {"op": "resize", "height": 6, "width": 6, "resample": "bilinear"},
    {"op": "channels_first"},
    {"op": "to_float"},
    {"op": "normalise", "mean": [0.5], "std": [0.5]},
)


def rows(*numbers):
    return np.array(numbers, np.int64)


def made(counts, parts=None, shape=(8, 8)):
    y = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    x = np.random.default_rng(0).integers(0, 256, (len(y), *shape), np.uint8)
    parts = parts or {"train": np.arange(len(y), dtype=np.int64)}
    return array_examples(x, y, tuple("abcdefghij"[: len(counts)]), parts, "made")


@given(
    st.lists(st.integers(3, 60), min_size=2, max_size=6),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
    st.integers(0, 2**31),
)
@settings(max_examples=15, deadline=None)
def test_a_split_reaches_every_class_once_and_keeps_the_shares(counts, validation, test, seed):
    examples = made(counts)
    parts = split(examples, Digits(validation=validation, test=test), seed)
    together = np.concatenate(list(parts.values()))
    assert sorted(together) == list(range(sum(counts)))
    for part in parts.values():
        assert set(examples.y[part]) == set(range(len(counts)))
        assert (np.diff(part) > 0).all()
    wanted = [min(max(1, round(test * n)), n - 2) for n in counts]
    assert np.bincount(examples.y[parts["test"]]).tolist() == wanted


def test_a_split_depends_on_the_seed_only():
    examples, source = made([20, 30]), Digits()
    first, again, other = (split(examples, source, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[part], again[part]) for part in first)
    assert not np.array_equal(first["test"], other["test"])


def test_published_parts_are_kept_and_only_the_missing_one_is_cut():
    parts = {"train": np.arange(16, dtype=np.int64), "test": rows(16, 17, 18, 19)}
    examples = made([10, 10], parts)
    examples.y[:] = np.arange(20) % 2
    got = split(examples, Digits(validation=0.25), 0)
    assert got["test"].tolist() == [16, 17, 18, 19]
    assert sorted([*got["train"], *got["validation"]]) == list(range(16))
    assert len(got["validation"]) == 4


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_too_small_for_every_part_is_named_with_its_count(count):
    with pytest.raises(BadInput, match=rf"class 'b' has {count} of the 3") as caught:
        split(made([9, count]), Digits(), 0)
    assert "'b'" in caught.value.fix


def test_a_class_that_a_published_part_lacks_is_named():
    examples = made([5, 5], {"train": np.arange(9, dtype=np.int64), "test": rows(0, 9)[1:]})
    with pytest.raises(BadInput, match="class 'a' has 0 of the 1 examples it needs in the test part"):
        split(examples, Digits(), 0)


def test_prepared_arrays_equal_the_per_sample_path_and_open_again(tmp_path):
    examples = made([12, 12, 12])
    p = prepare(Digits(), examples, LIST, 0, tmp_path / "p")
    process = p.preprocess()
    x = p.inputs["pixel_values"]
    assert (x.shape, x.dtype) == ((36, 1, 6, 6), np.uint8)
    assert isinstance(x, np.memmap)
    for row in (0, 17, 35):
        assert np.array_equal(process.head(process.from_bytes(examples.read(row)))["pixel_values"], x[row])
    again = open_prepared(tmp_path / "p")
    assert (again.digest, again.labels, again.raw, again.operations) == (p.digest, p.labels, p.raw, p.operations)
    assert all(np.array_equal(again.splits[part], p.splits[part]) for part in p.splits)
    assert np.array_equal(again.y, examples.y)
    assert p.recorded["test"]["made"] == "cut"
    assert p.recorded["test"]["counts"] == {"a": 4, "b": 4, "c": 4}


def test_the_same_things_are_prepared_once_and_other_things_anew(tmp_path):
    examples, folder = made([12, 12]), tmp_path / "p"
    first = prepare(Digits(), examples, LIST, 0, folder)
    stamp = (folder / "data.json").stat().st_mtime_ns
    assert prepare(Digits(), examples, LIST, 0, folder).digest == first.digest
    assert (folder / "data.json").stat().st_mtime_ns == stamp
    assert prepare(Digits(), examples, LIST, 1, folder).digest != first.digest
    assert prepare(Digits(), examples, LIST[:-1], 0, tmp_path / "q").digest != first.digest


def test_a_flipped_byte_is_refused_and_prepared_again(tmp_path):
    examples, folder = made([12, 12]), tmp_path / "p"
    before = np.array(prepare(Digits(), examples, LIST, 0, folder).inputs["pixel_values"])
    data = bytearray((folder / "pixel_values.npy").read_bytes())
    data[-3] ^= 1
    (folder / "pixel_values.npy").write_bytes(data)
    with pytest.raises(Refused, match=r"pixel_values\.npy"):
        open_prepared(folder)
    again = prepare(Digits(), examples, LIST, 0, folder)
    assert np.array_equal(again.inputs["pixel_values"], before)


@pytest.mark.parametrize("change", [{"schema_version": 9}, {"inputs": ["none"]}, {"files": 3}, {"raw": {}}])
def test_a_damaged_record_is_refused(tmp_path, change):
    prepare(Digits(), made([12, 12]), LIST, 0, tmp_path / "p")
    facts = json.loads((tmp_path / "p/data.json").read_text())
    (tmp_path / "p/data.json").write_text(json.dumps(facts | change))
    with pytest.raises(Refused):
        open_prepared(tmp_path / "p")
    (tmp_path / "p/data.json").write_text("{")
    with pytest.raises(Refused):
        open_prepared(tmp_path / "p")
    with pytest.raises(Refused, match="no prepared data"):
        open_prepared(tmp_path)


def broken(examples, bad, share):
    def read(row):
        return b"" if row in bad else examples.read(row)

    kept = (examples.raw, examples.labels, examples.y, examples.parts)
    return Examples(*kept, read, examples.digest, lambda row: f"{row}.png", share)


def test_unreadable_examples_abort_with_their_names_and_leave_nothing(tmp_path):
    examples = broken(made([20, 20]), {0, 7, 8, 9, 10, 11, 12}, 0.1)
    with pytest.raises(BadInput, match=r"7 of 40 examples cannot be read: 0.png, 7.png, .* and 2 more"):
        prepare(Digits(), examples, LIST, 0, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_few_unreadable_examples_are_left_out_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "edgetl"):
        p = prepare(Digits(), broken(made([20, 20]), {0, 7}, 0.1), LIST, 0, tmp_path / "p")
    assert p.recorded["skipped"] == ["0.png", "7.png"]
    assert not {0, 7} & set(np.concatenate(list(p.splits.values())).tolist())
    assert sum(len(part) for part in p.splits.values()) == 38
    assert "2 of 40" in caplog.text


def test_images_that_end_at_different_sizes_are_named(tmp_path):
    operations = ({"op": "decode", "mode": "L"}, {"op": "resize_shorter", "size": 4, "resample": "nearest"})

    def read(row):
        file = BytesIO()
        Image.new("L", (8 + 8 * (row == 5), 8)).save(file, "png")
        return file.getvalue()

    examples = made([6, 6])
    other = Examples(Raw("image"), examples.labels, examples.y, examples.parts, read, "d", lambda row: f"{row}.png")
    with pytest.raises(BadInput, match=r"5\.png"):
        prepare(Digits(), other, operations, 0, tmp_path / "p")


def test_text_is_stored_narrow_and_the_tokenizer_travels_with_it(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "mine.json"))
    base = made([6, 6])
    kept = (Raw("text"), ("bad", "good"), base.y, base.parts)
    examples = Examples(*kept, lambda row: b"good" if row > 5 else b"bad bad", "d", str)
    operations = ({"op": "tokenize", "file": str(tmp_path / "mine.json"), "length": 4},)
    p = prepare(Digits(), examples, operations, 0, tmp_path / "p")
    assert p.operations == ({"op": "tokenize", "file": "tokenizer.json", "length": 4},)
    assert (p.inputs["input_ids"].dtype, p.inputs["attention_mask"].dtype) == (np.int32, np.uint8)
    assert p.inputs["input_ids"][[0, 6]].tolist() == [[3, 3, 0, 0], [2, 0, 0, 0]]
    (tmp_path / "mine.json").unlink()
    assert open_prepared(tmp_path / "p").preprocess().feed(["good bad"])["input_ids"].tolist() == [[2, 3]]
    with pytest.raises(BadInput, match="no tokenizer"):
        prepare(Digits(), examples, operations, 0, tmp_path / "q")


def test_the_digits_give_at_least_500_to_the_test(tmp_path):
    source = Digits()
    parts = split(source.examples(), source, 0)
    assert len(parts["test"]) >= 500
