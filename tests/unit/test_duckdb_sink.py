"""The DuckDB sink: exactly-once commits, owners, schemas, failures, and what a bad file or table gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from connectors.duckdb import Database, DuckDBShard, DuckDBSink, catalog
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import (
    ConfigError,
    DataError,
    InternalError,
    RecreatedTopic,
    ShardLost,
    SinkMismatch,
    SinkUnavailable,
)
from engine.protocols import Counts, FailedRecord, Outcome

STREAM = Stream("cluster", "clicks", "id-1", 4)
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])


class FakeClock(SystemClock):
    """A monotonic clock that the test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def outcome(start: int, end: int, rows: pa.Table | None = None, failures: Sequence[FailedRecord] = ()) -> Outcome:
    """An outcome that counts what did not fail as handled; rows (id, name) of its offsets unless given."""
    if rows is None:
        rows = pa.table(
            {"id": list(range(start, end)), "name": [f"n{i}" for i in range(start, end)]}, schema=SCHEMA
        )
    return Outcome(start, end, rows, Counts(handled=end - start - len(failures), failed=len(failures)), failures)


def failure(partition: int, offset: int) -> FailedRecord:
    headers = (("h", b"\xff"), ("none", None))
    return FailedRecord(partition, offset, 5, b"k", None, headers, "no good", "ValueError", 3)


@asynccontextmanager
async def opened(path: Path, stream: Stream = STREAM, **options: Any) -> AsyncIterator[DuckDBSink]:
    """A sink of its own `Database` over ``path``, closed at the end."""
    database = options.pop("database", None) or Database(path, threads=2)
    settings = {"pipeline": "p", "table": "clicks", "clock": SystemClock(), **options}
    sink = DuckDBSink(database, **settings)
    await sink.open(stream)
    try:
        yield sink
    finally:
        await sink.close()


