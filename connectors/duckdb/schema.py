"""Tables and columns: names as SQL, Arrow types as DuckDB has them, and how an existing table differs.

Not here: headrace's own tables (`catalog`) and what is written into a pipeline's table (`sink`, `upsert`).
Types are never mapped by a list of our own: DuckDB is asked what it makes of an Arrow schema, so what is
created and what is compared cannot drift apart.
"""

# ruff: noqa: S608 - only quoted identifiers and names of this module are put into statements.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from engine.errors import ConfigError, DataError, InternalError, SinkMismatch

#: The schema of headrace's own tables; no pipeline's table may live there.
OWN_SCHEMA = "headrace"

Columns = list[tuple[str, str]]


def quoted(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class TableName:
    """A table of the sink's file: ``name`` in ``schema`` (``main`` unless the text has a dot)."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """From ``"table"`` or ``"schema.table"``. Raises ConfigError."""
        parts = text.split(".")
        if len(parts) > 2 or not all(parts):
            raise ConfigError("DuckDB sink", [f"table = {text!r}: give a name, or schema.name"])
        schema, name = parts if len(parts) == 2 else ("main", text)
        if schema.casefold() == OWN_SCHEMA:
            raise ConfigError("DuckDB sink", [f"table = {text!r}: the schema {OWN_SCHEMA} is headrace's own"])
        return cls(schema, name)

    def __str__(self) -> str:
        return self.name if self.schema == "main" else f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@contextmanager
def registered(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> Iterator[None]:
    """``table`` under ``name`` for the SQL of this block, without a copy."""
    connection.register(name, table)
    try:
        yield
    finally:
        connection.unregister(name)


def plain(schema: pa.Schema) -> pa.Schema:
    """The schema that a table is made from: dictionaries as their values, all-null columns as text.

    A dictionary would become an ENUM of the first batch's values, and a column that was only ever null
    has no type to make a column of. Nullability is not carried over: a table column takes NULL.
    """
    fields = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        fields.append(pa.field(field.name, pa.string() if pa.types.is_null(kind) else kind))
    return pa.schema(fields)


def arrow_columns(connection: duckdb.DuckDBPyConnection, table: TableName, schema: pa.Schema) -> Columns:
    """Name and DuckDB type of each column of an Arrow schema.

    Raises SinkMismatch for a type that DuckDB lacks, and for names that it takes for the same.
    """
    folded = [name.casefold() for name in schema.names]
    twice = [name for name in schema.names if folded.count(name.casefold()) > 1]
    if twice:
        raise SinkMismatch(
            f"table {table} cannot have the columns {', '.join(twice)}: DuckDB's names do not differ by case alone",
            hint="Rename one of them in the rows.",
        )
    try:
        with registered(connection, "headrace_shape", schema.empty_table()):
            return _describe(connection, "headrace_shape")
    except duckdb.Error as error:
        types = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise SinkMismatch(
            f"table {table}: DuckDB has no columns for the rows' schema ({types}): {error}"
        ) from error


def table_columns(connection: duckdb.DuckDBPyConnection, table: TableName) -> Columns | None:
    """Name and type of each column of an existing table, or None. Raises SinkMismatch for a view."""
    found = connection.execute(
        "SELECT table_type FROM information_schema.tables WHERE table_catalog = current_database()"
        " AND lower(table_schema) = lower(?) AND lower(table_name) = lower(?)",
        [table.schema, table.name],
    ).fetchone()
    if found is None:
        return None
    if found[0] != "BASE TABLE":
        raise SinkMismatch(
            f"{table} is a {found[0].lower()}: a sink writes to a table",
            hint="Give the sink another table name, or drop the view.",
        )
    return _describe(connection, table.sql)


def create_table(connection: duckdb.DuckDBPyConnection, table: TableName, columns: Columns) -> None:
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}")
    body = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns)
    connection.execute(f"CREATE TABLE {table.sql} ({body})")


def require_same(table: TableName, expected: Columns, found: Columns) -> None:
    """Raise SinkMismatch that lists each column in which ``found`` differs; their order does not matter."""
    wanted = {name.casefold(): (name, kind) for name, kind in expected}
    there = {name.casefold(): (name, kind) for name, kind in found}
    faults = []
    for folded, (name, kind) in wanted.items():
        if folded not in there:
            faults.append(f"{name}: expected {kind}, found no such column")
        elif there[folded][1] != kind:
            faults.append(f"{name}: expected {kind}, found {there[folded][1]}")
    faults += [
        f"{name}: not expected, found {kind}" for folded, (name, kind) in there.items() if folded not in wanted
    ]
    if faults:
        raise SinkMismatch(
            "\n".join([f"table {table} has other columns than the rows:", *(f"  {fault}" for fault in faults)]),
            hint="Change the table (ALTER TABLE), give the sink another table, or mend the schema.",
        )


def conform(table: TableName, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` with exactly the columns and types of ``schema``.

    The engine gives rows of the schema that it adopted: missing and unknown columns, and types that do not go
    over into each other, raise InternalError; a value that its column cannot hold raises DataError.
    """
    if rows.schema.equals(schema):
        return rows
    missing = [name for name in schema.names if name not in rows.schema.names]
    unknown = [name for name in rows.schema.names if name not in schema.names]
    if missing or unknown:
        faults = [f"{name}: missing in the rows" for name in missing]
        faults += [f"{name}: not in the schema" for name in unknown]
        raise InternalError(
            "\n".join([f"rows for table {table} differ from its schema:", *(f"  {fault}" for fault in faults)])
        )
    columns = []
    for field in schema:
        column = rows.column(field.name)
        try:
            columns.append(column if column.type.equals(field.type) else column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise DataError(f"table {table}, column {field.name} ({field.type}): {error}") from error
        except pa.ArrowNotImplementedError as error:
            raise InternalError(
                f"table {table}, column {field.name}: expected {field.type}, found {column.type} in the rows"
            ) from error
    return pa.table(columns, schema=schema)


def _describe(connection: duckdb.DuckDBPyConnection, relation: str) -> Columns:
    return [(row[0], row[1]) for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
