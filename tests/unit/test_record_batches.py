"""Record batches decoded by the kernel are what aiokafka's reader makes of the same bytes."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import cramjam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka import codecs, columns
from connectors.kafka.columns import Columns
from connectors.kafka.kernel import primitives
from connectors.kafka.record_batches import RecordBatches
from engine.batch import RECORDS, Batch
from engine.errors import CorruptRecords, Domain
from tests.unit.record_bytes import (
    APPEND_TIME,
    CODECS,
    PARTITION,
    RECORDS_AT,
    TIME,
    TOPIC,
    TRANSACTIONAL,
    Row,
    assert_same,
    batch_v2,
    built,
    empty,
    fields_of,
    legacy,
    marker,
    ours,
    ours_all,
    patched,
    record,
    rows_of,
    sealed,
    theirs,
    varint,
)

OPTIONAL = st.none() | st.binary(max_size=40)
ROWS = st.lists(
    st.tuples(OPTIONAL, OPTIONAL, st.lists(st.tuples(st.text(max_size=8), OPTIONAL), max_size=3)),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec: str) -> None:
    """Two batches of each codec, with nulls, empties and headers, from their start and from any offset inside."""
    first, second = built(rows_of(60), codec=codec), built(rows_of(45), codec=codec, base=60)
    for data, positions in [(first + second, (0, 1, 59)), (second, (60, 61, 104))]:
        for position in positions:
            assert_same(ours(data, position=position), theirs(data, position=position))
    assert ours(first).records.schema == RECORDS


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, codec=st.sampled_from(sorted(CODECS)), base=st.integers(0, 2**62), start=st.integers(0, 29))
def test_whatever_a_builder_makes(rows: list[Row], codec: str, base: int, start: int) -> None:
    """Any rows at any offset, from any of them on."""
    data = built(rows, codec=codec, base=base)
    position = base + min(start, len(rows) - 1)
    assert_same(ours(data, position=position), theirs(data, position=position))


def test_snappy_without_frames() -> None:
    """Snappy as clients outside of Java write it, in one block."""
    records = b"".join(record(fields_of(at, b"k", b"value" * 50, ())) for at in range(20))
    data = batch_v2(bytes(cramjam.snappy.compress_raw(records)), count=20, attributes=CODECS["snappy"])
    assert_same(ours(data), theirs(data))
    assert len(ours(data)) == 20


def test_snappy_in_several_blocks() -> None:
    """A batch larger than a block of the Java library."""
    data = built([(None, bytes([at]) * 20_000, ()) for at in range(10)], codec="snappy")
    assert_same(ours(data), theirs(data))


def test_log_append_time() -> None:
    """Where the broker's clock stamps, every record has the batch's last timestamp, and the batch says so."""
    data = built(rows_of(5), attributes=APPEND_TIME, timestamp=TIME + 777)
    found = ours(data)
    assert_same(found, theirs(data))
    assert found.log_append_time
    assert set(found.records.column("timestamp").to_pylist()) == {TIME + 777}


def test_a_change_of_clocks_ends_a_batch() -> None:
    """A Batch has one clock: where the topic's setting changed, another one begins."""
    data = built(rows_of(3)) + built(rows_of(3), base=3, attributes=APPEND_TIME) + built(rows_of(3), base=6)
    found = ours_all(data)
    assert [(batch.start, batch.end, batch.log_append_time) for batch in found] == [
        (0, 3, False),
        (3, 6, True),
        (6, 9, False),
    ]


def test_compaction_gaps() -> None:
    """Offsets that are missing within, at the ends of and between batches are accounted for."""
    records = b"".join(record(fields_of(delta, b"k", b"v", ())) for delta in (2, 3, 7))
    data = (
        batch_v2(records, count=3, base=100, last_delta=9)
        + empty(base=115, last_delta=4)
        + built(rows_of(2), base=130)
    )
    for position in (90, 100, 102, 103, 108, 109):
        assert_same(ours(data, position=position), theirs(data, position=position))
    found = ours(data, position=90)
    assert (found.start, found.end, len(found)) == (90, 132, 5)


