"""Which columns a decoder gives: those declared or inferred, ``_rest``, the trace columns and the record's own.

Not here: the types' names (`engine.values.types`) and what is inferred (`engine.values.json_infer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from engine.values.record import RECORD
from engine.values.trace import TRACE
from engine.values.types import column_field, type_name_of

#: The members of a JSON object that no column takes, as an object; NULL where there are none.
REST = column_field("_rest", "JSON")

_OURS = {field.name: field for field in (REST, *TRACE, *RECORD)}


def is_reserved(column: str) -> bool:
    """Whether a column would clash with one of ours. SQL names differ by more than case."""
    return column.casefold() in _OURS


def declared(columns: Mapping[str, str] | pa.Schema) -> list[pa.Field]:
    """The user's columns, checked: of a mapping from column to type name, or of a schema.

    A schema may be a decoder's own, as it was stored: ours are then left out.
    Raises ValueError, naming the column, for a reserved name, a name without characters, two names that
    differ only in case, and a type that is none.
    """
    if isinstance(columns, pa.Schema):
        own = [field for field in columns if not (field.name in _OURS and field.type == _OURS[field.name].type)]
        fields = [column_field(field.name, type_name_of(field)) for field in own]
    else:
        fields = []
        for name, type_name in columns.items():
            try:
                fields.append(column_field(name, type_name))
            except ValueError as error:
                raise ValueError(f'column "{name}": {error}') from None
    seen: dict[str, str] = {}
    for field in fields:
        name = field.name
        if not name:
            raise ValueError("a column without a name; name it after the JSON member that it takes")
        if is_reserved(name):
            raise ValueError(f'column "{name}" is reserved: {", ".join(_OURS)} are filled by headrace')
        if name.casefold() in seen:
            raise ValueError(f'columns "{seen[name.casefold()]}" and "{name}" differ only in case')
        seen[name.casefold()] = name
    return fields


def whole(fields: Iterable[pa.Field], *, trace: bool) -> pa.Schema:
    """The schema of a decoder's columns: its own fields, then the trace columns where those are on.

    Raises ValueError where there are none.
    """
    schema = pa.schema([*fields, *(TRACE if trace else ())])
    if not schema.names:
        raise ValueError("no columns: declare one, or turn on the rest or the trace columns")
    return schema
