"""Examples without classes: a part of their own, which the teacher of `distill` labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgetl.data.arrays import Arrays
from edgetl.data.digits import Digits
from edgetl.data.image_folder import ImageFolder
from edgetl.data.text_csv import TextCsv
from edgetl.errors import BadInput, Refused
from edgetl.examples import Examples, Source, Unlabelled
from edgetl.losses.ps_kd import PsKd
from edgetl.methods.distill import Distill
from edgetl.methods.finetune import Finetune
from edgetl.network.family import Prep
from edgetl.network.network import Network
from edgetl.prepare import Prepared, open_prepared, prepare
from edgetl.recipe.read import check
from edgetl.recipe.schema import Context, Schedule
from edgetl.train.batches import Data
from tests.contract import conftest as contract

_one_thread, tiny, network, context = contract._one_thread, contract.tiny, contract.network, contract.context
SHAPES = (8, 8)


def arrays(folder: Path, known: int = 60, more: int = 20) -> Arrays:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 255, (known + more, *SHAPES), np.uint8)
    np.savez(folder / "data.npz", x=x[:known], y=np.arange(known) % 3)
    np.savez(folder / "more.npz", x=x[known:])
    return Arrays(root=folder / "data.npz", unlabelled=folder / "more.npz")


def prepared(source: Source, folder: Path) -> Prepared:
    found = source.all_examples()
    return prepare(source, found, source.operations(found.raw, Prep()), 0, folder / "prepared")


def test_they_lie_behind_the_labelled_ones_in_a_part_of_their_own(tmp_path: Path) -> None:
    source = arrays(tmp_path)
    known, found = source.examples(), source.all_examples()
    assert len(found.y) == 80
    assert (found.y[:60] == known.y).all()
    assert (found.y[60:] == -1).all()
    assert found.parts["unlabelled"].tolist() == list(range(60, 80))
    assert found.read(3) == known.read(3)
    assert found.read(61) == np.load(tmp_path / "more.npz")["x"][1].tobytes()
    assert found.describe(61).endswith("more.npz row 1")
    assert found.digest != known.digest
    np.savez(tmp_path / "more.npz", x=np.load(tmp_path / "more.npz")["x"][::-1])
    assert source.all_examples().digest != found.digest


def test_preparation_shares_out_only_what_has_a_class(tmp_path: Path) -> None:
    alone = arrays(tmp_path).model_copy(update={"unlabelled": None})
    plain, wide = prepared(alone, tmp_path / "a"), prepared(arrays(tmp_path), tmp_path / "b")
    assert set(plain.splits) == {"train", "validation", "test"}
    for part, rows in plain.splits.items():
        assert (wide.splits[part] == rows).all()
    assert wide.splits["unlabelled"].tolist() == list(range(60, 80))
    assert wide.recorded["unlabelled"]["n"] == 20
    assert wide.digest != plain.digest
    assert open_prepared(tmp_path / "b" / "prepared").y.tolist() == wide.y.tolist()
    (tmp_path / "b" / "prepared" / "unlabelled.npy").unlink()
    with pytest.raises(Refused, match=r"unlabelled\.npy is missing"):
        open_prepared(tmp_path / "b" / "prepared")


def test_groups_of_the_labelled_ones_stay_whole(tmp_path: Path) -> None:
    known = arrays(tmp_path).examples()
    grouped = replace(known, groups=np.arange(60) // 6)
    found = Unlabelled(2, lambda _: b"x", str).behind(grouped)
    assert found.groups is not None
    assert found.groups.tolist() == [*(np.arange(60) // 6), -1, -1]


def texts(found: Examples) -> list[str]:
    return [found.read(int(row)).decode() for row in found.parts["unlabelled"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("more.txt", "one text\n\nand, one more\n"),
        ("more.tsv", "id\ttext\n1\tone text\n2\tand, one more\n"),
        ("more.csv", 'text\none text\n"and, one more"\n'),
    ],
)
def test_texts_need_no_column_of_classes(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    (tmp_path / name).write_text(content)
    found = TextCsv(root=tmp_path / "train.tsv", unlabelled=tmp_path / name).all_examples()
    assert texts(found) == ["one text", "and, one more"]
    assert name in found.describe(2)


def test_texts_of_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "when": [1, 2]}), tmp_path / "more.parquet")
    found = TextCsv(root=tmp_path / "train.tsv", unlabelled=tmp_path / "more.parquet").all_examples()
    assert texts(found) == ["x", "y"]


def test_pictures_lie_in_any_folder(tmp_path: Path) -> None:
    for i, place in enumerate(("known/a/1.png", "known/b/1.png", "more/1.png", "more/deep/2.png")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / place)
    (tmp_path / "more" / "notes.md").write_text("no picture")
    found = ImageFolder(root=tmp_path / "known", unlabelled=tmp_path / "more").all_examples()
    assert [found.describe(row) for row in (2, 3)] == [str(tmp_path / "more" / n) for n in ("1.png", "deep/2.png")]
    assert (found.labels, found.y.tolist()) == (("a", "b"), [0, 1, -1, -1])


def wrong(tmp_path: Path) -> dict[str, tuple[Source, str]]:
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "odd.csv").write_text("other\nx\n")
    (tmp_path / "blank.csv").write_text('text,id\n" ",1\n')
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "none").mkdir()
    base = arrays(tmp_path)
    np.savez(tmp_path / "odd.npz", x=np.zeros((2, 4, 4), np.uint8))
    np.savez(tmp_path / "floats.npz", x=np.zeros((2, *SHAPES), np.float32))
    text = {name: TextCsv(root=tmp_path / "train.tsv", unlabelled=tmp_path / name) for name in
            ("nowhere.txt", "data.npz", "empty.txt", "odd.csv", "blank.csv", "bad.txt")}  # fmt: skip
    return {
        "missing": (text["nowhere.txt"], "nowhere.txt is no csv"),
        "no table": (text["data.npz"], "data.npz is no csv"),
        "no texts": (text["empty.txt"], "holds no rows"),
        "no column": (text["odd.csv"], "no column 'text'"),
        "empty text": (text["blank.csv"], "blank.csv:2: the text is empty"),
        "no UTF-8": (text["bad.txt"], "bad.txt"),
        "no pictures": (ImageFolder(root=base.root, unlabelled=tmp_path / "none"), "no folder with images"),
        "another shape": (base.model_copy(update={"unlabelled": tmp_path / "odd.npz"}), r"\(4, 4\) uint8"),
        "another type": (base.model_copy(update={"unlabelled": tmp_path / "floats.npz"}), "float32, the labelled"),
        "a source without": (Digits(unlabelled=tmp_path), "'digits' reads no unlabelled"),
    }


CASES = (
    *("missing", "no table", "no texts", "no column", "empty text", "no UTF-8", "no pictures"),
    *("another shape", "another type", "a source without"),
)


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    source, says = wrong(tmp_path)[case]
    with pytest.raises(BadInput, match=says) as caught:
        source.read_unlabelled(source.unlabelled, arrays(tmp_path).examples().raw)  # type: ignore[arg-type]
    assert caught.value.fix


def test_a_path_where_nothing_is_says_which_field_to_correct(tmp_path: Path) -> None:
    source = arrays(tmp_path).model_copy(update={"unlabelled": tmp_path / "nowhere.npz"})
    with pytest.raises(BadInput, match=r"nothing at .*nowhere\.npz") as caught:
        source.all_examples()
    assert "data.unlabelled" in caught.value.fix


def test_a_recipe_in_which_nothing_learns_from_them_is_refused(tmp_path: Path) -> None:
    data = {"use": "arrays", "root": str(tmp_path / "data.npz"), "unlabelled": str(tmp_path / "more.npz")}
    source = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    raw = {"name": "x", "model": {"family": "hf_vit", "source": source}, "data": data}
    train = {"use": "finetune", "name": "dense"}
    recipe, errors = check({**raw, "steps": [train]}, "x.yaml")
    assert recipe is None
    assert [e.problem for e in errors] == ["x.yaml: data: no step learns from the unlabelled examples"]
    recipe, errors = check({**raw, "steps": [train, {"use": "distill"}]}, "x.yaml")
    assert not errors


@pytest.fixture
def wide(tiny: Data, context: Callable[..., Context]) -> Context:
    """The tiny task with most of its training rows unlabelled."""
    known = tiny.prepared
    rows = known.splits["train"]
    y = known.y.copy()
    y[rows[12:]] = -1
    splits = {**known.splits, "train": np.sort(rows[:12]), "unlabelled": np.sort(rows[12:])}
    data = Data(replace(known, y=y, splits=splits, digest="cd" * 32))
    return replace(context(), data=data)


def accuracy(net: Network, data: Data) -> float:
    rows = data.rows("test")
    with torch.no_grad():
        return float((net.logits(data.batch(rows)).argmax(1).numpy() == data.prepared.y[rows]).mean())


def test_a_student_learns_more_with_them(
    tiny: Data, network: Callable[[int], Network], wide: Context, context: Callable[..., Context]
) -> None:
    schedule = Schedule(epochs=12, lr=3e-3, batch=16)
    teacher = Finetune(use="finetune", schedule=schedule).run(network(0), context("teacher"))
    assert accuracy(teacher, tiny) > 0.9
    seen = [
        accuracy(Distill(use="distill", schedule=schedule, unlabelled=more).run(teacher, wide), tiny)
        for more in (False, True)
    ]
    assert seen[1] > seen[0] + 0.1


def test_the_teacher_names_their_classes(wide: Context, network: Callable[[int], Network]) -> None:
    teacher = network(3)
    data = Distill(use="distill")._with_unlabelled(teacher, wide).data
    rows = wide.data.rows("unlabelled")
    assert len(data.rows("unlabelled")) == 0
    assert set(data.rows("train")) == set(wide.data.rows("train")) | set(rows)
    assert (wide.data.prepared.y[rows] == -1).all(), "the data that other steps read is as it was"
    with torch.no_grad():
        said = teacher.logits(wide.data.batch(rows)).argmax(1).numpy()
    assert (data.prepared.y[rows] == said).all()
    assert data.digest != wide.data.digest
    other = Distill(use="distill")._with_unlabelled(network(4), wide).data
    assert (other.digest == data.digest) == bool((other.prepared.y == data.prepared.y).all())


def test_the_same_again_from_what_is_kept(wide: Context, network: Callable[[int], Network]) -> None:
    step = Distill(use="distill", schedule=Schedule(epochs=1, batch=16))
    assert step.run(network(0), wide).digest == step.run(network(0), wide).digest


def test_steps_that_take_no_labels_of_a_teacher_leave_them_alone(
    wide: Context, network: Callable[[int], Network]
) -> None:
    step = Finetune(use="finetune", schedule=Schedule(epochs=1, batch=16), losses=(PsKd(),))
    assert step.run(network(0), wide).digest != network(0).digest
