"""Gathering a shard's records into invocation batches: by count, by payload bytes, by window.

Pure bookkeeping over Batches and a time that is passed in; it reads no clock and starts no task.
A batch closes at whichever comes first (AWS Lambda developer guide, "batching behavior"): ``records_max``
records, ``payload_bytes_max`` of invocation payload, or ``window_seconds`` after its first record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch


@dataclass(frozen=True, slots=True)
class Payload:
    """What records add to an invocation's payload, in bytes.

    ``each`` gives it for every record of a batch. ``bound`` is never less than their sum and costs next to nothing:
    most batches are so far from the limit that nobody has to know more.
    """

    each: Callable[[Batch], NDArray[np.int64]]
    bound: Callable[[Batch], int]


def value_bytes(batch: Batch) -> NDArray[np.int64]:
    """Bytes of key and value of each record: the measure of payload for kinds without an event."""
    return sum((np.diff(batch.bounds(name)) for name in ("key", "value")), np.zeros(len(batch), np.int64))


def _value_bytes_of_all(batch: Batch) -> int:
    return batch.column_bytes("key") + batch.column_bytes("value")


#: The payload of kinds that are called with columns or rows.
KEYS_AND_VALUES = Payload(value_bytes, _value_bytes_of_all)


class _Waiting:
    """A batch that waits, and what is known of its size."""

    def __init__(self, batch: Batch, payload: Payload) -> None:
        self.batch = batch
        self.nbytes = batch.nbytes
        self.bound = payload.bound(batch)
        self._payload = payload
        self._sizes: NDArray[np.int64] | None = None

    @property
    def sizes(self) -> NDArray[np.int64]:
        if self._sizes is None:
            self._sizes = self._payload.each(self.batch)
            assert int(self._sizes.sum()) <= self.bound, "a payload above its bound"
        return self._sizes


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
        payload: Payload = KEYS_AND_VALUES,
    ) -> None:
        assert records_max > 0
        assert payload_bytes_max > 0
        self._records_max = records_max
        self._window_seconds = window_seconds
        self._payload_bytes_max = payload_bytes_max
        self._payload = payload
        self._waiting: deque[_Waiting] = deque()
        self._records = 0
        self._bound = 0
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

    @property
    def first_offset(self) -> int | None:
        """The offset of the first record that waits; None without records."""
        return next((int(each.batch.offsets[0]) for each in self._waiting if len(each.batch)), None)

    def add(self, batch: Batch, now: float) -> None:
        """Take a fetched batch, which starts where the last one ended."""
        if self._waiting:
            last = self._waiting[-1].batch
            assert last.end == batch.start, f"{last.end} is not followed by {batch.start}"
        if self._opened_at is None:
            self._opened_at = now
        self._append(_Waiting(batch, self._payload))

    def due_at(self) -> float | None:
        """When the next batch closes; in the past when one is full; None when nothing is waiting."""
        if self._opened_at is None:
            return None
        if self._records >= self._records_max or self._is_payload_full():
            return self._opened_at
        return self._opened_at + self._window_seconds

    def _is_payload_full(self) -> bool:
        if self._bound < self._payload_bytes_max:
            return False
        return sum(int(each.sizes.sum()) for each in self._waiting) >= self._payload_bytes_max

    def take(self, now: float, *, flush: bool = False) -> list[Batch]:
        """The parts of the next batch that is due (with ``flush``: of whatever waits), to be joined; else none.

        A range without records that follows a batch's last record belongs to that batch.
        """
        due_at = self.due_at()
        if due_at is None or (due_at > now and not flush):
            return []
        taken: list[Batch] = []
        records = bound = 0
        while self._waiting:
            batch = self._waiting[0].batch
            count = min(self._records_max - records, len(batch))
            head = batch.head(count) if count else batch
            bound += self._payload.bound(head) if count else 0
            if bound > self._payload_bytes_max:  # perhaps: now it has to be known
                count = self._fitting(head, taken)
                bound = self._payload_bytes_max
            if count < len(batch):
                if count:
                    taken.append(batch.head(count))
                    self._drop_first()
                    self._append(_Waiting(batch.tail(count), self._payload), at_front=True)
                break
            taken.append(batch)
            self._drop_first()
            records += count
        # What is left over opened with the batch just taken out; its own window begins now.
        self._opened_at = now if self._waiting else None
        return taken

    def _fitting(self, batch: Batch, taken: list[Batch]) -> int:
        """How many leading records still fit beside ``taken``; the first record of all always does."""
        used = sum(int(self._payload.each(each).sum()) for each in taken)
        total = np.cumsum(self._payload.each(batch))
        within = int(np.searchsorted(total, self._payload_bytes_max - used, side="right"))
        return within if any(map(len, taken)) else max(within, min(1, len(batch)))

    def _append(self, waiting: _Waiting, *, at_front: bool = False) -> None:
        if at_front:
            self._waiting.appendleft(waiting)
        else:
            self._waiting.append(waiting)
        self._records += len(waiting.batch)
        self._bound += waiting.bound
        self._nbytes += waiting.nbytes

    def _drop_first(self) -> None:
        gone = self._waiting.popleft()
        self._records -= len(gone.batch)
        self._bound -= gone.bound
        self._nbytes -= gone.nbytes
