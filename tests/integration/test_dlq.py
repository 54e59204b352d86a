"""`headrace dlq` against a real broker: each failure once with its cause, and each sent again once."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from typer.testing import CliRunner

from connectors.file_destination import FileDestination
from connectors.kafka import reading
from connectors.kafka.broker import Broker
from connectors.kafka.cluster import LATEST, Cluster
from connectors.kafka.destination import KafkaDestination
from connectors.kafka.reading import Message
from connectors.kafka.replay import Again, Replayer, identity_of, replayed
from connectors.kafka.settings import KafkaSettings
from engine.batch import Stream
from engine.cli.dlq import app
from engine.clock import SystemClock
from engine.compose.retry import ensure_retry_topic
from engine.errors import BrokerUnavailable, HeadraceError, UserError
from engine.protocols import FailedRecord
from functions.failures import Documents
from tests.conftest import ExternalBroker, TopicFactory
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, Ended, Project, pipeline

pytestmark = [pytest.mark.broker, pytest.mark.slow]

#: Fails for values with "bad" in them until there is a file "mended" beside it.
HANDLER = """
from pathlib import Path

HERE = Path(__file__).parent

def handler(rows, context):
    for row in rows:
        if "bad" in row["kind"] and not (HERE / "mended").exists():
            raise KeyError(row["kind"])
    return rows
