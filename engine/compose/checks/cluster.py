"""Checks of the cluster: the broker, topics and what they keep, their times, positions, and what is written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import ApiVersionRequest

from connectors.kafka.cluster import Cluster
from connectors.kafka.metadata import DescribeTopics
from connectors.kafka.sink import state_topic_of
from engine.clock import SystemClock
from engine.compose import position
from engine.compose.checks.finding import Case, Finding, fail, ok, raised, skipped, warn
from engine.compose.checks.machine import writable
from engine.compose.kafka import kafka_settings
from engine.config import PipelineConfig
from engine.config_sinks import DuckDBSinkConfig, DuckLakeSinkConfig, KafkaSinkConfig, ParquetSinkConfig
from engine.errors import Domain, HeadraceError, UserError

#: How long a broker that is away is waited for.
BROKER_SECONDS_MAX = 5.0

#: Kafka's API keys, and the version of Metadata that has topic ids (Kafka 2.8).
FETCH, METADATA = 1, 3
METADATA_WITH_IDS = 10

#: Kafka 4.0 takes no Fetch before this version. (Of Produce it still names version 0, for old clients.)
FETCH_MIN_OF_4 = 4

#: A timestamp so far ahead of this machine's clock is worth a word.
AHEAD_SECONDS = 60

#: A position behind so much of the retention time is about to be lost.
RETENTION_SHARE = 0.5

#: What is kept for less cannot be read again after a night.
RETENTION_SECONDS_MIN = 86_400


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic: how many replicas its partitions have, which partitions lack some, and its settings as text.

    ``offline`` ones have no leader. ``settings`` is empty where the cluster does not tell.
    """

    replicas: int
    lacking: tuple[int, ...]
    offline: tuple[int, ...]
    settings: Mapping[str, str]

    def number(self, name: str) -> int | None:
        value = self.settings.get(name, "")
        return int(value) if value.lstrip("-").isdecimal() else None


async def broker(case: Case) -> Sequence[Finding]:
    """A broker answers and speaks what headrace needs. Opens ``case.cluster``."""
    assert case.config is not None
    settings = kafka_settings(case.config.kafka, case.bootstrap)
    wait = min(settings.broker_wait_seconds_max, BROKER_SECONDS_MAX)
    case.settings = replace(settings, broker_wait_seconds_max=wait)
    cluster = Cluster(case.settings, SystemClock())
    try:
        await cluster.open()
        versions, nodes = await cluster.call(_versions, "no answer from a broker")
    except HeadraceError as error:
        await cluster.close()
        return [raised(error)]
    case.cluster = cluster
    where = f"{settings.bootstrap}, {nodes} broker{'s' if nodes != 1 else ''}, {settings.security_protocol}"
    if versions.get(METADATA, (0, 0))[1] < METADATA_WITH_IDS:
        return [fail(f"{where}: no topic ids", "headrace needs Kafka 2.8 or later", domain=Domain.USER)]
    is_4 = versions.get(FETCH, (0, 0))[0] >= FETCH_MIN_OF_4
    return [ok(f"{where}, Kafka {'4.0 or later' if is_4 else 'before 4.0'} by the protocol that it speaks")]


async def _versions(client: AIOKafkaClient) -> tuple[dict[int, tuple[int, int]], int]:
    answer = await client.send(client.get_random_node(), ApiVersionRequest())
    return {key: (first, last) for key, first, last in answer.api_versions}, len(client.cluster.brokers())


async def topics(case: Case) -> Sequence[Finding]:
    """Each pipeline's topic is there, whole, and keeps records as exactly once and replay need it."""
    if case.cluster is None or case.settings is None:
        return [skipped("no broker")]
    found = []
    for name, pipeline in case.pipelines.items():
        topic = pipeline.source.topic
        try:
            stream = (await case.cluster.describe(topic)).stream
        except HeadraceError as error:
            if name in case.companions and isinstance(error, UserError):
                found.append(ok(f"topic {topic} is made at the start", name))
            else:
                found.append(raised(error, name))
            continue
        case.streams[topic] = stream
        state = await _state(case, topic)
        found += [*_whole(topic, state, name), *_kept(topic, state, pipeline, name)] or [
            ok(f"topic {topic}: {stream.partitions} partitions, {_kept_text(state)}", name)
        ]
    return found