def read(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What another program sees in the closed file."""
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


async def committed(shard: DuckDBShard, *outcomes: Outcome) -> int:
    for each in outcomes:
        await shard.write(each)
    return await shard.commit()


async def test_rows_and_position_are_durable_together(tmp_path: Path) -> None:
    """Committed rows and the position are in the file; what was only written is not."""
    path = tmp_path / "new" / "out.db"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        assert shard.position is None
        assert await committed(shard, outcome(5, 8), outcome(8, 10)) == 10
        await shard.write(outcome(10, 12))
        assert shard.position == 10
        assert await sink.position(0) == 10
        assert await sink.position(1) is None
    assert read(path, "SELECT id FROM clicks ORDER BY id") == [(i,) for i in range(5, 10)]
    assert not path.with_name("out.db.wal").exists()
    async with opened(path) as sink:
        assert (await sink.acquire(0)).position == 10
        assert sink.partitions_at_start == 4


async def test_a_range_without_rows_moves_the_position(tmp_path: Path) -> None:
    """Ranges without rows, and the empty range of a resolved start, are commits like any other."""
    async with opened(tmp_path / "out.db") as sink:
        shard = await sink.acquire(2)
        assert shard.due_at() is None
        assert await committed(shard, Outcome(100, 100, None, Counts())) == 100
        assert await sink.position(2) == 100
        assert await committed(shard, Outcome(100, 130, None, Counts(absent=20, filtered=10))) == 130
        assert (await sink.acquire(2)).position == 130


async def test_a_gap_is_refused_on_write(tmp_path: Path) -> None:
    """An outcome that does not follow the last one is a bug, and changes nothing."""
    async with opened(tmp_path / "out.db") as sink:
        shard = await sink.acquire(0)
        await shard.write(outcome(0, 3))
        with pytest.raises(InternalError, match="does not follow 3"):
            await shard.write(outcome(4, 5))
        assert await committed(shard, outcome(3, 5)) == 5


async def test_a_damaged_position_is_found_on_takeover(tmp_path: Path) -> None:
    """The counts of a position are held against its range when it is read back."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(0, 3))
    with duckdb.connect(path) as connection:
        connection.execute("UPDATE headrace.positions SET next_offset = 2")
    async with opened(path) as sink:
        with pytest.raises(InternalError, match="damaged"):
            await sink.acquire(0)


async def test_a_zombie_commits_nothing_even_where_the_position_has_not_moved(tmp_path: Path) -> None:
    """Of two owners in one process the later one fences the earlier one before it commits anything."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        old = await sink.acquire(0)
        await committed(old, outcome(0, 2))
        await old.write(outcome(2, 4))
        new = await sink.acquire(0)
        assert new.position == 2
        with pytest.raises(ShardLost):
            await old.commit()
        with pytest.raises(ShardLost):
            await old.failures(1)
        assert old.pending_bytes == 0
        assert await committed(new, outcome(2, 5)) == 5
    assert read(path, "SELECT count(*), count(DISTINCT id) FROM clicks") == [(5, 5)]


async def test_an_owner_with_a_stale_position_is_fenced(tmp_path: Path) -> None:
    """The position is compared as well as the owner: a row moved by another hand is a lost shard."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, 2))
        await sink.database.run(
            lambda connection: connection.execute("UPDATE headrace.positions SET next_offset = 3, handled = 3")
        )
        with pytest.raises(ShardLost, match="position 2"):
            await committed(shard, outcome(2, 4))
    assert read(path, "SELECT count(*) FROM clicks") == [(2,)]


async def test_a_transaction_conflict_is_a_lost_shard(tmp_path: Path) -> None:
    """A position that another connection of the process is moving at this moment is lost, not an error."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        shard, other = await sink.acquire(0), await sink.acquire(1)
        await committed(shard, outcome(0, 2))
        rival = await sink.database.run(lambda connection: connection.cursor())
        rival.execute("BEGIN")
        rival.execute("UPDATE headrace.positions SET owner = 'rival' WHERE \"partition\" = 0 RETURNING owner")
        await shard.write(outcome(2, 4))
        await other.write(outcome(7, 9))
        results = await asyncio.gather(shard.commit(), other.commit(), return_exceptions=True)
        rival.execute("COMMIT")
        rival.close()
        assert isinstance(results[0], ShardLost)
        assert results[1] == 9
    assert read(path, "SELECT id FROM clicks ORDER BY id") == [(0,), (1,), (7,), (8,)]


async def test_two_first_owners_at_once_leave_one(tmp_path: Path) -> None:
    """A shard that another connection takes for the first time at this moment is lost to it."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        rival = await sink.database.run(lambda connection: connection.cursor())
        shard = catalog.Shard("p", "cluster", "clicks", "id-1", 0)

        def overtaken(connection: duckdb.DuckDBPyConnection) -> None:
            # DuckDB's snapshot begins with the first statement.
            connection.execute("SELECT * FROM headrace.positions")
            catalog.take_over(rival, shard, "rival", 0.0)
            catalog.take_over(connection, shard, "late", 0.0)

        with pytest.raises(ShardLost):
            await sink.database.run(overtaken)
        rival.close()
    assert read(path, "SELECT owner FROM headrace.positions") == [("rival",)]


async def test_commits_that_wait_go_together_and_a_loser_does_not_hold_them_up(tmp_path: Path) -> None:
    """64 shards that are ready at once take few transactions; the one that was fenced is left out."""
    path = tmp_path / "out.db"
    async with opened(path, stream=Stream("cluster", "clicks", "id-1", 64)) as sink:
        shards = [await sink.acquire(number) for number in range(64)]
        await sink.acquire(7)
        for number, shard in enumerate(shards):
            await shard.write(outcome(number * 10, number * 10 + 10))
        before = sink.database.statistics()
        results = await asyncio.gather(*(shard.commit() for shard in shards), return_exceptions=True)
        after = sink.database.statistics()
        assert [number for number, result in enumerate(results) if isinstance(result, ShardLost)] == [7]
        assert after.transactions - before.transactions <= 8
        assert (after.shards - before.shards, after.lost - before.lost) == (63, 1)
    assert read(path, "SELECT count(*), count(DISTINCT id) FROM clicks") == [(630, 630)]
    assert read(path, 'SELECT count(*) FROM headrace.positions WHERE next_offset = ("partition" + 1) * 10') == [
        (63,)
    ]


async def test_rows_that_a_table_refuses_cost_their_own_shard_only(tmp_path: Path) -> None:
    """A constraint of somebody else's table fails one shard, with its offsets; the others of the group pass."""
    path = tmp_path / "out.db"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE clicks (id BIGINT CHECK (id <> 21), name VARCHAR)")
    async with opened(path) as sink:
        shards = [await sink.acquire(number) for number in range(4)]
        for number, shard in enumerate(shards):
            await shard.write(outcome(number * 10, number * 10 + 5))
        results = await asyncio.gather(*(shard.commit() for shard in shards), return_exceptions=True)
        assert [results[0], results[1], results[3]] == [5, 15, 35]
        assert isinstance(results[2], DataError)
        assert "[20, 25)" in str(results[2])
        assert await sink.position(2) is None
    assert read(path, "SELECT count(*) FROM clicks") == [(15,)]


async def test_a_cancelled_commit_is_known_before_the_next_one(tmp_path: Path) -> None:
    """A commit whose waiter was cancelled is settled first, so nothing is written twice."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await shard.write(outcome(0, 3))
        task = asyncio.create_task(shard.commit())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await committed(shard, outcome(3, 5)) == 5
    assert read(path, "SELECT id FROM clicks ORDER BY id") == [(i,) for i in range(5)]


async def test_released_work_is_gone(tmp_path: Path) -> None:
    """Release drops what is pending, is idempotent, and the writer is of no more use."""
    async with opened(tmp_path / "out.db") as sink:
        shard = await sink.acquire(0)
        await shard.write(outcome(0, 3))
        await shard.release()
        await shard.release()
        assert shard.pending_bytes == 0
        with pytest.raises(ShardLost):
            await shard.commit()
        assert (await sink.acquire(0)).position is None


async def test_due_by_age_and_by_size(tmp_path: Path) -> None:
    """A commit is due an interval after the first pending write, or now when enough bytes wait."""
    clock = FakeClock()
    async with opened(
        tmp_path / "out.db", clock=clock, commit_interval_max_seconds=2.0, commit_bytes_max=400
    ) as sink:
        shard = await sink.acquire(0)
        await shard.write(outcome(0, 2))
        clock.now = 101.5
        await shard.write(outcome(2, 4))
        assert shard.due_at() == 102.0
        await shard.write(outcome(4, 40))
        assert shard.pending_bytes >= 400
        assert shard.due_at() == 101.5
        await shard.commit()
        assert shard.due_at() is None


async def test_failures_are_of_the_same_commit_and_are_listed_until_delivered(tmp_path: Path) -> None:
    """Failed records come back whole, oldest first, across owners; delivered ones stay, marked."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        shard = await sink.acquire(1)
        await shard.write(outcome(0, 4, failures=[failure(1, 1), failure(1, 3)]))
        assert await shard.failures(10) == (0, [])
        await shard.commit()
        assert await shard.failures(1) == (2, [failure(1, 1)])
        again = await sink.acquire(1)
        assert await again.failures(10) == (4, [failure(1, 1), failure(1, 3)])
        await again.delivered(2)
        assert await again.failures(10) == (4, [failure(1, 3)])
        assert await (await sink.acquire(2)).failures(10) == (0, [])
    assert read(path, 'SELECT "offset", delivered FROM headrace.failures ORDER BY 1') == [(1, True), (3, False)]


async def test_the_first_schema_stays(tmp_path: Path) -> None:
    """A schema is adopted once, whoever comes later, also after a restart."""
    path = tmp_path / "out.db"
    other = pa.schema([("x", pa.float64())], metadata={"a": "b"})
    async with opened(path) as sink:
        assert await sink.schema("values") is None
        assert await sink.adopt_schema("values", other) == other
        assert await sink.adopt_schema("values", SCHEMA) == other
    async with opened(path) as sink:
        assert (await sink.schema("values")).equals(other, check_metadata=True)


async def test_an_existing_table_of_another_schema_is_refused_column_by_column(tmp_path: Path) -> None:
    """The message names each differing column, expected and found; the table stays as it was."""
    path = tmp_path / "out.db"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE clicks (id VARCHAR, extra DATE)")
    async with opened(path) as sink:
        with pytest.raises(SinkMismatch) as caught:
            await sink.adopt_schema("rows", SCHEMA)
        for line in ("id: expected BIGINT, found VARCHAR", "name: expected VARCHAR, found no such column"):
            assert line in str(caught.value)
        assert "extra: not expected, found DATE" in str(caught.value)
        assert await sink.schema("rows") is None


async def test_an_existing_table_with_the_right_columns_is_used(tmp_path: Path) -> None:
    """Somebody's table with the same columns, in any order, is taken with its rows."""
    path = tmp_path / "out.db"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE Clicks (NAME VARCHAR, id BIGINT); INSERT INTO clicks VALUES ('a', -1)")
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(0, 1))
    assert read(path, "SELECT id, name FROM clicks ORDER BY id") == [(-1, "a"), (0, "n0")]