"""

COMMAND = "from engine.cli.dlq import app; app()"


@pytest.fixture
async def project(broker: Broker | ExternalBroker, tmp_path: Path) -> AsyncIterator[Project]:
    """A project whose pipeline is named anew each time, so that its retry topic is; the topics go with it."""
    yield Project(tmp_path, broker.bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    made = [name for name in await admin.list_topics() if f"p{tmp_path.name}-" in name]
    await admin.delete_topics(made)
    await admin.close()


def named(project: Project) -> str:
    return f"p{project.directory.name}-{uuid.uuid4().hex[:8]}"


async def run_dlq(project: Project, command: str, *arguments: str) -> Ended:
    """The command in this process, with the exit code that `headrace` gives it."""
    file = str(project.directory / "headrace.toml")
    result = await asyncio.to_thread(CliRunner().invoke, app, [command, file, *arguments])
    if isinstance(result.exception, HeadraceError):
        return Ended(result.exception.domain, result.stdout, f"{result.stderr}{result.exception}")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


@asynccontextmanager
async def started(project: Project, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, arguments[0], "headrace.toml", *arguments[1:]),
        cwd=project.directory,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def listed(project: Project, *arguments: str) -> dict[str, Any]:
    ended = await run_dlq(project, "list", "--json", *arguments)
    assert ended.code == 0, ended.err
    [found] = orjson.loads(ended.out)["pipelines"]
    assert isinstance(found, dict)
    return found


@asynccontextmanager
async def clustered(bootstrap: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(KafkaSettings(bootstrap, broker_wait_seconds_max=20.0), SystemClock())
    await cluster.open()
    try:
        yield cluster
    finally:
        await cluster.close()


async def messages(bootstrap: str, topic: str) -> list[Message]:
    """Every committed record of a topic."""
    async with clustered(bootstrap) as cluster:
        chunks = [chunk async for chunk in reading.read(cluster, SystemClock(), topic, settle_seconds_max=20.0)]
    return [message for chunk in chunks for message in chunk.messages]


def value(number: int, kind: str) -> bytes:
    return orjson.dumps({"id": number, "kind": kind})


async def send(project: Project, topic: str, numbers: range) -> None:
    """Every third one is bad; each with a key, a header and a timestamp of its own."""
    producer = AIOKafkaProducer(bootstrap_servers=project.bootstrap)
    await producer.start()
    try:
        for number in numbers:
            await producer.send(
                topic,
                value(number, "bad" if number % 3 == 0 else "good"),
                key=f"k{number}".encode(),
                partition=number % 2,
                timestamp_ms=1_600_000_000_000 + number,
                headers=[("number", str(number).encode()), ("null", None)],
            )
    finally:
        await producer.stop()


def configure(
    project: Project, name: str, topic: str, target: str, sink: str | dict[str, object], *, replay: bool = True
) -> None:
    project.write("handlers.py", HANDLER)
    function = {"kind": "rows", "handler": "handlers.handler"}
    made = pipeline(topic, sink, function=function, batch_size=1, maximum_retry_attempts=1)
    made["schema"] = {"columns": {"id": "BIGINT", "kind": "VARCHAR"}}
    made["source"]["destination_config"] = {"on_failure": target, "replay": replay}  # type: ignore[index]
    project.configure({name: made})


@pytest.mark.parametrize(("to", "sink"), [("file", "parquet"), ("topic", "duckdb")])
async def test_what_failed_is_listed_once_and_sent_again_once(
    project: Project, topic: TopicFactory, to: str, sink: str
) -> None:
    """From a failing handler over doubled deliveries and replays to the mended one: nothing twice, nothing lost."""
    source, failed, name = await topic(partitions=2), await topic(name="failed"), named(project)
    target = "failed.jsonl" if to == "file" else f"kafka://{failed}"
    configure(project, name, source, target, sink)
    await send(project, source, range(12))
    ended = await project.run()
    assert ended.code == 0, ended.err
    await doubled(project, failed if to == "topic" else None)

    found = await listed(project)
    assert (found["records"], found["second_deliveries"], found["waiting_in_sink"]) == (4, 4, 0)
    assert found["error_types"] == {"KeyError": 4}
    failures = {(each["partition"], each["offset"]) for each in found["failures"]}
    assert failures == {(0, 0), (0, 3), (1, 1), (1, 4)}
    assert {(each["attempts"], each["replayed"]) for each in found["failures"]} == {(2, False)}
    plain = await run_dlq(project, "list", "--full", "--limit", "1")
    assert "4 failed records" in plain.out
    assert "KeyError" in plain.out
    assert '"kind":"bad"' in plain.out

    dry = await run_dlq(project, "replay", "--pipeline", name, "--dry-run")
    assert "4 records would be sent" in dry.out, dry.err
    first = await run_dlq(project, "replay", "--pipeline", name)
    assert (first.code, f"4 records sent to {name}.retry" in first.out) == (0, True), first.err
    second = await run_dlq(project, "replay", "--pipeline", name)
    assert "0 records sent" in second.out, second.err
    assert "sent before: 4" in second.out
    sent = await messages(project.bootstrap, f"{name}.retry")
    assert sorted(message.key or b"" for message in sent) == [b"k0", b"k3", b"k6", b"k9"]
    for message in sent:
        number = int((message.key or b"")[1:])
        assert message.value == value(number, "bad")
        assert message.timestamp == 1_600_000_000_000 + number
        assert message.headers[:2] == (("number", str(number).encode()), ("null", None))
        assert message.partition == number % 2
    assert (await listed(project))["replayed"] == 4

    assert (await project.run()).code == 0  # still not mended: they fail again, as others
    found = await listed(project)
    assert (found["records"], found["replayed"]) == (8, 4)
    again = await listed(project, "--pipeline", f"{name}.retry")
    assert again["records"] == 4
    assert {each["topic"] for each in again["failures"]} == {f"{name}.retry"}

    third = await run_dlq(project, "replay", "--pipeline", name)
    assert "4 records sent" in third.out, third.err
    project.write("mended", "")
    assert (await project.run()).code == 0
    sent = await messages(project.bootstrap, f"{name}.retry")
    assert len(sent) == 8
    assert {len(message.headers) for message in sent} == {8}  # a replay's headers do not pile up
    if sink == "parquet":
        ids = project.rows("parquet", "id")
    else:
        ids = project.rows("duckdb", "id")
        with duckdb.connect(project.directory / "rows.duckdb", read_only=True) as connection:
            ids += connection.execute("SELECT id FROM events_retry").fetchall()
    assert sorted(ids) == [(number,) for number in range(12)]


async def doubled(project: Project, topic: str | None) -> None:
    """Every delivery once more, as after a crash before it was marked."""
    if topic is None:
        path = project.directory / "failed.jsonl"
        path.write_bytes(path.read_bytes() * 2)
        return
    producer = AIOKafkaProducer(bootstrap_servers=project.bootstrap)
    await producer.start()
    try:
        for message in await messages(project.bootstrap, topic):
            await producer.send_and_wait(topic, message.value, key=message.key)
    finally:
        await producer.stop()


async def fill(project: Project, name: str, stream: Stream, count: int) -> None:
    """An on-failure file of so many records."""
    target = FileDestination(
        project.directory / "failed.jsonl",
        pipeline=name,
        stream_of=lambda: stream,
        document=Documents(name, "kinesis", "arn"),
    )
    records = [
        FailedRecord(
            at % 2, at, 1_600_000_000_000, b"k", b"v" * 500, (), "why", "KeyError" if at % 3 else "Other", 1
        )
        for at in range(count)
    ]
    await target.deliver(records)


async def test_a_replay_that_is_killed_sends_the_rest_the_next_time(project: Project, topic: TopicFactory) -> None:
    """Killed twice in the middle of its work, and run to its end: each record is there once."""
    source, name, count = await topic(partitions=2), named(project), 8_000
    configure(project, name, source, "failed.jsonl", "parquet")
    stream = await project.stream(source)
    await fill(project, name, stream, count)
    await ensure_retry_topic(KafkaSettings(project.bootstrap), SystemClock(), name, stream)
    kills = 0
    async with clustered(project.bootstrap) as cluster:
        for beyond in (0, 2_500):
            async with started(project, "replay", "--pipeline", name) as process:
                deadline = time.monotonic() + SECONDS_MAX
                while process.returncode is None and await ends(cluster, f"{name}.retry") <= beyond:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(POLL_SECONDS / 10)
                kills += process.returncode is None
                process.send_signal(signal.SIGKILL)
                await process.wait()
    assert kills == 2
    done = await run_dlq(project, "replay", "--pipeline", name)
    assert done.code == 0, done.err
    assert "sent before: " in done.out
    sent = [identity_of(message) for message in await messages(project.bootstrap, f"{name}.retry")]
    assert len(sent) == len(set(sent)) == count


async def ends(cluster: Cluster, topic: str) -> int:
    """How many records there are in the topic, committed or not."""
    found = await cluster.offsets(topic, {0: LATEST, 1: LATEST}, read_committed=False)
    return sum(end or 0 for end in found.values())


async def test_a_selection_is_all_that_is_sent(project: Project, topic: TopicFactory) -> None:
    """By error type, by partition and offset, by the time of the report."""
    source, name = await topic(partitions=2), named(project)
    configure(project, name, source, "failed.jsonl", "parquet")
    await fill(project, name, await project.stream(source), 9)

    async def sent(*arguments: str) -> str:
        ended = await run_dlq(project, "replay", "--pipeline", name, *arguments)
        assert ended.code == 0, ended.err
        return ended.out.split(" record")[0].rpartition(": ")[2]

    assert await sent("--since", "2999-01-01T00:00Z") == "0"
    assert await sent("--partition", "1", "--offset", "5") == "1"
    assert await sent("--partition", "1", "--offset", "5") == "0"
    assert await sent("--error-type", "Other") == "3"
    assert await sent("--since", "2020-01-01T00:00Z", "--dry-run") == "5"
    assert await sent() == "5"
    assert (await listed(project))["replayed"] == 9


async def test_a_second_replay_takes_the_place_of_the_first(
    broker: Broker | ExternalBroker, topic: TopicFactory
) -> None:
    """The first one can commit nothing any more, and says why it ended."""
    retry = await topic(partitions=2)
    settings = KafkaSettings(broker.bootstrap, broker_wait_seconds_max=20.0)
    records = [Again(("p", "c", "s", "i", at % 2), at, -1, None, None, ()) for at in range(4)]
    first, second = (Replayer(settings, retry, retry, 2) for _ in range(2))
    try:
        await first.start()
        await first.send(records[:2])
        await second.start()
        with pytest.raises(UserError, match="another replay"):
            await first.send(records[2:3])
        async with clustered(broker.bootstrap) as cluster:
            seen, strangers = await replayed(cluster, SystemClock(), retry, settle_seconds_max=20.0)
            assert (len(seen), strangers) == (2, 0)
            await second.send(records[2:])
            assert len((await replayed(cluster, SystemClock(), retry))[0]) == 4
        assert {(each.timestamp, each.key, each.value) for each in await messages(broker.bootstrap, retry)} == {
            (-1, None, None)
        }
    finally:
        await first.close()
        await second.close()


async def test_a_transaction_that_does_not_end_is_waited_for_and_named(
    broker: Broker | ExternalBroker, topic: TopicFactory
) -> None:
    """Without waiting, the topic is read up to where the transaction begins."""
    name = await topic()
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=name)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(name, b"committed")
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"open")
        async with clustered(broker.bootstrap) as cluster:
            with pytest.raises(BrokerUnavailable, match="does not end"):
                await replayed(cluster, SystemClock(), name, settle_seconds_max=0.1)
            assert (await replayed(cluster, SystemClock(), name))[1] == 1
        await producer.abort_transaction()
        assert [message.value for message in await messages(broker.bootstrap, name)] == [b"committed"]
    finally:
        await producer.stop()


async def test_what_cannot_be_done_is_said(project: Project, topic: TopicFactory) -> None:
    """No destination, no such pipeline, no replay, half an offset, no zone: exit code 2, and what to do."""
    source, name = await topic(), named(project)
    configure(project, name, source, "failed.jsonl", "parquet")
    for arguments, said in (
        (("list", "--pipeline", name[:-1]), f"did you mean {name}?"),
        (("replay", "--pipeline", "else"), "has no pipeline 'else'"),
        (("replay", "--pipeline", name, "--offset", "1"), "goes with --partition"),
        (("replay", "--pipeline", name, "--since", "2026-01-01"), "without a zone"),
        (("replay", "--pipeline", name, "--since", "soon"), "valid is a time"),
    ):
        ended = await run_dlq(project, *arguments)
        assert ended.code == 2, ended
        assert said in ended.err
    made = pipeline(source, "parquet", on_failure="failed.jsonl")
    project.configure({name: made})
    ended = await run_dlq(project, "replay", "--pipeline", name)
    assert (ended.code, "replay = true" in ended.err) == (2, True)
    assert "0 failed records" in (await run_dlq(project, "list")).out
    project.configure({name: pipeline(source, "parquet")})
    for arguments in (("list",), ("list", "--pipeline", name), ("replay", "--pipeline", name)):
        ended = await run_dlq(project, *arguments)
        assert (ended.code, "on_failure" in ended.err) == (2, True)


@pytest.mark.parametrize("sink", ["parquet", "duckdb", "kafka"])
async def test_what_waits_in_the_sink_is_shown(project: Project, topic: TopicFactory, sink: str) -> None:
    """While the destination refuses, failures are committed with the sink, and listed from there."""
    source, name = await topic(partitions=2), named(project)
    output = {"type": "kafka", "topic": f"{name}-output"}
    configure(project, name, source, "failed.jsonl", output if sink == "kafka" else sink, replay=False)
    failed = project.directory / "failed.jsonl"
    async with project.running() as running:
        await running.says("starts at offset", times=2)
        failed.unlink()
        failed.mkdir()  # cannot be written
        await send(project, source, range(6))
        await running.says("failed records wait in the sink", times=2)
        running.signal(signal.SIGKILL)
        await running.ended()
    failed.rmdir()
    found = await listed(project)
    assert found["waiting_in_sink"] == found["records"] > 0
    assert {each["waits_in_sink"] for each in found["failures"]} == {True}


async def test_a_foreign_line_is_counted_and_passed_by(project: Project, topic: TopicFactory) -> None:
    """A destination may hold what is no failed record, and a last line that was torn."""
    source, name = await topic(partitions=2), named(project)
    configure(project, name, source, "failed.jsonl", "parquet")
    await fill(project, name, await project.stream(source), 2)
    with (project.directory / "failed.jsonl").open("ab") as file:
        file.write(b'{"note": 1}\nno JSON\n{"headrace": {')
    found = await listed(project)
    assert (found["records"], found["unreadable"]) == (2, 2)


async def test_a_topic_of_other_pipelines_is_shared(
    broker: Broker | ExternalBroker, project: Project, topic: TopicFactory
) -> None:
    """Only a pipeline's own failures are listed and sent again."""
    source, failed, name = await topic(partitions=2), await topic(name="failed", partitions=3), named(project)
    configure(project, name, source, f"kafka://{failed}", "parquet")
    stream = await project.stream(source)
    settings = KafkaSettings(broker.bootstrap, broker_wait_seconds_max=20.0)
    for own in (name, "another"):
        target = KafkaDestination(
            settings,
            failed,
            pipeline=own,
            stream_of=lambda: stream,
            clock=SystemClock(),
            document=Documents(own, "kafka", "arn", to_topic=True),
        )
        record = FailedRecord(0, 7, 5, own.encode(), None, (), "why", "KeyError", 1)
        await target.deliver([record])
        await target.close()
    assert [each["offset"] for each in (await listed(project))["failures"]] == [7]
    await run_dlq(project, "replay", "--pipeline", name)
    assert [message.key for message in await messages(broker.bootstrap, f"{name}.retry")] == [name.encode()]


async def test_a_file_is_listed_without_a_broker(project: Project, topic: TopicFactory) -> None:
    """It says that nobody knows what waits in the sink; a replay needs the broker, and ends in its bound."""
    source, name = await topic(partitions=2), named(project)
    configure(project, name, source, "failed.jsonl", "parquet")
    await fill(project, name, await project.stream(source), 3)
    text = (project.directory / "headrace.toml").read_text().replace(project.bootstrap, "127.0.0.1:1")
    project.write("headrace.toml", text.replace("broker_wait_seconds_max = 20", "broker_wait_seconds_max = 0.1"))
    found = await listed(project)
    assert (found["records"], found["waiting_in_sink"]) == (3, None)
    assert "127.0.0.1:1" in found["waiting_unknown"]
    ended = await run_dlq(project, "replay", "--pipeline", name)
    assert (ended.code, "127.0.0.1:1" in ended.err) == (3, True)