def test_only_empty_batches_move_the_position() -> None:
    """A response without a record still says where to go on."""
    (found,) = ours_all(empty(base=7, last_delta=3), position=7)
    assert (found.start, found.end, len(found)) == (7, 11, 0)
    assert found.records.schema == RECORDS


def test_transactions() -> None:
    """Of interleaved transactions the aborted ones are absent; readers of everything see them; markers never."""
    batches = [
        built(rows_of(2), base=0, producer=1),
        built(rows_of(2), base=2, producer=2),
        built(rows_of(1), base=4),
        marker(1, base=5, abort=True),
        built(rows_of(3), base=6, producer=1),
        marker(2, base=9, abort=False),
        marker(1, base=10, abort=False),
        built(rows_of(1), base=11, producer=2),
        marker(2, base=12, abort=True),
    ]
    starts = [0, 2, 4, 5, 6, 9, 10, 11, 12]
    aborted = [(2, 11), (1, 0)]
    for position in range(13):
        # A broker begins with the batch that holds the position, and names what was aborted from there on.
        first = max(at for at, start in enumerate(starts) if start <= position)
        data = b"".join(batches[first:])
        still = [each for each in aborted if each[0] == 2 or first <= 3]
        assert_same(ours(data, position=position, aborted=still), theirs(data, position=position, aborted=still))
    data = b"".join(batches)
    assert ours(data, aborted=aborted).records.column("offset").to_pylist() == [2, 3, 4, 6, 7, 8]
    assert_same(ours(data, read_committed=False), theirs(data, read_committed=False))
    assert len(ours(data, read_committed=False)) == 9


def test_an_aborted_transaction_that_goes_on_in_the_next_response() -> None:
    """A transaction is aborted from its first offset on, also where that lies before what was fetched."""
    data = (
        built(rows_of(2), base=10, producer=5)
        + marker(5, base=12, abort=True)
        + built(rows_of(1), base=13, producer=5)
    )
    assert_same(ours(data, position=10, aborted=[(5, 4)]), theirs(data, position=10, aborted=[(5, 4)]))
    assert ours(data, position=10, aborted=[(5, 4)]).records.column("offset").to_pylist() == [13]


def test_a_marker_whose_record_is_compacted_away() -> None:
    """An empty control batch is no reason to stop."""
    data = patched(empty(base=0, last_delta=0), attributes=0x20 | TRANSACTIONAL) + built(rows_of(1), base=1)
    made = bytearray(data)
    struct.pack_into(">q", made, 43, 9)
    data = sealed(made[:RECORDS_AT]) + bytes(made[RECORDS_AT:])
    found = ours(data, aborted=[(9, 0)])
    assert (found.end, found.records.column("offset").to_pylist()) == (2, [1])


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy"])
@pytest.mark.parametrize("magic", [0, 1])
def test_legacy_formats(magic: int, codec: str) -> None:
    """Formats 0 and 1, alone and before format 2; format 0 has no timestamps, which are -1."""
    rows = [(None, b"a"), (b"", b""), (b"k", None), (b"key", b"v" * 500)]
    first, second = (legacy(rows, magic=magic, codec=codec, base=base) for base in (20, 30))
    for data, position in [(first + second, 20), (second, 30), (second, 30 if codec == "none" else 33)]:
        found, expected = ours(data, position=position), theirs(data, position=position)
        assert (found.start, found.end) == (expected.start, expected.end)
        for name in ("offset", "key", "value", "headers"):
            assert found.records.column(name).equals(expected.records.column(name)), name
        stamps = [-1 if stamp is None else stamp for stamp in expected.records.column("timestamp").to_pylist()]
        assert found.records.column("timestamp").to_pylist() == stamps
    mixed = ours_all(first + second + built(rows_of(2), base=40), position=20)
    assert [(batch.start, batch.end, len(batch)) for batch in mixed] == [(20, 34, 8), (34, 42, 2)]


