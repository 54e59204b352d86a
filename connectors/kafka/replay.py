"""Failed records sent again, each once: a transactional producer into the retry topic of one pipeline.

What makes it once: the producer's transactional id is that of the pipeline, so that starting it ends whatever a
killed replay left open and fences one that still runs; then the topic itself is read, and says what it has; then
each transaction adds records that it has not. A record carries the identity of the failure in its last headers.
It depends on the topic keeping its records, so that is made to keep them for ever (`RETRY_TOPIC`).

Not here: which records are sent (`engine.compose.dlq`), and who reads the topic (`engine.compose.retry`).
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer, errors
from aiokafka.producer.message_accumulator import BatchBuilder

from connectors.kafka import reading, writing
from connectors.kafka.cluster import Cluster
from connectors.kafka.reading import Message
from connectors.kafka.settings import KafkaSettings
from engine.errors import BrokerUnavailable, UserError
from engine.protocols import Clock

#: A retry topic's settings: nothing of it goes, and records keep their own timestamps.
RETRY_TOPIC = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "message.timestamp.type": "CreateTime",
}

#: A record has room in the retry topic if it had in the source: another codec may do worse, and headers are added.
RECORD_GROWTH = 4
RECORD_BYTES = 64 * 1024

#: The headers that a replay adds at the end, in this order.
IDENTITY_HEADERS = tuple(
    f"headrace.{name}" for name in ("pipeline", "cluster_id", "topic", "topic_id", "partition", "offset")
)

#: One transaction.
TRANSACTION_RECORDS_MAX = 500
TRANSACTION_BYTES_MAX = 4 * 1024 * 1024

#: After so long the broker ends a transaction whose replay has died.
TRANSACTION_SECONDS_MAX = 60.0

#: For starting, and for each transaction.
ANSWER_SECONDS_MAX = 40.0
ABORT_SECONDS_MAX = 5.0

BATCH_BYTES = 256 * 1024

Shard = tuple[str, str, str, str, int]


class Seen:
    """A set of identities: shards, and offsets in them that mostly rise; 8 bytes for each."""

    def __init__(self) -> None:
        self._offsets: dict[Shard, array[int]] = {}

    def add(self, shard: Shard, offset: int) -> bool:
        """Whether it is new."""
        offsets = self._offsets.setdefault(shard, array("q"))
        if not offsets or offset > offsets[-1]:
            offsets.append(offset)
            return True
        at = bisect_left(offsets, offset)
        if offsets[at] == offset:
            return False
        offsets.insert(at, offset)
        return True

    def __contains__(self, identity: tuple[Shard, int]) -> bool:
        shard, offset = identity
        offsets = self._offsets.get(shard)
        if not offsets:
            return False
        at = bisect_left(offsets, offset)
        return at < len(offsets) and offsets[at] == offset

    def __len__(self) -> int:
        return sum(map(len, self._offsets.values()))


@dataclass(frozen=True, slots=True)
class Again:
    """A record to be sent again: as it was, for the failure ``shard`` and ``offset`` name."""

    shard: Shard
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def nbytes(self) -> int:
        return len(self.key or b"") + len(self.value or b"") + sum(len(n) + len(v or b"") for n, v in self.headers)


def identity_of(message: Message) -> tuple[Shard, int] | None:
    """Which failure a record of a retry topic was sent for; None for one that no replay has sent."""
    own = message.headers[-len(IDENTITY_HEADERS) :]
    if tuple(name for name, _ in own) != IDENTITY_HEADERS:
        return None
    try:
        pipeline, cluster_id, topic, topic_id, partition, offset = ((value or b"").decode() for _, value in own)
        return (pipeline, cluster_id, topic, topic_id, int(partition)), int(offset)
    except ValueError:
        return None


def without_identity(headers: Sequence[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes | None], ...]:
    """A record's own headers: a replay's are cut off."""
    count = len(IDENTITY_HEADERS)
    if tuple(name for name, _ in headers[-count:]) == IDENTITY_HEADERS:
        return tuple(headers[:-count])
    return tuple(headers)


async def replayed(
    cluster: Cluster, clock: Clock, topic: str, *, settle_seconds_max: float | None = None
) -> tuple[Seen, int]:
    """The identities that a retry topic has, and how many of its records have none."""
    seen, strangers = Seen(), 0
    async for chunk in reading.read(cluster, clock, topic, settle_seconds_max=settle_seconds_max):
        for message in chunk.messages:
            identity = identity_of(message)
            if identity is None:
                strangers += 1
            else:
                seen.add(*identity)
    return seen, strangers


class Replayer:
    """One replay into ``topic`` of ``partitions``: `start`, `send` as often as wanted, `close`.

    A record goes to the partition that it had, so records of one partition, and of one key, keep their order.
    """

    def __init__(self, settings: KafkaSettings, pipeline: str, topic: str, partitions: int) -> None:
        self._settings = settings
        self._topic = topic
        self._partitions = partitions
        self.transactional_id = f"headrace-replay-{pipeline}"
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """End what another replay left, and fence it. Raises BrokerUnavailable."""
        producer = AIOKafkaProducer(
            **await asyncio.to_thread(self._settings.client_arguments),
            transactional_id=self.transactional_id,
            transaction_timeout_ms=int(TRANSACTION_SECONDS_MAX * 1000),
            acks="all",
            compression_type="lz4",
            max_batch_size=BATCH_BYTES,
            max_request_size=writing.REQUEST_BYTES_MAX,
        )
        self._producer = producer
        try:
            async with asyncio.timeout(max(ANSWER_SECONDS_MAX, self._settings.broker_wait_seconds_max)):
                await producer.start()
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise self._unavailable(error) from None
        except BaseException:
            await self.close()
            raise

    async def send(self, records: Sequence[Again]) -> None:
        """All of them in one transaction. After an error the replayer is of no more use.

        Raises BrokerUnavailable (the next replay finds out what became of the transaction), and UserError when
        another replay of the pipeline has begun, or a record does not fit.
        """
        producer = self._producer
        assert producer is not None, "the replayer is not started"
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await producer.begin_transaction()
                sent = []
                for partition, batch in self._batches(producer, records):
                    sent.append(await producer.send_batch(batch, self._topic, partition=partition))
                for outcome in await asyncio.gather(*sent, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
                await producer.commit_transaction()
        except (errors.KafkaError, OSError, TimeoutError) as error:
            # Until it has ended, readers of the topic wait for it; the next replay would end it too. Where it is
            # past aborting, aiokafka says so by an assertion.
            with contextlib.suppress(errors.KafkaError, OSError, TimeoutError, AssertionError):
                async with asyncio.timeout(ABORT_SECONDS_MAX):
                    await producer.abort_transaction()
            raise self._refused(error) from None

    def _batches(self, producer: AIOKafkaProducer, records: Sequence[Again]) -> Iterator[tuple[int, BatchBuilder]]:
        """Full batches of each partition, in the records' order. Made here: `send` takes no record of nulls."""
        filling: dict[int, BatchBuilder] = {}
        for record in records:
            partition = record.shard[-1] % self._partitions
            content = {
                "timestamp": record.timestamp,
                "key": record.key,
                "value": record.value,
                "headers": [*record.headers, *_identity_headers(record)],
            }
            batch = filling.setdefault(partition, producer.create_batch())
            # aiokafka's batches take a first timestamp of -1 for none at all, so such a record goes alone.
            if (record.timestamp < 0 and batch.record_count()) or batch.append(**content) is None:
                batch.close()
                yield partition, batch
                batch = filling[partition] = producer.create_batch()
                batch.append(**content)
            if record.timestamp < 0:
                batch.close()
        for partition, batch in filling.items():
            batch.close()
            yield partition, batch

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        await writing.close(producer)  # whatever counts has been committed
        ending = producer._txn_manager._transaction_waiter
        if ending is not None and ending.done() and not ending.cancelled():
            ending.exception()  # asking for it keeps it out of the log

    def _refused(self, error: BaseException) -> BrokerUnavailable | UserError:
        if isinstance(error, errors.ProducerFenced):
            return UserError(
                f"another replay into topic {self._topic!r} has begun, and this one has ended",
                hint="nothing was sent twice; see `headrace dlq list` when the other one is done",
            )
        if isinstance(error, errors.MessageSizeTooLargeError):
            return UserError(
                f"topic {self._topic!r} takes no record that large: {error}",
                hint="raise the topic's max.message.bytes, and run the command again",
            )
        if isinstance(error, errors.InvalidTimestampError):
            return UserError(
                f"topic {self._topic!r} does not take the timestamp of a record: {error}",
                hint="raise the topic's message.timestamp.after.max.ms, and run the command again",
            )
        return self._unavailable(error)

    def _unavailable(self, error: BaseException) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"retry topic {self._topic!r} on {self._settings.bootstrap}: {type(error).__name__}: {error}",
            hint="run the command again: it sends what the topic does not have yet",
        )


def transactions(records: Sequence[Again]) -> Iterator[Sequence[Again]]:
    """The records in runs that one transaction takes."""
    run: list[Again] = []
    nbytes = 0
    for record in records:
        if run and (len(run) >= TRANSACTION_RECORDS_MAX or nbytes + record.nbytes > TRANSACTION_BYTES_MAX):
            yield run
            run, nbytes = [], 0
        run.append(record)
        nbytes += record.nbytes
    if run:
        yield run


def _identity_headers(record: Again) -> list[tuple[str, bytes]]:
    values = (*record.shard, record.offset)
    return [(name, str(value).encode()) for name, value in zip(IDENTITY_HEADERS, values, strict=True)]
