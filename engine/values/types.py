"""The names of column types, as in SQL, and the Arrow types that they stand for.

Not here: which JSON values a type takes (`engine.values.coercion`), and which columns there are
(`engine.values.schema`).
"""

from __future__ import annotations

import difflib
import re

import pyarrow as pa

DECIMAL_DIGITS_MAX = 38  #: precision of a DECIMAL: what 128 bits hold
LIST_LEVELS_MAX = 8  #: of a type such as ``BIGINT[][]``

#: Fixed types by name. JSON is text: a field of that type is told from VARCHAR by its metadata.
FIXED: dict[str, pa.DataType] = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_MS": pa.timestamp("ms"),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
    "JSON": pa.string(),
}

#: Other names of the same types; those of DuckDB, and INT64-like names are left out where they mislead.
ALIASES: dict[str, str] = {
    "BOOL": "BOOLEAN",
    "INT1": "TINYINT",
    "INT2": "SMALLINT",
    "SHORT": "SMALLINT",
    "INT": "INTEGER",
    "INT4": "INTEGER",
    "SIGNED": "INTEGER",
    "INT8": "BIGINT",
    "LONG": "BIGINT",
    "REAL": "FLOAT",
    "FLOAT4": "FLOAT",
    "FLOAT8": "DOUBLE",
    "NUMERIC": "DECIMAL",
    "STRING": "VARCHAR",
    "TEXT": "VARCHAR",
    "DATETIME": "TIMESTAMP",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ",
}

#: Where the field is marked whose type Arrow alone does not tell.
TYPE_KEY = b"headrace.type"

_DECIMAL = re.compile(r"(?:DECIMAL|NUMERIC)(?: ?\( ?(\d{1,3}) ?(?:, ?(\d{1,3}) ?)?\))?")
_DECIMAL_DEFAULT = (18, 3)  # DuckDB's


def canonical_name(name: str) -> str:
    """The one spelling of a type's name: ``" decimal( 9 , 2 )"`` is ``DECIMAL(9,2)``, ``text[]`` is ``VARCHAR[]``.

    Raises ValueError, with the nearest valid name, for a name that is none.
    """
    plain = " ".join(name.upper().split())
    if plain.endswith("[]"):
        inner = canonical_name(plain[:-2])
        if inner.count("[]") >= LIST_LEVELS_MAX:
            raise ValueError(f'column type "{name}" is nested deeper than {LIST_LEVELS_MAX} lists')
        return inner + "[]"
    plain = ALIASES.get(plain, plain)
    if plain in FIXED:
        return plain
    decimal = _DECIMAL.fullmatch(plain)
    if decimal is None:
        raise ValueError(_unknown(name, plain))
    digits, scale = _DECIMAL_DEFAULT
    if decimal[1] is not None:
        digits, scale = int(decimal[1]), int(decimal[2] or 0)
    if not 1 <= digits <= DECIMAL_DIGITS_MAX or scale > digits:
        raise ValueError(
            f'column type "{name}": DECIMAL(p,s) takes p from 1 to {DECIMAL_DIGITS_MAX} and s from 0 to p'
        )
    return f"DECIMAL({digits},{scale})"


def _unknown(name: str, plain: str) -> str:
    valid = [*FIXED, "DECIMAL"]
    near = difflib.get_close_matches(plain, [*valid, *ALIASES], n=1, cutoff=0.5)
    nearest = f'; did you mean "{near[0]}"?' if near else ""
    return (
        f'unknown column type "{name[:60]}"{nearest} '
        f"Valid are {', '.join(FIXED)}, DECIMAL(p,s), and any of them followed by [] for a list"
    )


def column_type(name: str) -> pa.DataType:
    """The Arrow type of a column type's name, in any case. Raises ValueError with the nearest valid name."""
    return _arrow(canonical_name(name))


def _arrow(canonical: str) -> pa.DataType:
    if canonical.endswith("[]"):
        return pa.list_(_arrow(canonical[:-2]))
    if canonical.startswith("DECIMAL("):
        digits, scale = canonical[8:-1].split(",")
        return pa.decimal128(int(digits), int(scale))
    return FIXED[canonical]


def column_field(column: str, type_name: str) -> pa.Field:
    """The Arrow field of a column. Types that hold JSON are named in its metadata, for `type_name_of`."""
    canonical = canonical_name(type_name)
    metadata = {TYPE_KEY: canonical.encode()} if canonical.startswith("JSON") else None
    return pa.field(column, _arrow(canonical), metadata=metadata)


def type_name_of(field: pa.Field) -> str:
    """The canonical type name of a field that `column_field` made, or of any field of such a type.

    Raises ValueError for an Arrow type that no column type stands for.
    """
    marked = (field.metadata or {}).get(TYPE_KEY)
    if marked is not None and _arrow(canonical_name(marked.decode())).equals(field.type):
        return canonical_name(marked.decode())
    return _name(field.type, field.name)


def _name(kind: pa.DataType, column: str) -> str:
    if pa.types.is_list(kind):
        return _name(kind.value_type, column) + "[]"
    if pa.types.is_decimal128(kind) and kind.scale >= 0:
        return f"DECIMAL({kind.precision},{kind.scale})"
    for name, arrow in FIXED.items():
        if arrow.equals(kind):
            return name
    raise ValueError(f'column "{column}" has the Arrow type {kind}, which no column type stands for')
