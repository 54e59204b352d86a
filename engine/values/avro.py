"""Avro records behind a registry's prefix, read with the schema that wrote them.

A compiled walk (`engine.values.avro_kernel`) checks each record and finds its fields; scalars become columns from
there. Nested fields are read by fastavro, from bytes that the walk has been over: by itself it takes negative
indexes and overflows the stack on deep nesting. Not here: which column takes a value (`engine.values.typed`).
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
from fastavro.read import LOGICAL_READERS
from fastavro.schema import SchemaParseException, UnknownType

from engine.values import avro_kernel as kernel
from engine.values.documents import DEPTH_MAX, to_text
from engine.values.reasons import excerpt
from engine.values.typed import DECIMAL_DIGITS_MAX, Kind, Source, json_value_of
from engine.values.wire import NO_ID, PREFIX_BYTES, Prefixes, Registered, UnusableSchema, octets_of

NODES_MAX = 100_000  #: of a schema

_SCALARS = {
    "null": kernel.NULL,
    "boolean": kernel.BOOLEAN,
    "int": kernel.INT,
    "long": kernel.LONG,
    "float": kernel.FLOAT,
    "double": kernel.DOUBLE,
    "bytes": kernel.BYTES,
    "string": kernel.STRING,
}
_PLAIN = {
    "boolean": Source(Kind.BOOLEAN),
    "int": Source(Kind.INTEGER),
    "long": Source(Kind.INTEGER),
    "float": Source(Kind.DOUBLE),
    "double": Source(Kind.DOUBLE),
    "bytes": Source(Kind.BYTES),
    "fixed": Source(Kind.BYTES),
    "string": Source(Kind.TEXT),
    "enum": Source(Kind.TEXT),
}

#: By Avro type and logical type. Unknown ones, and finer than a microsecond, are what they are without.
_LOGICAL = {
    ("int", "date"): Source(Kind.DATE),
    ("int", "time-millis"): Source(Kind.TIME, unit_micros=1_000),
    ("long", "time-micros"): Source(Kind.TIME),
    ("long", "timestamp-millis"): Source(Kind.INSTANT, unit_micros=1_000),
    ("long", "timestamp-micros"): Source(Kind.INSTANT),
    ("long", "local-timestamp-millis"): Source(Kind.LOCAL, unit_micros=1_000),
    ("long", "local-timestamp-micros"): Source(Kind.LOCAL),
    ("fixed", "uuid"): Source(Kind.TEXT),
}

_OURS = "headrace-"  # logical types that fastavro gives us to make JSON values of


def _register() -> None:
    """Tell fastavro what nested values become. The names are ours alone, so nobody else's reading changes."""

    def reader(convert: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda value, _writer=None, _reader=None: convert(value)

    for (kind, logical), source in _LOGICAL.items():
        convert = _uuid_text if logical == "uuid" else json_value_of(source)
        LOGICAL_READERS[f"{kind}-{_OURS}{logical}"] = reader(convert)
    for kind in ("bytes", "fixed", "float", "double"):
        LOGICAL_READERS[f"{kind}-{_OURS}plain"] = reader(json_value_of(_PLAIN[kind]))
    for kind in ("bytes", "fixed"):
        LOGICAL_READERS[f"{kind}-{_OURS}decimal"] = _decimal


def _decimal(value: Any, writer: dict[Any, Any] | None, _reader: object = None) -> Any:
    assert writer is not None
    return json_value_of(Source(Kind.DECIMAL, scale=writer["scale"]))(value)


def _uuid_text(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))


_register()


class AvroFormat:
    """Records by the id of the schema that wrote them."""

    kind = "AVRO"

    def sections(
        self, values: pa.BinaryArray, found: Prefixes
    ) -> tuple[dict[tuple[int, tuple[int, ...]], np.ndarray], dict[int, str]]:
        """Rows by schema, and what is wrong with others."""
        ids = np.unique(found.ids[found.ids != NO_ID]).tolist()
        return {(each, ()): np.flatnonzero(found.ids == each) for each in ids}, {}

    def reader(self, schema: Registered, path: tuple[int, ...]) -> AvroReader:
        """Raises UnusableSchema."""
        return AvroReader(schema)


