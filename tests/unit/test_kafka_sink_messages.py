"""Rows as messages, and messages as record batches: held against orjson, aiokafka's reader and the partitioner."""

from __future__ import annotations

import datetime as dt
import decimal
import math

import numpy as np
import orjson
import pyarrow as pa
import pytest
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka.partitioning import Partitioner
from connectors.kafka.sink import MessageFormat, batches, kernel
from connectors.kafka.sink.batches import Stamp
from connectors.kafka.sink.messages import Column, Messages, json_objects
from engine.errors import RowsRefused, SinkMismatch

JSON = {b"headrace.type": b"JSON"}


def values_of(column: Column) -> list[bytes | None]:
    return [
        bytes(column.data[start:end]) if not column.valid.size or column.valid[row] else None
        for row, (start, end) in enumerate(zip(column.offsets, column.offsets[1:], strict=False))
    ]


def parsed(table: pa.Table) -> list[dict[str, object]]:
    return [orjson.loads(value or b"") for value in values_of(json_objects(table))]


INT64 = st.integers(-(2**63), 2**63 - 1)
COLUMNS = {
    "text": (pa.string(), st.text()),
    "integer": (pa.int64(), INT64),
    "small": (pa.int8(), st.integers(-128, 127)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "flag": (pa.bool_(), st.booleans()),
    "number": (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    "list": (pa.list_(pa.int32()), st.lists(st.integers(-5, 5), max_size=3)),
    'a "name"\n': (pa.string(), st.text(alphabet='\x00\x1f"\\/é€😀\x7f', max_size=5)),
}


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(
        st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}), min_size=1
    ),
    st.integers(0, 3),
)
def test_json_is_what_was_in_the_row(rows: list[dict[str, object]], skipped: int) -> None:
    """Any text, number, list and null comes back equal when the message is parsed; slices and chunks too."""
    schema = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
    table = pa.Table.from_pylist(rows, schema=schema)
    assert parsed(table) == rows
    chunked = pa.concat_tables([table, table]).slice(min(skipped, len(rows)))
    assert parsed(chunked) == [*rows, *rows][min(skipped, len(rows)) :]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.none() | st.datetimes(), min_size=1), st.sampled_from(["s", "ms", "us"]), st.booleans())
def test_times_are_iso_8601(times: list[dt.datetime | None], unit: str, zoned: bool) -> None:
    """A time reads as Python writes it, with as many digits as its unit has, and Z where it is an instant."""
    whole = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    cut = [time and time.replace(microsecond=time.microsecond // whole * whole) for time in times]
    array = pa.array(cut, pa.timestamp(unit, "UTC" if zoned else None))
    digits = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}[unit]
    expected = [time and time.isoformat(timespec=digits) + ("Z" if zoned else "") for time in cut]
    assert [row["t"] for row in parsed(pa.table({"t": array}))] == expected


def test_what_json_has_no_form_for() -> None:
    """Numbers that are not finite are strings, whole floats keep their point, bytes are base64, decimals exact."""
    table = pa.table(
        {
            "f": pa.array([1.0, math.nan, math.inf, -math.inf, 1e300, -0.0]),
            "h": pa.array([1.5] * 6, pa.float16()),
            "d": pa.array([decimal.Decimal("0.10")] * 6),
            "b": pa.array([b"\xff\x00"] * 6),
            "n": pa.nulls(6),
            "date": pa.array([dt.date(2024, 2, 29)] * 6),
            "nested": pa.array([[{"at": dt.datetime(2024, 2, 29, tzinfo=dt.UTC), "raw": b"\xff"}]] * 6),
        }
    )
    texts = [value.decode() for value in values_of(json_objects(table)) if value is not None]
    assert texts[0] == (
        '{"f":1.0,"h":1.5,"d":0.10,"b":"/wA=","n":null,"date":"2024-02-29",'
        '"nested":[{"at":"2024-02-29T00:00:00Z","raw":"/w=="}]}'
    )
    assert [text.split(",")[0] for text in texts[1:]] == [
        '{"f":"NaN"', '{"f":"Infinity"', '{"f":"-Infinity"', '{"f":1e+300', '{"f":-0.0',
    ]  # fmt: skip


def test_documents_are_embedded_and_checked() -> None:
    """A JSON column gives its document; text that is none costs the rows that have it."""
    field = pa.field("doc", pa.string(), metadata=JSON)
    good = pa.table([pa.array(['{"a": [1]}', None, "2"])], schema=pa.schema([field]))
    assert parsed(good) == [{"doc": {"a": [1]}}, {"doc": None}, {"doc": 2}]
    bad = pa.table([pa.array(["1", "{", None, "x"])], schema=pa.schema([field]))
    with pytest.raises(RowsRefused) as refused:
        json_objects(bad)
    assert refused.value.rows == [1, 3]


def test_key_value_and_omitted_columns() -> None:
    """A key may be text, bytes or an integer; a value column is sent as it is, its nulls as tombstones."""
    table = pa.table({"id": [7, None], "raw": [b"\xff", None], "text": ["a", "b"]})
    made = MessageFormat(key="id", value="raw").messages(table)
    assert (values_of(made.keys), values_of(made.values)) == ([b"7", None], [b"\xff", None])
    made = MessageFormat(omit=["raw", "id"]).messages(table)
    assert (values_of(made.keys), values_of(made.values)) == ([None, None], [b'{"text":"a"}', b'{"text":"b"}'])


@pytest.mark.parametrize(
    ("message_format", "fault"),
    [
        (MessageFormat(key="x"), 'key = "x": the rows have a, f'),
        (MessageFormat(key="f"), 'key = "f" is a column of double; valid are text, bytes and integers'),
        (MessageFormat(value="a"), 'value = "a" is a column of int64; valid are text and bytes'),
        (MessageFormat(omit=["a", "f"]), "leaves no column"),
    ],
)
def test_columns_that_make_no_message(message_format: MessageFormat, fault: str) -> None:
    """Each fault names the setting, its value and what is valid."""
    with pytest.raises(SinkMismatch, match=fault):
        message_format.check(pa.schema([("a", pa.int64()), ("f", pa.float64())]), "here")


MESSAGES = st.lists(st.tuples(st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=300)), min_size=1)


