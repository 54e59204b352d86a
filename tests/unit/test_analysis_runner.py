"""Queries in threads: bounded in number, time, rows and bytes, and ended from outside."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import duckdb
import pytest

from connectors.analysis import Busy, Cancelled, Runner
from connectors.analysis.execution import MemoryGivenUp
from connectors.analysis.lending import Lending
from engine.errors import SinkUnavailable, UserError

ENDLESS = "SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b WHERE a.range + b.range > 7"


@pytest.fixture
def file() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(100000)")
        yield connection


@pytest.fixture
def lending(file: duckdb.DuckDBPyConnection) -> Iterator[Lending]:
    lending = Lending("t.duckdb")
    lending.opened(file)
    yield lending
    lending.call_back()


@contextlib.contextmanager
def runner_over(lending: Lending, **limits: float) -> Iterator[Runner]:
    given = {"queries_max": 2, "seconds_max": 20.0, "rows_max": 1_000_000, **limits}
    runner = lending.runner(
        queries_max=int(given["queries_max"]),
        seconds_max=given["seconds_max"],
        rows_max=int(given["rows_max"]),
    )
    yield runner
    runner.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headrace-query")]


def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_result_is_a_table(lending: Lending) -> None:
    """All rows, in order, with their types; what is no question raises what the check says."""
    with runner_over(lending) as runner:
        table = runner.start("SELECT i, i::DECIMAL(9, 2) AS d FROM t ORDER BY i DESC", identifier="mine").result(20)
        assert table.column("i").to_pylist() == list(range(99_999, -1, -1))
        assert str(table.schema.field("d").type) == "decimal128(9, 2)"
        assert runner.start("EXPLAIN FROM t").result(20).num_rows == 1
        for sql, message in (("DROP TABLE t", "DROP is no question"), ("SELECT nope FROM t", "line 1, column 8")):
            with pytest.raises(UserError, match=message):
                runner.start(sql).result(20)


def test_a_large_result_is_refused_or_cut(lending: Lending) -> None:
    """More rows or bytes than allowed are refused with their number, or cut to it where that is asked for."""
    with runner_over(lending, rows_max=1_000) as runner:
        with pytest.raises(UserError, match="more than 1,000 rows"):
            runner.start("FROM t").result(20)
        running = runner.start("FROM t ORDER BY i", truncate=True, rows_max=10)
        assert running.result(20).column("i").to_pylist() == list(range(10))
        assert running.truncated
        running = runner.start("FROM t LIMIT 1000", truncate=True)
        assert (running.result(20).num_rows, running.truncated) == (1_000, False)
    small = Runner(lending.cursor, queries_max=1, seconds_max=20, rows_max=1_000_000, bytes_max=1_000)
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        small.start("FROM t").result(20)
    small.close()


def test_a_query_is_cancelled_from_another_thread(lending: Lending) -> None:
    """One that runs, one that waits, and one that is over can be cancelled; the next ones run as ever."""
    with runner_over(lending, queries_max=1) as runner:
        running, waiting = runner.start(ENDLESS), runner.start("FROM t")
        assert runner.find(running.id) is running
        until(lambda: running._execution is not None)
        waiting.cancel()
        running.cancel()
        for each in (running, waiting):
            with pytest.raises(Cancelled):
                each.result(20)
        over = runner.start("SELECT 1 AS a")
        assert over.result(20).num_rows == 1
        over.cancel()
        assert over.result(0).num_rows == 1


def test_time_is_bounded_with_the_wait(lending: Lending) -> None:
    """A long one is interrupted, and who waits behind it for too long is told that it is busy."""
    with runner_over(lending, queries_max=1, seconds_max=0.3) as runner:
        began = time.monotonic()
        running = runner.start(ENDLESS)
        until(lambda: running._execution is not None)
        waiting = runner.start("SELECT 1")
        with pytest.raises(UserError, match=r"longer than 0.3 s and was interrupted"):
            running.result(20)
        with contextlib.suppress(Busy):
            waiting.result(20)
        assert time.monotonic() - began < 5


def test_too_many_are_refused_at_once(lending: Lending) -> None:
    """Beyond those that run and those that may wait nobody is let in; a second query of one name neither."""
    with runner_over(lending, queries_max=1) as runner:
        under_way = [runner.start(ENDLESS, identifier=str(number)) for number in range(9)]
        with pytest.raises(Busy):
            runner.start("SELECT 1")
        for each in under_way:
            each.cancel()
        for each in under_way:
            with pytest.raises(Cancelled):
                each.result(20)
        running = runner.start(ENDLESS, identifier="x")
        with pytest.raises(UserError, match="under way"):
            runner.start("SELECT 1", identifier="x")
        running.cancel()


def test_close_ends_everything(lending: Lending) -> None:
    """Queries under way are cancelled, and none is taken any more."""
    with runner_over(lending, queries_max=1) as runner:
        running, waiting = runner.start(ENDLESS), runner.start(ENDLESS)
        runner.close()
        with pytest.raises(Cancelled):
            running.result(20)
        with pytest.raises((Cancelled, Busy)):
            waiting.result(20)
        with pytest.raises(Busy):
            runner.start("SELECT 1")


def test_what_is_lent_is_called_back(file: duckdb.DuckDBPyConnection) -> None:
    """The owner of a file ends all queries at once, for its memory or to close it, and they are told which."""
    lending = Lending("t.duckdb")
    with pytest.raises(SinkUnavailable, match="not open"), lending.cursor():
        pass
    lending.opened(file)
    with runner_over(lending) as runner:
        running = runner.start(ENDLESS)
        until(lambda: running._execution is not None)
        with lending.memory_yielded() as yielded:
            assert yielded
            with pytest.raises(MemoryGivenUp):
                running.result(20)
            waiting = runner.start("FROM t")
            assert not waiting.done
        assert waiting.result(20).num_rows == 100_000
        running = runner.start(ENDLESS)
        until(lambda: running._execution is not None)
        lending.call_back()
        with pytest.raises(Cancelled, match="closes the file"):
            running.result(20)
        with pytest.raises(SinkUnavailable, match="not open"):
            runner.start("FROM t").result(20)


def test_nothing_is_yielded_where_nobody_asked(lending: Lending) -> None:
    """A commit that finds no memory on its own account is told that nobody else had any."""
    with lending.memory_yielded() as yielded:
        assert not yielded
