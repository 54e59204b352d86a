"""Messages as record batches: spread over partitions, encoded, compressed, stamped with producer and sequence.

Blocks, so it runs in a thread. Format 2 as Kafka's documentation has it ("Message format"). Not here: sending them
(`transactions`).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cramjam
import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from aiokafka import codec as client_codecs

from connectors.kafka.sink import kernel
from connectors.kafka.sink.messages import MessageFormat, Messages

#: What a batch's records are at most before they are compressed, unless one alone is larger.
BATCH_BYTES_MAX = 512 * 1024

#: The header of a batch, and what a record has beside key and value at most.
HEADER = struct.Struct(">qiiBIhiqqqhii")
RECORD_OVERHEAD_BYTES_MAX = 24

MAGIC = 2
CRC_COVERS_FROM = 21
TRANSACTIONAL_BIT = 0x10
SEQUENCES = 2**31

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
GZIP_LEVEL, LZ4_LEVEL, ZSTD_LEVEL = 4, 1, 1


def _lz4(data: Any) -> Any:
    # Brokers take no frame whose blocks depend on those before them (KIP-57).
    compressor = cramjam.lz4.Compressor(level=LZ4_LEVEL, content_checksum=False, block_linked=False)
    compressor.compress(bytes(data))
    return compressor.finish()


#: What each name of ``compression`` does, and its number in a batch's attributes.
COMPRESSIONS: dict[str, tuple[int, Callable[[Any], Any] | None]] = {
    "none": (NONE, None),
    "gzip": (GZIP, lambda data: cramjam.gzip.compress(data, GZIP_LEVEL)),
    "snappy": (SNAPPY, client_codecs.snappy_encode),
    "lz4": (LZ4, _lz4),
    "zstd": (ZSTD, lambda data: cramjam.zstd.compress(data, ZSTD_LEVEL)),
}


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Bytes for one partition of a topic, and how many records they are."""

    topic: str
    partition: int
    data: bytes
    records: int


@dataclass(slots=True)
class Stamp:
    """Who writes, and which sequence number each partition has next; `build` moves those."""

    producer_id: int = -1
    epoch: int = -1
    sequences: dict[tuple[str, int], int] | None = None

    def next_sequence(self, topic: str, partition: int, records: int) -> int:
        if self.sequences is None:
            return -1
        found = self.sequences.get((topic, partition), 0)
        self.sequences[topic, partition] = (found + records) % SEQUENCES
        return found


def warm() -> None:
    """Have the kernel ready: takes seconds in the first process that ever does, else a tenth of one."""
    times = pa.array([0, None], pa.timestamp("ms"))
    rows = pa.table({"text": ["a", None], "integer": [1, 2], "time": times})
    messages = MessageFormat(key="text").messages(rows)
    build(messages, "", spread(messages, 1, 0), stamp=Stamp(), timestamp_ms=0, compression="none", bytes_max=1024)


def spread(messages: Messages, partitions: int, unkeyed_from: int) -> npt.NDArray[np.int32]:
    """The partition of each message: by its key, else in runs of a batch's size, beginning at ``unkeyed_from``."""
    sizes = messages.keys.lengths + messages.values.lengths + RECORD_OVERHEAD_BYTES_MAX
    runs = (np.cumsum(sizes) - sizes) // BATCH_BYTES_MAX
    found: npt.NDArray[np.int32] = ((runs + unkeyed_from) % partitions).astype(np.int32)
    keys = messages.keys
    kernel.partitions_of(keys.offsets, keys.data, keys.valid, partitions, found)
    return found


def build(
    messages: Messages,
    topic: str,
    partition_of: npt.NDArray[np.int32],
    *,
    stamp: Stamp,
    timestamp_ms: int,
    compression: str,
    bytes_max: int,
) -> list[RecordBatch]:
    """Batches of up to ``bytes_max``, for each partition in the order of its messages.

    A message that is too large for that gets a batch of its own, of whatever size it is.
    """
    order = np.argsort(partition_of, kind="stable")
    sorted_ = partition_of[order]
    starts = [0, *(np.flatnonzero(np.diff(sorted_)) + 1).tolist(), len(order)]
    sizes = messages.keys.lengths + messages.values.lengths
    bound = max(1, min(BATCH_BYTES_MAX, bytes_max - HEADER.size))
    largest = int(sizes.max(initial=0)) + RECORD_OVERHEAD_BYTES_MAX
    out = np.empty(max(bound, largest), np.uint8)
    keys, values = messages.keys, messages.values
    batches = []
    for first, end in itertools.pairwise(starts):
        while first < end:
            partition = int(sorted_[first])
            room = out[: max(bound, int(sizes[order[first]]) + RECORD_OVERHEAD_BYTES_MAX)]
            following, used = kernel.encode(
                *(keys.offsets, keys.data, keys.valid, values.offsets, values.data, values.valid),
                *(order, first, end, room),
            )
            assert following > first, "a record does not fit where it was measured to fit"
            records = following - first
            sequence = stamp.next_sequence(topic, partition, records)
            data = framed(out[:used], records, stamp, sequence, timestamp_ms, compression)
            batches.append(RecordBatch(topic, partition, data, records))
            first = following
    return batches


def framed(
    records: kernel.Bytes, count: int, stamp: Stamp, sequence: int, timestamp_ms: int, compression: str
) -> bytes:
    """A record batch of ``count`` encoded records; not compressed where that would make it larger."""
    codec, compress = COMPRESSIONS[compression]
    payload: Any = memoryview(records)  # type: ignore[arg-type]
    if compress is not None:
        made = memoryview(compress(payload))
        codec, payload = (codec, made) if len(made) < len(payload) else (NONE, payload)
    attributes = codec | (TRANSACTIONAL_BIT if stamp.sequences is not None else 0)
    batch = bytearray(HEADER.size + len(payload))
    HEADER.pack_into(
        *(batch, 0, 0, len(batch) - 12, -1, MAGIC, 0, attributes, count - 1, timestamp_ms, timestamp_ms),
        *(stamp.producer_id, stamp.epoch, sequence, count),
    )
    batch[HEADER.size :] = payload
    crc = google_crc32c.value(bytes(memoryview(batch)[CRC_COVERS_FROM:]))
    struct.pack_into(">I", batch, CRC_COVERS_FROM - 4, crc)
    return bytes(batch)


def too_large(messages: Messages, *, compression: str, bytes_max: int) -> dict[int, int]:
    """Messages that no batch of ``bytes_max`` takes, even alone and compressed: index and bytes."""
    sizes = messages.keys.lengths + messages.values.lengths + RECORD_OVERHEAD_BYTES_MAX + HEADER.size
    found = {}
    for index in np.flatnonzero(sizes > bytes_max).tolist():
        out = np.empty(int(sizes[index]), np.uint8)
        keys, values = messages.keys, messages.values
        order = np.array([index], np.int64)
        _, used = kernel.encode(
            *(keys.offsets, keys.data, keys.valid, values.offsets, values.data, values.valid), *(order, 0, 1, out)
        )
        size = len(framed(out[:used], 1, Stamp(), -1, 0, compression))
        if size > bytes_max:
            found[index] = size
    return found


def all_to(partition: int, count: int) -> npt.NDArray[np.int32]:
    return np.full(count, partition, np.int32)
