"""Topics of the benchmark: made, filled by a process of their own, and read back for checking.

Filling goes through the project's own producer: partitions by Kafka's murmur2 of the key, record batches of at
most 512 KiB (uncompressed) compressed with lz4, as a normal producer with a linger makes them, each acknowledged;
records carry the time of their sending. `python -m benchmarks.topics BOOTSTRAP TOPIC KIND EVENTS PARTITIONS` makes
and fills one. Not here: what the events are (`benchmarks.events`, `benchmarks.real`).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from benchmarks import events, real
from connectors.event_files import Events
from connectors.kafka.producer import Producer
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import target_topic
from engine.clock import SystemClock

PARTITIONS = 4
EVENTS_A_TIME = 10_000
ROOT = Path(__file__).resolve().parents[1]
FILL_SECONDS_MAX = 1_800.0


def create(bootstrap: str, topic: str, partitions: int = PARTITIONS) -> None:
    """Make an empty topic that keeps its records for ever. Raises the broker's refusal."""
    asyncio.run(_create(bootstrap, topic, partitions))


def delete(bootstrap: str, *topics: str) -> None:
    """Delete topics; those that do not exist are passed over."""
    asyncio.run(_delete(bootstrap, topics))


def delete_with(bootstrap: str, text: str) -> None:
    """Delete all topics with ``text`` in their names."""
    asyncio.run(_delete_with(bootstrap, text))


def fill(bootstrap: str, topic: str, count: int, partitions: int = PARTITIONS, kind: str = "clicks") -> None:
    """Make ``topic`` and fill it with ``count`` events, in a process of its own.

    ``kind`` is ``clicks`` (the first ``count`` of them), or ``logs`` or ``changes``, of which ``count`` is whole
    passes' events (`benchmarks.real.pass_events`).
    """
    command = [sys.executable, "-m", "benchmarks.topics", bootstrap, topic, kind, str(count), str(partitions)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=FILL_SECONDS_MAX, check=False)
    if done.returncode:
        raise RuntimeError(f"{topic} could not be filled:\n{done.stderr}")


def send(bootstrap: str, topic: str, given: Iterable[Events], partitions: int = PARTITIONS) -> int:
    """Make ``topic`` and fill it with ``given``, in this process; how many there were."""
    create(bootstrap, topic, partitions)
    return asyncio.run(_send(bootstrap, topic, given, partitions))


def values(bootstrap: str, topic: str) -> list[bytes]:
    """The values of all committed records of a topic."""
    return asyncio.run(_values(bootstrap, topic))


def clicks(count: int) -> Iterator[Events]:
    """The first ``count`` click events as the producer wants them."""
    for chunk in events.chunks(count):
        for start in range(0, len(chunk), EVENTS_A_TIME):
            part = chunk.values.slice(start, EVENTS_A_TIME).to_pylist()
            keys = chunk.keys.slice(start, EVENTS_A_TIME).to_pylist()
            yield Events("clicks", "event", range(chunk.start + start, chunk.start + start + len(part)), part, keys)


def repeated(kind: str, count: int) -> Iterator[Events]:
    """``count`` events of real data, whole passes."""
    passes, rest = divmod(count, real.pass_events(kind))
    assert not rest, f"{count} events are no whole passes over {kind}"
    for records in real.records(kind, passes):
        for start in range(0, len(records), EVENTS_A_TIME):
            keys, found = zip(*records[start : start + EVENTS_A_TIME], strict=True)
            yield Events(kind, "event", range(start, start + len(found)), found, keys)


async def _create(bootstrap: str, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        new = NewTopic(topic, partitions, 1, topic_configs={"retention.ms": "-1"})
        for _, code, *message in (await admin.create_topics([new])).topic_errors:
            if code:
                raise for_code(code)(*message)
    finally:
        await admin.close()
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while len(consumer.partitions_for_topic(topic) or ()) < partitions:
                await consumer._client.force_metadata_update()
                await asyncio.sleep(0.05)
    finally:
        await consumer.stop()


async def _delete(bootstrap: str, topics: Sequence[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics(list(topics))
    finally:
        await admin.close()


async def _delete_with(bootstrap: str, text: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        found = [topic for topic in await admin.list_topics() if text in topic]
        if found:
            await admin.delete_topics(found)
    finally:
        await admin.close()


async def _send(bootstrap: str, topic: str, given: Iterable[Events], partitions: int) -> int:
    settings = KafkaSettings(bootstrap=bootstrap)
    target = await target_topic(settings, SystemClock(), topic, partitions=partitions)
    produced = await Producer(settings, target).run(given)
    if produced.error is not None:
        raise produced.error
    return produced.events


async def _values(bootstrap: str, topic: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        max_partition_fetch_bytes=8 << 20,
        enable_auto_commit=False,
    )
    await consumer.start()
    found: list[bytes] = []
    try:
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [record.value for record in records]
    finally:
        await consumer.stop()
    return found


def main() -> None:
    bootstrap, topic, kind, count, partitions = sys.argv[1:]
    given = clicks(int(count)) if kind == "clicks" else repeated(kind, int(count))
    sent = send(bootstrap, topic, given, int(partitions))
    assert sent == int(count), f"{sent} of {count} events"


if __name__ == "__main__":
    main()
