"""A cluster of three real brokers that die, hand over, throttle and come back, under raw fetching and aiokafka's.

A producer sends throughout. It is idempotent, so offset and number are the same thing: whoever reads must see every
offset once, in order, with the number that it stands for. HEADRACE_CRASH=long runs the longer parts too.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from connectors.kafka.broker import Broker
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import Fetching, KafkaSource
from engine.clock import SystemClock
from engine.errors import BrokerUnavailable, ShardLost
from tests.conformance.source_suite import Owner
from tests.forms import IS_CRASH_LONG
from tests.integration.cluster_requests import ClusterAdmin
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, Project, Running, pipeline

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.crash]

long_form = pytest.mark.skipif(not IS_CRASH_LONG, reason="a longer part, run by HEADRACE_CRASH=long")

#: Each broker leads one partition, and holds all.
SPREAD = {0: [1, 2, 3], 1: [2, 3, 1], 2: [3, 1, 2]}
PARTITIONS = len(SPREAD)

#: Records that go to a partition at a time, and the pause between.
CHUNK = 20
PAUSE_SECONDS = 0.05


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    # Rates are measured over two seconds instead of eleven, so that a quota shows at once.
    rates = {"quota.window.num": "2", "quota.window.size.seconds": "1"}
    broker = Broker(tmp_path_factory.mktemp("cluster"), nodes=3, port=0, extra_properties=rates)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()  # in order takes seconds, and nobody needs it any more


@pytest.fixture
async def admin(brokers: Broker) -> AsyncIterator[ClusterAdmin]:
    """For a cluster of which everybody is there, and has everything."""
    for node in brokers.nodes:
        if not brokers.node_running(node):
            await asyncio.to_thread(brokers.start_node, node)
    async with ClusterAdmin(brokers.bootstrap) as client:
        await client.whole()
        yield client


@pytest.fixture
async def topic(admin: ClusterAdmin) -> str:
    name = f"cluster-{uuid.uuid4().hex[:12]}"
    await admin.make(name, SPREAD)
    return name


class Producing:
    """Sends numbered records to every partition until the block or `finish` ends it; each is in the log once."""

    def __init__(self, bootstrap: str, topic: str, *, value_bytes: int = 0) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._text = "x" * value_bytes
        self._count_min = 0
        self._ending = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        #: How many of each partition were acknowledged.
        self.sent = dict.fromkeys(range(PARTITIONS), 0)

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            enable_idempotence=True,
            metadata_max_age_ms=500,
            request_timeout_ms=120_000,
        )
        await self._producer.start()
        await self._tasks.__aenter__()
        self._running = [self._tasks.create_task(self._send(partition)) for partition in self.sent]
        return self

    async def _send(self, partition: int) -> None:
        while self.sent[partition] < self._count_min or not self._ending.is_set():
            numbers = range(self.sent[partition], self.sent[partition] + CHUNK)
            values = [orjson.dumps({"id": at, "text": self._text}) for at in numbers]
            sent = [await self._producer.send(self._topic, value, partition=partition) for value in values]
            await asyncio.gather(*sent)
            self.sent[partition] += CHUNK
            await asyncio.sleep(PAUSE_SECONDS)

    async def finish(self, *, count_min: int = 0) -> dict[int, int]:
        """The end of each partition, of so many records at least."""
        self._count_min = count_min
        self._ending.set()
        await asyncio.wait(self._running)
        return dict(self.sent)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._producer.stop()


class Reading:
    """A source that reads every partition from its beginning, and holds what comes to what was sent."""

    def __init__(self, bootstrap: str, topic: str, fetching: Fetching, **options: Any) -> None:
        client_id = options.pop("client_id", "headrace")
        settings = KafkaSettings(
            bootstrap,
            client_id=client_id,
            broker_wait_seconds_max=SECONDS_MAX,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=300,
            metadata_age_ms_max=500,
        )
        group = f"reading-{uuid.uuid4().hex[:12]}"
        clock = SystemClock()
        self.source = KafkaSource(settings, topic=topic, group_id=group, clock=clock, fetching=fetching, **options)
        self.positions = dict.fromkeys(range(PARTITIONS), 0)
        self._owner = Owner()
        self._tasks = asyncio.TaskGroup()
        self._reading: list[asyncio.Task[None]] = []

    @property
    def node_requests(self) -> Mapping[int, int]:
        statistics = self.source.fetch_statistics
        assert statistics is not None
        return statistics.node_requests

    async def __aenter__(self) -> Self:
        await self.source.open()
        await self.source.join(self._owner)
        await self._tasks.__aenter__()
        self._reading = [self._tasks.create_task(self._read(partition)) for partition in self.positions]
        return self

    async def _read(self, partition: int) -> None:
        is_sought = False
        while True:
            at = self.positions[partition]
            try:
                if not is_sought:
                    await self._owner.until(lambda: partition in self._owner.owned)
                    await self.source.seek(partition, at)
                    is_sought = True
                batch = await self.source.fetch(partition, records_max=1_000, seconds_max=0.5)
            except (ShardLost, BrokerUnavailable):  # the group looked for a new coordinator, and assigned anew
                is_sought = False
                await asyncio.sleep(POLL_SECONDS)
                continue
            if batch is not None:
                assert batch.start == at, f"[{batch.start}, {batch.end}) of {partition} does not follow {at}"
                assert batch.records.column("offset").to_pylist() == list(range(at, batch.end))
                found = [orjson.loads(value)["id"] for value in batch.records.column("value").to_pylist()]
                assert found == list(range(at, batch.end)), f"partition {partition}"
                self.positions[partition] = batch.end

    async def reaches(self, ends: Mapping[int, int]) -> None:
        """Wait until everything below ``ends`` has come."""
        deadline = time.monotonic() + SECONDS_MAX
        while any(self.positions[partition] < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{self.positions} instead of {dict(ends)}"
            await asyncio.sleep(POLL_SECONDS)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._reading:
            task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self.source.close()


async def go_on(producing: Producing, readings: Sequence[Reading], count: int = 3 * CHUNK) -> None:
    """Wait until so many more records of every partition were sent, and came to every reader."""
    ends = {partition: sent + count for partition, sent in producing.sent.items()}
    await asyncio.gather(*(reading.reaches(ends) for reading in readings))


async def fetches_from(reading: Reading, nodes: set[int], *, share: float = 1.0) -> None:
    """Wait until of thirty requests in a row such a share goes to these brokers, and some to each of them.

    The share of a replica nearby is below one: its leader is asked for it again at the age of metadata.
    """
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        before = reading.node_requests
        while (count := sum(reading.node_requests.values()) - sum(before.values())) < 30:
            assert time.monotonic() < deadline, f"{before}, then {reading.node_requests}"
            await asyncio.sleep(POLL_SECONDS)
        grown = {node: now - before.get(node, 0) for node, now in reading.node_requests.items()}
        if all(grown.get(node) for node in nodes) and sum(grown[node] for node in nodes) >= share * count:
            return


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.name == "headrace.kafka" and line.levelno >= 30]


async def test_a_broker_that_dies(
    tmp_path: Path, brokers: Broker, admin: ClusterAdmin, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL of a leader that is the replica nearby too: readers and a pipeline go on, now and when it is back."""
    project = pipeline_of(tmp_path, brokers, topic)
    async with (
        Producing(brokers.bootstrap, topic) as producing,
        Reading(brokers.bootstrap, topic, "raw") as raw,
        Reading(brokers.bootstrap, topic, "getmany") as getmany,
        Reading(brokers.bootstrap, topic, "raw", rack="rack-2") as near,
        project.running() as running,
    ):
        readings = (raw, getmany, near)
        await go_on(producing, readings)
        await fetches_from(raw, {1, 2, 3})
        await fetches_from(near, {2}, share=0.6)
        await until_rows(project, running, dict.fromkeys(producing.sent, CHUNK))
        caplog.clear()
        await asyncio.to_thread(brokers.kill_node, 2)
        await go_on(producing, readings)
        await fetches_from(near, {1, 3})
        said = warnings_of(caplog)
        assert any(f"no answer from broker 2 ({brokers.node_address(2)}) about {topic}-" in line for line in said)
        assert all("trying again" in line for line in said if "no answer" in line)
        assert len(said) < 40, "a warning is not repeated for every try"
        await asyncio.to_thread(brokers.start_node, 2)
        await fetches_from(near, {2}, share=0.6)
        ends = await producing.finish()
        for reading in readings:
            await reading.reaches(ends)
        await ends_with(project, running, ends, [named(brokers, 2)])
    assert [reading.positions for reading in readings] == [ends] * 3


