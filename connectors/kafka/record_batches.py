"""The record batches of one partition in a fetch response, as Batches.

Walks the batches of a response, checks each one's checksum and header, decompresses it and has the kernel take its
records apart. Control batches and aborted transactions leave no rows but move the position; a batch that is cut off
at the end of the response is left for the next fetch. Formats before 2 are read by aiokafka's reader.

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
import pyarrow as pa
from aiokafka.record.legacy_records import LegacyRecordBatch

from connectors.kafka import codecs, kernel
from connectors.kafka.codecs import DECOMPRESSED_BYTES_MAX, BadCompression
from connectors.kafka.columns import BadRecord, Columns
from engine.batch import Batch, empty_records, from_rows
from engine.errors import CorruptRecords

#: Format 2 from its checksum on: checksum, attributes, last offset delta, base and last timestamp, producer id,
#: epoch and sequence, and the count of records.
HEADER = struct.Struct(">Ihiqqqhii")
HEADER_AT = kernel.MAGIC_AT + 1
CRC_COVERS_FROM = HEADER_AT + 4
RECORDS_AT = HEADER_AT + HEADER.size

#: Where the attributes of formats 0 and 1 are, and where their key begins, with its length before it.
LEGACY_ATTRIBUTES_AT = kernel.MAGIC_AT + 1
LEGACY_KEY_AT = (18, 26)
LEGACY_LENGTH = struct.Struct(">i")

CODEC_BITS = 0x07
APPEND_TIME_BIT = 0x08
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20

#: How a control record's key starts, version and type, and which type ends a transaction as aborted.
CONTROL = struct.Struct(">hh")
ABORT = 0

#: The timestamp of records in the format that has none.
NO_TIMESTAMP = -1

Row = tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


def warm() -> None:
    """Have the kernel ready: takes seconds in the first process that ever does, else a tenth of one."""
    nothing = np.frombuffer(b"", np.uint8)
    kernel.walk(nothing, 0, np.empty((1, kernel.FRAME_COLUMNS), np.int64))
    Columns().append(
        nothing,
        count=0,
        base_offset=0,
        offset_delta_max=0,
        base_timestamp=0,
        append_timestamp=None,
        offset_min=0,
    )


class Malformed(ValueError):
    """Why a batch cannot be read."""


class _Frame(NamedTuple):
    """A batch in the response. The columns are those of `kernel.walk`."""

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
    records: int

    @property
    def codec(self) -> int:
        return self.attributes & CODEC_BITS

    @property
    def is_append_time(self) -> bool:
        return bool(self.attributes & APPEND_TIME_BIT)


class _Chunk:
    """What becomes one Batch: records of one kind of format and of one clock."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.kind: tuple[bool, bool] | None = None
        self.columns: Columns | None = None
        self.rows: list[Row] = []
        self.nbytes = 0

    def takes(self, is_legacy: bool, is_append_time: bool) -> bool:
        """Whether records of that kind can be added; the first ones decide."""
        if self.kind is None:
            self.kind = (is_legacy, is_append_time)
        return self.kind == (is_legacy, is_append_time)

    @property
    def is_append_time(self) -> bool:
        return self.kind is not None and self.kind[1]

    def records(self) -> pa.RecordBatch:
        if self.rows:
            return from_rows("", 0, self.rows, start=self.rows[0][0], end=self.rows[-1][0] + 1).records
        return self.columns.record_batch() if self.columns is not None else empty_records()


