"""`infer`: the columns that a first batch of JSON values suggests. Used once; the engine then keeps the schema.

Not here: decoding with that schema (`engine.values.json_decoder`).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from engine.batch import Batch
from engine.values.decoder import values_of
from engine.values.documents import exact, parse
from engine.values.reasons import Literal, json_type
from engine.values.schema import declared, is_reserved
from engine.values.types import column_field

COLUMNS_MAX = 1_000  #: members beyond these, in order of first appearance, are left to ``_rest``
NAME_CHARS_MAX = 255  #: members of longer names are left to ``_rest``

_DOUBLE_EXACT_MAX = 2**53  # beyond, a double does not hold each integer


def infer(batch: Batch) -> pa.Schema:
    """Columns for the members of the records that parse, in order of first appearance; without ``_rest`` and trace.

    Integers give BIGINT, other numbers DOUBLE, strings VARCHAR, true and false BOOLEAN; arrays, objects,
    a mix, and integers that neither type holds exactly give JSON. Left to ``_rest`` are members that are
    null throughout, whose names are reserved, empty, too long, of unprintable characters, or differ from
    an earlier one only in case. A batch of which no record parses gives a schema without columns.
    """
    values = values_of(batch)
    documents = parse(values, {})
    seen: dict[str, set[str]] = {}
    for row, doc in enumerate(documents.docs):
        if row not in documents.wrong and doc:
            for name, value in exact(documents.raws[row]).items():
                seen.setdefault(name, set()).add(_sort(value))
    fields: list[pa.Field] = []
    folded: set[str] = set()
    for name, sorts in seen.items():
        sorts.discard("null")
        if sorts and len(fields) < COLUMNS_MAX and _is_name(name) and name.casefold() not in folded:
            folded.add(name.casefold())
            fields.append(column_field(name, _type(sorts)))
    return pa.schema(declared(pa.schema(fields)))


def _sort(value: Any) -> str:
    """What matters of a value: its JSON type and, of a number, which types hold it exactly."""
    if type(value) is int:
        if not -(2**63) <= value < 2**63:
            return "huge"
        return "integer" if abs(value) <= _DOUBLE_EXACT_MAX else "long"
    if type(value) is Literal:  # not exact in 64 bits: an integer, or a fraction that a double rounds as ever
        return "huge" if value.lstrip("-").isdigit() else "fraction"
    return "fraction" if type(value) is float else json_type(value)


def _type(sorts: set[str]) -> str:
    if sorts <= {"integer", "long"}:
        return "BIGINT"
    if sorts <= {"integer", "fraction"}:
        return "DOUBLE"
    return {frozenset({"boolean"}): "BOOLEAN", frozenset({"string"}): "VARCHAR"}.get(frozenset(sorts), "JSON")


def _is_name(name: str) -> bool:
    return 0 < len(name) <= NAME_CHARS_MAX and name.isprintable() and not is_reserved(name)
