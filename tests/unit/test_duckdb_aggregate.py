"""Aggregates against an oracle of plain Python: groups, NULLs, late rows, owners, early combining, refusals."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from connectors.duckdb import Database, DuckDBSink, aggregate, pending
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import ConfigError, DataError, RecreatedTopic, ShardLost, SinkMismatch
from engine.protocols import Counts, FailedRecord, Outcome
from tests.forms import examples

STREAM = Stream("cluster", "clicks", "id-1", 3)

#: A row of these is ``(page, kind, count, total, lowest, highest, every, any)``; the first two are the key.
PARTIAL = pa.schema(
    [
        ("page", pa.string()),
        ("kind", pa.int64()),
        ("count", pa.int64()),
        ("total", pa.int64()),
        ("lowest", pa.float64()),
        ("highest", pa.string()),
        ("every", pa.bool_()),
        ("any", pa.bool_()),
    ]
)
AGGREGATES = {
    "count": "count",
    "total": "sum",
    "lowest": "min",
    "highest": "max",
    "every": "bool_and",
    "any": "bool_or",
}
TRACE = {"_partition": 0, "_offset_first": 1, "_offset_last": 2}

Row = tuple[Any, ...]


def sink_over(database: Database, **options: Any) -> DuckDBSink:
    made = {"pipeline": "p", "table": "t", "mode": "aggregate", "clock": SystemClock()}
    made |= {"key": ["page", "kind"], "aggregates": AGGREGATES}
    return DuckDBSink(database, **{**made, **options})


def outcome(start: int, rows: Sequence[Row], schema: pa.Schema = PARTIAL, *, records: int = 1) -> Outcome:
    """An outcome of ``records`` offsets with partial rows, traced as rows of whole batches are."""
    columns = list(zip(*rows, strict=True)) or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.table(arrays, schema=schema)
    for name, value in TRACE.items():
        table = table.append_column(name, pa.array([value] * len(rows), pa.int64()))
    return Outcome(start, start + records, table, Counts(handled=records))


def of(name: str, kind: pa.DataType) -> pa.Schema:
    return pa.schema([("k", pa.string()), (name, kind)])


async def aggregated(path: Path, schema: pa.Schema, how: str, commits: Sequence[Sequence[Row]]) -> list[Row]:
    """A table of ``k`` and ``v`` after one commit for each list of rows."""
    sink = sink_over(Database(path, threads=1), key=["k"], aggregates={"v": how})
    await sink.open(STREAM)
    try:
        shard = await sink.acquire(0)
        for start, rows in enumerate(commits):
            await shard.write(outcome(start, rows, schema))
            await shard.commit()
    finally:
        await sink.close()
    return table_of(path, "SELECT k, v FROM t ORDER BY ALL")


def table_of(path: Path, sql: str) -> list[Row]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture(params=["in place", "moved"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of a merge, and combining as soon as as much has come as there was."""
    monkeypatch.setattr(pending, "COMBINE_BYTES", 1)
    monkeypatch.setattr(aggregate, "CHANGED_VECTORS_MAX", 0 if request.param == "moved" else 1_000)
    monkeypatch.setattr(aggregate, "COMMITS_PER_LOOK", 1)
    return str(request.param)


# The oracle


def oracle(rows: Sequence[Row]) -> dict[Row, Row]:
    """The groups by key, as SQL's aggregates make them: NULL is a key like others, and no value."""
    groups: dict[Row, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[:2], []).append(row[2:])
    made = {}
    for key, values in groups.items():
        columns = [[value for value in column if value is not None] for column in zip(*values, strict=True)]
        ways = (sum, sum, min, max, all, any)
        made[key] = tuple(way(column) if column else None for way, column in zip(ways, columns, strict=True))
    return made


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


ROW = st.tuples(
    maybe(st.sampled_from(["", "a", "b"])),
    maybe(st.integers(0, 1)),
    st.integers(0, 5),
    maybe(st.integers(-(2**55), 2**55)),
    maybe(st.floats(-4, 4)),
    maybe(st.text("xyz", max_size=2)),
    maybe(st.booleans()),
    maybe(st.booleans()),
)