async def test_a_view_is_no_table(tmp_path: Path) -> None:
    """A view under the table's name is refused by what it is."""
    path = tmp_path / "out.db"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE VIEW clicks AS SELECT 1 AS id, 'a' AS name")
    async with opened(path) as sink:
        with pytest.raises(SinkMismatch, match="is a view"):
            await sink.adopt_schema("rows", SCHEMA)


async def test_columns_that_differ_by_case_alone_are_refused(tmp_path: Path) -> None:
    """DuckDB cannot hold both; the message says so, and nothing is adopted."""
    async with opened(tmp_path / "out.db") as sink:
        with pytest.raises(SinkMismatch, match="case alone"):
            await sink.adopt_schema("rows", pa.schema([("id", pa.int64()), ("ID", pa.int64())]))
        assert await sink.schema("rows") is None


async def test_rows_take_the_form_of_the_adopted_schema(tmp_path: Path) -> None:
    """Types that fit are cast; missing columns, unknown ones and values that do not fit are named."""
    path = tmp_path / "out.db"
    async with opened(path, table="lake.clicks") as sink:
        await sink.adopt_schema("rows", SCHEMA)
        shard = await sink.acquire(0)
        coded = pa.table({"name": pa.array(["a"]).dictionary_encode(), "id": pa.array([1], pa.int8())})
        await shard.write(outcome(0, 1, coded))
        with pytest.raises(InternalError, match=r"name: missing in the rows\n  nome: not in the schema"):
            await shard.write(outcome(1, 2, pa.table({"id": [1], "nome": ["a"]})))
        with pytest.raises(DataError, match="column id"):
            await shard.write(outcome(1, 2, pa.table({"id": pa.array([2**63], pa.uint64()), "name": ["a"]})))
        assert await committed(shard, outcome(1, 2)) == 2
    assert read(path, "SELECT * FROM lake.clicks ORDER BY id, name") == [(1, "a"), (1, "n1")]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"pipeline": "q"}, "pipeline 'p', not to 'q'"),
        ({"pipeline": "q", "table": "Clicks"}, "pipeline 'p', not to 'q'"),
        ({"table": "other"}, "writes to table clicks"),
        ({"stream": Stream("elsewhere", "clicks", "id-1", 4)}, "cluster 'cluster', not to 'elsewhere'"),
        ({"stream": Stream("cluster", "views", "id-1", 4)}, "topic 'clicks', not to 'views'"),
        ({"mode": "upsert", "key": ["id"]}, "mode 'append', not to 'upsert'"),
    ],
)
async def test_a_sink_of_another_owner_is_refused_by_name(
    tmp_path: Path, other: dict[str, Any], named: str
) -> None:
    """Another pipeline, table, cluster, topic or mode is a mismatch that names both; the file is let go."""
    path = tmp_path / "out.db"
    async with opened(path):
        pass
    with pytest.raises(SinkMismatch, match=named):
        async with opened(path, **other):
            pass
    async with opened(path):
        pass


