"""What a topic holds as its users see it: read by aiokafka's own consumer, with read_committed."""

from __future__ import annotations

import asyncio
import time

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from connectors.kafka.cluster import LATEST, Cluster
from connectors.kafka.settings import KafkaSettings
from engine.clock import SystemClock

SECONDS_MAX = 60.0
POLL_SECONDS = 0.01


async def committed(bootstrap: str, topic: str, *, settle: bool = True) -> list[ConsumerRecord]:
    """Every committed message, partition after partition; none where there is no topic.

    A transaction is committed before its markers are written: ``settle`` waits until none is open.
    """
    cluster = Cluster(KafkaSettings(bootstrap), SystemClock())
    await cluster.open()
    try:
        if topic not in await cluster.topics():
            return []
        partitions = range((await cluster.describe(topic)).stream.partitions)
        ends = await _ends(cluster, topic, partitions, settle)
    finally:
        await cluster.close()
    waiting = {TopicPartition(topic, partition) for partition in partitions if ends[partition]}
    if not waiting:
        return []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        found: dict[int, list[ConsumerRecord]] = {partition: [] for partition in partitions}
        consumer.assign(list(waiting))
        deadline = time.monotonic() + SECONDS_MAX
        while waiting:
            assert time.monotonic() < deadline, f"{waiting} were not read to {ends}"
            for place, records in (await consumer.getmany(*waiting, timeout_ms=100)).items():
                found[place.partition] += records
            waiting = {place for place in waiting if await consumer.position(place) < ends[place.partition]}
        return [record for partition in partitions for record in found[partition]]
    finally:
        await consumer.stop()


async def _ends(cluster: Cluster, topic: str, partitions: range, settle: bool) -> dict[int, int]:
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        ends = await cluster.offsets(topic, dict.fromkeys(partitions, LATEST), read_committed=False)
        stable = await cluster.offsets(topic, dict.fromkeys(partitions, LATEST))
        if ends == stable or not settle:
            return {partition: end or 0 for partition, end in stable.items()}
        assert time.monotonic() < deadline, f"a transaction in {topic} does not end: {ends}, {stable}"
        await asyncio.sleep(POLL_SECONDS)
