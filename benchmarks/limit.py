"""What this machine could do at best: each step of the ETL by itself, on one core, over the bytes of a click topic.

    python -m benchmarks.limit [--bootstrap HOST:PORT] [--quick] [--headrace EVENTS_PER_CPU_SECOND] [--json FILE]

Bytes off the socket (untouched), checksum, decompression, records, JSON to ten typed columns, Parquet with zstd,
flushing a file, and rows into DuckDB. Where there are several ways, each is measured; the best of each step added
up is the limit of an ETL that does nothing else, on one core; headrace's own figure gives its share of that.

The core is this process's alone as far as the affinity goes: the broker has the others. A step's figure is its best
round. Not here: what headrace really takes (`benchmarks.scaling`, `benchmarks.systems`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import duckdb
import google_crc32c
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq
import uvloop
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest

from benchmarks import events, topics
from benchmarks.latency import bootstrap_of
from connectors.kafka.record_batches import RecordBatches, warm
from engine.batch import Batch
from engine.values import JsonDecoder

EVENTS = 1_000_000
QUICK_EVENTS = 200_000
RESPONSE_BYTES = 4 << 20
PARTITION_BYTES = 1 << 20
#: What one decoded batch, one row group and one insertion hold at most.
CHUNK_ROWS = 100_000
BATCH_BYTES = 8 << 20
DECOMPRESSED_BYTES_MAX = 64 << 20

#: What suits the click events: no dictionaries of what hardly repeats, differences of what rises.
CHOSEN = {
    "use_dictionary": ["session", "page", "event_type", "referrer", "ua"],
    "column_encoding": {"event_id": "DELTA_BINARY_PACKED", "ts": "DELTA_BINARY_PACKED"},
}

#: The way of an event through an ETL, in order. Rows into DuckDB are another end of it.
PATH = ("socket", "checksum", "decompress", "records", "parse", "encode", "flush")

#: The steps between bytes and records, and headrace's own way of taking them in one.
READING = ("checksum", "decompress", "records")
READ = "checksum to records"

#: A record batch of format 2 (Kafka's documentation, "Record batch"): where its length, checksum and header are.
LENGTH_AT = 8
OUTSIDE_BYTES = 12
CRC_AT = 17
HEADER_AT = 21
HEADER = struct.Struct(">hiqqqhii")
RECORDS_AT = HEADER_AT + HEADER.size
CODEC_BITS = 7
LZ4 = 3


@dataclass(frozen=True, slots=True)
class Response:
    """What one answer has of one partition, from ``position`` on."""

    partition: int
    position: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """``way`` is one of the ways to take ``step``; ``call`` takes it for all of ``events`` events."""

    step: str
    way: str
    events: int
    call: Callable[[], object]


class Reader:
    """A connection to the broker, with a loop of its own to read by."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._client = self._runner.run(self._connect(bootstrap))

    def read(self) -> list[Response]:
        """All of the topic as it comes off the socket."""
        found: list[Response] = []
        # Not the coroutine's result: the runner has that printed, for naught, at the cost of all else.
        self._runner.run(self._read(found))
        return found

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    async def _connect(self, bootstrap: str) -> AIOKafkaClient:
        client = AIOKafkaClient(bootstrap_servers=bootstrap)
        await client.bootstrap()
        await client.set_topics([self._topic])
        await client.force_metadata_update()
        return client

    async def _read(self, found: list[Response]) -> None:
        """One request at a time over all partitions, as headrace asks."""
        node = self._client.get_random_node()
        positions = dict.fromkeys(sorted(self._client.cluster.partitions_for_topic(self._topic)), 0)
        while positions:
            asked = [(partition, at, PARTITION_BYTES) for partition, at in positions.items()]
            request = FetchRequest(0, 1, RESPONSE_BYTES, 0, [(self._topic, asked)])
            for partition, _code, high_watermark, *rest in (await self._client.send(node, request)).topics[0][1]:
                position, data = positions.pop(partition), rest[-1]
                if data:
                    found.append(Response(partition, position, data))
                    position = _end(data, position)
                if position < high_watermark:
                    positions[partition] = position  # at the end of the line, so that all get their turn


def frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the whole record batches of a response begin and end."""
    at = 0
    while at + RECORDS_AT <= len(data):
        end = at + OUTSIDE_BYTES + int.from_bytes(data[at + LENGTH_AT : at + OUTSIDE_BYTES], "big")
        if end > len(data):
            return
        yield at, end
        at = end


def _end(data: bytes, position: int) -> int:
    """The offset after the last whole batch; reads headers alone, nothing of the records."""
    for at, _ in frames(data):
        _, delta, *_ = HEADER.unpack_from(data, at + HEADER_AT)
        position = int.from_bytes(data[at : at + LENGTH_AT], "big") + int(delta) + 1
    return position


def unpacked(data: bytes) -> bytes:
    """A response as it would be had the producer not compressed: its batches with the codec none."""
    made = []
    for at, end in frames(data):
        attributes, *rest = HEADER.unpack_from(data, at + HEADER_AT)
        assert attributes & CODEC_BITS == LZ4, f"codec {attributes & CODEC_BITS}; the benchmark's topics have lz4"
        plain = bytes(cramjam.lz4.decompress(data[at + RECORDS_AT : end]))
        covered = HEADER.pack(attributes & ~CODEC_BITS, *rest) + plain
        length = CRC_AT - OUTSIDE_BYTES + 4 + len(covered)
        before = data[at : at + LENGTH_AT] + length.to_bytes(4, "big") + data[at + OUTSIDE_BYTES : at + CRC_AT]
        made.append(before + google_crc32c.value(covered).to_bytes(4, "big") + covered)
    return b"".join(made)


# -- the steps -----------------------------------------------------------------------------------------------------


def checksum(responses: Sequence[Response]) -> None:
    for response in responses:
        for at, end in frames(response.data):
            google_crc32c.value(response.data[at + HEADER_AT : end])


def decompress(responses: Sequence[Response]) -> None:
    target: Any = np.empty(DECOMPRESSED_BYTES_MAX, np.uint8)
    for response in responses:
        data = memoryview(response.data)
        for at, end in frames(response.data):
            cramjam.lz4.decompress_into(data[at + RECORDS_AT : end], target)


def batches(responses: Sequence[Response], topic: str) -> list[Batch]:
    """Checksum, decompression and records as headrace takes them."""
    found = []
    for response in responses:
        reader = RecordBatches(response.data, topic=topic, partition=response.partition, position=response.position)
        while reader.has_more:
            found.append(reader.read(BATCH_BYTES))
    return found


def parse_headrace(decoder: JsonDecoder, given: Sequence[Batch]) -> list[pa.RecordBatch]:
    return [decoder.decode(batch).columns for batch in given]


def parse_duckdb(connection: duckdb.DuckDBPyConnection, documents: Sequence[pa.Table]) -> list[pa.Table]:
    found = []
    for document in documents:
        connection.register("documents", document)
        query = "SELECT unnest(json_transform(document, ?)) FROM documents"
        found.append(connection.execute(query, [json.dumps(dict(events.COLUMNS))]).to_arrow_table())
        connection.unregister("documents")
    return found


def parse_pyarrow(given: Sequence[Batch]) -> list[pa.Table]:
    options = pj.ParseOptions(explicit_schema=events.SCHEMA, unexpected_field_behavior="ignore")
    read = pj.ReadOptions(use_threads=False, block_size=2 * BATCH_BYTES)
    found = []
    for batch in given:
        text = b"\n".join(batch.records.column("value").to_pylist())
        found.append(pj.read_json(pa.BufferReader(text), read_options=read, parse_options=options))
    return found


def parse_orjson(given: Sequence[Batch]) -> list[pa.Table]:
    found = []
    for batch in given:
        rows = [orjson.loads(value) for value in batch.records.column("value").to_pylist()]
        found.append(pa.Table.from_pylist(rows, events.SCHEMA))
    return found


def encode_pyarrow(tables: Sequence[pa.Table], path: Path, **settings: Any) -> None:
    with pq.ParquetWriter(path, tables[0].schema, compression="zstd", **settings) as writer:
        for table in tables:
            writer.write_table(table)


def encode_duckdb(connection: duckdb.DuckDBPyConnection, table: pa.Table, path: Path) -> None:
    connection.register("given", table)
    connection.execute(f"COPY given TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
    connection.unregister("given")


def flush(data: bytes, path: Path) -> None:
    """Write a file that is encoded already, and have it and its name on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    path.unlink()


