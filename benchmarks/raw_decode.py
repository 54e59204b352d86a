"""Reading click events from the embedded broker: responses as bytes against aiokafka's getmany, and their parts.

Run ``python -m benchmarks.raw_decode``. A million events of 234 bytes, LZ4, in four partitions, are read to the end
by a `KafkaSource` in both ways, in turns, so that both see the same machine; once for each size of the producer's
batches, from those of a busy topic (256 kB) to those of one that hardly waits (2 kB). Processor time is that of
this process, all threads of it; the broker has its own. ``decode alone`` is the decoding of the same responses, on
one thread; ``decode apart`` of responses that each hold one producer batch; ``crc alone`` their checksums. A task
that wants to run every millisecond says how late the event loop was, which other processes add to, and how much
processor time its thread spent at once, which is its own doing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest

from benchmarks.decode import event
from connectors.kafka.broker import Broker
from connectors.kafka.record_batches import RecordBatches, warm
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import Fetching, KafkaSource
from engine.clock import SystemClock

PARTITIONS = 4
DISTINCT = 20_000
BATCH_BYTES = (256 * 1024, 16 * 1024, 2 * 1024)
RESPONSE_BYTES = 1 << 20
RESPONSES_MAX = 64
APART_MAX = 20_000
TURN_SECONDS = 0.001

#: What comes before the bytes that a batch's checksum covers.
UNCOVERED_BYTES = 21


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Where there was an event loop: how late it was at worst, and how long it computed at once."""

    system: str
    batch_bytes: int
    events: int
    seconds: float
    cpu_seconds: float
    late_ms_max: float = 0.0
    busy_ms_max: float = 0.0


class Owner:
    """A listener that says when everything is assigned."""

    def __init__(self) -> None:
        self.all = asyncio.Event()

    async def assigned(self, partitions: frozenset[int]) -> None:
        if len(partitions) == PARTITIONS:
            self.all.set()

    async def revoked(self, partitions: frozenset[int]) -> None:
        pass


def topic_of(batch_bytes: int) -> str:
    return f"clicks-{batch_bytes}"


async def fill(bootstrap: str, count: int, batch_bytes: int) -> None:
    """``count`` events, round robin over the partitions."""
    topic = topic_of(batch_bytes)
    chance = random.Random(1)
    values = [event(number, chance) for number in range(DISTINCT)]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type="lz4", max_batch_size=batch_bytes, linger_ms=50
    )
    await producer.start()
    for number in range(count):
        await producer.send(topic, values[number % DISTINCT], partition=number % PARTITIONS)
    await producer.stop()


@contextlib.asynccontextmanager
async def turning() -> AsyncIterator[list[tuple[float, float]]]:
    """Gives a list of how late the loop was and how long it computed, in ms, for every turn that was due."""
    late: list[tuple[float, float]] = []

    async def turn() -> None:
        while True:
            due, busy = time.perf_counter() + TURN_SECONDS, time.thread_time()
            await asyncio.sleep(TURN_SECONDS)
            late.append(((time.perf_counter() - due) * 1000, (time.thread_time() - busy) * 1000))

    task = asyncio.create_task(turn())
    try:
        yield late
    finally:
        task.cancel()


async def read(bootstrap: str, fetching: Fetching, records_max: int, batch_bytes: int) -> Measured:
    """Every event once, by a new group."""
    source = KafkaSource(
        KafkaSettings(bootstrap),
        topic=topic_of(batch_bytes),
        group_id=uuid.uuid4().hex,
        clock=SystemClock(),
        fetching=fetching,
    )
    await source.open()
    owner = Owner()
    await source.join(owner)
    await owner.all.wait()
    ends = await source.end_offsets(range(PARTITIONS))

    async def shard(partition: int) -> int:
        await source.seek(partition, 0)
        at = count = 0
        while at < ends[partition]:
            batch = await source.fetch(partition, records_max=records_max, seconds_max=1.0)
            if batch is not None:
                at, count = batch.end, count + len(batch)
        return count

    async with turning() as late:
        began, cpu = time.perf_counter(), time.process_time()
        counts = await asyncio.gather(*(shard(partition) for partition in range(PARTITIONS)))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    await source.close()
    assert sum(counts) == sum(ends.values())
    return Measured(fetching, batch_bytes, sum(counts), seconds, cpu, *map(max, zip(*late, strict=True)))


