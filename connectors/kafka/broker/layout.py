"""Where the nodes of a data directory lie, and what can be asked of all of them at once.

One node is the directory itself; of several each has a directory ``node-1``, ``node-2``, ... in it, with a lock and
a record of its own, so that one can end and come back while the others live. ``lock`` in the data directory is
then held during a start only. Not here: what a lock or a record means (`record`), how a node runs (`node`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from connectors.kafka.broker import record
from connectors.kafka.broker.record import BrokerRunning, Record
from connectors.kafka.broker.settings import NODES_VALID
from engine.errors import UserError

LOG_DIRECTORY = "kafka"


def directories(data: Path, nodes: int) -> dict[int, Path]:
    """The directory of each node, by node number."""
    return {1: data} if nodes == 1 else {number: data / f"node-{number}" for number in range(1, nodes + 1)}


def nodes_made(data: Path) -> int | None:
    """The number of nodes that a data directory was made with, or None where there is nothing yet."""
    if (data / LOG_DIRECTORY).is_dir():
        return 1
    several = max(NODES_VALID)
    return several if any(each.is_dir() for each in directories(data, several).values()) else None


def check(data: Path, nodes: int) -> None:
    """Raises `engine.errors.UserError` when a directory was made with another number of nodes."""
    made = nodes_made(data)
    if made is not None and made != nodes:
        raise UserError(
            f"{data} was made with {_nodes(made)}, and cannot be used with {_nodes(nodes)}",
            hint=f"start it with --nodes {made}, or choose another directory with --data",
        )


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def existing(data: Path) -> dict[int, Path]:
    """The directories of the nodes that a data directory was made with; of one node if it is empty."""
    return directories(data, nodes_made(data) or 1)


def is_alive(data: Path) -> bool:
    """Whether any node, or a start, holds the data directory now."""
    return any(record.is_alive(each) for each in {data, *existing(data).values()})


@contextmanager
def locked(data: Path, nodes: int) -> Iterator[dict[int, int]]:
    """The descriptors of all nodes' locks, for the time of a start. Raises `record.BrokerRunning`, and as `check`.

    Makes the directories. A node that keeps a copy of its descriptor goes on holding its lock.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    held: list[int] = []
    try:
        held.append(_take(data, data))
        check(data, nodes)
        if nodes == 1:
            yield {1: held[0]}
            return
        locks: dict[int, int] = {}
        for number, directory in directories(data, nodes).items():
            directory.mkdir(mode=0o700, exist_ok=True)
            locks[number] = _take(data, directory)
            held.append(locks[number])
        yield locks
    finally:
        for descriptor in held:
            os.close(descriptor)


def _take(data: Path, directory: Path) -> int:
    try:
        return record.take_lock(directory)
    except BrokerRunning:
        raise BrokerRunning(data, list(records(data).values())) from None


def records(data: Path) -> dict[int, Record]:
    """What is known of the nodes that live, by node number."""
    alive = {number: each for number, each in existing(data).items() if record.is_alive(each)}
    found = {number: record.read(each) for number, each in alive.items()}
    return {number: each for number, each in found.items() if each is not None}


def stop(data: Path) -> list[Record]:
    """End all nodes of a data directory; the records of those that ran. Raises as `record.stop` does."""
    return record.stop(existing(data).values())