def insert(connection: duckdb.DuckDBPyConnection, tables: Sequence[pa.Table]) -> None:
    """Rows into a table of a DuckDB file, each table in a transaction."""
    connection.execute("DROP TABLE IF EXISTS stored")
    columns = ", ".join(f'"{name}" {kind}' for name, kind in events.COLUMNS.items())
    connection.execute(f"CREATE TABLE stored ({columns})")
    for table in tables:
        connection.register("given", table)
        connection.execute("INSERT INTO stored BY NAME SELECT * FROM given")
        connection.unregister("given")


# -- measuring -----------------------------------------------------------------------------------------------------


def measured(step: Step, rounds: int) -> dict[str, Any]:
    """A step's best round, by the processor time of this process."""
    step.call()
    best: tuple[float, float] | None = None
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        step.call()
        taken = time.process_time() - cpu, time.perf_counter() - wall
        best = taken if best is None else min(best, taken)
    assert best is not None
    cpu, wall = best
    return {
        "step": step.step,
        "way": step.way,
        "events": step.events,
        "events_per_second": round(step.events / wall),
        "events_per_cpu_second": round(step.events / max(cpu, 1e-9)),
        "cpu_seconds_per_million": round(cpu / step.events * 1e6, 4),
        "seconds_per_million": round(wall / step.events * 1e6, 4),
    }


