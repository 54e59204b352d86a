"""What tests of the whole command share: a project directory, `headrace run` as a process, and what it left.

Sinks and destinations are read by what their users have: DuckDB over the files, a consumer, a text file. Only
positions are asked of the sink itself, for nobody else knows them. Not here: the broker and its topics
(tests/conftest.py).
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from connectors.duckdb import Database, DuckDBSink
from connectors.kafka.cluster import Cluster
from connectors.kafka.settings import KafkaSettings
from connectors.parquet import ParquetSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.delivery import document
from functions.failures import from_document

COMMAND = [sys.executable, "-m", "engine.cli.start"]

#: The longest that a test waits for anything; a loaded machine is slow, a broken command is slower.
SECONDS_MAX = 60.0
POLL_SECONDS = 0.02

#: The largest record that the embedded broker takes.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024

#: Both sinks under their defaults but for the time to a commit.
SINKS: dict[str, dict[str, object]] = {
    "parquet": {"type": "parquet", "path": "rows", "file_age_max_seconds": 0.2},
    "duckdb": {"type": "duckdb", "path": "rows.duckdb", "table": "events", "commit_interval_max_seconds": 0.1},
}

Value = bytes | None


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


class Running:
    """A command that runs; `Project.running` ends it."""

    def __init__(self, process: asyncio.subprocess.Process, out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def err(self) -> str:
        return self._err.read_text()

    async def says(self, text: str, *, times: int = 1) -> None:
        """Return when ``text`` stands in what it wrote, so often."""
        deadline = time.monotonic() + SECONDS_MAX
        while self.err.count(text) < times:
            assert self.process.returncode is None, f"ended without {text!r}:\n{self.err}"
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.err}"
            await asyncio.sleep(POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds_max: float = SECONDS_MAX) -> Ended:
        try:
            async with asyncio.timeout(seconds_max):
                code = await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"no end within {seconds_max} s:\n{self.err}") from None
        return Ended(code, self._out.read_text(), self.err)


class Project:
    """A directory with ``headrace.toml``, handlers beside it, and the command run in it."""

    def __init__(self, directory: Path, bootstrap: str) -> None:
        self.directory = directory
        self.bootstrap = bootstrap
        self._runs = 0

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def configure(
        self,
        pipelines: Mapping[str, object],
        *,
        kafka: Mapping[str, object] | None = None,
        engine: Mapping[str, object] | None = None,
    ) -> Path:
        """Write ``headrace.toml``: these pipelines over the test's broker, with short sessions and waits."""
        document = {
            "kafka": {
                "bootstrap": self.bootstrap,
                "session_timeout_ms": 3_000,
                "heartbeat_interval_ms": 500,
                "metadata_age_ms_max": 500,
                "broker_wait_seconds_max": 20,
                **(kafka or {}),
            },
            "engine": {"drain_seconds_max": 10, **(engine or {})},
            "pipelines": dict(pipelines),
        }
        return self.write("headrace.toml", toml(document))

    @asynccontextmanager
    async def running(self, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
        """``headrace run headrace.toml`` with further arguments; killed when the block ends before it does."""
        async with self.command("run", "headrace.toml", *arguments, env=env) as running:
            yield running

    @asynccontextmanager
    async def command(self, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
        self._runs += 1
        out, err = self.directory / f"run-{self._runs}.out", self.directory / f"run-{self._runs}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = await asyncio.create_subprocess_exec(
                *(*COMMAND, *arguments),
                cwd=self.directory,
                env={**os.environ, **(env or {})},
                stdout=out_file,
                stderr=err_file,
            )
        try:
            yield Running(process, out, err)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, seconds_max: float = SECONDS_MAX
    ) -> Ended:
        """``headrace run headrace.toml --until-caught-up`` to its end."""
        async with self.running("--until-caught-up", *arguments, env=env) as running:
            return await running.ended(seconds_max)

    def rows(
        self, sink: str, columns: str = "_partition, _offset", *, path: str | None = None
    ) -> list[tuple[Any, ...]]:
        """What a reader finds in a sink of `SINKS`, sorted."""
        place = self.directory / (path or str(SINKS[sink]["path"]))
        if sink == "parquet":
            if not any(place.rglob("*.parquet")):
                return []
            with duckdb.connect() as connection:
                query = f"SELECT {columns} FROM read_parquet('{place}/**/*.parquet')"
                return sorted(connection.execute(query).fetchall())
        with duckdb.connect(place, read_only=True) as connection:
            return sorted(connection.execute(f"SELECT {columns} FROM events").fetchall())

    def failures(self, name: str = "failed.jsonl") -> list[dict[str, Any]]:
        """The documents in an on-failure file, by partition and offset."""
        path = self.directory / name
        lines = path.read_bytes().splitlines() if path.exists() else []
        return sorted(map(failure_of, lines), key=lambda each: (each["partition"], each["offset"]))

    async def positions(self, sink: str, pipeline: str, topic: str, *, path: str | None = None) -> list[int | None]:
        """The committed position of each partition, as the sink of `SINKS` has it."""
        stream = await self.stream(topic)
        place = self.directory / (path or str(SINKS[sink]["path"]))
        opened: ParquetSink | DuckDBSink
        if sink == "parquet":
            opened = ParquetSink(place, pipeline=pipeline, clock=SystemClock())
        else:
            table = str(SINKS[sink]["table"])
            opened = DuckDBSink(Database(place), pipeline=pipeline, table=table, clock=SystemClock())
        await opened.open(stream)
        try:
            return [await opened.position(partition) for partition in range(stream.partitions)]
        finally:
            await opened.close()

    async def stream(self, topic: str) -> Stream:
        cluster = Cluster(KafkaSettings(bootstrap=self.bootstrap), SystemClock())
        await cluster.open()
        try:
            return (await cluster.describe(topic)).stream
        finally:
            await cluster.close()

    async def produce(self, topic: str, partitions: Mapping[int, Sequence[Value]]) -> None:
        """Send raw values, in order, each with the key ``k``."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, max_request_size=MESSAGE_BYTES_MAX, metadata_max_age_ms=500
        )
        await producer.start()
        try:
            sent = [
                await producer.send(topic, value, key=b"k", partition=partition)
                for partition, values in partitions.items()
                for value in values
            ]
            await asyncio.gather(*sent)
        finally:
            await producer.stop()

    async def messages(self, topic: str) -> list[dict[str, Any]]:
        """The documents in an on-failure topic of one partition, by partition and offset of their records."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, max_partition_fetch_bytes=MESSAGE_BYTES_MAX)
        await consumer.start()
        try:
            shard = TopicPartition(topic, 0)
            consumer.assign([shard])
            await consumer.seek_to_beginning(shard)
            end = (await consumer.end_offsets([shard]))[shard]
            found: list[dict[str, Any]] = []
            async with asyncio.timeout(SECONDS_MAX):
                while len(found) < end:
                    found.append(failure_of((await consumer.getone()).value))
        finally:
            await consumer.stop()
        return sorted(found, key=lambda each: (each["partition"], each["offset"]))


