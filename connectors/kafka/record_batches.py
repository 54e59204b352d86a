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
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from connectors.kafka import codecs, kernel, legacy_batches
from connectors.kafka.codecs import DECOMPRESSED_BYTES_MAX, BadCompression
from connectors.kafka.columns import BadRecord, Columns
from connectors.kafka.kernel import codes
from connectors.kafka.kernel.codes import (
    APPEND_TIME_BIT,
    CODEC_BITS,
    CONTROL_BIT,
    RECORDS_AT,
    TRANSACTIONAL_BIT,
    Bytes,
    Integers,
)
from connectors.kafka.legacy_batches import Malformed, Row
from engine.batch import Batch, empty_records, from_rows
from engine.errors import CorruptRecords

#: How a control record's key starts, version and type, and which type ends a transaction as aborted.
CONTROL = struct.Struct(">hh")
ABORT = 0

#: How many batches of a response there is room for at first. Most have no more.
FRAMES = 256

#: What a run of batches, taken at once, may be when decompressed, about, and how many payloads and LZ4 blocks. More
#: would leave the processor's cache between being decompressed and being decoded.
RUN_BYTES = 256 * 1024
RUN_BLOCKS = 256

#: The clock of a chunk that has no records yet.
ANY_CLOCK = -1


def warm() -> None:
    """Have the kernel ready: takes seconds in the first process that ever does, else a tenth of one."""
    nothing = np.frombuffer(b"", np.uint8)
    frames, places, blocks = (
        np.zeros((1, columns), np.int64)
        for columns in (codes.FRAME_COLUMNS, codes.PLACE_COLUMNS, codes.BLOCK_COLUMNS)
    )
    kernel.walk(nothing, 0, frames)
    kernel.plan(nothing, frames[:0], 0, 0, ANY_CLOCK, 0, 0, places, blocks)
    Columns().append(nothing, nothing, frames, places, offset_min=0)  # a batch without records


#: What is decoded without asking a thread: so many bytes, of codecs that make at most 255 times as many of them.
QUICK_BYTES_MAX = 16 * 1024
QUICK_CODECS = (codecs.NONE, codes.SNAPPY, codes.LZ4)


