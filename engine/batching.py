"""Gathering a shard's records into invocation batches: by count, by payload bytes, by window.

Pure bookkeeping over Batches and a time that is passed in; it reads no clock and starts no task.
A batch closes at whichever comes first (AWS Lambda developer guide, "batching behavior"): ``records_max``
records, ``payload_bytes_max`` of invocation payload, or ``window_seconds`` after its first record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch, join

#: Gives the bytes that each record of a batch adds to an invocation's payload.
PayloadBytes = Callable[[Batch], NDArray[np.int64]]


def value_bytes(batch: Batch) -> NDArray[np.int64]:
    """Bytes of key and value of each record: the measure of payload for kinds without an event."""
    total = np.zeros(len(batch), dtype=np.int64)
    for name in ("key", "value"):
        column = batch.records.column(batch.records.schema.get_field_index(name))
        offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + len(batch) + 1]
        total += np.diff(offsets)
    return total


class Batcher:
    """One shard's waiting records.

    ``add`` takes what was fetched, ``take`` gives the next batch that is due, and ``due_at`` says when one
    will be. Order and ranges are kept: batches that come out are contiguous with each other.
    """

    def __init__(
        self,
        *,
        records_max: int,
        window_seconds: float,
        payload_bytes_max: int,
        payload_bytes: PayloadBytes = value_bytes,
    ) -> None:
        assert records_max > 0
        assert payload_bytes_max > 0
        self._records_max = records_max
        self._window_seconds = window_seconds
        self._payload_bytes_max = payload_bytes_max
        self._payload_bytes = payload_bytes
        self._waiting: deque[tuple[Batch, NDArray[np.int64]]] = deque()
        self._records = 0
        self._payload = 0
        self._nbytes = 0
        self._opened_at: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the waiting records hold."""
        return self._nbytes

    @property
    def is_empty(self) -> bool:
        """Neither records nor a range without records is waiting."""
        return not self._waiting

    def add(self, batch: Batch, now: float) -> None:
        """Take a fetched batch, which starts where the last one ended."""
        if self._waiting:
            last = self._waiting[-1][0]
            assert last.end == batch.start, f"{last.end} is not followed by {batch.start}"
        if self._opened_at is None:
            self._opened_at = now
        sizes = self._payload_bytes(batch)
        self._waiting.append((batch, sizes))
        self._records += len(batch)
        self._payload += int(sizes.sum())
        self._nbytes += batch.nbytes

    def due_at(self) -> float | None:
        """When the next batch closes; in the past when one is full; None when nothing is waiting."""
        if self._opened_at is None:
            return None
        if self._records >= self._records_max or self._payload >= self._payload_bytes_max:
            return self._opened_at
        return self._opened_at + self._window_seconds

    def take(self, now: float, *, flush: bool = False) -> Batch | None:
        """The next batch that is due (with ``flush``: whatever waits), or None.

        A range without records that follows a batch's last record belongs to that batch.
        """
        due_at = self.due_at()
        if due_at is None or (due_at > now and not flush):
            return None
        taken: list[Batch] = []
        records = payload = 0
        while self._waiting:
            batch, sizes = self._waiting[0]
            count = self._fitting(sizes, records, payload)
            if count < len(batch):
                if count:
                    taken.append(batch.head(count))
                    self._waiting[0] = (batch.tail(count), sizes[count:])
                    records += count
                    payload += int(sizes[:count].sum())
                break
            taken.append(batch)
            self._waiting.popleft()
            records += count
            payload += int(sizes.sum())
        self._records -= records
        self._payload -= payload
        self._nbytes = sum(batch.nbytes for batch, _ in self._waiting)
        # What is left over opened with the batch just taken out; its own window begins now.
        self._opened_at = now if self._waiting else None
        return join(taken)

    def _fitting(self, sizes: NDArray[np.int64], records: int, payload: int) -> int:
        """How many leading records still fit; the first record of a batch always does."""
        room = min(self._records_max - records, len(sizes))
        if room <= 0:
            return 0
        within = int(np.searchsorted(np.cumsum(sizes[:room]), self._payload_bytes_max - payload, side="right"))
        return max(within, 1) if records == 0 else within
