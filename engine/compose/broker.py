"""What ``headrace broker`` does, on the embedded broker of `connectors.kafka.broker`.

Thin: it chooses defaults and decides what a second start means. The command line formats the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from connectors.kafka.broker import Broker, BrokerRunning, probe, record, server, settings
from engine.errors import ExternalError

__all__ = ["Broker", "Status", "data_directory", "start", "start_in_background", "status", "stop"]

PORT_DEFAULT = settings.PORT_DEFAULT
HEAP_MEGABYTES_DEFAULT = settings.HEAP_MEGABYTES_DEFAULT


@dataclass(frozen=True, slots=True)
class Status:
    """The broker of one data directory. ``answers``: whether it takes requests now."""

    data: str
    running: bool
    answers: bool = False
    bootstrap: str | None = None
    pid: int | None = None
    kafka: str | None = None
    background: bool | None = None


def data_directory(data: Path | None) -> Path:
    """The directory that was asked for, or the user's own."""
    return (data or server.data_directory()).absolute()


def start(
    data: Path | None, *, port: int, heap_megabytes: int, background: bool, progress: Callable[[str], None]
) -> Broker:
    """Start a broker; it answers when this returns. Raises as `Broker.start` does."""
    broker = Broker(
        data_directory(data),
        port=port,
        heap_megabytes=heap_megabytes,
        background=background,
        progress=progress,
    )
    broker.start()
    return broker


def start_in_background(
    data: Path | None, *, port: int | None, heap_megabytes: int, progress: Callable[[str], None]
) -> str:
    """The address of a broker that outlives this process: a new one, or the one that already runs there.

    To ask twice is no error, unless the second time names another port, or what runs is bound to the life of
    a command in the foreground.
    """
    chosen = PORT_DEFAULT if port is None else port
    try:
        broker = start(data, port=chosen, heap_megabytes=heap_megabytes, background=True, progress=progress)
    except BrokerRunning as running:
        known = running.record
        if known is None or not known.background:
            raise
        if port and not known.bootstrap.endswith(f":{port}"):
            raise ExternalError(
                f"the broker of {data_directory(data)} already runs at {known.bootstrap}, not on port {port}",
                hint="end it with `headrace broker stop` first, or give the second one a directory with --data",
            ) from running
        progress(f"already running, process {known.pid}")
        return known.bootstrap
    return broker.bootstrap


def stop(data: Path | None) -> record.Record | None:
    """End the broker of a data directory; its record, or None if none ran."""
    return record.stop(data_directory(data))


def status(data: Path | None) -> Status:
    """What runs on a data directory, as of now."""
    directory = data_directory(data)
    if not record.is_alive(directory):
        return Status(str(directory), running=False)
    known = record.read(directory)
    if known is None:  # on its way up or down
        return Status(str(directory), running=True)
    return Status(
        str(directory),
        running=True,
        answers=probe.cluster_id(int(known.bootstrap.rpartition(":")[2])) is not None,
        bootstrap=known.bootstrap,
        pid=known.pid,
        kafka=known.kafka,
        background=known.background,
    )
