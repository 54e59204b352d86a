"""Questions to a cluster outside of any consumer group: what a topic is, and where its log begins and ends.

On a connection of its own, so that no answer waits behind a long poll.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts
from aiokafka.protocol.offset import OffsetRequest

from connectors.kafka.metadata import DescribeTopics
from connectors.kafka.refusals import refusal
from connectors.kafka.settings import KafkaSettings
from engine.batch import Stream
from engine.deadline import Deadline
from engine.errors import BrokerUnavailable, ExternalError, UserError
from engine.protocols import Clock

log = logging.getLogger("headrace.kafka")

T = TypeVar("T")

EARLIEST = -2
LATEST = -1

#: Waits before a topic is held to be unknown: for a moment a broker does not know one that was just made.
UNKNOWN_SECONDS = (0.05, 0.1, 0.2, 0.4)

#: Waits between tries: the first, and the longest.
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 2.0

#: The least time that one try gets, however little is left to wait.
TRY_SECONDS_MIN = 5.0

#: What aiokafka says when it has no connection, whatever the reason is.
NO_CONNECTION = (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.StaleMetadata, TimeoutError)

#: How often a wait for a broker says so.
SAY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Topic:
    """A stream and the node that leads each of its partitions."""

    stream: Stream
    leaders: Mapping[int, int]


class Cluster:
    """One client. `open` first, `close` last."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._client: AIOKafkaClient | None = None

    async def open(self) -> None:
        """Connect, retrying for ``broker_wait_seconds_max``.

        Raises BrokerUnavailable, UserError for certificates that cannot be read, and at once ExternalError
        where the broker is there and TLS or SASL do not fit.
        """
        await self._retried(self._bootstrap, "no broker")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def describe(self, topic: str) -> Topic:
        """The topic now. Raises UserError when the cluster does not have it."""
        return await self._retried(lambda: self._describe(topic), f"no answer about topic {topic!r}")

    async def topics(self) -> list[str]:
        """The names of all topics but internal ones."""
        response = await self._retried(lambda: self._ask(None), "no list of topics")
        return sorted(topic[1] for topic in response.topics if not topic[3])

    async def offsets(
        self, topic: str, at: Mapping[int, int], *, read_committed: bool = True
    ) -> dict[int, int | None]:
        """For each partition the first offset at or after a timestamp in ms (or EARLIEST, LATEST); None if none."""
        return await self._retried(
            lambda: self._offsets(topic, at, read_committed), f"no offsets of topic {topic!r}"
        )

    async def call(self, work: Callable[[AIOKafkaClient], Awaitable[T]], what: str) -> T:
        """``work`` on the open client, tried again while the broker stays away; ``what`` begins the complaint."""

        async def once() -> T:
            assert self._client is not None, "the cluster is not open"
            return await work(self._client)

        return await self._retried(once, what)

    async def _bootstrap(self) -> None:
        # Reads files, so not on the event loop.
        client = AIOKafkaClient(**await asyncio.to_thread(self._settings.client_arguments))
        try:
            await client.bootstrap()
        except BaseException:
            await client.close()
            raise
        self._client = client

    async def _send(self, node: int | None, request: object) -> Any:
        assert self._client is not None, "the cluster is not open"
        if node is None:
            node = self._client.get_random_node()
            if node is None:
                raise errors.NodeNotReadyError("no broker is known")
        return await self._client.send(node, request)

    async def _ask(self, topics: list[str] | None) -> Any:
        return await self._send(None, DescribeTopics(topics))

    async def _describe(self, topic: str) -> Topic:
        for wait in (*UNKNOWN_SECONDS, None):
            response = await self._ask([topic])
            error_code, _name, (topic_id,), _internal, partitions, *_ = response.topics[0]
            error = errors.for_code(error_code)
            if error is not errors.UnknownTopicOrPartitionError:
                break
            if wait is None:
                raise await self._unknown(topic)
            await asyncio.sleep(wait)
        if error is errors.InvalidTopicError:
            raise UserError(f"topic {topic!r}: Kafka allows no such name")
        if error is errors.TopicAuthorizationFailedError:
            raise ExternalError(f"topic {topic!r}: not authorized to read it")
        if error is not errors.NoError:
            raise error(topic)
        leaders = {partition[1]: partition[2] for partition in partitions}
        if -1 in leaders.values():
            raise errors.LeaderNotAvailableError(topic)
        cluster_id = response.cluster_id
        return Topic(Stream(cluster_id or "", topic, topic_id.hex, len(leaders)), leaders)

    async def _unknown(self, topic: str) -> UserError:
        names = sorted(entry[1] for entry in (await self._ask(None)).topics if not entry[3])
        if topic in names:
            raise errors.LeaderNotAvailableError(topic)  # it came up in this moment
        near = difflib.get_close_matches(topic, names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:10]) or 'no topics'}"
        return UserError(
            f"topic {topic!r} does not exist on {self._settings.bootstrap}",
            hint=f"{hint}; `headrace produce {topic} FILE` creates it",
        )

    async def _offsets(self, topic: str, at: Mapping[int, int], read_committed: bool) -> dict[int, int | None]:
        leaders = (await self._describe(topic)).leaders
        wanted: dict[int, list[tuple[int, int]]] = {}
        for partition, timestamp in at.items():
            if partition not in leaders:
                raise UserError(f"topic {topic!r} has no partition {partition}; it has {len(leaders)}")
            wanted.setdefault(leaders[partition], []).append((partition, timestamp))
        found: dict[int, int | None] = {}
        for node, partitions in wanted.items():
            response = await self._send(node, OffsetRequest(-1, int(read_committed), [(topic, partitions)]))
            for _topic, answers in response.topics:
                for partition, error_code, _timestamp, offset in answers:
                    error = errors.for_code(error_code)
                    if error is not errors.NoError:
                        raise error(f"{topic}-{partition}")
                    found[partition] = None if offset < 0 else offset
        return found

    def _addresses(self) -> list[tuple[str, int]]:
        """Where the brokers are: as they say, or as the settings say until one has."""
        if self._client is not None:
            return [(broker.host, broker.port) for broker in self._client.cluster.brokers()]
        return [(host, port) for host, port, _ in collect_hosts(self._settings.bootstrap)]

    async def _retried(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """The call's result, tried again with backoff while the broker stays away."""
        deadline = Deadline(self._clock, self._settings.broker_wait_seconds_max)
        wait = RETRY_SECONDS
        said = self._clock.monotonic() - SAY_SECONDS + 1.0
        while True:
            try:
                async with asyncio.timeout(max(deadline.seconds_left, TRY_SECONDS_MIN)):
                    return await call()
            except (errors.KafkaError, OSError, TimeoutError) as error:
                if isinstance(error, NO_CONNECTION):
                    refused = await refusal(self._settings, self._addresses())
                    if refused is not None:
                        raise refused from None
                if not deadline.seconds_left:
                    raise BrokerUnavailable(
                        f"{what} at {self._settings.bootstrap} within "
                        f"{self._settings.broker_wait_seconds_max:g} s: {_text(error)}",
                        hint="start one with `headrace broker start --background`, or name yours with --bootstrap",
                    ) from None
                if self._clock.monotonic() - said >= SAY_SECONDS:
                    said = self._clock.monotonic()
                    log.warning(
                        "%s at %s yet; still trying (%s: %s)",
                        what,
                        self._settings.bootstrap,
                        type(error).__name__,
                        _text(error),
                    )
            await asyncio.sleep(min(wait, deadline.seconds_left))
            wait = min(wait * 2, RETRY_SECONDS_MAX)


def _text(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
