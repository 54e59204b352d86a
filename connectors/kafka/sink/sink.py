"""Rows of a pipeline to a Kafka topic, exactly once: `engine.protocols.Sink`.

Rows and the shard's position are one Kafka transaction. Each shard has a transactional id of its own, made of
pipeline, cluster, topic id and partition: whoever acquires the shard asks for a producer id under it first, which
fences the last owner and ends what that left open, and reads the position only then.

Without an output topic the sink is for pipelines that write nothing and have a state: position, state and failed
records go to the state topic in the same transactions.

Not here: a shard's commits (`writer`), the requests (`transactions`), what the state topic holds (`state`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import pyarrow as pa
from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient

from connectors.kafka.cluster import Cluster
from connectors.kafka.groups import group_offsets
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sink import batches
from connectors.kafka.sink.messages import MessageFormat
from connectors.kafka.sink.state import Binding, StateLog, unavailable
from connectors.kafka.sink.transactions import TransactionalProducer
from connectors.kafka.sink.writer import KafkaShardWriter
from connectors.kafka.topics import message_bytes_max, target_topic
from engine.batch import Stream
from engine.errors import BrokerUnavailable, InternalError, SinkMismatch, SinkUnavailable, UserError
from engine.protocols import STATE_BYTES_MAX, Clock

#: The durable schema under this name is that of the rows.
ROWS = "rows"

#: A takeover waits so long for what the last owner left: to be fenced, and to be ended.
TAKEOVER_SECONDS_MAX = 30.0

#: A failed record as a document: base64 makes 4/3 of it; the rest is for reason, names and headers.
DOCUMENT_GROWTH = 1.5
DOCUMENT_BYTES = 64 * 1024

#: So that reading the positions costs the same after years: what is older than a minute, or than some large states,
#: can be compacted, and a cleaner looks every few seconds (``log.cleaner.backoff.ms``).
STATE_CONFIG = {
    "cleanup.policy": "compact",
    "segment.ms": "60000",
    "segment.bytes": "16777216",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "300000",
    "delete.retention.ms": "60000",
}


def state_topic_of(pipeline: str) -> str:
    """The state topic of a pipeline."""
    return f"headrace-{pipeline}-state"


def _no_phase(phase: str) -> None:
    del phase


class KafkaSink:
    """One topic that rows go to, bound to one pipeline and one stream; other programs may write to it as well.

    With ``topic = None`` rows are refused with a HandlerError and there is no output. A shard without a position
    then begins where ``group`` stands, which was the checkpoint of a pipeline that had no state before.
    ``format`` says what of a row is the message. ``partitions`` is for a topic that has to be made (as many as the
    source where it is None). ``group`` is the consumer group that gets the positions as well, for tools. A shard's
    commit is due ``commit_interval_max_seconds`` after its first pending write, or at once when
    ``commit_bytes_max`` are pending. ``phase`` hears "recovering", "begin", "written" and "committed".
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        pipeline: str,
        topic: str | None,
        clock: Clock,
        message_format: MessageFormat | None = None,
        group: str | None = None,
        partitions: int | None = None,
        compression: str = "lz4",
        commit_interval_max_seconds: float = 0.2,
        commit_bytes_max: int = 16_777_216,
        on_recreated_topic: Literal["stop", "restart"] = "stop",
        state_topic: str | None = None,
        phase: Callable[[str], None] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.topic = topic
        self.clock = clock
        self.format = message_format if message_format is not None else MessageFormat()
        self.group = group
        self.compression = compression
        self.commit_interval_max_seconds = commit_interval_max_seconds
        self.commit_bytes_max = commit_bytes_max
        self.phase = phase if phase is not None else _no_phase
        self.partitions = 0
        self.message_bytes_max = 0
        self._settings = settings
        self._partitions_wanted = partitions
        self._restart = on_recreated_topic == "restart"
        self._state_topic = state_topic if state_topic is not None else state_topic_of(pipeline)
        self._cluster: Cluster | None = None
        self._client: AIOKafkaClient | None = None
        self._log: StateLog | None = None
        self._stream: Stream | None = None
        self._rows_schema: pa.Schema | None = None
        self._partitions_at_start = 0
        self._state_partitions = 0
        self._busy: dict[int, asyncio.Lock] = {}
        self._growing = asyncio.Lock()
        self._unkeyed = itertools.count()

    @property
    def where(self) -> str:
        if self.topic is None:
            return f"pipeline {self.pipeline}: state topic {self._state_topic!r}"
        return f"pipeline {self.pipeline}: Kafka sink {self.topic!r}"

    @property
    def stream(self) -> Stream:
        if self._stream is None:
            raise InternalError(f"{self.where} is not open")
        return self._stream

    @property
    def log(self) -> StateLog:
        if self._log is None:
            raise InternalError(f"{self.where} is not open")
        return self._log

    async def open(self, stream: Stream) -> None:
        """Make the output topic and the state topic where they are missing. Raises UserError for the source."""
        if self.topic == stream.topic:
            raise UserError(
                f"{self.where} is the pipeline's own source",
                hint="its rows would be read again, for ever: name another topic",
            )
        try:
            await self._open(stream)
        except BrokerUnavailable as error:
            await self.close()
            raise unavailable(error) from error
        except BaseException:
            await self.close()
            raise

    @property
    def partitions_at_start(self) -> int:
        return self._partitions_at_start

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        """The durable schema of that name. Raises SinkMismatch for rows that cannot be made into messages."""
        if name == ROWS:
            self._checked(schema)
        durable = await self.log.adopt_schema(name, schema)
        if name == ROWS:
            self._rows_schema = self._checked(durable)
        return durable

    async def schema(self, name: str) -> pa.Schema | None:
        return (await self.log.adopted()).schemas.get(name)

    async def position(self, partition: int) -> int | None:
        if 1 + partition >= self._state_partitions:
            return await self._inherited(partition)
        known = (await self.log.shard(partition)).positions.get(self.stream.topic_id)
        return await self._inherited(partition) if known is None else known

    async def acquire(self, partition: int) -> KafkaShardWriter:
        stream, log = self.stream, self.log
        assert self._client is not None
        busy = self._busy.setdefault(partition, asyncio.Lock())
        try:
            await self._grow_state(1 + partition + 1)
            async with busy:
                producer = TransactionalProducer(
                    self._client,
                    f"headrace-{self.pipeline}-{stream.cluster_id}-{stream.topic_id}-{partition}",
                    self.clock,
                    where=f"{self.where}, shard {partition}",
                    connection=partition,
                )
                await producer.start(TAKEOVER_SECONDS_MAX)
                self.phase("recovering")
                state = await log.settled_shard(partition, seconds_max=TAKEOVER_SECONDS_MAX)
                position = state.positions.get(stream.topic_id)
                if position is None:
                    position = await self._inherited(partition)
                return KafkaShardWriter(
                    self, partition, producer, position, state.states.get(stream.topic_id, b""), busy
                )
        except BrokerUnavailable as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Let go of the connections; idempotent. A transaction under way is left to the next owner."""
        self._stream, self._log, self._client = None, None, None
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await cluster.close()

    async def require_schema(self, schema: pa.Schema) -> None:
        """Raise InternalError unless rows of ``schema`` are what the sink has; the first ones decide."""
        if self._rows_schema is None:
            await self.adopt_schema(ROWS, schema)
        known = self._rows_schema
        assert known is not None
        if not schema.equals(known):
            ours, theirs = set(_columns(schema)), set(_columns(known))
            raise InternalError(f"{self.where}: rows have {sorted(ours - theirs)}, and not {sorted(theirs - ours)}")

    def next_unkeyed(self) -> int:
        """The partition to begin with for rows without a key: another one with each commit."""
        return next(self._unkeyed)

    async def _inherited(self, partition: int) -> int | None:
        """The group's offset, where that was the checkpoint before the pipeline had a state.

        Not for a topic that was made anew: the offset may be one of its predecessor's.
        """
        if self.topic is not None or self.group is None or len((await self.log.adopted()).bindings) > 1:
            return None
        assert self._cluster is not None
        return (await group_offsets(self._cluster, self.group, self.stream.topic, [partition]))[partition]

    def _checked(self, schema: pa.Schema) -> pa.Schema:
        if self.topic is not None:
            self.format.check(schema, self.where)
        return schema

    async def _open(self, stream: Stream) -> None:
        await asyncio.to_thread(batches.warm)
        self._cluster = Cluster(self._settings, self.clock)
        await self._cluster.open()
        if self.topic is not None:
            output = await target_topic(
                self._settings, self.clock, self.topic, partitions=self._partitions_wanted or stream.partitions
            )
            self.partitions, self.message_bytes_max = output.stream.partitions, output.message_bytes_max
        source_bytes = await message_bytes_max(self._settings, stream.topic)
        bytes_max = max(int(source_bytes * DOCUMENT_GROWTH), STATE_BYTES_MAX) + DOCUMENT_BYTES
        config = STATE_CONFIG | {"max.message.bytes": str(bytes_max)}
        state = await target_topic(
            self._settings, self.clock, self._state_topic, partitions=1 + stream.partitions, config=config
        )
        if not state.created:
            await self._require_compacted()
        self._state_partitions = state.stream.partitions
        self._client = client = await self._cluster.call(_itself, "no client")
        await client.set_topics([topic for topic in (self.topic, self._state_topic) if topic is not None])
        await self._grow_state(1 + stream.partitions)
        self._log = StateLog(self._cluster, self._client, self.clock, self._state_topic, state.stream.topic_id)
        binding = await self._log.bind(Binding.of(self.pipeline, stream, self.topic or ""), restart=self._restart)
        self._partitions_at_start = binding.partitions
        schema = (await self._log.adopted()).schemas.get(ROWS)
        self._rows_schema = self._checked(schema) if schema is not None else None
        self._stream = stream

    async def _grow_state(self, partitions: int) -> None:
        """A partition of the state topic for each of the source's, which may have grown."""
        async with self._growing:
            if partitions <= self._state_partitions:
                return
            assert self._client is not None
            assert self._cluster is not None
            async with _Admin(self._settings) as admin:
                with contextlib.suppress(errors.InvalidPartitionsError):  # another member was faster
                    await admin.create_partitions({self._state_topic: NewPartitions(partitions)})
            while self._state_partitions < partitions:
                self._state_partitions = (await self._cluster.describe(self._state_topic)).stream.partitions
            await self._client.force_metadata_update()

    async def _require_compacted(self) -> None:
        """A topic that lets its records go after a time would forget where the shards are."""
        async with _Admin(self._settings) as admin:
            try:
                answers = await admin.describe_configs(
                    [ConfigResource(ConfigResourceType.TOPIC, self._state_topic)]
                )
            except errors.BrokerResponseError:
                return  # not allowed to look
        found = _setting(answers, "cleanup.policy")
        if found is not None and found != "compact":
            raise SinkMismatch(
                f"{self.where}: state topic {self._state_topic!r} has cleanup.policy = {found}",
                hint="it holds the positions: set it to compact alone, or delete the topic if it is empty",
            )


