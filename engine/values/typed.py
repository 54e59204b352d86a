"""Values that a schema has typed already (Avro's, Protobuf's) as columns: the tables of ``docs/values.md``.

Each value stands for a JSON value, and a column takes it as it takes that one (`engine.values.coercion`). For the
pairs of types that are common there is a way over whole columns; both ways give the same. Not here: where
values come from (`engine.values.avro`, `engine.values.protobuf`).
"""

from __future__ import annotations

import base64
import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from engine.values.coercion import Column, column
from engine.values.reasons import Literal
from engine.values.schema import declared, is_reserved
from engine.values.types import column_field, type_name_of

#: Column types beside those of `engine.values.types`, which JSON has no values for.
OWN_TYPES: dict[str, pa.DataType] = {"BLOB": pa.binary(), "TIME": pa.time64("us")}
_ALIASES = {"BYTEA": "BLOB", "VARBINARY": "BLOB", "BINARY": "BLOB"}

COLUMNS_MAX = 1_000  #: fields beyond these are left to ``_rest``
DECIMAL_DIGITS_MAX = 38

#: What a later schema's records get where they lack the field, as JSON text; and names that it had before.
DEFAULT_KEY, ALIASES_KEY = b"headrace.default", b"headrace.aliases"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = date(1970, 1, 1)
_DAYS_MIN, _DAYS_MAX = date.min.toordinal() - _DAY.toordinal(), date.max.toordinal() - _DAY.toordinal()
_DAY_MICROS = 86_400_000_000
_MICROS_MIN, _MICROS_MAX = _DAYS_MIN * _DAY_MICROS, (_DAYS_MAX + 1) * _DAY_MICROS - 1


class Kind(enum.StrEnum):
    """What values are, with the Arrow type that they come in."""

    BOOLEAN = "boolean"  #: bool
    INTEGER = "integer"  #: int64 or uint64
    DOUBLE = "number"  #: double
    TEXT = "string"  #: string
    BYTES = "bytes"  #: binary
    DATE = "date"  #: int64, days since 1970
    TIME = "time"  #: int64, microseconds since midnight
    INSTANT = "instant"  #: int64, microseconds since 1970 in UTC
    LOCAL = "local time"  #: int64, microseconds since 1970 where no zone is known
    DECIMAL = "decimal"  #: binary, the unscaled number in two's complement, big endian
    JSON = "nested"  #: string, JSON text


@dataclass(frozen=True, slots=True)
class Source:
    """A field's values. ``unit_micros`` (of times) multiplies them to microseconds; ``digits`` and ``scale`` are of
    decimals. ``default`` (JSON text) and ``aliases`` are for records of schemas without the field."""

    kind: Kind
    unit_micros: int = 1
    digits: int = 0
    scale: int = 0
    is_unsigned: bool = False
    default: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def column_type(self) -> str:
        """The column type that takes all of these values."""
        match self.kind:
            case Kind.BOOLEAN:
                return "BOOLEAN"
            case Kind.INTEGER:
                return "UBIGINT" if self.is_unsigned else "BIGINT"
            case Kind.DOUBLE:
                return "DOUBLE"
            case Kind.TEXT:
                return "VARCHAR"
            case Kind.BYTES:
                return "BLOB"
            case Kind.DATE:
                return "DATE"
            case Kind.TIME:
                return "TIME"
            case Kind.INSTANT:
                return "TIMESTAMPTZ"
            case Kind.LOCAL:
                return "TIMESTAMP"
            case Kind.DECIMAL if self.digits <= DECIMAL_DIGITS_MAX:
                return f"DECIMAL({self.digits},{self.scale})"
        return "JSON"