SHARDS = st.integers(0, 2)

#: What happens: rows are written, shards commit together, get another owner, or the file is closed and opened.
STEP = st.one_of(
    st.tuples(st.just("write"), SHARDS, st.lists(ROW, max_size=4)),
    st.tuples(st.just("write"), SHARDS, st.lists(ROW, min_size=1, max_size=4)),
    st.tuples(st.just("commit"), st.sets(SHARDS, min_size=1), st.none()),
    st.tuples(st.just("own"), SHARDS, st.booleans()),
    st.tuples(st.just("reopen"), st.none(), st.none()),
)


class Play:
    """Plays steps against a sink, and keeps what has to be in its table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.committed: list[Row] = []
        self.waiting: list[list[Row]] = [[], [], []]

    async def open(self) -> None:
        self.sink = sink_over(Database(self.path, threads=1))
        await self.sink.open(STREAM)
        self.shards = [await self.sink.acquire(number) for number in range(3)]
        self.ends = [shard.position or 0 for shard in self.shards]

    async def run(self, steps: Sequence[tuple[str, Any, Any]]) -> None:
        await self.open()
        for step, which, what in steps:
            if step == "write":
                await self.shards[which].write(outcome(self.ends[which], what))
                self.ends[which] += 1
                self.waiting[which] += what
            elif step == "commit":
                await self.commit(which)
            elif step == "own":
                await self.own(which, late=what)
            else:
                await self.sink.close()
                self.waiting = [[], [], []]
                await self.open()
        await self.commit({0, 1, 2})
        await self.sink.close()

    async def commit(self, which: set[int]) -> None:
        await asyncio.gather(*(self.shards[number].commit() for number in which))
        for number in which:
            self.committed += self.waiting[number]
            self.waiting[number] = []

    async def own(self, which: int, *, late: bool) -> None:
        """Another owner takes the shard; the last one, which hears of it late, tries to commit."""
        last, self.shards[which] = self.shards[which], await self.sink.acquire(which)
        if late and self.waiting[which]:
            with pytest.raises(ShardLost):
                await last.commit()
        await last.release()
        self.waiting[which] = []
        self.ends[which] = self.shards[which].position or 0


@settings(
    max_examples=examples(15, 400),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
@given(steps=st.lists(STEP, min_size=1, max_size=16))
def test_any_rows_in_any_commits_of_any_owners_equal_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, way: str, steps: list[tuple[str, Any, Any]]
) -> None:
    """Shards, commits, owners and reopenings cut the rows anywhere: each committed row counts, once, no other."""
    play = Play(tmp_path_factory.mktemp("oracle") / "t.db")
    asyncio.run(play.run(steps))
    expected = oracle(play.committed)
    if play.sink.target is None:  # no row was ever given, so there is no table
        assert not expected
        return
    columns = ", ".join(f'"{name}"' for name in PARTIAL.names)
    found = table_of(play.path, f"SELECT {columns} FROM t")
    assert {row[:2]: row[2:] for row in found} == expected
    assert len(found) == len(expected)


# Merging


def test_nulls_are_a_group_and_no_values(tmp_path: Path, way: str) -> None:
    """NULL keys meet each other, also with -0.0 and NaN beside them; NULL values leave what there was."""
    schema = pa.schema([("k", pa.float64()), ("v", pa.int64())])
    first = [(None, None), (math.nan, 1), (0.0, None)]
    second = [(None, 5), (math.nan, 2), (-0.0, 7)]
    rows = asyncio.run(aggregated(tmp_path / "t.db", schema, "sum", [first, second, first]))
    assert [str(row) for row in rows] == ["(0.0, 7)", "(nan, 4)", "(None, 5)"]


@pytest.mark.parametrize(
    ("how", "kind", "values", "expected"),
    [
        ("sum", pa.int64(), [2, None, -5], -3),
        ("count", pa.uint32(), [2, 3, 4], 9),
        ("sum", pa.decimal128(9, 2), [Decimal("0.10"), Decimal("0.20"), None], Decimal("0.30")),
        ("sum", pa.float64(), [0.5, 1e300, -1e300], 0.0),
        ("max", pa.string(), ["b", None, "a\0b"], "b"),
        (
            "min",
            pa.timestamp("ns"),
            [dt.datetime(2020, 1, 2), dt.datetime(1969, 1, 1), None],
            dt.datetime(1969, 1, 1),
        ),
        ("max", pa.float64(), [1.0, math.inf, None], math.inf),
        ("min", pa.binary(), [b"\xff", b"\x00", b""], b""),
        ("bool_and", pa.bool_(), [True, None, False], False),
        ("bool_or", pa.bool_(), [None, None, None], None),
    ],
)
async def test_values_of_each_type_merge_over_commits(
    tmp_path: Path, how: str, kind: pa.DataType, values: list[Any], expected: Any
) -> None:
    """Each aggregate over the types that it takes, a commit for each value, keeps the column's type."""
    rows = await aggregated(tmp_path / "t.db", of("v", kind), how, [[("a", value)] for value in values])
    assert rows == [("a", expected)]


