"""Partial aggregates merged into a table by key, without a unique index: one row for each group, for good.

A row of the pipeline is a partial aggregate of some records: the columns of the key, and for every other column
one of `AGGREGATES`, which says how two partial values become one. What is pending is combined by one GROUP BY and
then merged into the table, in the transaction that moves the positions: each record counts once, and a late one
counts too. NULL in a key is a value like any other; NULL among the values is what SQL's aggregates make of it.

A sum is worked out in DuckDB's wider type and refused (DataError) where it leaves the column's own: a BIGINT sum
beyond 64 bits, a decimal one beyond 38 digits. Floats follow IEEE 754 as in SQL: their last digits depend on the
order of the commits, and an overflow is infinity.

The trace columns of rows say nothing of a group and are no columns of the table.

There are two ways into the table, both one scan of its key columns, in which DuckDB skips row groups whose integer,
date and timestamp keys lie outside of the range of the batch's:
- MERGE changes rows where they lie. Best for windows, whose rows lie together at the table's end;
- DELETE and INSERT moves them to the end. Best for keys all over a large table: of each vector with a changed row
  DuckDB keeps the whole, and from 16 MB of those on it rewrites the table's row groups in every commit.
A commit looks now and then which one suits (`Aggregate.store`).
"""

# ruff: noqa: S608 - only quoted identifiers, literals and names of this module are put into statements.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from connectors.duckdb.pending import COMBINE_BYTES, compact
from connectors.duckdb.schema import TableName, quoted, registered
from engine.errors import DataError, SinkMismatch
from engine.output import TRACE_NAMES

#: Aggregates that merge: DuckDB's function over partial values, and the same of the table's value and a batch's.
AGGREGATES: Mapping[str, tuple[str, str]] = {
    "sum": ("sum({0})", "coalesce(t.{0} + d.{0}, t.{0}, d.{0})"),
    "min": ("min({0})", "least(t.{0}, d.{0})"),
    "max": ("max({0})", "greatest(t.{0}, d.{0})"),
    "bool_and": ("bool_and({0})", "coalesce(t.{0} AND d.{0}, t.{0}, d.{0})"),
    "bool_or": ("bool_or({0})", "coalesce(t.{0} OR d.{0}, t.{0}, d.{0})"),
}

#: Another name for one of them: the count of a group is the sum of its parts' counts.
ALIASES: Mapping[str, str] = {"count": "sum"}

#: DuckDB keeps about 25 kB for each vector (of so many rows) and column that a transaction changes in place; at
#: 16 MB of those and its log together it writes no log but rewrites row groups.
VECTOR_ROWS = 2_048
CHANGED_VECTORS_MAX = 256

#: Looking which way suits costs a scan of the key columns of its own: once in so many commits.
COMMITS_PER_LOOK = 16


def faults(key: Sequence[str], aggregates: Mapping[str, str]) -> list[str]:
    """What is wrong with the settings of mode "aggregate", each in a sentence."""
    found = []
    if not key:
        found.append("key = []: mode \"aggregate\" takes at least one column; SELECT 'all' AS name gives one")
    if not aggregates:
        found.append('aggregates = {}: mode "aggregate" takes at least one; count(*) AS count gives one')
    for name in dict.fromkeys([*key, *aggregates]):
        if name in TRACE_NAMES:
            found.append(
                f"{name} is a trace column of single rows, which a table of aggregates does not keep; give what is"
                f" meant another name in the query: max({name}) AS latest"
            )
        elif name in key and name in aggregates:
            found.append(f"{name} cannot be of the key and have an aggregate")
    valid = ", ".join([*AGGREGATES, *ALIASES])
    for name, aggregate in aggregates.items():
        if aggregate not in AGGREGATES and aggregate not in ALIASES:
            mean = "; keep sum and count, and divide when reading" if aggregate in ("avg", "mean") else ""
            found.append(f"aggregates.{name} = {aggregate!r}: valid are {valid}{mean}")
    return found


def canonical(aggregates: Mapping[str, str]) -> dict[str, str]:
    """The same aggregates by their own names, ordered by column."""
    return {name: ALIASES.get(aggregates[name], aggregates[name]) for name in sorted(aggregates)}


