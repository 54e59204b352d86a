"""The decoders' surface: schemas, limits, null values, faults, inference, and the types' names."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from engine.batch import Batch, from_rows
from engine.values import (
    DEPTH_MAX,
    Decoder,
    JsonDecoder,
    RawDecoder,
    RecordColumns,
    TextDecoder,
    column_field,
    column_type,
    infer,
    type_name_of,
)
from engine.values.json_decoder import _SLICE_ROWS_MAX


def batch_of(*values: bytes | None, partition: int = 0, first: int = 0) -> Batch:
    rows = [(first + at, 1000 + at, b"k", value, [("h", b"x")]) for at, value in enumerate(values)]
    return from_rows("t", partition, rows, start=first, end=first + len(rows))


def reason(raw: bytes | None, **columns: str) -> str:
    """The reason of the one fault that a value gives."""
    decoded = JsonDecoder(columns, rest=True).decode(batch_of(raw))
    [fault] = decoded.faults
    return fault.reason


def test_rows_are_traceable() -> None:
    """Each row names its partition, offset and timestamp, of the types promised; -1, Kafka's none, is NULL."""
    rows = [(7, 1_700_000_000_123, None, b'{"a":1}', ()), (9, -1, None, b'{"a":2}', ())]
    batch = from_rows("t", 3, rows, start=5, end=12)
    columns = JsonDecoder({"a": "BIGINT"}, rest=True).decode(batch).columns
    assert columns.schema.field("_partition").type == pa.int32()
    assert columns.schema.field("_offset").type == pa.int64()
    assert columns.schema.field("_timestamp").type == pa.timestamp("ms", tz="UTC")
    stamp = datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
    assert columns.to_pylist() == [
        {"a": 1, "_rest": None, "_partition": 3, "_offset": 7, "_timestamp": stamp},
        {"a": 2, "_rest": None, "_partition": 3, "_offset": 9, "_timestamp": None},
    ]


@pytest.mark.parametrize(
    "decoder",
    [
        JsonDecoder({"a": "BIGINT", "b": "JSON"}, rest=True),
        JsonDecoder({"a": "BIGINT[]"}, rest=False, trace=False),
        JsonDecoder({}, rest=True, trace=False),
        TextDecoder(),
        TextDecoder(trace=False),
        RawDecoder(),
        RawDecoder(trace=False),
    ],
)
def test_columns_have_the_schema(decoder: Decoder) -> None:
    """Columns have the decoder's schema, metadata included, for good, bad and no records."""
    for batch in (batch_of(), batch_of(b"bad\xff"), batch_of(b'{"a":1}', b"{", None, b"\xff")):
        columns = decoder.decode(batch).columns
        assert columns.schema.equals(decoder.schema, check_metadata=True)
        columns.validate(full=True)


@pytest.mark.parametrize("name", ["_offset", "_PARTITION", "_timestamp", "_rest", "_Rest"])
def test_reserved_names_are_refused(name: str) -> None:
    """A column that would clash with one that headrace fills is refused by name."""
    with pytest.raises(ValueError, match=name):
        JsonDecoder({name: "VARCHAR"}, rest=False)


@pytest.mark.parametrize("columns", [{"": "BIGINT"}, {"id": "BIGINT", "ID": "BIGINT"}])
def test_unusable_columns_are_refused(columns: dict[str, str]) -> None:
    """No column without a name, no two that SQL could not tell apart."""
    with pytest.raises(ValueError, match="column"):
        JsonDecoder(columns, rest=True)


def test_no_columns_at_all_is_refused() -> None:
    """Rows without any column cannot be."""
    with pytest.raises(ValueError, match="no columns"):
        JsonDecoder({}, rest=False, trace=False)


