"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere. [no torch]

Whatever lasts logs lines through the logger "edgetl"; a record that carries `done` and `total` moves the bar.
"""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Bar(logging.Handler):
    """Prints records above a bar that is there while something lasts."""

    def __init__(self) -> None:
        super().__init__()
        columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, or move the bar."""
        done, total = getattr(record, "done", None), getattr(record, "total", None)
        if done is None or total is None:
            self.progress.console.print(self.format(record), markup=False, highlight=False)
        elif self.task is None:
            self.progress.start()
            self.task = self.progress.add_task(_short(record.getMessage()), total=total, completed=done)
        elif done < total:
            self.progress.update(self.task, completed=done, total=total, description=_short(record.getMessage()))
        if self.task is not None and (done is None or done == total):
            self.progress.remove_task(self.task)
            self.progress.stop()
            self.task = None


def _short(text: str) -> str:
    return text.split("  ", 1)[0][:60]
