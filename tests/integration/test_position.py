"""`headrace position` against a real broker: what it shows, what it moves, and what it refuses to move."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from connectors.kafka.broker import Broker
from engine.cli.position import parse_target
from engine.errors import UserError
from tests.conftest import ExternalBroker, TopicFactory
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, Ended, Project, pipeline

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SINKS = ("parquet", "duckdb")
NOTES = "notes.txt"

HANDLER = f"""
from pathlib import Path

def handler(event, context):
    with (Path(__file__).parent / "{NOTES}").open("a") as file:
        for record in event["Records"]:
            file.write(record["kinesis"]["sequenceNumber"] + "\\n")
"""


@pytest.fixture
def project(broker: Broker | ExternalBroker, tmp_path: Path) -> Project:
    return Project(tmp_path, broker.bootstrap)


async def _position(project: Project, *arguments: str) -> Ended:
    command, *rest = arguments
    async with project.command("position", command, "headrace.toml", *rest) as running:
        return await running.ended()


async def _set(project: Project, *arguments: str) -> Ended:
    return await _position(project, "set", "--pipeline", "clicks", *arguments)


async def _shards(project: Project) -> list[dict[str, Any]]:
    shown = await _position(project, "show", "--pipeline", "clicks", "--json")
    assert shown.code == 0, shown.err
    [document] = orjson.loads(shown.out)["pipelines"]
    return document["shards"]


async def _positions(project: Project) -> list[int | None]:
    return [shard["position"] for shard in await _shards(project)]


def _values(start: int, end: int) -> list[bytes]:
    return [b'{"id": %d}' % number for number in range(start, end)]


async def _filled(project: Project, topic: TopicFactory, sink: str | None, counts: tuple[int, ...]) -> str:
    """A topic with so many records in each partition, and a pipeline that reads it."""
    name = await topic(partitions=len(counts), name="clicks")
    function = {} if sink is not None else {"function": {"kind": "kinesis", "handler": "notes.handler"}}
    project.write("notes.py", HANDLER)
    project.configure({"clicks": pipeline(name, sink, **function)})
    await project.produce(name, {number: _values(0, count) for number, count in enumerate(counts)})
    return name


@pytest.mark.parametrize("sink", SINKS)
async def test_show_tells_position_log_lag_and_group_offset(
    project: Project, topic: TopicFactory, sink: str
) -> None:
    """Before the first run there is no position, and looking makes no sink; after it all numbers are there."""
    name = await _filled(project, topic, sink, (5, 3))
    before = await _shards(project)
    assert [(shard["position"], shard["lag"], shard["group_offset"]) for shard in before] == [
        (None, None, None)
    ] * 2
    assert [shard["last_stable_offset"] for shard in before] == [5, 3]
    assert not list(project.directory.glob("rows*"))
    assert (await project.run()).code == 0
    await project.produce(name, {0: _values(5, 9)})
    shard, other = await _shards(project)
    assert shard == {
        "partition": 0,
        "position": 5,
        "log_start": 0,
        "last_stable_offset": 9,
        "lag": 4,
        "group_offset": 5,
        "note": None,
    }
    assert (other["position"], other["lag"]) == (3, 0)
    shown = await _position(project, "show")
    assert shown.code == 0
    heading, *lines = shown.out.splitlines()
    assert heading.split("  ")[0] == "pipeline"
    assert [line.split()[:3] for line in lines] == [["clicks", name, "0"], ["clicks", name, "1"]]


async def test_show_works_beside_a_running_pipeline(project: Project, topic: TopicFactory) -> None:
    """A Parquet sink is read while its owner writes; the owner notices nothing."""
    name = await _filled(project, topic, "parquet", (4,))
    async with project.running() as running:
        await running.says("starts at offset 0")
        await _until(lambda: _rows_are(project, 4))
        assert await _positions(project) == [4]
        await project.produce(name, {0: _values(4, 6)})
        await _until(lambda: _rows_are(project, 6))
        assert await _positions(project) == [6]
        assert "another owner" not in running.err
    assert len(project.rows("parquet")) == 6


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not await holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(POLL_SECONDS)


async def _rows_are(project: Project, count: int) -> bool:
    return len(project.rows("parquet")) == count


async def test_a_duckdb_file_in_use_is_named_with_its_holder(project: Project, topic: TopicFactory) -> None:
    """Both commands end with exit code 3 and say which process holds the file; neither waits for it."""
    await _filled(project, topic, "duckdb", (4,))
    async with project.running() as running:
        await running.says("starts at offset 0")
        for arguments in (
            ("show",),
            ("show", "--json"),
            ("set", "--pipeline", "clicks", "--to", "latest", "--skip"),
        ):
            ended = await _position(project, *arguments)
            assert ended.code == 3, ended.err
            assert "rows.duckdb is held by process" in ended.err
            assert str(running.process.pid) in ended.err
            assert "pipeline clicks" in ended.err
            assert "Traceback" not in ended.err
    assert [row for row in project.rows("duckdb") if row[1] > 3] == []


@pytest.mark.parametrize("sink", SINKS)
async def test_a_start_can_be_set_before_the_first_run(project: Project, topic: TopicFactory, sink: str) -> None:
    """The named partition begins at the offset; the others where the configuration says."""
    name = await _filled(project, topic, sink, (6, 3))
    ended = await _set(project, "--to", "4", "--partition", "0")
    assert (ended.code, ended.out) == (0, f"clicks: {name}-0: starts at offset 4\n"), ended.err
    assert await _positions(project) == [4, None]
    assert (await project.run()).code == 0
    assert project.rows(sink) == [(0, 4), (0, 5), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("sink", SINKS)
async def test_a_populated_sink_goes_forward_only_and_only_when_confirmed(
    project: Project, topic: TopicFactory, sink: str
) -> None:
    """A rewind is refused; skipping needs --skip, is committed without rows, and the run goes on from there."""
    name = await _filled(project, topic, sink, (6, 4))
    assert (await project.run()).code == 0
    await project.produce(name, {0: _values(6, 10)})
    rewind = await _set(project, "--to", "earliest", "--skip")
    assert rewind.code == 2
    for text in ("pipeline clicks: no position was moved", f"{name}-0: from offset 6 back to 0", f"{name}-1",
                 "would be written twice"):  # fmt: skip
        assert text in rewind.err
    unconfirmed = await _set(project, "--to", "latest")
    assert unconfirmed.code == 2
    assert f"{name}-0: offsets 6 to 9 would be skipped, 4 of them: --skip confirms" in unconfirmed.err
    assert await _positions(project) == [6, 4]
    skipped = await _set(project, "--to", "8", "--partition", "0", "--skip")
    assert (skipped.code, skipped.out) == (0, f"clicks: {name}-0: from offset 6 to 8, 2 skipped\n"), skipped.err
    again = await _set(project, "--to", "8", "--partition", "0")
    assert (again.code, again.out) == (0, f"clicks: {name}-0: is at offset 8 already\n")
    assert await _positions(project) == [8, 4]
    assert (await project.run()).code == 0
    assert [offset for partition, offset in project.rows(sink) if partition == 0] == [0, 1, 2, 3, 4, 5, 8, 9]


async def test_a_running_owner_is_fenced_and_goes_on_from_there(project: Project, topic: TopicFactory) -> None:
    """What the owner has read and not committed is skipped as asked; what comes after is written once."""
    name = await topic(name="clicks")
    parquet = {"type": "parquet", "path": "rows", "file_age_max_seconds": 3600}
    project.configure({"clicks": pipeline(name, parquet)}, engine={"drain_seconds_max": 10})
    await project.produce(name, {0: _values(0, 5)})
    async with project.running("--verbose") as running:
        await running.says("offsets 0 to ")  # handled, and held back for an hour by the sink
        ended = await _set(project, "--to", "5", "--skip")
        assert (ended.code, ended.out) == (0, f"clicks: {name}-0: from offset 0 to 5, 5 skipped\n"), ended.err
        await project.produce(name, {0: _values(5, 8)})
        running.signal(signal.SIGTERM)
        stopped = await running.ended()
    assert "another owner" in stopped.err
    assert (await project.run()).code == 0
    assert project.rows("parquet") == [(0, 5), (0, 6), (0, 7)]


async def test_offsets_outside_of_the_log_are_refused(project: Project, topic: TopicFactory) -> None:
    """Neither beyond its end nor before its start, which show reports as lost; earliest then skips what is gone."""
    name = await _filled(project, topic, "parquet", (6,))
    assert (await _set(project, "--to", "2")).code == 0
    beyond = await _set(project, "--to", "7", "--skip")
    assert beyond.code == 2
    assert f"{name}-0: offset 7 is not in the log, which has 0 to 6" in beyond.err
    async with _admin(project) as admin:
        await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(before_offset=4)})
    [shard] = await _shards(project)
    assert (shard["log_start"], shard["lag"]) == (4, 2)
    assert shard["note"] == "2 offsets are lost: the log starts at 4"
    assert (await _set(project, "--to", "3", "--skip")).code == 2
    moved = await _set(project, "--to", "earliest", "--skip")
    assert moved.code == 0, moved.err
    assert await _positions(project) == [4]


async def test_a_time_finds_the_first_record_that_is_not_older(project: Project, topic: TopicFactory) -> None:
    """An ISO timestamp is resolved for each partition; past the last record it is the end."""
    name = await topic(partitions=2, name="clicks")
    project.configure({"clicks": pipeline(name, "parquet")})
    noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    async with AIOKafkaProducer(bootstrap_servers=project.bootstrap) as producer:
        for minute in range(5):
            at = int((noon + dt.timedelta(minutes=minute)).timestamp() * 1000)
            await producer.send_and_wait(name, b"{}", partition=0, timestamp_ms=at)
        await producer.send_and_wait(name, b"{}", partition=1, timestamp_ms=int(noon.timestamp() * 1000))
    ended = await _set(project, "--to", "2026-03-01T14:02:30+02:00")
    assert ended.code == 0, ended.err
    assert await _positions(project) == [3, 1]


async def test_without_a_sink_the_group_offset_moves_either_way_while_nobody_runs(
    project: Project, topic: TopicFactory
) -> None:
    """A group with members is refused with exit code 3; an empty one is moved back: records are handled again."""
    name = await _filled(project, topic, None, (5,))
    async with project.running() as running, _admin(project) as admin:
        await _until(lambda: _group_is_at(admin, name, 5))
        assert await _positions(project) == [5]
        refused = await _set(project, "--to", "3")
        assert refused.code == 3, refused.err
        assert "consumer group 'headrace-clicks' has members" in refused.err
        running.signal(signal.SIGTERM)
        assert (await running.ended()).code == 0
    assert await _positions(project) == [5]
    moved = await _set(project, "--to", "3")
    assert (moved.code, moved.out) == (0, f"clicks: {name}-0: from offset 5 back to 3\n"), moved.err
    skipping = await _set(project, "--to", "latest")
    assert "would be skipped" in skipping.err
    assert (await project.run()).code == 0
    lines = (project.directory / NOTES).read_text().split()
    assert len(lines) == 7
    assert len(set(lines)) == 5


@contextlib.asynccontextmanager
async def _admin(project: Project) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=project.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _group_is_at(admin: AIOKafkaAdminClient, topic: str, offset: int) -> bool:
    """Whether the pipeline has committed so far, as the broker knows it."""
    offsets = await admin.list_consumer_group_offsets("headrace-clicks")
    found = offsets.get(TopicPartition(topic, 0))
    return found is not None and found.offset == offset


async def test_what_is_asked_has_to_exist(project: Project, topic: TopicFactory) -> None:
    """Unknown pipelines and partitions, one offset for many partitions, a made-up target: each by name, exit 2."""
    name = await _filled(project, topic, "parquet", (1, 1))
    for arguments, text in (
        (("show", "--pipeline", "click"), "no pipeline 'click'\n  did you mean clicks?"),
        (("set", "--pipeline", "orders", "--to", "latest"), "no pipeline 'orders'"),
        (("set", "--pipeline", "clicks", "--to", "0", "--partition", "2"), f"{name!r} has no partition 2"),
        (("set", "--pipeline", "clicks", "--to", "1"), "has 2 partitions, and the offset 1"),
        (("set", "--pipeline", "clicks", "--to", "newest"), "valid are earliest, latest, an offset"),
    ):
        ended = await _position(project, *arguments)
        assert ended.code == 2, ended.err
        assert text in ended.err
    assert not (project.directory / "rows").exists()


async def test_a_recreated_topic_is_left_to_the_pipeline(project: Project, topic: TopicFactory) -> None:
    """Positions of the old topic mean nothing in the new one: both commands say so, and restart nothing."""
    name = await topic(name="clicks")
    project.configure({"clicks": pipeline(name, "parquet", on_recreated_topic="restart")})
    await project.produce(name, {0: _values(0, 3)})
    assert (await project.run()).code == 0
    async with _admin(project) as admin:
        await admin.delete_topics([name])
        await _recreated(admin, name)
    for arguments in (("show",), ("set", "--pipeline", "clicks", "--to", "earliest")):
        ended = await _position(project, *arguments)
        assert ended.code == 2, ended.err
        assert "was deleted and made anew" in ended.err
        assert "run the pipeline first" in ended.err
    assert [path.name for path in (project.directory / "rows" / ".headrace").glob("sink*.json")] == ["sink.json"]


async def _recreated(admin: AIOKafkaAdminClient, name: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        answer = await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
        if not answer.topic_errors[0][1]:
            return
        assert time.monotonic() < deadline, answer


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("earliest", "earliest"),
        ("latest", "latest"),
        ("0", 0),
        ("12", 12),
        ("2026-03-01T08:00Z", dt.datetime(2026, 3, 1, 8, tzinfo=dt.UTC)),
        ("2026-03-01T10:00:00.5+02:00", dt.datetime(2026, 3, 1, 8, 0, 0, 500_000, tzinfo=dt.UTC)),
    ],
)
def test_targets_are_read(text: str, target: object) -> None:
    """Words, offsets, and times with a zone."""
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "-1", "newest", "2026-03-01", "2026-03-01T08:00", str(2**63), "1.5"])
def test_other_targets_are_refused(text: str) -> None:
    """A time without a zone is refused too: which one it means would be a guess."""
    with pytest.raises(UserError, match="--to is"):
        parse_target(text)
