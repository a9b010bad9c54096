"""What targets share where they open a file of unknown origin and run it. [no torch]"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from edgetl import extras
from edgetl.errors import BadHost, BadInput
from edgetl.types import Array, Feed

TELEMETRY = "openvino_telemetry"
"""The package with which OpenVINO and NNCF report what they are used for; without it they work and are silent."""


def imported(name: str) -> ModuleType:
    """Import and return a library, which sends no telemetry.

    Raises:
        ImportError: it is not installed, or does not load.

    """
    with _without(TELEMETRY):
        return importlib.import_module(name)


def library(name: str) -> ModuleType:
    """Import and return the library that an extra brings.

    Raises:
        BadHost: it is not installed, or does not load.

    """
    try:
        return imported(name)
    except ImportError as error:
        problem = f"{name} is not installed or broken: {first_line(error)}"
        raise BadHost(problem, fix=extras.install(name) or f"pip install {name}") from error


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Make imports of a module fail, as if it were not installed."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


def contents(file: bytes | Path, kind: str) -> bytes:
    """Return the bytes of a file, which may be given as such.

    Raises:
        BadInput: it cannot be read.

    """
    if isinstance(file, bytes):
        return file
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}", fix=f"give the path of {kind}") from error


@dataclass(frozen=True)
class Input:
    """What an input of a network takes; an axis of any length is -1."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def takes(self, value: Array) -> bool:
        """Say whether it takes a value; no axis may be empty."""
        if value.dtype != self.dtype or value.ndim != len(self.shape) or 0 in value.shape:
            return False
        return all(n in (-1, m) for n, m in zip(self.shape, value.shape, strict=True))


def check(feed: Feed, inputs: Mapping[str, Input]) -> None:
    """Check what a runtime would convert without a word, or read from its memory as something else.

    Raises:
        BadInput: a name, shape or dtype differs, or the batches do.

    """
    problem = ""
    if set(feed) != set(inputs):
        problem = f"it takes {', '.join(inputs)}, not {', '.join(feed)}"
    elif wrong := next((name for name, value in feed.items() if not inputs[name].takes(value)), None):
        wanted, value = inputs[wrong], feed[wrong]
        problem = f"{wrong} is {wanted.dtype} {list(wanted.shape)}, not {value.dtype} {list(value.shape)}"
    elif len({len(value) for value in feed.values()}) > 1:
        problem = "its inputs are batches of different sizes"
    if problem:
        raise BadInput(f"the model does not take this input: {problem}", fix="see the inputs in manifest.json")


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
