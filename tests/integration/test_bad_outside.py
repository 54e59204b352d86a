"""Faults of the world around a run: topics, brokers, logs that lost or grew something, and sinks that refuse.

Each through `headrace run`: the exit code, what is said, and that nothing is lost or written twice afterwards. Not
here: a disk that refuses at each single step (test_parquet_sink_faults.py, test_duckdb_database.py).
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.errors import for_code

from connectors.kafka.broker import Broker
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, SINKS, Project, pipeline, value_of

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TopicFactory = Callable[..., Awaitable[str]]

COLUMNS = {"columns": {"id": "BIGINT"}}


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Project:
    return Project(tmp_path, broker.bootstrap)


@pytest.fixture
async def admin(broker: Broker) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await client.start()
    yield client
    await client.close()


def ids(*numbers: int) -> list[bytes]:
    return [b'{"id": %d}' % number for number in numbers]


# Topics and brokers


async def test_an_unknown_topic_is_refused_with_the_nearest_name(project: Project, topic: TopicFactory) -> None:
    """The message has the topic, the cluster and the name that was probably meant; nothing is made."""
    name = await topic(name="purchases")
    wrong = name.replace("purchases", "purchasse")
    project.configure({"clicks": pipeline(wrong, "parquet", schema=COLUMNS)})
    ended = await project.run()
    assert ended.code == 2, ended.err
    assert f"topic '{wrong}' does not exist on {project.bootstrap}" in ended.err
    assert f"did you mean '{name}'?" in ended.err
    assert not (project.directory / "rows").exists()


@pytest.mark.parametrize("answers", ["refuses", "is silent"])
async def test_no_broker_is_waited_for_and_then_given_up(tmp_path: Path, answers: str) -> None:
    """Where nobody listens, or somebody who never answers: tries with backoff, then exit 3, in bounded time."""
    listener = socket.create_server(("127.0.0.1", 0))  # the kernel takes connections, and nobody reads them
    port = listener.getsockname()[1]
    if answers == "refuses":
        listener.close()
    project = Project(tmp_path, f"127.0.0.1:{port}")
    project.configure({"clicks": pipeline("clicks", "parquet")}, kafka={"broker_wait_seconds_max": 2})
    started = time.monotonic()
    try:
        ended = await project.run()
    finally:
        listener.close()
    seconds = time.monotonic() - started
    assert ended.code == 3, ended.err
    if answers == "refuses":
        assert f"no broker at 127.0.0.1:{port} yet; still trying" in ended.err
    assert f"no broker at 127.0.0.1:{port} within 2 s" in ended.err
    assert "headrace broker start" in ended.err
    assert 2 <= seconds < 25, "the wait, one try of five seconds, and a start on a loaded machine"


# What the log no longer has


@pytest.mark.parametrize("sink", list(SINKS))
async def test_offsets_below_the_log_start(
    project: Project, topic: TopicFactory, admin: AIOKafkaAdminClient, sink: str
) -> None:
    """By default a stop that names what was lost; with on_lost_offsets = "earliest" it goes on and says so."""
    name = await topic(partitions=2)
    await project.produce(name, {0: ids(0, 1, 2), 1: ids(100)})
    project.configure({"clicks": pipeline(name, sink, schema=COLUMNS)})
    assert (await project.run()).code == 0
    await project.produce(name, {0: ids(3, 4, 5, 6), 1: ids(101)})
    await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(5)})

    stopped = await project.run()
    assert stopped.code == 2, stopped.err
    assert f"clicks: {name}-0: 2 offsets, 3 to 4, are lost: the log starts at 5" in stopped.err
    assert 'set source.on_lost_offsets = "earliest"' in stopped.err
    assert project.rows(sink, "_partition, id") == [(0, 0), (0, 1), (0, 2), (1, 100), (1, 101)]
    assert await project.positions(sink, "clicks", name) == [3, 2]

    project.configure({"clicks": pipeline(name, sink, schema=COLUMNS, on_lost_offsets="earliest")})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert "2 offsets, 3 to 4, are lost: the log starts at 5; going on there" in ended.err
    assert [row[1] for row in project.rows(sink, "_partition, id")] == [0, 1, 2, 5, 6, 100, 101]
    assert await project.positions(sink, "clicks", name) == [7, 2]


async def made_anew(admin: AIOKafkaAdminClient, project: Project, name: str, partitions: int = 1) -> None:
    """Delete a topic and create it again, as soon as the broker lets go of the name."""
    await admin.delete_topics([name])
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        answer = await admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1)])
        code = answer.topic_errors[0][1]
        if code == 0:
            return
        assert time.monotonic() < deadline, for_code(code)
        await asyncio.sleep(POLL_SECONDS)


@pytest.mark.parametrize("sink", list(SINKS))
async def test_a_topic_made_anew_before_the_start(
    project: Project, topic: TopicFactory, admin: AIOKafkaAdminClient, sink: str
) -> None:
    """A stop that says so, even where the new topic has grown past the old position; "restart" reads it whole."""
    name = await topic()
    await project.produce(name, {0: ids(0, 1, 2)})
    project.configure({"clicks": pipeline(name, sink, schema=COLUMNS)})
    assert (await project.run()).code == 0
    old = await project.stream(name)
    await made_anew(admin, project, name)
    await project.produce(name, {0: ids(10, 11, 12, 13, 14)})
    new = await project.stream(name)

    stopped = await project.run()
    assert stopped.code == 2, stopped.err
    assert name in stopped.err
    assert old.topic_id in stopped.err
    assert new.topic_id in stopped.err
    assert 'on_recreated_topic = "restart"' in stopped.err
    assert project.rows(sink, "id") == [(0,), (1,), (2,)]

    project.configure({"clicks": pipeline(name, sink, schema=COLUMNS, on_recreated_topic="restart")})
    for _ in range(2):
        ended = await project.run()
        assert ended.code == 0, ended.err
        assert project.rows(sink, "id") == [(0,), (1,), (2,), (10,), (11,), (12,), (13,), (14,)]


@pytest.mark.parametrize("grows", ["not", "to the same end", "past it"])
async def test_a_topic_made_anew_while_running(
    project: Project, topic: TopicFactory, admin: AIOKafkaAdminClient, grows: str
) -> None:
    """Not one record of the new topic follows those of the old one; the run ends by itself and says why."""
    name = await topic()
    await project.produce(name, {0: ids(0, 1, 2)})
    project.configure({"clicks": pipeline(name, "parquet", schema=COLUMNS)})
    async with project.running() as running:
        await running.says("starts at offset 0")
        await reached(project, "parquet", 3)
        await made_anew(admin, project, name)
        if grows != "not":
            await project.produce(name, {0: ids(*range(10, 13 if grows == "to the same end" else 18))})
        ended = await running.ended()
    assert ended.code == 2, ended.err
    assert f"topic '{name}' was deleted and made anew while it was read" in ended.err
    assert project.rows("parquet", "id") == [(0,), (1,), (2,)]
    project.configure({"clicks": pipeline(name, "parquet", schema=COLUMNS, on_recreated_topic="restart")})
    ended = await project.run()
    assert ended.code == 0, ended.err
    new = {"not": 0, "to the same end": 3, "past it": 8}[grows]
    assert [row[0] for row in project.rows("parquet", "id")] == [0, 1, 2, *range(10, 10 + new)]


async def test_a_topic_deleted_while_running(
    project: Project, topic: TopicFactory, admin: AIOKafkaAdminClient
) -> None:
    """A topic that is gone is said by name and ends the run; it is no silent wait."""
    name = await topic()
    await project.produce(name, {0: ids(0, 1, 2)})
    project.configure({"clicks": pipeline(name, "parquet", schema=COLUMNS)})
    async with project.running() as running:
        await reached(project, "parquet", 3)
        await admin.delete_topics([name])
        ended = await running.ended()
    assert ended.code == 2, ended.err
    assert f"topic '{name}' does not exist" in ended.err
    assert project.rows("parquet", "id") == [(0,), (1,), (2,)]


@pytest.mark.parametrize("start", ["TRIM_HORIZON", "LATEST"])
async def test_partitions_that_are_added_while_running(
    project: Project, topic: TopicFactory, admin: AIOKafkaAdminClient, start: str
) -> None:
    """Records of a new partition arrive from its first offset on, whatever the starting position is."""
    name = await topic(partitions=1)
    await project.produce(name, {0: ids(0)})
    project.configure({"clicks": pipeline(name, "parquet", schema=COLUMNS, starting_position=start)})
    before = [] if start == "LATEST" else [(0, 0, 0)]
    async with project.running() as running:
        await running.says(f"starts at offset {1 if start == 'LATEST' else 0}")
        await admin.create_partitions({name: NewPartitions(3)})
        await grown(project, name, 3)
        await project.produce(name, {0: ids(1), 1: ids(10, 11), 2: ids(20)})
        await reached(project, "parquet", len(before) + 4)
        running.signal(signal.SIGTERM)
        assert (await running.ended()).code == 0
    rows = [*before, (0, 1, 1), (1, 0, 10), (1, 1, 11), (2, 0, 20)]
    assert project.rows("parquet", "_partition, _offset, id") == rows
    assert await project.positions("parquet", "clicks", name) == [2, 2, 1]


async def test_partitions_that_were_added_between_two_runs(
    project: Project, topic: TopicFactory, admin: AIOKafkaAdminClient
) -> None:
    """With LATEST, too, nothing is skipped of a partition that the pipeline's first start did not see."""
    name = await topic(partitions=1)
    await project.produce(name, {0: ids(0)})
    project.configure({"clicks": pipeline(name, "duckdb", schema=COLUMNS, starting_position="LATEST")})
    assert (await project.run()).code == 0
    await admin.create_partitions({name: NewPartitions(2)})
    await grown(project, name, 2)
    await project.produce(name, {0: ids(1), 1: ids(10)})
    assert (await project.run()).code == 0
    assert project.rows("duckdb", "_partition, _offset, id") == [(0, 1, 1), (1, 0, 10)]


