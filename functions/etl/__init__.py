"""Change events made into rows that an upserting sink merges by key. A handler of kind ``arrow``.

Events are validated, flattened and typed; a record that cannot be taken is reported as a fault with its
reason, and the others go on. Not here: the merging (the DuckDB sink's ``upsert``), the envelopes (`envelope`),
and what each type takes (`types`).

`changes` makes a handler for a table; bind it to a name in a module of one's own::

    from functions.etl import changes

    COLUMNS = {"id": "BIGINT", "email": "VARCHAR", "credit": "DECIMAL(12,2)"}
    customers = changes(COLUMNS, key=["id"], order="source.lsn")

and name that in the pipeline. `runways` is bound here, for the sample that ships::

    [pipelines.runways.source]
    topic = "runways.changes"

    [pipelines.runways.schema]
    format = "json"
    columns = { before = "JSON", after = "JSON", source = "JSON", op = "VARCHAR", ts_ms = "BIGINT" }

    [pipelines.runways.function]
    kind = "arrow"
    handler = "functions.etl.runways"

    [pipelines.runways.sink]
    type = "duckdb"
    path = "out/runways.duckdb"
    table = "runways"
    mode = "upsert"
    key = ["id"]

With ``format = "text"`` the whole envelope is read from the column ``line``; that is the way for topics with Kafka
Connect's schemas enabled (``{"schema": ..., "payload": ...}``), and takes both. Prefer ``json`` otherwise: its
decoding is the engine's, which is strict about what JSON is.

``{"op": "u", "before": {"id": 7, "email": "a@x"}, "after": {"id": 7, "email": "b@x", "credit": "10.50"}, "source":
{"lsn": 42}}`` becomes the row ``id=7, email="b@x", credit=10.50, _order=42, _deleted=False`` after its trace
columns; ``{"op": "d", "before": {"id": 7}, "after": null, "source": {"lsn": 43}}`` becomes ``id=7, email=None,
credit=None, _order=43, _deleted=True``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from engine.context import Context
from engine.errors import ConfigError, HandlerError
from engine.protocols import Result
from functions.columns import EVENT_TIME, TRACE, Refusals
from functions.etl import envelope, types

__all__ = ["RUNWAYS", "changes", "runways"]

Changes = Callable[[pa.RecordBatch, Context], Result]

_ORDERS = {"debezium": "source.pos", "dynamodb": "SequenceNumber"}
_RESERVED = {*TRACE, "_order", "_deleted", "_refused"}


def changes(
    columns: Mapping[str, str],
    *,
    key: Sequence[str],
    shape: str = "debezium",
    order: str | None = None,
    empty_is_null: bool = False,
) -> Changes:
    """A handler for the change events of one table.

    ``columns``: the row's columns and their DuckDB types. Numbers may come as JSON numbers or as strings; an
    integer is never rounded to, a text never made from a number. Dates and times are ISO 8601, or integers as
    Debezium writes them: days for DATE, the unit of the type's name for TIMESTAMP_S, _MS and TIMESTAMP (µs).
    BLOB is base64. A DECIMAL of more than 15 digits has to come as a string. Members that are not named are
    left out; missing ones are NULL.
    ``key``: the columns that name a row.
    ``shape``: "debezium" (ops r, c, u, d) or "dynamodb" (INSERT, MODIFY, REMOVE, with typed attributes).
    ``order``: the path of the number that orders changes of one key, by default ``source.pos`` (``source.lsn`` for
    PostgreSQL) and, beneath ``dynamodb``, ``SequenceNumber``. MySQL's ``pos`` starts anew with each binlog file:
    there use ``"_offset"``, the record's own offset, which orders the changes of a key because all of them are in
    one partition.
    ``empty_is_null``: take empty strings for NULL in columns that are not text.

    Rows: the trace columns, ``columns``, ``_order`` (BIGINT; DECIMAL(38,0) for DynamoDB, whose sequence numbers are
    longer) and ``_deleted``. A deleted row has its key and NULLs. Faults: what is not JSON or no change event,
    a value that is not of its type, a missing key or order, an update that changes its key, op t (truncate).

    Raises ConfigError with every setting that cannot be used.
    """
    faults: list[str] = []
    if shape not in _ORDERS:
        faults.append(f"shape: {shape!r} is not one of {', '.join(_ORDERS)}")
    kinds = {name: types.normal(declared) for name, declared in columns.items()}
    for name, kind in kinds.items():
        if not name or name in _RESERVED or re.search(r'["\\*]', name):
            faults.append(f"columns: {name!r} cannot be a column's name")
        if kind is None:
            faults.append(f"columns.{name}: {columns[name]!r} is not one of {types.names()}")
    if not key:
        faults.append("key: give the columns that name a row")
    faults += [
        f"key: {name!r} is not among the columns {', '.join(columns) or '(none)'}"
        for name in key
        if name not in columns
    ]
    order = _ORDERS.get(shape, "") if order is None else order
    if order != envelope.OFFSET and not re.fullmatch(r"\w+(\.\w+)*", order):
        faults.append(f"order: {order!r} is not a path like source.pos, nor _offset")
    if faults:
        raise ConfigError("changes", faults)
    known = {name: kind for name, kind in kinds.items() if kind is not None}
    database = _Database()

    def take_changes(batch: pa.RecordBatch, context: Context) -> Result:
        names = batch.schema.names
        marker = "op" if shape == "debezium" else "eventName"
        if marker not in names and not any(name in names for name in envelope.ENVELOPE_COLUMNS):
            raise HandlerError(
                f"change events of shape {shape} need the column {marker!r}, or one of "
                f"{', '.join(envelope.ENVELOPE_COLUMNS)}; the batch has {', '.join(names)}",
                hint="see the example in functions.etl",
            )
        trace = tuple(name for name in TRACE if name in names)
        plan = envelope.Plan(shape, known, tuple(key), order, empty_is_null, trace)
        rows = database.query(envelope.sql(plan, names), batch)
        refusals = Refusals(batch)
        refused = rows.column("_refused").combine_chunks()
        if refused.null_count < len(refused):
            refusals.refuse_each(refused)
        made = {name: _finished(rows.column(name).combine_chunks(), known[name], shape) for name in known}
        for name in ("_order", "_deleted"):
            made[name] = rows.column(name).combine_chunks()
        return refusals.result(made)

    return take_changes


class _Database:
    """DuckDB in memory, for the JSON: one connection for each thread that calls, as connections are not shared."""

    def __init__(self) -> None:
        self._local = threading.local()

    def query(self, sql: str, batch: pa.RecordBatch) -> pa.Table:
        if not hasattr(self._local, "connection"):
            # A batch is below one of DuckDB's row groups: more threads than the caller's own do nothing.
            self._local.connection = duckdb.connect(":memory:", config={"threads": 1})
        connection = self._local.connection
        connection.register("batch", pa.Table.from_batches([batch]))
        try:
            return connection.execute(sql).to_arrow_table()
        finally:
            connection.unregister("batch")


def _finished(values: pa.Array, kind: str, shape: str) -> pa.Array:
    if kind == "TIMESTAMPTZ":
        return pc.cast(values, EVENT_TIME)
    if kind == "JSON" and shape == "dynamodb":
        return pa.array(
            [None if value is None else _plain(json.loads(value)) for value in values.to_pylist()], pa.string()
        )
    return values


def _plain(attribute: dict[str, Any]) -> str:
    """A DynamoDB attribute as JSON text without types. Numbers keep their digits; sets become arrays."""
    ((kind, value),) = attribute.items()
    if kind == "N":
        return str(value)
    if kind == "M":
        return "{" + ",".join(f"{json.dumps(name)}:{_plain(inner)}" for name, inner in value.items()) + "}"
    if kind == "L":
        return "[" + ",".join(map(_plain, value)) + "]"
    if kind == "NS":
        return "[" + ",".join(value) + "]"
    return "null" if kind == "NULL" else json.dumps(value)


#: The columns of OurAirports' runways.csv.
RUNWAYS: Mapping[str, str] = {
    "id": "BIGINT",
    "airport_ref": "BIGINT",
    "airport_ident": "VARCHAR",
    "length_ft": "BIGINT",
    "width_ft": "BIGINT",
    "surface": "VARCHAR",
    "lighted": "BOOLEAN",
    "closed": "BOOLEAN",
    **{
        f"{end}_{name}": kind
        for end in ("le", "he")
        for name, kind in {
            "ident": "VARCHAR",
            "latitude_deg": "DOUBLE",
            "longitude_deg": "DOUBLE",
            "elevation_ft": "BIGINT",
            "heading_degT": "DOUBLE",
            "displaced_threshold_ft": "BIGINT",
        }.items()
    },
}

runways = changes(RUNWAYS, key=["id"], empty_is_null=True)
