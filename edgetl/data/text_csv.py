"""Texts in csv, tsv or parquet files, with a local tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgetl.data._examples import check_classes, class_names, existing, named_parts, names_beside
from edgetl.data._fields import TextFields, text_operations
from edgetl.data._tables import SUFFIXES, Table, read_csv, read_lines, read_parquet
from edgetl.data._texts import text_examples, unlabelled_texts
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part, Source, Unlabelled
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep


class TextCsv(TextFields, Source):
    """A table with a column of texts and a column of classes."""

    use: str = "text_csv"
    root: Path  # a .csv, .tsv or .parquet file, or a folder of train [dev or validation, test] files
    text: str = "text"  # column of the texts
    label: str = "label"  # column of the classes: names, or numbers where `labels` names them
    labels: Path | None = None  # class names in order; default: labels.json or classes.txt beside, else by value
    quoting: Literal["none", "standard"] | None = None  # default: none for tsv, where a " is a plain character

    def examples(self) -> Examples:
        """Read every part, published ones kept apart."""
        root = existing(self.root)
        tables = {part: self._table(path, self.label) for part, path in _files(root).items()}
        names = names_beside(root if root.is_dir() else root.parent, self.labels)
        labels = names or class_names(tables["train"].labels)
        check_classes(labels, str(root))
        return text_examples(tables, labels)

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list: tokenize."""
        return text_operations(self, prep)

    def read_unlabelled(self, path: Path, raw: Raw) -> Unlabelled:
        """Read a table with a column of texts, or a .txt file with one a line."""
        fix = "set data.unlabelled to a .csv, .tsv, .parquet or .txt file"
        if not path.is_file() or path.suffix.lower() not in (*SUFFIXES, ".txt"):
            raise BadInput(f"{path} is no csv, tsv, parquet or txt file", fix=fix)
        return unlabelled_texts(read_lines(path) if path.suffix.lower() == ".txt" else self._table(path, None))

    def _table(self, path: Path, label: str | None) -> Table:
        if path.suffix.lower() == ".parquet":
            return read_parquet(path, self.text, label)
        tabs = path.suffix.lower() == ".tsv"
        quoting = self.quoting or ("none" if tabs else "standard")
        return read_csv(path, (self.text, label), "\t" if tabs else ",", quoting)


def _files(root: Path) -> dict[Part, Path]:
    fix = "set data.root to a .csv, .tsv or .parquet file, or to a folder with such a train file"
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{root} is no csv, tsv or parquet file", fix=fix)
        return {"train": root}
    tables = [path for path in root.iterdir() if path.suffix.lower() in SUFFIXES]
    found = named_parts(tables, lambda path: re.sub(r"-\d+-of-\d+$", "", path.stem), root)
    if not found and len(tables) != 1:
        raise BadInput(f"{root} holds {len(tables)} tables, none of them named train", fix=fix)
    return found or {"train": tables[0]}


PLUGIN = TextCsv