class _Admin:
    """aiokafka's admin client for a moment; its errors as BrokerUnavailable and SinkUnavailable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaAdminClient | None = None

    async def __aenter__(self) -> AIOKafkaAdminClient:
        # Reads files, so not on the event loop.
        self._client = AIOKafkaAdminClient(**await asyncio.to_thread(self._settings.client_arguments))
        try:
            await self._client.start()
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self._client.close()
            raise BrokerUnavailable(f"{self._settings.bootstrap}: {type(error).__name__}: {error}") from None
        return self._client

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._client is not None
        await self._client.close()
        if isinstance(error, errors.BrokerResponseError):
            raise SinkUnavailable(f"the state topic cannot be changed: {error}") from error
        if isinstance(error, errors.KafkaError | OSError | TimeoutError):
            raise BrokerUnavailable(f"{self._settings.bootstrap}: {type(error).__name__}: {error}") from error


async def _itself(client: AIOKafkaClient) -> AIOKafkaClient:
    return client


def _setting(answers: Sequence[object], name: str) -> str | None:
    for answer in answers:
        for resource in answer.resources:  # type: ignore[attr-defined]
            for entry in resource[4]:
                if entry[0] == name:
                    return str(entry[1])
    return None


def _columns(schema: pa.Schema) -> list[str]:
    return [f"{field.name} {field.type}" for field in schema]
