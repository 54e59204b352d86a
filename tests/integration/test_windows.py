"""Running windows: `headrace run` over click events, merged into a table, against DuckDB over all events at once.

Not here: how partial aggregates are merged (tests/unit/test_duckdb_aggregate).
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pytest

from connectors.kafka.broker import Broker
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, Project, pipeline

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TopicFactory = Callable[..., Awaitable[str]]

SINK = {
    "type": "duckdb",
    "path": "windows.duckdb",
    "table": "windows",
    "mode": "aggregate",
    "key": ["window_start", "page"],
    "aggregates": {"count": "count", "sum": "sum", "cheapest": "min", "every_paid": "bool_and", "clicks": "sum"},
    "commit_interval_max_seconds": 0.05,
}

QUERY = """
SELECT ts - ts % 60000 AS window_start, page, count(*) AS count, sum(price) AS sum, min(price) AS cheapest,
    bool_and(paid) AS every_paid, sum(clicks) AS clicks
FROM batch GROUP BY ALL
"""

SCHEMA = {"columns": {"ts": "BIGINT", "page": "VARCHAR", "price": "DOUBLE", "paid": "BOOLEAN", "clicks": "BIGINT"}}

Event = dict[str, Any]


def events(seed: int, count: int, *, start_ms: int) -> list[Event]:
    """Clicks over twenty minutes, each up to five minutes late; prices that floats add without an error."""
    rng = random.Random(seed)
    return [
        {
            "ts": start_ms + number * 1_200_000 // count - rng.randrange(300_000),
            "page": rng.choice([None, *(f"/page/{page}" for page in range(40))]),
            "price": rng.choice([None, rng.randrange(4_000) / 4]),
            "paid": rng.choice([None, True, True, True, False]),
            "clicks": rng.randrange(2**40),
        }
        for number in range(count)
    ]


def expected(made: list[Event]) -> list[tuple[Any, ...]]:
    """The windows that DuckDB makes of all events at once."""
    batch = pa.Table.from_pylist(made)
    with duckdb.connect() as connection:
        connection.register("batch", batch)
        return connection.execute(f"SELECT * FROM ({QUERY}) ORDER BY ALL").fetchall()


def asked(project: Project, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(project.directory / "windows.duckdb", read_only=True) as connection:
        return connection.execute(sql).fetchall()


def commits(log: Path) -> int:
    """How many commits of shards the phase log has."""
    return log.read_text().count(" committed")


async def committed(log: Path, times: int) -> None:
    """Wait until so many shards have committed."""
    deadline = time.monotonic() + SECONDS_MAX
    while commits(log) < times:
        assert time.monotonic() < deadline, f"{commits(log)} commits, waited for {times}"
        await asyncio.sleep(POLL_SECONDS)


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Project:
    return Project(tmp_path, broker.bootstrap)


async def produced(project: Project, topic: str, seed: int, count: int, *, start_ms: int) -> list[Event]:
    made: list[Event] = []
    values = {}
    for partition in range(3):
        part = events(seed + partition, count, start_ms=start_ms)
        values[partition] = [orjson.dumps(event) for event in part]
        made += part
    await project.produce(topic, values)
    return made


async def test_windows_of_all_shards_equal_those_of_all_events_at_once(
    project: Project, topic: TopicFactory
) -> None:
    """Three partitions, three runs; what comes days late is in its window; the columns are the query's own."""
    name = await topic(partitions=3)
    function = {"kind": "sql", "query": QUERY}
    project.configure({"clicks": pipeline(name, SINK, schema=SCHEMA, function=function, batch_size=700)})
    made: list[Event] = []
    for seed, start_ms in ((10, 1_700_000_000_000), (20, 1_700_001_000_000), (30, 1_699_700_000_000)):
        made += await produced(project, name, seed, 3_000, start_ms=start_ms)
        ended = await project.run()
        assert ended.code == 0, ended.err
        assert asked(project, "SELECT * FROM windows ORDER BY ALL") == expected(made)
    async with project.command("position", "show", "headrace.toml", "--json") as showing:
        shown = await showing.ended(60)
    assert (shown.code, shown.out.count('"partition"')) == (0, 3), shown.err
    described = [row[:2] for row in asked(project, "DESCRIBE windows")]
    assert described == [
        ("window_start", "BIGINT"),
        ("page", "VARCHAR"),
        ("count", "BIGINT"),
        ("sum", "DOUBLE"),
        ("cheapest", "DOUBLE"),
        ("every_paid", "BOOLEAN"),
        ("clicks", "DECIMAL(38,0)"),
    ]


async def test_a_kill_in_the_middle_counts_nothing_twice_and_leaves_nothing_out(
    project: Project, topic: TopicFactory
) -> None:
    """After each SIGKILL the table has the records below the positions, once; the next run ends at all of them."""
    name = await topic(partitions=3)
    made = await produced(project, name, 1, 10_000, start_ms=1_700_000_000_000)
    function = {"kind": "sql", "query": QUERY}
    # A commit for each small fetch, so that a kill finds many still to come.
    eager, small = {**SINK, "commit_bytes_max": 1}, {"batch_size": 100, "fetch_bytes_max": 16_384}
    project.configure({"clicks": pipeline(name, eager, schema=SCHEMA, function=function, **small)})
    log, before = project.write("phases", ""), 0
    for _ in range(2):
        seen = commits(log)
        async with project.running(env={"HEADRACE_PHASE_LOG": str(log)}) as running:
            await committed(log, seen + 12)
            running.signal(signal.SIGKILL)
            assert (await running.ended()).code == -signal.SIGKILL
        [(counted,)] = asked(project, "SELECT sum(count) FROM windows")
        [(positions,)] = asked(project, "SELECT sum(next_offset) FROM headrace.positions")
        assert before < counted < len(made)
        assert counted == positions
        before = counted
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert asked(project, "SELECT * FROM windows ORDER BY ALL") == expected(made)


async def test_aggregates_that_cannot_be_are_said_before_anything_is_read(
    project: Project, topic: TopicFactory
) -> None:
    """An aggregate that does not merge ends the run with exit code 2 and what to do; check finds it too."""
    name = await topic()
    sink = {**SINK, "aggregates": {"price": "avg"}}
    project.configure({"clicks": pipeline(name, sink, function={"kind": "sql", "query": "FROM batch"})})
    ended = await project.run()
    assert ended.code == 2
    assert "aggregates.price = 'avg': valid are" in ended.err
    assert "keep sum and count, and divide when reading" in ended.err
    async with project.command("check", "headrace.toml") as checking:
        ended = await checking.ended()
    assert ended.code == 2
    assert "keep sum and count" in ended.err + ended.out
