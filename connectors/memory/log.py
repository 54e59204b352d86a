"""A cluster in memory: topics of partitions, each a log of offsets as Kafka keeps them.

What a reader can meet on Kafka can be made here: control records, aborted and open transactions, compacted
offsets, a log start that moves up, a topic that is deleted and made anew, and one that grows.
Not here: groups and reading (`connectors.memory.group`, `connectors.memory.source`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.batch import Stream

if TYPE_CHECKING:
    from connectors.memory.group import MemoryGroup

Headers = Sequence[tuple[str, bytes | None]]

#: What `engine.batch.from_rows` takes: offset, timestamp, key, value, headers.
Row = tuple[int, int, bytes | None, bytes | None, Headers]

#: The timestamp of the first record; each next one is a millisecond later unless one is given.
FIRST_TIMESTAMP_MS = 1_700_000_000_000


class Changes:
    """Wakes everybody who waits for something to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    def next(self) -> asyncio.Event:
        """The event of the next change. Take it before looking, and no change is missed."""
        return self._event


@dataclass(slots=True)
class _Entry:
    """One offset. ``row`` is None for a control record and for what compaction took."""

    row: Row | None
    transaction: Transaction | None = None


class Transaction:
    """Records of one or more partitions that are committed or aborted together; made by `MemoryTopic.begin`."""

    def __init__(self) -> None:
        self.state = "open"
        self._logs: dict[MemoryLog, None] = {}

    def append(self, log: MemoryLog, value: bytes | None, *, key: bytes | None = None) -> int:
        assert self.state == "open"
        self._logs[log] = None
        return log.append(value, key=key, transaction=self)

    def commit(self) -> None:
        """End with a commit marker in every partition."""
        self._end("committed")

    def abort(self) -> None:
        self._end("aborted")

    def _end(self, state: str) -> None:
        assert self.state == "open"
        self.state = state
        for log in self._logs:
            log.mark()


class MemoryLog:
    """One partition. Offsets run from ``start``, the first one held, to ``end``, the next one given."""

    def __init__(self) -> None:
        self.start = 0
        self.changes = Changes()
        self._entries: list[_Entry] = []

    @property
    def end(self) -> int:
        return len(self._entries)

    @property
    def stable_end(self) -> int:
        """The last stable offset: the first one of the first open transaction, else the end."""
        for offset in range(self.start, self.end):
            transaction = self._entries[offset].transaction
            if transaction is not None and transaction.state == "open":
                return offset
        return self.end

    def append(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        transaction: Transaction | None = None,
    ) -> int:
        """Add a record; its offset."""
        offset = self.end
        stamp = FIRST_TIMESTAMP_MS + offset if timestamp_ms is None else timestamp_ms
        self._entries.append(_Entry((offset, stamp, key, value, headers), transaction))
        self.changes.notify()
        return offset

    def mark(self) -> int:
        """Add a control record; its offset."""
        self._entries.append(_Entry(None))
        self.changes.notify()
        return self.end - 1

    def truncate(self, start: int) -> None:
        """Move the log start up, as retention does."""
        assert self.start <= start <= self.end
        self.start = start
        self.changes.notify()

    def truncate_end(self, end: int) -> None:
        """Lose the log's end, as an unclean leader election does."""
        assert self.start <= end <= self.end
        del self._entries[end:]
        self.changes.notify()

    def compact(self, offsets: Iterable[int]) -> None:
        """Take the records at ``offsets`` away; the offsets stay."""
        for offset in offsets:
            self._entries[offset].row = None

    def read(self, offset: int, records_max: int, *, read_committed: bool) -> tuple[list[Row], int]:
        """Up to ``records_max`` records from ``offset`` on, and the offset to read on from."""
        assert self.start <= offset <= self.end
        stop = self.stable_end if read_committed else self.end
        rows: list[Row] = []
        at = offset
        while at < stop and len(rows) < records_max:
            entry = self._entries[at]
            aborted = entry.transaction is not None and entry.transaction.state == "aborted"
            if entry.row is not None and not (aborted and read_committed):
                rows.append(entry.row)
            at += 1
        return rows, at

    def offset_at(self, timestamp_ms: int) -> int | None:
        """The first record's offset whose timestamp is not lower, or None."""
        for offset in range(self.start, self.end):
            row = self._entries[offset].row
            if row is not None and row[1] >= timestamp_ms:
                return offset
        return None


class MemoryTopic:
    def __init__(self, name: str, partitions: int) -> None:
        assert partitions > 0
        self.name = name
        self.topic_id = uuid.uuid4().hex
        self.partitions = [MemoryLog() for _ in range(partitions)]

    def begin(self) -> Transaction:
        return Transaction()


@dataclass(slots=True)
class MemoryCluster:
    """Topics and groups. ``available = False`` makes every call to it fail, as a dead broker does."""

    cluster_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    available: bool = True
    topics: dict[str, MemoryTopic] = field(default_factory=dict)
    groups: dict[str, MemoryGroup] = field(default_factory=dict)

    def create(self, name: str, partitions: int = 1) -> MemoryTopic:
        assert name not in self.topics, f"topic {name!r} exists"
        topic = self.topics[name] = MemoryTopic(name, partitions)
        self._topic_changed(name)
        return topic

    def delete(self, name: str) -> None:
        """Delete a topic; its readers meet an unknown topic, or a new one of that name."""
        for log in self.topics.pop(name).partitions:
            log.changes.notify()

    def grow(self, name: str, partitions: int) -> None:
        """Add partitions, up to a count of ``partitions``; the groups that read the topic share them out."""
        topic = self.topics[name]
        assert partitions >= len(topic.partitions)
        topic.partitions.extend(MemoryLog() for _ in range(partitions - len(topic.partitions)))
        self._topic_changed(name)

    def stream(self, name: str) -> Stream | None:
        topic = self.topics.get(name)
        if topic is None:
            return None
        return Stream(self.cluster_id, name, topic.topic_id, len(topic.partitions))

    def _topic_changed(self, name: str) -> None:
        for group in self.groups.values():
            if group.topic == name:
                group.topic_changed()
