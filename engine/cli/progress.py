"""How far long work is: a bar on a terminal, a line now and then everywhere else. Always on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

#: Between two plain lines, and between two looks of the bar.
LINE_SECONDS = 5.0
BAR_SECONDS = 0.1


class ProgressReport:
    """``with ProgressReport("producing") as report: report.update(0.4, "12,000 events")``.

    Calls that come too soon after the last one cost a clock read. ``quiet`` shows nothing at all;
    ``terminal`` overrides what standard error is.
    """

    def __init__(self, what: str, *, quiet: bool = False, terminal: bool | None = None) -> None:
        self._what = what
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._terminal and not self._quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._what, total=None, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, part: float | None, note: str) -> None:
        """``part`` is what is done, from 0 to 1, or None where nobody knows."""
        now = time.monotonic()
        if self._quiet or now - self._said < (BAR_SECONDS if self._bar is not None else LINE_SECONDS):
            return
        self._said = now
        if self._bar is not None and self._task is not None:
            total = None if part is None else 1.0
            self._bar.update(self._task, completed=part or 0.0, total=total, note=note)
            return
        percent = "" if part is None else f", {part:.0%}"
        typer.echo(f"{self._what}: {note}{percent}", err=True)
