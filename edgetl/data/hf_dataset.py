"""A dataset of the Hugging Face hub, or of a folder, through the datasets library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from edgetl.data._examples import check_classes, class_names, digest, file_bytes, joined, numbers, part_of
from edgetl.data._fields import ImageFields, TextFields, image_operations, text_operations
from edgetl.data._tables import Table, plain_cells
from edgetl.data._texts import text_examples
from edgetl.errors import BadHost, BadInput
from edgetl.examples import PARTS, Examples, Part, Source
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from datasets import Dataset

    from edgetl.network.family import Prep


class HfDataset(ImageFields, TextFields, Source):
    """A dataset with a column of images or texts and a column of classes."""

    use: str = "hf_dataset"
    path: str  # hub id, folder of data files, or a folder that save_to_disk wrote
    config: str | None = None  # the dataset's configuration, where it has several
    revision: str | None = None  # commit or tag on the hub
    column: str | None = None  # default: the only column of images, else "text" or "sentence"
    label: str = "label"  # column of the classes
    skip_share: float = Field(0.001, ge=0, lt=1)  # most unreadable images, as a share, that are left out

    def examples(self) -> Examples:
        """Load every part, published ones kept apart; code of the dataset is never run."""
        parts = _parts(self)
        first = parts["train"]
        column = self.column or _column(first, self.path)
        for name in (column, self.label):
            if name not in first.column_names:
                problem = f"{self.path} has no column '{name}', only {', '.join(first.column_names)}"
                raise BadInput(problem, fix="give the names of the columns as data.column and data.label")
        names = getattr(first.features[self.label], "names", None)
        if type(first.features[column]).__name__ == "Image":
            return self._images(parts, column, names)
        tables = {part: _table(part, dataset, column, self.label) for part, dataset in parts.items()}
        labels = tuple(names or class_names(tables["train"].labels))
        check_classes(labels, self.path)
        return text_examples(tables, labels)

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list for images or for text, whichever the column holds."""
        return text_operations(self, prep) if raw.kind == "text" else image_operations(self, raw, prep)

    def _images(self, parts: Mapping[Part, Dataset], column: str, names: list[str] | None) -> Examples:
        from datasets import Image, concatenate_datasets

        every = concatenate_datasets([d.select_columns([column, self.label]) for d in parts.values()])
        every = every.cast_column(column, Image(decode=False))
        values = [plain_cells("", value, f"{self.path} row {i}")[1] for i, value in enumerate(every[self.label])]
        rows = joined({part: len(dataset) for part, dataset in parts.items()})
        labels = tuple(names or class_names(values[: len(parts["train"])]))
        check_classes(labels, self.path)
        y = numbers(values, labels, lambda row: f"{self.path} row {row}")

        def read(row: int) -> bytes:
            cell = every[row][column] or {"bytes": b"", "path": None}  # a missing image counts as unreadable
            return cell["bytes"] or (file_bytes(Path(cell["path"])) if cell["path"] else b"")

        return Examples(
            raw=Raw("image"),
            labels=labels,
            y=y,
            parts=rows,
            read=read,
            digest=digest(map(read, range(len(every))), labels, y, rows),
            describe=lambda row: f"{self.path} row {row}",
            skip_share=self.skip_share,
        )


def _parts(source: HfDataset) -> Mapping[Part, Dataset]:
    try:
        import datasets
    except ImportError as error:
        raise BadHost("the datasets library is not installed", fix='pip install "edgetl[data]"') from error
    folder = Path(source.path)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(source.path, source.config, revision=source.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        fix = "give data.path a hub id or a folder, and data.config where it has several; check the connection"
        raise BadInput(f"{source.path} cannot be loaded: {reason}", fix=fix) from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    found = {part: dataset for name, dataset in splits.items() if (part := part_of(str(name))) is not None}
    if "train" not in found or not all(len(dataset) for dataset in found.values()):
        raise BadInput(
            f"{source.path} has no examples to train on, only {', '.join(map(str, splits))}", fix="give another set"
        )
    return {part: found[part] for part in PARTS if part in found and not _unlabelled(found[part], source.label)}


def _unlabelled(dataset: Dataset, label: str) -> bool:
    """Return whether all labels are withheld, as in the test parts of contests: -1."""
    return label in dataset.column_names and set(dataset[label]) == {-1}


def _column(dataset: Dataset, path: str) -> str:
    images = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    usual = [name for name in ("text", "sentence") if name in dataset.column_names]
    if len(images) == 1 or usual:
        return images[0] if len(images) == 1 else usual[0]
    shown = ", ".join(dataset.column_names)
    raise BadInput(f"which column of {path} holds the inputs is not clear: {shown}", fix="give its name as data.column")


def _table(part: Part, dataset: Dataset, column: str, label: str) -> Table:
    places = [f"{part} row {row}" for row in range(len(dataset))]
    cells = zip(dataset[column], dataset[label], places, strict=True)
    texts, labels = zip(*(plain_cells(text, value, place) for text, value, place in cells), strict=True)
    return Table(texts, labels, places)


PLUGIN = HfDataset
