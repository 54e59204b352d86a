"""`headrace produce` against a real broker: every event, once, in order, where Kafka would put it."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import typer
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.partitioner import murmur2 as kafka_murmur2
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from connectors.event_files import open_files
from connectors.kafka.broker import Broker
from connectors.kafka.partitioning import murmur2
from engine.cli.produce import produce
from engine.errors import BrokerUnavailable, HeadraceError, UserError
from tests.conftest import ExternalBroker

pytestmark = [pytest.mark.broker, pytest.mark.slow]

app = typer.Typer()
app.command()(produce)

Run = Callable[..., Result]

#: The command, in a process of its own.
COMMAND = (sys.executable, "-m", "engine.cli.start", "produce")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command sets up logging for its process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def run(broker: Broker | ExternalBroker) -> Run:
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), "--bootstrap", broker.bootstrap])


@pytest.fixture
def name() -> str:
    return f"produced-{uuid.uuid4().hex[:12]}"


def read(bootstrap: str, topic: str) -> dict[int, list[ConsumerRecord]]:
    """All records of a topic by partition."""

    async def consume() -> dict[int, list[ConsumerRecord]]:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            shards = [
                TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())
            ]
            ends = await consumer.end_offsets(shards)
            found: dict[int, list[ConsumerRecord]] = {shard.partition: [] for shard in shards}
            async with asyncio.timeout(60):
                while sum(map(len, found.values())) < sum(ends.values()):
                    for shard, records in (await consumer.getmany(timeout_ms=1_000)).items():
                        found[shard.partition] += records
            return found
        finally:
            await consumer.stop()

    return asyncio.run(consume())


def error_of(result: Result) -> HeadraceError:
    assert isinstance(result.exception, HeadraceError), result.exception
    return result.exception


@given(st.binary(max_size=64))
def test_murmur2_is_kafkas(key: bytes) -> None:
    """Our hash of any key equals that of Kafka's client."""
    assert murmur2(key) == kafka_murmur2(key)


