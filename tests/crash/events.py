"""The world of the crash tests: numbered events, a producer that goes on throughout, and the row-by-row check."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

PARTITIONS = 8

#: Keys go round within each partition: no multiple of the partitions.
KEYS = 31

#: Events sent at a time, a multiple of PARTITIONS.
CHUNK = 800

#: More events than any of these tests sends.
EVENTS_MAX = 20_000_000


def value_of(number: int) -> bytes:
    return json.dumps(
        {"id": number, "page": f"/page/{number % 97}", "bucket": f"b{number % 3}", "text": "x" * 60}
    ).encode()


async def make_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()


class Producing:
    """A thread that sends numbered events, about ``per_second`` of them a second, until `finish`.

    It sends ``count_min`` of them at least, each acknowledged, and then says in ``sent`` how many there are.

    The producer is idempotent: what it sends is in the log once, whatever happens to the broker meanwhile.
    """

    def __init__(self, bootstrap: str, topic: str, count_min: int, per_second: int) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._count_min = count_min
        self._finishing = threading.Event()
        self.sent = 0
        self._per_second = per_second
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Have it end, and wait until everything is acknowledged."""
        self._finishing.set()
        self._thread.join(600)
        assert not self._thread.is_alive(), "the producer did not end"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            asyncio.run(self._produce())
        except BaseException as error:
            self.error = error

    async def _produce(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            enable_idempotence=True,
            linger_ms=20,
            request_timeout_ms=120_000,
            compression_type="lz4",
        )
        await producer.start()
        started = time.monotonic()
        try:
            while self.sent < self._count_min or not self._finishing.is_set():
                acknowledged = [
                    await producer.send(
                        self._topic, value_of(number), key=b"%d" % (number % KEYS), partition=number % PARTITIONS
                    )
                    for number in range(self.sent, self.sent + CHUNK)
                ]
                await asyncio.gather(*acknowledged)
                self.sent += CHUNK
                if not self._finishing.is_set():
                    ahead = self.sent / self._per_second - (time.monotonic() - started)
                    await asyncio.sleep(max(0.0, ahead))
        finally:
            await producer.stop()


class Reader:
    """Globs the public files every 50 ms, as an analyst would: each is whole, and no row comes twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[Path] = set()
        self._have = np.zeros(EVENTS_MAX, dtype=bool)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.faults: list[str] = []
        self.files = 0

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._look()
            self._ending.wait(0.05)
        self._look()

    def _look(self) -> None:
        for file in sorted(self._path.glob("**/*.parquet")):
            if file in self._seen:
                continue
            self._seen.add(file)
            try:
                ids = pq.ParquetFile(file).read(["id"]).column(0).to_numpy()
            except Exception as error:
                self.faults.append(f"torn: {file.name}: {error}")
                continue
            if self._have[ids].any() or len(np.unique(ids)) < len(ids):
                self.faults.append(f"duplicate rows appeared with {file.name}")
            self._have[ids] = True
            self.files += 1


def check_rows(relation: Callable[[duckdb.DuckDBPyConnection], str], count: int) -> None:
    """Each id exactly once, and each shard's rows in the order and at the offsets that the events were sent in."""
    with duckdb.connect() as connection:
        table = relation(connection)
        total, distinct, low, high = connection.sql(
            f"SELECT count(*), count(DISTINCT id), min(id), max(id) FROM {table}"
        ).fetchall()[0]
        assert (total, distinct, low, high) == (count, count, 0, count - 1)
        # Event n went to partition n % 8 as its (n // 8)-th record.
        misplaced = connection.sql(
            f"SELECT count(*) FROM {table} WHERE _partition <> id % {PARTITIONS} OR _offset <> id // {PARTITIONS}"
        ).fetchall()[0][0]
        assert misplaced == 0


def parquet_rows(path: Path) -> Callable[[duckdb.DuckDBPyConnection], str]:
    return lambda _connection: f"read_parquet('{path}/**/*.parquet', hive_partitioning = true)"


def duckdb_rows(path: Path, table: str) -> Callable[[duckdb.DuckDBPyConnection], str]:
    def attach(connection: duckdb.DuckDBPyConnection) -> str:
        connection.sql(f"ATTACH '{path}' AS found (READ_ONLY)")
        return f"found.{table}"

    return attach
