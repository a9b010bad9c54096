"""Windows from arrays and tables: cut where they may be, kept apart by subject, and every mistake named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgetl.data._windows import Columns, csv_windows
from edgetl.data.sensor_windows import SensorWindows
from edgetl.errors import BadInput
from edgetl.network.family import Prep
from edgetl.prepare import prepare

X = np.random.default_rng(0).normal(size=(60, 10, 2)).astype(np.float32)
Y = np.arange(60) % 3
WHO = np.arange(60) // 6


def npz(folder: Path, rows: slice = slice(None), name: str = "train", **more: np.ndarray) -> Path:
    np.savez(folder / f"{name}.npz", X=X[rows], y=Y[rows], **more)
    return folder


def table(path: Path, runs: list[tuple[str, str, int]]) -> Path:
    """Write readings 0, 1, 2 ... of runs of (label, subject, length)."""
    lines, number = ["time,a,label,b,subject"], 0
    for label, subject, length in runs:
        for _ in range(length):
            lines.append(f"{number / 100},{number},{label},{-number},{subject}")
            number += 1
    path.write_text("\n".join(lines) + "\n")
    return path


class TestArrays:
    def test_published_parts_subjects_and_names_are_read(self, tmp_path):
        npz(tmp_path, slice(0, 42), subject=WHO[:42])
        npz(tmp_path, slice(42, 60), "test", subject=WHO[42:])
        (tmp_path / "labels.json").write_text('["sit", "walk", "run"]')
        e = SensorWindows(root=tmp_path).examples()
        assert e.labels == ("sit", "walk", "run")
        assert {part: len(rows) for part, rows in e.parts.items()} == {"train": 42, "test": 18}
        assert (e.raw.kind, e.raw.dtype, e.raw.shape) == ("array", "float32", (10, 2))
        assert e.read(50) == X[50].tobytes()
        assert np.array_equal(e.groups, WHO)

    def test_it_is_prepared_channels_first_and_scaled(self, tmp_path):
        source = SensorWindows(root=npz(tmp_path), mean=(1.0, 2.0), std=(2.0, 4.0))
        e = source.examples()
        operations = source.operations(e.raw, Prep(channels=2, length=10))
        p = prepare(source, e, operations, 0, tmp_path / "p")
        assert np.array_equal(p.inputs["input_values"], X.transpose(0, 2, 1))
        feed = p.preprocess().feed([X[3]])["input_values"][0]
        np.testing.assert_allclose(feed, ((X[3] - [1, 2]) / [2, 4]).T, rtol=1e-5)

    @given(st.integers(0, 50))
    @settings(max_examples=20, deadline=None)
    def test_no_subject_is_in_two_parts_and_every_class_in_all(self, tmp_path_factory, seed):
        folder = tmp_path_factory.mktemp("who")
        source = SensorWindows(root=npz(folder, subject=WHO))
        e = source.examples()
        p = prepare(source, e, source.operations(e.raw, Prep()), seed, folder / "p")
        people = [set(WHO[rows].tolist()) for rows in p.splits.values()]
        assert sum(map(len, people)) == len(set.union(*people)) == 10
        assert sorted(np.concatenate(list(p.splits.values())).tolist()) == list(range(60))
        assert all(set(Y[rows].tolist()) == {0, 1, 2} for rows in p.splits.values())
        again = prepare(source, e, source.operations(e.raw, Prep()), seed, folder / "again")
        assert all(np.array_equal(p.splits[part], again.splits[part]) for part in p.splits)

    def test_too_few_people_to_share_out_are_named(self, tmp_path):
        source = SensorWindows(root=npz(tmp_path, subject=np.arange(60) // 30))
        e = source.examples()
        with pytest.raises(BadInput, match="no 3 parts of whole groups"):
            prepare(source, e, source.operations(e.raw, Prep()), 0, tmp_path / "p")

    def test_the_digest_knows_the_subjects(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        a = SensorWindows(root=npz(tmp_path / "a", subject=WHO)).examples()
        b = SensorWindows(root=npz(tmp_path / "b", subject=np.roll(WHO, 1))).examples()
        assert a.digest != b.digest

    def test_a_person_in_two_published_parts_is_refused_unless_nobody_is_named(self, tmp_path):
        npz(tmp_path, slice(0, 45), subject=WHO[:45])
        npz(tmp_path, slice(45, 60), "test", subject=WHO[45:])
        with pytest.raises(BadInput, match="subject '7' is in the train and in the test part"):
            SensorWindows(root=tmp_path).examples()
        assert SensorWindows(root=tmp_path, subject="nobody").examples().groups is None

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"X": X[:, :, 0], "y": Y}, "no windows of readings"),
            ({"X": X, "y": Y[:5]}, "labels of shape"),
            ({"X": np.where(np.arange(60)[:, None, None] == 7, np.nan, X), "y": Y}, "row 7"),
            ({"X": X, "y": Y, "subject": WHO[:5]}, "subject is"),
            ({"y": Y}, "has no x or X"),
        ],
    )
    def test_damage_is_named(self, tmp_path, arrays, words):
        np.savez(tmp_path / "train.npz", **arrays)
        with pytest.raises(BadInput, match=words):
            SensorWindows(root=tmp_path).examples()

    def test_a_backbone_of_other_windows_is_named_with_its_fix(self, tmp_path):
        source = SensorWindows(root=npz(tmp_path))
        with pytest.raises(BadInput, match="10 readings of 2 channels, the backbone reads 100 of 6") as caught:
            source.operations(source.examples().raw, Prep(channels=6, length=100))
        assert "length: 10 and num_channels: 2" in caught.value.fix

    def test_augmentation_of_pictures_is_refused(self, tmp_path):
        with pytest.raises(ValidationError, match="leave augment out"):
            SensorWindows(root=tmp_path, augment=[{"op": "flip"}])


class TestTables:
    def test_windows_lie_within_one_label_and_one_subject(self, tmp_path):
        path = table(tmp_path / "x.csv", [("sit", "ann", 7), ("walk", "ann", 4), ("walk", "bob", 3), ("sit", "bob", 9)])
        e = SensorWindows(root=path, length=3).examples()
        assert e.labels == ("sit", "walk")
        starts = [np.frombuffer(e.read(row), np.float32).reshape(3, 2)[:, 0].tolist() for row in range(len(e.y))]
        assert starts == [[0, 1, 2], [3, 4, 5], [7, 8, 9], [11, 12, 13], [14, 15, 16], [17, 18, 19], [20, 21, 22]]
        assert e.y.tolist() == [0, 0, 1, 1, 0, 0, 0]
        assert e.groups.tolist() == [0, 0, 0, 1, 1, 1, 1]
        assert np.frombuffer(e.read(1), np.float32).reshape(3, 2)[:, 1].tolist() == [-3, -4, -5]

    @given(st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 12)), min_size=1, max_size=6), st.integers(1, 5),
           st.integers(1, 5))  # fmt: skip
    @settings(max_examples=30, deadline=None)
    def test_every_whole_window_is_found_once(self, tmp_path_factory, runs, length, step):
        path = table(tmp_path_factory.mktemp("t") / "x.csv", [(label, "s", n) for label, n in runs])
        merged: list[list[int | str]] = []
        for label, n in runs:
            if merged and merged[-1][0] == label:
                merged[-1][1] += n
            else:
                merged.append([label, n])
        wanted = sum(max(0, (n - length) // step + 1) for _, n in merged if n >= length)
        columns = Columns("label", "subject", None, length, step)
        if not wanted:
            with pytest.raises(BadInput, match="readings in a row"):
                csv_windows(path, columns)
            return
        found = csv_windows(path, columns)
        assert found.x.shape == (wanted, length, 2)
        assert (np.diff(found.x[:, :, 0], axis=1) == 1).all()

    def test_chosen_channels_come_in_their_order(self, tmp_path):
        path = table(tmp_path / "x.csv", [("sit", "ann", 4), ("walk", "ann", 4)])
        e = SensorWindows(root=path, length=2, channels=("b", "time")).examples()
        np.testing.assert_allclose(np.frombuffer(e.read(1), np.float32), [-2, 0.02, -3, 0.03])

    def test_windows_that_overlap_need_subjects_or_published_parts(self, tmp_path):
        path = table(tmp_path / "x.csv", [("sit", "ann", 9), ("walk", "bob", 9)])
        assert len(SensorWindows(root=path, length=4, step=2).examples().y) == 6
        with pytest.raises(BadInput, match="overlap"):
            SensorWindows(root=path, length=4, step=2, subject="none", channels=("a",)).examples()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a,label\n1,x\n?,y\n", ":3: could not convert"),
            ("a,label\n1,x\n1\n", ":3: "),
            ("a,label\n1,x\nnan,y\n", ":3: a reading is not finite"),
            ("a,label\n1,x\n1,\n", ":3: a reading is not finite, or the label"),
            ("a,kind\n1,x\n", "no column 'label', only a, kind"),
            ("label\nx\n", "no readings"),
            ("a,a,label\n1,2,x\n", "a column twice"),
            ("", "no column 'label', only nothing"),
            ('a,label\n1,"x\n', "unexpected end"),
        ],
    )
    def test_damage_is_named_with_its_line(self, tmp_path, text, words):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(BadInput, match=words):
            SensorWindows(root=tmp_path / "x.csv", length=1).examples()

    def test_a_folder_without_a_train_part_is_named(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(BadInput, match=r"no train\.npz or train\.csv"):
            SensorWindows(root=tmp_path).examples()
        with pytest.raises(BadInput, match="no npz or csv file"):
            SensorWindows(root=tmp_path / "notes.txt").examples()
