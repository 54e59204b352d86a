"""The page over a real engine's parts: SQL over its sinks, replays on a real broker, and the run's file."""

from __future__ import annotations

import asyncio
import csv
import glob
import itertools
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import duckdb
import httpx
import pyarrow.parquet as pq
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from connectors.duckdb import Database
from connectors.file_destination import FileDestination
from connectors.kafka import reading
from connectors.kafka.broker import Broker
from connectors.kafka.cluster import Cluster
from connectors.kafka.replay import identity_of
from connectors.kafka.settings import KafkaSettings
from engine import config_file
from engine.clock import SystemClock
from engine.compose import web
from engine.compose.pipelines import build_runtime
from engine.compose.web import RuntimeView, serve
from engine.compose.web_sql import SqlBox
from engine.config import Config
from engine.config_serving import QueryConfig
from engine.errors import ExternalError, UserError
from engine.protocols import FailedRecord
from engine.web import runfile
from engine.web.view import QueryCancelled
from functions.environments.logs import Line, LogTail
from functions.failures import Documents
from tests.conftest import ExternalBroker, TopicFactory
from tests.integration.support import Project, pipeline


def config_of(directory: Path, **query: object) -> Config:
    """A pipeline into a table, one into files."""
    source = {"topic": "t"}
    return Config.model_validate(
        {
            "query": query,
            "pipelines": {
                "clicks": {
                    "source": source,
                    "sink": {"type": "duckdb", "path": str(directory / "w.duckdb"), "table": "web.Clicks"},
                },
                "audit": {"source": source, "sink": {"type": "parquet", "path": str(directory / "audit")}},
            },
        }
    )


@asynccontextmanager
async def boxed(directory: Path, **query: object) -> AsyncIterator[SqlBox]:
    """3,000 rows in a table, and 3,000 in two files."""
    config = config_of(directory, **query)
    database = Database(directory / "w.duckdb")
    await database.open()
    await database.run(
        lambda connection: connection.execute(
            'CREATE SCHEMA web; CREATE TABLE web."Clicks" AS SELECT range AS i, NULL AS n FROM range(3000)'
        )
    )
    (directory / "audit").mkdir()
    for number in range(2):
        rows = duckdb.sql(f"SELECT range + {number * 1500} AS i, 'ü' || range AS s FROM range(1500)")
        rows.write_parquet(str(directory / "audit" / f"{number}.parquet"))
    box = SqlBox(config.pipelines, {database.path: database}, config.query)
    try:
        yield box
    finally:
        await box.close()
        await database.close()


async def test_every_sink_can_be_asked(tmp_path: Path) -> None:
    """Each target's own example runs; values are text as DuckDB writes them."""
    async with boxed(tmp_path) as box:
        assert [(each.name, each.kind, each.tables) for each in box.targets()] == [
            ("audit", "parquet", ("audit",)),
            ("w.duckdb", "duckdb", ("web.Clicks",)),
        ]
        for target in box.targets():
            answer = await box.ask(target.name, target.example, "one", 50)
            assert (len(answer.rows), answer.truncated) == (50, True)
        answer = await box.ask(
            "w.duckdb", 'SELECT i, n, [i] AS i FROM web."Clicks" ORDER BY ALL LIMIT 1', "one", 50
        )
        assert [(column.name, column.type) for column in answer.columns] == [
            ("i", "BIGINT"),
            ("n", "INTEGER"),
            ("i", "BIGINT[]"),
        ]
        assert (answer.rows, answer.truncated) == ([("0", None, "[0]")], False)


async def test_long_cells_are_cut_where_they_are(tmp_path: Path) -> None:
    """One character more than is shown, which tells that there is more, and no copy of the rest."""
    async with boxed(tmp_path) as box:
        answer = await box.ask("w.duckdb", "SELECT repeat('ü', 5000000), repeat('x', 10000), NULL", "one", 50)
        long, whole, nothing = answer.rows[0]
        assert long == "ü" * 10_001
        assert (whole, nothing) == ("x" * 10_000, None)


