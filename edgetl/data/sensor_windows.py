"""Windows of sensor readings: npz files of windows, or csv tables of readings that are cut into windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgetl.data._arrays import array_examples, check_equal, classes
from edgetl.data._examples import existing, joined, named_parts, names_beside
from edgetl.data._signals import SignalFields, sensor_operations
from edgetl.data._windows import Columns, Windows, csv_windows, npz_windows
from edgetl.errors import BadInput
from edgetl.examples import Examples, Part, Source
from edgetl.preprocess import Raw
from edgetl.types import Operation

if TYPE_CHECKING:
    from edgetl.network.family import Prep

SUFFIXES = (".npz", ".csv")


class SensorWindows(SignalFields, Source):
    """Readings of several channels over time and their classes; where subjects are known, no part shares one."""

    use: str = "sensor_windows"
    root: Path  # windows in x.npz, readings in x.csv, or a folder of train.npz or train.csv [validation, test]
    labels: Path | None = None  # class names; default: labels.json or classes.txt beside the data, else by value
    subject: str = "subject"  # array or column that says who each window is from, where there is one
    x: str | None = None  # npz: the name of the windows (N, readings, channels)
    y: str | None = None  # npz: the name of the classes
    label: str = "label"  # csv: the column of the classes
    channels: tuple[str, ...] | None = None  # csv: the columns of readings; default: all but label, subject and time
    length: int = Field(100, ge=1, le=8192)  # csv: readings of a window
    step: int | None = Field(None, ge=1)  # csv: readings from window to window; default: length, no overlap

    def examples(self) -> Examples:
        """Read every part, published ones kept apart."""
        root = existing(self.root)
        found = {part: self._windows(path) for part, path in _files(root).items()}
        check_equal({part: windows.x for part, windows in found.items()}, root)
        names = names_beside(root if root.is_dir() else root.parent, self.labels)
        labels, y = classes(np.concatenate([windows.y.astype(np.str_) for windows in found.values()]), names, root)
        parts = joined({part: len(windows.x) for part, windows in found.items()})
        x = np.concatenate([windows.x for windows in found.values()])
        groups = _groups(found, root)
        self._check_overlap(found, groups, root)
        return array_examples(x, y, labels, parts, str(root), groups)

    def operations(self, raw: Raw, prep: Prep) -> tuple[Operation, ...]:
        """Return the list: channels first, to float, and with mean or std given, normalise."""
        return sensor_operations(self, raw, prep)

    def _windows(self, path: Path) -> Windows:
        if path.suffix == ".npz":
            return npz_windows(path, (self.x, self.y), self.subject)
        step = self.length if self.step is None else self.step
        return csv_windows(path, Columns(self.label, self.subject, self.channels, self.length, step))

    def _check_overlap(self, found: dict[Part, Windows], groups: NDArray[np.int64] | None, root: Path) -> None:
        """Refuse windows that overlap where a split could put the same readings into two parts."""
        if self.step is not None and self.step < self.length and groups is None and len(found) < 3:
            problem = f"{root}: windows that overlap would stand in the training and in the test part"
            raise BadInput(problem, fix="leave data.step out, add a column of subjects, or publish all three parts")


def _files(root: Path) -> dict[Part, Path]:
    fix = "set data.root to an npz or csv file, or to a folder with such a train file"
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise BadInput(f"{root} is no npz or csv file", fix=fix)
        return {"train": root}
    found = named_parts((p for p in root.iterdir() if p.suffix in SUFFIXES), lambda path: path.stem, root)
    if not found:
        raise BadInput(f"{root} holds no train.npz or train.csv", fix=fix)
    return found


def _groups(found: dict[Part, Windows], root: Path) -> NDArray[np.int64] | None:
    """Return the number of every window's subject, or None where nobody says who they are."""
    known = {part: windows.subjects for part, windows in found.items() if windows.subjects is not None}
    if not known:
        return None
    if len(known) < len(found):
        raise BadInput(f"{root}: only {', '.join(known)} names subjects", fix="name them in every part, or in none")
    fix = "keep everybody in one part, or set data.subject to a name that the data lacks"
    seen: dict[str, Part] = {}
    for part, subjects in known.items():
        for subject in np.unique(subjects).tolist():
            if seen.setdefault(subject, part) != part:
                problem = f"{root}: subject '{subject}' is in the {seen[subject]} and in the {part} part"
                raise BadInput(problem, fix=fix)
    return np.unique(np.concatenate(list(known.values())), return_inverse=True)[1].astype(np.int64)


PLUGIN = SensorWindows