@pytest.mark.parametrize(
    "kind",
    [pa.int32(), pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ns"), pa.timestamp("us", "UTC")],
)
async def test_rows_outside_of_the_range_of_a_commit_are_met_again_later(
    tmp_path: Path, way: str, kind: pa.DataType
) -> None:
    """A late row of an old window is merged into it, for every type of key whose range narrows the search."""
    schema = pa.schema([("window", kind), ("n", pa.int64())])
    path = tmp_path / "t.db"
    sink = sink_over(Database(path, threads=1), key=["window"], aggregates={"n": "count"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    windows = pa.array([-100_000, 0, 100_000], pa.int32() if kind != pa.timestamp("ns") else pa.int64())
    if kind != pa.int32():
        windows = windows.cast(pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    for start, picked in enumerate([[0, 1], [2], [0], [0, 2], [1]]):
        table = pa.table([windows.take(pa.array(picked)), pa.array([1] * len(picked), pa.int64())], schema=schema)
        await shard.write(Outcome(start, start + 1, table, Counts(handled=1)))
        await shard.commit()
    await sink.close()
    assert table_of(path, 'SELECT n FROM t ORDER BY "window"') == [(3,), (2,), (2,)]


async def test_the_trace_of_rows_is_no_part_of_a_group(tmp_path: Path) -> None:
    """Rows of several partitions and offsets make one group; the table has the key and the aggregates alone."""
    path = tmp_path / "t.db"
    await aggregated(path, of("v", pa.int64()), "sum", [[("a", 1), ("a", 2)], [("a", 3)]])
    assert table_of(path, "SELECT * FROM t") == [("a", 6)]
    assert table_of(path, "SELECT sum(rows_given) FROM headrace.positions") == [(3,)]


async def test_a_topic_made_anew_is_counted_on_top(tmp_path: Path) -> None:
    """With "restart" the new topic's records are added to what the former one left."""
    path = tmp_path / "t.db"
    await aggregated(path, of("v", pa.int64()), "sum", [[("a", 1)]])
    options = {"key": ["k"], "aggregates": {"v": "sum"}}
    anew = Stream("cluster", "clicks", "id-2", 3)
    with pytest.raises(RecreatedTopic):
        await sink_over(Database(path), **options).open(anew)
    sink = sink_over(Database(path), on_recreated_topic="restart", **options)
    await sink.open(anew)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, [("a", 10)], of("v", pa.int64())))
    await shard.commit()
    await sink.close()
    assert table_of(path, "SELECT k, v FROM t") == [("a", 11)]


# Sums that are too large


@pytest.mark.parametrize(
    ("kind", "large"),
    [
        (pa.int32(), 2**31 - 1),
        (pa.int64(), 2**63 - 1),
        (pa.uint64(), 2**64 - 1),
        (pa.decimal128(9, 2), Decimal("9999999.99")),
        (pa.decimal128(38, 0), Decimal(6 * 10**37)),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_a_sum_that_leaves_its_type_fails_the_commit_and_changes_nothing(
    tmp_path: Path, way: str, kind: pa.DataType, large: Any, together: bool
) -> None:
    """In one batch or against the table, the error names table and offsets, and rows and position stay."""
    path, schema = tmp_path / "t.db", of("v", kind)
    sink = sink_over(Database(path, threads=1), key=["k"], aggregates={"v": "sum"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, [("a", large), ("b", 1)], schema))
    await shard.commit()
    rows = [("c", large), ("c", large)] if together else [("a", large)]
    await shard.write(outcome(1, [*rows, ("b", 1)], schema))
    with pytest.raises(DataError, match=r"table t refuses rows of offsets \[1, 2\)"):
        await shard.commit()
    assert await sink.position(0) == 1
    # Another shard is not held up by it, also where they would have committed together.
    other = await sink.acquire(1)
    await other.write(outcome(0, [("b", 5)], schema))
    refused, end = await asyncio.gather(shard.commit(), other.commit(), return_exceptions=True)
    assert (type(refused), end) == (DataError, 1)
    await sink.close()
    assert table_of(path, "SELECT k, v FROM t ORDER BY k") == [("a", large), ("b", 6)]


async def test_a_sum_that_is_too_large_while_it_waits_leaves_the_outcome_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Combining early refuses what a commit would refuse; what waited before stays and can be committed."""
    monkeypatch.setattr(pending, "COMBINE_BYTES", 1)
    schema = of("v", pa.int64())
    sink = sink_over(Database(tmp_path / "t.db"), key=["k"], aggregates={"v": "sum"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, [("a", 2**62)], schema))
    await shard.write(outcome(1, [("a", 2**62)], schema))
    with pytest.raises(DataError, match="table t refuses"):
        await shard.write(outcome(2, [("b", 1)], schema))
    await sink.close()


# Memory


async def test_what_waits_is_bounded_by_its_groups_and_not_by_its_rows(tmp_path: Path) -> None:
    """Half a million partial rows of 2,000 groups wait in a few megabytes, and say so; their sum is right."""
    path = tmp_path / "t.db"
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    sink = sink_over(Database(path), key=["k"], aggregates={"v": "sum"}, commit_interval_max_seconds=3_600)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    most = 0
    for number in range(50):
        keys = [(number * 7 + row) % 2_000 for row in range(10_000)]
        table = pa.table([pa.array(keys), pa.array([1] * 10_000)], schema=schema)
        await shard.write(Outcome(number, number + 1, table, Counts(handled=1)))
        most = max(most, shard.pending_bytes)
    assert most <= 2 * pending.COMBINE_BYTES
    assert shard.pending_bytes < 50 * 10_000 * 16
    await shard.commit()
    assert shard.pending_bytes == 0
    await sink.close()
    assert table_of(path, "SELECT count(*), min(v), max(v) FROM t") == [(2_000, 250, 250)]
    assert table_of(path, "SELECT rows_given FROM headrace.positions") == [(500_000,)]


async def test_small_tables_are_held_in_no_more_than_they_say(tmp_path: Path) -> None:
    """DuckDB's results keep tens of kilobytes for a row; what waits has been copied out of them."""
    sink = sink_over(Database(tmp_path / "t.db"), key=["k"], aggregates={"v": "sum"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    base = pa.total_allocated_bytes()
    with duckdb.connect() as connection:
        wide = pa.table({"k": pa.array(["x" * 100] * 2_000), "v": pa.array([1] * 2_000)})
        for number in range(60):
            rows = (
                wide.slice(number, 1)
                if number % 2
                else connection.execute("SELECT 'a' AS k, 1::BIGINT AS v").to_arrow_table()
            )
            await shard.write(Outcome(number, number + 1, rows, Counts(handled=1)))
        del wide, rows
    held = pa.total_allocated_bytes() - base
    assert 60 * 9 <= held <= shard.pending_bytes <= 60 * (pending.TABLE_BYTES + 200)
    await sink.close()


async def test_failed_records_are_of_the_commit_also_after_combining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are combined early take no failed record and no count with them."""
    monkeypatch.setattr(pending, "COMBINE_BYTES", 1)
    sink = sink_over(Database(tmp_path / "t.db"), key=["k"], aggregates={"v": "sum"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    for offset in range(6):
        failed = FailedRecord(0, 2 * offset, 0, None, b"x", (), "no", "ValueError", 1)
        rows = outcome(0, [("a", 1)], of("v", pa.int64())).rows
        await shard.write(Outcome(2 * offset, 2 * offset + 2, rows, Counts(handled=1, failed=1), [failed]))
    assert await shard.commit() == 12
    assert [record.offset for record in (await shard.failures(10))[1]] == [0, 2, 4, 6, 8, 10]
    await sink.close()


# Refusals


@pytest.mark.parametrize(
    ("key", "aggregates", "named"),
    [
        ([], {"v": "sum"}, "at least one column"),
        (["k"], {}, "at least one; count"),
        (["k"], {"v": "avg"}, "'avg': valid are sum, min, max, bool_and, bool_or, count; keep sum and count"),
        (["k"], {"v": "last"}, "aggregates.v = 'last': valid are"),
        (["k"], {"k": "max", "v": "sum"}, "k cannot be of the key and have an aggregate"),
        (["k", "_partition"], {"v": "sum"}, "_partition is a trace column"),
        (["k"], {"_timestamp": "max"}, r"max\(_timestamp\) AS latest"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, key: list[str], aggregates: dict[str, str], named: str
) -> None:
    """The error says what is wrong and what is valid."""
    with pytest.raises(ConfigError, match=named):
        sink_over(Database(tmp_path / "t.db"), key=key, aggregates=aggregates)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_aggregates_belong_to_their_mode(tmp_path: Path, mode: str) -> None:
    """Other modes take no aggregates."""
    key = ["k"] if mode == "upsert" else []
    with pytest.raises(ConfigError, match="takes none"):
        sink_over(Database(tmp_path / "t.db"), mode=mode, key=key, aggregates={"v": "sum"})


@pytest.mark.parametrize(
    ("schema", "how", "named"),
    [
        (
            pa.schema([("k", pa.string()), ("w", pa.int64())]),
            "sum",
            r"v: the rows have no such column\n  w: neither",
        ),
        (pa.schema([("v", pa.int64())]), "sum", "k: the rows have no such column"),
        (of("v", pa.string()), "sum", "v is string: sum takes integers, decimals and 64-bit floats"),
        (of("v", pa.float32()), "sum", "v is float: sum takes"),
        (of("v", pa.bool_()), "sum", "v is bool: sum takes"),
        (of("v", pa.float64()), "count", "v is double: count takes integers"),
        (of("v", pa.int64()), "bool_or", "v is int64: bool_or takes booleans"),
        (of("v", pa.list_(pa.int64())), "max", "max takes values that have an order"),
    ],
)
async def test_rows_that_cannot_be_aggregated_are_refused_by_column(
    tmp_path: Path, schema: pa.Schema, how: str, named: str
) -> None:
    """Every column of the rows is of the key or has an aggregate that takes its type; else nothing is adopted."""
    sink = sink_over(Database(tmp_path / "t.db"), key=["k"], aggregates={"v": how})
    await sink.open(STREAM)
    with pytest.raises(SinkMismatch, match=named):
        await sink.adopt_schema("rows", schema)
    assert await sink.schema("rows") is None
    await sink.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mode": "append", "key": [], "aggregates": {}}, "mode 'aggregate', not to 'append'"),
        ({"mode": "upsert", "aggregates": {}}, "mode 'aggregate', not to 'upsert'"),
        ({"key": ["k", "l"]}, "key 'k', not to 'k, l'"),
        ({"aggregates": {"v": "max"}}, "aggregates 'v = sum', not to 'v = max'"),
        ({"aggregates": {"v": "sum", "w": "min"}}, "aggregates 'v = sum', not to 'v = sum, w = min'"),
    ],
)
async def test_a_table_keeps_its_mode_key_and_aggregates(
    tmp_path: Path, options: Mapping[str, Any], named: str
) -> None:
    """A sink with other settings is refused by what differs; "count" is only another name for "sum"."""
    path = tmp_path / "t.db"
    await aggregated(path, of("v", pa.int64()), "sum", [[("a", 1)]])
    with pytest.raises(SinkMismatch, match=named):
        await sink_over(Database(path), **{"key": ["k"], "aggregates": {"v": "sum"}, **options}).open(STREAM)
    again = sink_over(Database(path), key=["k"], aggregates={"v": "count"})
    await again.open(STREAM)
    await again.close()


async def test_a_table_of_another_mode_is_refused(tmp_path: Path) -> None:
    """A table of rows does not become one of groups."""
    path = tmp_path / "t.db"
    sink = sink_over(Database(path), mode="append", key=[], aggregates={})
    await sink.open(STREAM)
    await sink.close()
    with pytest.raises(SinkMismatch, match="mode 'append', not to 'aggregate'"):
        await sink_over(Database(path)).open(STREAM)


async def test_a_group_that_somebody_doubled_stops_the_commit(tmp_path: Path, way: str) -> None:
    """A second row of a group would count twice: the commit is refused, and goes through once it is gone."""
    path, schema = tmp_path / "t.db", of("v", pa.int64())
    await aggregated(path, schema, "sum", [[("a", 1), (None, 1)]])
    with duckdb.connect(path) as connection:
        connection.execute("INSERT INTO t VALUES (NULL, 5)")
    sink = sink_over(Database(path), key=["k"], aggregates={"v": "sum"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(1, [("a", 1), (None, 1), ("new", 1)], schema))
    with pytest.raises(SinkMismatch, match="table t has several rows for one group: 4 rows for 3 groups"):
        await shard.commit()
    await sink.database.run(lambda connection: connection.execute("DELETE FROM t WHERE v = 5"))
    assert await shard.commit() == 2
    await sink.close()
    assert table_of(path, "SELECT k, v FROM t ORDER BY ALL") == [("a", 2), ("new", 1), (None, 2)]


# Which way


async def test_scattered_groups_are_moved_and_neighbours_changed_in_place(tmp_path: Path) -> None:
    """Groups all over a large table would have DuckDB rewrite it in each commit: they go to its end instead."""
    path, schema = tmp_path / "t.db", pa.schema([("k", pa.int64()), ("v", pa.int64())])
    sink = sink_over(Database(path), key=["k"], aggregates={"v": "sum"})
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    count = aggregate.VECTOR_ROWS * 300
    await sink.adopt_schema("rows", schema)
    ordered = f"INSERT INTO t SELECT n, 1 FROM range({count}) AS numbers(n)"
    await sink.database.run(lambda connection: connection.execute(ordered))

    async def add(start: int, keys: range) -> int | None:
        """Add 1 to the groups, and say where the table's first row lies then."""
        table = pa.table([pa.array(keys), pa.array([1] * len(keys))], schema=schema)
        await shard.write(Outcome(start, start + 1, table, Counts(handled=1)))
        await shard.commit()
        sink.target._commits = 0  # type: ignore[union-attr] # look again
        found = await sink.database.run(
            lambda connection: connection.execute("SELECT rowid FROM t WHERE k = 0").fetchone()
        )
        return None if found is None else int(found[0])

    assert await add(0, range(aggregate.VECTOR_ROWS * 4)) == 0
    moved = await add(1, range(0, count, aggregate.VECTOR_ROWS))
    assert moved is not None
    assert moved >= count
    await sink.close()
    sums = "SELECT v, count(*) FROM t GROUP BY v ORDER BY v"
    assert table_of(path, sums) == [(1, count - 8192 - 296), (2, 8192 - 4 + 296), (3, 4)]
