"""Examples of text, from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgetl.data._examples import digest, joined, numbers
from edgetl.data._tables import Table
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part, Unlabelled
from edgetl.preprocess import Raw


def text_examples(tables: Mapping[Part, Table], labels: Sequence[str]) -> Examples:
    """Return the texts of every part, held in memory.

    Raises:
        BadInput: a text is empty, or a label is no class; the message names file and line.

    """
    texts = [text for table in tables.values() for text in table.texts]
    values = [label for table in tables.values() for label in table.labels]
    places = [place for table in tables.values() for place in table.places]
    _check_full(texts, places)
    y = numbers(values, labels, lambda row: places[row])
    parts = joined({part: len(table.texts) for part, table in tables.items()})
    return Examples(
        raw=Raw("text"),
        labels=tuple(labels),
        y=y,
        parts=parts,
        read=lambda row: texts[row].encode(),
        digest=digest((text.encode() for text in texts), labels, y, parts),
        describe=lambda row: places[row],
    )


def unlabelled_texts(table: Table) -> Unlabelled:
    """Return the texts of a table, held in memory.

    Raises:
        BadInput: a text is empty; the message names file and line.

    """
    _check_full(table.texts, table.places)
    return Unlabelled(len(table.texts), lambda row: table.texts[row].encode(), lambda row: table.places[row])


def _check_full(texts: Sequence[str], places: Sequence[str]) -> None:
    empty = [place for text, place in zip(texts, places, strict=True) if not text.strip()]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise BadInput(f"{', '.join(empty[:3])}{more}: the text is empty", fix="delete these rows or give their text")
