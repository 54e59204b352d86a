"""A consumer group in memory: members of one process that share a topic's partitions.

Rebalances follow Kafka's eager protocol: every member gives up all partitions, and only when all have done
so, or are gone, is anything assigned (Kafka, "Consumer Rebalance Protocol").
Not here: reading (`connectors.memory.source`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from connectors.memory.log import MemoryCluster
from engine.errors import ShardLost
from engine.protocols import ShardListener

log = logging.getLogger("headrace.memory")


class Member:
    """One member; ``gone`` once the group no longer counts on it."""

    def __init__(self, listener: ShardListener) -> None:
        self.listener = listener
        self.owned: frozenset[int] = frozenset()
        self.gone = asyncio.Event()


class MemoryGroup:
    """Made by `group_of`. Its coordinator runs while there are members."""

    def __init__(self, cluster: MemoryCluster, topic: str, name: str) -> None:
        self.topic = topic
        self.generation = 0
        self._name = name
        self._cluster = cluster
        self._members: dict[Member, None] = {}
        self._offsets: dict[int, int] = {}
        self._shared_out = 0
        self._due = asyncio.Event()
        self._settled = asyncio.Event()
        self._rebalancing = asyncio.Lock()
        self._coordinator: asyncio.Task[None] | None = None

    def join(self, listener: ShardListener) -> Member:
        """Add a member; it hears of its partitions in a while."""
        member = Member(listener)
        self._members[member] = None
        self.rebalance()
        if self._coordinator is None:
            self._coordinator = asyncio.create_task(self._coordinate(), name=f"group {self._name}")
        return member

    async def leave(self, member: Member) -> None:
        """Take a member's partitions back, then let it go."""
        # Who owns nothing need not wait for the others to give up what they own.
        while member.owned and not member.gone.is_set():
            async with self._rebalancing:
                await self._revoke(member)
        await self._remove(member)

    async def expire(self, member: Member) -> None:
        """Count on a member no longer, as when its session ends; it hears nothing of it."""
        await self._remove(member)

    def topic_changed(self) -> None:
        """Share out anew if the topic has another number of partitions, which is what a member would notice."""
        if self._partitions() != self._shared_out:
            self.rebalance()

    def rebalance(self) -> None:
        """Share the partitions out anew, soon."""
        self._settled.clear()
        self._due.set()

    async def settled(self) -> None:
        """Wait until no rebalance is due or under way."""
        await self._settled.wait()

    def commit(self, member: Member, positions: Mapping[int, int]) -> None:
        """Keep group offsets. Raises ShardLost for partitions that are not the member's."""
        lost = sorted(positions.keys() - member.owned)
        if member.gone.is_set() or lost:
            what = f"{self.topic}-{lost[0]}" if lost else f"a member of {self._name}"
            raise ShardLost(f"{what} is no longer assigned")
        self._offsets.update(positions)

    def committed(self, partition: int) -> int | None:
        return self._offsets.get(partition)

    async def _remove(self, member: Member) -> None:
        member.gone.set()
        if member in self._members:
            del self._members[member]
            self.rebalance()
        if not self._members and self._coordinator is not None:
            coordinator, self._coordinator = self._coordinator, None
            coordinator.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await coordinator

    async def _coordinate(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            async with self._rebalancing:
                await self._share_out()
            if not self._due.is_set():
                self._settled.set()

    async def _share_out(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for member in self._members:
                tasks.create_task(self._revoke(member))
        self.generation += 1
        count = self._shared_out = self._partitions()
        members = list(self._members)
        for at, member in enumerate(members):
            # Contiguous ranges that differ by one at most, as Kafka's range assignor makes them.
            low, high = (count * place // len(members) for place in (at, at + 1))
            member.owned = frozenset(range(low, high))
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(self._tell(member, member.listener.assigned(member.owned)))

    def _partitions(self) -> int:
        topic = self._cluster.topics.get(self.topic)
        return 0 if topic is None else len(topic.partitions)

    async def _revoke(self, member: Member) -> None:
        """Wait until the member has given up what it owns, or is gone. It may commit meanwhile."""
        if member.owned:
            await self._tell(member, member.listener.revoked(member.owned))
        member.owned = frozenset()

    async def _tell(self, member: Member, call: Coroutine[Any, Any, None]) -> None:
        """Await a listener's call, but not that of a member who is gone. What it raises is logged, as on Kafka."""
        telling = asyncio.ensure_future(call)
        gone = asyncio.ensure_future(member.gone.wait())
        try:
            await asyncio.wait({telling, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, gone):
                task.cancel()
            results = await asyncio.gather(telling, gone, return_exceptions=True)
        if isinstance(results[0], Exception):
            log.error("group %s: a listener failed", self._name, exc_info=results[0])


def group_of(cluster: MemoryCluster, topic: str, name: str) -> MemoryGroup:
    """The group of that name, made at its first use. One group reads one topic."""
    group = cluster.groups.get(name)
    if group is None:
        group = cluster.groups[name] = MemoryGroup(cluster, topic, name)
    assert group.topic == topic, f"group {name!r} reads topic {group.topic!r}, not {topic!r}"
    return group
