"""The source suite over a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from connectors.kafka.broker import Broker
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import Fetching, KafkaSource
from engine.clock import SystemClock
from tests.conformance.source_suite import PARTITIONS, SECONDS_MAX, SourceSuite, World
from tests.conftest import TopicFactory

MESSAGE_BYTES_MAX = 6 * 1024 * 1024


class Ending:
    """An open transaction of the suite."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def commit(self) -> None:
        await self._producer.commit_transaction()

    async def abort(self) -> None:
        await self._producer.abort_transaction()


class KafkaWorld:
    poll_interval_seconds_max = 1.5
    session_seconds = 3.0

    def __init__(self, bootstrap: str, topic: str, fetching: Fetching, stack: contextlib.AsyncExitStack) -> None:
        self.topic = topic
        self._fetching = fetching
        self._bootstrap = bootstrap
        self._stack = stack
        self._run = uuid.uuid4().hex[:12]
        self._producer: AIOKafkaProducer | None = None

    def source(self, *, group: str = "g", topic: str | None = None, reachable: bool = True) -> KafkaSource:
        settings = KafkaSettings(
            self._bootstrap if reachable else f"127.0.0.1:{_closed_port()}",
            broker_wait_seconds_max=SECONDS_MAX if reachable else 1.0,
            session_timeout_ms=int(self.session_seconds * 1000),
            heartbeat_interval_ms=300,
            metadata_age_ms_max=500,
        )
        source = KafkaSource(
            settings,
            topic=topic or self.topic,
            group_id=f"{group}-{self._run}",
            clock=SystemClock(),
            drain_seconds_max=SECONDS_MAX,
            poll_interval_seconds_max=self.poll_interval_seconds_max,
            fetching=self._fetching,
        )
        self._stack.push_async_callback(source.close)
        return source

    async def append(
        self, partition: int, values: Sequence[bytes | None], *, key: bytes | None = None, timestamp_ms: int = 1_000
    ) -> None:
        if self._producer is None:
            self._producer = await self._started()
        sent = [
            await self._producer.send(self.topic, value, key=key, partition=partition, timestamp_ms=timestamp_ms)
            for value in values
        ]
        await asyncio.gather(*sent)

    async def append_in_transaction(self, partition: int, values: Sequence[bytes], *, commit: bool) -> None:
        transaction = await self.begin(partition, values)
        await (transaction.commit() if commit else transaction.abort())

    async def begin(self, partition: int, values: Sequence[bytes]) -> Ending:
        producer = await self._started(transactional_id=uuid.uuid4().hex)
        await producer.begin_transaction()
        for value in values:
            await producer.send_and_wait(self.topic, value, partition=partition)
        return Ending(producer)

    async def truncate(self, partition: int, start: int) -> None:
        async with self._admin() as admin:
            await admin.delete_records({TopicPartition(self.topic, partition): RecordsToDelete(start)})

    async def recreate(self) -> None:
        async with self._admin() as admin:
            await admin.delete_topics([self.topic])
            deadline = time.monotonic() + SECONDS_MAX
            while True:
                response = await admin.create_topics([NewTopic(self.topic, PARTITIONS, 1)])
                code = response.topic_errors[0][1]
                if not code:
                    break
                # The old one goes in the background.
                assert errors.for_code(code) is errors.TopicAlreadyExistsError
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

    async def grow(self, partitions: int) -> None:
        async with self._admin() as admin:
            await admin.create_partitions({self.topic: NewPartitions(partitions)})

    async def _started(self, **options: str) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, max_request_size=MESSAGE_BYTES_MAX, linger_ms=0, **options
        )
        await producer.start()
        self._stack.push_async_callback(producer.stop)
        return producer

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def _closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.broker
@pytest.mark.slow
class TestKafkaSource(SourceSuite):
    @pytest.fixture(params=["getmany", "raw"])
    async def world(
        self, broker: Broker, topic: TopicFactory, request: pytest.FixtureRequest
    ) -> AsyncIterator[World]:
        name = await topic(partitions=PARTITIONS, config={"max.message.bytes": str(MESSAGE_BYTES_MAX)})
        async with contextlib.AsyncExitStack() as stack:
            yield KafkaWorld(broker.bootstrap, name, request.param, stack)
