"""The reader of a freshness measurement: a process of its own that asks for what is there, over and over.

`benchmarks.freshness` starts it, as ``python -m benchmarks.freshness_reader`` with a job in the environment. It
asks as an analyst would: the view beside Parquet files in a DuckDB of its own, a file that the engine has open by
the Quack protocol, a topic as a consumer. A shard's rows become visible in the order of their offsets, so one small
answer, the last offset of each partition, tells of every event; when each was sent is in the rows. In the end the
times, seen and sent, go to the job's file, and what the asking took to standard output, as JSON.

Not here: the producer (`benchmarks.latency_processes`), and which runs there are.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson

from benchmarks.latency_processes import JOB, PARTITIONS, Times, percentiles, save
from connectors.analysis.extensions import load
from connectors.duckdb.serving import read_address
from connectors.parquet.view import NAME, VIEW

#: Between an answer and the next question; it is part of what is measured.
PAUSE_SECONDS = 0.003
#: How often it is looked for a view or an address that is not there yet.
LOOK_SECONDS = 0.02
APPEAR_SECONDS_MAX = 60.0

Ask = Callable[[str], list[tuple[Any, ...]]]


def view(job: Mapping[str, Any]) -> Ask:
    """The view of a Parquet sink's files."""
    path = Path(job["path"]) / NAME
    _appears(path.exists, f"the view {path}")
    connection = duckdb.connect()
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute(f"ATTACH '{path}' AS sink (READ_ONLY)")
    connection.execute("USE sink")

    def ask(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    return ask


def served(job: Mapping[str, Any]) -> Ask:
    """A DuckDB or DuckLake file that the engine serves."""
    path = Path(job["path"])
    _appears(lambda: read_address(path) is not None, f"{path} is not served: its address")
    address = read_address(path)
    assert address is not None
    connection = duckdb.connect()
    load(connection, "httpfs", "quack")

    def ask(sql: str) -> list[tuple[Any, ...]]:
        asked = [address.uri, sql, address.token]
        return connection.execute("FROM quack_query(?, ?, token => ?)", asked).fetchall()

    return ask


def watch(ask: Ask, job: Mapping[str, Any]) -> dict[str, Any]:
    """Ask until all events are there; when each became visible goes to the job's file."""
    table, events = job["table"], job["events"]
    moves: list[list[tuple[int, int]]] = [[] for _ in range(PARTITIONS)]  # when seen, and the offsets below
    took_ms: list[float] = []
    _appears(lambda: _answers(ask, table), f"the table {table}")
    deadline = time.monotonic() + job["seconds_max"]
    while sum(seen[-1][1] for seen in moves if seen) < events:
        if time.monotonic() > deadline:
            raise SystemExit(f"after {job['seconds_max']:g} s these are there: {[seen[-1:] for seen in moves]}")
        asked = time.time_ns()
        answer = ask(f'SELECT "_partition", max("_offset") + 1 FROM {table} GROUP BY ALL')
        now = time.time_ns()
        took_ms.append((now - asked) / 1e6)
        for partition, end in answer:
            if not moves[partition] or end > moves[partition][-1][1]:
                moves[partition].append((now, end))
        time.sleep(PAUSE_SECONDS)
    seen: list[Times] = []
    sent: list[Times] = []
    for partition, steps in enumerate(moves):
        rows = ask(f'SELECT "_offset", sent FROM {table} WHERE "_partition" = {partition} ORDER BY ALL')
        offsets, times = np.array(rows, np.int64).T
        assert np.array_equal(offsets, np.arange(len(offsets))), f"partition {partition} has holes or duplicates"
        at = np.searchsorted(np.array([end for _, end in steps]), offsets, side="right")
        seen.append(np.array([when for when, _ in steps], np.int64)[at])
        sent.append(times)
    save(Path(job["file"]), np.concatenate(seen), np.concatenate(sent))
    queries = {f"query_{name}": value for name, value in percentiles(np.array(took_ms)).items()}
    return {"queries": len(took_ms), **queries}


async def consume(job: Mapping[str, Any]) -> dict[str, Any]:
    """Read committed messages of a topic until all events were there."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(
        bootstrap_servers=job["bootstrap"],
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=8 << 20,
        fetch_max_wait_ms=20,
    )
    await consumer.start()
    seen: list[int] = []
    sent: list[int] = []
    try:
        consumer.assign([TopicPartition(job["table"], number) for number in range(PARTITIONS)])
        async with asyncio.timeout(job["seconds_max"]):
            while len(sent) < job["events"]:
                for messages in (await consumer.getmany(timeout_ms=1000)).values():
                    now = time.time_ns()
                    sent += [orjson.loads(message.value)["sent"] for message in messages]
                    seen += [now] * len(messages)
    finally:
        await consumer.stop()
    save(Path(job["file"]), np.array(seen, np.int64), np.array(sent, np.int64))
    return {}


def _answers(ask: Ask, table: str) -> bool:
    """Whether the table is there; it is made when its first rows are, or before."""
    try:
        ask(f"SELECT 1 FROM {table} LIMIT 0")
    except duckdb.Error as error:
        if "there is no table" in str(error):
            return False
        raise
    return True


def _appears(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + APPEAR_SECONDS_MAX
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not appear within {APPEAR_SECONDS_MAX:g} s")
        time.sleep(LOOK_SECONDS)


def main() -> None:
    """Be the reader that the job asks for."""
    job = json.loads(os.environ[JOB])
    print("ready", file=sys.stderr, flush=True)
    try:
        match job["role"]:
            case "view":
                result = watch(view(job), {**job, "table": VIEW})
            case "served":
                result = watch(served(job), job)
            case "topic":
                result = asyncio.run(consume(job))
    except duckdb.Error as error:
        # DuckDB shows the statement below, which is not what was asked.
        raise SystemExit(str(error).splitlines()[0]) from None
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