class AvroReader:
    """Reads records of one schema. Raises UnusableSchema for one that is no record, or malformed."""

    def __init__(self, schema: Registered) -> None:
        self._named: dict[str, Any] = {}
        try:
            for reference in schema.references:
                fastavro.parse_schema(json.loads(reference.text), named_schemas=self._named)
            parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=self._named)
        except (SchemaParseException, UnknownType, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnusableSchema(f"it is no Avro schema: {excerpt(str(error))}") from None
        except RecursionError:
            raise UnusableSchema("it is nested too deep") from None
        if not isinstance(parsed, dict) or parsed["type"] not in ("record", "error"):
            raise UnusableSchema("it is not of a record, so there are no columns")
        self.names: list[str] = [field["name"] for field in parsed["fields"]]
        self.fields: dict[str, Source] = {}
        self._types: list[Any] = []
        self._nested: dict[int, Any] = {}
        tables = _Tables(self._named)
        nodes, null_at, scalar = [], [], []
        for number, field in enumerate(parsed["fields"]):
            null, inner = self._optional(field["type"])
            source = _source_of(inner)
            self._types.append(inner)
            null_at.append(null)
            scalar.append(source is not None or inner == "null")
            nodes.append(tables.node(inner))
            if not scalar[-1]:
                self._nested[number] = fastavro.parse_schema(self._emitted(inner, set()))
            self.fields[field["name"]] = self._with_evolution(source or Source(Kind.JSON), field)
        self._plan = tables.plan(nodes, null_at, scalar)

    def open(self, values: pa.BinaryArray) -> AvroRecords:
        octets, offsets = octets_of(values)
        starts, ends = offsets[:-1] + PREFIX_BYTES, offsets[1:].copy()
        shape = (len(self.names), len(values))
        slots = kernel.Slots(
            np.zeros(shape, np.uint8),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(len(values), np.int64),
            np.zeros(len(values), np.int64),
        )
        kernel.walk(self._plan, octets, starts, ends, slots, *np.empty((2, DEPTH_MAX), np.int64))
        return AvroRecords(self, octets, slots)

    def type_of(self, number: int) -> tuple[str, dict[str, Any]]:
        """The name of a field's type, and its definition where it has one."""
        found = self._types[number]
        if isinstance(found, list):
            return "union", {}
        return (found, {}) if isinstance(found, str) else (found["type"], found)

    def nested(self, number: int) -> Any:
        return self._nested[number]

    def _optional(self, schema: Any) -> tuple[int, Any]:
        """Which branch is null, and the other one, resolved, of a union of null and one more; else no branch."""
        inner = self._resolved(schema)
        if isinstance(inner, list) and len(inner) == 2 and "null" in inner and inner != ["null", "null"]:
            null = inner.index("null")
            return null, self._resolved(inner[1 - null])
        return kernel.NO_BRANCH, inner

    def _resolved(self, schema: Any) -> Any:
        """A schema without names for what is defined elsewhere, and without a type that only wraps another."""
        if isinstance(schema, str) and schema not in _SCALARS:
            schema = self._named[schema]
        while isinstance(schema, dict) and not isinstance(schema["type"], str):
            schema = schema["type"]
        if isinstance(schema, dict) and schema["type"] in self._named:
            return self._resolved(schema["type"])
        return schema

    def _with_evolution(self, source: Source, field: Mapping[str, Any]) -> Source:
        default = None
        if "default" in field:
            try:
                default = to_text(self._json_default(field["type"], field["default"]))
            except (TypeError, KeyError, AttributeError, ValueError, IndexError):
                default = None  # not of its type: nobody can use it
        aliases = tuple(each for each in field.get("aliases") or () if isinstance(each, str))
        kept = {name: getattr(source, name) for name in ("kind", "unit_micros", "digits", "scale", "is_unsigned")}
        return Source(**kept, default=default, aliases=aliases)

    def _json_default(self, schema: Any, value: Any) -> Any:
        """The JSON value of a default: as written but for bytes (ISO-8859-1 there) and logical types."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            if value is None:
                return None
            return self._json_default(next(each for each in schema if each != "null"), value)
        name = schema if isinstance(schema, str) else schema["type"]
        if name in ("record", "error"):
            fields = schema["fields"]
            return {
                each["name"]: self._json_default(each["type"], value.get(each["name"], each.get("default")))
                for each in fields
            }
        if name == "array":
            return [self._json_default(schema["items"], each) for each in value]
        if name == "map":
            return {key: self._json_default(schema["values"], each) for key, each in value.items()}
        if name == "null":
            return None
        if name in ("bytes", "fixed"):
            value = value.encode("latin-1")
        source = _source_of(schema)
        assert source is not None
        return _uuid_text(value) if name == "fixed" and source.kind is Kind.TEXT else json_value_of(source)(value)

    def _emitted(self, schema: Any, seen: set[str]) -> Any:
        """A schema for fastavro that gives JSON values; each name is defined where it first comes."""
        if isinstance(schema, list):
            return [self._emitted(each, seen) for each in schema]
        if isinstance(schema, str):
            if schema in seen:
                return schema
            schema = self._named.get(schema, schema)
        if isinstance(schema, str):
            return (
                {"type": schema, "logicalType": f"{_OURS}plain"}
                if schema in ("bytes", "float", "double")
                else schema
            )
        kind = schema["type"]
        if not isinstance(kind, str) or kind in self._named:
            return self._emitted(kind, seen)
        made: dict[str, Any] = {"type": kind}
        if "name" in schema:
            if schema["name"] in seen:
                return schema["name"]
            seen.add(schema["name"])
            made["name"] = schema["name"]
        if kind in ("record", "error"):
            made["type"] = "record"
            made["fields"] = [
                {"name": each["name"], "type": self._emitted(each["type"], seen)} for each in schema["fields"]
            ]
        elif kind == "array":
            made["items"] = self._emitted(schema["items"], seen)
        elif kind == "map":
            made["values"] = self._emitted(schema["values"], seen)
        elif kind == "enum":
            made["symbols"] = schema["symbols"]
        else:
            if kind == "fixed":
                made["size"] = schema["size"]
            source = _source_of(schema)
            assert source is not None
            if source.kind is Kind.DECIMAL:
                made |= {"logicalType": f"{_OURS}decimal", "scale": source.scale}
            elif (kind, schema.get("logicalType")) in _LOGICAL:
                made["logicalType"] = f"{_OURS}{schema['logicalType']}"
            elif kind in ("bytes", "fixed", "float", "double"):
                made["logicalType"] = f"{_OURS}plain"
        return made


class AvroRecords:
    """Records that were walked. ``wrong`` has a reason for each that is malformed."""

    def __init__(self, reader: AvroReader, octets: np.ndarray, slots: kernel.Slots) -> None:
        self._reader = reader
        self._octets = octets
        self._slots = slots
        self.wrong = {
            row: kernel.REASONS[int(slots.fault[row])].format(
                field=f"field {excerpt(reader.names[slots.place[row]])}" if reader.names else "it"
            )
            for row in np.flatnonzero(slots.fault).tolist()
        }

    def column(self, name: str) -> tuple[Source, pa.Array, dict[int, str]]:
        """A field's values, and what is wrong with some."""
        reader = self._reader
        number = reader.names.index(name)
        source, kind = reader.fields[name], reader.type_of(number)[0]
        valid = self._slots.valid[number].view(np.bool_)
        numbers = self._slots.value[number]
        null = ~valid
        if source.kind is Kind.JSON:
            return (source, *self._nested(number, valid))
        if kind == "boolean":
            return source, pa.array(numbers != 0, mask=null), {}
        if kind == "double":
            return source, pa.array(numbers.view(np.float64), mask=null), {}
        if kind == "float":
            singles = numbers.astype(np.uint32).view(np.float32)
            return source, pa.array(singles, mask=null).cast(pa.float64()), {}
        if kind == "enum":
            symbols = pa.array(reader.type_of(number)[1]["symbols"], pa.string())
            return source, symbols.take(pa.array(numbers, mask=null)), {}
        if kind in ("int", "long"):
            return source, pa.array(numbers, mask=null), {}
        octets = self._gathered(number, null)
        if kind == "fixed" and source.kind is Kind.TEXT:
            return source, pa.array([v and _uuid_text(v) for v in octets.to_pylist()], pa.string()), {}
        return (source, *_texts(octets, name)) if kind == "string" else (source, octets, {})

    def _gathered(self, number: int, null: np.ndarray) -> pa.BinaryArray:
        slots = self._slots
        offsets = np.zeros(len(null) + 1, np.int32)
        row = (slots.valid[number], slots.at[number], slots.value[number])
        kernel.gather(self._octets, *row, offsets, np.zeros(0, np.uint8))
        target = np.empty(int(offsets[-1]), np.uint8)
        if len(target):
            kernel.gather(self._octets, *row, offsets, target)
        mask = pa.py_buffer(np.packbits(~null, bitorder="little")) if null.any() else None
        return pa.Array.from_buffers(pa.binary(), len(null), [mask, pa.py_buffer(offsets), pa.py_buffer(target)])

    def _nested(self, number: int, valid: np.ndarray) -> tuple[pa.Array, dict[int, str]]:
        """JSON text of nested values, one by one."""
        texts: list[str | None] = [None] * len(valid)
        wrong: dict[int, str] = {}
        if self._reader.type_of(number)[0] == "null":
            return pa.array(texts, pa.string()), wrong
        schema, name = self._reader.nested(number), self._reader.names[number]
        at, size = self._slots.at[number], self._slots.value[number]
        for row in np.flatnonzero(valid).tolist():
            octets = self._octets[at[row] : at[row] + size[row]].tobytes()
            try:
                value = fastavro.schemaless_reader(io.BytesIO(octets), schema, None)
                texts[row] = None if value is None else to_text(value)
            except (ValueError, TypeError, OverflowError) as error:
                wrong[row] = f"field {excerpt(name)}: {error}"
        return pa.array(texts, pa.string()), wrong


def _texts(octets: pa.BinaryArray, name: str) -> tuple[pa.Array, dict[int, str]]:
    try:
        return octets.cast(pa.string()), {}
    except pa.ArrowInvalid:
        pass
    texts: list[str | None] = []
    wrong = {}
    for row, value in enumerate(octets.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError as broken:
            texts.append(None)
            wrong[row] = f"field {excerpt(name)} is invalid UTF-8 at its byte {broken.start:,}: {broken.reason}"
    return pa.array(texts, pa.string()), wrong


def _source_of(schema: Any) -> Source | None:
    """How the values of a scalar type come, or None for a nested one."""
    if isinstance(schema, list):
        return None
    kind, logical = (schema, None) if isinstance(schema, str) else (schema["type"], schema.get("logicalType"))
    if logical == "decimal" and kind in ("bytes", "fixed"):
        digits, scale = schema.get("precision"), schema.get("scale", 0)
        if isinstance(digits, int) and isinstance(scale, int) and 0 <= scale <= digits and digits > 0:
            return Source(Kind.DECIMAL, digits=min(digits, DECIMAL_DIGITS_MAX + 1), scale=scale)
    if logical == "uuid" and kind == "fixed" and schema["size"] != 16:
        return _PLAIN["fixed"]
    return _LOGICAL.get((str(kind), str(logical))) or _PLAIN.get(kind)


class _Tables:
    """Makes a `kernel.Plan`."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._nodes: dict[str, int] = {}
        self._kinds: list[int] = []
        self._sizes: list[int] = []
        self._firsts: list[int] = []
        self._children: list[int] = []

    def plan(self, fields: list[int], null_at: list[int], scalar: list[bool]) -> kernel.Plan:
        tables = (self._kinds, self._sizes, self._firsts, self._children, fields, null_at, scalar)
        return kernel.Plan(*(np.array(each, np.int64) for each in tables))

    def node(self, schema: Any) -> int:
        if isinstance(schema, list):
            return self._parent(kernel.UNION, schema, None)
        if isinstance(schema, str):
            if schema in self._nodes:
                return self._nodes[schema]
            if schema in _SCALARS:
                self._nodes[schema] = self._add(_SCALARS[schema], 0)
                return self._nodes[schema]
            return self.node(self._named[schema])
        kind, name = schema["type"], schema.get("name")
        if name in self._nodes:
            return self._nodes[name]
        if not isinstance(kind, str) or kind in self._named or kind in _SCALARS:
            return self.node(kind)
        if kind in ("record", "error"):
            return self._parent(kernel.RECORD, [each["type"] for each in schema["fields"]], name)
        if kind == "array":
            return self._parent(kernel.ARRAY, [schema["items"]], None)
        if kind == "map":
            return self._parent(kernel.MAP, [schema["values"]], None)
        size = len(schema["symbols"]) if kind == "enum" else int(schema["size"])
        self._nodes[name] = self._add(kernel.ENUM if kind == "enum" else kernel.FIXED, size)
        return self._nodes[name]

    def _parent(self, kind: int, children: list[Any], name: str | None) -> int:
        node = self._add(kind, len(children))
        if name is not None:
            self._nodes[name] = node
        found = [self.node(each) for each in children]
        self._firsts[node] = len(self._children)
        self._children += found
        return node

    def _add(self, kind: int, size: int) -> int:
        if len(self._kinds) == NODES_MAX:
            raise UnusableSchema(f"it has more than {NODES_MAX:,} types")
        self._kinds.append(kind)
        self._sizes.append(size)
        self._firsts.append(0)
        return len(self._kinds) - 1


def warm() -> None:
    """Have the walk compiled: some seconds, once for a machine."""
    schema = '{"type": "record", "name": "warm", "fields": [{"name": "a", "type": "string"}]}'
    AvroReader(Registered(1, "AVRO", schema)).open(pa.array([b"\0\0\0\0\1\0"])).column("a")
