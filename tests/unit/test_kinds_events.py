"""The kinds kinesis and kafka: AWS's events to the letter, their sizes, and what handlers may return."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, empty_records, from_rows
from engine.context import Context
from engine.errors import HandlerError
from engine.protocols import Invocation, Result
from functions.kinds import kafka, kinesis
from functions.kinds.events import EventHandler, kafka_handler, kinesis_handler, read_response
from functions.kinds.payload import KafkaPayload, KinesisPayload

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
FIXTURES = DATA / "aws-powertools-events"
CONTEXT = Context(function_name="app.handler", memory_limit_in_mb="128", deadline_ms=0)

#: Keys, in order, and types of a Kinesis event as recorded on AWS.
KINESIS_SHAPE = {
    "Records": [
        {
            "kinesis": {
                "kinesisSchemaVersion": "str",
                "partitionKey": "str",
                "sequenceNumber": "str",
                "data": "str",
                "approximateArrivalTimestamp": "float",
            },
            "eventSource": "str",
            "eventVersion": "str",
            "eventID": "str",
            "eventName": "str",
            "invokeIdentityArn": "str",
            "awsRegion": "str",
            "eventSourceARN": "str",
        }
    ]
}

KAFKA_RECORD_SHAPE = {
    "topic": "str",
    "partition": "int",
    "offset": "int",
    "timestamp": "int",
    "timestampType": "str",
    "key": "str",
    "value": "str",
    "headers": [{"headerKey": ["int"]}],
}
KAFKA_SHAPE = {
    "eventSource": "str",
    "bootstrapServers": "str",
    "records": {"mytopic-0": [KAFKA_RECORD_SHAPE]},
}
MSK_SHAPE = {
    "eventSource": "str",
    "eventSourceArn": "str",
    "bootstrapServers": "str",
    "records": {"mytopic-0": [KAFKA_RECORD_SHAPE]},
}


def shape(value: object) -> object:
    """Keys in order and types of a JSON value; a list's items have to be of one shape."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        shapes = [shape(each) for each in value]
        assert all(json.dumps(each) == json.dumps(shapes[0]) for each in shapes)
        return shapes[:1]
    return type(value).__name__


def same(one: object, other: object) -> bool:
    """Equal, the order of keys included."""
    return json.dumps(one) == json.dumps(other)


def fixture(name: str) -> Any:
    path = FIXTURES / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; set HEADRACE_TEST_DATA")
    return json.loads(path.read_text())


def batch(*records: tuple[Any, ...], topic: str = "mytopic", partition: int = 0, **options: Any) -> Batch:
    """A batch of ``(offset, timestamp, key, value, headers)``."""
    start = records[0][0] if records else 0
    end = records[-1][0] + 1 if records else 0
    return from_rows(topic, partition, records, start=start, end=end, **options)


PLAIN = (15, 1545084650987, b"recordKey", b'{"key":"value"}', [("headerKey", b"headerValue")])


@pytest.fixture(autouse=True)
def _region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


# --- kinesis


def test_a_kinesis_event_has_the_shape_recorded_on_aws() -> None:
    """Keys, their order, and types."""
    assert same(shape(kinesis.event(batch(PLAIN, (16, 5, None, None, [])))), KINESIS_SHAPE)


@pytest.mark.parametrize("name", ["kinesisStreamEvent.json", "kinesisStreamEventOneRecord.json"])
def test_the_shape_is_that_of_the_public_fixtures(name: str) -> None:
    """The committed shape is what a third party's fixtures hold."""
    assert same(shape(fixture(name)), KINESIS_SHAPE)


def test_a_kinesis_record_tells_of_its_kafka_record() -> None:
    """Every member, literally."""
    event: Any = kinesis.event(batch(PLAIN, topic="clicks", partition=3), role="clicks-fn")
    sequence = "49000000000000000000000000000000000000000000000000000015"
    assert event == {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "recordKey",
                    "sequenceNumber": sequence,
                    "data": "eyJrZXkiOiJ2YWx1ZSJ9",
                    "approximateArrivalTimestamp": 1545084650.987,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"shardId-000000000003:{sequence}",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": "arn:aws:iam::000000000000:role/clicks-fn",
                "awsRegion": "us-east-1",
                "eventSourceARN": "arn:aws:kinesis:us-east-1:000000000000:stream/clicks",
            }
        ]
    }