@dataclass(eq=False, slots=True)
class Aggregate:
    """The way of partial aggregates into ``table``: the columns ``key``, and ``aggregates`` of all others."""

    table: TableName
    key: tuple[str, ...]
    aggregates: Mapping[str, str]
    schema: pa.Schema
    _commits: int = field(default=0, init=False)
    _is_spread: bool = field(default=False, init=False)

    @classmethod
    def over(
        cls, table: TableName, key: tuple[str, ...], aggregates: Mapping[str, str], schema: pa.Schema
    ) -> Aggregate:
        """For rows of ``schema``. Raises SinkMismatch that names each column that does not fit."""
        stored = pa.schema([column for column in schema if column.name not in TRACE_NAMES])
        missing = [name for name in (*key, *aggregates) if name not in stored.names]
        wrong = [f"{name}: the rows have no such column" for name in missing]
        for column in stored:
            if column.name in aggregates:
                wrong += _type_fault(column, aggregates[column.name])
            elif column.name not in key:
                wrong.append(f"{column.name}: neither of the key nor in aggregates")
        if wrong:
            raise SinkMismatch(
                "\n  ".join([f"table {table} cannot keep these rows as aggregates:", *wrong]),
                hint='key = ["COLUMN", ...] and aggregates = {COLUMN = "sum", ...} name every column of the rows.',
            )
        return cls(table, key, canonical(aggregates), stored)

    def partial(self, rows: pa.Table) -> pa.Table:
        """``rows`` without their trace."""
        return rows.select(self.schema.names)

    def combine(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> pa.Table:
        """The same groups, each once, in a table of the same columns that holds nothing but them.

        Raises DataError for a sum that leaves its column's type.
        """
        try:
            return compact(self._grouped(connection, rows).cast(self.schema))
        except (duckdb.OutOfRangeException, pa.ArrowInvalid) as error:
            raise DataError(f"table {self.table} refuses what is to be added to it: {error}") from error

    def store(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> None:
        """Merge partial aggregates of several shards."""
        groups = self._grouped(connection, rows)
        with registered(connection, "headrace_groups", groups):
            same = self._same_group(connection, groups)
            if self._commits % COMMITS_PER_LOOK == 0:
                self._is_spread = self._look(connection, groups, same)
            self._commits += 1
            count = self._move(connection, same) if self._is_spread else self._merge(connection, same)
        if count != groups.num_rows:
            raise SinkMismatch(
                f"table {self.table} has several rows for one group: {count} rows for {groups.num_rows} groups",
                hint="Somebody else has written to it. Leave one row for each value of the key.",
            )

    def _look(self, connection: duckdb.DuckDBPyConnection, groups: pa.Table, same: str) -> bool:
        """Whether the rows of ``groups`` lie in more vectors than it is wise to change in place."""
        vectors_max = CHANGED_VECTORS_MAX // len(self.aggregates)
        if groups.num_rows <= vectors_max:
            return False
        found = connection.execute(
            f"SELECT count(DISTINCT t.rowid // {VECTOR_ROWS}) FROM {self.table.sql} AS t"
            f" SEMI JOIN headrace_groups AS d ON {same}"
        ).fetchone()
        return found is not None and found[0] > vectors_max

    def _merge(self, connection: duckdb.DuckDBPyConnection, same: str) -> int:
        """Change rows in place and add new ones; how many of both."""
        changes = ", ".join(
            f"{quoted(name)} = {AGGREGATES[aggregate][1].format(quoted(name))}"
            for name, aggregate in self.aggregates.items()
        )
        found = connection.execute(
            f"MERGE INTO {self.table.sql} AS t USING headrace_groups AS d ON {same}"
            f" WHEN MATCHED THEN UPDATE SET {changes} WHEN NOT MATCHED THEN INSERT BY NAME"
        ).fetchone()
        return 0 if found is None else int(found[0])

    def _move(self, connection: duckdb.DuckDBPyConnection, same: str) -> int:
        """Take out the rows of the groups and put them in again at the end, changed, with new ones; how many."""
        taken = connection.execute(
            f"DELETE FROM {self.table.sql} AS t USING headrace_groups AS d WHERE {same}"
            f" RETURNING {', '.join(f't.{quoted(name)}' for name in self.schema.names)}"
        ).to_arrow_table()
        with registered(connection, "headrace_taken", taken):
            both = self._grouping(
                "(FROM headrace_taken UNION ALL BY NAME FROM headrace_groups)", "count(*) AS headrace_n"
            )
            changed = self._checked(connection.execute(both).to_arrow_table())
        twice = pc.sum(pc.greater(changed.column("headrace_n"), 2)).as_py()
        with registered(connection, "headrace_changed", changed.drop_columns(["headrace_n"])):
            connection.execute(f"INSERT INTO {self.table.sql} BY NAME FROM headrace_changed")
        return int(changed.num_rows + twice)

    def _grouped(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> pa.Table:
        """One row for each group; sums have the type that DuckDB gives them."""
        partial = pa.concat_tables(rows)
        if partial.nbytes <= COMBINE_BYTES:
            # DuckDB starts a task for each chunk, which costs more than a small one's rows.
            partial = partial.combine_chunks()
        with registered(connection, "headrace_partial", partial):
            return self._checked(connection.execute(self._grouping("headrace_partial")).to_arrow_table())

    def _grouping(self, relation: str, *more: str) -> str:
        columns = [
            f"{AGGREGATES[self.aggregates[name]][0].format(quoted(name))} AS {quoted(name)}"
            if name in self.aggregates
            else quoted(name)
            for name in self.schema.names
        ]
        return f"SELECT {', '.join([*columns, *more])} FROM {relation} GROUP BY {', '.join(map(quoted, self.key))}"

    def _checked(self, groups: pa.Table) -> pa.Table:
        """``groups``, whose sums are values of their types: DuckDB 1.5 lets those of decimals pass 38 digits."""
        for name, column in zip(groups.column_names, groups.columns, strict=True):
            if pa.types.is_decimal(column.type):
                try:
                    column.validate(full=True)
                except pa.ArrowInvalid as error:
                    raise duckdb.OutOfRangeException(f"the sum of column {name} is too large: {error}") from error
        return groups

    def _same_group(self, connection: duckdb.DuckDBPyConnection, groups: pa.Table) -> str:
        """Where a row of the table (t) is of the group of a batch's row (d), and within the range of them all.

        The range says nothing that the equalities do not, but as literals it lets DuckDB skip row groups.
        """
        parts = [f"t.{quoted(name)} IS NOT DISTINCT FROM d.{quoted(name)}" for name in self.key]
        for name in self.key:
            column = groups.column(name)
            if column.null_count == 0 and (ends := _ends(connection, name, column)) is not None:
                parts.append(f"t.{quoted(name)} BETWEEN {ends[0]} AND {ends[1]}")
        return " AND ".join(parts)


def _ends(connection: duckdb.DuckDBPyConnection, name: str, column: pa.ChunkedArray) -> tuple[str, str] | None:
    """The least and the greatest value of a column of the groups, as SQL. Text and floats lie all over a table."""
    if pa.types.is_integer(column.type):
        ends = pc.min_max(column)
        return str(ends["min"].as_py()), str(ends["max"].as_py())
    if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
        return None
    value = quoted(name)
    [(kind, low, high)] = connection.execute(
        f"SELECT typeof(any_value({value})), min({value})::VARCHAR, max({value})::VARCHAR FROM headrace_groups"
    ).fetchall()
    return f"CAST('{low}' AS {kind})", f"CAST('{high}' AS {kind})"


def _type_fault(column: pa.Field, aggregate: str) -> list[str]:
    kind = column.type
    match aggregate:
        case "count":
            fits, valid = pa.types.is_integer(kind), "integers"
        case "sum":
            # A 32-bit float forgets small parts of a large sum: 16,777,216 + 1 stays what it was.
            is_number = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_float64(kind)
            fits, valid = is_number, "integers, decimals and 64-bit floats (DOUBLE)"
        case "bool_and" | "bool_or":
            fits, valid = pa.types.is_boolean(kind), "booleans"
        case _:
            fits, valid = not pa.types.is_nested(kind), "values that have an order"
    return [] if fits else [f"{column.name} is {kind}: {aggregate} takes {valid}"]
