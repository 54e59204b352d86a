"""Record batches as bytes, well made or not, and what aiokafka's reader makes of them.

Well made ones come from aiokafka's builders; `batch_v2` writes format 2 by hand, field by field, so that any
field can lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import google_crc32c
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from connectors.kafka.record_batches import RecordBatches
from connectors.kafka.records import batch_of
from engine.batch import Batch, join

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

APPEND_TIME, TRANSACTIONAL, CONTROL = 0x08, 0x10, 0x20

#: Where fields of format 2 lie.
CRC_AT, ATTRIBUTES_AT, LAST_DELTA_AT, MAX_TIMESTAMP_AT, PRODUCER_AT, COUNT_AT, RECORDS_AT = (
    17,
    21,
    23,
    35,
    43,
    57,
    61,
)

Headers = Sequence[tuple[str, bytes | None]]
Row = tuple[bytes | None, bytes | None, Headers]

TOPIC = "clicks"
PARTITION = 3
TIME = 1_700_000_000_000


def rows_of(count: int) -> list[Row]:
    """Rows with everything that a record can have: nulls, empties, headers, long values."""
    keys = [None, b"", b"k", b"key" * 9]
    headers: list[Headers] = [(), (), [("h", b"v")], [("", b""), ("trace-ä€😀", None), ("x" * 200, b"\xff" * 300)]]
    return [
        (keys[at % 4], None if at % 5 == 4 else b"%d:" % at + b"v" * (at * 37 % 400), headers[at % 7 % 4])
        for at in range(count)
    ]


def built(rows: Sequence[Row], *, codec: str = "none", base: int = 0, producer: int = -1, **options: int) -> bytes:
    """Format 2 from aiokafka's builder, at offset ``base``."""
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], int(producer >= 0), producer, 0, 0, 1 << 30)
    for at, (key, value, headers) in enumerate(rows):
        assert builder.append(at, TIME + at * 7 - 3 * (at % 4), key, value, list(headers))
    return patched(bytes(builder.build()), base=base, **options)


def patched(
    batch: bytes, *, base: int = 0, attributes: int = 0, last_delta: int | None = None, timestamp: int | None = None
) -> bytes:
    """The batch at another offset, with attributes added, with a valid checksum."""
    made = bytearray(batch)
    struct.pack_into(">q", made, 0, base)
    (before,) = struct.unpack_from(">h", made, ATTRIBUTES_AT)
    struct.pack_into(">h", made, ATTRIBUTES_AT, before | attributes)
    if last_delta is not None:
        struct.pack_into(">i", made, LAST_DELTA_AT, last_delta)
    if timestamp is not None:
        struct.pack_into(">q", made, MAX_TIMESTAMP_AT, timestamp)
    return sealed(made)


def sealed(batch: bytes | bytearray) -> bytes:
    """The batch with the checksum that its bytes have."""
    made = bytearray(batch)
    if len(made) >= ATTRIBUTES_AT:
        struct.pack_into(">I", made, CRC_AT, google_crc32c.value(bytes(made[ATTRIBUTES_AT:])))
    return bytes(made)


def marker(producer: int, *, base: int, abort: bool) -> bytes:
    """The control batch that ends a transaction."""
    key = struct.pack(">hh", 0, 0 if abort else 1)
    return built([(key, b"\x00" * 6, ())], base=base, producer=producer, attributes=CONTROL)


def empty(*, base: int, last_delta: int) -> bytes:
    """A batch whose records are all compacted away."""
    return batch_v2(b"", count=0, base=base, last_delta=last_delta)


def legacy(
    rows: Sequence[tuple[bytes | None, bytes | None]], *, magic: int, codec: str = "none", base: int = 0
) -> bytes:
    """Formats 0 and 1 from aiokafka's builder; the offset of a compressed batch is that of its last record."""
    builder = LegacyRecordBatchBuilder(magic, CODECS[codec], 1 << 30)
    for at, (key, value) in enumerate(rows):
        offset = base + at if magic == 0 or codec == "none" else at
        assert builder.append(offset, TIME + at, key, value)
    made = bytearray(builder.build())
    if codec != "none":
        struct.pack_into(">q", made, 0, base + len(rows) - 1)
    return bytes(made)


