"""Where shards start, what lost offsets mean, and whether the topic is still the same."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest

from connectors.memory import MemoryCluster, MemorySink, MemorySource, MemoryStore
from engine.batch import Stream
from engine.clock import SystemClock
from engine.config import SourceConfig
from engine.errors import BrokerUnavailable, LostOffsets, RecreatedTopic
from engine.positions import Positions, StreamCheck
from tests.clock import until
from tests.unit.engine_world import TOPIC

LATE = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def cluster() -> MemoryCluster:
    """A topic of one partition with the offsets 2 to 9."""
    cluster = MemoryCluster()
    log = cluster.create(TOPIC).partitions[0]
    for at in range(10):
        log.append(b"x", timestamp_ms=1_000 * at)
    log.truncate(2)
    return cluster


async def positions(cluster: MemoryCluster, **config: Any) -> Positions:
    source = MemorySource(cluster, topic=TOPIC, group_id="g", clock=SystemClock())
    sink = MemorySink(MemoryStore(), pipeline="p", clock=SystemClock())
    stream = await source.open()
    await sink.open(stream)
    check = StreamCheck("p", source, stream)
    return Positions("p", source, sink, SourceConfig(topic=TOPIC, **config), stream, check)


@pytest.mark.parametrize(
    ("config", "start"),
    [
        ({}, 2),
        ({"starting_position": "TRIM_HORIZON"}, 2),
        ({"starting_position": "LATEST"}, 10),
        (
            {
                "starting_position": "AT_TIMESTAMP",
                "starting_position_timestamp": dt.datetime.fromtimestamp(0, dt.UTC),
            },
            2,
        ),
        (
            {
                "starting_position": "AT_TIMESTAMP",
                "starting_position_timestamp": dt.datetime.fromtimestamp(4.5, dt.UTC),
            },
            5,
        ),
        ({"starting_position": "AT_TIMESTAMP", "starting_position_timestamp": LATE}, 10),
    ],
)
async def test_a_first_start(cluster: MemoryCluster, config: dict[str, Any], start: int) -> None:
    """The configuration says where a shard without a position begins."""
    assert await (await positions(cluster, **config)).resolve_start(0) == start


@pytest.mark.parametrize("kind", ["LATEST", "AT_TIMESTAMP"])
async def test_partitions_found_later_start_at_their_earliest_offset(cluster: MemoryCluster, kind: str) -> None:
    """Nothing that arrived in a partition since the pipeline's start is skipped."""
    at = {"starting_position_timestamp": LATE} if kind == "AT_TIMESTAMP" else {}
    known = await positions(cluster, starting_position=kind, **at)
    cluster.grow(TOPIC, 2)
    cluster.topics[TOPIC].partitions[1].append(b"x")
    assert await known.resolve_start(1) == 0
    assert await known.resolve_start(0) == 10


async def test_below_the_log_start_is_lost(cluster: MemoryCluster) -> None:
    """The error counts what is gone and says what could be done."""
    with pytest.raises(LostOffsets, match="2 offsets, 0 to 1, are lost: the log starts at 2") as caught:
        await (await positions(cluster)).beyond(0, 0)
    assert 'on_lost_offsets = "earliest"' in str(caught.value)


async def test_lost_offsets_can_be_a_range_without_records(cluster: MemoryCluster) -> None:
    """With "earliest" the way goes on at the log start, and the gap is accounted for."""
    gap = await (await positions(cluster, on_lost_offsets="earliest")).beyond(0, 0)
    assert (gap.start, gap.end, gap.absent, len(gap)) == (0, 2, 2, 0)


@pytest.mark.parametrize("choice", ["stop", "earliest"])
async def test_beyond_the_end_stops_in_any_case(cluster: MemoryCluster, choice: str) -> None:
    """Records that were read are gone from the log: no choice makes that right."""
    with pytest.raises(LostOffsets, match="at offset 14, but the log ends at 10: 4 offsets"):
        await (await positions(cluster, on_lost_offsets=choice)).beyond(0, 14)


@pytest.mark.parametrize("offset", [2, 6, 10])
async def test_an_offset_that_is_there_by_now_is_tried_again(cluster: MemoryCluster, offset: int) -> None:
    """A broker that did not have the position for a moment has lost nothing."""
    with pytest.raises(BrokerUnavailable) as caught:
        await (await positions(cluster, on_lost_offsets="earliest")).beyond(0, offset)
    assert caught.value.retry


async def test_another_topic_is_told_from_lost_offsets(cluster: MemoryCluster) -> None:
    """A topic made anew is said to be one, with both ids, whatever its offsets are."""
    known = await positions(cluster, on_lost_offsets="earliest")
    before = cluster.topics[TOPIC].topic_id
    cluster.delete(TOPIC)
    after = cluster.create(TOPIC).topic_id
    with pytest.raises(RecreatedTopic, match=f"{before} then, {after} now"):
        await known.beyond(0, 5)


class Asked:
    """A source that answers when it is told to, and counts the questions."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.questions = 0
        self.answers = asyncio.Semaphore(0)

    async def describe(self) -> Stream:
        self.questions += 1
        await self.answers.acquire()
        return self.stream


async def test_callers_share_a_question_that_was_asked_after_they_came() -> None:
    """Ten shards that come while a question is under way need one more, not ten, and not none."""
    stream = Stream("c", TOPIC, "id", 1)
    source = Asked(stream)
    check = StreamCheck("p", source, stream)  # type: ignore[arg-type]
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(check.run())
        await until(lambda: source.questions == 1)
        later = [tasks.create_task(check.run()) for _ in range(10)]
        source.answers.release()
        await first
        await until(lambda: source.questions == 2)
        assert not any(task.done() for task in later)
        source.answers.release()
    assert source.questions == 2


async def test_a_failed_question_is_asked_again_by_the_next() -> None:
    """An answer that did not come holds for nobody."""
    stream = Stream("c", TOPIC, "id", 1)
    cluster = MemoryCluster(cluster_id="c", available=False)
    cluster.create(TOPIC).topic_id = "id"
    check = StreamCheck("p", MemorySource(cluster, topic=TOPIC, group_id="g", clock=SystemClock()), stream)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await check.run()
    cluster.available = True
    await check.run()
    cluster.topics[TOPIC].topic_id = "other"
    with pytest.raises(RecreatedTopic):
        await check.run()
