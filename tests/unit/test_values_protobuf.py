"""Protobuf values behind a registry's prefix: columns, message types, schemas as text or descriptors, faults."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from engine.values.protobuf import ProtobufFormat, ProtobufReader
from engine.values.registered import Readers, RegisteredDecoder
from engine.values.wire import Reference, Registered, UnusableSchema
from tests.unit.avro_oracle import zigzag
from tests.unit.test_values_avro import Schemas, framed

MONEY = Reference(
    "common/money.proto",
    'syntax = "proto3"; package common; message Money { int64 units = 1; string currency = 2; }',
)
TEXT = """
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "common/money.proto";
enum Color { RED = 0; BLUE = 5; }
message Order {
  map<string, int64> counts = 7;
  message Inner { bool ok = 1; }
  int64 id = 1;
  string name = 2;
  optional int32 maybe = 3;
  google.protobuf.Timestamp at = 4;
  Color color = 5;
  repeated string tags = 6;
  common.Money price = 8;
  google.protobuf.StringValue wrapped = 9;
  bytes raw = 10;
  uint64 big = 11;
  double d = 12;
  oneof choice { string a = 15; int32 b = 16; }
}
message Second { Order.Inner inner = 1; }
"""
ORDER = Registered(1, "PROTOBUF", TEXT, (MONEY,))
FIRST, SECOND, INNER = b"\0", zigzag(1) + zigzag(1), zigzag(2) + zigzag(0) + zigzag(0)


def message(path: tuple[int, ...] = (0,), schema: Registered = ORDER, **fields: Any) -> Any:
    return ProtobufReader(schema, path).message(**fields)


def batch_of(values: Sequence[bytes | None]) -> Batch:
    return from_rows(
        "t", 0, [(at, 0, None, value, ()) for at, value in enumerate(values)], start=0, end=len(values)
    )


def decoded(
    values: Sequence[bytes | None], *schemas: Registered, columns: dict[str, str] | None = None, rest: bool = False
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    readers = Readers(ProtobufFormat(), Schemas(*(schemas or (ORDER,))))
    batch = batch_of(values)
    wanted: dict[str, str] | pa.Schema = readers.infer(batch) if columns is None else columns
    found = RegisteredDecoder(readers, wanted, rest=rest, trace=False).decode(batch)
    found.columns.validate(full=True)
    return found.columns.to_pylist(), {fault.offset: fault.reason for fault in found.faults}


FULL: dict[str, Any] = {
    "id": 1,
    "name": "x",
    "maybe": 0,
    "at": {"seconds": 1_700_000_000, "nanos": 5_000},
    "color": 5,
    "tags": ["a", "b"],
    "counts": {"k": 2**60},
    "price": {"units": 5, "currency": "EUR"},
    "wrapped": {"value": "w"},
    "raw": b"\0\1",
    "big": 2**64 - 1,
    "d": 1.5,
    "b": 0,
}


def test_fields_become_columns() -> None:
    """Scalars as their types, times, wrappers and enums as what they mean, others as ProtoJSON; absent is NULL."""
    rows, faults = decoded([framed(1, FIRST + message(**FULL).SerializeToString()), framed(1, FIRST)])
    assert faults == {}
    assert rows[0] == {
        **FULL,
        "at": datetime(2023, 11, 14, 22, 13, 20, 5, tzinfo=UTC),
        "color": "BLUE",
        "tags": '["a","b"]',
        "counts": '{"k":"1152921504606846976"}',
        "price": '{"units":"5","currency":"EUR"}',
        "wrapped": "w",
        "a": None,
    }
    empty = {"id": 0, "name": "", "color": "RED", "tags": "[]", "counts": "{}", "raw": b"", "big": 0, "d": 0.0}
    assert rows[1] == {**dict.fromkeys(rows[0]), **empty}


def test_message_indexes_name_the_type() -> None:
    """The short form, its long form, other types and nested ones; entries of maps are not counted."""
    order = message(id=7).SerializeToString()
    inner = message((0, 0), ok=True)
    values = [
        framed(1, FIRST + order),
        framed(1, zigzag(1) + zigzag(0) + order),
        framed(1, INNER + inner.SerializeToString()),
        framed(1, SECOND + message((1,), inner={"ok": True}).SerializeToString()),
        framed(1, FIRST + order),
    ]
    rows, faults = decoded(values, columns={"id": "BIGINT", "ok": "BOOLEAN"}, rest=True)
    assert faults == {}
    assert [(row["id"], row["ok"]) for row in rows] == [(7, None), (7, None), (None, True), (None, None), (7, None)]
    assert [row["_rest"] for row in rows[2:4]] == [None, '{"inner":{"ok":true}}']


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "the value is empty"),
        (None, "the value is null"),
        (b"{}", "does not start with a zero byte"),
        (framed(1, b""), "message indexes behind the schema id are malformed"),
        (framed(1, b"\x80" * 9), "message indexes behind the schema id are malformed"),
        (framed(1, zigzag(-1)), "message indexes behind the schema id are malformed"),
        (framed(1, zigzag(1) + zigzag(9)), "schema 1 cannot be used: it has no message type at [9]"),
        (framed(2, FIRST), "the registry has no schema 2"),
        (framed(3, FIRST), "schema 3 cannot be used: it is AVRO and not PROTOBUF"),
        (framed(4, FIRST), "schema 4 cannot be used: protoc refuses it: the schema:1:"),
        (framed(5, FIRST), "schema 5 cannot be used: protoc refuses it: gone.proto: File not found"),
        (framed(6, FIRST), "schema 6 cannot be used: its reference '../../x.proto' leads out of its directory"),
        (framed(1, FIRST + message(**FULL).SerializeToString()[:-1]), "the value is no shop.Order"),
        (framed(1, FIRST + b"\x12\x01\xff"), "the value is no shop.Order"),
        (framed(1, FIRST + b"\xf8\x06\x01"), "the value has fields that shop.Order does not have"),
        (framed(1, FIRST + message(color=7).SerializeToString()), 'field "color": shop.Color has no value 7'),
        (framed(1, FIRST + message(at={"nanos": 1}).SerializeToString()), 'column "at" wants TIMESTAMPTZ'),
        (framed(1, FIRST + message(at={"seconds": 2**62}).SerializeToString()), 'field "at"'),
    ],
)
def test_a_bad_record_is_named_and_costs_itself(value: bytes | None, reason: str) -> None:
    """The reason says what is wrong; the records around it are rows."""
    good = framed(1, FIRST + message(id=7).SerializeToString())
    others = (
        Registered(3, "AVRO", '"string"'),
        Registered(4, "PROTOBUF", "message {"),
        Registered(5, "PROTOBUF", 'syntax = "proto3"; import "gone.proto"; message M { int32 a = 1; }'),
        Registered(6, "PROTOBUF", 'syntax = "proto3"; message M {}', (Reference("../../x.proto", ""),)),
    )
    rows, faults = decoded([good, value, good], ORDER, *others)
    assert [row["id"] for row in rows] == [7, 7]
    assert list(faults) == [1]
    assert reason in faults[1]


def descriptor(name: str = "any.proto", dependency: Sequence[str] = ()) -> FileDescriptorProto:
    file = FileDescriptorProto(name=name, package="q", syntax="proto3", dependency=dependency)
    file.message_type.add(name="A").field.add(
        name="x", number=1, type=FieldDescriptorProto.TYPE_INT64, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    return file


def encoded(file: FileDescriptorProto) -> str:
    return base64.b64encode(file.SerializeToString()).decode()


def test_a_schema_may_be_a_descriptor() -> None:
    """Python's and .NET's clients register descriptors in base64, with references alike; text may refer to them."""
    user = descriptor("user.proto", ["lib/any.proto", "google/protobuf/timestamp.proto"])
    user.message_type[0].field.add(
        name="other",
        number=2,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".q2.B",
        label=FieldDescriptorProto.LABEL_OPTIONAL,
    )
    library = descriptor("elsewhere.proto")
    library.package = "q2"
    library.message_type[0].name = "B"
    reference = Reference("lib/any.proto", encoded(library))
    text = 'syntax = "proto3"; import "lib/any.proto"; message A { int64 x = 1; q2.B other = 2; }'
    for schema in (
        Registered(1, "PROTOBUF", encoded(user), (reference,)),
        Registered(1, "PROTOBUF", text, (reference,)),
    ):
        value = framed(1, FIRST + message(schema=schema, x=5, other={"x": 6}).SerializeToString())
        assert decoded([value], schema) == ([{"x": 5, "other": '{"x":"6"}'}], {})


def test_a_descriptor_that_imports_what_is_missing_is_unusable() -> None:
    """And one that imports itself."""
    with pytest.raises(UnusableSchema, match=r"imports 'gone\.proto', which its references do not have"):
        ProtobufReader(Registered(1, "PROTOBUF", encoded(descriptor(dependency=["gone.proto"]))), (0,))
    with pytest.raises(UnusableSchema, match="imports itself"):
        ProtobufReader(Registered(1, "PROTOBUF", encoded(descriptor(dependency=["any.proto"]))), (0,))


def test_nanoseconds_are_kept_as_text() -> None:
    """A column of text or JSON takes times that are finer than a microsecond."""
    value = framed(1, FIRST + message(at={"seconds": 1, "nanos": 1}).SerializeToString())
    assert decoded([value], columns={"at": "VARCHAR"})[0] == [{"at": "1970-01-01T00:00:01.000000001Z"}]
    assert decoded([value], columns={"at": "JSON"})[0] == [{"at": '"1970-01-01T00:00:01.000000001Z"'}]


def varint(number: int) -> bytes:
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


NUMBERS = Registered(
    1,
    "PROTOBUF",
    'syntax = "proto3"; message N { int64 i = 1; sint32 z = 2; fixed64 u = 3; float f = 4; double d = 5; '
    "string s = 6; bytes b = 7; bool t = 8; optional string o = 9; }",
)
NUMBER_READERS = Readers(ProtobufFormat(), Schemas(NUMBERS))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.integers(-(2**31), 2**31 - 1),
            st.integers(0, 2**64 - 1),
            st.floats(width=32, allow_nan=False),
            st.floats(allow_nan=False),
            st.text(st.characters(exclude_categories=["Cs"])),
            st.binary(),
            st.booleans(),
            st.none() | st.text("ab"),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_random_messages_are_what_was_written(rows: list[tuple[Any, ...]]) -> None:
    """Messages encoded by hand, field by field."""
    values = []
    for i, z, u, f, d, s, b, t, o in rows:
        octets = b"\x08" + varint(i & (2**64 - 1)) + b"\x10" + varint(((z << 1) ^ (z >> 31)) & (2**32 - 1))
        octets += b"\x19" + struct.pack("<Q", u) + b"\x25" + struct.pack("<f", f) + b"\x29" + struct.pack("<d", d)
        octets += b"\x32" + varint(len(s.encode())) + s.encode() + b"\x3a" + varint(len(b)) + b
        octets += b"\x40" + bytes([t])
        octets += b"" if o is None else b"\x4a" + varint(len(o)) + o.encode()
        values.append(framed(1, FIRST + octets))
    batch = batch_of(values)
    decoder = RegisteredDecoder(NUMBER_READERS, NUMBER_READERS.infer(batch), rest=False, trace=False)
    found = decoder.decode(batch)
    assert found.faults == ()
    assert [tuple(row.values()) for row in found.columns.to_pylist()] == rows


def test_mutated_bytes_cost_no_more_than_their_record() -> None:
    """Each record with random bytes changed is a row or a fault, and the good ones stay as they were."""
    good = FIRST + message(**FULL).SerializeToString()
    rng = random.Random(5)
    values = []
    for _ in range(1_000):
        octets = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        values += [framed(1, bytes(octets)), framed(1, good)]
    rows, faults = decoded(values)
    assert len(rows) >= 1_000
    assert all(offset % 2 == 0 for offset in faults)
    assert len(faults) > 100
