"""Failed records: what has failed and why, and sending it again, each record once.

Reads the on-failure destination that a pipeline names, where every failure is at least once; the identity of a
record tells copies. Sending again goes to the topic ``<pipeline>.retry`` (`connectors.kafka.replay`), which the
pipeline's companion reads (`engine.compose.retry`).

Not here: what is printed (`engine.cli.dlq`), and failures that still wait in a sink (`engine.compose.waiting`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from connectors import file_destination
from connectors.kafka import reading
from connectors.kafka.cluster import Cluster
from connectors.kafka.replay import Again, Replayer, Seen, replayed, transactions, without_identity
from connectors.kafka.settings import KafkaSettings
from engine.batch import Stream
from engine.clock import SystemClock
from engine.compose.kafka import kafka_settings
from engine.compose.retry import SUFFIX, companion, ensure_retry_topic, retry_name
from engine.compose.waiting import Waiting, waiting_in
from engine.config import Config, PipelineConfig
from engine.errors import BrokerUnavailable, HeadraceError, UserError
from functions.failures import Failure, Identity, from_document

#: Error types beyond so many are counted together.
ERROR_TYPES_MAX = 1_000
OTHER_TYPES = "(others)"

#: How long `show` waits for a broker that it could do without, to look into the sink.
SHORT_WAIT_SECONDS = 3.0

#: How long a transaction in the retry topic may take to end once its producer is fenced.
SETTLE_SECONDS_MAX = 30.0

#: ``tell(part, note)`` hears how far the work is: from 0 to 1.
Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A failed record: ``waits`` still in the sink, was ``replayed``."""

    failure: Failure
    waits: bool = False
    replayed: bool = False


