"""Avro values behind a registry's prefix: columns, evolution, what is wrong with a record, and who is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.memory import MemorySink, MemoryStore
from engine.batch import Batch, Stream, from_rows
from engine.clock import SystemClock
from engine.config import SchemaConfig
from engine.decoding import Decoders
from engine.errors import RegistryUnavailable
from engine.values.avro import AvroFormat
from engine.values.registered import Readers, RegisteredDecoder
from engine.values.wire import Reference, Registered
from tests.forms import examples
from tests.unit import avro_oracle as oracle
from tests.unit.avro_oracle import encode, zigzag


class Schemas:
    """A registry in memory, which counts what it is asked."""

    def __init__(self, *schemas: Registered) -> None:
        self.known = {each.id: each for each in schemas}
        self.asked: list[int] = []
        self.is_away = False

    def schema(self, schema_id: int) -> Registered | None:
        self.asked.append(schema_id)
        if self.is_away:
            raise RegistryUnavailable("the registry is away")
        return self.known.get(schema_id)


def avro(number: int, schema: Any, *references: Reference) -> Registered:
    return Registered(number, "AVRO", json.dumps(schema), references)


def record(*fields: tuple[Any, ...] | dict[str, Any]) -> dict[str, Any]:
    """A record's schema of ``(name, type)`` pairs or whole fields."""
    made = [each if isinstance(each, dict) else {"name": each[0], "type": each[1]} for each in fields]
    return {"type": "record", "name": "Event", "fields": made}


def framed(number: int, octets: bytes) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + octets


def batch_of(values: Sequence[bytes | None]) -> Batch:
    rows = [(at, 0, None, value, ()) for at, value in enumerate(values)]
    return from_rows("t", 0, rows, start=0, end=len(rows))


