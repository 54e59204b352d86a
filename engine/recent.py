"""What happened lately, in bounded memory: the latest failed records of each pipeline, and lines of output.

Both are rings with sequence numbers, written in one thread and read in others. They are for showing: whoever needs
every failed record has the sink and the on-failure destination. Not here: showing.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.status import FailureEntry

#: Of a failed record's key, and of its value, so much is kept; their lengths are kept whole.
KEPT_BYTES_MAX = 65_536

#: Of a header's value, and of a reason.
KEPT_HEADER_BYTES_MAX = 4_096
KEPT_HEADERS_MAX = 64

#: What an entry takes beside its texts.
ENTRY_BYTES = 600

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RecentFailure:
    """A failed record. ``entry`` may hold less of ``key`` and ``value`` than their lengths say (None: null)."""

    sequence: int
    entry: FailureEntry
    key_bytes: int | None
    value_bytes: int | None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line that a function has printed (``origin`` function), or the platform says of it (platform, notice)."""

    at: float  #: seconds since the epoch
    function: str
    stream: str
    origin: str
    text: str


class Ring(Generic[T]):
    """The latest items: at most ``count_max`` and ``bytes_max``; thread safe. Sequence numbers begin at 1."""

    def __init__(self, count_max: int, bytes_max: int, size: Callable[[T], int]) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._size = size
        self._lock = threading.Lock()
        self._items: deque[tuple[int, int, T]] = deque()
        self._bytes = 0
        self._last = 0

    @property
    def last(self) -> int:
        """The newest item's sequence number; 0 before the first."""
        return self._last

    @property
    def nbytes(self) -> int:
        return self._bytes

    def add(self, item: T) -> int:
        """Keep an item, and let the oldest go; its sequence number. One that is too large alone is not kept."""
        size = self._size(item)
        with self._lock:
            self._last += 1
            self._items.append((self._last, size, item))
            self._bytes += size
            while self._items and (self._bytes > self._bytes_max or len(self._items) > self._count_max):
                self._bytes -= self._items.popleft()[1]
            return self._last

    def items(self) -> list[tuple[int, T]]:
        """All of them with their sequence numbers, oldest first."""
        with self._lock:
            return [(sequence, item) for sequence, _, item in self._items]

    def since(self, sequence: int, limit: int) -> list[tuple[int, T]]:
        """The newest ``limit`` of the items after ``sequence``, oldest first."""
        found: list[tuple[int, T]] = []
        with self._lock:
            for number, _, item in reversed(self._items):
                if number <= sequence or len(found) >= limit:
                    break
                found.append((number, item))
        return found[::-1]


class RecentFailures:
    """The latest failed records: ``count_max`` of each pipeline, ``bytes_max`` of all together. Thread safe.

    Where the bytes are too many the oldest go, whosever they are; the newest one always stays.
    """

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: dict[str, deque[RecentFailure]] = {}
        self._bytes = 0
        self._last = 0

    @property
    def last(self) -> int:
        """The newest one's sequence number; 0 before the first."""
        return self._last

    @property
    def nbytes(self) -> int:
        return self._bytes

    def add(self, entry: FailureEntry) -> None:
        """Keep a failed record, and let the oldest go."""
        self.extend((entry,))

    def extend(self, entries: Sequence[FailureEntry]) -> None:
        """Keep failed records in their order. Costs no more than ``count_max`` of them, however many there are."""
        skipped = max(0, len(entries) - self._count_max) if len({each.pipeline for each in entries}) == 1 else 0
        with self._lock:
            self._last += skipped
            for entry in entries[skipped:]:
                self._keep(entry)
            while self._bytes > self._bytes_max and sum(map(len, self._kept.values())) > 1:
                self._drop(min((kept[0].sequence, name) for name, kept in self._kept.items() if kept)[1])

    def latest(self, pipeline: str | None, limit: int) -> list[RecentFailure]:
        """The newest ``limit``, newest first; of all pipelines where None is given."""
        with self._lock:
            if pipeline is not None:
                found = list(self._kept.get(pipeline, ()))
            else:
                found = sorted((each for kept in self._kept.values() for each in kept), key=_sequence)
        return found[::-1][:limit]

    def since(self, sequence: int, limit: int) -> list[RecentFailure]:
        """The newest ``limit`` of those after ``sequence``, oldest first."""
        if self._last <= sequence:
            return []
        return [each for each in self.latest(None, limit) if each.sequence > sequence][::-1]

    def _keep(self, entry: FailureEntry) -> None:
        self._last += 1
        kept = RecentFailure(self._last, _cut(entry), _length(entry.key), _length(entry.value))
        of_pipeline = self._kept.setdefault(entry.pipeline, deque())
        of_pipeline.append(kept)
        self._bytes += _nbytes(kept.entry)
        if len(of_pipeline) > self._count_max:
            self._drop(entry.pipeline)

    def _drop(self, pipeline: str) -> None:
        self._bytes -= _nbytes(self._kept[pipeline].popleft().entry)


def _sequence(failure: RecentFailure) -> int:
    return failure.sequence


def _length(data: bytes | None) -> int | None:
    return None if data is None else len(data)


def _cut(entry: FailureEntry) -> FailureEntry:
    """The entry without what nobody would read."""
    return dataclasses.replace(
        entry,
        key=entry.key[:KEPT_BYTES_MAX] if entry.key is not None else None,
        value=entry.value[:KEPT_BYTES_MAX] if entry.value is not None else None,
        headers=tuple(_cut_headers(entry.headers)),
        reason=entry.reason[:KEPT_HEADER_BYTES_MAX],
        error_type=entry.error_type[:KEPT_HEADER_BYTES_MAX],
    )


def _cut_headers(headers: Sequence[tuple[str, bytes | None]]) -> Iterable[tuple[str, bytes | None]]:
    for name, value in headers[:KEPT_HEADERS_MAX]:
        yield name[:KEPT_HEADER_BYTES_MAX], value[:KEPT_HEADER_BYTES_MAX] if value is not None else None


def _nbytes(entry: FailureEntry) -> int:
    headers = sum(len(name) + len(value or b"") + 100 for name, value in entry.headers)
    return (
        ENTRY_BYTES + headers + len(entry.key or b"") + len(entry.value or b"")
        + 2 * (len(entry.reason) + len(entry.error_type))
    )  # fmt: skip
