"""From what a handler returned to rows that a sink can take: one schema for ever, and a trace in every row.

The schema of a pipeline's rows is declared (``function.columns``) or fixed by its first output, made durable
by the sink before any row, and adopted by every shard and every later run.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from engine.batch import Batch
from engine.errors import HandlerError, SinkMismatch
from engine.protocols import Sink

TIMESTAMP = pa.timestamp("ms", tz="UTC")

#: The trace of rows that each come from one record.
RECORD_TRACE = {"_partition": pa.int32(), "_offset": pa.int64(), "_timestamp": TIMESTAMP}

#: The trace of rows that come from a whole batch; ``_timestamp`` is that of its latest record.
BATCH_TRACE = {
    "_partition": pa.int32(),
    "_offset_first": pa.int64(),
    "_offset_last": pa.int64(),
    "_timestamp": TIMESTAMP,
}

TRACE_NAMES = frozenset({**RECORD_TRACE, **BATCH_TRACE})

#: More rows than this are worked on beside the event loop.
ROWS_INLINE_MAX = 256

#: The name under which the sink keeps the schema.
SCHEMA_NAME = "rows"


class Output:
    """Aligns one pipeline's results. ``columns`` are the declared ones, without the trace.

    ``is_handled`` is false where no function comes between decoder and sink: rows that do not fit are then
    nobody's failed attempt, but a configuration that has changed.
    """

    def __init__(
        self, sink: Sink, *, columns: pa.Schema | None = None, trace: bool = True, is_handled: bool = True
    ) -> None:
        self._sink = sink
        self._declared = columns
        self._trace = trace
        self._is_handled = is_handled
        self._schema: pa.Schema | None = None
        self._adopting = asyncio.Lock()

    async def open(self) -> None:
        """Adopt what an earlier run fixed. Raises SinkMismatch where other columns are declared now."""
        self._schema = await self._sink.schema(SCHEMA_NAME)
        if self._schema is not None and self._declared is not None:
            self._require(self._declared, of_rows=False)

    async def align(self, rows: pa.Table | Sequence[Mapping[str, object]] | None, batch: Batch) -> pa.Table | None:
        """``rows`` as a table of the pipeline's schema, or None for no rows. Raises HandlerError."""
        if rows is None or len(rows) == 0:
            return None
        # Without a function nothing has to be converted, so there is nothing to do beside the loop.
        if len(rows) > ROWS_INLINE_MAX and self._is_handled:
            table = await asyncio.to_thread(self._traced, rows, batch)
            await self._adopt(table)
            return await asyncio.to_thread(self._conformed, rows, table)
        table = self._traced(rows, batch)
        await self._adopt(table)
        return self._conformed(rows, table)

    def _traced(self, rows: pa.Table | Sequence[Mapping[str, object]], batch: Batch) -> pa.Table:
        table = rows if isinstance(rows, pa.Table) else self._from_dicts(rows)
        _check_names(table.column_names)
        # Without a function the decoder's own columns come here untouched, its trace among them.
        return with_trace(table, batch) if self._trace and self._is_handled else table

    def _conformed(self, rows: pa.Table | Sequence[Mapping[str, object]], table: pa.Table) -> pa.Table:
        assert self._schema is not None
        if not self._is_handled:
            self._require(table.schema, of_rows=True)
        return conform(table, self._schema, fill=not isinstance(rows, pa.Table))

    def _require(self, given: pa.Schema, *, of_rows: bool) -> None:
        """Raise SinkMismatch unless the rows' schema has the columns of ``given``, and no others but the trace."""
        assert self._schema is not None
        kept = {field.name: field.type for field in self._schema}
        if not of_rows:
            kept = {name: kind for name, kind in kept.items() if name in given.names or name not in TRACE_NAMES}
        wanted = {field.name: field.type for field in given}
        faults = [
            f"{name}: the sink has {kept.get(name, 'no such column')}, now it is {wanted.get(name, 'gone')}"
            for name in dict.fromkeys([*kept, *wanted])
            if kept.get(name) != wanted.get(name)
        ]
        if faults:
            raise SinkMismatch(
                "\n  ".join(["the sink holds rows of other columns than are configured now:", *faults]),
                hint="give the pipeline its former columns, or another name and another sink",
            )

    async def _adopt(self, table: pa.Table) -> None:
        if self._schema is not None:
            return
        async with self._adopting:
            if self._schema is None:
                schema = _fixed(table.schema)
                if self._declared is not None:
                    trace = [field for field in schema if field.name in TRACE_NAMES]
                    schema = pa.schema([*self._declared, *trace])
                self._schema = await self._sink.adopt_schema(SCHEMA_NAME, schema)

    def _from_dicts(self, rows: Sequence[Mapping[str, object]]) -> pa.Table:
        known = self._schema or self._declared
        names = list(dict.fromkeys(name for row in rows for name in row))
        arrays = []
        for name in names:
            values = [row.get(name) for row in rows]
            wanted = known.field(name).type if known is not None and name in known.names else None
            try:
                arrays.append(pa.array(values, RECORD_TRACE.get(name, wanted)))
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
                as_type = f" as {wanted}" if wanted is not None else " as one column type"
                raise HandlerError(f"returned rows whose {name!r} cannot be stored{as_type}: {error}") from None
        return pa.table(arrays, names=names)