def test_the_region_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_REGION goes before AWS_DEFAULT_REGION, in both places of the record."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    record: Any = kinesis.event(batch(PLAIN))
    assert record["Records"][0]["awsRegion"] == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    record = kinesis.event(batch(PLAIN))
    assert record["Records"][0]["awsRegion"] == "eu-north-1"
    assert ":eu-north-1:" in record["Records"][0]["eventSourceARN"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [(None, "null"), (b"", ""), (b"a", "a"), ("é☃".encode(), "é☃"), (b"\xff\xfe", "//4="), (b"k" * 300, "k" * 300)],
)
def test_partition_keys(key: bytes | None, expected: str) -> None:
    """UTF-8 as it is, other bytes in base64, no key as "null"."""
    event: Any = kinesis.event(batch((1, 0, key, b"", [])))
    assert event["Records"][0]["kinesis"]["partitionKey"] == expected


def test_null_and_empty_values_are_empty_data() -> None:
    """Kinesis has no null; both give "", which decodes to nothing."""
    event: Any = kinesis.event(batch((1, 0, None, None, []), (2, 0, None, b"", []), (3, 0, None, b"x", [])))
    assert [record["kinesis"]["data"] for record in event["Records"]] == ["", "", "eA=="]


@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=20, unique=True))
def test_sequence_numbers_follow_offsets(offsets: list[int]) -> None:
    """56 decimal digits, in the offsets' order as numbers and as text, and one way back."""
    offsets.sort()
    numbers = [kinesis.sequence_number(offset) for offset in offsets]
    assert {len(number) for number in numbers} == {56}
    assert all(number.isdigit() for number in numbers)
    assert numbers == sorted(numbers) == sorted(numbers, key=int)
    assert len({int(number) for number in numbers}) == len(offsets)
    assert [kinesis.offset_of(number) for number in numbers] == offsets


@pytest.mark.parametrize(
    "text",
    ["", "15", "49590338271490256608559692538361571095921575989136588898", "4" * 56, "49" + "0" * 53, "x" * 56],
)
def test_foreign_sequence_numbers_have_no_offset(text: str) -> None:
    """A number that was not made here is refused, never read as some offset."""
    with pytest.raises(ValueError, match="is not a sequence number of this stream"):
        kinesis.offset_of(text)


# --- kafka


@pytest.mark.parametrize(
    ("name", "expected", "source"),
    [
        ("kafkaEventSelfManaged.json", KAFKA_SHAPE, {"event_source": "aws:SelfManagedKafka"}),
        (
            "kafkaEventMsk.json",
            MSK_SHAPE,
            {
                "event_source": "aws:kafka",
                "arn": "arn:aws:kafka:us-east-1:0123456789019:cluster/SalesCluster/"
                "abcd1234-abcd-cafe-abab-9876543210ab-4",
            },
        ),
    ],
)
def test_a_kafka_event_is_the_public_fixture(name: str, expected: object, source: dict[str, str]) -> None:
    """The same record gives the third party's fixture, byte for byte; its shape is also held by a literal."""
    servers = (
        "b-2.demo-cluster-1.a1bcde.c1.kafka.us-east-1.amazonaws.com:9092,"
        "b-1.demo-cluster-1.a1bcde.c1.kafka.us-east-1.amazonaws.com:9092"
    )
    event = kafka.event(batch(PLAIN), kafka.KafkaSource(servers, **source))
    assert same(shape(event), expected)
    assert same(event, fixture(name))


def test_a_kafka_event_of_a_self_managed_cluster() -> None:
    """Every member, literally, with the current documents' event source."""
    made = batch(PLAIN, (17, 3, None, None, []), topic="t.a_b-c", partition=12, log_append_time=True)
    event = kafka.event(made, kafka.KafkaSource("a:1,b:2"))
    first = {
        "topic": "t.a_b-c",
        "partition": 12,
        "offset": 15,
        "timestamp": 1545084650987,
        "timestampType": "LOG_APPEND_TIME",
        "key": "cmVjb3JkS2V5",
        "value": "eyJrZXkiOiJ2YWx1ZSJ9",
        "headers": [{"headerKey": [104, 101, 97, 100, 101, 114, 86, 97, 108, 117, 101]}],
    }
    second = {**first, "offset": 17, "timestamp": 3, "key": None, "value": None, "headers": []}
    expected = {
        "eventSource": "SelfManagedKafka",
        "bootstrapServers": "a:1,b:2",
        "records": {"t.a_b-c-12": [first, second]},
    }
    assert same(event, expected)