def test_stored_schema_makes_the_same_decoder() -> None:
    """A decoder's schema, serialised and read back, gives the same decoder: JSON stays JSON."""
    first = JsonDecoder({"j": "JSON", "v": "VARCHAR", "l": "JSON[]", "d": "DECIMAL(9,2)[]"}, rest=True)
    stored = pa.ipc.read_schema(pa.py_buffer(first.schema.serialize()))
    again = JsonDecoder(stored, rest=True)
    assert again.schema.equals(first.schema, check_metadata=True)
    batch = batch_of(b'{"j":1,"v":"x","l":[{"a":1},"b"],"d":[1.5]}', b'{"v":1}')
    assert again.decode(batch) == first.decode(batch)
    assert len(again.decode(batch).faults) == 1


@pytest.mark.parametrize(
    ("name", "arrow"),
    [
        ("int", pa.int32()),
        (" Text ", pa.string()),
        ("bool", pa.bool_()),
        ("decimal", pa.decimal128(18, 3)),
        ("numeric( 9 , 2 )", pa.decimal128(9, 2)),
        ("DECIMAL(5)", pa.decimal128(5, 0)),
        ("timestamp with time zone", pa.timestamp("us", tz="UTC")),
        ("varchar[][]", pa.list_(pa.list_(pa.string()))),
        ("long", pa.int64()),
    ],
)
def test_type_names(name: str, arrow: pa.DataType) -> None:
    """Names are those of SQL, in any case, with their aliases."""
    assert column_type(name) == arrow
    field = column_field("c", name)
    assert column_field("c", type_name_of(field)).equals(field, check_metadata=True)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("VARCHR", "VARCHAR"), ("bigit", "BIGINT"), ("TIMESTAMPZ", "TIMESTAMP"), ("qqq", "Valid are")],
)
def test_unknown_type_names_the_nearest(name: str, nearest: str) -> None:
    """A misspelt type is refused with the nearest valid name, and what is valid."""
    with pytest.raises(ValueError, match=nearest):
        column_type(name)


@pytest.mark.parametrize(
    "name", ["DECIMAL(39,2)", "DECIMAL(0,0)", "DECIMAL(4,5)", "DECIMAL(-1,0)", "", "[]", "BLOB"]
)
def test_impossible_types_are_refused(name: str) -> None:
    """DECIMALs that 128 bits do not hold, and what is no type for JSON, are refused."""
    with pytest.raises(ValueError, match="column type"):
        column_type(name)


def test_null_values() -> None:
    """A tombstone is a fault, or dropped and counted; raw takes it as a value."""
    batch = batch_of(b'{"a":1}', None, b'{"a":2}', None)
    decoded = JsonDecoder({"a": "BIGINT"}, rest=True).decode(batch)
    assert [(fault.offset, "null" in fault.reason) for fault in decoded.faults] == [(1, True), (3, True)]
    for decoder in (
        JsonDecoder({"a": "BIGINT"}, rest=True, on_null_value="drop"),
        TextDecoder(on_null_value="drop"),
    ):
        dropped = decoder.decode(batch)
        assert (dropped.columns.num_rows, dropped.faults, dropped.dropped) == (2, (), 2)
    assert RawDecoder().decode(batch).columns.column("value").to_pylist()[1] is None


