"""The shard pool of one pipeline: an owner task for each partition that the group assigns.

It starts owners, stops them within one deadline when their partitions are revoked, keeps group offsets
about a second behind the sink, and tells when the pipeline has caught up. What an owner does is in
`engine.shard`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engine import logs
from engine.deadline import Deadline
from engine.errors import HeadraceError, ShardLost
from engine.protocols import Clock, Counts, Sink, Source
from engine.shard import Shard, unless
from engine.shard_tools import ShardStatistics, ShardTools

log = logging.getLogger("headrace.pool")

#: Group offsets are committed at most this often.
GROUP_COMMIT_SECONDS = 1.0

#: How long one group commit may take; a drain without a broker has better things to wait for.
GROUP_COMMIT_SECONDS_MAX = 5.0

#: How often the pool looks whether it has caught up, and asks the sink about shards that others own.
LOOK_SECONDS = 0.1
LOOK_ELSEWHERE_SECONDS = 1.0

#: How often the topic's ends are asked for, to tell how far shards are behind.
ENDS_SECONDS = 1.0

#: An answer that takes longer is not waited for.
ENDS_SECONDS_MAX = 10.0

#: Waits before a shard is taken up again after it was lost, or after an error that may pass.
RESTART_SECONDS = 0.2
RESTART_SECONDS_MAX = 10.0

#: The share of the drain deadline in which a batch at hand may be finished; the rest is for the commit.
FINISH_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Totals:
    """What a pipeline did in this run, over all shards that this process owned at any time."""

    records: int = 0
    rows: int = 0
    failed: int = 0
    dropped: int = 0
    filtered: int = 0
    commits: int = 0
    polled: int = 0  #: read from the topic; ``records`` of them are settled
    counts: Counts = field(default_factory=Counts)

    def plus(self, shard: ShardStatistics) -> Totals:
        return Totals(
            self.records + shard.counts.total - shard.counts.absent,
            self.rows + shard.rows,
            self.failed + shard.counts.failed,
            self.dropped + shard.counts.dropped,
            self.filtered + shard.counts.filtered,
            self.commits + shard.commits,
            self.polled + shard.records,
            self.counts + shard.counts,
        )


class GroupOffsets:
    """Commits the newest positions to the group now and then. They decide nothing, so errors only warn."""

    def __init__(self, name: str, source: Source, clock: Clock) -> None:
        self._name = name
        self._source = source
        self._clock = clock
        self._pending: dict[int, int] = {}

    def moved(self, partition: int, position: int) -> None:
        self._pending[partition] = position

    async def run(self) -> None:
        while True:
            await self._clock.sleep(GROUP_COMMIT_SECONDS)
            await self.flush(Deadline(self._clock, GROUP_COMMIT_SECONDS_MAX))

    async def flush(self, deadline: Deadline) -> None:
        pending, self._pending = self._pending, {}
        if not pending:
            return
        try:
            async with asyncio.timeout(min(deadline.seconds_left, GROUP_COMMIT_SECONDS_MAX)):
                await self._source.commit(pending)
        except (HeadraceError, TimeoutError) as error:
            log.warning("%s: group offsets were not committed: %s", self._name, str(error) or "timed out")
            # A shard that stands still would not come by again with its position.
            self._pending = pending | self._pending

    def forget(self, partitions: Iterable[int]) -> None:
        """Commit nothing for partitions that are no longer owned."""
        for partition in partitions:
            self._pending.pop(partition, None)


class ShardPool:
    """`engine.protocols.ShardListener` for a source. ``targets`` are the offsets to catch up with, if any."""

    def __init__(
        self,
        tools: ShardTools,
        *,
        drain_seconds_max: float,
        targets: Mapping[int, int] | None = None,
        commits_group_offsets: bool = True,
    ) -> None:
        self._drain_seconds_max = drain_seconds_max
        self._targets = targets
        self._group = GroupOffsets(tools.name, tools.source, tools.clock) if commits_group_offsets else None
        on_commit = self._group.moved if self._group is not None else (lambda _partition, _position: None)
        self._tools = dataclasses.replace(tools, on_commit=on_commit)
        self._owned: dict[int, tuple[Shard, asyncio.Task[None]]] = {}
        self._failed: dict[int, HeadraceError] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._assigned_once = False
        self._looked_at = float("-inf")
        self._former = Totals()

    @property
    def errors(self) -> Mapping[int, HeadraceError]:
        """What stopped shards, by partition."""
        return self._failed

    def statistics(self) -> list[ShardStatistics]:
        return [shard.statistics() for shard, _ in self._owned.values()]

    def totals(self) -> Totals:
        """What all owners did, those of shards that were given up included."""
        totals = self._former
        for shard in self.statistics():
            totals = totals.plus(shard)
        return totals

    async def run(self, stopping: asyncio.Event) -> None:
        """Own what the group assigns until ``stopping``, until caught up, or until no shard can go on.

        Raises what the source or the sink said while nobody's shard was concerned.
        """
        failure: HeadraceError | None = None
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            beside = [tasks.create_task(self._watch_ends())]
            if self._group is not None:
                beside.append(tasks.create_task(self._group.run()))
            try:
                try:
                    await self._serve(stopping)
                finally:
                    await self._tools.source.leave()
            except HeadraceError as error:
                failure = error  # raised outside of the group, which would wrap it
            finally:
                await self.revoked(frozenset(self._owned))
                self._tasks = None
                for task in beside:
                    task.cancel()
        if failure is not None:
            raise failure

    async def _serve(self, stopping: asyncio.Event) -> None:
        await self._tools.source.join(self)
        while not stopping.is_set() and not await self._is_done():
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await stopping.wait()
            except TimeoutError:
                await self._look_at_topic(stopping)

    async def _watch_ends(self) -> None:
        """Tell shards where the topic ends now. What cannot be asked leaves what was known.

        It is only shown, so nothing that goes wrong with it ends anything.
        """
        while True:
            owned = [shard for shard, _ in self._owned.values()]
            if owned:
                try:
                    async with asyncio.timeout(ENDS_SECONDS_MAX):
                        ends = await self._tools.source.end_offsets([shard.partition for shard in owned])
                except (HeadraceError, TimeoutError) as error:
                    log.debug("%s: the topic's ends are not known: %s", self._tools.name, str(error) or "timed out")
                except Exception:
                    log.exception("%s: the topic's ends are not known", self._tools.name)
                else:
                    for shard in owned:
                        if shard.partition in ends:
                            shard.saw_end(ends[shard.partition])
            await self._tools.clock.sleep(ENDS_SECONDS)

    async def _look_at_topic(self, stopping: asyncio.Event) -> None:
        """Where no shard of ours would find out: raises when the topic is gone, or is another one now."""
        now = self._tools.clock.monotonic()
        if self._owned or not self._assigned_once or now - self._looked_at < LOOK_ELSEWHERE_SECONDS:
            return
        self._looked_at = now
        try:
            await unless(stopping, self._tools.positions.check.run())
        except HeadraceError as error:
            if not error.retry:
                raise
            log.warning("%s: %s; trying again", self._tools.name, error)

    async def assigned(self, partitions: frozenset[int]) -> None:
        """Start an owner for each partition. Returns at once; owners find their position themselves."""
        if self._tasks is None:
            return
        self._assigned_once = True
        for partition in sorted(partitions - self._owned.keys()):
            self._failed.pop(partition, None)
            shard = self._shard(partition)
            self._owned[partition] = (shard, self._tasks.create_task(self._own(shard)))

    async def revoked(self, partitions: frozenset[int]) -> None:
        """Stop the owners of ``partitions``: finish or abandon, commit and release, within one deadline."""
        deadline = Deadline(self._tools.clock, self._drain_seconds_max)
        leaving = [self._owned[partition] for partition in partitions if partition in self._owned]
        if leaving:
            for shard, _ in leaving:
                shard.stop()
            waiting = await _wait((task for _, task in leaving), deadline.share(FINISH_SHARE))
            for shard, task in leaving:
                if task in waiting:
                    shard.abandon()
            for task in await _wait(waiting, deadline.seconds_left):
                log.error("%s: a shard did not stop within %.1f s", self._tools.name, self._drain_seconds_max)
                task.cancel()
            await asyncio.gather(*(task for _, task in leaving), return_exceptions=True)
        for partition in partitions & self._owned.keys():
            shard, _ = self._owned.pop(partition)
            self._former = self._former.plus(shard.statistics())
        if self._group is not None:
            await self._group.flush(deadline)
            self._group.forget(partitions)

    def _shard(self, partition: int) -> Shard:
        # A partition that appeared after the start has nothing to catch up with.
        target = None if self._targets is None else self._targets.get(partition, 0)
        return Shard(partition, self._tools, target=target)

    async def _own(self, shard: Shard) -> None:
        """Run a shard, and take it up again after it was lost while it is still assigned; never raises."""
        logs.task_is_about(pipeline=self._tools.name, partition=shard.partition)
        wait = RESTART_SECONDS
        failing_since: float | None = None
        while True:
            try:
                await shard.run()
                return
            except ShardLost as error:
                log.warning("%s: %s; asking for the position again", shard.label, error)
            except HeadraceError as error:
                if shard.statistics().commits:
                    wait, failing_since = RESTART_SECONDS, None  # it got somewhere since
                now = self._tools.clock.monotonic()
                failing_since = now if failing_since is None else failing_since
                if not error.retry or self._is_given_up(now - failing_since):
                    self._failed[shard.partition] = error
                    # What to do about it is said once, not by each of the shards that have the same trouble.
                    log.error("%s: stopped: %s", shard.label, error if len(self._failed) == 1 else error.message)
                    return
                log.warning("%s: %s; trying again", shard.label, error)
            if not await self._is_ours(shard, wait):
                return
            wait = min(wait * 2, RESTART_SECONDS_MAX)
            self._former = self._former.plus(shard.statistics())
            again = self._shard(shard.partition)
            _, task = self._owned[shard.partition]
            self._owned[shard.partition] = (again, task)
            shard = again

    def _is_given_up(self, failing_seconds: float) -> bool:
        """A run to the end does not wait for ever for what is away; others do, for nothing is lost meanwhile."""
        return self._targets is not None and failing_seconds > self._tools.outage_seconds_max

    async def _is_ours(self, shard: Shard, wait: float) -> bool:
        """After ``wait`` seconds or more: whether the group still gives us the shard. False once it is given up.

        A member that was paused past its session does not know that it has lost its shards. Taking them over
        again would be safe, but would disturb their new owner; a group commit tells, for it is fenced.
        """
        while True:
            await shard.pause(wait)
            if shard.is_stopping:
                return False
            try:
                position = await self._tools.sink.position(shard.partition)
                if position is not None:
                    await self._tools.source.commit({shard.partition: position})
                return True
            except HeadraceError as error:
                log.info("%s: not taken up again yet: %s", shard.label, error)
                wait = min(wait * 2, RESTART_SECONDS_MAX)

    async def _is_done(self) -> bool:
        """Caught up, or nothing left that could go on."""
        if self._owned and self._owned.keys() <= self._failed.keys():
            return True
        if self._targets is None or not self._assigned_once:
            return False
        elsewhere = []
        for partition, target in self._targets.items():
            if partition in self._failed:
                continue
            if partition not in self._owned:
                elsewhere.append((partition, target))
            elif not self._owned[partition][0].is_caught_up:
                return False
        if elsewhere and not await self._is_reached(self._tools.sink, elsewhere):
            await self._tools.clock.sleep(LOOK_ELSEWHERE_SECONDS)
            return False
        return True

    @staticmethod
    async def _is_reached(sink: Sink, targets: Iterable[tuple[int, int]]) -> bool:
        for partition, target in targets:
            position = await sink.position(partition)
            if position is None or position < target:
                return False
        return True


async def _wait(tasks: Iterable[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
    """The tasks that are not done after ``seconds``."""
    pending = {task for task in tasks if not task.done()}
    if pending:
        _, pending = await asyncio.wait(pending, timeout=seconds)
    return pending
