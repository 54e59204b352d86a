"""The embedded broker as its users meet it: a real Kafka, through its API and through the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from connectors.kafka.broker import Broker, BrokerRunning, layout, record, settings
from engine.errors import BrokerUnavailable

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TopicFactory = Callable[..., Awaitable[str]]
COMMAND = [sys.executable, "-m", "engine.cli.broker"]
COMMAND_SECONDS_MAX = 120


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False
    )


async def _send(bootstrap: str, topic: str, *values: bytes, timestamp_ms: int | None = None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=settings.MESSAGE_BYTES_MAX)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0, timestamp_ms=timestamp_ms)
    finally:
        await producer.stop()


async def _read(bootstrap: str, topic: str, count: int, **options: object) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, **options)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_records_go_in_and_come_out(broker: Broker, topic: TopicFactory) -> None:
    """One of 5 MB, and one stamped in 1970, which no retention takes away."""
    name = await topic(partitions=3)
    large = os.urandom(5 * 1024 * 1024)
    await _send(broker.bootstrap, name, large)
    await _send(broker.bootstrap, name, b"old", timestamp_ms=1)
    assert await _read(broker.bootstrap, name, 2) == [large, b"old"]


async def test_topics_are_made_on_purpose(broker: Broker, topic: TopicFactory) -> None:
    """A topic has the partitions that were asked for; one that nobody made does not come up by being read."""
    name = await topic(partitions=5)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        deadline = time.monotonic() + 10
        while True:  # the controller has made it, and the broker hears of it a moment later
            (made, mistyped) = await admin.describe_topics([name, "mistyped"])
            if made["error_code"] == 0 or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        assert len(made["partitions"]) == 5
        assert mistyped["error_code"] == 3  # UNKNOWN_TOPIC_OR_PARTITION
        assert "mistyped" not in await admin.list_topics()
    finally:
        await admin.close()


async def test_the_settings_are_in_force(broker: Broker) -> None:
    """Kafka reports every tuned property with the tuned value: none is misspelt."""
    if not isinstance(broker, Broker):
        pytest.skip("another cluster has its own settings")
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")])
    finally:
        await admin.close()
    in_force = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert {name: in_force.get(name) for name in settings.TUNING} == dict(settings.TUNING)


async def test_a_killed_broker_starts_again_on_its_data_and_port(tmp_path: Path) -> None:
    """What was acknowledged before SIGKILL is there after a second start, at the same address."""
    lines: list[str] = []
    broker = Broker(tmp_path / "data", port=0, progress=lines.append, brief=True)
    async with broker:
        address = broker.bootstrap
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        await admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
        await admin.close()
        await _send(address, "kept", b"before")
        first = broker.pid
        await asyncio.to_thread(broker.kill)
        assert not broker.running
        await asyncio.to_thread(broker.start)
        assert (broker.bootstrap, broker.pid == first) == (address, False)
        await _send(address, "kept", b"after")
        assert await _read(address, "kept", 2) == [b"before", b"after"]
    assert not broker.running
    assert broker.failure() is None


async def test_a_kafka_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    """The cause that Kafka logged, and where all of it is; nothing is left running."""
    broker = Broker(tmp_path, port=0, extra_properties={"log.cleaner.threads": "none"})
    with pytest.raises(BrokerUnavailable) as raised:
        await asyncio.to_thread(broker.start)
    assert "log.cleaner.threads" in raised.value.message
    assert str(tmp_path / "kafka.log") in str(raised.value)
    assert not broker.running
    assert record.read(tmp_path) is None


def test_the_command_starts_one_in_the_background_and_stops_it(tmp_path: Path) -> None:
    """start --json gives the address, a second start the same one, status agrees, stop ends it."""
    data = ("--data", str(tmp_path))
    try:
        started = _run("start", "--background", "--port", "0", "--json", *data)
        assert started.returncode == 0, started.stderr
        bootstrap = json.loads(started.stdout)["bootstrap"]
        assert started.stdout.count("\n") == 1
        again = _run("start", "--background", *data)
        assert (again.returncode, again.stdout) == (0, f"{bootstrap}\n")
        elsewhere = _run("start", "--background", "--port", "9", *data)
        assert (elsewhere.returncode, elsewhere.stdout) == (3, "")
        assert f"already runs at {bootstrap}, not on port 9" in elsewhere.stderr
        foreground = _run("start", *data)
        assert foreground.returncode == 3
        assert f"is in use by the broker at {bootstrap}" in foreground.stderr
        status = json.loads(_run("status", "--json", *data).stdout)
        assert (status["running"], status["answers"], status["bootstrap"]) == (True, True, bootstrap)
    finally:
        stopped = _run("stop", *data)
    assert f"stopped the broker at {bootstrap}" in stopped.stderr
    ended = _run("status", "--json", *data)
    assert (ended.returncode, json.loads(ended.stdout)["running"]) == (3, False)
    assert _run("stop", *data).returncode == 0


@contextmanager
def _foreground(data: Path) -> Iterator[tuple[subprocess.Popen[str], record.Record]]:
    """A broker started by a command that keeps running; its address has been printed."""
    command = subprocess.Popen(
        [*COMMAND, "start", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    with command:
        try:
            bootstrap = command.stdout.readline().strip()
            known = record.read(data)
            assert known is not None
            assert known.bootstrap == bootstrap
            yield command, known
        finally:
            command.kill()


def test_a_broker_is_gone_two_seconds_after_its_command_was_killed(tmp_path: Path) -> None:
    """SIGKILL of the command ends Kafka; the next start says so, cleans up and goes on, until SIGTERM ends it."""
    with _foreground(tmp_path) as (command, known):
        command.kill()
        deadline = time.monotonic() + 2
        while record.is_alive(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert record.start_time(known.pid) != known.started
    with _foreground(tmp_path) as (command, _):
        _, err = _ended_in_order(tmp_path, command, signal.SIGTERM)
    assert f"process {known.pid}, ended without stopping" in err


def _ended_in_order(data: Path, command: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    """Send the signal: the command and Kafka end, which is no failure, and leave no record. What it wrote."""
    command.send_signal(number)
    written = command.communicate(timeout=30)
    assert command.returncode == 0
    assert not record.is_alive(data)
    assert record.read(data) is None
    return written


def test_ctrl_c_ends_the_command_and_its_broker_in_order(tmp_path: Path) -> None:
    """SIGINT stops Kafka, leaves no record behind, and is no failure; so is SIGTERM, in the test above."""
    with _foreground(tmp_path) as (command, _):
        _ended_in_order(tmp_path, command, signal.SIGINT)


def test_three_nodes_end_with_their_command(tmp_path: Path) -> None:
    """An address for each; the command outlives a node, and no node the command; --nodes 1 is refused then."""
    data = ("--data", str(tmp_path))
    command = subprocess.Popen(
        [*COMMAND, "start", "--nodes", "3", "--port", "0", *data],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert command.stderr is not None
    with command:
        try:
            addresses = command.stdout.readline().strip().split(",")
            assert len(set(addresses)) == 3
            status = json.loads(_run("status", "--json", *data).stdout)
            assert (status["running"], status["answers"]) == (True, True)
            assert [node["bootstrap"] for node in status["nodes"]] == addresses
            nodes = layout.records(tmp_path)
            os.kill(nodes[2].pid, signal.SIGKILL)
            for line in command.stderr:
                if line.startswith("going on with"):
                    assert line == "going on with 2 of 3 nodes\n"
                    break
            assert "node 2: not running" in _run("status", *data).stdout
        finally:
            command.kill()
        deadline = time.monotonic() + 2
        while layout.is_alive(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert {record.start_time(node.pid) == node.started for node in nodes.values()} == {False}
    refused = _run("start", "--nodes", "1", *data)
    assert (refused.returncode, "was made with 3 nodes" in refused.stderr) == (2, True)


def test_a_broker_that_dies_ends_its_command_with_an_error(tmp_path: Path) -> None:
    """A crash of Kafka is exit code 3 and shows its last lines; `broker stop` from elsewhere is exit code 0."""
    with _foreground(tmp_path) as (command, known):
        os.kill(known.pid, signal.SIGKILL)
        _, err = command.communicate(timeout=30)
        assert (command.returncode, "Kafka ended with exit code 137" in err) == (3, True)
    with _foreground(tmp_path) as (command, _):
        assert _run("stop", "--data", str(tmp_path)).returncode == 0
        assert command.wait(30) == 0


def test_one_directory_is_one_broker(broker: Broker) -> None:
    """A second broker on the data of a living one is refused, and the first goes on."""
    if not isinstance(broker, Broker):
        pytest.skip("another cluster has its own data")
    with pytest.raises(BrokerRunning, match=f"in use by the broker at {broker.bootstrap}"):
        Broker(broker.data, port=0).start()
    assert broker.running


def test_only_loopback_is_listened_on(broker: Broker) -> None:
    """The machine's other addresses refuse the broker's port."""
    if sys.platform != "linux" or not isinstance(broker, Broker):
        pytest.skip("needs the embedded broker, and a second loopback address")
    port = int(broker.bootstrap.rpartition(":")[2])
    with (
        socket.socket() as other
    ):  # stands for the network's address; a listener on all of them would be in the way
        other.bind(("127.0.0.2", port))