async def _state(case: Case, topic: str) -> TopicState:
    assert case.cluster is not None
    assert case.settings is not None

    async def ask(client: AIOKafkaClient) -> Any:
        return await client.send(client.get_random_node(), DescribeTopics([topic]))

    answer = await case.cluster.call(ask, f"no answer about topic {topic!r}")
    partitions = answer.topics[0][4]  # error, number, leader, epoch, replicas, in sync, offline, tags
    return TopicState(
        replicas=min((len(each[4]) for each in partitions), default=0),
        lacking=tuple(sorted(each[1] for each in partitions if len(each[5]) < len(each[4]))),
        offline=tuple(sorted(each[1] for each in partitions if each[2] < 0)),
        settings=await _settings(case, topic),
    )


async def _settings(case: Case, topic: str) -> Mapping[str, str]:
    """A topic's settings, the cluster's defaults included; none where this user may not see them."""
    assert case.settings is not None
    if topic not in case.topic_settings:
        admin = AIOKafkaAdminClient(**await asyncio.to_thread(case.settings.client_arguments))
        try:
            await admin.start()
            answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        except errors.KafkaError:
            answers = []
        finally:
            await admin.close()
        resources = [resource for answer in answers for resource in answer.resources]
        case.topic_settings[topic] = {entry[0]: entry[1] or "" for each in resources for entry in each[4]}
    return case.topic_settings[topic]


def _whole(topic: str, state: TopicState, name: str) -> list[Finding]:
    if state.offline:
        text = f"topic {topic}: no leader for partitions {_listed(state.offline)}"
        return [fail(text, "bring back the brokers that have them", name)]
    found = []
    needed = state.number("min.insync.replicas")
    if needed is not None and state.replicas < needed:
        text = (
            f"topic {topic}: {state.replicas} replicas, and min.insync.replicas = {needed}: nobody can write to it"
        )
        found.append(fail(text, "lower the setting, or give the topic more replicas", name))
    if state.lacking:
        text = f"topic {topic}: replicas of partitions {_listed(state.lacking)} are not in sync"
        found.append(warn(text, "look at the brokers that have them", name))
    return found


def _kept(topic: str, state: TopicState, pipeline: PipelineConfig, name: str) -> list[Finding]:
    """What the topic throws away that the pipeline would miss."""
    found = []
    policy = state.settings.get("cleanup.policy", "")
    sink = pipeline.sink
    is_upsert = isinstance(sink, DuckDBSinkConfig) and sink.mode == "upsert"
    if "compact" in policy and not is_upsert:
        found.append(
            warn(
                f"topic {topic} is compacted: older records of a key go, and count as absent",
                "right for changes that are merged (mode = upsert); events belong into a topic without compaction",
                name,
            )
        )
    retention = state.number("retention.ms")
    if "delete" in policy and retention is not None and 0 <= retention < RETENTION_SECONDS_MIN * 1000:
        found.append(
            warn(
                f"topic {topic} keeps records for {retention / 3_600_000:.1f} h: a longer standstill loses some",
                f"set retention.ms to a day or more (kafka-configs --alter --topic {topic})",
                name,
            )
        )
    return found


def _kept_text(state: TopicState) -> str:
    if not state.settings:
        return "the cluster does not tell its settings"
    policy, retention = state.settings.get("cleanup.policy", "?"), state.number("retention.ms")
    kept = "for ever" if retention == -1 else f"for {(retention or 0) / 86_400_000:.3g} days"
    return f"{state.replicas} replicas, cleanup.policy {policy}" + (f", kept {kept}" if "delete" in policy else "")


