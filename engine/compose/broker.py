"""What ``headrace broker`` does, on the embedded broker of `connectors.kafka.broker`.

Thin: it chooses defaults and decides what a second start means. The command line formats the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from connectors.kafka.broker import Broker, BrokerRunning, layout, probe, record, server, settings
from engine.errors import ExternalError

__all__ = ["Broker", "NodeStatus", "Status", "data_directory", "start", "start_in_background", "status", "stop"]

PORT_DEFAULT = settings.PORT_DEFAULT


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node of a broker. ``answers``: whether it takes requests now."""

    node: int
    running: bool
    answers: bool = False
    bootstrap: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The broker of one data directory. ``answers``: whether all nodes take requests now; ``pid``: the first's."""

    data: str
    running: bool
    answers: bool = False
    bootstrap: str | None = None
    pid: int | None = None
    kafka: str | None = None
    background: bool | None = None
    nodes: tuple[NodeStatus, ...] = field(default=())


def data_directory(data: Path | None) -> Path:
    """The directory that was asked for, or the user's own."""
    return (data or server.data_directory()).absolute()


def start(
    data: Path | None,
    *,
    nodes: int | None,
    port: int,
    heap_megabytes: int | None,
    background: bool,
    progress: Callable[[str], None],
) -> Broker:
    """Start a broker; it answers when this returns. Raises as `Broker.start` does.

    Without ``nodes`` a new directory gets one, and another one what it was made with.
    """
    directory = data_directory(data)
    broker = Broker(
        directory,
        nodes=len(layout.existing(directory)) if nodes is None else nodes,
        port=port,
        heap_megabytes=heap_megabytes,
        background=background,
        progress=progress,
    )
    broker.start()
    return broker


def start_in_background(
    data: Path | None,
    *,
    nodes: int | None,
    port: int | None,
    heap_megabytes: int | None,
    progress: Callable[[str], None],
) -> str:
    """The address of a broker that outlives this process: a new one, or the one that already runs there.

    To ask twice is no error, unless the second time names another port, or what runs is bound to the life of
    a command in the foreground.
    """
    chosen = PORT_DEFAULT if port is None else port
    try:
        broker = start(
            data, nodes=nodes, port=chosen, heap_megabytes=heap_megabytes, background=True, progress=progress
        )
    except BrokerRunning as running:
        if not running.background:
            raise
        if nodes is not None:
            layout.check(data_directory(data), nodes)
        known = running.records
        if port and not known[0].bootstrap.endswith(f":{port}"):
            raise ExternalError(
                f"the broker of {data_directory(data)} already runs at {running.bootstrap}, not on port {port}",
                hint="end it with `headrace broker stop` first, or give the second one a directory with --data",
            ) from running
        progress(f"already running, process {', '.join(str(each.pid) for each in known)}")
        return running.bootstrap
    return broker.bootstrap


def stop(data: Path | None) -> list[record.Record]:
    """End the broker of a data directory; the records of the nodes that ran."""
    return layout.stop(data_directory(data))


def status(data: Path | None) -> Status:
    """What runs on a data directory, as of now."""
    directory = data_directory(data)
    if not layout.is_alive(directory):
        return Status(str(directory), running=False)
    known = layout.records(directory)
    if not known:  # on its way up or down
        return Status(str(directory), running=True)
    nodes = tuple(_node_status(number, known.get(number)) for number in layout.existing(directory))
    first = next(iter(known.values()))
    return Status(
        str(directory),
        running=True,
        answers=all(node.answers for node in nodes),
        bootstrap=",".join(each.bootstrap for each in known.values()),
        pid=nodes[0].pid,
        kafka=first.kafka,
        background=first.background,
        nodes=nodes,
    )


def _node_status(number: int, known: record.Record | None) -> NodeStatus:
    if known is None:
        return NodeStatus(number, running=False)
    answers = probe.cluster_id(int(known.bootstrap.rpartition(":")[2])) is not None
    return NodeStatus(number, running=True, answers=answers, bootstrap=known.bootstrap, pid=known.pid)
