"""Column types of change events: which JSON values each takes, as SQL that gives NULL for all others.

DuckDB's own casts are not strict enough: 1.7 becomes 2, " 12 " becomes 12, a time zone is cut off in silence.
Not here: where in an envelope the values are found.
"""

from __future__ import annotations

import re

_INTEGERS = {
    "TINYINT": "TINYINT",
    "SMALLINT": "SMALLINT",
    "INTEGER": "INTEGER",
    "INT": "INTEGER",
    "BIGINT": "BIGINT",
    "UTINYINT": "UTINYINT",
    "USMALLINT": "USMALLINT",
    "UINTEGER": "UINTEGER",
    "UBIGINT": "UBIGINT",
}
_FLOATS = {"DOUBLE": "DOUBLE", "FLOAT": "FLOAT", "REAL": "FLOAT"}
_TEXTS = {"VARCHAR": "VARCHAR", "TEXT": "VARCHAR", "STRING": "VARCHAR"}
#: Microseconds in one unit of an integer that stands for a time, and how many digits of it are a time.
_TIMES = {"TIMESTAMP": (1, 16), "TIMESTAMP_MS": (1_000, 13), "TIMESTAMP_S": (1_000_000, 10), "TIMESTAMPTZ": (1, 16)}
_OTHERS = {"BOOLEAN": "BOOLEAN", "BOOL": "BOOLEAN", "DATE": "DATE", "JSON": "JSON", "BLOB": "BLOB"}

_DECIMAL = re.compile(r"(?:DECIMAL|NUMERIC)\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_NUMBER = r"'-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?'"
_ISO_TIME = r"'\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}(:?\d{2})?)?'"

#: DynamoDB's attribute types that hold a value of ours (AttributeValue, DynamoDB Streams API reference).
_ATTRIBUTES = {"VARCHAR": ("S",), "BOOLEAN": ("BOOL",), "BLOB": ("B",), "DATE": ("S", "N")}


def normal(declared: str) -> str | None:
    """The type under its one name, ``"int"`` as ``"INTEGER"``; None for one that change events cannot have."""
    name = " ".join(declared.upper().split())
    if match := _DECIMAL.fullmatch(name):
        precision, scale = int(match[1]), int(match[2])
        return f"DECIMAL({precision},{scale})" if 1 <= precision <= 38 and scale <= precision else None
    known = {**_INTEGERS, **_FLOATS, **_TEXTS, **_OTHERS, **{time: time for time in _TIMES}}
    known["TIMESTAMP WITH TIME ZONE"] = "TIMESTAMPTZ"
    return known.get(name)


def names() -> str:
    """The types that there are, for messages."""
    return ", ".join([*_INTEGERS, *_FLOATS, *_TEXTS, *_OTHERS, *_TIMES, "DECIMAL(p,s)"])


def attributes(kind: str) -> tuple[str, ...]:
    """The DynamoDB attribute types that a column of this type takes."""
    if kind in _TIMES:
        return ("S", "N")
    return _ATTRIBUTES.get(kind, ("N",))


def empty_is_absent(kind: str) -> bool:
    """Whether an empty string can stand for NULL: it is a value of text, and no JSON."""
    return kind not in ("VARCHAR", "JSON")


def conversion(kind: str, text: str) -> str:
    """SQL for the value of type ``kind`` from ``text``, a name of unquoted JSON text; NULL where it is none."""
    if kind in ("VARCHAR", "JSON"):
        return text
    if kind in _INTEGERS:
        # Most texts are a number's usual form, so they need no regular expression.
        cast = f"TRY_CAST({text} AS {kind})"
        return (
            f"CASE WHEN CAST({cast} AS VARCHAR) = {text} OR regexp_full_match({text}, '-?[0-9]+') THEN {cast} END"
        )
    if kind in _FLOATS:
        cast = f"TRY_CAST({text} AS {kind})"
        return f"CASE WHEN regexp_full_match({text}, {_NUMBER}) AND isfinite({cast}) THEN {cast} END"
    if kind in _TIMES:
        unit, digits = _TIMES[kind]
        integer = rf"regexp_full_match({text}, '-?\d{{1,{digits}}}')"
        micros = f"CASE WHEN {integer} THEN TRY_CAST({text} AS BIGINT) * {unit}"
        iso = f"WHEN regexp_full_match({text}, {_ISO_TIME}) THEN epoch_us(TRY_CAST({text} AS TIMESTAMPTZ)) END"
        return f"make_timestamp({micros} {iso})"
    if kind == "BOOLEAN":
        return f"CASE WHEN {text} IN ('true', 't', '1') THEN true WHEN {text} IN ('false', 'f', '0') THEN false END"
    if kind == "DATE":
        days = (
            rf"WHEN regexp_full_match({text}, '-?\d{{1,6}}') THEN DATE '1970-01-01' + TRY_CAST({text} AS INTEGER)"
        )
        shaped = rf"regexp_full_match({text}, '\d{{4}}-\d{{2}}-\d{{2}}')"
        return f"CASE WHEN {shaped} THEN TRY_CAST({text} AS DATE) {days} END"
    if kind == "BLOB":
        return f"TRY(from_base64({text}))"
    match = _DECIMAL.fullmatch(kind)
    assert match is not None, kind
    # A cast rounds away digits beyond the scale; a value that has such digits is refused.
    shape = rf"'-?[0-9]+(\.[0-9]{{0,{match[2]}}}0*)?'"
    return f"CASE WHEN regexp_full_match({text}, {shape}) THEN TRY_CAST({text} AS {kind}) END"