async def times(case: Case) -> Sequence[Finding]:
    """No record is from the future of this machine's clock: Kafka tells no time but that of its records."""
    if case.cluster is None or case.settings is None:
        return [skipped("no broker")]
    ahead = int((time.time() + AHEAD_SECONDS) * 1000)
    found = []
    for topic, stream in case.streams.items():
        offsets = await case.cluster.offsets(topic, dict.fromkeys(range(stream.partitions), ahead))
        later = {partition: offset for partition, offset in offsets.items() if offset is not None}
        if later:
            settings = await _settings(case, topic)
            whose = "broker" if settings.get("message.timestamp.type") == "LogAppendTime" else "producer"
            partition, offset = min(later.items())
            found.append(
                warn(
                    f"{topic}-{partition} offset {offset} is from more than {AHEAD_SECONDS} s ahead of this clock",
                    f"the {whose}'s clock or this machine's is wrong; ages and AT_TIMESTAMP are too then",
                )
            )
    return found or [ok(f"no record is from more than {AHEAD_SECONDS} s ahead of this machine's clock")]


async def positions(case: Case) -> Sequence[Finding]:
    """Each sink belongs to its pipeline and topic; no position is lost or about to be; the group follows it."""
    if case.cluster is None or case.config is None:
        return [skipped("no broker")]
    kafka = case.config.kafka
    wait = min(kafka.broker_wait_seconds_max, BROKER_SECONDS_MAX)
    kafka = kafka.model_copy(update={"broker_wait_seconds_max": wait})
    config = case.config.model_copy(update={"kafka": kafka, "pipelines": case.pipelines})
    found: list[Finding] = []
    for name, pipeline in case.pipelines.items():
        if pipeline.source.topic not in case.streams:
            found.append(skipped("its topic is not there", name))
        elif case.running is not None and isinstance(pipeline.sink, DuckDBSinkConfig | DuckLakeSinkConfig):
            found.append(skipped("its file is in the engine that runs, which checks it (`headrace top`)", name))
        else:
            try:
                shards = await position.show(config, name, bootstrap=case.bootstrap)
            except HeadraceError as error:
                found.append(raised(error, name))
                continue
            found += await _of_shards(case, name, pipeline, shards)
    return found


async def _of_shards(
    case: Case, name: str, pipeline: PipelineConfig, shards: Sequence[position.ShardPosition]
) -> list[Finding]:
    begun = [shard for shard in shards if shard.position is not None]
    found = []
    lost = [shard for shard in begun if shard.position is not None and shard.position < shard.log_start]
    if lost:
        where = "; ".join(f"{shard.topic}-{shard.partition}: {shard.note}" for shard in lost[:3])
        hint = 'on_lost_offsets = "earliest" goes on behind the gap; keep records longer than the engine may stand'
        level = warn if pipeline.source.on_lost_offsets == "earliest" else fail
        found.append(level(where, hint, name))
    beyond = [shard for shard in begun if shard.position is not None and shard.position > shard.end]
    if beyond:
        hint = "records of the topic are gone, as after an unclean leader election: what comes next is passed by"
        found.append(fail(f"{beyond[0].topic}-{beyond[0].partition}: {beyond[0].note}", hint, name))
    found += await _near_the_end(case, name, [shard for shard in begun if shard not in lost])
    ahead = [s for s in begun if s.group_offset is not None and s.group_offset > (s.position or 0)]
    if ahead and not pipeline.has_group_position:
        shard = ahead[0]
        text = (
            f"{shard.topic}-{shard.partition}: the group is at {shard.group_offset}, the sink at {shard.position}"
        )
        hint = "the sink decides, and reads on from there; is it an older copy, or another program in the group?"
        found.append(warn(text, hint, name))
    behind = sum(_behind(shard, pipeline) for shard in shards)
    text = f"{len(begun)} of {len(shards)} partitions begun, {behind:,} offsets behind"
    return found or [ok(text, name)]


