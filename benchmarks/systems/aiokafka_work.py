"""What the hand-written loop does with records, a class for each workload. Not here: reading them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from binascii import b2a_base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition

from benchmarks.events import SCHEMA
from benchmarks.systems import handler
from benchmarks.systems.job import Job

HANDLER_EVENTS = 1_000
WINDOW_MS = 60_000

Records = Sequence[ConsumerRecord]
Windows = dict[tuple[int, str], list[float]]


class Work(ABC):
    """What is done with the records of one process; ``tag`` names the process."""

    def __init__(self, job: Job, tag: str) -> None:
        self.job = job
        self.tag = tag

    async def start(self) -> None:  # noqa: B027 - most need nothing here, nor in the two others
        """Open what is needed."""

    @abstractmethod
    async def take(self, partition: TopicPartition, records: Records) -> None:
        """Handle records of one partition."""

    async def settle(self) -> None:  # noqa: B027
        """Return when everything taken has had its effect; offsets are committed then."""

    async def finish(self) -> None:  # noqa: B027
        """The last result."""


class Etl(Work):
    """Typed columns in Parquet files of `COMMIT_EVENTS` rows, by Arrow's JSON reader."""

    def __init__(self, job: Job, tag: str) -> None:
        super().__init__(job, tag)
        self.rows: list[Any] = []
        self.files = 0

    async def take(self, partition: TopicPartition, records: Records) -> None:
        self.rows += [record.value for record in records]

    async def settle(self) -> None:
        rows, self.rows = self.rows, []
        if rows:
            path = self.job.directory / f"{self.tag}-{self.files:05}.parquet"
            self.files += 1
            await asyncio.to_thread(self.write, path, rows)

    def write(self, path: Path, rows: list[Any]) -> None:
        pq.write_table(self.table(rows), path, compression="zstd")

    def table(self, rows: list[Any]) -> pa.Table:
        return pj.read_json(
            pa.BufferReader(b"\n".join(rows)),
            read_options=pj.ReadOptions(use_threads=False, block_size=64 << 20),
            parse_options=pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore"),
        )


class EtlPylist(Etl):
    """The same with `orjson` and `pyarrow.Table.from_pylist`."""

    async def take(self, partition: TopicPartition, records: Records) -> None:
        loads = orjson.loads
        self.rows += [loads(record.value) for record in records]

    def table(self, rows: list[Any]) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=SCHEMA)


class Filter(Work):
    """Purchases above 90 to another topic, as they came."""

    async def start(self) -> None:
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.job.bootstrap,
            linger_ms=20,
            compression_type="lz4",
            acks=1,
            max_batch_size=256 << 10,
        )
        self.sent: list[asyncio.Future[Any]] = []
        await self.producer.start()

    async def take(self, partition: TopicPartition, records: Records) -> None:
        loads, send, topic = orjson.loads, self.producer.send, self.job.output
        for record in records:
            event = loads(record.value)
            if event["event_type"] == "purchase" and event["price"] > 90:
                self.sent.append(await send(topic, record.value, record.key))

    async def settle(self) -> None:
        await self.producer.flush()
        sent, self.sent = self.sent, []
        await asyncio.gather(*sent)

    async def finish(self) -> None:
        await self.producer.stop()


class Window(Work):
    """Count and sum by minute and page, in a dict."""

    def __init__(self, job: Job, tag: str) -> None:
        super().__init__(job, tag)
        self.windows: Windows = {}

    async def take(self, partition: TopicPartition, records: Records) -> None:
        loads, windows = orjson.loads, self.windows
        for record in records:
            event = loads(record.value)
            ts = event["ts"]
            key = (ts - ts % WINDOW_MS, event["page"])
            window = windows.get(key)
            if window is None:
                windows[key] = [1, event["price"]]
            else:
                window[0] += 1
                window[1] += event["price"]

    async def finish(self) -> None:
        await asyncio.to_thread(write_windows, self.job, self.windows, self.tag)


class Handler(Work):
    """The Lambda handler, called with Kinesis events of 1,000 records."""

    async def take(self, partition: TopicPartition, records: Records) -> None:
        arn = f"arn:aws:kinesis:us-east-1:000000000000:stream/{partition.topic}"
        shard = f"shardId-{partition.partition:012}"
        for start in range(0, len(records), HANDLER_EVENTS):
            event = {
                "Records": [
                    {
                        "kinesis": {
                            "kinesisSchemaVersion": "1.0",
                            "partitionKey": record.key.decode(),
                            "sequenceNumber": str(record.offset),
                            "data": b2a_base64(record.value, newline=False).decode("ascii"),
                            "approximateArrivalTimestamp": record.timestamp / 1000,
                        },
                        "eventSource": "aws:kinesis",
                        "eventVersion": "1.0",
                        "eventID": f"{shard}:{record.offset}",
                        "eventName": "aws:kinesis:record",
                        "invokeIdentityArn": "arn:aws:iam::000000000000:role/bench",
                        "awsRegion": "us-east-1",
                        "eventSourceARN": arn,
                    }
                    for record in records[start : start + HANDLER_EVENTS]
                ]
            }
            handler.count(event, None)

    async def finish(self) -> None:
        handler.write(self.job.directory / f"{self.tag}.json")


def write_windows(job: Job, windows: Windows, name: str) -> None:
    """Windows as a Parquet file."""
    table = pa.table(
        {
            "window_start": pa.array([start for start, _ in windows], pa.int64()),
            "page": pa.array([page for _, page in windows], pa.string()),
            "count": pa.array([int(count) for count, _ in windows.values()], pa.int64()),
            "sum": pa.array([total for _, total in windows.values()], pa.float64()),
        }
    )
    pq.write_table(table, job.directory / f"{name}.parquet", compression="zstd")


def merged(parts: Sequence[Windows]) -> Windows:
    """The windows of several processes: a page's events are in all partitions."""
    whole: Windows = {}
    for part in parts:
        for key, (count, total) in part.items():
            window = whole.setdefault(key, [0, 0.0])
            window[0] += count
            window[1] += total
    return whole
