"""Examples, split and pre-processed once, as memory-mapped arrays in a folder. [no torch]."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BadInput, EdgetlError, Refused
from edgetl.examples import PARTS, UNLABELLED, Examples, Part, Source
from edgetl.operations import INPUTS, kind_of
from edgetl.preprocess import IDS, MASK, Preprocess, Raw
from edgetl.splits import split
from edgetl.store import digest, file_digest, folder_being_made, read_json, write_json
from edgetl.types import Array, Json, Operation

SCHEMA = 1
TOKENIZER = "tokenizer.json"
NARROW = {IDS: np.int32, MASK: np.uint8}
"""How ids and masks are stored; the tail makes int64 of them."""

log = logging.getLogger("edgetl")


@dataclass(frozen=True)
class Prepared:
    """The pre-processed examples of a folder. Rows are those of the source; skipped ones are in no split."""

    folder: Path  # also the `assets` of Preprocess: it holds the tokenizer.json that the operations name
    raw: Raw
    labels: tuple[str, ...]
    operations: tuple[Operation, ...]
    y: NDArray[np.int64]  # (N,), -1 of an unlabelled row
    splits: Mapping[Part, NDArray[np.int64]]  # row numbers, ascending
    inputs: Mapping[str, Array]  # head outputs by input name, (N, ...), memory-mapped
    digest: str  # over the examples, operations and splits
    recorded: Mapping[str, Json]  # by part: published or cut, the seed, counts by class; and what was skipped

    def preprocess(self) -> Preprocess:
        """Return the operations, ready to run."""
        return Preprocess(self.operations, self.raw, tuple(self.inputs), self.folder)


def data_key(source: Source, examples: Examples, operations: Sequence[Operation], seed: int) -> str:
    """Return the hash of all that prepared data is made from, the libraries that decode it included."""
    operations, tokenizer = _localised(operations)
    asset = "" if tokenizer is None else file_digest(tokenizer)
    shares = [source.validation, source.test, examples.skip_share]
    versions = {name: version(name) for name in ("pillow", "tokenizers")}
    return digest([SCHEMA, examples.digest, [dict(o) for o in operations], asset, shares, seed, versions])


def prepare(source: Source, examples: Examples, operations: Sequence[Operation], seed: int, folder: Path) -> Prepared:
    """Pre-process every example into the folder and return it; a folder made from the same things is only opened.

    The folder appears whole or not at all. `operations` come from the source: there `tokenize` names a tokenizer by
    its path; the folder holds a copy, which the list returned names.

    Raises:
        BadInput: more examples than `examples.skip_share` cannot be read, or a class does not reach every part.
        OutOfResources: the disk is full.

    """
    key = data_key(source, examples, operations, seed)
    operations, tokenizer = _localised(operations)
    asset = "" if tokenizer is None else file_digest(tokenizer)
    if (existing := _existing(folder, key)) is not None:
        return existing
    with folder_being_made(folder) as made:
        if tokenizer is not None:
            shutil.copyfile(tokenizer, made / TOKENIZER)
        names = INPUTS[kind_of(examples.raw)]
        process = Preprocess(operations, examples.raw, names, made)
        skipped = _write_inputs(examples, process, made)
        splits = split(examples, source, seed, skipped)
        np.save(made / "y.npy", examples.y.astype(np.int64))
        for part, rows in splits.items():
            np.save(made / f"{part}.npy", rows)
        facts: dict[str, Json] = {
            "schema_version": SCHEMA,
            "key": key,
            "digest": _digest(examples.digest, operations, asset, splits),
            "raw": asdict(examples.raw),
            "labels": list(examples.labels),
            "operations": [dict(o) for o in operations],
            "inputs": list(names),
            "recorded": _recorded(examples, source, seed, splits) | {"skipped": _described(examples, skipped)},
            "files": {path.name: file_digest(path) for path in sorted(made.iterdir())},
        }
        write_json(made / "data.json", facts)
    return open_prepared(folder)


def open_prepared(folder: Path) -> Prepared:
    """Open what `prepare` wrote; the hash of every file is checked.

    Raises:
        Refused: it is no such folder, or a file of it is damaged.

    """
    again = "delete the folder; it is made again from the data"
    if not (folder / "data.json").is_file():
        raise Refused(f"{folder} holds no prepared data", fix=again)
    facts = read_json(folder / "data.json")
    if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA:
        raise Refused(f"{folder}/data.json is of another version", fix=again)
    try:
        for name, sha256 in facts["files"].items():
            path = folder / Path(name).name
            if not path.is_file() or file_digest(path) != sha256:
                raise Refused(f"{path} is missing or damaged", fix=again)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in facts["inputs"]}
        raw = Raw(facts["raw"]["kind"], facts["raw"]["dtype"], tuple(facts["raw"]["shape"]))
        y = np.load(folder / "y.npy")
        parts = [*PARTS, UNLABELLED] if UNLABELLED in facts["recorded"] else PARTS
        splits = {part: np.load(folder / f"{part}.npy") for part in parts}
        prepared = Prepared(
            *(folder, raw, tuple(facts["labels"]), tuple(facts["operations"]), y, splits, arrays),
            **{key: facts[key] for key in ("digest", "recorded")},
        )
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise Refused(f"{folder}/data.json is damaged ({error!r})", fix=again) from error
    rows = np.concatenate(list(splits.values()))
    inside = rows.size == 0 or (rows.min() >= 0 and rows.max() < len(y))
    if not inside or any(len(array) != len(y) for array in arrays.values()):
        raise Refused(f"{folder}: its arrays do not fit together", fix=again)
    return prepared


def _localised(operations: Sequence[Operation]) -> tuple[tuple[Operation, ...], Path | None]:
    if not operations or operations[0].get("op") != "tokenize":
        return tuple(operations), None
    file = Path(operations[0]["file"])
    if not file.is_file():
        raise BadInput(f"there is no tokenizer at {file}", fix="give data.tokenizer, the path of a tokenizer.json")
    return ({**operations[0], "file": TOKENIZER}, *operations[1:]), file


def _existing(folder: Path, key: str) -> Prepared | None:
    try:
        facts = read_json(folder / "data.json") if (folder / "data.json").is_file() else None
        return open_prepared(folder) if isinstance(facts, dict) and facts.get("key") == key else None
    except Refused as error:
        log.warning("%s: preparing the data again", error.problem)
        return None


def _write_inputs(examples: Examples, process: Preprocess, folder: Path) -> list[int]:
    """Write one .npy file an input, row by row, zeros for rows that cannot be read; return those."""
    failed: dict[int, EdgetlError] = {}
    heads = (_head(examples, process, row, failed) for row in range(len(examples.y)))
    first = next((head for head in heads if head is not None), {})
    zeros = {name: np.zeros_like(array) for name, array in first.items()}
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in zeros}
        for name, file in files.items():
            shape = (len(examples.y), *zeros[name].shape)
            header = {"descr": zeros[name].dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        start = time.monotonic()
        for row, head in enumerate(chain([zeros] * len(failed), [first], heads)):
            for name, array in (head or zeros).items():
                _check_shape(array, zeros[name], examples, row)
                files[name].write(array.tobytes())
            if time.monotonic() - start > 5:
                log.info("pre-processing: %d of %d examples", row + 1, len(examples.y))
                start = time.monotonic()
    _check_failed(examples, failed)
    return sorted(failed)


def _check_shape(array: Array, like: Array, examples: Examples, row: int) -> None:
    if array.shape != like.shape:
        problem = f"{examples.describe(row)} ends as {array.shape}, others as {like.shape}"
        raise BadInput(problem, fix="give one fixed size to resize or crop to")


def _head(examples: Examples, process: Preprocess, row: int, failed: dict[int, EdgetlError]) -> dict[str, Array] | None:
    try:
        head = process.head(process.from_bytes(examples.read(row)))
    except BadInput as error:
        failed[row] = error
        return None
    return {name: array.astype(NARROW[name]) if name in NARROW else array for name, array in head.items()}


def _check_failed(examples: Examples, failed: Mapping[int, EdgetlError]) -> None:
    if not failed:
        return
    names = _described(examples, list(failed)[:5])
    listed = ", ".join(names) + (f" and {len(failed) - 5} more" if len(failed) > 5 else "")
    first = next(iter(failed.values()))
    problem = f"{len(failed)} of {len(examples.y)} examples cannot be read: {listed} ({first.problem})"
    if len(failed) > examples.skip_share * len(examples.y):
        raise BadInput(problem, fix=f"replace or delete them; {first.fix}")
    log.warning("skipped %s", problem)


def _described(examples: Examples, rows: Sequence[int]) -> list[str]:
    return [examples.describe(row) for row in rows]


def _recorded(
    examples: Examples, source: Source, seed: int, splits: Mapping[Part, NDArray[np.int64]]
) -> dict[str, Json]:
    shares = {"validation": source.validation, "test": source.test}
    record: dict[str, Json] = {}
    for part, rows in splits.items():
        known = examples.y[rows][examples.y[rows] >= 0]
        counts = np.bincount(known, minlength=len(examples.labels)).tolist()
        published = part in examples.parts
        record[part] = {
            "made": "published" if published else "cut",
            "seed": None if published else seed,
            "share": None if published else shares[part],
            "n": len(rows),
            "counts": dict(zip(examples.labels, counts, strict=True)),
        }
    return record


def _digest(
    examples: str, operations: Sequence[Operation], asset: str, splits: Mapping[Part, NDArray[np.int64]]
) -> str:
    hashes = {part: hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() for part, rows in splits.items()}
    return digest([examples, [dict(o) for o in operations], asset, cast(Json, hashes)])