async def reached(project: Project, sink: str, rows: int) -> None:
    """Wait for so many rows in a sink that a running process writes."""
    deadline = time.monotonic() + SECONDS_MAX
    while len(project.rows(sink)) < rows:
        assert time.monotonic() < deadline, f"{project.rows(sink)} instead of {rows} rows"
        await asyncio.sleep(POLL_SECONDS)


async def grown(project: Project, name: str, partitions: int) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while (await project.stream(name)).partitions < partitions:
        assert time.monotonic() < deadline
        await asyncio.sleep(POLL_SECONDS)


# Sinks and destinations that refuse


@pytest.mark.parametrize("sink", list(SINKS))
async def test_a_path_that_cannot_be_written(project: Project, topic: TopicFactory, sink: str) -> None:
    """A path below a file: exit 3 with the path, and the consumer group is never joined."""
    name = await topic()
    await project.produce(name, {0: ids(0)})
    project.write("taken", "a file")
    place = {**SINKS[sink], "path": f"taken/{SINKS[sink]['path']}"}
    project.configure({"clicks": pipeline(name, place, schema=COLUMNS)})
    ended = await project.run()
    assert ended.code == 3, ended.err
    assert str(project.directory / "taken" / str(SINKS[sink]["path"])) in ended.err
    assert "not a directory" in ended.err.lower()
    assert "assigned" not in ended.err


