"""A made-up engine behind the real server, for tests of the page and for looking at it by hand.

    python -m tests.web_world --port 8400 [--token TOKEN] [--shards 1000] [--pipelines 2]

It moves by itself. ``/world/SWITCH`` is taken by the world alone, never by the product: ``fail``, ``log``,
``restart``, ``stall``, ``pause`` (no new status), ``resume``. A query with ``sleep(N)`` in it takes N seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import orjson
import pyarrow.parquet as pq
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.config_serving import WebConfig
from engine.errors import ExternalError, UserError
from engine.protocols import Counts
from engine.recent import LogEntry, RecentFailure, RecentFailures, Ring
from engine.status import (
    BATCH_BOUNDS,
    DURATION_BOUNDS,
    Distribution,
    EngineStatus,
    FailureEntry,
    FunctionStatus,
    PipelineStatus,
    ShardStatus,
)
from engine.web.events import Hub
from engine.web.history import HistoryRing
from engine.web.security import Gate
from engine.web.server import WebServer
from engine.web.view import Column, Export, ExportFormat, QueryCancelled, ReplayOutcome, SqlAnswer, SqlTarget

NAMES = ("clicks", "orders", "audit", "devices")


class World:
    """An `EngineView` over nothing. ``now`` may be given; everything follows from it and the seed."""

    def __init__(self, *, shards: int = 4, pipelines: int = 2, now: float | None = None) -> None:
        self.shards = shards
        self.names = [*NAMES, *(f"pipeline-{number}" for number in range(len(NAMES), pipelines))][:pipelines]
        self.started_at = time.time() - 120 if now is None else now - 120
        self.fixed_at = now
        self.paused_at: float | None = None
        self.stalled = False
        self.no_status = False
        self.recent = RecentFailures(200, 4 * 1024 * 1024)
        self.lines: Ring[LogEntry] = Ring(5_000, 1024 * 1024, lambda entry: len(entry.text) + 200)
        self.replayed: set[tuple[str, int, int]] = set()
        self.queries: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.closed = False
        self.failed = 0
        self.kept: tuple[float, EngineStatus] | None = None

    def restart(self) -> None:
        """As if the process had been started anew."""
        self.started_at = time.time()
        self.recent = RecentFailures(200, 4 * 1024 * 1024)
        self.lines = Ring(5_000, 1024 * 1024, lambda entry: len(entry.text) + 200)
        self.kept = None

    def fail(self, pipeline: str | None = None, value: bytes | None = None, partition: int = 0) -> FailureEntry:
        """Another failed record."""
        self.failed += 1
        number = self.failed
        if value is None:
            value = orjson.dumps({"order": number, "amount": "twelve", "note": "<script>alert(1)</script> ü€𝄞"})
        entry = FailureEntry(
            pipeline=pipeline or self.names[0],
            topic=pipeline or self.names[0],
            partition=partition,
            offset=1_000_000 + number,
            timestamp=int(time.time() * 1000),
            failed_at=time.time(),
            key=f"customer-{number}".encode(),
            value=value,
            headers=(("trace", b"4bf92f35"), ("binary", b"\xff\x00"), ("nothing", None)),
            reason="amount: 'twelve' is no DOUBLE",
            error_type="ValueError" if number % 3 else "Sandbox.Timedout",
            attempts=number % 4,
            request_id=f"0a0b0c0d-0000-4000-8000-{number:012d}",
        )
        self.recent.add(entry)
        return entry

    def say(self, text: str, origin: str = "function", function: str | None = None) -> None:
        name = function or self.names[0]
        self.lines.add(LogEntry(time.time(), name, "2026/01/01/[$LATEST]0123456789abcdef", origin, text))

    # The view.

    def waits(self) -> dict[str, float]:
        return {}

    def status(self) -> EngineStatus | None:
        if self.no_status:
            return None
        at = self.paused_at or self.fixed_at or math.floor(time.time())
        if self.kept is None or self.kept[0] != at:
            self.kept = at, self._status(at)
        return self.kept[1]

    def failures(self, pipeline: str | None, limit: int) -> Sequence[RecentFailure]:
        return self.recent.latest(pipeline, limit)

    def failures_since(self, sequence: int, limit: int) -> Sequence[RecentFailure]:
        return self.recent.since(sequence, limit)

    def failures_last(self) -> int:
        return self.recent.last

    def replay_refusal(self, pipeline: str) -> str | None:
        if pipeline == self.names[0]:
            return None
        return f"pipeline {pipeline} has no on-failure destination: set source.destination_config.on_failure"

    async def replay(self, pipeline: str, partition: int, offset: int) -> ReplayOutcome:
        if pipeline not in self.names:
            raise UserError(f"there is no pipeline {pipeline!r}", hint=f"it has {', '.join(self.names)}")
        if (refusal := self.replay_refusal(pipeline)) is not None:
            raise UserError(refusal)
        await asyncio.sleep(0.05)
        identity = (pipeline, partition, offset)
        before = identity in self.replayed
        self.replayed.add(identity)
        return ReplayOutcome(sent=not before, before=before, topic=f"{pipeline}.retry")

    def logs(self, pipeline: str | None, search: str | None, limit: int) -> Sequence[tuple[int, LogEntry]]:
        found = [
            (number, entry)
            for number, entry in self.lines.items()
            if pipeline in (None, entry.function) and (search or "").lower() in entry.text.lower()
        ]
        return found[::-1][:limit]

    def logs_since(self, sequence: int, limit: int) -> Sequence[tuple[int, LogEntry]]:
        return self.lines.since(sequence, limit)

    def logs_last(self) -> int:
        return self.lines.last

    def pipeline_of(self, function: str) -> str | None:
        return function if function in self.names else None

    async def targets(self) -> Sequence[SqlTarget]:
        return [
            SqlTarget("warehouse.duckdb", "duckdb", ("clicks", "orders"), "SELECT * FROM clicks LIMIT 100"),
            SqlTarget("audit", "parquet", ("audit",), "SELECT * FROM audit LIMIT 100"),
            SqlTarget("empty", "parquet", (), "SELECT 1", "the sink has no rows yet"),
        ]

    async def ask(self, target: str, sql: str, identifier: str, rows_max: int) -> SqlAnswer:
        started = time.perf_counter()
        await self._wait(target, sql, identifier)
        with _data() as connection:
            relation = _question(connection, sql)
            columns = [Column(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True)]
            rows = relation.project("COLUMNS(*)::VARCHAR").fetchmany(rows_max + 1)
        return SqlAnswer(columns, rows[:rows_max], len(rows) > rows_max, time.perf_counter() - started)

    async def export(self, target: str, sql: str, identifier: str, form: ExportFormat) -> Export:
        await self._wait(target, sql, identifier)
        descriptor, name = tempfile.mkstemp(prefix="headrace-world-", suffix=f".{form}")
        os.close(descriptor)
        with _data() as connection:
            table = _question(connection, sql).to_arrow_table()
            if form == "parquet":
                pq.write_table(table, name)
            else:
                connection.register("answer", table)
                connection.sql("FROM answer").write_csv(name)
        return Export(Path(name), table.num_rows)

    def cancel(self, identifier: str) -> bool:
        if (event := self.queries.get(identifier)) is None:
            return False
        self.cancelled.append(identifier)
        event.set()
        return True

    async def close(self) -> None:
        self.closed = True
        for event in self.queries.values():
            event.set()

    async def _wait(self, target: str, sql: str, identifier: str) -> None:
        if target not in [each.name for each in await self.targets()]:
            raise UserError(f"there is no target {target!r}")
        if target == "empty":
            raise ExternalError("the sink has no rows yet")
        if (found := re.search(r"sleep\((\d+(?:\.\d+)?)\)", sql)) is None:
            return
        event = self.queries[identifier] = asyncio.Event()
        try:
            await asyncio.wait_for(event.wait(), float(found[1]))
            raise QueryCancelled("the query was cancelled")
        except TimeoutError:
            return
        finally:
            del self.queries[identifier]

    def _status(self, at: float) -> EngineStatus:
        seconds = max(0.0, at - self.started_at)
        pipelines = tuple(self._pipeline(name, number, seconds) for number, name in enumerate(self.names))
        return EngineStatus(
            at=at,
            started_at=self.started_at,
            pid=os.getpid(),
            version="0.0.0",
            cpu_seconds=seconds * 0.7,
            resident_bytes=180_000_000 + int(20_000_000 * math.sin(seconds / 30)),
            budget_bytes=int(30_000_000 * (1 + math.sin(seconds / 10))),
            budget_bytes_max=117_440_512,
            loop_blocked_seconds_max=0.004,
            loop_blocked_count=0,
            pipelines=pipelines,
        )

    def _pipeline(self, name: str, number: int, seconds: float) -> PipelineStatus:
        shards = tuple(self._shard(partition, number, seconds) for partition in range(self.shards))
        records = sum(shard.records for shard in shards)
        invocations = records // 100
        failed = self.failed if number == 0 else 0
        kind = ("kinesis", "sql", None, "arrow")[number % 4]
        function = FunctionStatus(
            name=name,
            kind=kind,
            invocations=invocations if kind else 0,
            errors=failed,
            throttles=0,
            retries=failed // 2,
            splits=0,
            billed_ms=invocations * 7 if kind == "kinesis" else 0,
            billed_gb_seconds=invocations * 0.000_875,
            estimated_usd=invocations * 1.7e-7,
            duration=_distribution(DURATION_BOUNDS, invocations, 0.008),
            batch_records=_distribution(BATCH_BOUNDS, invocations, 100.0),
        )
        return PipelineStatus(
            name=name,
            topic=name,
            sink=("parquet", "duckdb", "kafka", "none")[number % 4],
            target=(f"/data/{name}", "/data/warehouse.duckdb orders", f"{name}.out", None)[number % 4],
            state="running",
            error=None,
            shards=shards,
            function=function,
            records=records,
            rows=records,
            commits=int(seconds) * self.shards,
            counts=Counts(handled=max(0, records - failed - 10), filtered=10, failed=failed),
            commit=_distribution(DURATION_BOUNDS, int(seconds) * self.shards, 0.004),
            partitions=self.shards,
        )

    def _shard(self, partition: int, number: int, seconds: float) -> ShardStatus:
        rate = random.Random(partition * 31 + number).uniform(200, 1_500)
        moved = min(seconds, 100.0) if self.stalled and partition == 0 else seconds
        end = int(seconds * rate * (1 + 0.05 * math.sin(seconds / 20 + partition))) + 500
        position = min(end, int(moved * rate))
        stopped = partition == 3 and number == 1
        return ShardStatus(
            partition=partition,
            state="stopped" if stopped else "running",
            position=position,
            read=min(end, position + 200),
            end=end,
            iterator_age_seconds=round((end - position) / rate, 3),
            stalled_seconds=seconds - moved,
            records=position,
            batches=position // 100,
            rows=position,
            commits=int(moved),
            counts=Counts(handled=position),
            held_bytes=20_000,
            undelivered=False,
            error="partition 3 stopped at offset 12: division by zero" if stopped else None,
        )


def _distribution(bounds: tuple[float, ...], count: int, middle: float) -> Distribution:
    shares = [math.exp(-((math.log(bound / middle)) ** 2)) for bound in (*bounds, bounds[-1] * 10)]
    counts = tuple(int(count * share / sum(shares)) for share in shares)
    return Distribution(bounds, counts, sum(counts) * middle)


def _data() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": 1})
    for name in ("clicks", "orders", "audit"):
        connection.execute(
            f"CREATE TABLE {name} AS SELECT range AS _offset, 'page-' || range % 7 AS page, range * 1.5 AS amount,"
            " TIMESTAMP '2026-01-01' + INTERVAL (range) SECOND AS at, NULL AS nothing FROM range(2500)"
        )
    return connection


def _question(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(re.sub(r"sleep\([^)]*\)", "'slept'", sql))
    except duckdb.Error as error:
        raise UserError(str(error).splitlines()[0]) from None


class WorldServer(WebServer):
    """The real server, with the world's own switches before the product's application."""

    def _application(self, gate: Gate, hub: Hub, history: HistoryRing) -> ASGIApp:
        assert isinstance(self._view, World)
        return switched(self._view, super()._application(gate, hub, history))


def switched(world: World, app: ASGIApp) -> ASGIApp:
    """``/world/SWITCH`` does something to the world; everything else is the product's."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if not path.startswith("/world/"):
            await app(scope, receive, send)
            return
        match path.removeprefix("/world/"):
            case "fail":
                world.fail()
            case "log":
                world.say(f"line {world.lines.last + 1}: something was done")
            case "restart":
                world.restart()
            case "stall":
                world.stalled = True
            case "pause":
                world.paused_at = math.floor(time.time())
            case "resume":
                world.paused_at, world.stalled = None, False
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return answer


async def _live(world: World) -> None:
    """Something happens now and then."""
    number = 0
    while True:
        await asyncio.sleep(1.0)
        number += 1
        world.say(f"START RequestId: {number}", "platform")
        world.say(f"handled {number * 100} records, last page-{number % 7}")
        if number % 10 == 0:
            world.fail()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8400)
    parser.add_argument("--token")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--pipelines", type=int, default=3)
    parser.add_argument("--step-seconds", type=float, default=2.0, help="of the charts' history")
    parser.add_argument("--still", action="store_true", help="nothing happens but by /world/")
    given = parser.parse_args()
    world = World(shards=given.shards, pipelines=given.pipelines)
    for _ in range(7):
        world.fail()
    world.fail(value=b"\x00\xff binary")
    world.say("hello from the function")
    server = WorldServer(world, WebConfig(port=given.port, token=given.token), step_seconds=given.step_seconds)
    print(await server.start(), flush=True)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    living = asyncio.create_task(_live(world)) if not given.still else None
    await stopping.wait()
    if living is not None:
        living.cancel()
    await server.close()


if __name__ == "__main__":
    asyncio.run(main())
