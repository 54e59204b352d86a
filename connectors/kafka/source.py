"""A Kafka topic as an `engine.protocols.Source`: group membership by aiokafka, fetching by it or by `fetcher`.

``fetching = "raw"`` is the fast way: responses as bytes, decoded into Arrow columns. The consumer's partitions then
stay paused, so that it never fetches. ``"getmany"`` has aiokafka fetch, and is what the other is tested against.

What aiokafka does that this has to live with (0.14): it swallows what assignment callbacks raise and fetches
on from the group offset, so callbacks only signal, and a partition stays paused until its owner has sought;
it sends no heartbeat while the assigned callback runs, so that one returns at once; it leaves the group when
nobody calls getmany for a while, so a fetch is always held open.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors

from connectors.kafka.cluster import EARLIEST, LATEST, Cluster
from connectors.kafka.records import batch_of
from connectors.kafka.settings import KafkaSettings
from engine.batch import Batch, Stream
from engine.errors import BrokerUnavailable, ExternalError, InternalError, RecreatedTopic, ShardLost, UserError
from engine.protocols import Clock, OffsetOutOfRange, ShardListener

if TYPE_CHECKING:
    from connectors.kafka.fetcher import Fetcher, FetcherStatistics

log = logging.getLogger("headrace.kafka")

Fetching = Literal["raw", "getmany"]

#: An idle shard's long poll; shards of one broker share a connection, where polls wait for each other.
FETCH_WAIT_MS_MAX = 100

#: What no retry mends.
REFUSALS = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.AuthenticationFailedError,
)

#: How long leaving the group may take once all shards are given up.
STOP_SECONDS_MAX = 3.0

#: The time above the drain deadline that a member has to rejoin the group in.
REJOIN_SECONDS = 10.0


class KafkaSource:
    """One topic read by one member of ``group_id``. ``fetch_bytes_max`` bounds one fetch of one partition.

    ``held_bytes_max`` bounds what is fetched and not yet taken, and ``rack`` says where this process is, for
    fetching from replicas nearby (both raw only).
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        topic: str,
        group_id: str,
        clock: Clock,
        read_committed: bool = True,
        fetch_bytes_max: int = 1_048_576,
        drain_seconds_max: float = 30.0,
        poll_interval_seconds_max: float = 300.0,
        fetching: Fetching = "raw",
        held_bytes_max: int = 67_108_864,
        rack: str = "",
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._group_id = group_id
        self._read_committed = read_committed
        self._fetch_bytes_max = fetch_bytes_max
        self._drain_seconds_max = drain_seconds_max
        self._poll_interval_seconds_max = poll_interval_seconds_max
        self._fetching = fetching
        self._held_bytes_max = held_bytes_max
        self._rack = rack
        self._clock = clock
        self._cluster = Cluster(settings, clock)
        self._fetcher: Fetcher | None = None
        self._checking = asyncio.Lock()
        self._explained = 0
        self._consumer: AIOKafkaConsumer | None = None
        self._held = contextlib.ExitStack()
        self._listener: _Listener | None = None
        self._next: dict[int, int] = {}
        self._stream: Stream | None = None

    async def open(self) -> Stream:
        await self._cluster.open()
        self._stream = await self.describe()
        return self._stream

    def stream(self) -> Stream:
        """What the topic was when this source was opened."""
        assert self._stream is not None, "the source is not open"
        return self._stream

    async def describe(self) -> Stream:
        return (await self._cluster.describe(self._topic)).stream

    async def join(self, listener: ShardListener) -> None:
        consumer = AIOKafkaConsumer(
            # Reads files, so not on the event loop.
            **await asyncio.to_thread(self._settings.client_arguments),
            group_id=self._group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed" if self._read_committed else "read_uncommitted",
            check_crcs=True,
            fetch_max_wait_ms=FETCH_WAIT_MS_MAX,
            max_partition_fetch_bytes=self._fetch_bytes_max,
            session_timeout_ms=self._settings.session_timeout_ms,
            heartbeat_interval_ms=self._settings.heartbeat_interval_ms,
            rebalance_timeout_ms=int((self._drain_seconds_max + REJOIN_SECONDS) * 1000),
            max_poll_interval_ms=int(self._poll_interval_seconds_max * 1000),
        )
        try:
            await consumer.start()
        except (errors.KafkaError, OSError) as error:
            await consumer.stop()
            raise BrokerUnavailable(f"{self._settings.bootstrap}: {error}") from None
        try:
            if self._fetching == "raw":
                self._fetcher = await self._opened_fetcher()
        except BaseException:
            await consumer.stop()
            raise
        self._consumer = consumer
        # A member whose shards are all busy or held back calls no getmany, and would be made to leave.
        self._held.enter_context(consumer._subscription.fetch_context())
        self._listener = _Listener(self._group_id, consumer, listener, self._forget)
        consumer.subscribe([self._topic], listener=self._listener)

    async def _opened_fetcher(self) -> Fetcher:
        # Imports the compiler of its kernel, which takes time and memory that `getmany` does not need.
        module = await asyncio.to_thread(importlib.import_module, "connectors.kafka.fetcher")
        fetcher: Fetcher = module.Fetcher(
            self._settings,
            topic=self._topic,
            clock=self._clock,
            read_committed=self._read_committed,
            fetch_bytes_max=self._fetch_bytes_max,
            held_bytes_max=self._held_bytes_max,
            rack=self._rack,
        )
        await fetcher.open()
        self._explained = 0
        return fetcher

    @property
    def fetch_statistics(self) -> FetcherStatistics | None:
        """What raw fetching has done since the group was joined; None when it is not in use."""
        return None if self._fetcher is None else self._fetcher.statistics

    async def leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None or self._listener is None:
            return
        self._consumer = consumer
        await self._listener.leave()
        self._consumer = None
        self._held.close()
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            await fetcher.close()
        await _stop(consumer)

    async def close(self) -> None:
        await self.leave()
        await self._cluster.close()

    async def beginning_offsets(self, partitions: Sequence[int]) -> dict[int, int]:
        return await self._known_offsets(partitions, EARLIEST)

    async def end_offsets(self, partitions: Sequence[int]) -> dict[int, int]:
        return await self._known_offsets(partitions, LATEST)

    async def offsets_at(self, partitions: Sequence[int], timestamp_ms: int) -> dict[int, int]:
        # Ends first: a record that arrives in between is then at or after both answers, and is not skipped.
        ends = await self.end_offsets(partitions)
        found = await self._cluster.offsets(
            self._topic, dict.fromkeys(partitions, timestamp_ms), read_committed=self._read_committed
        )
        return {partition: ends[partition] if offset is None else offset for partition, offset in found.items()}

    async def _known_offsets(self, partitions: Sequence[int], at: int) -> dict[int, int]:
        found = await self._cluster.offsets(
            self._topic, dict.fromkeys(partitions, at), read_committed=self._read_committed
        )
        return {partition: offset for partition, offset in found.items() if offset is not None}

    async def seek(self, partition: int, offset: int) -> None:
        consumer, shard = self._member(partition)
        try:
            consumer.seek(shard, offset)
            if self._fetcher is None:
                consumer.resume(shard)
        except errors.IllegalStateError:
            raise ShardLost(f"{self._topic}-{partition} is no longer assigned") from None
        if self._fetcher is not None:
            self._fetcher.seek(partition, offset)
        self._next[partition] = offset

    def _forget(self, partition: int) -> None:
        self._next.pop(partition, None)
        if self._fetcher is not None:
            self._fetcher.drop(partition)

    async def fetch(self, partition: int, *, records_max: int, seconds_max: float) -> Batch | None:
        consumer, shard = self._member(partition)
        start = self._next.get(partition)
        if start is None:
            raise ShardLost(f"{self._topic}-{partition} was revoked, or its owner has yet to seek")
        try:
            if self._fetcher is not None:
                consumer._coordinator.check_errors()
                return await self._take(self._fetcher, partition, start, records_max, seconds_max)
            fetched = await consumer.getmany(shard, timeout_ms=int(seconds_max * 1000), max_records=records_max)
            end = await consumer.position(shard)
        except errors.OffsetOutOfRangeError:
            raise OffsetOutOfRange(partition, start) from None
        except errors.IllegalStateError:
            raise ShardLost(f"{self._topic}-{partition} is no longer assigned") from None
        except errors.CorruptRecordException as error:
            raise ExternalError(f"{self._topic}-{partition} at offset {start}: {error}") from None
        except errors.RecordTooLargeError as error:
            # aiokafka has already stepped over the record: going on would lose it.
            raise InternalError(f"{self._topic}-{partition} at offset {start}: {error}") from None
        except REFUSALS as error:
            raise ExternalError(f"{self._topic}-{partition}: {type(error).__name__}: {error}") from None
        except errors.KafkaError as error:
            raise BrokerUnavailable(f"{self._topic}-{partition}: {type(error).__name__}: {error}") from None
        records = fetched.get(shard, ())
        if end == start:
            return None
        self._next[partition] = end
        return batch_of(self._topic, partition, records, start, end)

    async def _take(
        self, fetcher: Fetcher, partition: int, start: int, records_max: int, seconds_max: float
    ) -> Batch | None:
        batch = await fetcher.take(partition, records_max=records_max, seconds_max=seconds_max)
        try:
            await self._check_topic(fetcher)
        except BaseException:
            if partition in self._next:  # what was taken is not given, so it has to come again
                fetcher.seek(partition, start)
            raise
        if batch is not None:
            self._next[partition] = batch.end
        return batch

    async def _check_topic(self, fetcher: Fetcher) -> None:
        """After an unknown-topic error: offsets of another topic by the same name mean other records."""
        if fetcher.unknown_topic_errors == self._explained:
            return
        async with self._checking:
            seen = fetcher.unknown_topic_errors
            if seen == self._explained:
                return
            try:
                now = await self.describe()
            except UserError:
                return  # there is none, yet: to be asked again
            before = self.stream()
            if (now.cluster_id, now.topic_id) != (before.cluster_id, before.topic_id):
                raise RecreatedTopic(
                    f"topic {self._topic!r} was deleted and made anew while it was read "
                    f"(topic id {before.topic_id} then, {now.topic_id} now)",
                    hint='restart with source.on_recreated_topic = "restart" to read the new topic from its start',
                )
            self._explained = seen

    async def commit(self, positions: Mapping[int, int]) -> None:
        if self._consumer is None:
            return
        assigned = self._consumer.assignment()
        offsets = {TopicPartition(self._topic, partition): offset for partition, offset in positions.items()}
        lost = [shard for shard in offsets if shard not in assigned]
        if lost:
            raise ShardLost(f"{lost[0].topic}-{lost[0].partition} is no longer assigned")
        try:
            await self._consumer.commit(offsets)
        except (errors.CommitFailedError, errors.IllegalStateError) as error:
            raise ShardLost(f"group {self._group_id}: {error}") from None
        except errors.KafkaError as error:
            raise BrokerUnavailable(f"group {self._group_id}: {type(error).__name__}: {error}") from None

    async def committed(self, partition: int) -> int | None:
        consumer, shard = self._member(partition)
        try:
            found = await consumer.committed(shard)
        except errors.KafkaError as error:
            raise BrokerUnavailable(f"group {self._group_id}: {type(error).__name__}: {error}") from None
        return None if found is None else int(found)

    def _member(self, partition: int) -> tuple[AIOKafkaConsumer, TopicPartition]:
        if self._consumer is None:
            raise ShardLost(f"{self._topic}-{partition}: this member has left the group")
        return self._consumer, TopicPartition(self._topic, partition)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, which must not take as long as another member takes to drain.

    aiokafka waits for the answer to a join, which comes when all others have joined too. Without a connection
    there is none to wait for; what is left of the member ends with its session.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(consumer.stop())
            done, _ = await asyncio.wait({stopping}, timeout=STOP_SECONDS_MAX)
            if not done:
                log.warning("the group has not let this member go after %g s; hanging up", STOP_SECONDS_MAX)
                await consumer._client.close()
                # Whoever waits for metadata that the client no longer asks for would wait for ever.
                metadata = consumer._client._md_update_fut
                if metadata is not None and not metadata.done():
                    metadata.set_result(False)
    except* errors.KafkaError as group:
        log.warning("leaving the group: %s", group.exceptions[0])


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Hands aiokafka's callbacks on. What it raises would be swallowed, so errors are logged here."""

    def __init__(
        self, name: str, consumer: AIOKafkaConsumer, listener: ShardListener, forget: Callable[[int], None]
    ) -> None:
        self._name = name
        self._consumer = consumer
        self._listener = listener
        self._forget = forget
        self._owned: frozenset[int] = frozenset()
        self._leaving = False

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        owned, self._owned = self._owned, frozenset()
        await self._revoke(owned)

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        if self._leaving:
            return
        try:
            # Paused before anything can be fetched from the group offset, which decides nothing.
            self._consumer.pause(*assigned)
            self._owned = frozenset(shard.partition for shard in assigned)
            log.info("%s: assigned partitions %s", self._name, sorted(self._owned))
            await self._listener.assigned(self._owned)
        except Exception:
            log.exception("%s: an assignment failed", self._name)

    async def leave(self) -> None:
        self._leaving = True
        owned, self._owned = self._owned, frozenset()
        await self._revoke(owned)

    async def _revoke(self, owned: frozenset[int]) -> None:
        try:
            await self._listener.revoked(owned)
        except Exception:
            log.exception("%s: a revocation failed", self._name)
        for partition in owned:
            self._forget(partition)