def test_legacy_lz4() -> None:
    """Format 1 knew LZ4."""
    data = legacy([(b"k", b"v" * 100)] * 9, magic=1, codec="lz4", base=5)
    assert_same(ours(data, position=5), theirs(data, position=5))


def test_a_batch_cut_off_at_the_end_is_left() -> None:
    """Wherever the last batch is cut off, those before it are given and the position is before it."""
    first, second = built(rows_of(3), codec="lz4"), built(rows_of(3), base=3, codec="lz4")
    for cut in range(len(second)):
        found = ours(first + second[:cut])
        assert (found.end, len(found)) == (3, 3)


def test_nothing_but_a_part_of_a_batch() -> None:
    """A response without one whole batch would be fetched for ever, so it is an error."""
    data = built(rows_of(3))
    for cut in range(1, len(data)):
        with pytest.raises(CorruptRecords, match="ends within its first record batch"):
            ours(data[:cut])


def test_no_bytes_are_nothing() -> None:
    """An empty response has nothing to read and is no error."""
    reader = RecordBatches(b"", topic=TOPIC, partition=PARTITION, position=5)
    assert not reader.has_more
    assert (reader.position, reader.end, reader.bytes_left) == (5, 5, 0)


def test_reading_in_pieces() -> None:
    """Pieces are bounded in bytes, contiguous, and together what one piece would be."""
    data = b"".join(built(rows_of(20), base=20 * at, codec="lz4") for at in range(10))
    whole = ours(data, position=3)
    reader = RecordBatches(data, topic=TOPIC, partition=PARTITION, position=3)
    assert (reader.end, reader.bytes_left) == (200, len(data))
    pieces = []
    while reader.has_more:
        left = reader.bytes_left
        pieces.append(reader.read(5_000))
        assert reader.bytes_left < left
    assert reader.bytes_left == 0
    assert len(pieces) > 4
    assert all(piece.nbytes < 5_000 + 20 * 1_000 for piece in pieces)
    assert_same(ours(data, position=3), whole)
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    rows = [row for piece in pieces for row in piece.records.to_pylist()]
    assert rows == whole.records.to_pylist()


def test_one_batch_that_shrank_says_little_about_the_others() -> None:
    """Room is made for a piece, not for a whole response as if it would all grow a thousandfold."""
    shrunk = built([(None, bytes(1_000_000), ())], codec="gzip")
    plain = batch_v2(record(fields_of(0, None, bytes(40_000_000), ())), count=1, base=1)
    assert len(plain) / len(shrunk) * 1_000_000 > 2**34  # more than memory
    found = ours_all(shrunk + plain, bytes_max=1 << 20)
    assert [batch.nbytes > 1_000_000 for batch in found] == [True]
    assert len(found[0]) == 2


def test_many_headers_and_large_keys_outgrow_their_first_room() -> None:
    """Outputs whose size cannot be foreseen grow, and nothing is written twice."""
    rows: list[Row] = [(b"k" * (at * 50), b"v", [(f"h{n}", b"c" * n) for n in range(at)]) for at in range(60)]
    data = built(rows) + built(rows, base=60)
    assert_same(ours(data), theirs(data))


def test_batches_that_grow() -> None:
    """Room is made after the first batch; later ones that are much larger fit all the same."""
    data = built([(None, b"", ())]) + built([(b"k" * 1_000, b"v" * 5_000, ())] * 50, base=1, codec="zstd")
    assert_same(ours(data), theirs(data))