async def test_leaders_that_change(brokers: Broker, admin: ClusterAdmin, topic: str) -> None:
    """Elections of preferred leaders and partitions that move between brokers, while everybody is well."""
    moves: list[dict[int, list[int]]] = [
        {0: [3, 1, 2], 1: [1, 2, 3]},  # others lead
        {0: [2, 3], 1: [3, 1], 2: [1, 2]},  # the leader leaves
        {0: [1, 3], 1: [2, 3], 2: [3, 2]},
    ]
    async with (
        Producing(brokers.bootstrap, topic) as producing,
        Reading(brokers.bootstrap, topic, "raw") as raw,
        Reading(brokers.bootstrap, topic, "getmany") as getmany,
    ):
        await go_on(producing, (raw, getmany))
        for replicas in moves * (5 if IS_CRASH_LONG else 1):
            await admin.lead(topic, replicas)
            await go_on(producing, (raw, getmany))
        ends = await producing.finish()
        for reading in (raw, getmany):
            await reading.reaches(ends)
            assert reading.positions == ends


async def test_a_quota(brokers: Broker, admin: ClusterAdmin, topic: str) -> None:
    """Brokers that let a client have few bytes a second are asked for no more; all records come, later."""
    client_id, rate = f"slow-{topic}", 500_000
    await admin.limit(client_id, rate)
    async with Producing(brokers.bootstrap, topic, value_bytes=5_000) as producing:
        ends = await producing.finish(count_min=200)
    options = {"client_id": client_id, "fetch_bytes_max": 200_000}
    async with Reading(brokers.bootstrap, topic, "raw", **options) as reading:
        await reading.reaches(ends)
        statistics = reading.source.fetch_statistics
        assert statistics is not None
        assert statistics.throttled_seconds > 0.5
        assert statistics.failures == 0
        # 100 ms is what an idle request waits: who did not wait would have asked on and on.
        assert statistics.requests < 100
        assert reading.positions == ends
    await admin.limit(client_id, None)