def _behind(shard: position.ShardPosition, pipeline: PipelineConfig) -> int:
    """Offsets that the pipeline has still to pass; before its first commit those that it begins with, if known."""
    if shard.lag is not None:
        return shard.lag
    return shard.end - shard.log_start if pipeline.source.starting_position == "TRIM_HORIZON" else 0


async def _near_the_end(case: Case, name: str, shards: Sequence[position.ShardPosition]) -> list[Finding]:
    """Shards whose next record the topic will throw away before long."""
    assert case.cluster is not None
    behind = [shard for shard in shards if shard.lag]
    if not behind or case.settings is None:
        return []
    topic = behind[0].topic
    settings = await _settings(case, topic)
    retention = settings.get("retention.ms", "")
    if "delete" not in settings.get("cleanup.policy", "") or not retention.isdecimal():
        return []
    half = int(time.time() * 1000 - int(retention) * RETENTION_SHARE)
    # The first offsets that are younger than half of the retention time.
    younger = await case.cluster.offsets(topic, dict.fromkeys((shard.partition for shard in behind), half))
    late = [
        shard
        for shard in behind
        if (first := younger.get(shard.partition)) is None
        or (shard.position is not None and shard.position < first)
    ]
    if not late:
        return []
    text = (
        f"{topic}: partitions {_listed(shard.partition for shard in late)} are behind by more than half of "
        f"retention.ms = {retention}: their records go before they are read"
    )
    return [warn(text, "make it read faster, or have the topic keep records for longer", name)]


async def outputs(case: Case) -> Sequence[Finding]:
    """Topics and files that are written: outputs, positions' own topics, and where failed records go."""
    if case.cluster is None:
        return [skipped("no broker")]
    there = set(await case.cluster.topics())
    found: list[Finding] = []
    for name, pipeline in case.pipelines.items():
        target = pipeline.source.destination_config.on_failure
        if target is not None:
            found.append(await _destination(case, name, target, there))
        if isinstance(pipeline.sink, KafkaSinkConfig):
            state = f"{pipeline.sink.topic} " + (
                "is there" if pipeline.sink.topic in there else "is made at the start"
            )
            found.append(ok(f"output topic {state}", name))
        if isinstance(pipeline.sink, ParquetSinkConfig | DuckDBSinkConfig | DuckLakeSinkConfig):
            continue
        topic = state_topic_of(name)
        if topic in there and not pipeline.has_group_position:
            settings = (await _state(case, topic)).settings
            if settings and settings.get("cleanup.policy") != "compact":
                text = f"topic {topic} holds positions, and its cleanup.policy is {settings.get('cleanup.policy')}"
                hint = f"kafka-configs --alter --topic {topic} --add-config cleanup.policy=compact"
                found.append(fail(text, hint, name, Domain.USER))
    return found or [ok("nothing is written to topics, and failed records go nowhere")]


async def _destination(case: Case, name: str, target: str, there: set[str]) -> Finding:
    if not target.startswith("kafka://"):
        path = Path(target.removeprefix("file:"))
        if not writable(path.parent):
            return fail(f"failed records go to {path}, whose directory cannot be written to", None, name)
        return ok(f"failed records go to {path}", name)
    topic = target.removeprefix("kafka://")
    if topic not in there:
        return ok(f"failed records go to topic {topic}, which is made at the start", name)
    if "compact" in (await _state(case, topic)).settings.get("cleanup.policy", ""):
        text = f"failed records go to topic {topic}, which is compacted: of those with one key the last stays"
        return warn(text, f"kafka-configs --alter --topic {topic} --add-config cleanup.policy=delete", name)
    return ok(f"failed records go to topic {topic}", name)


def _listed(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return ", ".join(map(str, found[:10])) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