class RecordBatches:
    """What one fetch response has of one partition, from ``position`` on.

    ``aborted`` are producer ids, each with the first offset of a transaction that was aborted; without
    ``read_committed`` transactions are not looked at. Not for two threads at once.
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
        self._position = position
        self._read_committed = read_committed
        self._decompressed_bytes_max = decompressed_bytes_max
        self._aborted = sorted(aborted or (), key=lambda each: each[1], reverse=True)
        self._aborted_producers: set[int] = set()
        found = np.empty(
            (len(data) // (kernel.OVERHEAD_BYTES + kernel.LEGACY_BYTES_MIN) + 1, kernel.FRAME_COLUMNS), np.int64
        )
        count, self._fault = kernel.walk(np.frombuffer(data, np.uint8), position, found)
        self._frames: npt.NDArray[np.int64] = found[:count].copy()
        self._at = 0

    @property
    def position(self) -> int:
        """The offset that the next Batch starts at."""
        return self._position

    @property
    def end(self) -> int:
        """The offset that the next fetch has to ask for."""
        if not len(self._frames):
            return self._position
        return max(self._position, int(self._frames[-1, kernel.FRAME_NEXT]))

    @property
    def has_more(self) -> bool:
        """Whether `read` has something to give, be it an error."""
        return self._at < len(self._frames) or self._fault != kernel.OK

    @property
    def has_fault(self) -> bool:
        """Whether an error is known to come, so that there is no use in fetching what follows."""
        return bool(self._fault != kernel.OK)

    @property
    def bytes_left(self) -> int:
        """Bytes of the response that are still to be read."""
        if self._at == len(self._frames):
            return 0
        return int(self._frames[-1, kernel.FRAME_END] - self._frames[self._at, kernel.FRAME_START])

    def read(self, bytes_max: int) -> Batch:
        """The next record batches as one Batch, which ends with the first that makes it ``bytes_max`` or more.

        It also ends where another clock begins to stamp the records. Without rows it still moves the position.
        Raises CorruptRecords when the next record batch cannot be read, now and every time.
        """
        assert self.has_more
        chunk = _Chunk(bytes_max)
        start, first = self._position, self._at
        while self._at < len(self._frames) and chunk.nbytes < chunk.bytes_max:
            frame = _Frame(*self._frames[self._at].tolist())
            try:
                if not self._add(frame, chunk):
                    break
            except (Malformed, BadRecord, BadCompression) as error:
                if self._at == first:
                    raise self._corrupt(frame.base_offset, str(error)) from None
                break
            self._at += 1
            self._position = max(self._position, frame.next_offset)
        else:
            if self._at == first:
                raise self._corrupt(self.end, kernel.FAULTS[self._fault])
        return Batch(self.topic, self.partition, start, self._position, chunk.records(), chunk.is_append_time)

    def _corrupt(self, offset: int, reason: str) -> CorruptRecords:
        return CorruptRecords(self.topic, self.partition, offset, reason)

    def _add(self, frame: _Frame, chunk: _Chunk) -> bool:
        """Whether the batch could become part of the chunk, with whatever records it gives."""
        if frame.magic < 2:
            return self._add_legacy(frame, chunk)
        header = _Header(*HEADER.unpack_from(self._data, frame.start + HEADER_AT))
        if google_crc32c.value(self._data[frame.start + CRC_COVERS_FROM : frame.end]) != header.crc:
            raise Malformed("its checksum is not that of its bytes")
        if header.records < 0:
            raise Malformed(f"it claims {header.records} records")
        if header.codec > codecs.ZSTD:
            raise Malformed(f"there is no codec {header.codec}")
        if self._is_passed_over(frame, header):
            return True
        if not chunk.takes(False, header.is_append_time):
            return False
        source = self._records(frame, header)
        if chunk.columns is None:
            chunk.columns = self._columns(frame, header, source.size, chunk.bytes_max)
        if not chunk.columns.has_room(source.size):
            return False
        chunk.columns.append(
            source,
            count=header.records,
            base_offset=frame.base_offset,
            offset_delta_max=header.last_offset_delta,
            base_timestamp=header.base_timestamp,
            append_timestamp=header.last_timestamp if header.is_append_time else None,
            offset_min=self._position,
        )
        chunk.nbytes = chunk.columns.nbytes
        return True

    def _columns(self, frame: _Frame, header: _Header, size: int, bytes_max: int) -> Columns:
        """Room for what is to come if all of the response is like its first batch, within what a chunk may be."""
        like = self.bytes_left / (frame.end - frame.start)
        value_bytes = min(int(size * like), size + bytes_max)
        rows = min(int(header.records * like), value_bytes // kernel.RECORD_BYTES_MIN)
        return Columns(rows, value_bytes)

    def _records(self, frame: _Frame, header: _Header) -> npt.NDArray[np.uint8]:
        """The bytes of a batch's records, decompressed."""
        start = frame.start + RECORDS_AT
        if header.codec == codecs.NONE:
            return np.frombuffer(self._data, np.uint8, frame.end - start, start)
        return codecs.decompress(
            header.codec, memoryview(self._data)[start : frame.end], self._decompressed_bytes_max
        )

    def _is_passed_over(self, frame: _Frame, header: _Header) -> bool:
        """Whether the batch is a control batch or part of an aborted transaction; keeps track of those."""
        is_control = bool(header.attributes & CONTROL_BIT)
        if self._read_committed and header.producer_id >= 0:
            while self._aborted and self._aborted[-1][1] < frame.next_offset:
                self._aborted_producers.add(self._aborted.pop()[0])
            if is_control and self._is_abort(frame, header):
                self._aborted_producers.discard(header.producer_id)
            elif header.attributes & TRANSACTIONAL_BIT and header.producer_id in self._aborted_producers:
                return True
        return is_control

    def _is_abort(self, frame: _Frame, header: _Header) -> bool:
        records = Columns()
        records.append(
            self._records(frame, header),
            count=header.records,
            base_offset=frame.base_offset,
            offset_delta_max=header.last_offset_delta,
            base_timestamp=header.base_timestamp,
            append_timestamp=header.last_timestamp,
            offset_min=0,
        )
        if not len(records):
            return False  # compacted away
        key = records.record_batch().column("key")[0].as_py()
        if key is None or len(key) < CONTROL.size:
            raise Malformed("a control record has no type")
        return bool(CONTROL.unpack_from(key)[1] == ABORT)

    def _add_legacy(self, frame: _Frame, chunk: _Chunk) -> bool:
        data = self._data[frame.start : frame.end]
        attributes = data[LEGACY_ATTRIBUTES_AT]
        if not chunk.takes(True, frame.magic == 1 and bool(attributes & APPEND_TIME_BIT)):
            return False
        rows: list[Row] = []
        before = -1
        for offset, timestamp, key, value in self._legacy_records(frame, data, attributes & CODEC_BITS):
            if not before < offset <= frame.base_offset:
                raise Malformed(kernel.FAULTS[kernel.BAD_OFFSET])
            before = offset
            if offset >= self._position:
                rows.append((offset, timestamp, key, value, ()))
        chunk.rows += rows
        chunk.nbytes += sum(len(row[2] or b"") + len(row[3] or b"") for row in rows)
        return True

    def _legacy_records(
        self, frame: _Frame, data: bytes, codec: int
    ) -> list[tuple[int, int, bytes | None, bytes | None]]:
        if codec != codecs.NONE:
            self._check_legacy_size(frame, data, codec)
        try:
            batch = LegacyRecordBatch(data, frame.magic)
            if not batch.validate_crc():
                raise Malformed("its checksum is not that of its bytes")
            return [
                (
                    record.offset,
                    NO_TIMESTAMP if record.timestamp is None else record.timestamp,
                    record.key,
                    record.value,
                )
                for record in batch
            ]
        except Malformed:
            raise
        except Exception as error:  # of any type: nobody has checked these bytes before
            raise Malformed(f"format {frame.magic}: {type(error).__name__}: {error}") from None

    def _check_legacy_size(self, frame: _Frame, data: bytes, codec: int) -> None:
        """aiokafka's reader decompresses whatever it is given, so it is tried within the bound first."""
        at = LEGACY_KEY_AT[frame.magic]
        for what in ("key", "value"):
            if len(data) - at < LEGACY_LENGTH.size:
                raise Malformed(f"its {what} is cut off")
            (length,) = LEGACY_LENGTH.unpack_from(data, at)
            at += LEGACY_LENGTH.size
            if not -1 <= length <= len(data) - at:
                raise Malformed(f"its {what} claims {length} bytes of {len(data) - at}")
            if what == "key":
                at += max(0, length)
        if length < 0:
            raise Malformed("it is compressed and has no value")
        codecs.decompress(codec, memoryview(data)[at : at + length], self._decompressed_bytes_max)
