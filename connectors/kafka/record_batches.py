"""The record batches of one partition in a fetch response, as Batches.

Walks the frames of a response, checks each one's checksum and header, decompresses it and has the kernel take its
records apart. Control batches and aborted transactions leave no rows but move the position; a batch that is cut off
at the end of the response is left for the next fetch. Batches in the formats before 2 are read by aiokafka's reader.

Nothing here trusts the bytes: whatever is wrong with them ends in one `engine.errors.CorruptRecords`, after the
batches before it have been given. Not here: fetching (`fetcher`).

Follows Kafka's documentation ("Message format") and, for aborted transactions, its Java consumer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
from aiokafka.record.legacy_records import LegacyRecordBatch

from connectors.kafka import codecs
from connectors.kafka.codecs import DECOMPRESSED_BYTES_MAX
from connectors.kafka.columns import BadRecord, Columns
from connectors.kafka.records import LOG_APPEND_TIME
from engine.batch import Batch, empty_records, from_rows
from engine.errors import CorruptRecords

#: What a frame of any format starts with: its offset, and the bytes that follow.
FRAME = struct.Struct(">qi")
MAGIC_AT = 16

#: Format 2 from behind the magic byte: checksum, attributes, last offset delta, base and last timestamp, producer
#: id, epoch and sequence, and the count of records.
HEADER = struct.Struct(">IhiqqqhiI")
HEADER_AT = MAGIC_AT + 1
CRC_COVERS_FROM = 21
RECORDS_AT = HEADER_AT + HEADER.size

#: Format 0 from its checksum on, without key and value.
LEGACY_BYTES_MIN = 14
V0, V1, V2 = range(3)

CODEC_BITS = 0x07
APPEND_TIME_BIT = 0x08
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20

OFFSET_MAX = 2**63 - 1

#: What a control record's key starts with, and which type ends a transaction as aborted.
CONTROL = struct.Struct(">hh")
ABORT = 0

#: The timestamp of records in the format that has none.
NO_TIMESTAMP = -1

#: How much larger than its response a batch is expected to become, until one has been seen.
EXPANSION = 4.0


class Frame(NamedTuple):
    """One batch in the response: where it lies, and the offsets ``[base, next)`` that it accounts for."""

    start: int
    end: int
    magic: int
    base_offset: int
    next_offset: int


class _Header(NamedTuple):
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    last_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int


class Malformed(ValueError):
    """Why a batch cannot be read."""


class RecordBatches:
    """What one fetch response has of one partition, from ``position`` on.

    ``aborted`` are producer ids with the first offset of each transaction that was aborted (None, and without
    meaning, when transactions are not looked at: ``read_committed`` is false). Not for use by two threads at once.
    """

    def __init__(
        self,
        data: bytes,
        *,
        topic: str,
        partition: int,
        position: int,
        aborted: Iterable[tuple[int, int]] | None = None,
        read_committed: bool = True,
        decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self._data = data
        self._view = memoryview(data)
        self._position = position
        self._read_committed = read_committed
        self._decompressed_bytes_max = decompressed_bytes_max
        self._aborted = sorted(aborted or [], key=lambda each: each[1], reverse=True)
        self._aborted_producers: set[int] = set()
        self._frames, self._fault = _walk(data, position)
        self._at = 0
        self._expansion = EXPANSION
        self._end = self._frames[-1].next_offset if self._frames else position

    @property
    def position(self) -> int:
        """The offset that the next batch starts at."""
        return self._position

    @property
    def end(self) -> int:
        """The offset that the next fetch has to ask for."""
        return max(self._end, self._position)

    @property
    def has_more(self) -> bool:
        """Whether `read` has something to give, be it an error."""
        return self._at < len(self._frames) or self._fault is not None

    @property
    def is_broken(self) -> bool:
        """Whether there is a fault to come that is seen from outside of the batches."""
        return self._fault is not None

    @property
    def bytes_left(self) -> int:
        """Bytes of the response that have not been read."""
        return self._frames[-1].end - self._frames[self._at].start if self._at < len(self._frames) else 0

    def read(self, bytes_max: int) -> Batch:
        """The next batches as one: it ends with the first that makes it larger than ``bytes_max``.

        It also ends where records begin to be stamped by another clock. Raises CorruptRecords where something is
        wrong with the first batch; the position stays there.
        """
        assert self.has_more
        start = self._position
        if self._at == len(self._frames):
            raise self._corrupt(start, self._fault)
        try:
            return self._read(bytes_max)
        except (Malformed, BadRecord, codecs.BadCompression) as error:
            if self._position > start:
                raise InternalError(f"{self._where(start)}: lost records before {error}") from error
            raise self._corrupt(self._frames[self._at].base_offset, error) from None