def decoded(
    values: Sequence[bytes | None],
    *schemas: Registered,
    columns: dict[str, str] | pa.Schema | None = None,
    rest: bool = False,
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Rows and reasons by offset; columns are inferred unless given."""
    readers = Readers(AvroFormat(), Schemas(*schemas))
    batch = batch_of(values)
    wanted = readers.infer(batch) if columns is None else columns
    found = RegisteredDecoder(readers, wanted, rest=rest, trace=False).decode(batch)
    found.columns.validate(full=True)
    assert found.columns.num_rows + len(found.faults) + found.dropped == len(values)
    return found.columns.to_pylist(), {fault.offset: fault.reason for fault in found.faults}


def numbers(text: str) -> Any:
    return json.loads(text, parse_int=oracle.Number, parse_float=oracle.Number)


@settings(max_examples=examples(100, 3_000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(oracle.records())
def test_random_records_are_what_plain_python_says(made: tuple[Any, list[dict[str, Any]]]) -> None:
    """Any schema, any values: inferred columns, and all of it as JSON in _rest."""
    schema, values = made
    octets = [framed(1, encode(schema, value)) for value in values]
    rows, faults = decoded(octets, avro(1, schema))
    assert faults == {}
    for row, value in zip(rows, values, strict=True):
        for field in schema["fields"]:
            kind, plain = oracle.optional(field["type"], value[field["name"]])
            found = row[field["name"]]
            if plain is None or kind == "null":
                assert found is None
            elif oracle.is_nested(kind):
                wanted = oracle.as_json(kind, plain)
                assert found is None if wanted is None else oracle.same(numbers(found), wanted)
            else:
                assert oracle.equal(found, oracle.as_column(kind, plain)), field
    rests, faults = decoded(octets, avro(1, schema), columns={"absent": "BIGINT"}, rest=True)
    assert faults == {}
    for row, value in zip(rests, values, strict=True):
        assert row["absent"] is None
        assert oracle.same(numbers(row["_rest"]), oracle.as_json(schema, value))


@settings(max_examples=examples(60, 3_000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(oracle.records(), st.data())
def test_a_record_that_is_cut_or_grown_is_refused_alone(
    made: tuple[Any, list[dict[str, Any]]], data: st.DataObject
) -> None:
    """Whatever the schema: of two whole records and a broken one between them, the broken one is the fault."""
    schema, values = made
    whole = encode(schema, values[0])
    broken = whole + b"\0" if not whole else whole[: data.draw(st.integers(0, len(whole) - 1))]
    rows, faults = decoded([framed(1, whole), framed(1, broken), framed(1, whole)], avro(1, schema))
    assert list(faults) == [1]
    assert rows[0] == rows[1]
    assert list(decoded([framed(1, whole + b"\0")], avro(1, schema))[1]) == [0]


def test_mutated_bytes_cost_no_more_than_their_record() -> None:
    """Thousands of records with random bytes changed: each is a row or a fault, and the good ones stay."""
    inner = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    schema = record(
        ("id", "long"),
        ("text", ["null", "string"]),
        ("list", {"type": "array", "items": "string"}),
        ("node", inner),
        ("kind", {"type": "enum", "name": "E", "symbols": ["A", "B"]}),
        ("many", {"type": "array", "items": "null"}),
    )
    node = {"next": (1, {"next": (0, None)})}
    value = {"id": 5, "text": (1, "hello"), "list": ["a", "b"], "node": node, "kind": "B", "many": [None]}
    # The oracle knows no names: the node is written out.
    good = b"".join(
        [
            *(encode(field["type"], value[field["name"]]) for field in schema["fields"][:3]),
            zigzag(1) + zigzag(0),
            encode(schema["fields"][4]["type"], "B"),
            zigzag(1) + zigzag(0),
        ]
    )
    rng = random.Random(7)
    values = []
    for _ in range(4_000):
        octets = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            octets[rng.randrange(len(octets))] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        values += [framed(1, bytes(octets)), framed(1, good)]
    rows, faults = decoded(values, avro(1, schema))
    expected = {"id": 5, "text": "hello", "list": '["a","b"]', "node": '{"next":{"next":null}}', "kind": "B"}
    assert sum(row == {**expected, "many": "[null]"} for row in rows) >= 4_000
    assert all(offset % 2 == 0 for offset in faults)
    assert len(faults) > 1_000


FIELDS = record(
    ("flag", "boolean"), ("kind", {"type": "enum", "name": "E", "symbols": ["A", "B"]}), ("u", ["long", "null"])
)
GOOD = b"\x01\x02\x00\x0a"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "the value is empty (0 bytes)"),
        (None, "the value is null (a tombstone)"),
        (b'{"flag": true}', "does not start with a zero byte but with 0x7b"),
        (b"\0\0\0\0", "has 4 bytes, fewer than the 5 of a schema id"),
        (b"\0\0\0\0\0" + GOOD, "names the schema id 0"),
        (b"\0\xff\xff\xff\xff" + GOOD, "names the schema id 4,294,967,295"),
        (framed(2, GOOD), "the registry has no schema 2"),
        (framed(3, GOOD), "schema 3 cannot be used: it is JSON and not AVRO"),
        (framed(4, GOOD), "schema 4 cannot be used: it is no Avro schema"),
        (framed(5, GOOD), "schema 5 cannot be used: it is not of a record"),
        (framed(1, b""), 'the value ends within field "flag"'),
        (framed(1, GOOD[:-1]), 'the value ends within field "u"'),
        (framed(1, GOOD + b"\0"), "the value has bytes after its last field"),
        (framed(1, b"\x02" + GOOD[1:]), 'field "flag" has a boolean that is neither 0 nor 1'),
        (framed(1, b"\x01\x04\x00\x0a"), 'field "kind" has an enum index that the schema does not have'),
        (framed(1, b"\x01\x01\x00\x0a"), 'field "kind" has an enum index that the schema does not have'),
        (framed(1, b"\x01\x02\x04\x0a"), 'field "u" has a union branch that the schema does not have'),
        (framed(1, b"\x01\x02\x01"), 'field "u" has a union branch that the schema does not have'),
        (framed(1, b"\x01\x02\x00" + b"\xff" * 9 + b"\x02"), 'field "u" has a malformed integer'),
    ],
)
def test_a_bad_record_is_named_and_costs_itself(value: bytes | None, reason: str) -> None:
    """The reason says what is wrong; the records around it are rows."""
    others = (Registered(3, "JSON", "{}"), avro(4, {"type": "recordd"}), avro(5, "string"))
    rows, faults = decoded([framed(1, GOOD), value, framed(1, GOOD)], avro(1, FIELDS), *others)
    assert rows == [{"flag": True, "kind": "B", "u": 5}] * 2
    assert list(faults) == [1]
    assert reason in faults[1]


@pytest.mark.parametrize(
    ("kind", "octets", "reason"),
    [
        ("string", b"\x01", "a length that is negative or reaches beyond"),
        ("string", b"\x0aab", "a length that is negative or reaches beyond"),
        ("bytes", zigzag(2**62), "a length that is negative or reaches beyond"),
        ("string", b"\x02\xff", "invalid UTF-8 at its byte 0"),
        ("int", zigzag(2**31), "malformed integer"),
        ({"type": "array", "items": "null"}, zigzag(2**60) + b"\0", "a block of more elements than bytes"),
        ({"type": "array", "items": "null"}, zigzag(-(2**63)) + b"\0\0", "a block of more elements than bytes"),
        ({"type": "array", "items": "string"}, b"\x02\x02\xff\x00", 'field "a"'),
        ({"type": "map", "values": "long"}, b"\x02\x05", "a length that is negative"),
        ({"type": "array", "items": "double"}, b"\x02" + b"\0" * 6 + b"\xf8\x7f\0", "nan is no JSON number"),
        ({"type": "long", "logicalType": "timestamp-millis"}, zigzag(2**62), "not of the years 1 to 9999"),
        ({"type": "int", "logicalType": "date"}, zigzag(2**31 - 1), "not of the years 1 to 9999"),
        ({"type": "int", "logicalType": "time-millis"}, zigzag(86_400_000), "no time of a day"),
    ],
)
def test_a_bad_field_is_named(kind: Any, octets: bytes, reason: str) -> None:
    """Lengths, counts and text that lie, and times that are none."""
    rows, faults = decoded([framed(1, octets)], avro(1, record(("a", kind))))
    assert rows == []
    assert reason in faults[0]


@pytest.mark.parametrize(("levels", "is_refused"), [(90, False), (198, False), (250, True), (500_000, True)])
def test_deep_nesting_is_refused_and_breaks_nothing(levels: int, is_refused: bool) -> None:
    """A record within a record, hundreds of thousands of times, would overflow the stack of a recursive reader."""
    node = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    rows, faults = decoded([framed(1, b"\x02" * levels + b"\0")], avro(1, record(("node", node))))
    assert ("nested too deep" in faults.get(0, "")) == is_refused
    assert len(rows) == (not is_refused)


LOGICAL = {
    "ms": {"type": "long", "logicalType": "timestamp-millis"},
    "us": {"type": "long", "logicalType": "timestamp-micros"},
    "local": {"type": "long", "logicalType": "local-timestamp-micros"},
    "day": {"type": "int", "logicalType": "date"},
    "money": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
    "wide": {"type": "bytes", "logicalType": "decimal", "precision": 60, "scale": 1},
    "nanos": {"type": "long", "logicalType": "timestamp-nanos"},
}
INSTANT_MICROS = 1_709_208_000_123_456
NOON = datetime(2024, 2, 29, 12, 0, 0, 123_456)


@pytest.mark.parametrize(
    ("schema", "value", "column_type", "expected"),
    [
        ("int", 127, "TINYINT", 127),
        ("int", 128, "TINYINT", None),
        ("long", -1, "UBIGINT", None),
        ("long", 2**53 + 1, "DOUBLE", float(2**53)),
        ("long", 1_709_208_000_123, "TIMESTAMP", datetime(2024, 2, 29, 12, 0, 0, 123_000)),
        ("long", 5, "VARCHAR", None),
        ("long", 5, "DECIMAL(9,2)", Decimal("5.00")),
        ("double", 1.5, "BIGINT", None),
        ("double", float("inf"), "DOUBLE", float("inf")),
        ("double", float("inf"), "FLOAT", float("inf")),
        ("double", 1e39, "FLOAT", None),
        ("double", float("inf"), "JSON", None),
        ("float", 0.5, "FLOAT", 0.5),
        ("string", "2024-02-29", "DATE", date(2024, 2, 29)),
        ("string", "x", "DATE", None),
        ("string", "x", "JSON", '"x"'),
        ("bytes", b"\xff", "BLOB", b"\xff"),
        ("bytes", b"\xff", "VARCHAR", None),
        ("bytes", b"\xff", "JSON", '"/w=="'),
        ("string", "x", "BLOB", None),
        ("boolean", True, "BOOLEAN", True),
        ("boolean", True, "BIGINT", None),
        (LOGICAL["ms"], 1_709_208_000_123, "TIMESTAMP_MS", datetime(2024, 2, 29, 12, 0, 0, 123_000)),
        (LOGICAL["us"], INSTANT_MICROS, "TIMESTAMPTZ", NOON.replace(tzinfo=UTC)),
        (LOGICAL["us"], INSTANT_MICROS, "TIMESTAMP", NOON),
        (LOGICAL["us"], INSTANT_MICROS, "TIMESTAMP_MS", None),
        (LOGICAL["us"], INSTANT_MICROS, "VARCHAR", "2024-02-29T12:00:00.123456Z"),
        (LOGICAL["us"], INSTANT_MICROS, "DATE", None),
        (LOGICAL["local"], INSTANT_MICROS, "TIMESTAMP", NOON),
        (LOGICAL["local"], INSTANT_MICROS, "TIMESTAMPTZ", None),
        (LOGICAL["nanos"], 1_709_208_000_123_456_789, "BIGINT", 1_709_208_000_123_456_789),
        (LOGICAL["day"], 19_782, "DATE", date(2024, 2, 29)),
        (LOGICAL["day"], 19_782, "TIMESTAMP", None),
        (LOGICAL["money"], b"\x04\xd2", "DECIMAL(9,2)", Decimal("12.34")),
        (LOGICAL["money"], b"\x04\xd2", "DECIMAL(9,3)", Decimal("12.340")),
        (LOGICAL["money"], b"\x04\xd2", "DECIMAL(9,1)", None),
        (LOGICAL["money"], b"\x04\xd2", "DOUBLE", 12.34),
        (LOGICAL["money"], b"\x04\xd2", "JSON", "12.34"),
        (LOGICAL["wide"], (10**50 + 1).to_bytes(22, "big"), "JSON", f"{10**49}.1"),
        ({"type": "long", "logicalType": "time-micros"}, 1, "TIME", time(0, 0, 0, 1)),
        ({"type": "array", "items": "long"}, [1, 2], "BIGINT[]", [1, 2]),
        ({"type": "array", "items": "long"}, [1, 2], "VARCHAR[]", None),
        ({"type": "array", "items": LOGICAL["us"]}, [INSTANT_MICROS], "TIMESTAMP[]", [NOON]),
    ],
)
def test_declared_columns_take_what_they_take_of_json(
    schema: Any, value: Any, column_type: str, expected: Any
) -> None:
    """A typed value becomes what its JSON value becomes; None stands for a fault that names the column."""
    made = record(("a", schema))
    octets = [framed(1, encode(made, {"a": value})), framed(1, encode(made, {"a": value}))]
    rows, faults = decoded(octets, avro(1, made), columns={"a": column_type})
    if expected is None:
        assert rows == []
        assert list(faults) == [0, 1]
        assert all('column "a"' in reason for reason in faults.values())
    else:
        assert (rows, faults) == ([{"a": expected}] * 2, {})


def test_schemas_evolve() -> None:
    """Columns of the first schema: later fields go to _rest, missing ones get its default, else NULL."""
    first = record(
        {"name": "id", "type": "int"},
        {"name": "kind", "type": "string", "default": "none"},
        {"name": "seen", "type": ["null", "long"], "default": None},
        {"name": "name", "type": "string", "aliases": ["title"], "default": ""},
        {"name": "mark", "type": "bytes", "default": "\u00ff"},
        {"name": "when", "type": LOGICAL["us"], "default": 0},
    )
    second = record(("extra", "double"), ("title", "string"), ("id", "long"))
    one = {"id": 1, "kind": "k", "seen": (1, 7), "name": "n", "mark": b"m", "when": INSTANT_MICROS}
    two = {"extra": 1.5, "title": "t", "id": 2**40}
    schemas = avro(1, first), avro(2, second)
    values = [framed(1, encode(first, one)), framed(2, encode(second, two)), framed(1, encode(first, one))]
    rows, faults = decoded(values, *schemas, rest=True)
    row = {
        "id": 1,
        "kind": "k",
        "seen": 7,
        "name": "n",
        "mark": b"m",
        "when": NOON.replace(tzinfo=UTC),
        "_rest": None,
    }
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    other = {"id": 2**40, "kind": "none", "seen": None, "name": "t", "mark": b"\xff", "when": epoch}
    assert faults == {}
    assert rows == [row, {**other, "_rest": '{"extra":1.5}'}, row]


def test_a_schema_may_refer_to_others() -> None:
    """Named types of other subjects are known, whatever depth."""
    money = {"type": "record", "name": "x.Money", "fields": [{"name": "units", "type": "long"}]}
    price = {"type": "record", "name": "x.Price", "fields": [{"name": "net", "type": "x.Money"}]}
    event = record(("price", "x.Price"), ("fee", ["null", "x.Money"]), ("kind", "x.Price"))
    references = Reference("x.Money", json.dumps(money)), Reference("x.Price", json.dumps(price))
    rows, faults = decoded([framed(1, zigzag(5) + zigzag(1) + zigzag(6) + zigzag(7))], avro(1, event, *references))
    assert faults == {}
    assert rows == [{"price": '{"net":{"units":5}}', "fee": '{"units":6}', "kind": '{"net":{"units":7}}'}]


@pytest.mark.parametrize("cells", [1, 7, 1_000])
def test_schemas_may_come_mixed_and_in_parts(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stay in the order of their records, however these are taken together, and bad ones are left out."""
    monkeypatch.setattr("engine.values.registered.CELLS_MAX", cells)
    first, second = record(("id", "long")), record(("s", "string"), ("id", "long"))
    rng = random.Random(3)
    values, expected = [], []
    for at in range(200):
        match rng.randrange(4):
            case 0:
                values.append(framed(1, zigzag(at)))
            case 1 | 2:
                values.append(framed(2, zigzag(1) + b"x" + zigzag(at)))
            case _:
                values.append(rng.choice([b"", None, framed(1, b""), framed(9, b"")]))
                continue
        expected.append(at)
    rows, faults = decoded(values, avro(1, first), avro(2, second), columns={"id": "BIGINT"})
    assert [row["id"] for row in rows] == expected
    assert sorted([*faults, *expected]) == list(range(200))
    whole = [framed(1, zigzag(at)) for at in range(50)]
    assert [row["id"] for row in decoded(whole, avro(1, first))[0]] == list(range(50))


def test_fields_that_no_column_can_have_are_left_to_rest() -> None:
    """Reserved names, and names that differ only in case."""
    schema = record(("a", "long"), ("A", "long"), ("_offset", "long"))
    rows, _ = decoded([framed(1, zigzag(1) + zigzag(2) + zigzag(3))], avro(1, schema), rest=True)
    assert rows == [{"a": 1, "_rest": '{"A":2,"_offset":3}'}]


async def opened_sink(store: MemoryStore) -> MemorySink:
    sink = MemorySink(store, pipeline="p", clock=SystemClock())
    await sink.open(Stream("cluster", "t", "id", 1))
    return sink


async def test_columns_of_the_first_schema_are_kept_and_adopted() -> None:
    """A later run has them before its first record, and with them the defaults."""
    store = MemoryStore()
    first = record({"name": "a", "type": "long", "default": 9}, {"name": "t", "type": LOGICAL["us"]})
    second = record(("b", "string"))
    schemas = Schemas(avro(1, first), avro(2, second))
    executor = ThreadPoolExecutor(1)
    config = SchemaConfig(format="avro", trace=False)
    decoders = Decoders(config, await opened_sink(store), executor, schemas)
    await decoders.open()
    assert decoders.schema is None
    batch = batch_of([framed(1, zigzag(1) + zigzag(0))])
    decoder = await decoders.decoder(batch)
    assert decoder.schema.names == ["a", "t", "_rest"]
    assert decoder.decode(batch).columns.num_rows == 1

    later = Decoders(config, await opened_sink(store), executor, schemas)
    await later.open()
    assert later.schema == decoder.schema
    batch = batch_of([framed(2, zigzag(1) + b"x")])
    found = (await later.decoder(batch)).decode(batch)
    assert found.columns.to_pylist() == [{"a": 9, "t": None, "_rest": '{"b":"x"}'}]


async def test_a_registry_that_is_away_is_no_fault_of_records() -> None:
    """The batch is refused as a whole, to be tried again; then each id is asked for once, and never again."""
    schemas = Schemas(avro(1, record(("a", "long"))))
    decoders = Decoders(
        SchemaConfig(format="avro", columns={"a": "BIGINT"}),
        await opened_sink(MemoryStore()),
        ThreadPoolExecutor(1),
        schemas,
    )
    await decoders.open()
    batch = batch_of([framed(1, zigzag(at)) for at in range(3)])
    schemas.is_away = True
    with pytest.raises(RegistryUnavailable) as caught:
        await decoders.decoder(batch)
    assert caught.value.retry
    schemas.is_away = False
    schemas.asked.clear()
    for _ in range(3):
        decoder = await decoders.decoder(batch)
        assert decoder.decode(batch).columns.column("a").to_pylist() == [0, 1, 2]
    assert schemas.asked == [1]


async def test_json_behind_a_prefix_is_json() -> None:
    """`prefix` skips the five bytes; a value without them is a fault, and nobody is asked for a schema."""
    config = SchemaConfig(format="json", prefix=True, trace=False)
    decoders = Decoders(config, await opened_sink(MemoryStore()), ThreadPoolExecutor(1))
    await decoders.open()
    values = [
        framed(1, b'{"a": 1}'),
        b'{"a": 2}',
        framed(2, b"{"),
        framed(9, b'{"a": 3, "b": "x"}'),
        None,
        framed(1, b""),
    ]
    batch = batch_of(values)
    found = (await decoders.decoder(batch)).decode(batch)
    assert found.columns.to_pylist() == [{"a": 1, "b": None, "_rest": None}, {"a": 3, "b": "x", "_rest": None}]
    assert [fault.offset for fault in found.faults] == [1, 2, 4, 5]
    sliced = Batch("t", 0, 3, 6, batch.records.slice(3))
    assert (await decoders.decoder(sliced)).decode(sliced).columns.column("a").to_pylist() == [3]


def test_a_slice_of_a_batch_is_decoded_as_itself() -> None:
    """Arrow slices keep the bytes of their neighbours."""
    schemas = Schemas(avro(1, record(("a", "long"), ("s", "string"))))
    batch = batch_of([framed(1, zigzag(at) + zigzag(1) + b"%d" % at) for at in range(6)])
    part = Batch("t", 0, 2, 5, batch.records.slice(2, 3))
    decoder = RegisteredDecoder(
        Readers(AvroFormat(), schemas), {"a": "BIGINT", "s": "VARCHAR"}, rest=False, trace=False
    )
    assert decoder.decode(part).columns.to_pylist() == [{"a": at, "s": str(at)} for at in (2, 3, 4)]
    empty = Batch("t", 0, 2, 2, batch.records.slice(2, 0))
    assert decoder.decode(empty).columns.num_rows == 0
