"""Rows of a pipeline as messages: which column is the key, which the value, and rows as JSON objects.

Column by column, by compiled code (`connectors.kafka.sink.kernel`); only nested values become Python objects.
Blocks, so it runs in a thread. Not here: partitions and record batches (`batches`).

JSON values: times as ISO 8601, bytes as base64, numbers that are not finite as the strings "NaN", "Infinity" and
"-Infinity"; a column that holds JSON gives its document.
"""

from __future__ import annotations

import base64
import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from connectors.kafka.sink import kernel
from engine.errors import RowsRefused, SinkMismatch

#: Where the field of a column is marked that holds JSON documents as text.
TYPE_KEY, JSON_TYPE = b"headrace.type", b"JSON"

NO_BYTES = np.empty(0, np.uint8)

#: The years 0000 to 9999, in seconds since the epoch.
YEARS = (-62_167_219_200, 253_402_300_800)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of bytes in flat buffers: row ``i`` is ``data[offsets[i]:offsets[i + 1]]``, null where not valid."""

    offsets: kernel.Longs
    data: kernel.Bytes
    valid: kernel.Bytes

    def __len__(self) -> int:
        return self.offsets.size - 1

    @property
    def nbytes(self) -> int:
        """Bytes of its rows, and of what says where they are."""
        return int(self.offsets[-1] - self.offsets[0]) + self.offsets.nbytes + self.valid.nbytes

    @property
    def lengths(self) -> kernel.Longs:
        lengths = np.diff(self.offsets)
        return lengths if not self.valid.size else np.where(self.valid, lengths, 0)

    @classmethod
    def of(cls, array: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> Column:
        """``array``, which casts to ``kind``, large_binary or large_string."""
        chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        flat = pa.concat_arrays([chunk.cast(kind) for chunk in chunks] or [pa.array([], kind)])
        _, offsets, data = flat.buffers()
        ends = np.frombuffer(offsets, np.int64)[flat.offset : flat.offset + len(flat) + 1]
        bytes_ = NO_BYTES if data is None else np.frombuffer(data, np.uint8)
        return cls(ends, bytes_, valid_of(flat))

    @classmethod
    def joined(cls, columns: Sequence[Column]) -> Column:
        """All rows, one column after the other."""
        if len(columns) == 1:
            return columns[0]
        offsets, at = [np.zeros(1, np.int64)], 0
        for column in columns:
            offsets.append(column.offsets[1:] - column.offsets[0] + at)
            at = int(offsets[-1][-1]) if len(column) else at
        data = np.concatenate([column.data[column.offsets[0] : column.offsets[-1]] for column in columns])
        valid = NO_BYTES
        if any(column.valid.size for column in columns):
            valid = np.concatenate(
                [each.valid if each.valid.size else np.ones(len(each), np.uint8) for each in columns]
            )
        return cls(np.concatenate(offsets), data, valid)

    @classmethod
    def of_values(cls, values: Sequence[bytes | None]) -> Column:
        return cls.of(pa.array(values, pa.large_binary()), pa.large_binary())

    @classmethod
    def of_nulls(cls, count: int) -> Column:
        return cls(np.zeros(count + 1, np.int64), NO_BYTES, np.zeros(count, np.uint8))


@dataclass(frozen=True, slots=True)
class Messages:
    """Keys and values, equally many."""

    keys: Column
    values: Column

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @classmethod
    def joined(cls, messages: Sequence[Messages]) -> Messages:
        return cls(
            Column.joined([each.keys for each in messages]), Column.joined([each.values for each in messages])
        )


class MessageFormat:
    """``key`` and ``value`` name columns. Without ``value`` it is the row as a JSON object, without ``omit``."""

    def __init__(self, *, key: str | None = None, value: str | None = None, omit: Sequence[str] = ()) -> None:
        self.key = key
        self.value = value
        self.omit = frozenset(omit)

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raise SinkMismatch, beginning with ``where``, for rows that cannot be made into messages."""
        faults = []
        for setting, name in (("key", self.key), ("value", self.value)):
            if name is None:
                continue
            if name not in schema.names:
                faults.append(f'{setting} = "{name}": the rows have {", ".join(schema.names)}')
                continue
            kind = schema.field(name).type
            takes_integers = setting == "key"
            if not (_is_bytes(kind) or _is_text(kind) or (takes_integers and pa.types.is_integer(kind))):
                valid = "text, bytes and integers" if takes_integers else "text and bytes"
                faults.append(f'{setting} = "{name}" is a column of {kind}; valid are {valid}')
        if self.value is None and not [name for name in schema.names if name not in self.omit]:
            faults.append(f"omit = {sorted(self.omit)} leaves no column for the value")
        if faults:
            raise SinkMismatch("\n  ".join([f"{where}: rows cannot be made into messages:", *faults]))

    def messages(self, rows: pa.Table) -> Messages:
        """One message for each row. Raises RowsRefused for text that a column of JSON should not hold."""
        keys = Column.of_nulls(rows.num_rows)
        if self.key is not None:
            array = rows.column(self.key)
            keys = Column.of(
                array.cast(pa.string()) if pa.types.is_integer(array.type) else array, pa.large_binary()
            )
        if self.value is not None:
            return Messages(keys, Column.of(rows.column(self.value), pa.large_binary()))
        names = [name for name in rows.column_names if name not in self.omit]
        return Messages(keys, json_objects(rows.select(names)))


