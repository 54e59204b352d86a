"""Where a shard starts when the sink does not say, and what it means when the log no longer has a position.

Not here: the committed positions themselves, which live in the sink.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from engine.batch import Batch, Stream, empty_records
from engine.config import SourceConfig
from engine.errors import BrokerUnavailable, LostOffsets, RecreatedTopic
from engine.protocols import Sink, Source

log = logging.getLogger("headrace.positions")


class StreamCheck:
    """Asks whether the topic is still the one that the pipeline started with.

    An answer holds for a caller only if it was asked for after the call: what was fetched before then came
    from that topic. Callers that come while a question is under way share the next one.
    """

    def __init__(self, name: str, source: Source, stream: Stream) -> None:
        self._name = name
        self._source = source
        self._stream = stream
        self._asking = asyncio.Lock()
        self._asked = 0
        self._answered = 0

    async def run(self) -> None:
        """Raises RecreatedTopic when another topic has the name now."""
        self._asked += 1
        mine = self._asked
        async with self._asking:
            if self._answered >= mine:
                return
            covers = self._asked
            now = await self._source.describe()
            if (now.cluster_id, now.topic_id) != (self._stream.cluster_id, self._stream.topic_id):
                raise RecreatedTopic(
                    f"{self._name}: topic {now.topic!r} was deleted and made anew while it was read "
                    f"(topic id {self._stream.topic_id} then, {now.topic_id} now)",
                    hint='restart with source.on_recreated_topic = "restart" to read the new topic from its start',
                )
            self._answered = covers


@dataclass(frozen=True, slots=True)
class Positions:
    """What a shard asks about positions."""

    name: str
    source: Source
    sink: Sink
    config: SourceConfig
    stream: Stream
    check: StreamCheck

    async def resolve_start(self, partition: int) -> int:
        """The first offset of a shard that has no position yet.

        Partitions that the topic did not have when the pipeline first started begin at their earliest
        offset, whatever ``starting_position`` says: nothing that arrived since may be skipped.
        """
        kind = self.config.starting_position
        if kind == "TRIM_HORIZON" or partition >= self.sink.partitions_at_start:
            return (await self.source.beginning_offsets([partition]))[partition]
        if kind == "LATEST":
            return (await self.source.end_offsets([partition]))[partition]
        at = self.config.starting_position_timestamp
        assert at is not None
        return (await self.source.offsets_at([partition], int(at.timestamp() * 1000)))[partition]

    async def beyond(self, partition: int, offset: int) -> Batch:
        """A range without records that leads from ``offset``, which the log no longer has, to where it starts.

        Raises RecreatedTopic or LostOffsets, which say what was lost, unless ``on_lost_offsets`` goes on.
        """
        await self.check.run()
        beginning = (await self.source.beginning_offsets([partition]))[partition]
        end = (await self.source.end_offsets([partition]))[partition]
        where = f"{self.name}: {self.stream.topic}-{partition}"
        if offset > end:
            raise LostOffsets(
                f"{where}: the sink is at offset {offset}, but the log ends at {end}: "
                f"{offset - end} offsets that were read are gone from the log",
                hint="the log was truncated; restore it, or give the pipeline a new name and a new sink",
            )
        if offset >= beginning:
            # It is there by now: a replica caught up, or the log grew back. The shard takes itself up again.
            raise BrokerUnavailable(f"{where}: the broker did not have offset {offset}, though the log does")
        count = beginning - offset
        lost = f"{where}: {count} offsets, {offset} to {beginning - 1}, are lost: the log starts at {beginning}"
        if self.config.on_lost_offsets == "stop":
            raise LostOffsets(
                lost,
                hint='set source.on_lost_offsets = "earliest" to go on there, or keep records longer',
            )
        log.warning("%s; going on there", lost)
        return Batch(self.stream.topic, partition, offset, beginning, empty_records())
