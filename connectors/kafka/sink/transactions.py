"""Kafka transactions of one shard: the producer's id, what is sent under it, and how a transaction ends.

Over a client that many share, with Kafka's own requests: aiokafka's producer has a client and a sender of its own
for each transactional id, tries for ever, and takes one message at a time. Here a producer fails once and for good:
after an error it is unknown whether the transaction took place, and only `start` of a new one settles that (the
broker ends what the last producer of that id left, before it answers).

Follows Kafka's transaction protocol (KIP-98). Not here: what is written (`writer`), and its bytes (`batches`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition, errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from connectors.kafka.sink.batches import RecordBatch, Stamp
from engine.deadline import Deadline
from engine.errors import BrokerUnavailable, ExternalError, ShardLost, SinkUnavailable
from engine.protocols import Clock

log = logging.getLogger("headrace.kafka")

#: The broker ends a transaction that lasts longer than this, and fences its producer.
TRANSACTION_SECONDS_MAX = 60.0

#: What a commit may take before it is given up; less than the broker gives it.
COMMIT_SECONDS_MAX = 40.0

#: What one produce request may hold. It is copied on the event loop, so this bounds how long that is blocked.
REQUEST_BYTES_MAX = 1024 * 1024

#: How long the broker may wait for its replicas before it answers.
PRODUCE_SECONDS_MAX = 20.0

#: Pauses before a request is sent again: when another transaction of this id is just ending, and otherwise.
ENDING_SECONDS = 0.005
RETRY_SECONDS = 0.1

#: Connections are shared by shards: a broker answers one request of a connection after the other.
CONNECTIONS = 8
CONNECTIONS_FROM = 8  # aiokafka's own are 0 and 1, the fetcher's is 2

ACKNOWLEDGED_BY_ALL = -1

#: Of Kafka's error codes, those that aiokafka has no class for, or one without its code.
NETWORK_EXCEPTION = 13
UNKNOWN_PRODUCER = 59
PRODUCER_FENCED = 90
DUPLICATE_SEQUENCE = errors.DuplicateSequenceNumber.errno

#: With these the id belongs to somebody else by now, or the broker has ended the transaction.
FENCED = frozenset(
    {
        errors.InvalidProducerEpoch.errno,
        errors.InvalidProducerIdMapping.errno,
        errors.InvalidTxnState.errno,
        UNKNOWN_PRODUCER,
        PRODUCER_FENCED,
    }
)

#: With these the same request may succeed a moment later.
PASSING = frozenset(
    error.errno
    for error in (
        errors.UnknownTopicOrPartitionError,
        errors.LeaderNotAvailableError,
        errors.NotLeaderForPartitionError,
        errors.RequestTimedOutError,
        errors.CoordinatorLoadInProgressError,
        errors.CoordinatorNotAvailableError,
        errors.NotCoordinatorError,
        errors.NotEnoughReplicasError,
        errors.NotEnoughReplicasAfterAppendError,
        errors.ConcurrentTransactions,
        errors.TransactionCoordinatorFenced,
        errors.OperationNotAttempted,
        errors.KafkaStorageError,
    )
) | {NETWORK_EXCEPTION}


class SinkAway(SinkUnavailable):
    """The broker does not answer, or not as hoped. What became of a transaction is settled by the next owner."""

    retry = True


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """A position for the consumer group: for tools, it decides nothing."""

    group: str
    topic: str
    partition: int
    offset: int


class TransactionalProducer:
    """`start` first, then `commit` as often as wanted, one at a time, until the first error.

    ``where`` begins every complaint. ``connection`` is any number: it chooses which connection is shared.
    """

    def __init__(
        self, client: AIOKafkaClient, transactional_id: str, clock: Clock, *, where: str, connection: int
    ) -> None:
        self.transactional_id = transactional_id
        self.stamp = Stamp(sequences={})
        self._client = client
        self._clock = clock
        self._where = where
        self._connection = CONNECTIONS_FROM + connection % CONNECTIONS
        self._coordinators: dict[CoordinationType, int] = {}

    async def start(self, seconds_max: float) -> None:
        """Fence whoever had this id before, and have the broker end what that left. Raises SinkAway."""
        deadline = Deadline(self._clock, seconds_max)
        request = InitProducerIdRequest(self.transactional_id, int(TRANSACTION_SECONDS_MAX * 1000))

        async def ask(client: AIOKafkaClient) -> Iterable[int]:
            answer = await self._ask_coordinator(client, CoordinationType.TRANSACTION, request)
            if not answer.error_code:
                self.stamp = Stamp(answer.producer_id, answer.producer_epoch, {})
            return [answer.error_code]

        await self._until_taken(ask, "gave no producer id", deadline)

    async def commit(
        self,
        batches: Sequence[RecordBatch],
        group_offset: GroupOffset | None,
        *,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        """All batches and the group offset in one transaction; ``ending`` is called before its end is asked for.

        Raises ShardLost when another producer has the id, and SinkAway when the outcome is unknown. After any
        error, and after a cancellation, the producer is not to be used again.
        """
        deadline = Deadline(self._clock, COMMIT_SECONDS_MAX)
        await self._add_partitions(batches, deadline)
        offset_sent = group_offset is not None and await self._add_group(group_offset.group, deadline)
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(_result(self._produce(batches, deadline)))]
            if offset_sent and group_offset is not None:
                work.append(tasks.create_task(_result(self._commit_offset(group_offset, deadline))))
        for task in work:
            error = task.result()
            if error is not None:
                raise error
        ending()
        await self._end(deadline)

    # -- the requests of a transaction ---------------------------------------------------------------------------

    async def _add_partitions(self, batches: Sequence[RecordBatch], deadline: Deadline) -> None:
        topics: dict[str, list[int]] = {}
        for topic, partition in dict.fromkeys((batch.topic, batch.partition) for batch in batches):
            topics.setdefault(topic, []).append(partition)
        request = AddPartitionsToTxnRequest(*self._identity, list(topics.items()))

        async def ask(client: AIOKafkaClient) -> Iterable[int]:
            answer = await self._ask_coordinator(client, CoordinationType.TRANSACTION, request)
            return [code for _topic, partitions in answer.errors for _partition, code in partitions]

        await self._until_taken(ask, f"took no partitions of {', '.join(topics)} into a transaction", deadline)

    async def _add_group(self, group: str, deadline: Deadline) -> bool:
        """Whether the group's offsets can be part of the transaction."""
        request = AddOffsetsToTxnRequest(*self._identity, group)

        async def ask(client: AIOKafkaClient) -> Iterable[int]:
            answer = await self._ask_coordinator(client, CoordinationType.TRANSACTION, request)
            return [answer.error_code]

        try:
            await self._until_taken(ask, f"took no offsets of group {group!r} into a transaction", deadline)
        except SinkAway:
            raise
        except SinkUnavailable as error:
            log.warning("%s", error)
            return False
        return True

    async def _commit_offset(self, group_offset: GroupOffset, deadline: Deadline) -> None:
        """For tools, so whatever the group's coordinator has against it only warns."""
        entries = [(group_offset.topic, [(group_offset.partition, group_offset.offset, "")])]
        request = TxnOffsetCommitRequest(
            self.transactional_id, group_offset.group, self.stamp.producer_id, self.stamp.epoch, entries
        )

        async def ask(client: AIOKafkaClient) -> Iterable[int]:
            answer = await self._ask_coordinator(
                client, CoordinationType.GROUP, request, key=group_offset.group, connection=self._connection
            )
            codes = [code for _topic, partitions in answer.errors for _partition, code in partitions]
            return [0 if code == errors.UnknownTopicOrPartitionError.errno else code for code in codes]

        try:
            await self._until_taken(ask, f"took no offset of group {group_offset.group!r}", deadline)
        except SinkAway:
            raise
        except SinkUnavailable as error:
            log.warning("%s", error)

    async def _produce(self, batches: Sequence[RecordBatch], deadline: Deadline) -> None:
        """Each partition's batches in their order, one request at a time to each broker."""
        waiting: dict[tuple[str, int], deque[RecordBatch]] = {}
        for batch in batches:
            waiting.setdefault((batch.topic, batch.partition), deque()).append(batch)

        async def ask(client: AIOKafkaClient) -> Iterable[int]:
            """Rounds of requests until everything is taken, or something was not."""
            while waiting:
                requests = _round(client, waiting)
                answers = await asyncio.gather(
                    *(self._produced(client, node, sent) for node, sent in requests.items()), return_exceptions=True
                )
                codes: list[int] = []
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                    for place, code in answer:
                        codes.append(code)
                        if code in (0, DUPLICATE_SEQUENCE):
                            waiting[place].popleft()
                            if not waiting[place]:
                                del waiting[place]
                if any(code not in (0, DUPLICATE_SEQUENCE) for code in codes):
                    return codes
            return []

        topics = ", ".join(dict.fromkeys(batch.topic for batch in batches))
        await self._until_taken(ask, f"took no records for {topics}", deadline)

    async def _produced(
        self, client: AIOKafkaClient, node: int, batches: Sequence[RecordBatch]
    ) -> list[tuple[tuple[str, int], int]]:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for batch in batches:
            topics.setdefault(batch.topic, []).append((batch.partition, batch.data))
        request = ProduceRequest(
            self.transactional_id, ACKNOWLEDGED_BY_ALL, int(PRODUCE_SECONDS_MAX * 1000), list(topics.items())
        )
        answer = await client.send(node, request, group=self._connection)
        return [((topic, entry[0]), entry[1]) for topic, entries in answer.topics for entry in entries]

    async def _end(self, deadline: Deadline) -> None:
        request = EndTxnRequest(*self._identity, True)

        async def ask(client: AIOKafkaClient) -> Iterable[int]:
            answer = await self._ask_coordinator(client, CoordinationType.TRANSACTION, request)
            return [answer.error_code]

        await self._until_taken(ask, "did not say whether the transaction is committed", deadline)

    # -- asking --------------------------------------------------------------------------------------------------

    @property
    def _identity(self) -> tuple[str, int, int]:
        return self.transactional_id, self.stamp.producer_id, self.stamp.epoch

    async def _ask_coordinator(
        self,
        client: AIOKafkaClient,
        kind: CoordinationType,
        request: object,
        *,
        key: str | None = None,
        connection: int | None = None,
    ) -> Any:
        if kind not in self._coordinators:
            self._coordinators[kind] = await client.coordinator_lookup(kind, key or self.transactional_id)
        return await client.send(self._coordinators[kind], request, group=connection or self._connection)

    async def _until_taken(
        self, ask: Callable[[AIOKafkaClient], Awaitable[Iterable[int]]], what: str, deadline: Deadline
    ) -> None:
        """``ask`` again until no code is an error. Raises ShardLost, SinkUnavailable, and SinkAway in the end."""
        while True:
            code: int | None = None
            try:
                async with asyncio.timeout(max(0.001, deadline.seconds_left)):
                    codes = list(await ask(self._client))
            except errors.BrokerResponseError as error:
                code, text = error.errno, type(error).__name__
            except (errors.KafkaError, OSError, TimeoutError) as error:
                text = str(error).strip() or type(error).__name__
            else:
                bad = [each for each in codes if each not in (0, DUPLICATE_SEQUENCE)]
                if not bad:
                    return
                # What cannot pass outweighs what may.
                code = min(bad, key=lambda each: (each not in FENCED, each in PASSING))
                text = errors.for_code(code).__name__ if code != PRODUCER_FENCED else "ProducerFenced"
            if code in FENCED:
                raise ShardLost(f"{self._where}: another owner has taken it ({text})")
            if code is not None and code not in PASSING:
                raise self._refused(code, f"{self._where}: the cluster {what}: {text}")
            if not deadline.seconds_left:
                raise SinkAway(f"{self._where}: the cluster {what} in time: {text}")
            await self._look_again(code, deadline)

    async def _look_again(self, code: int | None, deadline: Deadline) -> None:
        """Wait, and ask anew who leads and who coordinates."""
        if code == errors.ConcurrentTransactions.errno:
            await asyncio.sleep(ENDING_SECONDS)
            return
        self._coordinators.clear()
        await asyncio.sleep(min(RETRY_SECONDS, deadline.seconds_left))
        with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(max(0.001, deadline.seconds_left)):
                await self._client.force_metadata_update()

    def _refused(self, code: int, text: str) -> ExternalError:
        if code == errors.MessageSizeTooLargeError.errno:
            return SinkUnavailable(text, hint="raise max.message.bytes of the topic that is meant")
        if code == errors.OutOfOrderSequenceNumber.errno:
            return SinkAway(text)  # the broker has lost what it knew of this producer; a new one begins anew
        if code in (
            errors.TopicAuthorizationFailedError.errno,
            errors.TransactionalIdAuthorizationFailed.errno,
            errors.ClusterAuthorizationFailedError.errno,
        ):
            hint = (
                f"the user needs Write on the topics, Write and Describe on TransactionalId {self.transactional_id}"
            )
            return SinkUnavailable(text, hint=hint)
        return SinkUnavailable(text)


def _round(
    client: AIOKafkaClient, waiting: Mapping[tuple[str, int], deque[RecordBatch]]
) -> dict[int, list[RecordBatch]]:
    """The first batch of each partition, by leader, as far as one request takes them."""
    found: dict[int, list[RecordBatch]] = {}
    held: dict[int, int] = {}
    for (topic, partition), batches in waiting.items():
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        if leader is None or leader < 0:
            raise errors.LeaderNotAvailableError(f"{topic}-{partition}")
        size = len(batches[0].data)
        if leader in held and held[leader] + size > REQUEST_BYTES_MAX:
            continue
        held[leader] = held.get(leader, 0) + size
        found.setdefault(leader, []).append(batches[0])
    return found


async def _result(work: Awaitable[None]) -> Exception | None:
    """What ``work`` raises, as a value: in a task group it would come wrapped."""
    try:
        await work
    except (ExternalError, ShardLost, BrokerUnavailable) as error:
        return error
    return None
