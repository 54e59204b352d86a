"""Avro in plain Python, for tests: random schemas, values as they are written, and what must come of them.

Written from the specification alone; knows nothing of the decoder. A value of a union is ``(branch, value)``, of a
logical type the number or bytes that stand for it.
"""

from __future__ import annotations

import base64
import datetime
import itertools
import math
import struct
import uuid
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
DAYS = (-719_162, 2_932_896)
MICROS = (DAYS[0] * 86_400_000_000, (DAYS[1] + 1) * 86_400_000_000 - 1)

Schema = Any


def zigzag(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


def kind_of(schema: Schema) -> str:
    return "union" if isinstance(schema, list) else schema if isinstance(schema, str) else schema["type"]


def encode(schema: Schema, value: Any) -> bytes:
    match kind_of(schema):
        case "null":
            return b""
        case "boolean":
            return bytes([value])
        case "int" | "long":
            return zigzag(value)
        case "float":
            return struct.pack("<f", value)
        case "double":
            return struct.pack("<d", value)
        case "string":
            return zigzag(len(value.encode())) + value.encode()
        case "bytes":
            return zigzag(len(value)) + value
        case "fixed":
            return value
        case "enum":
            return zigzag(schema["symbols"].index(value))
        case "array":
            return b"".join([*blocks([encode(schema["items"], each) for each in value]), b"\0"])
        case "map":
            pairs = [encode("string", key) + encode(schema["values"], each) for key, each in value.items()]
            return b"".join([*blocks(pairs), b"\0"])
        case "union":
            return zigzag(value[0]) + encode(schema[value[0]], value[1])
    return b"".join(encode(field["type"], value[field["name"]]) for field in schema["fields"])


def blocks(items: list[bytes]) -> list[bytes]:
    """One block for the first element, its size beside it, and one for the others."""
    if not items:
        return []
    first = [zigzag(-1), zigzag(len(items[0])), items[0]]
    return [*first, zigzag(len(items) - 1), *items[1:]] if len(items) > 1 else first


def logical_of(schema: Schema) -> str | None:
    return schema.get("logicalType") if isinstance(schema, dict) else None


def as_json(schema: Schema, value: Any) -> Any:
    """The JSON value that a value stands for; decimals as Decimal."""
    match kind_of(schema), logical_of(schema):
        case "null", _:
            return None
        case _, "decimal":
            return as_column(schema, value)
        case _, "date":
            return as_column(schema, value).isoformat()
        case _, "time-millis" | "time-micros":
            return trimmed(as_column(schema, value).isoformat())
        case _, "timestamp-millis" | "timestamp-micros":
            return trimmed(as_column(schema, value).replace(tzinfo=None).isoformat()) + "Z"
        case _, "local-timestamp-millis" | "local-timestamp-micros":
            return trimmed(as_column(schema, value).isoformat())
        case "fixed", "uuid":
            return str(uuid.UUID(bytes=value))
        case "bytes" | "fixed", _:
            return base64.b64encode(value).decode()
        case "float", _:
            return struct.unpack("<f", struct.pack("<f", value))[0]
        case "array", _:
            return [as_json(schema["items"], each) for each in value]
        case "map", _:
            return {key: as_json(schema["values"], each) for key, each in value.items()}
        case "union", _:
            return as_json(schema[value[0]], value[1])
        case "record", _:
            return {field["name"]: as_json(field["type"], value[field["name"]]) for field in schema["fields"]}
    return value


def as_column(schema: Schema, value: Any) -> Any:
    """What an inferred column holds of a scalar."""
    micros = 1_000 if (logical := logical_of(schema) or "").endswith("millis") else 1
    match logical:
        case "decimal":
            number = int.from_bytes(value, "big", signed=True)
            return Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -schema["scale"]))
        case "date":
            return datetime.date(1970, 1, 1) + datetime.timedelta(days=value)
        case "time-millis" | "time-micros":
            return (datetime.datetime.min + datetime.timedelta(microseconds=value * micros)).time()
        case "timestamp-millis" | "timestamp-micros":
            return EPOCH + datetime.timedelta(microseconds=value * micros)
        case "local-timestamp-millis" | "local-timestamp-micros":
            return EPOCH.replace(tzinfo=None) + datetime.timedelta(microseconds=value * micros)
    kind = kind_of(schema)
    return (
        value if kind in ("bytes", "double") or (kind == "fixed" and logical != "uuid") else as_json(schema, value)
    )


def trimmed(text: str) -> str:
    return text.rstrip("0") if "." in text else text


def is_nested(schema: Schema) -> bool:
    return kind_of(schema) in ("array", "map", "record", "union", "null")


def optional(schema: Schema, value: Any) -> tuple[Schema, Any]:
    """A field's type and value, seen through a union of null and one other type."""
    if isinstance(schema, list) and len(schema) == 2 and "null" in schema:
        other = next(each for each in schema if each != "null")
        return other, None if schema[value[0]] == "null" else value[1]
    return schema, value