@pytest.mark.parametrize("byte", [0, 8, 20, 21, 22, 30, 61, 70, -1])
def test_a_checksum_that_does_not_fit(byte: int) -> None:
    """A flipped bit anywhere is found; the batches before it are given first, and the error comes every time."""
    good, bad = built(rows_of(3)), bytearray(built(rows_of(4), base=3, codec="gzip"))
    reader = RecordBatches(good + bytes(bad), topic=TOPIC, partition=PARTITION, position=0)
    assert len(reader.read(1 << 20)) == 7
    if byte in (0, 8):  # not covered by the checksum
        return
    bad[byte] ^= 0x10
    reader = RecordBatches(good + bytes(bad), topic=TOPIC, partition=PARTITION, position=0)
    assert len(reader.read(1 << 20)) == 3
    for _ in range(2):
        with pytest.raises(CorruptRecords, match="checksum") as caught:
            reader.read(1 << 20)
        assert (caught.value.topic, caught.value.partition, caught.value.offset) == (TOPIC, PARTITION, 3)
    assert caught.value.domain is Domain.EXTERNAL
    assert f"'{TOPIC}', partition {PARTITION}" in str(caught.value)
    assert "offset 3" in str(caught.value)


def test_a_legacy_checksum_that_does_not_fit() -> None:
    """Formats 0 and 1 are checked too."""
    data = bytearray(legacy([(b"k", b"v")], magic=1, base=4))
    data[-1] ^= 1
    with pytest.raises(CorruptRecords, match="checksum") as caught:
        ours(bytes(data), position=4)
    assert caught.value.offset == 4


GOOD = fields_of(0, b"key", b"value", [("name", b"content")])


def lying(at: int, field: bytes) -> bytes:
    return record([*GOOD[:at], field, *GOOD[at + 1 :]])


