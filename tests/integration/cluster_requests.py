"""What a cluster is told that aiokafka's admin client cannot say: who leads, which brokers hold, how fast to send.

The layouts follow Kafka's ElectLeadersRequest.json, AlterPartitionReassignmentsRequest.json and
AlterClientQuotasRequest.json. Any broker hands these on to the controller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Float64,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

from connectors.kafka.metadata import DescribeTopics

TIMEOUT_MS = 30_000
SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
PREFERRED = 0


class ElectLeadersResponse(Response):
    API_KEY = 43
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("error_code", Int16), ("error_message", String("utf-8"))),
                ),
            ),
        ),
    )


class ElectLeadersRequest(RequestStruct):
    API_KEY = 43
    API_VERSION = 1
    RESPONSE_TYPE = ElectLeadersResponse
    SCHEMA = Schema(
        ("election_type", Int8),
        ("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class ElectPreferred(Request[ElectLeadersRequest]):
    """Have the first of a partition's replicas lead it."""

    API_KEY = 43

    def __init__(self, topic: str, partitions: Sequence[int]) -> None:
        self._topics = [(topic, list(partitions))]

    def build(self, request_struct_class: type[ElectLeadersRequest]) -> ElectLeadersRequest:
        return request_struct_class(PREFERRED, self._topics, TIMEOUT_MS)


class ReassignResponse(Response):
    API_KEY = 45
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class ReassignRequest(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 45
    API_VERSION = 0
    RESPONSE_TYPE = ReassignResponse
    SCHEMA = Schema(
        ("timeout_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(("partition", Int32), ("replicas", CompactArray(Int32)), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class Reassign(Request[ReassignRequest]):
    """Have other brokers hold a topic's partitions, the first of each before all others."""

    API_KEY = 45

    def __init__(self, topic: str, replicas: Mapping[int, Sequence[int]]) -> None:
        self._topics = [(topic, [(partition, list(nodes), {}) for partition, nodes in replicas.items()], {})]

    def build(self, request_struct_class: type[ReassignRequest]) -> ReassignRequest:
        return request_struct_class(TIMEOUT_MS, self._topics, {})


_ENTITY = Array(("type", String("utf-8")), ("name", String("utf-8")))


class QuotasResponse(Response):
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("entries", Array(("error_code", Int16), ("error_message", String("utf-8")), ("entity", _ENTITY))),
    )


class QuotasRequest(RequestStruct):
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = QuotasResponse
    SCHEMA = Schema(
        (
            "entries",
            Array(
                ("entity", _ENTITY),
                ("operations", Array(("key", String("utf-8")), ("value", Float64), ("remove", Boolean))),
            ),
        ),
        ("validate_only", Boolean),
    )


class LimitReading(Request[QuotasRequest]):
    """Have every broker send no more than so many bytes a second to clients of an id; None takes the limit away."""

    API_KEY = 49

    def __init__(self, client_id: str, bytes_per_second: float | None) -> None:
        operation = ("consumer_byte_rate", bytes_per_second or 0.0, bytes_per_second is None)
        self._entries = [([("client-id", client_id)], [operation])]

    def build(self, request_struct_class: type[QuotasRequest]) -> QuotasRequest:
        return request_struct_class(self._entries, False)


class ClusterAdmin:
    """A client for these, an async context manager; each method returns when all brokers have followed."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._client = AIOKafkaClient(bootstrap_servers=bootstrap, metadata_max_age_ms=500)

    async def __aenter__(self) -> Self:
        await self._client.bootstrap()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, request: Any) -> Any:
        """The first answer of any broker that is there."""
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            node = self._client.get_random_node()
            try:
                return await self._client.send(node, request)
            except (KafkaError, OSError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_SECONDS)

    async def make(self, topic: str, replicas: Mapping[int, Sequence[int]]) -> None:
        """A topic whose partitions lie on these brokers, led by the first of each."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            assignment = {partition: list(nodes) for partition, nodes in replicas.items()}
            response = await admin.create_topics([NewTopic(topic, -1, -1, replica_assignments=assignment)])
        finally:
            await admin.close()
        for _, code, *message in response.topic_errors:
            if code:
                raise for_code(code)(*message)
        await self.until(topic, lambda partitions: all(p[5] == list(replicas[p[1]]) for p in partitions))

    async def lead(self, topic: str, replicas: Mapping[int, Sequence[int]]) -> None:
        """Move partitions to these brokers, and have the first of each lead."""
        response = await self.ask(Reassign(topic, replicas))
        codes = [response.error_code, *(p[1] for each in response.topics for p in each[1])]
        assert not any(codes), response
        wanted = {partition: sorted(nodes) for partition, nodes in replicas.items()}
        await self.until(
            topic,
            lambda partitions: all(
                sorted(p[4]) == sorted(p[5]) == wanted[p[1]] for p in partitions if p[1] in wanted
            ),
        )
        response = await self.ask(ElectPreferred(topic, sorted(replicas)))
        await self.until(
            topic,
            lambda partitions: all(p[2] == replicas[p[1]][0] for p in partitions if p[1] in replicas),
        )

    async def limit(self, client_id: str, bytes_per_second: float | None) -> None:
        response = await self.ask(LimitReading(client_id, bytes_per_second))
        assert [entry[0] for entry in response.entries] == [0], response

    async def until(self, topic: str | None, holds: Callable[[list[Any]], bool]) -> None:
        """Wait until every broker says so of a topic's partitions, or of those of all topics.

        A partition is ``(error, partition, leader, leader epoch, replicas, those in sync, ...)``.
        """
        deadline = time.monotonic() + SECONDS_MAX
        for node in sorted(broker.nodeId for broker in self._client.cluster.brokers()):
            while True:
                try:
                    response = await self._client.send(node, DescribeTopics(None if topic is None else [topic]))
                except (KafkaError, OSError) as error:
                    found = repr(error)
                else:
                    partitions = [partition for each in response.topics for partition in each[4]]
                    if (partitions or topic is None) and holds(partitions):
                        break
                    found = repr(partitions)
                assert time.monotonic() < deadline, f"broker {node} has {found}"
                await asyncio.sleep(POLL_SECONDS)

    async def whole(self) -> None:
        """Wait until every replica of everything is in sync."""
        await self.until(None, lambda partitions: all(len(p[4]) == len(p[5]) for p in partitions))
