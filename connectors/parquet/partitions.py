"""Hive partitions: which directory a row belongs to, and which rows belong to none.

Directory names are ``column=value`` with the value percent-encoded, as DuckDB, pyarrow and polars decode it.
A null is ``__HIVE_DEFAULT_PARTITION__``; an empty string is an empty value.
Not here: the files in those directories (`connectors.parquet.writer`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from connectors.parquet.layout import encode
from engine.errors import ConfigError, RowsRefused

NULL = "__HIVE_DEFAULT_PARTITION__"

#: Linux allows 255 bytes for one name.
NAME_BYTES_MAX = 255

_DATE = re.compile(r"date\((?P<column>.+)\)")
_SEPARATOR = "/"
_SECONDS_OF_DAY = 86_400
_DAYS_MIN, _DAYS_MAX = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31, what readers take for a date


@dataclass(frozen=True, slots=True)
class Key:
    """One part of a partition's path: a column as it is, or the UTC date of a column."""

    column: str
    date: bool

    @property
    def name(self) -> str:
        return "date" if self.date else self.column


def parse_keys(partition_by: Sequence[str]) -> tuple[Key, ...]:
    """The keys that ``partition_by`` means: column names and ``date(<column>)``. ConfigError on doubles."""
    keys = []
    for text in partition_by:
        match = _DATE.fullmatch(text)
        keys.append(Key(match["column"], True) if match else Key(text, False))
    names = [key.name for key in keys]
    faults = [f"{name!r} would be a directory name twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    faults += ["a column name is empty" for key in keys if not key.column]
    if faults:
        raise ConfigError("partition_by", faults)
    return tuple(keys)


def file_schema(schema: pa.Schema, keys: Sequence[Key]) -> pa.Schema:
    """The columns that stay in the files: plain partition columns are in the path alone.

    ConfigError if the keys do not fit ``schema``.
    """
    faults = [fault for key in keys if (fault := _fault(schema, key)) is not None]
    plain = {key.column for key in keys if not key.date}
    kept = pa.schema([field for field in schema if field.name not in plain])
    if not faults and not len(kept):
        faults.append("no column would be left in the files")
    if faults:
        raise ConfigError("partition_by", faults)
    return kept


def _fault(schema: pa.Schema, key: Key) -> str | None:
    if key.column not in schema.names:
        return f"there is no column {key.column!r}; the columns are {', '.join(schema.names)}"
    kind = schema.field(key.column).type
    if not key.date:
        plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean,
                 pa.types.is_date32)  # fmt: skip
        if not any(check(kind) for check in plain):
            return f"column {key.column!r} is {kind}; valid are strings, integers, booleans and dates"
        return None
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_int64(kind)):
        return f"column {key.column!r} is {kind}; date() takes a timestamp, a date, or int64 milliseconds"
    if key.name in schema.names:
        return f"date({key.column}) makes a directory column 'date', and there is a column of that name"
    return None


def split(table: pa.Table, keys: Sequence[Key], partitions_max: int) -> list[tuple[str, pa.Table]]:
    """``table`` by directory (a path below the root, ``""`` without keys), rows in their order.

    Raises RowsRefused for rows of partitions beyond ``partitions_max`` (in order of appearance) and for rows
    whose value no reader would get back.
    """
    if not keys:
        return [("", table)] if table.num_rows else []
    reasons: dict[int, str] = {}
    columns = []
    for key in keys:
        codes, names = _names(table, key)
        for code, name in enumerate(names):
            if name.startswith("\0"):
                indexes = pc.indices_nonzero(pc.equal(codes, code)).to_pylist()
                reasons.update(dict.fromkeys(indexes, f"column {key.column}: {name[1:]}"))
        columns.append(pa.array(names, pa.string()).take(codes))
    joined = columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, _SEPARATOR)
    encoded = joined.dictionary_encode()
    paths = [path for path in encoded.dictionary.to_pylist() if "\0" not in path]
    if len(paths) > partitions_max:
        beyond = pc.indices_nonzero(pc.is_in(joined, pa.array(paths[partitions_max:])))
        limit = f"more than hive_partitions_open_max = {partitions_max} partitions in one batch"
        reasons = {**dict.fromkeys(beyond.to_pylist(), limit), **reasons}
    if reasons:
        rows = sorted(reasons)
        raise RowsRefused(rows, [reasons[row] for row in rows])
    kept = table.drop_columns([key.column for key in keys if not key.date])
    if len(paths) == 1:
        return [(paths[0], kept)]
    order = pc.sort_indices(encoded.indices)  # stable
    ordered, counts = (
        kept.take(order),
        {item["values"]: item["counts"] for item in encoded.indices.value_counts().to_pylist()},
    )
    parts, start = [], 0
    for code, path in enumerate(paths):
        parts.append((path, ordered.slice(start, counts[code])))
        start += counts[code]
    return parts


def _names(table: pa.Table, key: Key) -> tuple[pa.Array, list[str]]:
    """For each row the index of its directory name, and the names; a name that is none is NUL and the reason."""
    column = table.column(key.column).combine_chunks()
    if key.date:
        column = _days(column)
    encoded = column.dictionary_encode(null_encoding="encode")
    prefix = f"{encode(key.name)}="
    return encoded.indices, [_name(prefix, value) for value in _texts(encoded.dictionary)]


def _days(column: pa.Array) -> pa.Array:
    """UTC days since the epoch, as int32 dates."""
    if pa.types.is_int64(column.type):
        column = column.cast(pa.timestamp("ms"))
    elif pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp(column.type.unit))  # a zone is for display: the value is UTC
    return column.cast(pa.date32(), safe=False)


def _texts(values: pa.Array) -> list[str | None]:
    if pa.types.is_date32(values.type):
        days = values.cast(pa.int32()).to_pylist()
        texts = values.cast(pa.string()).to_pylist()
        return [
            text if day is None or _DAYS_MIN <= day <= _DAYS_MAX else "\0the date is outside of the years 1 to 9999"
            for day, text in zip(days, texts, strict=True)
        ]
    return values.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


def _name(prefix: str, value: str | None) -> str:
    if value is None:
        return prefix + NULL
    if value.startswith("\0the date"):
        return value
    if value == NULL:
        return f"\0the value {NULL} is what readers take for null"
    text = encode(value)
    if text.upper() == "NULL":  # DuckDB reads the word as a null, but not its escaped form
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if len(prefix) + len(text) > NAME_BYTES_MAX:
        return f"\0the value takes {len(text)} bytes as a directory name, of {NAME_BYTES_MAX - len(prefix)}"
    return prefix + text