@pytest.mark.parametrize(
    ("records", "count", "reason"),
    [
        (record(GOOD), 2, "number"),
        (record(GOOD) * 2, 1, "left over"),
        (record(GOOD) * 2, 2, "does not follow"),
        (record(GOOD)[:-1], 1, "length"),
        (varint(-1) + b"\x00" * 9, 1, "length"),
        (varint(2**62) + b"\x00" * 9, 1, "length"),
        (b"\xff" * 30, 1, "number"),
        (b"\x80" * 9 + b"\x02" + b"\x00" * 9, 1, "number"),
        (lying(1, b"\xff" * 9 + b"\x01"), 1, None),
        (lying(1, varint(2**63 - 1)), 1, "timestamp"),
        (lying(2, varint(1)), 1, "does not follow"),
        (lying(2, varint(-1)), 1, "does not follow"),
        (lying(3, varint(-2)), 1, "key"),
        (lying(3, varint(1000)), 1, "key"),
        (lying(3, varint(2**31)), 1, "key"),
        (lying(3, varint(-(2**63))), 1, "key"),
        (lying(5, varint(-2)), 1, "value"),
        (lying(5, varint(2**63 - 1)), 1, "value"),
        (lying(7, varint(-1)), 1, "headers"),
        (lying(7, varint(2**40)), 1, "headers"),
        (lying(7, varint(0)), 1, "ends elsewhere"),
        (lying(8, varint(-1)), 1, "header's key"),
        (lying(8, varint(99)), 1, "header's key"),
        (lying(9, b"\xc3\x28zz"), 1, "UTF-8"),
        (lying(10, varint(-2)), 1, "headers"),
        (lying(10, varint(99)), 1, "headers"),
        (record(GOOD), -1, "claims -1 records"),
        (record(GOOD), 2**31 - 1, "length"),
        (b"", 1, "length"),
        (record(GOOD), 0, "left over"),
    ],
)
def test_lies_are_named(records: bytes, count: int, reason: str | None) -> None:
    """Each kind of lie ends in an error that says which it is, compressed or not."""
    for codec in (0, CODECS["lz4"]):
        payload = bytes(cramjam.lz4.compress(records)) if codec else records
        data = batch_v2(payload, count=count, base=50, last_delta=0, attributes=codec)
        if reason is None:
            assert_same(ours(data, position=50), theirs(data, position=50))
            continue
        with pytest.raises(CorruptRecords, match=reason) as caught:
            ours(data, position=50)
        assert caught.value.offset == 50


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (b"", True),
        (b"plain", True),
        ("äöü€😀\U0010ffff\x00".encode(), True),
        (b"\xed\x9f\xbf\xee\x80\x80", True),
        (b"\x80", False),
        (b"\xc0\x80", False),
        (b"\xc1\xbf", False),
        (b"\xc3", False),
        (b"\xe0\x9f\xbf", False),
        (b"\xed\xa0\x80", False),
        (b"\xf0\x8f\xbf\xbf", False),
        (b"\xf4\x90\x80\x80", False),
        (b"\xf5\x80\x80\x80", False),
        (b"\xe2\x82", False),
        (b"\xe2\x28\xa1", False),
    ],
)
def test_utf8(text: bytes, valid: bool) -> None:
    """What is UTF-8 and what is not, as Python has it."""
    assert bool(primitives.is_utf8(np.frombuffer(text, np.uint8), 0, len(text))) is valid
    try:
        text.decode()
    except UnicodeDecodeError:
        assert not valid
    else:
        assert valid


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12))
def test_utf8_as_python_has_it(text: bytes) -> None:
    """Any bytes."""
    try:
        text.decode()
        valid = True
    except UnicodeDecodeError:
        valid = False
    assert bool(primitives.is_utf8(np.frombuffer(text, np.uint8), 0, len(text))) is valid


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack(">qiib", 0, 13, 0, 2) + bytes(100), "shorter than its own header"),
        (struct.pack(">qiib", 0, -1, 0, 2) + bytes(100), "shorter than its own header"),
        (struct.pack(">qiib", 0, -(2**31), 0, 2) + bytes(100), "shorter than its own header"),
        (struct.pack(">qiib", 0, 48, 0, 2) + bytes(100), "shorter than its own header"),
        (struct.pack(">qiib", 0, 2**31 - 1, 0, 2) + bytes(100), "ends within"),
        (struct.pack(">qiib", 0, 60, 0, 3) + bytes(100), "format"),
        (struct.pack(">qiib", 0, 60, 0, -1) + bytes(100), "format"),
        (batch_v2(b"", count=0, base=-1), "offsets"),
        (batch_v2(b"", count=0, base=2**63 - 1), "offsets"),
        (batch_v2(b"", count=0, base=2**63 - 10, last_delta=9), "offsets"),
        (batch_v2(b"", count=0, last_delta=-1), "offsets"),
        (built(rows_of(2)), "offsets"),  # ends before the position
        (batch_v2(record(GOOD), count=1, base=9, attributes=5), "codec 5"),
        (batch_v2(b"not lz4", count=1, base=9, attributes=3), "lz4"),
        (batch_v2(b"not gzip", count=1, base=9, attributes=1), "unexpected end|gzip"),
        (batch_v2(b"not zstd", count=1, base=9, attributes=4), "zstd"),
        (batch_v2(b"\xff" * 9, count=1, base=9, attributes=2), "snappy"),
        (batch_v2(codecs.XERIAL_MAGIC + bytes(8) + b"\x7f\xff\xff\xff", count=1, base=9, attributes=2), "snappy"),
        (batch_v2(codecs.XERIAL_MAGIC + bytes(8) + b"\x00\x00", count=1, base=9, attributes=2), "cut off"),
    ],
)
def test_malformed_frames_are_named(data: bytes, reason: str) -> None:
    """What is wrong outside of the records."""
    with pytest.raises(CorruptRecords, match=reason):
        for _ in ours_all(data, position=9):
            pass


