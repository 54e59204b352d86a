"""`headrace top`: a running engine in a terminal. Asks `engine.cli.page`, shows `engine.cli.top_lines`."""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from engine import logs
from engine.cli.page import Page, PageUnavailable, page_of
from engine.cli.top_lines import Line, lines, measured
from engine.errors import HeadraceError, UserError

#: Between two looks at the engine, and between two at the keyboard and the terminal's size.
LOOK_SECONDS = 1.0
TICK_SECONDS = 0.2

#: Rates are taken over this long.
RATE_SECONDS = 5.0

#: How long `--once` waits for a second moment, for rates; and for an engine that is just starting.
ONCE_SECONDS_MAX = 5.0

_FILE = typer.Argument(
    metavar="FILE", help="The configuration of a run; headrace.toml, or of the one engine that runs, when left out."
)
_URL = typer.Option("--url", metavar="URL", help="A page elsewhere; its token comes from HEADRACE_WEB_TOKEN.")
_ONCE = typer.Option("--once", help="Print one table, of a second, and end.")
_JSON = typer.Option("--json", help="Print one JSON document, and end.")


def top(
    file: Annotated[Path | None, _FILE] = None,
    url: Annotated[str | None, _URL] = None,
    once: Annotated[bool, _ONCE] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show a running engine: rates, lag in records and seconds, batches, durations, retries, failures, cost.

    Shards are sorted by lag, and those that do not fit are counted. It goes on when the engine is restarted. q or
    Ctrl-C ends it; where the output is no terminal it prints one table.

    \b
    headrace top headrace.toml
    headrace top --once --json | jq .pipelines[].offset_lag
    """
    logs.configure()
    page = page_of(file, url)
    if once or as_json or not sys.stdout.isatty():
        document = _once(page)
        if as_json:
            typer.echo(orjson.dumps({"url": page.url, **document}, option=orjson.OPT_INDENT_2).decode())
        else:
            typer.echo("\n".join(each.text for each in lines(document)))
        return
    with suppress(KeyboardInterrupt):
        _live(lambda: page_of(file, url), page)


def status_of(page: Page) -> dict[str, Any] | None:
    """The engine's status; None before its first. Raises what `Page.get` does."""
    code, document = page.get("/api/status")
    if not isinstance(document, dict) or "pipelines" not in document:
        if code == 503 or document is None:
            return None
        raise UserError(f"{page.url} answers no status", hint="is that headrace's page, and of this version?")
    return document


def _once(page: Page) -> dict[str, Any]:
    """Two moments, as one document."""
    deadline = time.monotonic() + ONCE_SECONDS_MAX
    first: dict[str, Any] | None = None
    while True:
        now = status_of(page)
        if first is not None and now is not None and now["at"] != first["at"]:
            return measured(first, now)
        first = first or now
        if time.monotonic() > deadline:
            if first is None:
                raise PageUnavailable(f"{page.url}: the engine has not said yet what it does")
            return measured(first, first)
        time.sleep(TICK_SECONDS)


class Moments:
    """The statuses of the last seconds, of one run of the engine."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque()

    def add(self, status: dict[str, Any]) -> None:
        if self._kept and self._kept[-1]["started_at"] != status["started_at"]:
            self._kept.clear()
        if not self._kept or self._kept[-1]["at"] < status["at"]:
            self._kept.append(status)
        while len(self._kept) > 2 and self._kept[1]["at"] <= status["at"] - RATE_SECONDS:
            self._kept.popleft()

    def document(self) -> dict[str, Any] | None:
        return measured(self._kept[0], self._kept[-1]) if self._kept else None


def _live(find: Callable[[], Page], page: Page) -> None:
    """Until q. What the engine's answers lack is said in the first line; the last picture stays meanwhile."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    moments, trouble = Moments(), None
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        looked, drawn = -LOOK_SECONDS, None
        while True:
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                try:
                    # After a restart it has another port and token.
                    page = find() if trouble is not None else page
                    status = status_of(page)
                    trouble = None if status is not None else "the engine is starting"
                    if status is not None:
                        moments.add(status)
                except HeadraceError as error:
                    if isinstance(error, UserError) and moments.document() is None:
                        raise
                    trouble = error.message.splitlines()[0]
                drawn = None
            size = shutil.get_terminal_size()
            if drawn != size:
                drawn = size
                live.update(_picture(moments, trouble, size.columns, size.lines), refresh=True)
            if pressed(TICK_SECONDS) in ("q", "Q"):
                return


def _picture(moments: Moments, trouble: str | None, width: int, height: int) -> Any:
    from rich.text import Text

    document = moments.document()
    shown = [] if trouble is None else [Line(f"{trouble}; still trying"[:width], "bold red")]
    if document is not None:
        shown += lines(document, width=width, height=height - len(shown))
    text = Text(no_wrap=True, overflow="crop", end="")
    for at, each in enumerate(shown):
        text.append(("\n" if at else "") + each.text, each.style or None)
    return text


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so long for a key and gives it, or nothing."""
    if not sys.stdin.isatty():

        def none(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield none
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def key(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        typed = os.read(descriptor, 64) if ready else b""
        if ready and not typed:  # the terminal is gone
            raise KeyboardInterrupt
        return typed[:1].decode("ascii", "replace")

    try:
        tty.setcbreak(descriptor)
        yield key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
