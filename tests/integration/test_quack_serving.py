"""A served file as its engine goes on: commits beside analysts, memory, errors, reopening, and the end."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.duckdb import Database, DuckDBSink
from connectors.duckdb.serving import RESULTS, ServingSettings, address_path, read_address
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import SinkUnavailable
from engine.protocols import Counts, Outcome
from tests.integration.quack_world import Served, client, served

STREAM = Stream("cluster", "clicks", "id-1", 2)


def outcome(start: int, count: int) -> Outcome:
    rows = pa.table({"id": list(range(start, start + count))})
    return Outcome(start, start + count, rows, Counts(handled=count))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "d.duckdb") as world:
        yield world


def test_answers_are_exact(world: Served) -> None:
    """Every type that DuckDB has comes as it is in the file, in the order of the query, by each way."""
    world.run("CREATE TABLE kinds AS SELECT * FROM test_all_types()")
    expected = world.run("SELECT md5(k::VARCHAR) FROM kinds AS k")
    address = world.address
    with client(address) as connection:
        for source in (
            "h.query('FROM kinds')",
            f"quack_query('{address.uri}', 'FROM kinds', token => '{address.token}')",
        ):
            assert connection.execute(f"SELECT md5(k::VARCHAR) FROM {source} AS k").fetchall() == expected
            types = connection.execute(f"SELECT column_type FROM (DESCRIBE FROM {source})").fetchall()
            assert types == world.run("SELECT column_type FROM (DESCRIBE kinds)")
        ordered = connection.execute(
            "SELECT id FROM h.query('SELECT range * 7 % 99991 AS id FROM range(99991) ORDER BY id DESC')"
        )
        assert [row[0] for row in ordered.fetchall()] == list(range(99990, -1, -1))
        shown = connection.execute("FROM h.query('EXPLAIN FROM clicks')").fetchall()
        assert "clicks" in shown[0][1]
        described = connection.execute("FROM h.query('DESCRIBE clicks')").fetchall()
        assert [row[:2] for row in described] == [("id", "BIGINT"), ("page", "VARCHAR")]


def test_mistakes_are_told_with_their_place(world: Served) -> None:
    """A client is told what DuckDB says of its text, with the place in that text."""
    with client(world.address) as connection:
        for sql, message in (
            ("selec 1", r"syntax error at or near \"selec\" \(line 1, column 1\)"),
            ("SELECT 1,\n  nope FROM clicks", r"nope.*\(line 2, column 3\)"),
            ("SELECT page::INT FROM clicks", "Could not convert string 'page"),
            ("FROM clickz", "no table or view clickz"),
        ):
            with pytest.raises(duckdb.Error, match=message):
                connection.execute("FROM h.query(?)", [sql])


def test_what_is_being_read_outlives_its_table(world: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that is dropped while a client reads it is read to its end; dropped ones leave nothing."""
    server = world.database.server
    assert server is not None
    with client(world.address) as connection:
        reading = connection.execute(
            "FROM quack_query(?, 'SELECT range AS i FROM range(1000000)', token => ?)",
            [world.address.uri, world.address.token],
        )
        first = reading.fetchmany(10)
        with world.database.lending.cursor() as cursor:
            assert server._drop_all(cursor)
        assert world.run(f"SELECT count(*) FROM duckdb_tables() WHERE database_name = '{RESULTS}'") == [(0,)]
        rest = reading.fetchall()
    assert [row[0] for row in first + rest] == list(range(1_000_000))