async def test_exports_have_all_rows_alike(tmp_path: Path) -> None:
    """Beyond what is shown; names that repeat are told apart."""
    async with boxed(tmp_path) as box:
        for target in ("audit", "w.duckdb"):
            table = "audit" if target == "audit" else 'web."Clicks"'
            sql = f"SELECT i, i AS i FROM {table} ORDER BY i"
            as_csv = await box.export(target, sql, "one", "csv")
            as_parquet = await box.export(target, sql, "one", "parquet")
            with as_csv.path.open(newline="") as file:
                lines = [(int(row["i"]), int(row["i_1"])) for row in csv.DictReader(file)]
            rows = [(row["i"], row["i_1"]) for row in pq.read_table(as_parquet.path).to_pylist()]
            assert lines == rows == [(i, i) for i in range(3_000)]
            assert (as_csv.rows, as_parquet.rows) == (3_000, 3_000)
            for export in (as_csv, as_parquet):
                assert export.path.parent.stat().st_mode & 0o077 == 0
    assert not as_csv.path.exists()


REFUSED = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "COPY (SELECT 1) TO '/tmp/headrace-must-not-be'",
    "ATTACH '/tmp/headrace-must-not-be.duckdb'",
    "INSTALL httpfs",
    "SET memory_limit = '1GB'",
    "CREATE TABLE x AS SELECT 1",
    'DELETE FROM web."Clicks"',
    "SELECT 1; SELECT 2",
    "",
]


async def test_only_reading_is_taken(tmp_path: Path) -> None:
    """Of both kinds of targets; nothing is made anywhere."""
    async with boxed(tmp_path) as box:
        for target, sql in itertools.product(("audit", "w.duckdb"), REFUSED):
            with pytest.raises(UserError):
                await box.ask(target, sql, "one", 10)
            with pytest.raises(UserError):
                await box.export(target, sql, "one", "csv")
        answer = await box.ask("w.duckdb", 'SELECT count(*) FROM web."Clicks"', "one", 10)
        assert answer.rows == [("3000",)]
    assert glob.glob("/tmp/headrace-must-not-be*") == []  # noqa: PTH207 - not of the event loop


async def test_a_query_has_an_end(tmp_path: Path) -> None:
    """By its time, by being cancelled, by its size, and with the page."""
    endless = "SELECT count(*) FROM range(100000000000)"
    async with boxed(tmp_path, seconds_max=1.0, rows_max=2_000) as box:
        with pytest.raises(UserError, match=r"longer than 1 s"):
            await box.ask("w.duckdb", endless, "one", 10)
        with pytest.raises(UserError, match="more than 2,000 rows"):
            await box.export("audit", "FROM audit", "one", "csv")
        for target in ("audit", "w.duckdb"):
            asking = asyncio.create_task(box.ask(target, endless, "two", 10))
            await asyncio.sleep(0)
            began = time.monotonic()
            assert box.cancel("two")
            with pytest.raises(QueryCancelled):
                await asking
            assert time.monotonic() - began < 0.9
        assert not box.cancel("two")
        left = asyncio.create_task(box.ask("w.duckdb", endless, "three", 10))
        await asyncio.sleep(0)
        with pytest.raises(UserError, match="under way"):
            await box.ask("w.duckdb", "SELECT 1", "three", 10)
        await box.close()
        with pytest.raises(QueryCancelled):
            await left
        with pytest.raises(ExternalError, match="the engine ends"):
            await box.ask("w.duckdb", "SELECT 1", "four", 10)


async def test_what_is_not_there_yet_is_said(tmp_path: Path) -> None:
    """A target that is none, a file that is not open, a directory without anything."""
    config = config_of(tmp_path)
    box = SqlBox(config.pipelines, {}, QueryConfig())
    with pytest.raises(UserError, match="'nowhere'") as caught:
        await box.ask("nowhere", "SELECT 1", "one", 10)
    assert caught.value.hint == "valid are audit, w.duckdb"
    with pytest.raises(ExternalError, match="not open"):
        await box.ask("w.duckdb", "SELECT 1", "one", 10)
    with pytest.raises(ExternalError, match="audit has written nothing yet"):
        await box.ask("audit", "SELECT 1", "one", 10)
    await box.close()