def pipeline(topic: str, sink: str | Mapping[str, object] | None, **settings: Any) -> dict[str, object]:
    """A pipeline's configuration. ``settings`` are of the source, but for ``schema`` and ``function``."""
    made: dict[str, object] = {}
    for part in ("schema", "function"):
        if part in settings:
            made[part] = settings.pop(part)
    if sink is not None:
        made["sink"] = SINKS[sink] if isinstance(sink, str) else dict(sink)
    if "on_failure" in settings:
        settings["destination_config"] = {"on_failure": settings.pop("on_failure")}
    source = {"topic": topic, "maximum_batching_window_in_seconds": 0.05, "retry_backoff_seconds": 0.01, **settings}
    return {"source": source, **made}


def toml(document: Mapping[str, object], path: str = "") -> str:
    """A document as TOML; every table gets a header of its own."""
    plain = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    text = "".join(f"{key} = {orjson.dumps(value).decode()}\n" for key, value in plain.items())
    text = f"\n[{path}]\n{text}" if path else text
    tables = {key: value for key, value in document.items() if isinstance(value, Mapping)}
    return text + "".join(toml(table, f"{path}.{key}" if path else key) for key, table in tables.items())


def failure_of(line: bytes) -> dict[str, Any]:
    """An on-failure document in the plain form of `engine.delivery`, whatever its shape is."""
    failure = from_document(orjson.loads(line))
    identity = failure.identity
    stream = Stream(identity.cluster_id, identity.topic, identity.topic_id, 0)
    return document(identity.pipeline, stream, failure.record)


def value_of(failure: Mapping[str, Any]) -> Value:
    """The record's value that a failure carries."""
    return None if failure["value"] is None else base64.b64decode(failure["value"])