def test_results_are_dropped_by_themselves(world: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go when they are old, and the oldest when there are too many."""
    monkeypatch.setattr("connectors.duckdb.serving.RESULTS_MAX", 3)
    left = f"SELECT count(*) FROM duckdb_tables() WHERE database_name = '{RESULTS}'"
    with client(world.address) as connection:
        for _ in range(10):
            connection.execute("FROM h.query('SELECT 1')").fetchall()
        wait_for(lambda: world.run(left)[0][0] <= 3)
    monkeypatch.setattr("connectors.duckdb.serving.RESULT_SECONDS", 0.0)
    server = world.database.server
    assert server is not None
    server._remember("r_nothing")
    wait_for(lambda: world.run(left) == [(0,)])


def wait_for(condition: object, seconds_max: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_the_address_comes_and_goes_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there while the file is served, with the token that was asked for; the file can be opened after it."""
    path = tmp_path / "d.duckdb"
    monkeypatch.setenv("HEADRACE_QUERY_TOKEN", "from the environment")
    for settings, token in (
        (ServingSettings(token="x" * 20), "x" * 20),
        (ServingSettings(), "from the environment"),
    ):
        database = Database(path, serving=settings)
        await database.open()
        known = json.loads(address_path(path).read_text())
        assert known == {"uri": known["uri"], "token": token, "pid": os.getpid(), "database": str(path)}
        assert stat.S_IMODE(address_path(path).stat().st_mode) == 0o600
        await database.close()
        assert await asyncio.to_thread(os.listdir, tmp_path) == [path.name]
        with pytest.raises(duckdb.Error), client() as connection:
            connection.execute("FROM quack_query(?, 'SELECT 1', token => ?)", [known["uri"], token])
        with duckdb.connect(path, read_only=True) as connection:
            connection.execute("FROM headrace.format").fetchall()


async def test_a_port_that_is_taken_keeps_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file whose port is taken is written all the same, and a warning says that it is not served."""
    first = Database(tmp_path / "a.duckdb", serving=ServingSettings())
    await first.open()
    assert first.server is not None
    assert first.server.uri is not None
    port = int(first.server.uri.rpartition(":")[2])
    second = Database(tmp_path / "b.duckdb", serving=ServingSettings(port=port, token="y" * 20))
    sink = DuckDBSink(second, pipeline="p", table="clicks", clock=SystemClock())
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, 10))
    assert await shard.commit() == 10
    assert "not served to analysts" in caplog.text
    assert "y" * 20 not in caplog.text
    assert read_address(tmp_path / "b.duckdb") is None
    await sink.close()
    await first.close()


async def test_an_error_that_closes_the_file_brings_the_server_back(tmp_path: Path) -> None:
    """After the connection was given up, the file is opened anew and served at the same address."""
    path = tmp_path / "d.duckdb"
    database = Database(path, serving=ServingSettings())
    sink = DuckDBSink(database, pipeline="p", table="clicks", clock=SystemClock())
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, 10))
    await shard.commit()
    before = read_address(path)
    assert before is not None
    asking = threading.Thread(target=_ask_for_long, args=(before.uri, before.token))
    asking.start()
    await asyncio.to_thread(wait_for, lambda: database.lending.executions._under_way)

    def fail(connection: duckdb.DuckDBPyConnection) -> None:
        raise duckdb.FatalException("a made up error that makes a database unusable")

    with pytest.raises(SinkUnavailable, match="made up"):
        await database.run(fail)
    await asyncio.to_thread(asking.join)
    assert read_address(path) is None
    # Nobody has the file now, and another process could take it: the instance is really gone.
    with duckdb.connect(path, config={"threads": 1}) as connection:
        assert connection.execute("SELECT count(*) FROM clicks").fetchall() == [(10,)]
    await shard.write(outcome(10, 10))
    assert await shard.commit() == 20
    assert read_address(path) == before
    assert database.statistics().reopened == 1

    def ask() -> object:
        with client(before) as connection:
            return connection.execute("FROM h.query('SELECT count(*) FROM clicks')").fetchall()

    assert await asyncio.to_thread(ask) == [(20,)]
    await sink.close()


ENDLESS = "SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b WHERE a.range + b.range > 7"


def _ask_for_long(uri: str, token: str) -> None:
    with client() as connection, pytest.raises(duckdb.Error, match="closes the file"):
        connection.execute("FROM quack_query(?, ?, token => ?)", [uri, ENDLESS, token])


@pytest.mark.slow
async def test_a_commit_gets_the_memory_that_queries_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Queries that take all of DuckDB's memory are ended for a commit that needs it, and it goes through."""
    path = tmp_path / "d.duckdb"
    database = Database(
        path,
        memory_limit_bytes=128 * 1024 * 1024,
        threads=2,
        serving=ServingSettings(seconds_max=60, rows_max=100_000_000),
        spill_bytes_max=16 * 1024 * 1024,
    )
    sink = DuckDBSink(
        database, pipeline="p", table="t", mode="upsert", key=["id"], order_by="id", clock=SystemClock()
    )
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    rows = pa.table({"id": [f"{i:0900d}" for i in range(20_000)]})
    address = read_address(path)
    assert address is not None
    stop = threading.Event()
    heard: set[str] = set()

    def hog() -> None:
        # Grows until it meets the limit, and begins again.
        sql = "SELECT list(a.range || repeat('x', 200)) AS l FROM range(100000000) AS a"
        with client() as connection:
            while not stop.is_set():
                try:
                    connection.execute("FROM quack_query(?, ?, token => ?)", [address.uri, sql, address.token])
                except duckdb.Error as error:
                    heard.add(str(error).partition("\n")[0])

    threads = [threading.Thread(target=hog) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        turn = 0
        while turn < 3 or ("needed their memory" not in caplog.text and turn < 20):
            await shard.write(Outcome(turn * 20_000, (turn + 1) * 20_000, rows, Counts(handled=20_000)))
            assert await shard.commit() == (turn + 1) * 20_000
            turn += 1
    finally:
        stop.set()
        await asyncio.to_thread(database.lending.executions.end, "memory")
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await sink.close()
    assert any("memory" in each for each in heard), heard
    assert "needed their memory" in caplog.text


@pytest.mark.slow
async def test_ten_clients_read_while_the_writer_commits(tmp_path: Path) -> None:
    """Each answer is of whole commits, counts only grow, nobody hears an error, and nothing stands still."""
    path = tmp_path / "d.duckdb"
    database = Database(path, serving=ServingSettings(), memory_limit_bytes=256 * 1024 * 1024)
    sink = DuckDBSink(database, pipeline="p", table="clicks", clock=SystemClock())
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, 100))
    await shard.commit()
    address = read_address(path)
    assert address is not None
    done = threading.Event()
    answers: list[int] = []
    faults: list[object] = []

    def ask() -> None:
        last, count = 0, 0
        try:
            with client(address) as connection:
                while not done.is_set() or not count:
                    [(rows, distinct, top)] = connection.execute(
                        "FROM h.query('SELECT count(*), count(DISTINCT id), max(id) + 1 FROM clicks')"
                    ).fetchall()
                    assert last <= rows == distinct == top
                    assert rows % 100 == 0
                    last, count = rows, count + 1
                    done.wait(0.05)
        except BaseException as error:
            faults.append(error)
        answers.append(count)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    end, start = time.monotonic() + 2, 100
    while time.monotonic() < end:
        await shard.write(outcome(start, 100))
        start = await shard.commit()
    done.set()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert not faults
    assert start >= 300
    assert len(answers) == 10
    assert min(answers) >= 1
    await sink.close()