async def test_a_run_has_a_page_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other commands find it by its configuration for as long as it runs; the page answers over the runtime."""
    runtime_directory = tmp_path / "runtime"
    runtime_directory.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_directory))
    project = Project(tmp_path, "127.0.0.1:1")
    path = project.configure({"clicks": pipeline("t", "parquet")})
    config = config_file.load(path)
    config = config.model_copy(update={"web": config.web.model_copy(update={"port": 0})})
    runtime = build_runtime(config)
    tail = LogTail()
    tail.add("clicks", "stream", [Line(1.0, "function", "hello")])
    page = await serve(runtime, config, path, tail=tail, databases={})
    try:
        assert page.url is not None
        async with httpx.AsyncClient(base_url=page.url, trust_env=False) as client:
            assert (await client.get("/api/status")).status_code == 503
            assert [line["text"] for line in (await client.get("/api/logs?pipeline=clicks")).json()] == ["hello"]
            assert (await client.get("/api/failures")).json() == []
            assert (await client.get("/api/failures?pipeline=nobody")).status_code == 400
            assert [each["name"] for each in (await client.get("/api/sql/targets")).json()] == ["clicks"]
            body = {"pipeline": "clicks", "partition": 0, "offset": 0}
            refused = await client.post("/api/failures/replay", json=body, headers={"X-Headrace": "1"})
            assert "set source.destination_config.on_failure" in refused.json()["error"]
        found = runfile.find(path)
        assert found is not None
        assert (found.url, found.databases) == (page.url, ())
    finally:
        await page.close()
    assert runfile.find(path) is None


@pytest.mark.broker
@pytest.mark.slow
async def test_a_replay_sends_one_record_once(
    broker: Broker | ExternalBroker, topic: TopicFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often, and by however many, it is asked; a record that is not delivered yet is not sent."""
    monkeypatch.setattr(web, "DELIVERY_SECONDS_MAX", 1.0)
    monkeypatch.setattr(web, "DELIVERY_POLL_SECONDS", 0.5)
    source, name = await topic(partitions=2), f"page-{uuid.uuid4().hex[:8]}"
    project = Project(tmp_path, broker.bootstrap)
    made = pipeline(source, "parquet")
    made["source"]["destination_config"] = {"on_failure": "file:failed.jsonl", "replay": True}  # type: ignore[index]
    config = config_file.load(project.configure({name: made}))
    stream = await project.stream(source)
    target = FileDestination(
        tmp_path / "failed.jsonl",
        pipeline=name,
        stream_of=lambda: stream,
        document=Documents(name, "kinesis", "arn"),
    )
    await target.deliver(
        [FailedRecord(1, at, 1_600_000_000_000, b"k", b"v%d" % at, (), "why", "KeyError", 1) for at in range(5)]
    )
    view = RuntimeView(build_runtime(config), config, tail=LogTail(), databases={})
    try:
        assert view.replay_refusal(name) is None
        outcomes = await asyncio.gather(*(view.replay(name, 1, 3) for _ in range(3)))
        assert sorted(each.sent for each in outcomes) == [False, False, True]
        assert all(each.sent != each.before for each in outcomes)
        with pytest.raises(ExternalError, match="not in the on-failure destination"):
            await view.replay(name, 1, 99)
        cluster = Cluster(KafkaSettings(broker.bootstrap), SystemClock())
        await cluster.open()
        chunks = [chunk async for chunk in reading.read(cluster, SystemClock(), f"{name}.retry")]
        await cluster.close()
        sent = [message for chunk in chunks for message in chunk.messages]
        assert [(identity_of(message)[1], message.value) for message in sent] == [(3, b"v3")]  # type: ignore[index]
    finally:
        await view.close()
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        await admin.delete_topics([f"{name}.retry"])
        await admin.close()
