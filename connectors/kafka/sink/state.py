"""The state topic of a pipeline's Kafka sink: positions, states, failed records, schemas and whose the sink is.

A compacted topic of headrace's own. Partition 0 holds what is adopted once, without transactions: bindings and
schemas. Each candidate has a key of its own, and **the first in the log is the one that counts**: compaction, which
keeps the last of a key, cannot change that. Partition ``1 + n`` belongs to shard ``n``: its position, its state and
its failed records, written in the transactions of that shard's producer alone, so that no other shard's open
transaction hides them.

    partition 0      ["binding", uuid]                  whose sink, of which topic; see `Binding`
                     ["schema", name, uuid]             a serialized Arrow schema, base64
    partition 1 + n  ["position", topic_id, n]          {"start", "position", "counts", "at"} of the last commit
                     ["state", topic_id, n]             the bytes that a tumbling window hands on; without a
                                                        value where there are none
                     ["failure", topic_id, n, offset]   a failed record as `engine.delivery.document` has it;
                                                        without a value once it is delivered

Not here: writing to the partitions of shards (`writer`).
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
from aiokafka import TopicPartition, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest

from connectors.kafka.cluster import LATEST, Cluster
from connectors.kafka.record_batches import RecordBatches
from connectors.kafka.sink import batches
from connectors.kafka.sink.batches import Stamp
from connectors.kafka.sink.messages import Column, Messages
from connectors.kafka.sink.transactions import SinkAway
from engine.batch import Stream
from engine.deadline import Deadline
from engine.delivery import from_document
from engine.errors import BrokerUnavailable, InternalError, RecreatedTopic, SinkMismatch
from engine.protocols import Clock, FailedRecord

#: Raised when a change of the records would mislead an older headrace.
VERSION = 1

ADOPTED = 0

#: One fetch, and how long a broker may keep it.
FETCH_BYTES_MAX = 1024 * 1024
FETCH_MS = 100

#: So many empty answers in a row mean that compaction has left nothing up to the end.
EMPTY_ANSWERS = 5

#: How long a transaction of somebody alive is waited for, and how often it is looked.
SETTLE_SECONDS_MAX = 1.0
LOOK_SECONDS = 0.004

#: Failed records of a shard that are kept in memory until they are delivered; others are read again.
FAILURE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Binding:
    """Whose a sink is. ``partitions`` is how many the topic had when it was first opened for it.

    ``output`` is the topic that rows go to, empty for a sink that takes none.
    """

    pipeline: str
    cluster_id: str
    topic: str
    topic_id: str
    partitions: int
    output: str
    version: int = VERSION

    @classmethod
    def of(cls, pipeline: str, stream: Stream, output: str) -> Binding:
        return cls(pipeline, stream.cluster_id, stream.topic, stream.topic_id, stream.partitions, output)


@dataclass(frozen=True, slots=True)
class _Record:
    """A record of the state topic, parsed. ``failed`` is that of a failure which is not delivered.

    ``state`` is that of a state, which is nobody's to parse.
    """

    offset: int
    key: list[Any]
    entry: dict[str, Any]
    failed: FailedRecord | None
    nbytes: int
    state: bytes = b""

    @classmethod
    def of(cls, offset: int, key: list[Any], value: bytes | None) -> _Record:
        if key[0] == "state":
            return cls(offset, key, {}, None, len(value or b""), value or b"")
        entry = orjson.loads(value or b"{}")
        failed = from_document(entry) if entry and key[0] == "failure" else None
        return cls(offset, key, {} if failed else entry, failed, len(value or b""))


@dataclass(slots=True)
class _Failure:
    """A failed record and where it is in the state topic; ``record`` is None where it is not kept."""

    at: int
    record: FailedRecord | None
    nbytes: int


@dataclass(slots=True)
class ShardState:
    """What the partition of a shard says, of each topic id that the source has had."""

    positions: dict[str, int] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, dict[int, _Failure]] = field(default_factory=dict)
    held_bytes: int = 0

    def fold(self, record: _Record) -> None:
        match record.key:
            case ["position", str(topic_id), int()]:
                self._move(topic_id, record.entry)
            case ["state", str(topic_id), int()]:
                self.states[topic_id] = record.state
            case ["failure", str(topic_id), int(), int(at)]:
                pending = self.failures.setdefault(topic_id, {})
                gone = pending.pop(at, None)
                if gone is not None and gone.record is not None:
                    self.held_bytes -= gone.nbytes
                if record.failed is not None:
                    pending[at] = self._kept(record, record.failed)
            case _:
                pass  # of a later version, which says so in its binding

    def _move(self, topic_id: str, entry: Mapping[str, int]) -> None:
        before, start, end = self.positions.get(topic_id), entry["start"], entry["position"]
        if start > end or (before is not None and start < before):
            raise InternalError(f"the state topic has a commit of [{start}, {end}) after one that ends at {before}")
        self.positions[topic_id] = end

    def _kept(self, record: _Record, failed: FailedRecord) -> _Failure:
        if self.held_bytes + record.nbytes > FAILURE_BYTES_MAX:
            return _Failure(record.offset, None, record.nbytes)
        self.held_bytes += record.nbytes
        return _Failure(record.offset, failed, record.nbytes)


@dataclass(slots=True)
class AdoptedState:
    """Partition 0: the first candidate of everything."""

    bindings: list[Binding] = field(default_factory=list)
    schemas: dict[str, pa.Schema] = field(default_factory=dict)
    version: int = VERSION

    def fold(self, record: _Record) -> None:
        entry = record.entry
        match record.key:
            case ["binding", str()]:
                self.version = max(self.version, int(entry.get("version", VERSION)))
                if self.version == VERSION:
                    self._bind(Binding(**entry))
            case ["schema", str(name), str()]:
                if name not in self.schemas:
                    self.schemas[name] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(entry["schema"])))
            case _:
                pass

    def _bind(self, candidate: Binding) -> None:
        if self.bindings:
            first = self.bindings[0]
            if _owner(candidate) != _owner(first) or candidate.topic_id in self.topic_ids:
                return  # it came too late, and its writer has been told so
        self.bindings.append(candidate)

    @property
    def topic_ids(self) -> list[str]:
        return [binding.topic_id for binding in self.bindings]


def _owner(binding: Binding) -> tuple[str, str, str, str]:
    return binding.pipeline, binding.cluster_id, binding.topic, binding.output


def _described(binding: Binding) -> str:
    output = f"output topic {binding.output!r}" if binding.output else "no output topic"
    return f"pipeline {binding.pipeline!r}, cluster {binding.cluster_id}, topic {binding.topic!r}, {output}"


def check_binding(adopted: AdoptedState, wanted: Binding, state_topic: str, *, restart: bool) -> Binding | None:
    """The binding that counts for ``wanted``; None if there is none yet, and it may be written.

    Raises SinkMismatch and RecreatedTopic.
    """
    if adopted.version > VERSION:
        raise SinkMismatch(
            f"state topic {state_topic!r} was written by a later version of headrace", hint="upgrade this one"
        )
    if not adopted.bindings:
        return None
    known = adopted.bindings[-1]
    if _owner(known) != _owner(wanted):
        raise SinkMismatch(
            f"the Kafka sink with state topic {state_topic!r} belongs to {_described(known)}; "
            f"this is {_described(wanted)}",
            hint="give the pipeline another name: it then starts anew, with a state topic of its own",
        )
    if known.topic_id == wanted.topic_id:
        return known
    if restart and wanted.topic_id not in adopted.topic_ids:
        return None
    raise RecreatedTopic(
        f"the sink holds topic {known.topic!r} with the id {known.topic_id}; it has {wanted.topic_id} now",
        hint='set source.on_recreated_topic = "restart" to read the new topic from its start',
    )


def key_of(*parts: str | int) -> bytes:
    return orjson.dumps(parts)


class _Reader:
    """Reads failed records again: ``wanted`` are offsets in the state topic, with those of the records."""

    def __init__(self, wanted: Mapping[int, int]) -> None:
        self.records: dict[int, FailedRecord] = {}
        self._wanted = wanted

    def fold(self, record: _Record) -> None:
        if record.offset in self._wanted and record.failed is not None:
            self.records[self._wanted[record.offset]] = record.failed


@dataclass(slots=True)
class _Read:
    """How far a partition of the state topic has been read, and what it said."""

    state: ShardState | AdoptedState | _Reader
    offset: int = 0
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)


class StateLog:
    """Reads the state topic, each partition from where it was last read; writes to partition 0."""

    def __init__(self, cluster: Cluster, client: AIOKafkaClient, clock: Clock, topic: str, topic_id: str) -> None:
        self.topic = topic
        self._topic_id = topic_id
        self._cluster = cluster
        self._client = client
        self._clock = clock
        self._read: dict[int, _Read] = {}

    async def adopted(self) -> AdoptedState:
        """What partition 0 says now."""
        state = await self._refreshed(ADOPTED, SETTLE_SECONDS_MAX)
        assert isinstance(state, AdoptedState)
        return state

    async def shard(self, partition: int, *, settle_seconds_max: float = SETTLE_SECONDS_MAX) -> ShardState:
        """What the partition of a shard says now, transactions that end within ``settle_seconds_max`` included."""
        state = await self._refreshed(1 + partition, settle_seconds_max)
        assert isinstance(state, ShardState)
        return state

    async def settled_shard(self, partition: int, *, seconds_max: float) -> ShardState:
        """As `shard`, but it raises SinkAway when a transaction is open for longer."""
        state = await self._refreshed(1 + partition, seconds_max, must_settle=True)
        assert isinstance(state, ShardState)
        return state

    async def failures(self, partition: int, topic_id: str, offsets: Sequence[int]) -> list[FailedRecord]:
        """Failed records that `shard` has told of, whole; read again where they are not kept in memory."""
        pending = (await self.shard(partition)).failures.get(topic_id, {})
        found = {offset: pending[offset] for offset in offsets if offset in pending}
        missing = {failure.at: offset for offset, failure in found.items() if failure.record is None}
        records = {offset: failure.record for offset, failure in found.items() if failure.record is not None}
        if missing:
            reader = _Reader(missing)
            await self._read_to(1 + partition, _Read(reader, min(missing)), max(missing) + 1)
            records |= reader.records
        return [records[offset] for offset in offsets if offset in records]

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        adopted = await self.adopted()
        if name not in adopted.schemas:
            text = base64.b64encode(schema.serialize().to_pybytes()).decode()
            await self._append(["schema", name], orjson.dumps({"schema": text}))
            adopted = await self.adopted()
        return adopted.schemas[name]

    async def bind(self, wanted: Binding, *, restart: bool) -> Binding:
        """The binding of this sink, written if there is none. Raises SinkMismatch and RecreatedTopic."""
        known = check_binding(await self.adopted(), wanted, self.topic, restart=restart)
        if known is None:
            entry = {name: getattr(wanted, name) for name in Binding.__dataclass_fields__}
            await self._append(["binding"], orjson.dumps(entry))
            known = check_binding(await self.adopted(), wanted, self.topic, restart=restart)
            assert known is not None, "a binding that was acknowledged is not there"
        return known

    async def _append(self, key: list[str], value: bytes) -> None:
        """One record to partition 0. A retry has a key of its own: written twice, the first one still counts."""

        async def send(client: AIOKafkaClient) -> None:
            leader = client.cluster.leader_for_partition(TopicPartition(self.topic, ADOPTED))
            if leader is None or leader < 0:
                await client.force_metadata_update()
                raise errors.LeaderNotAvailableError(self.topic)
            whole = [orjson.dumps([*key, uuid.uuid4().hex])]
            now_ms = int(self._clock.time() * 1000)
            made = await asyncio.to_thread(encoded, whole, [value], self.topic, ADOPTED, Stamp(), now_ms)
            answer = await client.send(
                leader, ProduceRequest(None, -1, 30_000, [(self.topic, [(ADOPTED, made[0].data)])])
            )
            code = answer.topics[0][1][0][1]
            if code:
                raise errors.for_code(code)(self.topic)

        await self._cluster.call(send, f"state topic {self.topic!r} took no record")

    async def _refreshed(self, partition: int, settle_seconds_max: float, *, must_settle: bool = False) -> object:
        read = self._read.get(partition)
        if read is None:
            state = AdoptedState() if partition == ADOPTED else ShardState()
            read = self._read.setdefault(partition, _Read(state))
        async with read.busy:
            await self._check_topic()
            end = await self._settled_end(partition, settle_seconds_max, must_settle)
            if end < read.offset:
                raise SinkMismatch(
                    f"state topic {self.topic!r}, partition {partition}, was read up to {read.offset}, "
                    f"and ends at {end} now: records of it are gone",
                    hint="without them rows would be written twice",
                )
            await self._read_to(partition, read, end)
            return read.state

    async def _check_topic(self) -> None:
        now = (await self._cluster.describe(self.topic)).stream.topic_id
        if now != self._topic_id:
            raise SinkMismatch(
                f"state topic {self.topic!r} was deleted and made anew while it was in use",
                hint="the positions are gone; give the pipeline another name and another output topic",
            )

    async def _settled_end(self, partition: int, seconds_max: float, must_settle: bool) -> int:
        """Where the last stable offset is once it has reached what is the end of the log now."""
        deadline = Deadline(self._clock, seconds_max)
        end = await self._offset(partition, read_committed=False)
        while True:
            stable = await self._offset(partition, read_committed=True)
            if stable >= end:
                return stable
            if not deadline.seconds_left:
                if must_settle:
                    raise SinkAway(f"state topic {self.topic!r}, partition {partition}: a transaction does not end")
                return stable
            await asyncio.sleep(LOOK_SECONDS)

    async def _offset(self, partition: int, *, read_committed: bool) -> int:
        found = await self._cluster.offsets(self.topic, {partition: LATEST}, read_committed=read_committed)
        return found[partition] or 0

    async def _read_to(self, partition: int, read: _Read, end: int) -> None:
        """Fold everything up to ``end``."""
        empty = 0
        while read.offset < end:
            data, aborted, is_throttled = await self._fetched(partition, read.offset)
            if data:
                empty = 0
                records, position = await asyncio.to_thread(
                    _parsed, self.topic, partition, read.offset, end, data, aborted
                )
                # Without a pause in between: a half of them would be folded twice.
                read.offset = position
                for record in records:
                    read.state.fold(record)
                continue
            empty = 0 if is_throttled else empty + 1
            if empty >= EMPTY_ANSWERS:
                read.offset = end

    async def _fetched(self, partition: int, position: int) -> tuple[bytes, list[tuple[int, int]] | None, bool]:
        async def fetch(client: AIOKafkaClient) -> tuple[bytes, list[tuple[int, int]] | None, bool]:
            leader = client.cluster.leader_for_partition(TopicPartition(self.topic, partition))
            if leader is None or leader < 0:
                await client.force_metadata_update()
                raise errors.LeaderNotAvailableError(f"{self.topic}-{partition}")
            wanted = [(self.topic, [(partition, position, FETCH_BYTES_MAX)])]
            answer = await client.send(leader, FetchRequest(FETCH_MS, 1, FETCH_BYTES_MAX, 1, wanted))
            _partition, code, _high_watermark, *rest = answer.topics[0][1][0]
            if code:
                if errors.for_code(code).invalid_metadata:
                    await client.force_metadata_update()
                raise errors.for_code(code)(f"{self.topic}-{partition}")
            aborted = rest[2] if answer.API_VERSION >= 11 else rest[-2]
            return rest[-1] or b"", aborted, bool(answer.throttle_time_ms)

        return await self._cluster.call(fetch, f"state topic {self.topic!r} cannot be read")


def _parsed(
    topic: str, partition: int, position: int, end: int, data: bytes, aborted: list[tuple[int, int]] | None
) -> tuple[list[_Record], int]:
    """The committed records of an answer, and the offset after it."""
    found = RecordBatches(data, topic=topic, partition=partition, position=position, aborted=aborted)
    records = []
    while found.has_more and found.position < end:
        columns = found.read(FETCH_BYTES_MAX).records.select(["offset", "key", "value"]).to_pydict()
        for offset, key, value in zip(columns["offset"], columns["key"], columns["value"], strict=True):
            if key is not None:
                records.append(_Record.of(offset, orjson.loads(key), value))
    return records, found.position


def encoded(
    keys: Sequence[bytes], values: Sequence[bytes | None], topic: str, partition: int, stamp: Stamp, now_ms: int
) -> list[batches.RecordBatch]:
    """Records for the state topic. A batch that is too large for it is refused by the broker, not here."""
    messages = Messages(Column.of_values(keys), Column.of_values(values))
    return batches.build(
        messages,
        topic,
        batches.all_to(partition, len(messages)),
        stamp=stamp,
        timestamp_ms=now_ms,
        compression="lz4",
        bytes_max=batches.BATCH_BYTES_MAX,
    )


def unavailable(error: BrokerUnavailable) -> SinkAway:
    """The broker is away: for a sink that is the medium."""
    return SinkAway(error.message, hint=error.hint)