def test_depth() -> None:
    """As many levels as allowed pass, also through _rest; one more is a fault that says the limit."""
    for brackets in (b"[]", b"{}"):
        opening = b"[" if brackets == b"[]" else b'{"x":'
        inside = b"" if brackets == b"[]" else b"1"
        for levels, good in ((DEPTH_MAX, True), (DEPTH_MAX + 1, False), (1_000, False), (5_000, False)):
            nested = levels - 1
            raw = b'{"a":' + opening * nested + inside + brackets[1:] * nested + b"}"
            decoded = JsonDecoder({}, rest=True).decode(batch_of(raw))
            assert decoded.columns.num_rows == good
            assert good or str(DEPTH_MAX) in decoded.faults[0].reason


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"p":"abc"}', 'column "p" wants DOUBLE, found string "abc"'),
        (b'{"n":99999999999999999999}', "found number 99999999999999999999: out of range"),
        (b'{"n":9223372036854775808}', "out of range, which is -9223372036854775808 to 9223372036854775807"),
        (b'{"n":1.7}', "found number 1.7: not written as an integer"),
        (b'{"p":1e400}', 'number 1e400 at line 1, column 6 (character 5) in member "p" is out of range'),
        (b'{"p":1\n,"q":tru}', "malformed JSON at line 2, column 6"),
        (b'{"p":"\xff"}', "invalid UTF-8 at byte 6 (0xff)"),
        (b"", "empty"),
        (None, "null"),
        (b"[1,2]", "no JSON object but a JSON array of 2"),
        (b'"text"', 'no JSON object but a JSON string "text"'),
        (b'{"q":{"z":1,"z":2}}', 'member "z" stands more than once'),
        (b'{"q":Infinity}', "Infinity is no JSON number"),
        (b'{"q":"\\ud800"}', "lone surrogate"),
        (b'{"q":1} true', 'trailing data at line 1, column 9 (character 8): "true"'),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"l":[1,2,"x"]}', 'found array of 3 with string "x" at index 2'),
        (b'{"t":"2024-01-01T00:00:00"}', "no zone"),
    ],
)
def test_reasons(raw: bytes | None, words: str) -> None:
    """A reason names the column, what was found and what is wanted, or the place."""
    assert words in reason(raw, p="DOUBLE", n="BIGINT", l="BIGINT[]", t="TIMESTAMPTZ")


def test_reasons_are_short() -> None:
    """Megabytes of value, name or junk make no long reason."""
    big = b"x" * 1_000_000
    for raw in (
        b'{"n":"' + big + b'"}',
        b'{"n":1} ' + big,
        b'{"' + big + b'":1,"' + big + b'":2}',
        b'{"n":1' + b"0" * 1_000_000 + b"}",
        b'{"' + big + b'":1e999}',
        b'{"n":1.' + b"0" * 1_000_000 + b"1}",
        b'"' + big + b'"',
        b'{"n":[' + b"1," * 100_000 + b"1]}",
    ):
        assert len(reason(raw, n="BIGINT")) <= 400


def test_first_fault_of_a_record_counts_once() -> None:
    """A record with several wrong columns is one fault."""
    decoded = JsonDecoder({"a": "BIGINT", "b": "DATE"}, rest=True).decode(batch_of(b'{"a":"x","b":1}'))
    assert len(decoded.faults) == 1


def test_many_slices_and_a_sliced_batch() -> None:
    """More rows than are parsed at once, of a batch cut from a larger one: all have their own offsets."""
    count = 3 * _SLICE_ROWS_MAX + 7
    values = [b'{"a":%d}' % at if at % 100 else b'{"a":"%d"}' % at for at in range(count)]
    batch = batch_of(*values, first=50).tail(3)
    decoded = JsonDecoder({"a": "BIGINT"}, rest=True).decode(batch)
    good = [at for at in range(3, count) if at % 100]
    assert decoded.columns.column("a").to_pylist() == good
    assert decoded.columns.column("_offset").to_pylist() == [50 + at for at in good]
    assert [fault.offset for fault in decoded.faults] == [50 + at for at in range(3, count) if at % 100 == 0]


def test_unknown_members() -> None:
    """Unknown members are kept in _rest, or ignored without it; their records are checked all the same."""
    batch = batch_of(b'{"a":1,"x":[1.50,null],"y":12345678901234567890123}', b'{"a":2}', b'{"x":1e999}')
    kept = JsonDecoder({"a": "BIGINT"}, rest=True).decode(batch)
    assert kept.columns.column("_rest").to_pylist() == ['{"x":[1.5,null],"y":12345678901234567890123}', None]
    ignored = JsonDecoder({"a": "BIGINT"}, rest=False).decode(batch)
    assert "_rest" not in ignored.columns.schema.names
    assert ignored.columns.column("a").to_pylist() == [1, 2]
    assert kept.faults == ignored.faults != ()


def test_empty_text_is_an_empty_line() -> None:
    """A text value may be empty, and keeps its line end; invalid UTF-8 is a fault alone."""
    decoded = TextDecoder().decode(batch_of(b"", b"a\n", b"\xff\xfe", "é".encode()))
    assert decoded.columns.column("line").to_pylist() == ["", "a\n", "é"]
    assert [fault.offset for fault in decoded.faults] == [2]