@contextlib.asynccontextmanager
async def restarting(brokers: Broker, node: int, *, kill: bool) -> AsyncIterator[None]:
    await asyncio.to_thread(brokers.kill_node if kill else brokers.stop_node, node)
    try:
        yield
    finally:
        await asyncio.to_thread(brokers.start_node, node)


@long_form
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "in order"])
async def test_a_rolling_restart_under_a_pipeline(
    tmp_path: Path, brokers: Broker, admin: ClusterAdmin, topic: str, kill: bool
) -> None:
    """`headrace run` into Parquet while brokers are restarted one after the other: every row is there once."""
    project = pipeline_of(tmp_path, brokers, topic)
    async with (
        Producing(brokers.bootstrap, topic) as producing,
        project.running() as running,
    ):
        await until_rows(project, running, dict.fromkeys(producing.sent, CHUNK))
        for node in brokers.nodes:
            await admin.lead(topic, SPREAD)
            async with restarting(brokers, node, kill=kill):
                ends = {partition: sent + CHUNK for partition, sent in producing.sent.items()}
                await until_rows(project, running, ends)
            await admin.whole()
        ends = await producing.finish()
        # Who goes in order hands its partitions over first, so that there need be nothing to warn of.
        await ends_with(project, running, ends, [named(brokers, node) for node in brokers.nodes if kill])


def pipeline_of(directory: Path, brokers: Broker, topic: str) -> Project:
    project = Project(directory, brokers.bootstrap)
    project.configure({"cluster": pipeline(topic, "parquet", schema={"columns": {"id": "BIGINT"}})})
    return project


def named(brokers: Broker, node: int) -> str:
    """How warnings name a broker that went away."""
    name = re.escape(f"broker {node} ({brokers.node_address(node)})")
    return f"(no answer from {name} about|{name} says)"


async def ends_with(project: Project, running: Running, ends: Mapping[int, int], warnings: Sequence[str]) -> None:
    """Have a pipeline write all there is and end: each row is there once, and it said what was in its way."""
    await until_rows(project, running, ends)
    running.signal(signal.SIGTERM)
    ended = await running.ended()
    assert ended.code == 0, ended.err
    expected = [(partition, at, at) for partition, end in ends.items() for at in range(end)]
    assert project.rows("parquet", "_partition, _offset, id") == expected
    for warning in warnings:
        assert re.search(warning, ended.err), ended.err


async def until_rows(project: Project, running: Running, ends: Mapping[int, int]) -> None:
    """Wait until the rows below ``ends`` can be read."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        rows = await asyncio.to_thread(project.rows, "parquet")
        last = dict(rows)  # sorted, so that the last offset of each partition stays
        if all(last.get(partition, -1) >= end - 1 for partition, end in ends.items()):
            return
        assert time.monotonic() < deadline, f"{last} instead of {dict(ends)}:\n{running.err}"
        await asyncio.sleep(10 * POLL_SECONDS)