async def test_a_recreated_topic_stops_or_restarts(tmp_path: Path) -> None:
    """Another topic id stops by default; with "restart" the positions begin anew under that id."""
    path = tmp_path / "out.db"
    again = Stream("cluster", "clicks", "id-2", 6)
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(0, 50))
    with pytest.raises(RecreatedTopic, match="id-1"):
        async with opened(path, stream=again):
            pass
    async with opened(path, stream=again, on_recreated_topic="restart") as sink:
        assert sink.partitions_at_start == 6
        shard = await sink.acquire(0)
        assert shard.position is None
        await committed(shard, outcome(0, 5))
    assert read(path, "SELECT count(*) FROM clicks") == [(55,)]


async def test_pipelines_of_one_process_share_the_file(tmp_path: Path) -> None:
    """Two sinks over one Database write two tables in one transaction; the last close lets go."""
    path = tmp_path / "out.db"
    database = Database(path)
    async with (
        opened(path, database=database) as one,
        opened(
            path, database=database, pipeline="q", table="views", stream=Stream("cluster", "views", "id-9", 1)
        ) as two,
    ):
        first, second = await one.acquire(0), await two.acquire(0)
        await first.write(outcome(0, 2))
        await second.write(outcome(0, 3))
        await asyncio.gather(first.commit(), second.commit())
    assert read(path, "SELECT (SELECT count(*) FROM clicks), (SELECT count(*) FROM views)") == [(2, 3)]