def messages_of(pairs: list[tuple[bytes | None, bytes | None]]) -> Messages:
    keys, values = zip(*pairs, strict=True)
    return Messages(Column.of_values(keys), Column.of_values(values))


@settings(deadline=None)  # the first call compiles
@given(MESSAGES, st.sampled_from(sorted(batches.COMPRESSIONS)), st.integers(1, 4), st.integers(300, 3000))
def test_batches_are_what_aiokafka_reads(
    pairs: list[tuple[bytes | None, bytes | None]], compression: str, partitions: int, bytes_max: int
) -> None:
    """Every codec, any sizes: aiokafka reads the same messages, each partition's in order, and checksums hold."""
    messages = messages_of(pairs)
    partition_of = batches.spread(messages, partitions, 1)
    stamp = Stamp(5, 2, {})
    made = batches.build(
        messages, "t", partition_of, stamp=stamp, timestamp_ms=77, compression=compression, bytes_max=bytes_max
    )
    read: dict[int, list[tuple[bytes | None, bytes | None]]] = {}
    sequences: dict[int, int] = {}
    for each in made:
        assert len(each.data) <= bytes_max + 100
        found = MemoryRecords(each.data).next_batch()
        assert found is not None
        assert found.validate_crc()
        assert found.is_transactional
        assert (found.producer_id, found.producer_epoch, found.base_sequence) == (
            5, 2, sequences.get(each.partition, 0),
        )  # fmt: skip
        records = list(found)
        assert len(records) == each.records
        assert [record.offset for record in records] == list(range(len(records)))
        assert {record.timestamp for record in records} == {77}
        sequences[each.partition] = sequences.get(each.partition, 0) + each.records
        read.setdefault(each.partition, []).extend((record.key, record.value) for record in records)
    expected: dict[int, list[tuple[bytes | None, bytes | None]]] = {}
    for pair, partition in zip(pairs, partition_of.tolist(), strict=True):
        expected.setdefault(partition, []).append(pair)
    assert read == expected


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.none() | st.binary(max_size=40), min_size=1), st.integers(1, 50))
def test_keys_go_where_kafka_puts_them(keys: list[bytes | None], partitions: int) -> None:
    """The compiled hash agrees with the partitioner that `headrace produce` uses; rows without a key are left."""
    column = Column.of_values(keys)
    found = np.full(len(keys), -1, np.int32)
    kernel.partitions_of(column.offsets, column.data, column.valid, partitions, found)
    partitioner = Partitioner(partitions)
    assert found.tolist() == [-1 if key is None else partitioner.partition(key) for key in keys]


def test_rows_without_a_key_stay_together_for_a_batch() -> None:
    """Runs of a batch's size, each in the next partition, from the one that is named."""
    messages = messages_of([(None, b"x" * 60_000)] * 30)
    found = batches.spread(messages, 3, 1).tolist()
    assert found[:9] == [1] * 9
    assert sorted(set(found)) == [0, 1, 2]
    assert found != sorted(found)


def test_sequences_go_on_and_wrap_around() -> None:
    """Each partition counts its own records, modulo what Kafka's sequence numbers have."""
    stamp = Stamp(1, 0, {("t", 0): 2**31 - 1})
    assert stamp.next_sequence("t", 0, 3) == 2**31 - 1
    assert stamp.next_sequence("t", 0, 1) == 2
    assert stamp.next_sequence("t", 1, 1) == 0


def test_too_large_means_alone_and_compressed() -> None:
    """What compresses into the bound is taken, what does not is named with its size."""
    random = np.random.default_rng(1).bytes(5_000)
    messages = messages_of([(None, b"x" * 5_000), (b"k", random), (None, b"small")])
    assert list(batches.too_large(messages, compression="lz4", bytes_max=2_000)) == [1]
    assert list(batches.too_large(messages, compression="none", bytes_max=2_000)) == [0, 1]
    fitting = batches.too_large(messages, compression="lz4", bytes_max=10**6)
    assert fitting == {}