async def test_destinations_that_cannot_be_used(project: Project, topic: TopicFactory) -> None:
    """A file below a file is exit 3, the source topic as its own on-failure topic exit 2; both before any work."""
    name = await topic()
    await project.produce(name, {0: ids(0)})
    project.write("taken", "a file")
    project.configure({"clicks": pipeline(name, "parquet", schema=COLUMNS, on_failure="taken/failed.jsonl")})
    ended = await project.run()
    assert ended.code == 3, ended.err
    assert f"on-failure file {project.directory}/taken/failed.jsonl" in ended.err
    project.configure({"clicks": pipeline(name, "parquet", schema=COLUMNS, on_failure=f"kafka://{name}")})
    ended = await project.run()
    assert ended.code == 2, ended.err
    assert f"pipeline clicks: on_failure is the source topic '{name}' itself" in ended.err
    assert project.rows("parquet") == []


async def test_a_destination_that_refuses_loses_no_failed_record(project: Project, topic: TopicFactory) -> None:
    """An on-failure topic that is too small: the record waits in the sink, exit 3, and is delivered later."""
    name = await topic()
    small = await topic(config={"max.message.bytes": "2000"})
    bad = b'{"id": "' + random.Random(1).randbytes(5_000).hex().encode() + b'"}'
    await project.produce(name, {0: [*ids(0), bad, *ids(1)]})
    settings = {"schema": COLUMNS, "on_failure": f"kafka://{small}"}
    project.configure({"clicks": pipeline(name, "duckdb", **settings)}, kafka={"broker_wait_seconds_max": 1})
    ended = await project.run()
    assert ended.code == 3, ended.err
    assert f"failed records wait in the sink: on-failure topic '{small}'" in ended.err
    assert "takes no record that large" in ended.err
    assert project.rows("duckdb", "id") == [(0,), (1,)]
    project.configure({"clicks": pipeline(name, "duckdb", schema=COLUMNS, on_failure="failed.jsonl")})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert [(each["offset"], value_of(each)) for each in project.failures()] == [(1, bad)]
    assert project.rows("duckdb", "id") == [(0,), (1,)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB in memory."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "headrace-test", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("sink", ["parquet", "duckdb"])
async def test_a_full_disk(project: Project, topic: TopicFactory, small_disk: Path, sink: str) -> None:
    """Exit 3 and the path; what was committed is whole, and with more room the next run writes the rest once."""
    name = await topic()
    place = {**SINKS[sink], "path": f"disk/{SINKS[sink]['path']}"}
    project.configure({"clicks": pipeline(name, place, schema={"format": "raw"}, batch_size=50)})
    await project.produce(name, {0: [b"first"]})
    assert (await project.run()).code == 0
    noise = random.Random(1)  # no compression shrinks it
    values = [noise.randbytes(40_000) for _ in range(200)]
    await project.produce(name, {0: values})
    ended = await project.run()
    assert ended.code == 3, ended.err
    assert str(small_disk / str(SINKS[sink]["path"])) in ended.err
    assert "No space left on device" in ended.err or "full" in ended.err
    found = project.rows(sink, "_offset", path=str(place["path"]))
    assert found[0] == (0,)
    assert found == [(n,) for n in range(len(found))]
    assert len(found) < 201

    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    ended = await project.run(seconds_max=20)
    assert ended.code == 0, ended.err
    assert project.rows(sink, "_offset", path=str(place["path"])) == [(n,) for n in range(201)]


async def test_a_duckdb_file_that_another_process_has(project: Project, topic: TopicFactory) -> None:
    """Told not to wait, exit 3 that names the holder; else a standby that says so and goes on when it is free."""
    name = await topic()
    await project.produce(name, {0: ids(0, 1)})
    project.configure({"clicks": pipeline(name, "duckdb", schema=COLUMNS)})
    async with project.running() as holder:
        await holder.says("assigned partitions [0]")
        hasty = {**SINKS["duckdb"], "lock_wait_seconds_max": 0}
        other = pipeline(name, hasty, schema=COLUMNS)
        project.configure({"clicks": other})
        refused = await project.run()
        assert refused.code == 3, refused.err
        assert f"DuckDB file {project.directory}/rows.duckdb is held by process {holder.process.pid}" in refused.err

        project.configure({"clicks": pipeline(name, "duckdb", schema=COLUMNS)})
        async with project.running("--until-caught-up") as standby:
            await standby.says(f"held by process {holder.process.pid}")
            await standby.says("waiting as a standby")
            assert "assigned" not in standby.err, "a standby is no member of the group"
            await project.produce(name, {0: ids(2)})
            holder.signal(signal.SIGTERM)
            assert (await holder.ended()).code == 0
            ended = await standby.ended()
    assert ended.code == 0, ended.err
    assert project.rows("duckdb", "_offset, id") == [(0, 0), (1, 1), (2, 2)]


async def test_a_table_of_another_schema(project: Project, topic: TopicFactory) -> None:
    """Every column that differs is named, the table stays as it was, and nothing is passed."""
    name = await topic()
    await project.produce(name, {0: ids(0)})
    with duckdb.connect(project.directory / "rows.duckdb") as connection:
        connection.execute("CREATE TABLE events (id VARCHAR, price DOUBLE)")
        connection.execute("INSERT INTO events VALUES ('a', 1)")
    project.configure({"clicks": pipeline(name, "duckdb", schema=COLUMNS)})
    ended = await project.run()
    assert ended.code == 2, ended.err
    for said in ("events", "id", "VARCHAR", "BIGINT", "price", "_offset", "_rest"):
        assert said in ended.err, f"no {said!r} in\n{ended.err}"
    assert project.rows("duckdb", "id, price") == [("a", 1.0)]
    with duckdb.connect(project.directory / "rows.duckdb") as connection:
        connection.execute("DROP TABLE events")
    assert (await project.run()).code == 0
    assert project.rows("duckdb", "_offset, id") == [(0, 0)]


@pytest.mark.parametrize("sink", list(SINKS))
async def test_columns_that_changed_between_two_runs(project: Project, topic: TopicFactory, sink: str) -> None:
    """Each column that differs from the sink's rows is named; no record goes to on_failure for it, or is lost."""
    name = await topic()
    await project.produce(name, {0: ids(0)})
    first = pipeline(name, sink, schema=COLUMNS, on_failure="failed.jsonl")
    project.configure({"clicks": first})
    assert (await project.run()).code == 0
    await project.produce(name, {0: ids(1)})
    for schema, faults in (
        (
            {"columns": {"id": "VARCHAR", "page": "VARCHAR"}},
            ("id: the sink has int64, now it is string", "page: the sink has no such column, now it is string"),
        ),
        ({**COLUMNS, "rest": False}, ("_rest: the sink has string, now it is gone",)),
        ({**COLUMNS, "trace": False}, ("_offset: the sink has int64, now it is gone",)),
        ({"format": "text"}, ("id: the sink has int64, now it is gone", "line: the sink has no such column")),
    ):
        project.configure({"clicks": pipeline(name, sink, schema=schema, on_failure="failed.jsonl")})
        ended = await project.run()
        assert ended.code == 2, ended.err
        assert "the sink holds rows of other columns than are configured now" in ended.err
        assert all(fault in ended.err for fault in faults), ended.err
    assert project.failures() == []
    project.configure({"clicks": first})
    assert (await project.run()).code == 0
    assert project.rows(sink, "_offset, id") == [(0, 0), (1, 1)]


@pytest.mark.parametrize("sink", list(SINKS))
async def test_a_sink_of_another_pipeline_or_topic(project: Project, topic: TopicFactory, sink: str) -> None:
    """The sink's owner is named, and its rows and position stay."""
    name, other = await topic(), await topic()
    await project.produce(name, {0: ids(0)})
    await project.produce(other, {0: ids(7)})
    project.configure({"clicks": pipeline(name, sink, schema=COLUMNS)})
    assert (await project.run()).code == 0
    for pipelines, said in (
        ({"orders": pipeline(name, sink, schema=COLUMNS)}, ("clicks", "orders")),
        ({"clicks": pipeline(other, sink, schema=COLUMNS)}, (name, other)),
    ):
        project.configure(pipelines)
        ended = await project.run()
        assert ended.code == 2, ended.err
        assert all(re.search(rf"\b{re.escape(word)}\b", ended.err) for word in said), ended.err
    assert project.rows(sink, "_offset, id") == [(0, 0)]
    assert await project.positions(sink, "clicks", name) == [1]