async def test_a_dropped_table_is_named(tmp_path: Path) -> None:
    """A table that somebody dropped under the sink is a mismatch, and the position stays."""
    async with opened(tmp_path / "out.db") as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, 1))
        await sink.database.run(lambda connection: connection.execute("DROP TABLE clicks"))
        with pytest.raises(SinkMismatch, match="table clicks is gone or changed"):
            await committed(shard, outcome(1, 2))
        assert await sink.position(0) == 1


@pytest.mark.parametrize("table", ["", "a.b.c", ".a", "headrace.positions"])
def test_table_names_that_cannot_be(tmp_path: Path, table: str) -> None:
    """A table name is plain or has one schema, and headrace's own schema is taken."""
    with pytest.raises(ConfigError, match="table"):
        DuckDBSink(Database(tmp_path / "x.db"), pipeline="p", table=table, clock=SystemClock())


def test_key_and_mode_go_together(tmp_path: Path) -> None:
    """Upsert needs a key, append has none."""
    for options in ({"mode": "upsert"}, {"key": ["id"]}):
        with pytest.raises(ConfigError, match="key"):
            DuckDBSink(Database(tmp_path / "x.db"), pipeline="p", table="t", clock=SystemClock(), **options)


async def test_phases_are_told_in_order(tmp_path: Path) -> None:
    """Crash tests hear of each step of a takeover and a commit."""
    phases: list[str] = []
    async with opened(tmp_path / "out.db", phase=phases.append) as sink:
        await committed(await sink.acquire(0), outcome(0, 1))
    assert phases == ["recovering", "begin", "written", "committed"]


async def test_the_loop_is_free_while_duckdb_works(tmp_path: Path) -> None:
    """A commit that takes its time in DuckDB's thread leaves the event loop free."""
    entered, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(phase: str) -> None:
        if phase == "written":
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)

    async with opened(tmp_path / "out.db", phase=hold) as sink:
        shard = await sink.acquire(0)
        await shard.write(outcome(0, 1))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(shard.commit())
            await asyncio.wait_for(entered.wait(), 10)
            go_on.set()
        assert task.result() == 1


async def test_use_after_close_is_refused(tmp_path: Path) -> None:
    """A shard that outlives its sink's file is told that the sink is gone."""
    async with opened(tmp_path / "out.db") as sink:
        shard = await sink.acquire(0)
        await shard.write(outcome(0, 1))
    with pytest.raises(SinkUnavailable, match="not open"):
        await shard.commit()
