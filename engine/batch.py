"""The unit of work: a Batch of records of one shard, as Arrow columns, and the offsets it accounts for.

Not here: where records come from (connectors) and what is done with them (functions).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

#: The columns of every Batch. ``timestamp`` is milliseconds since the epoch, as Kafka has it.
RECORDS = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("headers", HEADERS),
    ]
)

#: Bytes of a record beside key, value and headers: offset, timestamp, and where those three begin.
RECORD_BYTES = 28


@dataclass(frozen=True, slots=True)
class Stream:
    """A topic as one cluster knows it. Deleting and creating a topic gives it another ``topic_id``."""

    cluster_id: str
    topic: str
    topic_id: str
    partitions: int


NO_OFFSETS: NDArray[np.int64] = np.zeros(0, np.int64)
NO_OFFSETS.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, with the half-open range of offsets that they account for.

    ``records`` has the columns of `RECORDS`, offsets rising. Offsets of ``[start, end)`` without a row are
    *absent*: compacted away, control records, or of an aborted transaction; but for those in ``filtered``, the
    rising offsets of records that matched no filter.
    ``log_append_time`` tells which clock ``timestamp`` is from (Kafka's ``message.timestamp.type``).
    """

    topic: str
    partition: int
    start: int
    end: int
    records: pa.RecordBatch
    log_append_time: bool = False
    filtered: NDArray[np.int64] = field(default_factory=lambda: NO_OFFSETS, compare=False)

    def __post_init__(self) -> None:
        assert self.start <= self.end, f"range [{self.start}, {self.end}) runs backwards"
        if len(self.filtered):
            assert self.start <= self.filtered[0], f"filtered offset {self.filtered[0]} lies before {self.start}"
            assert self.filtered[-1] < self.end, f"filtered offset {self.filtered[-1]} lies beyond {self.end}"
        count = self.records.num_rows
        if count:
            offsets = self.records.column(0)
            first, last = offsets[0].as_py(), offsets[count - 1].as_py()
            assert self.start <= first, f"first offset {first} lies before start {self.start}"
            assert last < self.end, f"last offset {last} lies beyond end {self.end}"

    def __len__(self) -> int:
        return int(self.records.num_rows)

    @property
    def absent(self) -> int:
        """Offsets of the range that hold no record."""
        return self.end - self.start - len(self) - len(self.filtered)

    @property
    def nbytes(self) -> int:
        """Bytes of the records' buffers that this batch refers to, to within what headers and nulls take beside."""
        # Arrow's own count gives up the interpreter lock, which a busy thread hands back milliseconds later.
        fixed = RECORD_BYTES * len(self) + self.column_bytes("key") + self.column_bytes("value")
        fixed += self.filtered.nbytes
        return fixed + int(self.records.column("headers").nbytes) if self.column_bytes("headers") else fixed

    def column_bytes(self, name: str) -> int:
        """Bytes of all keys or values, or the number of all headers."""
        bounds = self.bounds(name)
        return int(bounds[-1]) - int(bounds[0])

    def bounds(self, name: str) -> NDArray[np.int32]:
        """Where each key, value or list of headers begins, and where the last one ends."""
        if not len(self):
            return np.zeros(1, np.int32)  # Arrow may have no buffer then
        column = self.records.column(name)
        return np.frombuffer(column.buffers()[1], np.int32, len(self) + 1, 4 * column.offset)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The records' offsets, rising."""
        return np.asarray(self.records.column(0).to_numpy())

    def head(self, count: int) -> Batch:
        """The first ``count`` records; its range ends where the next record starts."""
        if count >= len(self):
            return self
        end = self.records.column(0)[count].as_py()
        return self._part(self.start, end, self.records.slice(0, count))

    def tail(self, count: int) -> Batch:
        """What `head` of the same ``count`` leaves; of none, all of it."""
        if count <= 0:
            return self
        start = self.records.column(0)[count].as_py() if count < len(self) else self.end
        return self._part(start, self.end, self.records.slice(count))

    def split(self, offset: int) -> tuple[Batch, Batch]:
        """What lies before ``offset`` and what lies from there on; the ranges meet exactly there."""
        assert self.start <= offset <= self.end, f"{offset} is not in [{self.start}, {self.end}]"
        count = int(np.searchsorted(self.offsets, offset))
        return (
            self._part(self.start, offset, self.records.slice(0, count)),
            self._part(offset, self.end, self.records.slice(count)),
        )

    def only(self, kept: NDArray[np.bool_], *, filters: bool = False) -> Batch:
        """The batch with the records where ``kept`` is true; with ``filters`` the others are its filtered ones."""
        if kept.all():
            return self
        gone = np.union1d(self.filtered, self.offsets[~kept]) if filters else self.filtered
        records = self.records.filter(pa.array(kept))
        return Batch(self.topic, self.partition, self.start, self.end, records, self.log_append_time, gone)

    def _part(self, start: int, end: int, records: pa.RecordBatch) -> Batch:
        filtered = self.filtered
        if len(filtered):
            first, last = np.searchsorted(filtered, (start, end))
            filtered = filtered[first:last]
        return Batch(self.topic, self.partition, start, end, records, self.log_append_time, filtered)


def empty_records() -> pa.RecordBatch:
    """A record batch of `RECORDS` without rows."""
    return pa.RecordBatch.from_pylist([], schema=RECORDS)


def join(batches: Sequence[Batch]) -> Batch:
    """One batch from contiguous batches of the same partition."""
    first, last = batches[0], batches[-1]
    if len(batches) == 1:
        return first
    for before, after in itertools.pairwise(batches):
        assert before.end == after.start, f"{before.end} is not followed by {after.start}"
        assert (before.topic, before.partition) == (after.topic, after.partition)
    records = pa.concat_batches([batch.records for batch in batches if len(batch)] or [empty_records()])
    filtered = [batch.filtered for batch in batches if len(batch.filtered)]
    return Batch(
        first.topic,
        first.partition,
        first.start,
        last.end,
        records,
        any(batch.log_append_time for batch in batches),
        np.concatenate(filtered) if filtered else NO_OFFSETS,
    )


def from_rows(
    topic: str,
    partition: int,
    rows: Iterable[tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]],
    *,
    start: int,
    end: int,
    log_append_time: bool = False,
) -> Batch:
    """A batch from ``(offset, timestamp, key, value, headers)`` tuples; for clients that give objects."""
    columns = list(zip(*rows, strict=True)) or [()] * 5
    headers = [[{"key": key, "value": value} for key, value in pairs] for pairs in columns[4]]
    records = pa.RecordBatch.from_arrays(
        [
            pa.array(columns[0], pa.int64()),
            pa.array(columns[1], pa.int64()),
            pa.array(columns[2], pa.binary()),
            pa.array(columns[3], pa.binary()),
            pa.array(headers, HEADERS),
        ],
        schema=RECORDS,
    )
    return Batch(topic, partition, start, end, records, log_append_time)