def test_lines_byte_for_byte(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """NDJSON lines arrive as they are, whatever they hold; blank lines are none, and any line end will do."""
    lines = [b'{"a" :1}', b"not json", b"\xff\xfe", b'{"b":"\xc3\xa9"}', b" null ", b'{"last":1}']
    file = tmp_path / "e.ndjson"
    file.write_bytes(b"\r\n".join(lines[:3]) + b"\n\n  \n" + b"\n".join(lines[3:]))
    result = run(name, file, "--partitions", 1, "--json")
    assert result.exit_code == 0, result.exception
    answer = json.loads(result.stdout)
    assert (answer["events"], answer["bytes"], answer["partitions"]) == (6, sum(map(len, lines)), {"0": 6})
    assert [record.value for record in read(broker.bootstrap, name)[0]] == lines


def test_text_lines_keep_blank_ones(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """A text file's blank lines are events, and its packed forms hold the same; a cut one is refused."""
    data = b"one\n\n  two \nthree"
    packed = gzip.compress(data)
    (tmp_path / "a.log").write_bytes(data)
    (tmp_path / "b.log.gz").write_bytes(packed + packed)  # of several members
    with pa.output_stream(str(tmp_path / "c.log.zst"), compression="zstd") as stream:
        stream.write(data)
    files = [tmp_path / part for part in ("a.log", "b.log.gz", "c.log.zst")]
    assert run(name, *files, "--partitions", 1).exit_code == 0
    expected = [b"one", b"", b"  two ", b"three"]
    twice = [b"one", b"", b"  two ", b"threeone", b"", b"  two ", b"three"]
    assert [record.value for record in read(broker.bootstrap, name)[0]] == [*expected, *twice, *expected]
    (tmp_path / "cut.log.gz").write_bytes(packed[:-9])
    assert "cut.log.gz: not a whole gzip file" in str(error_of(run(name, tmp_path / "cut.log.gz")))


def test_keys_choose_kafkas_partition_in_order(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """Each key is where Kafka's partitioner puts it, its events in file order, across several batches."""
    file = tmp_path / "e.ndjson"
    with file.open("w") as out:
        for number in range(30_000):
            out.write(json.dumps({"n": number, "k": {"id": f"key-{number % 97}"}, "pad": "x" * 100}) + "\n")
    assert run(name, file, "--key", "k.id", "--partitions", 8).exit_code == 0
    found = read(broker.bootstrap, name)
    last: dict[bytes, int] = {}
    for partition, records in found.items():
        for record in records:
            assert record.key is not None
            assert partition == (kafka_murmur2(record.key) & 0x7FFFFFFF) % 8
            number = json.loads(record.value)["n"]
            assert record.key == f"key-{number % 97}".encode()
            assert number > last.get(record.key, -1)
            last[record.key] = number
    assert sum(map(len, found.values())) == 30_000


def test_keys_without_loss(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """Numbers become keys as they are written, null is no key, objects with the same members one key."""
    values = [
        "123456789012345678901234567890",
        "1.10",
        "null",
        '"é"',
        "true",
        '{"b":1,"a":2}',
        '{"a":2,"b":1}',
        "-7",
    ]
    file = tmp_path / "e.ndjson"
    file.write_text("".join(f'{{"k": {value}}}\n' for value in values))
    assert run(name, file, "--key", "k", "--partitions", 1).exit_code == 0
    keys = [record.key for record in read(broker.bootstrap, name)[0]]
    both = b'{"a":2,"b":1}'
    expected = [b"123456789012345678901234567890", b"1.10", None, "é".encode(), b"true", both, both, b"-7"]
    assert sorted(keys, key=repr) == sorted(expected, key=repr)


def test_events_without_key_go_round(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """Without keys the partitions get equal shares, each in file order, with the times that were asked for."""
    file = tmp_path / "e.jsonl"
    file.write_text("".join(f'{{"n":{n},"t":"2024-01-01T00:00:00.{n % 1000:03}Z"}}\n' for n in range(4_000)))
    result = run(name, file, "--timestamp", "t")
    assert result.exit_code == 0
    assert "by partition 0:1,000 1:1,000 2:1,000 3:1,000" in result.stdout
    for records in read(broker.bootstrap, name).values():
        numbers = [json.loads(record.value)["n"] for record in records]
        assert numbers == sorted(numbers)
        assert [record.timestamp for record in records] == [1_704_067_200_000 + n % 1000 for n in numbers]


def test_parquet_rows_become_json(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """Rows arrive in order as JSON objects without loss, keyed and timed by columns; odd file names are fine."""
    file = tmp_path / "p[1]*.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT range AS n, 9223372036854775807 AS big, 1.10::DECIMAL(9,2) AS d, 'NaN'::DOUBLE AS nan,"
            " 'a\"b' AS s, NULL::INT AS u, '\\xFF\\x00'::BLOB AS b, [1, 2] AS l,"
            " make_timestamp(range * 1000) AS t FROM range(5000)) TO '" + str(tmp_path / "plain.parquet") + "'"
        )
    (tmp_path / "plain.parquet").rename(file)
    result = run(name, file, "--key", "n", "--timestamp", "t", "--partitions", 1)
    assert result.exit_code == 0, result.exception
    records = read(broker.bootstrap, name)[0]
    assert [record.key for record in records] == [str(n).encode() for n in range(5000)]
    assert [record.timestamp for record in records] == list(range(5000))
    assert b'"big":9223372036854775807,"d":1.1' in (records[7].value or b"")
    first = json.loads(records[7].value)
    assert {key: first[key] for key in ("n", "nan", "s", "u", "b", "l")} == {
        "n": 7, "nan": None, "s": 'a"b', "u": None, "b": "/wA=", "l": [1, 2]
    }  # fmt: skip
    error = error_of(run(name, file, "--key", "nope"))
    assert "no column 'nope' for --key; it has n, big, d" in str(error)


def test_a_large_value(run: Run, name: str, tmp_path: Path, broker: Broker) -> None:
    """A line of 5 MB that cannot be compressed arrives whole, among small ones."""
    large = b'{"v":"' + b"".join(uuid.uuid4().hex.encode() for _ in range(5_000_000 // 32)) + b'"}'
    file = tmp_path / "e.ndjson"
    file.write_bytes(b'{"n":1}\n' + large + b'\n{"n":2}\n')
    result = run(name, file, "--partitions", 1)
    if isinstance(broker, ExternalBroker) and ": the record has " in str(result.exception):
        pytest.skip("the external cluster takes no records of 5 MB")
    assert result.exit_code == 0, result.exception
    assert [record.value for record in read(broker.bootstrap, name)[0]] == [b'{"n":1}', large, b'{"n":2}']


async def test_too_large_for_the_topic(run: Run, tmp_path: Path, broker: Broker, topic) -> None:  # type: ignore[no-untyped-def]
    """A record beyond the topic's limit is named by file, line and size; what came before it is there."""
    small = await topic(config={"max.message.bytes": "20000"})
    large = b"".join(uuid.uuid4().hex.encode() for _ in range(2_000))
    file = tmp_path / "e.txt"
    file.write_bytes(b"".join(b"line %d\n" % n for n in range(5_000)) + large + b"\n")
    result = await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, small, str(file), "--bootstrap", broker.bootstrap],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "e.txt, line 5001: the record has 64,000 bytes" in result.stderr
    assert "takes 20,000" in result.stderr
    found = await asyncio.to_thread(read, broker.bootstrap, small)
    assert [record.value for record in found[0]] == [b"line %d" % n for n in range(5_000)]
    assert "failed: 5,000 events" in result.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not JSON"),
        ("[1]", "line 3: it is no JSON object"),
        ('{"x": 1, "y": 2}', "line 3: there is no member 'k'; it has x, y"),
    ],
)
def test_a_line_without_its_key(
    line: str, message: str, run: Run, name: str, tmp_path: Path, broker: Broker
) -> None:
    """A line that has no key stops the work with its number, and the lines before it have been sent."""
    file = tmp_path / "e.ndjson"
    file.write_text(f'{{"k":1}}\n\n{line}\n{{"k":2}}\n')
    result = run(name, file, "--key", "k", "--partitions", 1)
    assert message in str(error_of(result))
    assert error_of(result).domain == 2
    assert "failed: 1 events" in result.stdout
    assert [record.key for record in read(broker.bootstrap, name)[0]] == [b"1"]


def test_missing_files_are_all_named(run: Run, name: str, tmp_path: Path) -> None:
    """Every file that cannot be read is named before anything is sent."""
    file = tmp_path / "e.ndjson"
    file.write_text("{}\n")
    error = error_of(run(name, file, tmp_path / "one", tmp_path, tmp_path / "two"))
    assert all(f"{path}: " in str(error) for path in (tmp_path / "one", tmp_path, tmp_path / "two"))
    assert "e.ndjson" not in str(error)


def test_other_partitions_than_the_topic_has(run: Run, name: str, tmp_path: Path) -> None:
    """--partitions that differs from an existing topic's is refused; the same number, or none, is fine."""
    file = tmp_path / "e.ndjson"
    file.write_text("{}\n")
    assert run(name, file, "--partitions", 3).exit_code == 0
    assert "exists with 3 partitions, not 4" in str(error_of(run(name, file, "--partitions", 4)))
    assert run(name, file, "--partitions", 3).exit_code == 0
    assert run(name, file).exit_code == 0


def test_no_broker(tmp_path: Path) -> None:
    """Without a broker the command ends in its bound, with the address, and exit code 3."""
    file = tmp_path / "e.ndjson"
    file.write_text("{}\n")
    started = time.monotonic()
    result = CliRunner().invoke(app, ["t", str(file), "--bootstrap", "127.0.0.1:1", "--broker-wait", "0.3"])
    error = error_of(result)
    assert isinstance(error, BrokerUnavailable)
    assert error.domain == 3
    assert "127.0.0.1:1" in str(error)
    assert time.monotonic() - started < 10


def test_the_rate_is_kept(run: Run, name: str, tmp_path: Path) -> None:
    """A hundred events at 50 a second take two seconds, less what the bucket holds at first."""
    file = tmp_path / "e.ndjson"
    file.write_text('{"a":1}\n' * 100)
    result = run(name, file, "--rate", "50", "--json")
    answer = json.loads(result.stdout)
    assert answer["events"] == 100
    assert 1.8 <= answer["seconds"] <= 8.0


def test_a_quiet_pipe_and_ctrl_c(name: str, broker: Broker) -> None:
    """Lines of a pipe are sent though it stays open; Ctrl-C then ends the work and says how many were sent."""
    process = subprocess.Popen(
        [*COMMAND, name, "-", "--format", "text", "--partitions", "1", "--json", "--bootstrap", broker.bootstrap],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\ntwo\nhalf")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        values: list[bytes | None] = []
        while len(values) < 2 and time.monotonic() < deadline:
            try:
                values = [record.value for record in read(broker.bootstrap, name)[0]]
            except KeyError:  # the topic is not there yet
                time.sleep(0.1)
        assert values == [b"one", b"two"]
        process.send_signal(signal.SIGINT)
        answer = json.loads(process.stdout.read())
        assert (answer["events"], answer["interrupted"]) == (2, True)
        assert process.wait(10) == 130


def test_ctrl_c_flushes_what_was_read(name: str, tmp_path: Path, broker: Broker) -> None:
    """Interrupted in the middle of a large file, the command says exactly how many events are in the topic."""
    file = tmp_path / "e.txt"
    file.write_bytes(b"".join(b"%d\n" % n for n in range(2_000_000)))
    process = subprocess.Popen(
        [*COMMAND, name, str(file), "--json", "--rate", "20000", "--bootstrap", broker.bootstrap],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if any(read(broker.bootstrap, name).values()):
                    break
            except TimeoutError:
                continue
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        answer = json.loads(process.stdout.read())
        assert process.wait(10) == 130
    found = read(broker.bootstrap, name)
    assert {str(partition): len(records) for partition, records in found.items()} == answer["partitions"]
    numbers = sorted(int(record.value or b"") for records in found.values() for record in records)
    assert numbers == list(range(answer["events"]))


def test_a_broker_that_restarts(tmp_path: Path) -> None:
    """The broker is killed and started again in the middle: every event is there once, in order."""
    file = tmp_path / "e.txt"
    file.write_bytes(b"".join(b"%d\n" % n for n in range(60_000)))
    with Broker(tmp_path / "broker", port=0, brief=True) as broker:
        process = subprocess.Popen(
            [*COMMAND, "t", str(file), "--json", "--rate", "10000", "--bootstrap", broker.bootstrap],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        with process:
            deadline = time.monotonic() + 30
            while not any(read(broker.bootstrap, "t").values()):
                assert time.monotonic() < deadline
            broker.kill()
            broker.start()
            assert process.stdout is not None
            answer = json.loads(process.stdout.read())
            assert process.wait(10) == 0
        assert answer["events"] == 60_000
        found = read(broker.bootstrap, "t")
        for records in found.values():
            numbers = [int(record.value or b"") for record in records]
            assert numbers == sorted(set(numbers))
        assert sum(map(len, found.values())) == 60_000


def test_formats_are_found(tmp_path: Path) -> None:
    """Names decide the format, then the first byte; a document over many lines is no NDJSON."""
    contents = {"a.jsonl": "{", "a.log": "{}", "a.json": "{}\n{}", "noname": "\n[1]", "other": "text", "b.gz": "{}"}
    for file, text in contents.items():
        data = gzip.compress(text.encode()) if file.endswith(".gz") else text.encode()
        (tmp_path / file).write_bytes(data)
    files = open_files([str(tmp_path / file) for file in contents], "auto", key=None, timestamp=None)
    assert [file.format for file in files] == ["ndjson", "text", "ndjson", "ndjson", "text", "ndjson"]
    (tmp_path / "doc.json").write_text('{\n  "a": 1\n}\n')
    with pytest.raises(UserError, match=r"doc\.json: its first line is no JSON"):
        open_files([str(tmp_path / "doc.json")], "auto", key=None, timestamp=None)
    with pytest.raises(UserError, match="no members"):
        open_files([str(tmp_path / "a.log")], "text", key="k", timestamp=None)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a", "a.json", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes at the very start alone, wherever blocks are cut; it hides neither the format nor the key."""
    mark = b"\xef\xbb\xbf"
    lines = [b'{"k": "a"}', mark + b'{"k": "b"}']
    file = tmp_path / name

    def write(data: bytes) -> None:
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    def values(key: str | None = None) -> list[bytes]:
        (source,) = open_files([str(file)], "auto", key=key, timestamp=None)
        assert source.format == ("text" if name == "a.txt" else "ndjson" if file.stat().st_size > 3 else "text")
        return [value for events in source.events() if events for value in events.values]

    write(mark + b"\n".join(lines))
    assert values() == lines
    if name != "a.txt":
        write(mark + lines[0])
        assert values("k") == lines[:1]
    write(mark + b"\n".join(lines))
    for size in (1, 2, 3, 4, 5):
        with monkeypatch.context() as patch:
            patch.setattr("connectors.event_files.BLOCK_BYTES", size)
            (source,) = open_files([str(file)], "text", key=None, timestamp=None)
            assert [value for events in source.events() if events for value in events.values] == lines
    write(mark)
    (source,) = open_files([str(file)], "text", key=None, timestamp=None)
    assert list(source.events()) == []


def test_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever blocks are cut, the lines are the same, and a line without end is refused by its number."""
    lines = [b"", b"a", b"bc\r", b"d" * 50, b"", b"e" * 7]
    file = tmp_path / "e.txt"
    file.write_bytes(b"\n".join(lines))
    expected = [line.removesuffix(b"\r") for line in lines]
    for size in range(1, 80):
        monkeypatch.setattr("connectors.event_files.BLOCK_BYTES", size)
        (source,) = open_files([str(file)], "text", key=None, timestamp=None)
        found = [
            (n, value)
            for events in source.events()
            if events
            for n, value in zip(events.numbers, events.values, strict=True)
        ]
        assert found == list(enumerate(expected, 1)), size
    monkeypatch.setattr("connectors.event_files.RECORD_BYTES_MAX", 40)
    monkeypatch.setattr("connectors.event_files.BLOCK_BYTES", 16)
    (source,) = open_files([str(file)], "text", key=None, timestamp=None)
    with pytest.raises(UserError, match="line 4: longer than 40 bytes"):
        list(source.events())


def test_memory_stays_flat(name: str, tmp_path: Path, broker: Broker) -> None:
    """Ten times the file takes no more memory."""
    peaks = []
    for lines in (50_000, 500_000):
        file = tmp_path / f"{lines}.txt"
        file.write_bytes(b"".join(b"%0200d\n" % n for n in range(lines)))
        program = (
            "import resource, sys; from engine.cli.main import call; call(['produce', *sys.argv[1:]]);"
            " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, name, str(file), "--json", "--bootstrap", broker.bootstrap],
            capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] < peaks[0] + 60_000, peaks