class _Chunk:
    """What becomes one Batch: records of one kind of format and of one clock."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.kind: tuple[bool, int] | None = None
        self.columns: Columns | None = None
        self.rows: list[Row] = []
        self.nbytes = 0

    def takes(self, is_legacy: bool, clock: int) -> bool:
        """Whether records of that kind can be added; the first ones decide."""
        if self.kind is None:
            self.kind = (is_legacy, clock)
        return self.kind == (is_legacy, clock)

    @property
    def clock(self) -> int:
        return self.kind[1] if self.kind is not None else ANY_CLOCK

    @property
    def is_append_time(self) -> bool:
        return self.clock == APPEND_TIME_BIT

    def records(self) -> pa.RecordBatch:
        if self.rows:
            return from_rows("", 0, self.rows, start=self.rows[0][0], end=self.rows[-1][0] + 1).records
        return self.columns.record_batch() if self.columns is not None else empty_records()


class _Run(NamedTuple):
    """Batches to be taken at once: how many, and what `kernel.plan` found of them."""

    batches: int
    places: Integers
    blocks: Integers


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
        self._source = np.frombuffer(data, np.uint8)
        self._frames, self._fault = self._found()
        self._at = 0
        #: Up to which batch checksums are known to be right.
        self._checked = 0

    def _found(self) -> tuple[Integers, int]:
        """The whole batches of the response, and a code that is about what follows them."""
        rows_max = len(self._data) // (codes.OVERHEAD_BYTES + codes.LEGACY_BYTES_MIN) + 1
        rows = min(rows_max, FRAMES)
        while True:
            frames = np.empty((rows, codes.FRAME_COLUMNS), np.int64)
            count, code = kernel.walk(self._source, self._position, frames)
            if count < rows or rows == rows_max:
                return frames[:count], code
            rows = min(rows_max, 8 * rows)

    @property
    def position(self) -> int:
        """The offset that the next Batch starts at."""
        return self._position

    @property
    def end(self) -> int:
        """The offset that the next fetch has to ask for."""
        if not len(self._frames):
            return self._position
        return max(self._position, int(self._frames[-1, codes.FRAME_NEXT]))

    @property
    def has_more(self) -> bool:
        """Whether `read` has something to give, be it an error."""
        return self._at < len(self._frames) or self._fault != codes.OK

    @property
    def has_fault(self) -> bool:
        """Whether an error is known to come, so that there is no use in fetching what follows."""
        return bool(self._fault != codes.OK)

    @property
    def bytes_left(self) -> int:
        """Bytes of the response that are still to be read."""
        if self._at == len(self._frames):
            return 0
        return int(self._frames[-1, codes.FRAME_END] - self._frames[self._at, codes.FRAME_START])

    @property
    def is_quick(self) -> bool:
        """Whether `read` is done at once: little is left, and in no codec whose ratio is without bound."""
        if self.bytes_left > QUICK_BYTES_MAX:
            return False
        left = self._frames[self._at :]
        codecs_left = left[:, codes.FRAME_ATTRIBUTES] & CODEC_BITS
        return bool(((left[:, codes.FRAME_MAGIC] == 2) & np.isin(codecs_left, QUICK_CODECS)).all())

    def read(self, bytes_max: int) -> Batch:
        """The next record batches as one Batch, which ends with the first that makes it ``bytes_max`` or more.

        It also ends where another clock begins to stamp the records. Without rows it still moves the position.
        Raises CorruptRecords when the next record batch cannot be read, now and every time.
        """
        assert self.has_more
        chunk = _Chunk(bytes_max)
        start, first = self._position, self._at
        while self._at < len(self._frames) and chunk.nbytes < chunk.bytes_max:
            try:
                taken = self._take(chunk)
            except (Malformed, BadRecord, BadCompression) as error:
                if self._at == first:
                    raise self._corrupt(int(self._frames[first, codes.FRAME_BASE]), str(error)) from None
                break
            if not taken:
                break
            self._at += taken
            self._position = max(self._position, int(self._frames[self._at - 1, codes.FRAME_NEXT]))
        else:
            if self._at == first:
                raise self._corrupt(self.end, codes.FAULTS[self._fault])
        return Batch(self.topic, self.partition, start, self._position, chunk.records(), chunk.is_append_time)

    def _corrupt(self, offset: int, reason: str) -> CorruptRecords:
        return CorruptRecords(self.topic, self.partition, offset, reason)

    def _take(self, chunk: _Chunk) -> int:
        """How many of the next batches became part of the chunk, with whatever records they give; 0: it is full."""
        special = CONTROL_BIT
        if self._aborted or self._aborted_producers:
            special |= TRANSACTIONAL_BIT
        run = self._plan(chunk.clock, special, RUN_BYTES)
        if run is None:
            return self._take_special(chunk)
        return self._take_run(chunk, run)

    def _take_special(self, chunk: _Chunk) -> int:
        """As `_take`, for one batch that may be of any kind."""
        frame = self._frames[self._at]
        if frame[codes.FRAME_MAGIC] < 2:
            return self._take_legacy(chunk)
        run = self._plan(ANY_CLOCK, 0, 0)
        assert run is not None, "a batch of format 2 is planned alone"
        if self._is_passed_over(run):
            return 1
        return self._take_run(chunk, run)

    def _plan(self, clock: int, special: int, bytes_max: int) -> _Run | None:
        """The next batches that can be taken at once; None before one that is special. Raises Malformed."""
        places = np.empty((RUN_BLOCKS, codes.PLACE_COLUMNS), np.int64)
        blocks = np.empty((RUN_BLOCKS, codes.BLOCK_COLUMNS), np.int64)
        count, used, code = kernel.plan(
            self._source, self._frames, self._at, self._checked, clock, special, bytes_max, places, blocks
        )
        self._checked = max(self._checked, self._at + count)
        if code == codes.OK:
            return _Run(count, places[:count], blocks[:used])
        if code == codes.SPECIAL:
            return None
        if code == codes.BAD_COUNT:
            raise Malformed(f"it claims {self._frames[self._at, codes.FRAME_RECORDS]} records")
        if code == codes.BAD_CODEC:
            raise Malformed(f"there is no codec {self._frames[self._at, codes.FRAME_ATTRIBUTES] & CODEC_BITS}")
        raise Malformed(codes.FAULTS[code])

    def _take_run(self, chunk: _Chunk, run: _Run) -> int:
        if not chunk.takes(False, int(self._frames[self._at, codes.FRAME_ATTRIBUTES]) & APPEND_TIME_BIT):
            return 0
        inflated, places = self._inflate(run)
        if chunk.columns is None:
            chunk.columns = self._columns(places, chunk.bytes_max)
        taken = chunk.columns.append(
            self._source,
            inflated,
            self._frames[self._at :],
            places,
            offset_min=self._position,
            bytes_max=chunk.bytes_max,
        )
        chunk.nbytes = chunk.columns.nbytes
        return taken

    def _columns(self, places: Integers, bytes_max: int) -> Columns:
        """Room for what is to come if all of the response is like its first batches, within what a chunk may be."""
        last = self._at + len(places) - 1
        taken = self._frames[last, codes.FRAME_END] - self._frames[self._at, codes.FRAME_START]
        start, end = places.sum(axis=0).tolist()
        size = end - start
        value_bytes = min(int(size * (self.bytes_left / taken)), size + bytes_max)
        rows = int(self._frames[self._at :, codes.FRAME_RECORDS].sum())
        return Columns(min(rows, value_bytes // codes.RECORD_BYTES_MIN), value_bytes)

    def _inflate(self, run: _Run) -> tuple[Bytes, Integers]:
        """Where the records of a run are, or of its first batches, and what they were decompressed to."""
        if not len(run.blocks):
            return self._source, run.places
        data = memoryview(self._data)
        inflated, found, stopped = codecs.inflate(data, run.blocks.tolist(), self._decompressed_bytes_max)
        if found:
            made = np.array(found, np.int64)
            if found[-1][0] - self._at == len(found) - 1:  # all of them have a codec
                run.places[: len(found)] = made[:, 1:]
            else:
                run.places[made[:, 0] - self._at] = made[:, 1:]
        count = run.batches if stopped is None else stopped - self._at
        if not count:
            frame = self._frames[self._at]
            start, end = int(frame[codes.FRAME_START]) + RECORDS_AT, int(frame[codes.FRAME_END])
            codec = int(frame[codes.FRAME_ATTRIBUTES]) & CODEC_BITS
            inflated = codecs.decompress(codec, data[start:end], self._decompressed_bytes_max)
            run.places[0] = 0, inflated.size
            count = 1
        return inflated, run.places[:count]

    def _is_passed_over(self, run: _Run) -> bool:
        """Whether the batch is a control batch or part of an aborted transaction; keeps track of those."""
        frame = self._frames[self._at].tolist()
        attributes, producer = frame[codes.FRAME_ATTRIBUTES], frame[codes.FRAME_PRODUCER]
        is_control = bool(attributes & CONTROL_BIT)
        if self._read_committed and producer >= 0:
            while self._aborted and self._aborted[-1][1] < frame[codes.FRAME_NEXT]:
                self._aborted_producers.add(self._aborted.pop()[0])
            if is_control and self._is_abort(run):
                self._aborted_producers.discard(producer)
            elif attributes & TRANSACTIONAL_BIT and producer in self._aborted_producers:
                return True
        return is_control

    def _is_abort(self, run: _Run) -> bool:
        inflated, places = self._inflate(run)
        frames = self._frames[self._at : self._at + 1].copy()
        frames[0, codes.FRAME_ATTRIBUTES] |= APPEND_TIME_BIT  # its timestamps are of no use
        records = Columns()
        records.append(self._source, inflated, frames, places, offset_min=0)
        if not len(records):
            return False  # compacted away
        key = records.record_batch().column("key")[0].as_py()
        if key is None or len(key) < CONTROL.size:
            raise Malformed("a control record has no type")
        return bool(CONTROL.unpack_from(key)[1] == ABORT)

    def _take_legacy(self, chunk: _Chunk) -> int:
        frame: list[int] = self._frames[self._at].tolist()
        magic, attributes = frame[codes.FRAME_MAGIC], frame[codes.FRAME_ATTRIBUTES]
        if not chunk.takes(True, attributes & APPEND_TIME_BIT if magic == 1 else 0):
            return 0
        data = self._data[frame[codes.FRAME_START] : frame[codes.FRAME_END]]
        rows = legacy_batches.read(
            data, magic, attributes & CODEC_BITS, frame[codes.FRAME_BASE], self._decompressed_bytes_max
        )
        rows = [row for row in rows if row[0] >= self._position]
        chunk.rows += rows
        chunk.nbytes += sum(len(row[2] or b"") + len(row[3] or b"") for row in rows)
        return 1