def typed_fields(columns: Mapping[str, str] | pa.Schema) -> list[pa.Field]:
    """The user's columns, checked, as `engine.values.schema.declared` does, with the types of `OWN_TYPES` too."""
    if isinstance(columns, pa.Schema):
        names = {field.name: _name_of(field) for field in columns}
        kept = {field.name: field.metadata or {} for field in columns}
    else:
        names = {name: _ALIASES.get(kind.strip().upper(), kind.strip().upper()) for name, kind in columns.items()}
        names = {name: kind if kind in OWN_TYPES else columns[name] for name, kind in names.items()}
        kept = {}
    checked = declared({name: "JSON" if kind in OWN_TYPES else kind for name, kind in names.items()})
    fields = []
    for field in checked:
        own = OWN_TYPES.get(names[field.name])
        made = field if own is None else pa.field(field.name, own)
        ours = {key: kept[field.name][key] for key in (DEFAULT_KEY, ALIASES_KEY) if key in kept.get(field.name, {})}
        fields.append(made.with_metadata({**(made.metadata or {}), **ours}) if ours else made)
    return fields


def _name_of(field: pa.Field) -> str:
    for name, kind in OWN_TYPES.items():
        if field.type == kind:
            return name
    return type_name_of(field)


def inferred(fields: Mapping[str, Source]) -> pa.Schema:
    """Columns for a schema's fields; those that no column can have are left to ``_rest``."""
    found: list[pa.Field] = []
    folded: set[str] = set()
    for name, source in fields.items():
        usable = name.isprintable() and not is_reserved(name) and name.casefold() not in folded
        if name and usable and len(found) < COLUMNS_MAX:
            folded.add(name.casefold())
            kind = source.column_type
            field = pa.field(name, OWN_TYPES[kind]) if kind in OWN_TYPES else column_field(name, kind)
            metadata = dict(field.metadata or {})
            if source.default is not None and source.default != "null":
                metadata[DEFAULT_KEY] = source.default.encode()
            if source.aliases:
                metadata[ALIASES_KEY] = orjson.dumps(source.aliases)
            found.append(field.with_metadata(metadata or None))
    return pa.schema(typed_fields(pa.schema(found)))


