"""A topic read whole, once, outside of any consumer group: what commands do that look through one.

Every committed record from the first to where the log ends at the start. Not here: reading on and on as a shard
(`source`, `fetcher`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiokafka import TopicPartition, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest

from connectors.kafka.cluster import EARLIEST, LATEST, Cluster
from connectors.kafka.record_batches import RecordBatches
from engine.deadline import Deadline
from engine.errors import BrokerUnavailable
from engine.protocols import Clock

#: One fetch (a record that is larger comes alone), and how long a broker may keep it.
FETCH_BYTES_MAX = 4 * 1024 * 1024
FETCH_MS = 100

#: What becomes records at once.
CHUNK_BYTES = 1024 * 1024

#: So many empty answers in a row mean that compaction has left nothing up to the end.
EMPTY_ANSWERS = 5

READ_COMMITTED = 1

#: How often it is looked whether a transaction has ended.
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Message:
    """A record of the topic; ``timestamp`` is milliseconds since the epoch."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some messages of one partition, with how many offsets of all partitions are done by them."""

    messages: list[Message]
    done: int
    total: int


async def read(
    cluster: Cluster, clock: Clock, topic: str, *, settle_seconds_max: float | None = None
) -> AsyncIterator[Chunk]:
    """All committed records, partition by partition. Raises BrokerUnavailable, UserError for an unknown topic.

    Without ``settle_seconds_max`` it ends where an open transaction begins; with it, such a transaction is
    waited for, and BrokerUnavailable says that it did not end.
    """

    async def known(client: AIOKafkaClient) -> AIOKafkaClient:
        client.add_topic(topic)
        await client.force_metadata_update()
        return client

    partitions = range((await cluster.describe(topic)).stream.partitions)
    await cluster.call(known, f"no answer about topic {topic!r}")
    starts = await cluster.offsets(topic, dict.fromkeys(partitions, EARLIEST))
    ends = await _ends(cluster, clock, topic, partitions, settle_seconds_max)
    before, total = 0, sum(max(0, ends[each] - (starts[each] or 0)) for each in partitions)
    for partition in partitions:
        position = start = starts[partition] or 0
        end, empty = ends[partition], 0
        while position < end:
            data, aborted, is_throttled = await _fetched(cluster, topic, partition, position)
            if empty >= EMPTY_ANSWERS:
                break
            if not data:
                empty = 0 if is_throttled else empty + 1
                continue
            found = RecordBatches(data, topic=topic, partition=partition, position=position, aborted=aborted)
            while found.has_more and found.position < end:
                messages = await asyncio.to_thread(_messages, found, partition, end)
                yield Chunk(messages, before + min(found.position, end) - start, total)
            empty = 0 if found.position > position else empty + 1
            position = found.position
        before += max(0, end - start)


async def _ends(
    cluster: Cluster, clock: Clock, topic: str, partitions: range, settle_seconds_max: float | None
) -> dict[int, int]:
    """Last stable offsets; with ``settle_seconds_max`` they have reached what was the end of the log."""
    wanted = dict.fromkeys(partitions, LATEST)
    if settle_seconds_max is None:
        return {each: end or 0 for each, end in (await cluster.offsets(topic, wanted)).items()}
    whole = {each: end or 0 for each, end in (await cluster.offsets(topic, wanted, read_committed=False)).items()}
    deadline = Deadline(clock, settle_seconds_max)
    while True:
        stable = {each: end or 0 for each, end in (await cluster.offsets(topic, wanted)).items()}
        if all(stable[each] >= whole[each] for each in partitions):
            return stable
        if not deadline.seconds_left:
            raise BrokerUnavailable(f"topic {topic!r}: a transaction does not end within {settle_seconds_max:g} s")
        await asyncio.sleep(LOOK_SECONDS)


async def _fetched(
    cluster: Cluster, topic: str, partition: int, position: int
) -> tuple[bytes, list[tuple[int, int]] | None, bool]:
    async def fetch(client: AIOKafkaClient) -> tuple[bytes, list[tuple[int, int]] | None, bool]:
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        if leader is None or leader < 0:
            await client.force_metadata_update()
            raise errors.LeaderNotAvailableError(f"{topic}-{partition}")
        wanted = [(topic, [(partition, position, FETCH_BYTES_MAX)])]
        answer = await client.send(leader, FetchRequest(FETCH_MS, 1, FETCH_BYTES_MAX, READ_COMMITTED, wanted))
        _partition, code, _high_watermark, *rest = answer.topics[0][1][0]
        if code:
            if errors.for_code(code).invalid_metadata:
                await client.force_metadata_update()
            raise errors.for_code(code)(f"{topic}-{partition}")
        aborted = rest[2] if answer.API_VERSION >= 11 else rest[-2]
        return rest[-1] or b"", aborted, bool(answer.throttle_time_ms)

    return await cluster.call(fetch, f"topic {topic!r} cannot be read")


def _messages(found: RecordBatches, partition: int, end: int) -> list[Message]:
    return [
        Message(
            partition,
            row["offset"],
            row["timestamp"],
            row["key"],
            row["value"],
            tuple((header["key"], header["value"]) for header in row["headers"] or ()),
        )
        for row in found.read(CHUNK_BYTES).records.to_pylist()
        if row["offset"] < end
    ]