def same(found: Any, expected: Any) -> bool:
    """Whether JSON, loaded with numbers kept as text, is the value that was expected."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and list(found) == list(expected)
            and all(map(same, found.values(), expected.values()))
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return isinstance(found, Number) and float(found) == expected
    if isinstance(expected, int | Decimal) and not isinstance(expected, bool):
        return isinstance(found, Number) and Decimal(found) == expected
    return type(found) is type(expected) and found == expected


class Number(str):
    """A JSON number as it is written."""


_names = itertools.count()

INT = st.integers(-(2**31), 2**31 - 1)
LONG = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
DOUBLE = st.floats(allow_nan=False, allow_infinity=False)


def named(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "name": f"T{next(_names)}", **more}


def logical(kind: str, name: str, low: int, high: int) -> st.SearchStrategy[tuple[Schema, st.SearchStrategy[Any]]]:
    return st.just(({"type": kind, "logicalType": name}, st.integers(low, high)))


def decimals() -> st.SearchStrategy[tuple[Schema, st.SearchStrategy[Any]]]:
    def made(digits: int, scale: int, is_fixed: bool) -> tuple[Schema, st.SearchStrategy[Any]]:
        size = 17
        more = {"logicalType": "decimal", "precision": digits, "scale": min(scale, digits)}
        schema = named("fixed", size=size, **more) if is_fixed else {"type": "bytes", **more}
        numbers = st.integers(-(10**digits) + 1, 10**digits - 1)
        return schema, numbers.map(lambda number: number.to_bytes(size, "big", signed=True))

    return st.builds(made, st.integers(1, 38), st.integers(0, 38), st.booleans())


def scalars() -> st.SearchStrategy[tuple[Schema, st.SearchStrategy[Any]]]:
    return st.one_of(
        st.sampled_from(
            [
                ("boolean", st.booleans()),
                ("int", INT),
                ("long", LONG),
                ("float", SINGLE),
                ("double", DOUBLE),
                ("string", TEXT),
                ("bytes", st.binary(max_size=8)),
                ({"type": "string", "logicalType": "uuid"}, TEXT),
            ]
        ),
        st.integers(0, 5).map(lambda size: (named("fixed", size=size), st.binary(min_size=size, max_size=size))),
        st.builds(lambda: (named("fixed", size=16, logicalType="uuid"), st.binary(min_size=16, max_size=16))),
        st.builds(lambda: (named("enum", symbols=["A", "B", "C"]), st.sampled_from("ABC"))),
        logical("int", "date", *DAYS),
        logical("int", "time-millis", 0, 86_399_999),
        logical("long", "time-micros", 0, 86_399_999_999),
        logical("long", "timestamp-micros", *MICROS),
        logical("long", "timestamp-millis", -(-MICROS[0] // 1_000), MICROS[1] // 1_000),
        logical("long", "local-timestamp-micros", *MICROS),
        decimals(),
    )


def extended(inner: Any) -> Any:
    """Arrays, maps, records and unions of types."""

    def record(types: list[Any]) -> Any:
        fields = [{"name": f"f{at}", "type": schema} for at, (schema, _) in enumerate(types)]
        values = st.fixed_dictionaries({f"f{at}": value for at, (_, value) in enumerate(types)})
        return named("record", fields=fields), values

    def union(types: list[Any]) -> Any:
        kept: dict[str, Any] = {"null": ("null", st.none())}
        for schema, value in types:
            kind = kind_of(schema)
            if kind != "union":
                kept[schema["name"] if kind in ("record", "enum", "fixed") else kind] = (schema, value)
        members = list(kept.values())[::-1]
        branches = [value.map(lambda each, at=at: (at, each)) for at, (_, value) in enumerate(members)]
        return [schema for schema, _ in members], st.one_of(branches)

    return st.one_of(
        inner.map(lambda each: ({"type": "array", "items": each[0]}, st.lists(each[1], max_size=3))),
        inner.map(lambda each: ({"type": "map", "values": each[0]}, st.dictionaries(TEXT, each[1], max_size=3))),
        st.lists(inner, max_size=3).map(record),
        st.lists(inner, min_size=1, max_size=3).map(union),
    )


@st.composite
def records(draw: st.DrawFn) -> tuple[Schema, list[dict[str, Any]]]:
    """A record's schema, and values of it."""
    kinds = st.recursive(scalars(), extended, max_leaves=4)
    types = draw(st.lists(st.one_of(scalars(), kinds), min_size=1, max_size=5))
    fields = [{"name": f"c{at}", "type": schema} for at, (schema, _) in enumerate(types)]
    values = st.fixed_dictionaries({f"c{at}": value for at, (_, value) in enumerate(types)})
    return named("record", fields=fields), draw(st.lists(values, min_size=1, max_size=4))


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(found, float) and math.isnan(found)
    return bool(found == expected)