def test_header_bytes_are_signed_and_repeated_names_kept() -> None:
    """Java's bytes, one map for each header in order; a header without a value has no bytes."""
    headers = [("h", b"\x00\x7f\x80\xff"), ("h", b""), ("n", None)]
    event: Any = kafka.event(batch((1, 0, b"", b"", headers)), kafka.KafkaSource())
    [record] = event["records"]["mytopic-0"]
    assert record["headers"] == [{"h": [0, 127, -128, -1]}, {"h": []}, {"n": []}]
    assert (record["key"], record["value"]) == ("", "")


def test_an_empty_batch_is_an_empty_event() -> None:
    """No records, but the event around them."""
    empty = Batch("t", 0, 5, 9, empty_records())
    assert kinesis.event(empty) == {"Records": []}
    assert kafka.event(empty, kafka.KafkaSource())["records"] == {"t-0": []}


def test_slices_give_the_events_of_their_records() -> None:
    """What a batch was cut from does not show in the event."""
    whole = batch(*((i, i, b"k%d" % i, b"v%d" % i, [("h", b"%d" % i)]) for i in range(10)))
    part = whole.tail(3).head(4)
    alone = batch(*((i, i, b"k%d" % i, b"v%d" % i, [("h", b"%d" % i)]) for i in range(3, 7)))
    assert kinesis.event(part) == kinesis.event(alone)
    assert kafka.event(part, kafka.KafkaSource()) == kafka.event(alone, kafka.KafkaSource())


# --- sizes

KEYS = st.none() | st.binary(max_size=20) | st.text(max_size=20).map(str.encode)
TIMESTAMPS = st.integers(-1, 10**6) | st.integers(0, 4 * 10**12) | st.integers(-(10**15), 2**62)
HEADERS = st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=20)), max_size=3)
RECORDS = st.lists(
    st.tuples(st.integers(1, 10**6), TIMESTAMPS, KEYS, st.none() | st.binary(max_size=40), HEADERS), max_size=8
)
SOURCE = kafka.KafkaSource("a:1,b:2", "aws:kafka", "arn:x")

MEASURES: list[tuple[Callable[[Batch], dict[str, object]], KinesisPayload | KafkaPayload]] = [
    (lambda made: kinesis.event(made, role="r"), KinesisPayload(role="r")),
    (lambda made: kafka.event(made, SOURCE), KafkaPayload(SOURCE)),
]


@given(records=RECORDS, first=st.integers(0, 2**62), skip=st.integers(0, 3), partition=st.integers(0, 10**5))
@pytest.mark.parametrize(("build", "payload"), MEASURES, ids=["kinesis", "kafka"])
def test_sizes_are_those_of_the_events(
    build: Callable[[Batch], dict[str, object]],
    payload: KinesisPayload | KafkaPayload,
    records: list[Any],
    first: int,
    skip: int,
    partition: int,
) -> None:
    """Each record adds to the event's JSON what was foretold, also in slices of a batch."""
    offset, rows = first, []
    for gap, *rest in records:
        offset += gap
        rows.append((offset, *rest))
    made = from_rows("t-1", partition, rows, start=first, end=offset + 1).tail(min(skip, len(rows)))
    sizes = payload.payload_bytes(made)
    assert len(sizes) == len(made)
    assert str(sizes.dtype) == "int64"
    assert int(sizes.sum()) <= payload.payload_bytes_bound(made)
    total = payload.envelope_bytes(made)
    for count in range(1, len(made) + 1):
        total += int(sizes[count - 1])
        assert total == len(orjson.dumps(build(made.head(count))))


@pytest.mark.parametrize("timestamp", [-1, 0, 10**14 - 1, 10**14, 10**15 + 7, 2**53 + 1, 2**62 + 5, 2**63 - 1])
def test_sizes_of_timestamps_at_their_bounds(timestamp: int) -> None:
    """Float seconds lose digits far in the future; the sizes follow."""
    made = batch((1, timestamp, b"k", b"v", []))
    for build, payload in MEASURES:
        assert int(payload.payload_bytes(made).sum()) + payload.envelope_bytes(made) == len(
            orjson.dumps(build(made))
        )
        assert int(payload.payload_bytes(made).sum()) <= payload.payload_bytes_bound(made)


def test_sizes_of_a_null_list_of_headers() -> None:
    """A source may leave the headers column null; that is a record without headers."""
    records = pa.RecordBatch.from_pylist(
        [{"offset": 1, "timestamp": 2, "key": b"k", "value": b"v", "headers": None}], schema=empty_records().schema
    )
    made = Batch("t", 0, 1, 2, records)
    payload = KafkaPayload(SOURCE)
    size = int(payload.payload_bytes(made).sum()) + payload.envelope_bytes(made)
    assert size == len(orjson.dumps(kafka.event(made, SOURCE)))