def test_raw_is_untouched() -> None:
    """Raw gives keys, values and headers as they came."""
    [row] = RawDecoder(trace=False).decode(batch_of(b"\xff")).columns.to_pylist()
    assert row == {"key": b"k", "value": b"\xff", "headers": [{"key": "h", "value": b"x"}]}


def test_infer() -> None:
    """Columns come in order of first appearance, from records that parse, of the type that holds all values."""
    records = [
        b'{"id":1,"f":1,"mixed":1,"none":null,"long":9007199254740993,"s":"x","huge":18446744073709551616}',
        b"{broken",
        b'{"id":9223372036854775807,"f":1.5,"mixed":"x","b":true,"o":{},"l":[],"long":0.5,"u":9223372036854775808}',
        b'{"ID":1,"_offset":1,"_rest":1,"":1,"a\\u0000b":1,"late":1.000000000000000005,"s":null}',
    ]
    schema = infer(batch_of(*records))
    assert [(field.name, type_name_of(field)) for field in schema] == [
        ("id", "BIGINT"),
        ("f", "DOUBLE"),
        ("mixed", "JSON"),
        ("long", "JSON"),
        ("s", "VARCHAR"),
        ("huge", "JSON"),
        ("b", "BOOLEAN"),
        ("o", "JSON"),
        ("l", "JSON"),
        ("u", "JSON"),
        ("late", "DOUBLE"),
    ]


def test_inferred_schema_takes_its_own_batch() -> None:
    """Every record that parses decodes with the schema inferred from it, and nothing of it is lost."""
    records = [b'{"a":1,"b":[1],"c":null,"_offset":5}', b'{"a":2.5,"b":{"x":1},"c":null}', b'{"A":1}']
    batch = batch_of(*records)
    decoded = JsonDecoder(infer(batch), rest=True, trace=False).decode(batch)
    assert decoded.faults == ()
    for row, raw in zip(decoded.columns.to_pylist(), records, strict=True):
        found = {**json.loads(row["_rest"] or "{}")}
        found |= {name: row[name] for name in ("a",) if row[name] is not None}
        found |= {name: json.loads(row[name]) for name in ("b",) if row[name] is not None}
        assert found == json.loads(raw)


def test_infer_nothing() -> None:
    """Without a record that parses there are no columns."""
    assert infer(batch_of()).names == []
    assert infer(batch_of(b"{", None, b"[]")).names == []


@pytest.mark.parametrize("on_null_value", ["fail", "drop"])
@pytest.mark.parametrize("bad", [(), (0,), (2, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("trace", [True, False])
def test_record_columns_stay_with_their_row(on_null_value: str, bad: tuple[int, ...], trace: bool) -> None:
    """Whatever was refused or let go before it, a row stands beside its own record's key, value and headers."""
    rows = [
        (
            10 + 3 * at,
            0,
            b"k%d" % at,
            None if at == 5 else b"{" if at in bad else b'{"a":%d}' % at,
            [("h", b"%d" % at)],
        )
        for at in range(7)
    ]
    batch = from_rows("t", 0, rows, start=10, end=40)
    inner = JsonDecoder({"a": "BIGINT"}, rest=False, trace=trace, on_null_value=on_null_value)
    decoded = RecordColumns(inner).decode(batch)
    assert decoded.columns.schema.names == [*inner.schema.names, "_key", "_value", "_headers"]
    found = decoded.columns.to_pylist()
    good = [at for at in range(7) if at != 5 and at not in bad]
    assert [row["a"] for row in found] == good
    assert [(row["_key"], row["_value"]) for row in found] == [(b"k%d" % at, b'{"a":%d}' % at) for at in good]
    assert [row["_headers"] for row in found] == [[{"key": "h", "value": b"%d" % at}] for at in good]
    assert len(decoded.faults) == len(bad) + (on_null_value == "fail")