def varint(value: int) -> bytes:
    """Zigzag, of whatever size."""
    rest = (value << 1) if value >= 0 else ((-value << 1) - 1)
    made = bytearray()
    while rest > 0x7F:
        made.append(0x80 | (rest & 0x7F))
        rest >>= 7
    made.append(rest)
    return bytes(made)


def fields_of(delta: int, key: bytes | None, value: bytes | None, headers: Headers) -> list[bytes]:
    """A record behind its length, as a list of fields: every number alone, every string alone."""
    fields = [b"\x00", varint(delta * 3), varint(delta)]
    for content in (key, value):
        fields += [varint(-1)] if content is None else [varint(len(content)), content]
    fields.append(varint(len(headers)))
    for name, content in headers:
        fields += [varint(len(name.encode())), name.encode()]
        fields += [varint(-1)] if content is None else [varint(len(content)), content]
    return fields


def record(fields: Sequence[bytes]) -> bytes:
    body = b"".join(fields)
    return varint(len(body)) + body


def batch_v2(
    records: bytes,
    *,
    count: int,
    base: int = 0,
    last_delta: int | None = None,
    attributes: int = 0,
    length: int | None = None,
) -> bytes:
    """A batch of format 2 around ``records``, with a valid checksum."""
    last_delta = max(0, count - 1) if last_delta is None else last_delta
    length = RECORDS_AT - 12 + len(records) if length is None else length
    header = struct.pack(
        ">qiibIhiqqqhii", base, length, -1, 2, 0, attributes, last_delta, TIME, TIME + 9, -1, -1, -1, count
    )
    return sealed(header + records)


def theirs(
    data: bytes,
    *,
    position: int = 0,
    aborted: Iterable[tuple[int, int]] | None = None,
    read_committed: bool = True,
) -> Batch:
    """What aiokafka's reader makes of a response. Raises what it raises."""
    records = PartitionRecords(
        TopicPartition(TOPIC, PARTITION),
        MemoryRecords(data),
        list(aborted) if aborted is not None else None,
        position,
        None,
        None,
        True,
        READ_COMMITTED if read_committed else READ_UNCOMMITTED,
    )
    rows = list(records)
    return batch_of(TOPIC, PARTITION, rows, position, records.next_fetch_offset)


def ours_all(
    data: bytes,
    *,
    position: int = 0,
    aborted: Iterable[tuple[int, int]] | None = None,
    read_committed: bool = True,
    bytes_max: int = 1 << 30,
    decompressed_bytes_max: int = 1 << 27,
) -> list[Batch]:
    """What headrace makes of it, to the end, every batch validated by Arrow. Raises CorruptRecords."""
    reader = RecordBatches(
        data,
        topic=TOPIC,
        partition=PARTITION,
        position=position,
        aborted=aborted,
        read_committed=read_committed,
        decompressed_bytes_max=decompressed_bytes_max,
    )
    batches = []
    while reader.has_more:
        batches.append(reader.read(bytes_max))
        batches[-1].records.validate(full=True)
    assert reader.position == reader.end
    return batches


def ours(data: bytes, **options: object) -> Batch:
    """`ours_all` as one batch."""
    return join(ours_all(data, **options))  # type: ignore[arg-type]


def assert_same(found: Batch, expected: Batch) -> None:
    """Column by column, and the range of offsets."""
    assert (found.start, found.end) == (expected.start, expected.end)
    assert found.records.schema == expected.records.schema
    for name in expected.records.schema.names:
        assert found.records.column(name).equals(expected.records.column(name)), name
    if len(expected):
        assert found.log_append_time == expected.log_append_time
