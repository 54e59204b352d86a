"""Topics that headrace writes to: what they are, what they take, and creating one that is missing.

Brokers should not create topics by themselves (a mistyped name would be an empty topic), so commands that write
do it on purpose. Not here: reading a topic (`source`) and what a topic is to a reader (`cluster`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from connectors.kafka.cluster import Cluster
from connectors.kafka.settings import KafkaSettings
from engine.batch import Stream
from engine.deadline import Deadline
from engine.errors import BrokerUnavailable, ExternalError, UserError
from engine.protocols import Clock

#: Kafka's own default of ``max.message.bytes``, taken where a cluster does not say.
MESSAGE_BYTES_MAX = 1_048_588

#: The time from a topic's creation to its being known by the broker that is asked.
CREATE_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class TargetTopic:
    """A topic that can be written to. ``message_bytes_max`` bounds a record batch, compressed."""

    stream: Stream
    message_bytes_max: int
    created: bool


async def target_topic(
    settings: KafkaSettings,
    clock: Clock,
    topic: str,
    *,
    partitions: int,
    config: Mapping[str, str] | None = None,
) -> TargetTopic:
    """The topic, made with ``partitions`` (and ``config``) when the cluster does not have it.

    Waits for a broker for ``settings.broker_wait_seconds_max``. Raises BrokerUnavailable, UserError for a name
    that Kafka does not allow, ExternalError where the cluster refuses.
    """
    async with _open(settings, clock) as cluster:
        created = topic not in await cluster.topics()
        async with _admin(settings) as admin:
            if created:
                created = await _create(admin, settings, topic, partitions, config or {})
            stream = await _described(cluster, clock, topic)
            return TargetTopic(stream, await _message_bytes_max(admin, topic), created)


async def message_bytes_max(settings: KafkaSettings, topic: str) -> int:
    """The largest record batch that a topic takes; Kafka's default where the cluster does not say."""
    async with _admin(settings) as admin:
        return await _message_bytes_max(admin, topic)


@contextlib.asynccontextmanager
async def _open(settings: KafkaSettings, clock: Clock) -> AsyncIterator[Cluster]:
    cluster = Cluster(settings, clock)
    try:
        await cluster.open()
        yield cluster
    finally:
        await cluster.close()


@contextlib.asynccontextmanager
async def _admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**settings.client_arguments())
    try:
        await admin.start()
        yield admin
    except (errors.KafkaError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"{settings.bootstrap}: {type(error).__name__}: {error}") from None
    finally:
        await admin.close()


async def _create(
    admin: AIOKafkaAdminClient, settings: KafkaSettings, topic: str, partitions: int, config: Mapping[str, str]
) -> bool:
    """Whether this call made it; another program may have been faster."""
    new = NewTopic(topic, partitions, 1, topic_configs=dict(config))
    # -1 is the cluster's default.replication.factor (Kafka 2.4 and later); the constructor does not take it.
    new.replication_factor = -1
    answer = (await admin.create_topics([new])).topic_errors[0]
    error, text = errors.for_code(answer[1]), answer[-1] or ""
    if error is errors.NoError:
        return True
    if error is errors.TopicAlreadyExistsError:
        return False
    if error is errors.InvalidTopicError:
        raise UserError(
            f"topic {topic!r}: Kafka allows no such name",
            hint="up to 249 letters, digits, dots, underscores and dashes",
        )
    if error in (errors.InvalidPartitionsError, errors.PolicyViolationError, errors.InvalidConfigurationError):
        raise UserError(f"topic {topic!r} cannot be created with {partitions} partitions: {text}")
    raise ExternalError(f"topic {topic!r} cannot be created on {settings.bootstrap}: {text or error.__name__}")


async def _described(cluster: Cluster, clock: Clock, topic: str) -> Stream:
    """What the topic is; a broker may need a moment to hear of one that was just made."""
    deadline = Deadline(clock, CREATE_SECONDS_MAX)
    while True:
        try:
            return (await cluster.describe(topic)).stream
        except UserError:
            if not deadline.seconds_left:
                raise
        await asyncio.sleep(POLL_SECONDS)


async def _message_bytes_max(admin: AIOKafkaAdminClient, topic: str) -> int:
    try:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    except errors.KafkaError:
        return MESSAGE_BYTES_MAX
    for answer in answers:
        for resource in answer.resources:
            for entry in resource[4]:
                if entry[0] == "max.message.bytes" and entry[1]:
                    return int(entry[1])
    return MESSAGE_BYTES_MAX  # not authorized to describe configurations