class _Part(Protocol):
    """A column that the kernel can write: what each row takes, and then the rows behind their ``name``."""

    def measure(self, lengths: kernel.Longs) -> None: ...

    def put(self, name: kernel.Bytes, cursors: kernel.Longs, out: kernel.Bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Texts:
    column: Column
    kind: int

    def measure(self, lengths: kernel.Longs) -> None:
        kernel.text_lengths(self.column.offsets, self.column.data, self.column.valid, self.kind, lengths)

    def put(self, name: kernel.Bytes, cursors: kernel.Longs, out: kernel.Bytes) -> None:
        column = self.column
        kernel.put_text(column.offsets, column.data, column.valid, self.kind, name, cursors, out)


@dataclass(frozen=True, slots=True)
class _Integers:
    values: kernel.Longs
    valid: kernel.Bytes

    def measure(self, lengths: kernel.Longs) -> None:
        kernel.integer_lengths(self.values, self.valid, lengths)

    def put(self, name: kernel.Bytes, cursors: kernel.Longs, out: kernel.Bytes) -> None:
        kernel.put_integers(self.values, self.valid, name, cursors, out)


@dataclass(frozen=True, slots=True)
class _Times:
    values: kernel.Longs
    valid: kernel.Bytes
    fraction: int
    is_utc: bool

    def measure(self, lengths: kernel.Longs) -> None:
        size = len('"0000-00-00T00:00:00"') + bool(self.fraction) + self.fraction + self.is_utc
        lengths += np.where(self.valid, size, len("null")) if self.valid.size else size

    def put(self, name: kernel.Bytes, cursors: kernel.Longs, out: kernel.Bytes) -> None:
        per_second = 10**self.fraction
        kernel.put_times(self.values, self.valid, per_second, self.fraction, self.is_utc, name, cursors, out)


def json_objects(rows: pa.Table) -> Column:
    """Each row as a JSON object. Raises RowsRefused for a row whose JSON column holds no JSON."""
    count = rows.num_rows
    lengths = np.ones(count, np.int64)  # the closing brace
    parts: list[tuple[kernel.Bytes, _Part]] = []
    for index, field in enumerate(rows.schema):
        name = np.frombuffer((b"," if index else b"{") + orjson.dumps(field.name) + b":", np.uint8)
        part = _part(field, rows.column(index))
        lengths += name.size
        part.measure(lengths)
        parts.append((name, part))
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    cursors = offsets[:-1].copy()
    for name, part in parts:
        part.put(name, cursors, out)
    assert np.array_equal(cursors + 1, offsets[1:]), "a row's JSON is not as long as it was measured to be"
    out[cursors] = ord("}")
    return Column(offsets, out, NO_BYTES)


def _part(field: pa.Field, array: pa.ChunkedArray) -> _Part:
    kind, text = field.type, pa.large_string()
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return _Integers(*_longs(array))
    if pa.types.is_floating(kind):
        # Arrow has no text for half precision.
        wide = array.cast(pa.float32()) if pa.types.is_float16(kind) else array
        return _Texts(Column.of(wide.cast(text), text), kernel.FLOAT)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return _Texts(Column.of(array.cast(text), text), kernel.RAW)
    if _is_text(kind):
        if (field.metadata or {}).get(TYPE_KEY) == JSON_TYPE:
            return _Texts(_documents(field.name, array), kernel.RAW)
        return _Texts(Column.of(array, text), kernel.STRING)
    if pa.types.is_timestamp(kind):
        return _times(kind, array)
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return _Texts(Column.of(array.cast(pa.string()), text), kernel.STRING)
    if pa.types.is_null(kind):
        return _Texts(Column.of_nulls(len(array)), kernel.RAW)
    dumped = [None if value is None else orjson.dumps(value, _plain, _OPTIONS) for value in array.to_pylist()]
    return _Texts(Column.of_values(dumped), kernel.RAW)


def _longs(array: pa.ChunkedArray) -> tuple[kernel.Longs, kernel.Bytes]:
    """Integers, or what stands for times, with 0 where there is none."""
    flat = pa.concat_arrays([chunk.cast(pa.int64()) for chunk in array.chunks])
    return flat.fill_null(0).to_numpy(zero_copy_only=False), valid_of(flat)


def _times(kind: pa.DataType, array: pa.ChunkedArray) -> _Part:
    fraction = {"s": 0, "ms": 3, "us": 6, "ns": 9}[kind.unit]
    values, valid = _longs(array)
    first, last = YEARS[0] * 10**fraction, YEARS[1] * 10**fraction
    if values.size and first <= values.min() and values.max() < last:
        return _Times(values, valid, fraction, kind.tz is not None)
    # Years of other than four digits: as Arrow has them, which makes five and a sign of them.
    if kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    texts = pc.replace_substring(array.cast(pa.string()), " ", "T")
    return _Texts(Column.of(texts, pa.large_string()), kernel.STRING)


def _documents(name: str, array: pa.ChunkedArray) -> Column:
    rows, reasons = [], []
    for row, value in enumerate(array.to_pylist()):
        if value is None:
            continue
        try:
            orjson.loads(value)
        except orjson.JSONDecodeError as error:
            rows.append(row)
            reasons.append(f"column {name!r} holds no JSON: {error}")
    if rows:
        raise RowsRefused(rows, reasons)
    return Column.of(array, pa.large_string())


_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return orjson.Fragment(str(value))
    return str(value)


def valid_of(array: pa.Array) -> kernel.Bytes:
    """One byte for each row, or nothing where no row is null."""
    if not array.null_count:
        return NO_BYTES
    found: kernel.Bytes = np.asarray(array.is_valid()).astype(np.uint8)
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