# --- calling and responses


def lambda_handler(function: Callable[..., object], kind: str) -> EventHandler:
    if kind == "kinesis":
        return kinesis_handler(function, name="app.handler", role="r", timeout_seconds=20, concurrency_max=1)
    return kafka_handler(function, name="app.handler", source=SOURCE, timeout_seconds=20, concurrency_max=1)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", ["kinesis", "kafka"])
async def test_handlers_get_event_and_context(kind: str, asynchronous: bool) -> None:
    """Sync and async handlers of both kinds are called with the event and the invocation's own context."""
    seen: list[object] = []

    def sync(event: object, context: object) -> dict[str, object]:
        seen.extend([event, context])
        return {"rows": [{"n": 1}]}

    async def coroutine(event: object, context: object) -> dict[str, object]:
        return sync(event, context)

    made = batch(PLAIN)
    handler = lambda_handler(coroutine if asynchronous else sync, kind)
    assert not handler.wants_columns
    result = await handler.invoke(Invocation(made, None, CONTEXT))
    assert result == Result(rows=[{"n": 1}])
    assert seen[0] == (kinesis.event(made, role="r") if kind == "kinesis" else kafka.event(made, SOURCE))
    assert seen[1] is CONTEXT
    sizes = handler.payload_bytes(made)
    assert int(sizes.sum()) + handler.envelope_bytes(made) == len(orjson.dumps(seen[0]))
    await handler.close()


async def test_a_lambda_handler_written_for_aws_runs_unchanged() -> None:
    """A handler that decodes and sums, as in AWS's documents, finds what it looks for."""

    def handler(event: Any, context: Any) -> dict[str, object]:
        assert context.get_remaining_time_in_millis() == 0
        total = 0
        for record in event["Records"]:
            total += json.loads(base64.b64decode(record["kinesis"]["data"]))["n"]
        return {"rows": [{"total": total, "shard": event["Records"][0]["eventID"].split(":")[0]}]}

    made = lambda_handler(handler, "kinesis")
    records = batch(*((i, 0, None, b'{"n": %d}' % i, []) for i in range(4)), partition=7)
    result = await made.invoke(Invocation(records, None, CONTEXT))
    assert result.rows == [{"total": 6, "shard": "shardId-000000000007"}]
    await made.close()


@pytest.mark.parametrize(
    "response",
    [
        None,
        "",
        "text",
        {},
        [],
        [1, {"a": None}],
        0,
        1.5,
        True,
        float("nan"),
        Decimal("1.5"),
        b"raw",
        {"batchItemFailures": []},
        {"batchItemFailures": None},
        {"batchItemFailures": [{"itemIdentifier": "1"}]},
        {"statusCode": 200, "amount": Decimal(3), "tags": ("a", "b")},
        {"rows": None},
    ],
)
def test_anything_that_json_can_carry_is_success(response: object) -> None:
    """As on AWS the response says nothing; batchItemFailures neither, where it was not asked for."""
    assert read_response("app.handler (kind kinesis)", response) == Result()


def test_rows_are_what_headrace_adds() -> None:
    """Rows go to the sink as they are, with values that JSON would not carry; failures beside them are ignored."""
    rows = [{"at": object(), "n": 1}]
    given: Mapping[str, object] = {"rows": rows, "batchItemFailures": [{"itemIdentifier": "1"}]}
    assert read_response("x", given) == Result(rows=rows)
    assert read_response("x", {"rows": []}) == Result(rows=[])


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ({1, 2}, r"app.handler \(kind kinesis\) gave a set: \{1, 2\}, which JSON cannot carry"),
        ({"a": object()}, "which JSON cannot carry: Object of type object is not JSON serializable"),
        ({(1, 2): 3}, "which JSON cannot carry: keys must be str"),
        ({"rows": {"a": 1}}, 'gave a dict: .* under "rows"'),
        ({"rows": "abc"}, "gave a str: 'abc' under \"rows\""),
        ({"rows": [{"a": 1}, 7]}, r'"rows": row 1 is an int: 7; each row has to be a dict'),
        ({"rows": [{"a": 1}, {2: 1}]}, r"row 1 has the key an int: 2; keys have to be text"),
        ({"rows": [], "x": {1}}, "which JSON cannot carry"),
    ],
)
def test_other_responses_fail_the_invocation(response: object, message: str) -> None:
    """What cannot be a response, or rows, is named with its type and what it was."""
    with pytest.raises(HandlerError, match=message):
        read_response("app.handler (kind kinesis)", response)