def with_trace(table: pa.Table, batch: Batch) -> pa.Table:
    """``table`` with its trace columns last, from ``_offset`` where it has one, else from the batch."""
    count = table.num_rows
    timestamps = batch.records.column("timestamp")
    if "_offset" in table.column_names:
        offsets = _offsets(table)
        if offsets.null_count:
            raise HandlerError(
                "returned rows of which some have _offset and some have not; give it to all or to none"
            )
        own = batch.records.column("offset").to_numpy()
        wanted = offsets.to_numpy()
        at = np.searchsorted(own, wanted)
        if not (np.all(at < len(own)) and np.array_equal(own[np.minimum(at, len(own) - 1)], wanted)):
            raise HandlerError("returned a row with an _offset that is not in its batch")
        times = timestamps.take(pa.array(at)).cast(TIMESTAMP)
        values = {"_partition": np.full(count, batch.partition, np.int32), "_offset": offsets, "_timestamp": times}
    else:
        times = timestamps.to_numpy()
        latest = int(times.max()) if len(times) else 0
        values = {
            "_partition": np.full(count, batch.partition, np.int32),
            "_offset_first": np.full(count, batch.start, np.int64),
            "_offset_last": np.full(count, batch.end - 1, np.int64),
            "_timestamp": pa.array(np.full(count, latest, np.int64)).cast(TIMESTAMP),
        }
    table = table.drop_columns([name for name in values if name in table.column_names])
    for name, value in values.items():
        column = value if isinstance(value, pa.ChunkedArray | pa.Array) else pa.array(value)
        table = table.append_column(name, column)
    return table


def _offsets(table: pa.Table) -> pa.ChunkedArray:
    column = table.column("_offset")
    try:
        return column.cast(pa.int64())
    except pa.ArrowException as error:
        raise HandlerError(f"returned _offset as {column.type}; it has to be the record's: {error}") from None


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise HandlerError("returned rows without any column")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise HandlerError(f"returned two columns {name!r}; give each a name of its own")
        seen.add(name)


def conform(table: pa.Table, schema: pa.Schema, *, fill: bool) -> pa.Table:
    """``table`` with the columns of ``schema``, in its order and types, nothing lost on the way.

    ``fill`` gives nulls for a column that is missing. Raises HandlerError for a column that the schema does
    not have, that is missing, or whose values do not fit.
    """
    names = set(schema.names)
    unknown = [name for name in table.column_names if name not in names]
    if unknown and unknown[0] in TRACE_NAMES and "_offset" in {*names, unknown[0]}:
        had, has = ("had no", "have an") if unknown[0] == "_offset" else ("had an", "have no")
        raise HandlerError(
            f"returned rows that {has} _offset, while the rows before them {had} _offset",
            hint="name the record of every row by its _offset, or of none",
        )
    if unknown:
        near = difflib.get_close_matches(unknown[0], schema.names, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise HandlerError(
            f"returned a column {unknown[0]!r} that the rows before it did not have{guess}",
            hint="the sink's schema is fixed by the first output, or by function.columns",
        )
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if not fill:
                raise HandlerError(f"returned no column {field.name!r}, which the rows before had")
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type, safe=True))
        except pa.ArrowException as error:
            raise HandlerError(
                f"returned {field.name!r} as {column.type}, which does not fit {field.type}: {error}"
            ) from None
    return pa.table(columns, schema=schema)


def _fixed(schema: pa.Schema) -> pa.Schema:
    """A first output's schema, fit to be kept: what is nothing but nulls is taken as text, nested too."""
    return pa.schema([pa.field(field.name, _known(field.type), metadata=field.metadata) for field in schema])


def _known(given: pa.DataType) -> pa.DataType:
    if pa.types.is_null(given):
        return pa.string()
    if pa.types.is_list(given):
        return pa.list_(_known(given.value_type))
    if pa.types.is_struct(given):
        return pa.struct([pa.field(field.name, _known(field.type), metadata=field.metadata) for field in given])
    return given