@dataclass(slots=True)
class Listing:
    """What has failed in a pipeline and its companion, each record once.

    ``entries`` are the newest, the newest of them last. ``copies`` are second deliveries, ``unreadable`` lines or
    messages that are no failed records, ``others`` those of other pipelines. ``waiting`` is how many wait in
    the sink, None where ``unknown`` says why nobody can tell.
    """

    pipeline: str
    destination: str
    entries: list[Entry] = field(default_factory=list)
    error_types: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    unreadable: int = 0
    others: int = 0
    replayed: int = 0
    waiting: int | None = 0
    unknown: str | None = None

    @property
    def records(self) -> int:
        return self.error_types.total()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which failed records are sent again: all that fit everything that is given. ``since_ms`` is of the report."""

    error_type: str | None = None
    partition: int | None = None
    offset: int | None = None
    since_ms: int | None = None

    def takes(self, failure: Failure) -> bool:
        identity, record = failure.identity, failure.record
        return (
            (self.error_type is None or record.error_type == self.error_type)
            and (self.partition is None or identity.partition == self.partition)
            and (self.offset is None or identity.offset == self.offset)
            and (self.since_ms is None or (failure.reported_at or 0) >= self.since_ms)
        )


@dataclass(slots=True)
class Replay:
    """What a replay did. ``sent`` now (with ``dry_run``: would be), ``before`` by an earlier one."""

    pipeline: str
    topic: str
    dry_run: bool
    sent: int = 0
    before: int = 0
    passed_by: int = 0
    copies: int = 0
    unreadable: int = 0
    identities: list[Identity] = field(default_factory=list)  #: the first ones, with ``dry_run``


#: How many identities a dry run names.
NAMED_MAX = 20


async def show(
    config: Config, name: str, *, limit: int, bootstrap: str | None = None, tell: Tell = lambda _part, _note: None
) -> Listing:
    """The failed records of one pipeline; changes nothing. Raises UserError, BrokerUnavailable."""
    own, pipeline = _resolved(config, name)
    listing = Listing(name, _target(own, pipeline))
    settings = kafka_settings(config.kafka, bootstrap)
    names = _names(own, name)
    seen, again = Seen(), Seen()
    newest: list[tuple[float, int, Entry]] = []

    def take(failure: Failure, at: float, *, waits: bool) -> None:
        identity = failure.identity
        shard = _shard(identity)
        kind = failure.record.error_type
        known = kind in listing.error_types or len(listing.error_types) < ERROR_TYPES_MAX
        listing.error_types[kind if known else OTHER_TYPES] += 1
        was_replayed = (shard, identity.offset) in again
        listing.replayed += was_replayed
        heapq.heappush(newest, (at, listing.records, Entry(failure, waits, was_replayed)))
        if len(newest) > limit:
            heapq.heappop(newest)

    if pipeline.source.destination_config.replay:
        try:
            again = await _replayed_so_far(_impatient(settings), retry_name(own))
        except BrokerUnavailable:
            if listing.destination.startswith("kafka://"):
                raise
            # A file can be read all the same; that the broker is away is said of the sink, below.
    async for found, part in _failures(listing.destination, settings):
        tell(part, f"{listing.records:,} failed records")
        for failure in found:
            if failure is None:
                listing.unreadable += 1
            elif failure.identity.pipeline not in names:
                listing.others += 1
            elif not seen.add(_shard(failure.identity), failure.identity.offset):
                listing.copies += 1
            else:
                take(failure, failure.reported_at or -1, waits=False)
    waiting = await _waiting(own, pipeline, names, settings)
    listing.waiting, listing.unknown = (None if waiting.unknown else 0), waiting.unknown
    for failure in waiting.failures:
        if seen.add(_shard(failure.identity), failure.identity.offset):
            listing.waiting = (listing.waiting or 0) + 1
            take(failure, float("inf"), waits=True)
    listing.entries = [entry for _, _, entry in sorted(newest, key=lambda each: each[:2])]
    return listing


async def replay(
    config: Config,
    name: str,
    selection: Selection,
    *,
    dry_run: bool = False,
    bootstrap: str | None = None,
    tell: Tell = lambda _part, _note: None,
) -> Replay:
    """Send failed records again that no replay has sent. May be run, and killed, as often as one likes.

    Raises UserError where replays are not enabled, and for a second replay at the same time; BrokerUnavailable.
    """
    own, pipeline = _resolved(config, name)
    target = _target(own, pipeline)
    if not pipeline.source.destination_config.replay:
        raise UserError(
            f"pipeline {own}: replays are not enabled, so nobody would read topic {retry_name(own)!r}",
            hint="set source.destination_config.replay = true, and run the pipeline with it",
        )
    settings = kafka_settings(config.kafka, bootstrap)
    work = Replay(own, retry_name(own), dry_run)
    names = _names(own, name)
    if selection.offset is not None or selection.partition is not None:
        names = {name}  # offsets of the retry topic are others
    async with _cluster(settings) as cluster:
        if dry_run:
            before = await _replayed_so_far(settings, work.topic)
            await _send_all(work, target, settings, names, selection, before, None, tell)
            return work
        stream = await _retry_stream(cluster, settings, own, pipeline)
        replayer = Replayer(settings, own, work.topic, stream.partitions)
        try:
            await replayer.start()
            before, _ = await replayed(cluster, SystemClock(), work.topic, settle_seconds_max=SETTLE_SECONDS_MAX)
            await _send_all(work, target, settings, names, selection, before, replayer, tell)
        finally:
            await replayer.close()
    return work


async def _send_all(
    work: Replay,
    target: str,
    settings: KafkaSettings,
    names: set[str],
    selection: Selection,
    before: Seen,
    replayer: Replayer | None,
    tell: Tell,
) -> None:
    met = Seen()
    async for found, part in _failures(target, settings):
        wanted: list[Again] = []
        for failure in found:
            if failure is None:
                work.unreadable += 1
                continue
            identity = failure.identity
            if identity.pipeline not in names or not selection.takes(failure):
                work.passed_by += 1
            elif not met.add(_shard(identity), identity.offset):
                work.copies += 1
            elif (_shard(identity), identity.offset) in before:
                work.before += 1
            else:
                wanted.append(_again(failure, work.topic))
                if replayer is None and len(work.identities) < NAMED_MAX:
                    work.identities.append(identity)
        for run in transactions(wanted):
            if replayer is not None:
                await replayer.send(run)
            work.sent += len(run)
            tell(part, f"{work.sent:,} sent")
        tell(part, f"{work.sent:,} sent")


def _again(failure: Failure, retry_topic: str) -> Again:
    """The record as it was in the source: what an earlier replay added to its headers is left out."""
    record = failure.record
    was_replayed = failure.identity.topic == retry_topic
    return Again(
        shard=_shard(failure.identity),
        offset=failure.identity.offset,
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=without_identity(record.headers) if was_replayed else record.headers,
    )


async def _failures(target: str, settings: KafkaSettings) -> AsyncIterator[tuple[list[Failure | None], float]]:
    """What a destination holds, in its order, some at a time (None: no failed record), and how far that is."""
    if target.startswith("kafka://"):
        topic = target.removeprefix("kafka://")
        async with _cluster(settings) as cluster:
            if topic not in await cluster.topics():
                return
            async for chunk in reading.read(cluster, SystemClock(), topic):
                entries = [(message.value, message.timestamp) for message in chunk.messages]
                yield await asyncio.to_thread(_parsed, entries), chunk.done / max(1, chunk.total)
        return
    lines = file_destination.read(Path(target.removeprefix("file:")))
    while (some := await asyncio.to_thread(next, lines, None)) is not None:
        whole, done, total = some
        yield await asyncio.to_thread(_parsed, [(line, None) for line in whole]), done / max(1, total)


def _parsed(entries: Sequence[tuple[bytes | None, int | None]]) -> list[Failure | None]:
    return [_failure(value, at) for value, at in entries]


def _failure(value: bytes | None, at: int | None) -> Failure | None:
    try:
        failure = from_document(orjson.loads(value or b""))
    except ValueError:
        return None
    return dataclasses.replace(failure, reported_at=at) if failure.reported_at is None else failure


async def _replayed_so_far(settings: KafkaSettings, topic: str) -> Seen:
    """What the retry topic has; nothing where there is none yet."""
    async with _cluster(settings) as cluster:
        if topic not in await cluster.topics():
            return Seen()
        return (await replayed(cluster, SystemClock(), topic))[0]


async def _retry_stream(cluster: Cluster, settings: KafkaSettings, name: str, pipeline: PipelineConfig) -> Stream:
    topic = retry_name(name)
    if topic in await cluster.topics():
        return (await cluster.describe(topic)).stream
    source = (await cluster.describe(pipeline.source.topic)).stream
    return (await ensure_retry_topic(settings, SystemClock(), name, source)).stream


async def _waiting(name: str, pipeline: PipelineConfig, names: set[str], settings: KafkaSettings) -> Waiting:
    """What the sinks of the pipeline and its companion hold back; a broker that is away is not waited for long."""
    pipelines = [(name, pipeline)]
    if pipeline.source.destination_config.replay:
        pipelines.append(companion(name, pipeline))
    found = Waiting()
    try:
        async with _cluster(_impatient(settings)) as cluster:
            topics = await cluster.topics()
            for own, each in pipelines:
                if own in names and each.source.topic in topics:
                    stream = (await cluster.describe(each.source.topic)).stream
                    found += await waiting_in(own, each, stream, cluster)
    except BrokerUnavailable as error:
        return Waiting(unknown=error.message)
    except HeadraceError as error:
        return Waiting(found.failures, error.message)
    return found


def _impatient(settings: KafkaSettings) -> KafkaSettings:
    """For what can be left out when the broker is away."""
    wait = min(SHORT_WAIT_SECONDS, settings.broker_wait_seconds_max)
    return dataclasses.replace(settings, broker_wait_seconds_max=wait)


def _resolved(config: Config, name: str) -> tuple[str, PipelineConfig]:
    """The pipeline that ``name`` means: itself, or by the name of its companion."""
    own = name.removesuffix(SUFFIX) if name not in config.pipelines else name
    if own not in config.pipelines:
        near = difflib.get_close_matches(name, config.pipelines, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(config.pipelines)}"
        raise UserError(f"the configuration has no pipeline {name!r}", hint=hint)
    return own, config.pipelines[own]


def _names(own: str, given: str) -> set[str]:
    """Whose failures are meant: of a pipeline and its companion, or of the companion alone."""
    return {own, retry_name(own)} if given == own else {given}


def _target(name: str, pipeline: PipelineConfig) -> str:
    target = pipeline.source.destination_config.on_failure
    if target is None:
        raise UserError(
            f"pipeline {name} has no on-failure destination, so failed records are nowhere to be found",
            hint='set source.destination_config.on_failure = "kafka://TOPIC" or "file:PATH"',
        )
    return target


def _shard(identity: Identity) -> tuple[str, str, str, str, int]:
    return identity.pipeline, identity.cluster_id, identity.topic, identity.topic_id, identity.partition


@asynccontextmanager
async def _cluster(settings: KafkaSettings) -> AsyncIterator[Cluster]:
    cluster = Cluster(settings, SystemClock())
    try:
        await cluster.open()
        yield cluster
    finally:
        await cluster.close()
