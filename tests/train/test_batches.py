from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.examples import Augmentation
from edgetl.prepare import Prepared
from edgetl.preprocess import Preprocess, Raw
from edgetl.train.batches import Data, alike, augmented, order, parts, share, tail

NORMALISE = {"op": "normalise", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("operations", [[{"op": "to_float"}], [{"op": "to_float"}, NORMALISE]])
def test_tail_equals_the_one_that_ships(dtype, operations, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6)).astype(dtype)
    whole = ({"op": "decode", "mode": "RGB"}, {"op": "channels_first"}, *operations)
    ships = Preprocess(whole, Raw("image"), ("pixel_values",), tmp_path).tail({"pixel_values": pixels})
    ours = tail({"pixel_values": torch.from_numpy(pixels)}, whole)
    np.testing.assert_allclose(ours["pixel_values"].numpy(), ships["pixel_values"], rtol=1e-6, atol=1e-6)
    assert ours["pixel_values"].dtype == torch.float32


def texts(folder: Path) -> Data:
    lengths = np.array([3, 5, 2, 8])
    mask = (np.arange(8) < lengths[:, None]).astype(np.uint8)
    ids = mask.astype(np.int32) * 7
    splits = {"train": np.array([0, 1, 2]), "validation": np.array([3]), "test": np.array([3])}
    operations = ({"op": "tokenize", "file": "tokenizer.json", "length": 8},)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Data(Prepared(folder, Raw("text"), ("a", "b"), operations, lengths % 2, splits, inputs, "t", {}))


def test_texts_are_trimmed_to_the_longest_of_the_batch(tmp_path):
    data = texts(tmp_path)
    batch = data.batch(np.array([0, 2]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3)
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert data.mean_tokens() == 4  # (3 + 5 + 2) / 3, rounded up
    assert data.draws(2, torch.Generator()) is None


def test_rows_are_taken_with_short_texts_first(tmp_path, tiny):
    rows = np.array([0, 3, 2])
    assert rows[texts(tmp_path).shortest_first(rows)].tolist() == [2, 0, 3]
    assert tiny.shortest_first(rows).tolist() == [0, 1, 2]
    assert tiny.lengths(rows) is None


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=300), batch=st.integers(1, 9), epoch=st.integers(0, 3))
def test_batches_of_one_length_hold_every_row_once_and_pad_no_more_than_random_ones(lengths, batch, epoch):
    known = np.array(lengths)
    rows = order(np.arange(len(known)), epoch, 0)
    taken = alike(rows, known[rows], batch, [0, epoch])
    assert sorted(taken) == sorted(rows)
    assert np.array_equal(taken, alike(rows, known[rows], batch, [0, epoch]))
    cuts = range(batch, len(rows), batch)
    padded = [sum(len(part) * known[part].max() for part in np.split(some, cuts)) for some in (taken, rows)]
    assert padded[0] <= padded[1]


def test_batches_of_one_length_come_in_another_order_each_epoch():
    lengths = np.tile(np.arange(1, 9), 40)
    orders = [order(np.arange(320), epoch, 0) for epoch in (0, 1)]
    first, second = (alike(rows, lengths[rows], 8, [0, epoch]) for epoch, rows in enumerate(orders))
    longest = [[int(lengths[part].max()) for part in parts(taken, 8)] for taken in (first, second)]
    assert longest[0] != sorted(longest[0])
    assert longest[0] != longest[1]


def test_batch_carries_labels_and_rows(tiny):
    rows = tiny.rows("train")[:5]
    batch = tiny.batch(rows)
    assert batch["index"].tolist() == rows.tolist()
    assert batch["labels"].tolist() == (rows % 3).tolist()
    assert tiny.mean_tokens() is None


def test_memory_mapped_arrays_are_read_without_a_warning(tiny, tmp_path, recwarn):
    np.save(tmp_path / "x.npy", tiny.prepared.inputs["pixel_values"])
    mapped = replace(tiny.prepared, inputs={"pixel_values": np.load(tmp_path / "x.npy", mmap_mode="r")})
    rows = tiny.rows("test")
    assert torch.equal(Data(mapped).batch(rows)["pixel_values"], tiny.batch(rows)["pixel_values"])
    assert not recwarn


def test_augmentation_changes_training_batches_and_the_digest_only_where_asked(tiny):
    data = Data(tiny.prepared, (Augmentation(op="flip"), Augmentation(op="shift", pixels=1)))
    rows = data.rows("train")[:16]
    draws = [data.draws(16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    first, same, other = (data.batch(rows, draws=d)["pixel_values"] for d in draws)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(data.batch(rows)["pixel_values"], tiny.batch(rows)["pixel_values"])
    assert data.digest != tiny.digest == tiny.prepared.digest


def test_flip_mirrors_and_shift_moves():
    pixels = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 1, 3, 4)
    flip, shift = Augmentation(op="flip"), Augmentation(op="shift", pixels=1)
    assert torch.equal(augmented(pixels, [flip], torch.tensor([[[0.1, 0.0]]])), pixels.flip(-1))
    assert torch.equal(augmented(pixels, [flip], torch.tensor([[[0.9, 0.0]]])), pixels)
    assert torch.equal(augmented(pixels, [shift], torch.tensor([[[0.5, 0.5]]])), pixels)
    down = augmented(pixels, [shift], torch.tensor([[[0.0, 0.5]]]))
    assert down[0, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    left = augmented(pixels, [shift], torch.tensor([[[0.5, 0.99]]]))
    assert left[0, 0].tolist() == [[2, 3, 4, 0], [6, 7, 8, 0], [10, 11, 12, 0]]


def test_order_depends_on_epoch_and_seed():
    rows = np.arange(20) * 3
    assert order(rows, 0, 1).tolist() == order(rows, 0, 1).tolist()
    assert sorted(order(rows, 0, 1)) == rows.tolist()
    assert len({tuple(order(rows, e, s)) for e in (0, 1) for s in (0, 1)}) == 4


@settings(deadline=None)
@given(count=st.integers(1, 60), ranks=st.integers(1, 9))
def test_ranks_share_a_batch_without_gap_or_overlap(count, ranks):
    parts = [range(count)[share(count, rank, ranks)] for rank in range(ranks)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 100), st.integers(1, 40))
def test_the_batches_of_an_epoch_are_all_of_its_rows_and_none_is_of_one_sample(count, size):
    rows = np.arange(count)
    found = parts(rows, size)
    assert np.concatenate(found).tolist() == rows.tolist()
    assert all(len(part) == size for part in found[:-1])
    assert len(found[-1]) <= size + 1
    assert len(found[-1]) > 1 or 1 in (size, count)
