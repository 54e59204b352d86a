"""``headrace broker start | stop | status``: a real Kafka on this machine, without Docker or Java.

Standard output carries answers, standard error progress. This module formats; `engine.compose.broker` acts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import Domain, HeadraceError

if TYPE_CHECKING:
    from engine.compose.broker import Broker, NodeStatus

WATCH_SECONDS = 0.2

app = typer.Typer(
    name="broker",
    help="An embedded Apache Kafka on this machine: one node or a cluster of three, no Docker and no Java needed.",
    no_args_is_help=True,
)

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where the broker keeps its topics. One directory is one broker.", metavar="DIR"),
]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")]


@app.command()
def start(
    nodes: Annotated[
        int | None,
        typer.Option(
            help="1, or 3 for a cluster; by default what the directory was made with, else 1.", metavar="1|3"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port on 127.0.0.1, 9092 by default; 0 takes a free one. Nodes 2 and 3 take the next two.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    heap: Annotated[
        int | None,
        typer.Option(help="Java's heap in MB: by default 512, or 256 for each of 3 nodes.", metavar="MB"),
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Return when it answers, and leave it running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start Kafka and print its bootstrap address.

    Without --background it runs until this command ends, and never longer. With it, a broker that
    already runs in the background on the same directory is used as it is.

    --nodes 3 starts a cluster that can lose any one node: three brokers in the racks rack-1, rack-2 and
    rack-3, topics with three replicas of which two must take a record, and replicas that readers nearby
    (kafka.client_rack) may fetch from. It needs 0.5 to 1.1 GB of memory. To see what a lost broker does,
    end one with `kill -9`: `headrace broker status` says which process each node is. `stop` and `start`
    bring all of them back.
    """
    from engine.compose import broker as compose

    if background:
        bootstrap = compose.start_in_background(
            data, nodes=nodes, port=port, heap_megabytes=heap, progress=_progress
        )
        _answer(bootstrap, as_json)
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ends like Ctrl-C, wherever the start may be
    with contextlib.suppress(KeyboardInterrupt):
        running = compose.start(
            data,
            nodes=nodes,
            port=compose.PORT_DEFAULT if port is None else port,
            heap_megabytes=heap,
            background=False,
            progress=_progress,
        )
        try:
            # From here on a signal is kept, not raised: Python drops what is raised while it collects garbage.
            stopping = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda *_: stopping.set())
            _answer(running.bootstrap, as_json)
            _watch(running, stopping)
        finally:
            running.stop()


def _watch(running: Broker, stopping: threading.Event) -> None:
    """Until ``stopping``, or until the last node ends: by ``broker stop`` (fine) or by itself (an error)."""
    alive = list(running.nodes)
    failure: HeadraceError | None = None
    while alive:
        if stopping.wait(WATCH_SECONDS):
            return
        for node in [each for each in alive if not running.node_running(each)]:
            alive.remove(node)
            failure = running.node_failure(node)
            if failure is not None and alive:
                _progress(f"{failure}\ngoing on with {len(alive)} of {len(running.nodes)} nodes")
    if failure is not None:
        raise failure
    _progress("the broker was stopped")


@app.command()
def stop(data: Data = None) -> None:
    """End the broker of a data directory, with all of its nodes; nothing happens if none runs."""
    from engine.compose import broker as compose

    ended = compose.stop(data)
    where = ",".join(each.bootstrap for each in ended)
    _progress(f"stopped the broker at {where}" if ended else "no broker was running")


@app.command()
def status(data: Data = None, as_json: Json = False) -> None:
    """Say whether the broker of a data directory runs, and where each node does. Exit code 3 if it does not."""
    from engine.compose import broker as compose

    found = compose.status(data)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
    elif not found.running:
        typer.echo(f"not running ({found.data})")
    elif found.bootstrap is None:
        typer.echo(f"starting or stopping ({found.data})")
    elif len(found.nodes) == 1:
        typer.echo(f"{_manner(found.nodes[0])}: Kafka {found.kafka}, process {found.pid} ({found.data})")
    else:
        alive = sum(node.answers for node in found.nodes)
        typer.echo(f"{found.bootstrap}: Kafka {found.kafka}, {alive} of {len(found.nodes)} nodes ({found.data})")
        for node in found.nodes:
            typer.echo(f"  node {node.node}: {_manner(node)}" + (f", process {node.pid}" if node.running else ""))
    if not found.running:
        raise typer.Exit(Domain.EXTERNAL)


def _manner(node: NodeStatus) -> str:
    if not node.running:
        return "not running"
    return f"{node.bootstrap} {'running' if node.answers else 'running, but not answering'}"


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