def total(results: Sequence[dict[str, Any]], headrace: float | None = None) -> dict[str, Any]:
    """The best way of each step of `PATH`, added up. ``headrace`` is in events for each CPU second."""
    best = {}
    for step in (*PATH, READ):
        ways = [each for each in results if each["step"] == step]
        best[step] = min(ways, key=lambda each: each["cpu_seconds_per_million"])
    apart = sum(best[step]["cpu_seconds_per_million"] for step in READING)
    if best[READ]["cpu_seconds_per_million"] < apart:
        best = {step: each for step, each in best.items() if step not in READING}
    else:
        del best[READ]
    cpu = sum(each["cpu_seconds_per_million"] for each in best.values())
    made: dict[str, Any] = {
        "step": "limit",
        "way": "the best of each, added up",
        "ways": {step: each["way"] for step, each in best.items()},
        "cpu_seconds_per_million": round(cpu, 4),
        "seconds_per_million": round(sum(each["seconds_per_million"] for each in best.values()), 4),
        "events_per_cpu_second": round(1e6 / cpu),
    }
    if headrace is not None:
        made["headrace_events_per_cpu_second"] = round(headrace)
        made["headrace_share"] = round(headrace * cpu / 1e6, 3)
    return made


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process, and the threads it starts from now on, on one core; the libraries told so."""
    cores, threads = os.sched_getaffinity(0), pa.cpu_count()
    os.sched_setaffinity(0, {max(cores)})
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(threads)
        os.sched_setaffinity(0, cores)


def steps(bootstrap: str, topic: str, directory: Path) -> Iterator[Step]:
    """The steps in the order of the way, each made when it is its turn."""
    with contextlib.closing(Reader(bootstrap, topic)) as reader:
        responses = reader.read()
        made = batches(responses, topic)
        count = sum(map(len, made))
        yield Step("socket", "fetch, bytes untouched", count, reader.read)
    yield Step("checksum", "google-crc32c", count, lambda: checksum(responses))
    yield Step("decompress", "cramjam lz4", count, lambda: decompress(responses))
    plain = [Response(each.partition, each.position, unpacked(each.data)) for each in responses]
    yield Step("records", "headrace, of bytes not compressed", count, lambda: batches(plain, topic))
    yield Step(READ, "headrace", count, lambda: batches(responses, topic))
    yield from _parses(made, count)
    table = pa.concat_tables([pa.Table.from_batches(parse_headrace(_decoder(), made))]).combine_chunks()
    tables = [table.slice(at, CHUNK_ROWS) for at in range(0, count, CHUNK_ROWS)]
    path = directory / "limit.parquet"
    yield Step("encode", "pyarrow zstd", count, lambda: encode_pyarrow(tables, path))
    yield Step("encode", "pyarrow zstd, encodings chosen", count, lambda: encode_pyarrow(tables, path, **CHOSEN))
    data = path.read_bytes()
    with duckdb.connect(config={"threads": 1}) as memory:
        yield Step("encode", "duckdb COPY zstd", count, lambda: encode_duckdb(memory, table, path))
    yield Step("flush", f"write and fsync, {len(data) / count:.0f} B/event", count, lambda: flush(data, path))
    with duckdb.connect(str(directory / "limit.duckdb"), config={"threads": 1}) as stored:
        yield Step("insert", "duckdb file", count, lambda: insert(stored, tables))


def _decoder(*, whole: bool = False) -> JsonDecoder:
    return JsonDecoder(events.COLUMNS, rest=whole, trace=whole)


def _parses(given: Sequence[Batch], count: int) -> Iterator[Step]:
    """The ways from JSON to ten typed columns."""
    alone, whole = _decoder(), _decoder(whole=True)
    yield Step("parse", "headrace", count, lambda: parse_headrace(alone, given))
    yield Step("parse", "headrace, with _rest and trace", count, lambda: parse_headrace(whole, given))
    documents = [pa.table({"document": batch.records.column("value").cast(pa.string())}) for batch in given]
    with duckdb.connect(config={"threads": 1}) as connection:
        yield Step("parse", "duckdb json_transform", count, lambda: parse_duckdb(connection, documents))
    yield Step("parse", "pyarrow.json", count, lambda: parse_pyarrow(given))
    yield Step("parse", "orjson each, from_pylist", count, lambda: parse_orjson(given))


def run(
    bootstrap: str,
    *,
    topic: str | None = None,
    count: int = EVENTS,
    rounds: int = 3,
    headrace: float | None = None,
    scratch: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Every step's figures, and last their sum. ``topic`` has click events; one of ``count`` is made when left out.

    ``headrace`` is what it reached end to end, in events for each CPU second: its share of the limit is then given.
    """
    own = topic is None
    name = topic if topic is not None else f"limit-{uuid.uuid4().hex[:12]}"
    if own:
        topics.fill(bootstrap, name, count)
    results: list[dict[str, Any]] = []
    say(f"{'step':22}{'way':36}{'events/s':>13}{'CPU s per M':>13}")
    try:
        with one_core(), tempfile.TemporaryDirectory(dir=scratch) as directory:
            warm()
            for step in steps(bootstrap, name, Path(directory)):
                results.append(measured(step, rounds))
                say(line(results[-1]))
    finally:
        if own:
            topics.delete(bootstrap, name)
    results.append(total(results, headrace))
    say(line(results[-1]))
    return results


def line(result: dict[str, Any]) -> str:
    """A result as a line of the table."""
    rate = result.get("events_per_second", result["events_per_cpu_second"])
    share = f"   headrace has {result['headrace_share']:.0%} of it" if "headrace_share" in result else ""
    return f"{result['step']:22}{result['way']:36}{rate:13,}{result['cpu_seconds_per_million']:13.3f}{share}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", help="host:port; an embedded broker when left out")
    parser.add_argument("--topic", help="a topic of click events that is there already")
    parser.add_argument(
        "--events", type=int, default=EVENTS, help="of the topic that is made (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--headrace", type=float, help="events per CPU second that headrace reached, for its share")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EVENTS:,} events, two rounds")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    if options.quick:
        options.events, options.rounds = QUICK_EVENTS, 2
    with bootstrap_of(options.bootstrap) as bootstrap:
        results = run(
            bootstrap,
            topic=options.topic,
            count=options.events,
            rounds=options.rounds,
            headrace=options.headrace,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
