"""What the user sees: results on stdout, progress and logs on stderr, one exit code. [no torch]"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgetl import __version__, ranks
from edgetl.errors import BadInput, BadInputs, EdgetlError
from edgetl.extras import install
from edgetl.plugins import FOLDERS_VARIABLE

if TYPE_CHECKING:  # a help text waits neither for rich nor, by way of types, for numpy
    from types import TracebackType

    from rich.table import Table

    from edgetl.types import Json

SCHEMA_VERSION = 1
USAGE, HOST, RESOURCES, INTERRUPTED = 2, 4, 6, 130
NO_MEMORY = ("DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough", "CUDA out of memory")

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for a wrong command line: click's class, or that of the copy of click inside newer typers."""


def start(verbose: bool, quiet: bool, plugins: Path | None) -> None:
    """Send the log to stderr and name the user's own plugins to this process and those it starts."""
    if plugins is not None:
        if not plugins.is_dir():
            raise BadInput(f"--plugins {plugins}: no such folder", fix="give a folder with methods/, families/ ...")
        os.environ[FOLDERS_VARIABLE] = str(plugins.resolve())
    level = logging.DEBUG if verbose else logging.WARNING if quiet or not ranks.first() else logging.INFO
    log = logging.getLogger("edgetl")
    log.setLevel(level)
    handler: logging.Handler
    if sys.stderr.isatty():
        from edgetl.progress import Bar

        handler = Bar()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False


def show(table: Table) -> None:
    """Print a table on stdout, as wide as it needs where stdout is no terminal."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=240, force_terminal=False)
    console.print(table)


def show_json(value: Json) -> None:
    """Print a JSON object with its schema version on stdout."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=1, ensure_ascii=False))


def rows(title: str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> Table:
    """Return a table of plain cells."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=Text(title), title_justify="left")
    for line in lines:
        table.add_row(*(Text(str(cell)) for cell in line))
    return table


def show_lines(what: str, columns: Sequence[str], lines: Iterable[Sequence[object]], as_json: bool) -> None:
    """Print a listing as a table, or as JSON objects with the columns as keys."""
    if as_json:
        keys = [c.replace(" ", "_") for c in columns]
        show_json({what: [dict(zip(keys, line, strict=True)) for line in lines]})
    else:
        show(rows(what, columns, lines))


def show_tables(tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[object]]]], as_json: bool) -> None:
    """Print listings, each with its columns, one after another, or as one JSON object."""
    if as_json:
        show_json(
            {what: [dict(zip(keys, line, strict=True)) for line in lines] for what, (keys, lines) in tables.items()}
        )
        return
    for what, (columns, lines) in tables.items():
        if lines:
            show(rows(what, columns, lines))


def show_paths(what: str, made: Mapping[str, Path], folder: Path, as_json: bool) -> None:
    """Print where results lie."""
    if as_json:
        show_json({"folder": str(folder), what: {name: str(path) for name, path in made.items()}})
    else:
        show(rows(f"{what} in {folder}", ("name", "folder"), made.items()))


def interrupted() -> None:
    """Say on stderr that Ctrl-C was obeyed."""
    print("interrupted\n  fix: run the same command again, it continues where it stopped", file=sys.stderr)


def failed(error: Exception) -> int:
    """Print what went wrong on stderr, a problem in one line and a fix in the next, and return the exit code."""
    if isinstance(error, BadInputs):
        code, text = error.code, "\n".join(f"error: {one}" for one in error.errors)
    elif isinstance(error, EdgetlError):
        code, text = error.code, f"error: {error}"
    elif isinstance(error, MemoryError) or _no_memory(error):
        code, text = RESOURCES, "error: out of memory\n  fix: use a smaller batch or backbone, or a larger machine"
    elif isinstance(error, ModuleNotFoundError) and (command := install(error.name or "")):
        code, text = HOST, f"error: {error.name} is not installed\n  fix: {command}"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        code, text = RESOURCES, "error: the disk is full\n  fix: free some space and run the same command again"
    else:
        raise error
    print(text, file=sys.stderr)
    return code


def report_bugs() -> None:
    """Say below the traceback of whatever nobody expected that it is a fault of this program; Python exits with 1."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        print(f"this is a bug in edgetl {__version__}: please report it with the lines above", file=sys.stderr)

    sys.excepthook = say


def usage(error: BaseException) -> int:
    """Print what is wrong with the command line on stderr and return its exit code."""
    message = getattr(error, "format_message", lambda: str(error))()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
    else:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "edgetl"
        print(f"error: {message}\n  fix: see `{command} --help`", file=sys.stderr)
    return USAGE


def _no_memory(error: BaseException) -> bool:
    """Return whether torch, which knows no error of its own for it, found no memory."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
