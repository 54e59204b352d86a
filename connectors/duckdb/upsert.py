"""Changes merged into a table by key, without a unique index: the last by ``order_by`` stays.

The table holds live rows only. A deleted key leaves its order in a side table
``headrace."deleted_<table>"`` until it is inserted again, so that an older change that arrives after the
delete loses too. Side rows are never pruned: one for each key that is deleted now.

Which of two changes of a key is later:
- by a column of the rows: the greater value; of equal ones the one that arrives later;
- by ``_offset``, the default: within a partition the higher offset. Offsets of two partitions say nothing
  about each other, so between partitions the one that arrives later wins. Kafka keeps a key in one
  partition unless partitions are added; where that is not enough, order by a column of the source.

A merge scans the table's key columns twice (who is met, what is deleted), whatever the batch's size; DuckDB
skips row groups whose keys lie outside the range of the batch's. Deleting by rowid would scan as well, and skip
nothing.
"""

# ruff: noqa: S608 - only quoted identifiers and names of this module are put into statements.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from connectors.duckdb.schema import OWN_SCHEMA, Columns, TableName, quoted, registered, require_same, table_columns
from engine.errors import RowsRefused, SinkMismatch

OFFSET = "_offset"
PARTITION = "_partition"


@dataclass(frozen=True, slots=True)
class Upsert:
    """The way of changes into ``table``. A row whose ``delete_column`` is true deletes its key.

    The delete column is boolean (NULL is false) and is no column of the table; rows may lack it.
    ``partitioned`` says whether rows have `PARTITION`.
    """

    table: TableName
    key: tuple[str, ...]
    order_by: str
    delete_column: str
    deletes: bool
    partitioned: bool

    @classmethod
    def over(
        cls, table: TableName, key: tuple[str, ...], order_by: str, delete_column: str, schema: pa.Schema
    ) -> Upsert:
        """For rows of ``schema``. Raises SinkMismatch where it lacks a column or has one of a wrong type."""
        missing = [name for name in (*key, order_by) if name not in schema.names]
        if missing:
            raise SinkMismatch(
                f"table {table}: the rows have no column {', '.join(missing)} to upsert by",
                hint=f"Columns: {', '.join(schema.names)}",
            )
        deletes = delete_column in schema.names
        if deletes and not pa.types.is_boolean(schema.field(delete_column).type):
            kind = schema.field(delete_column).type
            raise SinkMismatch(f"table {table}: the delete column {delete_column} is {kind}, expected bool")
        if delete_column in (*key, order_by):
            raise SinkMismatch(f"table {table}: {delete_column} cannot be key or order and the delete column")
        return cls(table, key, order_by, delete_column, deletes, PARTITION in schema.names)

    @property
    def by_offset(self) -> bool:
        """Whether the order holds within a partition only."""
        return self.order_by == OFFSET and self.partitioned

    @property
    def deleted(self) -> TableName:
        """The side table of deleted keys."""
        return TableName(OWN_SCHEMA, f"deleted_{self.table}")

    @property
    def _order_columns(self) -> list[str]:
        columns = [self.order_by, PARTITION] if self.by_offset else [self.order_by]
        return [name for name in columns if name not in self.key]

    def stored(self, schema: pa.Schema) -> pa.Schema:
        """The table's schema: that of the rows without the delete column."""
        return pa.schema([field for field in schema if field.name != self.delete_column])

    def create_side_table(self, connection: duckdb.DuckDBPyConnection, columns: Columns) -> None:
        wanted = {*self.key, *self._order_columns}
        side = [(name, kind) for name, kind in columns if name in wanted]
        found = table_columns(connection, self.deleted)
        if found is not None:
            require_same(self.deleted, side, found)
            return
        body = ", ".join(f"{quoted(name)} {kind}" for name, kind in side)
        connection.execute(f"CREATE TABLE {self.deleted.sql} ({body})")

    def require_values(self, rows: pa.Table) -> None:
        """Raise RowsRefused when a key or the order is NULL."""
        missing: dict[int, str] = {}
        for name in (*self.key, self.order_by):
            if rows.column(name).null_count:
                for row in pc.indices_nonzero(pc.is_null(rows.column(name))).to_pylist():
                    missing.setdefault(row, f"it has no {name!r}, which every change of table {self.table} needs")
        if missing:
            refused = sorted(missing)
            raise RowsRefused(refused, [missing[row] for row in refused])

    def restart(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let every change of a recreated topic win over what the former topic left.

        Its offsets start low again, so rows ordered by offset get a partition number below zero
        (-1 for 0, -2 for 1, ...): they are of a topic that is no more. Deleted keys are forgotten.
        """
        if self.order_by != OFFSET:
            return
        if not self.partitioned:
            raise SinkMismatch(
                f"table {self.table} is ordered by {OFFSET} and has no {PARTITION}: rows of a recreated topic"
                " cannot be told from newer ones",
                hint="Write to another table, or order by a column of the source.",
            )
        connection.execute(f"DELETE FROM {self.deleted.sql}")
        name = quoted(PARTITION)
        connection.execute(f"UPDATE {self.table.sql} SET {name} = -1 - {name} WHERE {name} >= 0")

    def store(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> None:
        """Merge the changes of several shards, given in the order of their arrival."""
        with registered(connection, "headrace_changes", _numbered(rows)):
            last = connection.execute(self._last_of_each_key).to_arrow_table()
        with registered(connection, "headrace_changes", last):
            live = connection.execute(self._meet(self.table)).to_arrow_table()
            dead = connection.execute(self._meet(self.deleted)).to_arrow_table()
        late = pc.unique(pa.concat_tables([live, dead]).filter(pc.field("late")).column("n"))
        winners = last.filter(pc.invert(pc.is_in(last.column("headrace_n"), value_set=late)))
        for table, met in ((self.table, live), (self.deleted, dead)):
            beaten = winners.filter(pc.is_in(winners.column("headrace_n"), value_set=pc.unique(met.column("n"))))
            if beaten.num_rows:
                with registered(connection, "headrace_beaten", beaten.select(self.key)):
                    connection.execute(
                        f"DELETE FROM {table.sql} AS t USING headrace_beaten AS c WHERE {self._same_key}"
                    )
        if not self.deletes:
            self._insert(connection, self.table, winners.drop_columns(["headrace_n", "headrace_shard"]))
            return
        gone = pc.fill_null(winners.column(self.delete_column), False)
        winners = winners.drop_columns(["headrace_n", "headrace_shard", self.delete_column])
        self._insert(connection, self.table, winners.filter(pc.invert(gone)))
        self._insert(connection, self.deleted, winners.filter(gone).select([*self.key, *self._order_columns]))

    @staticmethod
    def _insert(connection: duckdb.DuckDBPyConnection, table: TableName, rows: pa.Table) -> None:
        if rows.num_rows:
            with registered(connection, "headrace_rows", rows):
                connection.execute(f"INSERT INTO {table.sql} BY NAME SELECT * FROM headrace_rows")

    @property
    def _last_of_each_key(self) -> str:
        keys = ", ".join(map(quoted, self.key))
        shard = "headrace_shard DESC, " if self.by_offset else ""
        return (
            f"SELECT * FROM headrace_changes QUALIFY row_number() OVER (PARTITION BY {keys}"
            f" ORDER BY {shard}{quoted(self.order_by)} DESC, headrace_n DESC) = 1"
        )

    def _meet(self, table: TableName) -> str:
        """Which change meets which row of ``table``, and whether that row is the later one."""
        order = quoted(self.order_by)
        late = f"t.{order} > c.{order}"
        if self.by_offset:
            late += f" AND t.{quoted(PARTITION)} = c.{quoted(PARTITION)}"
        return (
            f"SELECT c.headrace_n AS n, coalesce({late}, false) AS late"
            f" FROM {table.sql} AS t JOIN headrace_changes AS c ON {self._same_key}"
        )

    @property
    def _same_key(self) -> str:
        return " AND ".join(f"t.{quoted(name)} = c.{quoted(name)}" for name in self.key)


def _numbered(rows: Sequence[pa.Table]) -> pa.Table:
    """All rows with the number of their shard's commit and their own, in order of arrival."""
    table = pa.concat_tables(rows)
    shards = pa.chunked_array(
        [pa.repeat(pa.scalar(number, pa.int32()), part.num_rows) for number, part in enumerate(rows)]
    )
    numbers = pa.array(range(table.num_rows), pa.int64())
    return table.append_column("headrace_shard", shards).append_column("headrace_n", numbers)