async def responses(bootstrap: str, topic: str) -> list[tuple[int, bytes]]:
    """The first responses of partition 0: position and bytes."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    await client.set_topics([topic])
    node = client.get_random_node()
    found: list[tuple[int, bytes]] = []
    position = 0
    while len(found) < RESPONSES_MAX:
        request = FetchRequest(100, 1, RESPONSE_BYTES, 0, [(topic, [(0, position, RESPONSE_BYTES)])])
        data = (await client.send(node, request)).topics[0][1][0][-1]
        if not data:
            break
        found.append((position, data))
        position = RecordBatches(data, topic=topic, partition=0, position=position).end
    await client.close()
    return found


def apart(given: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Each producer batch of the responses as a response of its own."""
    made: list[tuple[int, bytes]] = []
    for _, data in given:
        at = 0
        while at + 12 <= len(data) and len(made) < APART_MAX:
            end = at + 12 + int.from_bytes(data[at + 8 : at + 12], "big")
            if end > len(data):
                break
            made.append((int.from_bytes(data[at : at + 8], "big"), data[at:end]))
            at = end
    return made


def decode(given: list[tuple[int, bytes]], system: str, batch_bytes: int) -> Measured:
    """Responses to Batches, and nothing else."""
    began, cpu = time.perf_counter(), time.process_time()
    count = 0
    for position, data in given:
        reader = RecordBatches(data, topic="clicks", partition=0, position=position)
        while reader.has_more:
            count += len(reader.read(1 << 23))
    return Measured(system, batch_bytes, count, time.perf_counter() - began, time.process_time() - cpu)


def checksums(given: list[tuple[int, bytes]], count: int, batch_bytes: int) -> Measured:
    """The checksum of every batch by the library, with the copy of its bytes that it asks for."""
    began, cpu = time.perf_counter(), time.process_time()
    for _, data in given:
        at = 0
        while at + 12 <= len(data):
            end = at + 12 + int.from_bytes(data[at + 8 : at + 12], "big")
            if end > len(data):
                break
            google_crc32c.value(data[at + UNCOVERED_BYTES : end])
            at = end
    return Measured("crc alone", batch_bytes, count, time.perf_counter() - began, time.process_time() - cpu)


async def measure(options: argparse.Namespace, bootstrap: str, batch_bytes: int) -> list[Measured]:
    """All systems on a topic of batches of one size."""
    await fill(bootstrap, options.events, batch_bytes)
    await asyncio.to_thread(warm)
    given = await responses(bootstrap, topic_of(batch_bytes))
    events = decode(given, "", batch_bytes).events
    single = apart(given)
    systems: list[Callable[[], Awaitable[Measured]]] = [
        lambda: read(bootstrap, "raw", options.records_max, batch_bytes),
        lambda: read(bootstrap, "getmany", options.records_max, batch_bytes),
        lambda: asyncio.to_thread(decode, given, "decode alone", batch_bytes),
        lambda: asyncio.to_thread(decode, single, "decode apart", batch_bytes),
        lambda: asyncio.to_thread(checksums, given, events, batch_bytes),
    ]
    made = []
    for number in range(options.repetitions + 1):
        for system in systems:
            measured = await system()
            if number:  # the first round warms up
                made.append(measured)
    return made


def say(runs: list[Measured]) -> None:
    """A line about runs of one system, at the median."""
    rate = statistics.median(each.events / each.seconds for each in runs)
    per_cpu = statistics.median(each.events / each.cpu_seconds for each in runs)
    late, busy = max(each.late_ms_max for each in runs), max(each.busy_ms_max for each in runs)
    name = f"{runs[0].batch_bytes // 1024:4} kB {runs[0].system:14}"
    sys.stdout.write(
        f"{name} {rate:12,.0f} events/s {per_cpu:12,.0f} events per CPU second {1e9 / per_cpu:8,.0f} ns each"
        + (f"   loop late by {late:.1f} ms, busy {busy:.1f} ms at most\n" if busy else "\n")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--records-max", type=int, default=10_000)
    parser.add_argument(
        "--batch-bytes", type=int, nargs="+", default=BATCH_BYTES, help="of the producer, uncompressed"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made: list[Measured] = []
    with tempfile.TemporaryDirectory() as directory, Broker(Path(directory), port=0) as broker:
        for batch_bytes in options.batch_bytes:
            found = uvloop.run(measure(options, broker.bootstrap, batch_bytes))
            for system in dict.fromkeys(each.system for each in found):
                say([each for each in found if each.system == system])
            made += found
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in made], indent=1))


if __name__ == "__main__":
    main()
