"""`headrace doctor` against a real broker: topics, times, outputs and positions, healthy and with each fault."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition

from connectors.kafka.broker import Broker
from connectors.kafka.cluster import Cluster
from connectors.kafka.groups import move_group_offsets
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sink import state_topic_of
from engine import config_file
from engine.clock import SystemClock
from engine.compose import doctor, position
from engine.compose.checks.finding import Finding, Level
from tests.conftest import ExternalBroker, TopicFactory
from tests.integration.support import SINKS, Project, pipeline

pytestmark = [pytest.mark.broker, pytest.mark.slow]

DAY_MS = 86_400_000


@pytest.fixture
def project(broker: Broker | ExternalBroker, tmp_path: Path) -> Project:
    return Project(tmp_path, broker.bootstrap)


async def examined(project: Project) -> list[Finding]:
    file = project.directory / "headrace.toml"
    return [each async for each in doctor.examine(file, lambda: config_file.load(file), alone=())]


def of(findings: Sequence[Finding], check: str, pipeline: str | None = None) -> list[tuple[Level, str]]:
    """Levels and messages of one check, and of one pipeline."""
    return [
        (each.level, each.message)
        for each in findings
        if each.check == check and (pipeline is None or each.pipeline == pipeline)
    ]


def failed(findings: Sequence[Finding]) -> list[Finding]:
    return [each for each in findings if each.level is Level.FAIL]


async def produce(project: Project, topic: str, timestamps: Sequence[int | None], partition: int = 0) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=project.bootstrap)
    await producer.start()
    try:
        for at in timestamps:
            await producer.send_and_wait(topic, b'{"id": 1}', partition=partition, timestamp_ms=at)
    finally:
        await producer.stop()


def left(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


async def topic_names(project: Project) -> list[str]:
    cluster = Cluster(KafkaSettings(bootstrap=project.bootstrap), SystemClock())
    await cluster.open()
    try:
        return await cluster.topics()
    finally:
        await cluster.close()


async def test_a_healthy_project_passes_before_and_after_its_run(project: Project, topic: TopicFactory) -> None:
    """Exit code 0, nothing is changed, neither in files nor on the cluster, and positions are told."""
    name = await topic(partitions=3)
    replayed = pipeline(name, "parquet", destination_config={"on_failure": "kafka://not-made", "replay": True})
    project.configure({"clicks": replayed, "ducks": pipeline(name, "duckdb", on_failure="failed.jsonl")})
    await project.produce(name, {0: [b'{"id": 1}'] * 4, 2: [b'{"id": 1}']})
    before, names = left(project.directory), await topic_names(project)
    found = await examined(project)
    assert failed(found) == []
    if os.environ.get("HEADRACE_BOOTSTRAP") is None:  # the embedded one's version is known
        assert "Kafka 4.0 or later" in of(found, "broker")[0][1]
    assert left(project.directory) == before
    assert await topic_names(project) == names
    assert len(of(found, "topics", "clicks")) == 1
    assert f"topic {name}: 3 partitions, 1 replicas" in of(found, "topics", "clicks")[0][1]
    assert of(found, "topics", "clicks.retry") == [(Level.OK, "topic clicks.retry is made at the start")]
    assert of(found, "positions", "clicks") == [(Level.OK, "0 of 3 partitions begun, 5 offsets behind")]
    project.configure({"clicks": pipeline(name, "parquet"), "ducks": pipeline(name, "duckdb")})
    assert (await project.run()).code == 0
    await project.produce(name, {0: [b'{"id": 1}'] * 3})
    before = left(project.directory)
    found = await examined(project)
    assert (failed(found), doctor.exit_code(found)) == ([], 0)
    assert left(project.directory) == before
    for each in ("clicks", "ducks"):
        assert of(found, "positions", each) == [(Level.OK, "3 of 3 partitions begun, 3 offsets behind")]
    assert of(found, "leftovers", "clicks")[0][0] is Level.OK


async def test_topics_that_lose_or_mislead_are_named(project: Project, topic: TopicFactory) -> None:
    """One that is missing, compacted, kept for an hour, or from the future; outputs and destinations too."""
    good = await topic(partitions=1)
    compacted = await topic(partitions=1, config={"cleanup.policy": "compact"})
    brief = await topic(partitions=1, config={"retention.ms": "3600000"})
    stateful = f"stateful-{os.getpid()}"
    state = await topic_named(project, state_topic_of(stateful))
    await produce(project, good, [int(time.time() * 1000) + 1_800_000])
    upsert = {**SINKS["duckdb"], "mode": "upsert", "key": ["id"]}
    project.configure(
        {
            "missing": pipeline("no-such-topic", "parquet"),
            "events": pipeline(compacted, {**SINKS["parquet"], "path": "events"}),
            "changes": pipeline(compacted, upsert),
            "brief": pipeline(brief, {**SINKS["parquet"], "path": "brief"}, on_failure=f"kafka://{compacted}"),
            stateful: pipeline(good, {"type": "kafka", "topic": "out"}),
        }
    )
    try:
        found = await examined(project)
    finally:
        await deleted(project, state)
    assert [(each.check, each.pipeline) for each in failed(found)] == [("topics", "missing"), ("outputs", stateful)]
    assert doctor.exit_code(found) == 2
    assert "does not exist" in of(found, "topics", "missing")[0][1]
    assert [level for level, _ in of(found, "topics", "events")] == [Level.WARN]
    assert "is compacted" in of(found, "topics", "events")[0][1]
    assert [level for level, _ in of(found, "topics", "changes")] == [Level.OK]
    assert (Level.WARN, f"topic {brief} keeps records for 1.0 h: a longer standstill loses some") in of(
        found, "topics", "brief"
    )
    assert of(found, "times")[0][0] is Level.WARN
    assert f"{good}-0 offset 0 is from more than 60 s ahead" in of(found, "times")[0][1]
    assert "which is compacted" in of(found, "outputs", "brief")[0][1]
    assert of(found, "positions", "missing") == [(Level.SKIPPED, "its topic is not there")]


async def topic_named(project: Project, name: str) -> str:
    """A topic of just this name, which keeps records by time."""
    admin = AIOKafkaAdminClient(bootstrap_servers=project.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"cleanup.policy": "delete"})])
    finally:
        await admin.close()
    return name


async def deleted(project: Project, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=project.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([name])
    finally:
        await admin.close()


async def test_positions_that_are_lost_late_or_not_ours_are_named(project: Project, topic: TopicFactory) -> None:
    """Records that went before they were read, or soon will; a group ahead of its sink; another's sink."""
    name = await topic(partitions=2, config={"retention.ms": str(DAY_MS), "cleanup.policy": "delete"})
    old, now = int(time.time() * 1000) - DAY_MS * 20 // 24, int(time.time() * 1000)
    await produce(project, name, [old] * 5 + [now])
    await produce(project, name, [now] * 6, partition=1)
    file = project.configure({"clicks": pipeline(name, "parquet")})
    config = config_file.load(file)
    for partition in (0, 1):
        await position.move(config, "clicks", 2, partitions=[partition])
    cluster = Cluster(KafkaSettings(bootstrap=project.bootstrap), SystemClock())
    await cluster.open()
    try:
        await move_group_offsets(cluster, "headrace-clicks", name, {1: 5})
        found = await examined(project)
        late, ahead = of(found, "positions", "clicks")
        assert late[0] is Level.WARN
        assert f"{name}: partitions 0 are behind by more than half of retention.ms = {DAY_MS}" in late[1]
        assert ahead == (Level.WARN, f"{name}-1: the group is at 5, the sink at 2")
        assert failed(found) == []
    finally:
        await cluster.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=project.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(before_offset=4)})
    finally:
        await admin.close()
    found = await examined(project)
    assert of(found, "positions", "clicks")[0] == (
        Level.FAIL,
        f"{name}-0: 2 offsets are lost: the log starts at 4",
    )
    assert doctor.exit_code(found) == 3
    project.configure({"clicks": pipeline(name, "parquet", on_lost_offsets="earliest")})
    assert of(await examined(project), "positions", "clicks")[0][0] is Level.WARN
    project.configure({"others": pipeline(name, "parquet")})
    found = await examined(project)
    assert of(found, "positions", "others")[0][0] is Level.FAIL
    assert "belongs to somebody else" in of(found, "positions", "others")[0][1]
    assert doctor.exit_code(found) == 2


async def test_the_command_prints_one_document(project: Project, topic: TopicFactory) -> None:
    """With --json; its exit code is that of the worst finding, and no password is in it."""
    name = await topic(partitions=1)
    project.configure(
        {"clicks": pipeline(name, "parquet"), "gone": pipeline("hunter22-topic", "duckdb")},
        kafka={"sasl_password": "hunter22"},
    )
    async with project.command("doctor", "headrace.toml", "--json") as running:
        ended = await running.ended()
    document = orjson.loads(ended.out)
    assert (ended.code, document["exit_code"]) == (2, 2), ended.err
    assert {each["level"] for each in document["findings"]} <= {"ok", "warn", "fail", "skipped"}
    (gone,) = [each for each in document["findings"] if each["level"] == "fail"]
    assert (gone["check"], gone["pipeline"]) == ("topics", "gone")
    assert "hunter22" not in ended.out + ended.err