class TypedColumn:
    """One column: how values of any `Source` become its array."""

    def __init__(self, field: pa.Field) -> None:
        self.field = field
        self.type_name = _name_of(field)
        metadata = field.metadata or {}
        self.names: tuple[str, ...] = (field.name, *orjson.loads(metadata.get(ALIASES_KEY, b"[]")))
        self._default = metadata.get(DEFAULT_KEY)
        self._slow: Column | None = None if self.type_name in OWN_TYPES else column(field)

    def missing(self, count: int) -> pa.Array:
        """Of records whose schema does not have the field: its default where it has one, else NULL."""
        if self._default is None:
            return pa.nulls(count, self.field.type)
        array, wrong = self.array(Source(Kind.JSON), pa.array([self._default.decode()], pa.string()))
        return pa.nulls(count, self.field.type) if wrong else pa.repeat(array[0], count)

    def array(self, source: Source, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """The array, with NULL where a value is refused, and the reasons by row."""
        quick = _FAST.get((source.kind, self.type_name.partition("(")[0]))
        made = quick(source, values, self.field) if quick is not None else None
        if made is not None:
            array, refused = made
            return array, self._reasons(source, values, refused)
        if self._slow is None:
            return self._own(source, values)
        if source.kind is Kind.BYTES and not self.type_name.startswith("JSON"):
            reason = f'column "{self.field.name}" wants {self.type_name}, found bytes: BLOB or JSON takes them'
            return pa.nulls(len(values), self.field.type), dict.fromkeys(_rows(values.is_valid()), reason)
        return self._coerced(source, values)

    def _coerced(self, source: Source, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """By way of the JSON values that these stand for."""
        assert self._slow is not None
        texts, wrong = json_texts(source, values)
        name = self.field.name
        raws = [b"null" if text is None else text.encode() for text in texts.to_pylist()]
        raws = [orjson.dumps({name: orjson.Fragment(raw)}) for raw in raws]
        array, reasons = self._slow.array([orjson.loads(raw)[name] for raw in raws], raws)
        return array, {**reasons, **{row: f'column "{name}": {why}' for row, why in wrong.items()}}

    def _own(self, source: Source, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """Of a type of `OWN_TYPES`: defaults come as JSON text, all else is refused."""
        if source.kind is Kind.JSON and self.type_name == "BLOB" and self._default is not None:
            texts = [None if text is None else orjson.loads(text) for text in values.to_pylist()]
            if all(text is None or isinstance(text, str) for text in texts):
                octets = [None if text is None else base64.b64decode(text) for text in texts]
                return pa.array(octets, self.field.type), {}
        reason = f'column "{self.field.name}" wants {self.type_name}, found {source.kind} values'
        return pa.nulls(len(values), self.field.type), dict.fromkeys(_rows(values.is_valid()), reason)

    def _reasons(self, source: Source, values: pa.Array, refused: Mapping[int, str]) -> dict[int, str]:
        found = {}
        for row, why in refused.items():
            shown = values[row].as_py()
            text = shown.hex() if isinstance(shown, bytes) else str(shown)
            found[row] = f'column "{self.field.name}" wants {self.type_name}, found {source.kind} {text}: {why}'
        return found


def json_texts(source: Source, values: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """The JSON text that each value stands for, NULL where it has none, and why."""
    if source.kind is Kind.JSON:
        return values, {}
    if source.kind in (Kind.BOOLEAN, Kind.INTEGER):
        return values.cast(pa.string()), {}
    write = json_value_of(source)
    texts: list[str | None] = []
    wrong: dict[int, str] = {}
    for row, value in enumerate(values.to_pylist()):
        try:
            texts.append(None if value is None else _text(write(value)))
        except ValueError as error:
            wrong[row] = str(error)
            texts.append(None)
    return pa.array(texts, pa.string()), wrong


def _text(value: Any) -> str:
    return str(value) if type(value) is Literal else orjson.dumps(value).decode()


def json_value_of(source: Source) -> Callable[[Any], Any]:
    """What turns one value into the JSON value that it stands for; it raises ValueError where there is none."""
    unit = source.unit_micros
    match source.kind:
        case Kind.DOUBLE:
            return _finite
        case Kind.BYTES:
            return lambda value: base64.b64encode(value).decode("ascii")
        case Kind.DATE:
            return _date_text
        case Kind.TIME:
            return lambda value: _time_text(value * unit)
        case Kind.INSTANT:
            return lambda value: _instant_text(value * unit) + "Z"
        case Kind.LOCAL:
            return lambda value: _instant_text(value * unit)
        case Kind.DECIMAL:
            return lambda value: Literal(f"{_decimal(value, source.scale):f}")
    return lambda value: value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no JSON number")
    return value


def _date_text(days: int) -> str:
    if not _DAYS_MIN <= days <= _DAYS_MAX:
        raise ValueError(f"day {days:,} since 1970 is not of the years 1 to 9999")
    return date.fromordinal(days + _DAY.toordinal()).isoformat()


def _time_text(micros: int) -> str:
    if not 0 <= micros < _DAY_MICROS:
        raise ValueError(f"{micros:,} microseconds are no time of a day")
    return _trimmed((datetime.min + timedelta(microseconds=micros)).time().isoformat())


def _instant_text(micros: int) -> str:
    if not _MICROS_MIN <= micros <= _MICROS_MAX:
        raise ValueError(f"{micros:,} microseconds since 1970 are not of the years 1 to 9999")
    return _trimmed((_EPOCH + timedelta(microseconds=micros)).replace(tzinfo=None).isoformat())


def _trimmed(text: str) -> str:
    return text.rstrip("0") if "." in text else text


def _decimal(unscaled: bytes, scale: int) -> Decimal:
    number = int.from_bytes(unscaled, "big", signed=True)
    return Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale))


# The fast ways: arrays, with NULL and a reason by row where a value is refused; None for "go the slow way".

Made = tuple[pa.Array, dict[int, str]] | None


def _as_is(source: Source, values: pa.Array, field: pa.Field) -> Made:
    return (values, {}) if values.type == field.type else None


def _integers(source: Source, values: pa.Array, field: pa.Field) -> Made:
    try:
        return values.cast(field.type), {}
    except pa.ArrowInvalid:
        return None


def _doubles(source: Source, values: pa.Array, field: pa.Field) -> Made:
    if field.type == values.type:
        return values, {}
    single = values.cast(field.type, safe=False)
    lost = pc.and_(pc.is_inf(single), pc.invert(pc.is_inf(values)))
    rows = _rows(lost)
    if not rows:
        return single, {}
    why = "out of range, which is -3.4028235e38 to 3.4028235e38"
    return pc.if_else(lost, pa.scalar(None, field.type), single), dict.fromkeys(rows, why)


def _times(low: int, high: int, why: str) -> Callable[[Source, pa.Array, pa.Field], Made]:
    """Integers of a unit, from ``low`` to ``high`` (of microseconds, or of days) to a type of times."""

    def fast(source: Source, values: pa.Array, field: pa.Field) -> Made:
        if isinstance(field.type, pa.TimestampType) and field.type.tz is not None and source.kind is Kind.LOCAL:
            return None
        unit = source.unit_micros
        numbers = values.fill_null(0).to_numpy()
        outside = (numbers < -(-low // unit)) | (numbers > high // unit)
        wrong = dict.fromkeys(np.flatnonzero(outside).tolist(), why)
        numbers = np.where(outside, 0, numbers) * unit
        if isinstance(field.type, pa.TimestampType) and field.type.unit == "ms":
            finer = numbers % 1_000 != 0
            wrong.update(dict.fromkeys(np.flatnonzero(finer).tolist(), "finer than a millisecond"))
            numbers = numbers // 1_000
        null = ~values.is_valid().to_numpy(zero_copy_only=False)
        null[list(wrong)] = True
        narrow = pa.int32() if field.type == pa.date32() else pa.int64()
        return pa.array(numbers, mask=null).cast(narrow).cast(field.type), wrong

    return fast


def _decimals(source: Source, values: pa.Array, field: pa.Field) -> Made:
    scale = source.scale
    try:
        numbers = [None if value is None else _decimal(value, scale) for value in values.to_pylist()]
        return pa.array(numbers, field.type), {}
    except pa.ArrowInvalid:
        return None


def _rows(mask: pa.Array) -> list[int]:
    rows: list[int] = np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False)).tolist()
    return rows


_YEARS = "not of the years 1 to 9999"
_INSTANT = _times(_MICROS_MIN, _MICROS_MAX, _YEARS)
_FAST: dict[tuple[Kind, str], Callable[[Source, pa.Array, pa.Field], Made]] = {
    (Kind.BOOLEAN, "BOOLEAN"): _as_is,
    **{
        (Kind.INTEGER, f"{sign}{name}"): _integers
        for sign in ("", "U")
        for name in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
    },
    (Kind.DOUBLE, "DOUBLE"): _doubles,
    (Kind.DOUBLE, "FLOAT"): _doubles,
    (Kind.TEXT, "VARCHAR"): _as_is,
    (Kind.BYTES, "BLOB"): _as_is,
    (Kind.JSON, "JSON"): _as_is,
    (Kind.DATE, "DATE"): _times(_DAYS_MIN, _DAYS_MAX, _YEARS),
    (Kind.TIME, "TIME"): _times(0, _DAY_MICROS - 1, "no time of a day"),
    **{
        (kind, name): _INSTANT
        for kind in (Kind.INSTANT, Kind.LOCAL)
        for name in ("TIMESTAMP", "TIMESTAMP_MS", "TIMESTAMPTZ")
    },
    (Kind.DECIMAL, "DECIMAL"): _decimals,
}
