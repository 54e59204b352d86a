"""``headrace broker start | stop | status``: a real Kafka on this machine, without Docker or Java.

Standard output carries answers, standard error progress. This module formats; `engine.compose.broker` acts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import Domain, HeadraceError

if TYPE_CHECKING:
    from engine.compose.broker import Broker

WATCH_SECONDS = 0.2

app = typer.Typer(
    name="broker",
    help="An embedded Apache Kafka: one node on this machine, no Docker and no Java needed.",
    no_args_is_help=True,
)

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where the broker keeps its topics. One directory is one broker.", metavar="DIR"),
]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]


@app.command()
def start(
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1, 9092 by default; 0 takes a free one.", show_default=False)
    ] = None,
    data: Data = None,
    heap: Annotated[int | None, typer.Option(help="Java's heap in MB, 512 by default.", metavar="MB")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Return when it answers, and leave it running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start Kafka and print its bootstrap address.

    Without --background it runs until this command ends, and never longer. With it, a broker that
    already runs in the background on the same directory is used as it is.
    """
    from engine.compose import broker as compose

    heap_megabytes = compose.HEAP_MEGABYTES_DEFAULT if heap is None else heap
    if background:
        bootstrap = compose.start_in_background(data, port=port, heap_megabytes=heap_megabytes, progress=_progress)
        _answer(bootstrap, as_json)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ends like Ctrl-C, wherever the start may be
    with contextlib.suppress(KeyboardInterrupt):
        running = compose.start(
            data,
            port=compose.PORT_DEFAULT if port is None else port,
            heap_megabytes=heap_megabytes,
            background=False,
            progress=_progress,
        )
        try:
            _answer(running.bootstrap, as_json)
            _watch(running)
        finally:
            running.stop()


def _watch(running: Broker) -> None:
    """Until a signal, or until the broker ends: by ``broker stop`` (fine) or by itself (an error)."""
    while running.running:
        time.sleep(WATCH_SECONDS)
    failure = running.failure()
    if failure is not None:
        raise failure
    _progress("the broker was stopped")


@app.command()
def stop(data: Data = None) -> None:
    """End the broker of a data directory; nothing happens if none runs."""
    from engine.compose import broker as compose

    ended = compose.stop(data)
    _progress("no broker was running" if ended is None else f"stopped the broker at {ended.bootstrap}")


@app.command()
def status(data: Data = None, as_json: Json = False) -> None:
    """Say whether the broker of a data directory runs, and where. Exit code 3 if it does not."""
    from engine.compose import broker as compose

    found = compose.status(data)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
    elif not found.running:
        typer.echo(f"not running ({found.data})")
    elif found.bootstrap is None:
        typer.echo(f"starting or stopping ({found.data})")
    else:
        manner = "running" if found.answers else "running, but not answering"
        typer.echo(f"{found.bootstrap} {manner}: Kafka {found.kafka}, process {found.pid} ({found.data})")
    if not found.running:
        raise typer.Exit(Domain.EXTERNAL)


def _answer(bootstrap: str, as_json: bool) -> None:
    typer.echo(json.dumps({"bootstrap": bootstrap}) if as_json else bootstrap)
    sys.stdout.flush()  # a reader at the other end of a pipe waits for this line


def _progress(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    try:
        app()
    except HeadraceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.domain)