def test_batches_that_run_backwards() -> None:
    """A batch whose offsets do not follow those before is refused, after those before were given."""
    reader = RecordBatches(
        built(rows_of(3)) + built(rows_of(3), base=2), topic=TOPIC, partition=PARTITION, position=0
    )
    assert len(reader.read(1 << 20)) == 3
    with pytest.raises(CorruptRecords, match="do not follow") as caught:
        reader.read(1 << 20)
    assert caught.value.offset == 3


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_decompression_is_bounded(codec: str) -> None:
    """A batch that would become larger than the bound is refused; one within it is read."""
    zeros = [(None, bytes(400_000), ())] * 3
    data = built(zeros, codec=codec)
    assert len(data) < 100_000
    assert len(ours(data, decompressed_bytes_max=1_300_000)) == 3
    with pytest.raises(CorruptRecords, match="when decompressed"):
        ours(data, decompressed_bytes_max=1_000_000)


@pytest.mark.parametrize("codec", ["gzip", "snappy"])
def test_legacy_decompression_is_bounded(codec: str) -> None:
    """The reader of old formats knows no bound, so it is tried before."""
    data = legacy([(None, bytes(300_000))] * 4, magic=1, codec=codec)
    assert len(ours(data, decompressed_bytes_max=2_000_000)) == 4
    with pytest.raises(CorruptRecords, match="when decompressed"):
        ours(data, decompressed_bytes_max=1_000_000)


def test_gzip_in_several_members() -> None:
    """Concatenated members are one stream, as with Python's own gzip."""
    records = b"".join(record(fields_of(at, b"k", b"v" * 90, ())) for at in range(4))
    data = batch_v2(gzip.compress(records[:50]) + gzip.compress(records[50:]), count=4, attributes=CODECS["gzip"])
    assert_same(ours(data), theirs(data))


def test_columns_without_records() -> None:
    """No rows are a record batch too."""
    made = Columns().record_batch()
    made.validate(full=True)
    assert (made.num_rows, made.schema) == (0, RECORDS)


def pieces_of(data: bytes, bytes_max: int) -> list[Batch]:
    reader = RecordBatches(data, topic=TOPIC, partition=PARTITION, position=0)
    made = []
    while reader.has_more:
        made.append(reader.read(bytes_max))
    return made


EVENT: Row = (None, b"event " * 40, ())
LARGE_KEYS: Row = (b"key " * 300, b"v", ())
HEADED: Row = (b"k", b"v" * 20, [("name", b"content " * 10)] * 3)


@pytest.mark.parametrize("bytes_max", [1, 100_000, 1 << 23])
@pytest.mark.parametrize(
    "kinds",
    [
        [EVENT],
        [LARGE_KEYS],
        [HEADED],
        [(None, None, ())],
        [EVENT, LARGE_KEYS],
        [(None, bytes(900), ()), (None, bytes(range(256)) * 3, ())],  # of which the first compresses, and misleads
    ],
)
@pytest.mark.parametrize("codec", ["none", "lz4", "gzip"])
def test_what_is_held_is_what_is_said(kinds: list[Row], bytes_max: int, codec: str) -> None:
    """The buffers of Batches hold hardly more than what they are counted with."""
    data = b"".join(built([kinds[at * len(kinds) // 40]] * 50, codec=codec, base=50 * at) for at in range(40))
    pieces_of(data, bytes_max)
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        batches = pieces_of(data, bytes_max)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # Arrays of columns alone: what the threads keep to decompress into is not of a Batch.
    mine = [tracemalloc.Filter(True, columns.__file__)]
    held = sum(
        each.size_diff for each in after.filter_traces(mine).compare_to(before.filter_traces(mine), "filename")
    )
    said = sum(batch.nbytes for batch in batches)
    used = sum(batch.records.nbytes for batch in batches)
    assert 0.95 * used <= said <= 1.05 * used
    assert held <= 1.3 * said + 4_000 * len(batches), (held, said, len(batches))
    assert held >= said // 2  # the measure sees them
