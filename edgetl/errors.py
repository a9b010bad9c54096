"""Errors that a user can act on: a problem in one line, a fix in the next, an exit code.

EdgetlError            1  (only its children are raised)
├── BadInput           2  usage, recipe or data
├── GateMissed         3  a result is there and is not good enough
├── BadHost            4  missing extra, wrong driver, a provider that fell back, an invalid measurement
├── Refused            5  checksum, signature, unsafe or malformed file
├── OutOfResources     6  memory or disk
└── Diverged           7  training
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

EXIT_CODES = (
    "Exit codes: 0 done, 1 a bug, 2 usage, recipe or data, 3 a gate missed, 4 this machine or its packages, "
    "5 a file refused, 6 memory or disk, 7 training diverged, 130 interrupted."
)


class EdgetlError(Exception):
    """A problem and its fix. The command line prints both and exits with `code`."""

    code: ClassVar[int] = 1

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n  fix: {self.fix}"


class BadInput(EdgetlError):
    """The command line, the recipe or the data is wrong."""

    code = 2


class BadInputs(BadInput):
    """Several problems of one input, reported together."""

    def __init__(self, errors: Sequence[BadInput]) -> None:
        super().__init__("; ".join(e.problem for e in errors), fix="; ".join(e.fix for e in errors))
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(e) for e in self.errors)


class GateMissed(EdgetlError):
    """A gate or a budget is missed."""

    code = 3


class BadHost(EdgetlError):
    """The machine, its packages or its state cannot do what was asked."""

    code = 4


class Refused(EdgetlError):
    """A file is damaged, unsafe or not what it claims to be."""

    code = 5


class OutOfResources(EdgetlError):
    """Memory or disk is exhausted."""

    code = 6


class Diverged(EdgetlError):
    """Training produced a loss or weights that are not finite."""

    code = 7


MEASURING: Mapping[int, type[EdgetlError]] = {
    kind.code: kind for kind in (BadInput, GateMissed, BadHost, Refused, OutOfResources)
}
"""What a process that measures may end with, by its exit code."""
