"""`MemorySource`: a topic of a `MemoryCluster` as an `engine.protocols.Source`, a member of a group.

For tests, and for trying a pipeline without a broker. It behaves as `connectors.kafka.source` does, which
the same suite checks; what is stored is in `connectors.memory.log`.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Mapping, Sequence

from connectors.memory.group import Member, group_of
from connectors.memory.log import MemoryCluster, MemoryLog
from engine.batch import Batch, Stream, from_rows
from engine.errors import BrokerUnavailable, ShardLost, UserError
from engine.protocols import Clock, OffsetOutOfRange, ShardListener


class MemorySource:
    """One topic read by one member of ``group_id``; time is that of ``clock``, in seconds."""

    def __init__(
        self,
        cluster: MemoryCluster,
        *,
        topic: str,
        group_id: str,
        clock: Clock,
        read_committed: bool = True,
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._group = group_of(cluster, topic, group_id)
        self._clock = clock
        self._read_committed = read_committed
        self._member: Member | None = None
        self._next: dict[int, int] = {}

    async def open(self) -> Stream:
        return await self.describe()

    async def describe(self) -> Stream:
        self._require_cluster()
        stream = self._cluster.stream(self._topic)
        if stream is None:
            names = sorted(self._cluster.topics)
            near = difflib.get_close_matches(self._topic, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:10]) or 'no topics'}"
            raise UserError(f"topic {self._topic!r} does not exist", hint=hint)
        return stream

    async def join(self, listener: ShardListener) -> None:
        self._require_cluster()
        assert self._member is None, "a source joins once"
        self._member = self._group.join(_Following(listener, self._next))

    async def leave(self) -> None:
        member = self._member
        if member is not None:
            await self._group.leave(member)
            self._member = None

    async def expire(self) -> None:
        """End this member's session behind its back: it reads on, but its partitions go to others."""
        if self._member is not None:
            await self._group.expire(self._member)

    async def settled(self) -> None:
        """Wait until the group's rebalances are over."""
        await self._group.settled()

    async def close(self) -> None:
        await self.leave()

    async def beginning_offsets(self, partitions: Sequence[int]) -> dict[int, int]:
        return {partition: self._log(partition).start for partition in partitions}

    async def end_offsets(self, partitions: Sequence[int]) -> dict[int, int]:
        return {partition: self._end(self._log(partition)) for partition in partitions}

    async def offsets_at(self, partitions: Sequence[int], timestamp_ms: int) -> dict[int, int]:
        logs = {partition: self._log(partition) for partition in partitions}
        found = {partition: log.offset_at(timestamp_ms) for partition, log in logs.items()}
        # An offset of an open transaction lies beyond what a reader sees; it begins at the end then.
        ends = {partition: self._end(log) for partition, log in logs.items()}
        return {at: ends[at] if offset is None else min(offset, ends[at]) for at, offset in found.items()}

    async def seek(self, partition: int, offset: int) -> None:
        self._require_owned(partition)
        self._next[partition] = offset

    async def fetch(self, partition: int, *, records_max: int, seconds_max: float) -> Batch | None:
        at = self._clock.monotonic() + seconds_max
        while True:
            self._require_owned(partition)
            start = self._next.get(partition)
            if start is None:
                raise ShardLost(f"{self._topic}-{partition} has no position; its owner has yet to seek")
            topic = self._cluster.topics.get(self._topic)
            known = topic is not None and partition < len(topic.partitions)
            if topic is not None and known:
                log = topic.partitions[partition]
                changed = log.changes.next()
                if not log.start <= start <= log.end:
                    raise OffsetOutOfRange(partition, start)
                rows, end = log.read(start, records_max, read_committed=self._read_committed)
                if end > start:
                    self._next[partition] = end
                    return from_rows(self._topic, partition, rows, start=start, end=end)
            else:
                changed = asyncio.Event()
            left = at - self._clock.monotonic()
            if left <= 0 or not await self._first(changed, left):
                return None

    async def commit(self, positions: Mapping[int, int]) -> None:
        self._require_cluster()
        if self._member is None:
            raise ShardLost(f"{self._topic}: this member has left the group")
        self._group.commit(self._member, positions)

    async def committed(self, partition: int) -> int | None:
        self._require_cluster()
        return self._group.committed(partition)

    async def _first(self, changed: asyncio.Event, seconds: float) -> bool:
        """Whether ``changed`` comes within ``seconds`` of the clock."""
        waiting = asyncio.ensure_future(changed.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.done()
        finally:
            for task in (waiting, sleeping):
                task.cancel()
            await asyncio.gather(waiting, sleeping, return_exceptions=True)

    def _end(self, log: MemoryLog) -> int:
        return log.stable_end if self._read_committed else log.end

    def _log(self, partition: int) -> MemoryLog:
        self._require_cluster()
        topic = self._cluster.topics.get(self._topic)
        if topic is None or partition >= len(topic.partitions):
            raise UserError(f"topic {self._topic!r} has no partition {partition}")
        return topic.partitions[partition]

    def _require_cluster(self) -> None:
        if not self._cluster.available:
            raise BrokerUnavailable(f"no cluster for topic {self._topic!r}")

    def _require_owned(self, partition: int) -> None:
        self._require_cluster()
        if self._member is None or partition not in self._member.owned:
            raise ShardLost(f"{self._topic}-{partition} is no longer assigned")


class _Following:
    """Forgets the positions of partitions once they are revoked."""

    def __init__(self, listener: ShardListener, positions: dict[int, int]) -> None:
        self._listener = listener
        self._positions = positions

    async def assigned(self, partitions: frozenset[int]) -> None:
        await self._listener.assigned(partitions)

    async def revoked(self, partitions: frozenset[int]) -> None:
        await self._listener.revoked(partitions)
        for partition in partitions:
            self._positions.pop(partition, None)
