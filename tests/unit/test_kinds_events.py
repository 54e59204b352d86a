"""The events of the kinds kinesis and kafka, to the letter, and the sizes of the events of all kinds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, empty_records, from_rows
from functions.environments.contract import EventKind
from functions.kinds import kinesis
from functions.kinds.payload import payload_for
from functions.kinds.sources import EventSource, event_of

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
FIXTURES = DATA / "aws-powertools-events"

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


def kinesis_event(made: Batch, role: str = "headrace", **options: Any) -> dict[str, object]:
    source = EventSource("kinesis", kinesis.region(), role=role, **options)
    return event_of("kinesis", made, source.envelope(made, "id"))


def kafka_event(made: Batch, servers: str = "", **options: Any) -> dict[str, object]:
    source = EventSource("kafka", kinesis.region(), bootstrap_servers=servers, **options)
    return event_of("kafka", made, source.envelope(made, "id"))


PLAIN = (15, 1545084650987, b"recordKey", b'{"key":"value"}', [("headerKey", b"headerValue")])


@pytest.fixture(autouse=True)
def _region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


# --- kinesis


def test_a_kinesis_event_has_the_shape_recorded_on_aws() -> None:
    """Keys, their order, and types."""
    assert same(shape(kinesis_event(batch(PLAIN, (16, 5, None, None, [])))), KINESIS_SHAPE)


@pytest.mark.parametrize("name", ["kinesisStreamEvent.json", "kinesisStreamEventOneRecord.json"])
def test_the_shape_is_that_of_the_public_fixtures(name: str) -> None:
    """The committed shape is what a third party's fixtures hold."""
    assert same(shape(fixture(name)), KINESIS_SHAPE)


def test_a_kinesis_record_tells_of_its_kafka_record() -> None:
    """Every member, literally."""
    event: Any = kinesis_event(batch(PLAIN, topic="clicks", partition=3), role="clicks-fn")
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
    record: Any = kinesis_event(batch(PLAIN))
    assert record["Records"][0]["awsRegion"] == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    record = kinesis_event(batch(PLAIN))
    assert record["Records"][0]["awsRegion"] == "eu-north-1"
    assert ":eu-north-1:" in record["Records"][0]["eventSourceARN"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [(None, "null"), (b"", ""), (b"a", "a"), ("é☃".encode(), "é☃"), (b"\xff\xfe", "//4="), (b"k" * 300, "k" * 300)],
)
def test_partition_keys(key: bytes | None, expected: str) -> None:
    """UTF-8 as it is, other bytes in base64, no key as "null"."""
    event: Any = kinesis_event(batch((1, 0, key, b"", [])))
    assert event["Records"][0]["kinesis"]["partitionKey"] == expected


def test_null_and_empty_values_are_empty_data() -> None:
    """Kinesis has no null; both give "", which decodes to nothing."""
    event: Any = kinesis_event(batch((1, 0, None, None, []), (2, 0, None, b"", []), (3, 0, None, b"x", [])))
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
    event = kafka_event(batch(PLAIN), servers, **source)
    assert same(shape(event), expected)
    assert same(event, fixture(name))


def test_a_kafka_event_of_a_self_managed_cluster() -> None:
    """Every member, literally, with the current documents' event source."""
    made = batch(PLAIN, (17, 3, None, None, []), topic="t.a_b-c", partition=12, log_append_time=True)
    event = kafka_event(made, "a:1,b:2")
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
    event: Any = kafka_event(batch((1, 0, b"", b"", headers)))
    [record] = event["records"]["mytopic-0"]
    assert record["headers"] == [{"h": [0, 127, -128, -1]}, {"h": []}, {"n": []}]
    assert (record["key"], record["value"]) == ("", "")


def test_an_empty_batch_is_an_empty_event() -> None:
    """No records, but the event around them."""
    empty = Batch("t", 0, 5, 9, empty_records())
    assert kinesis_event(empty) == {"Records": []}
    assert kafka_event(empty)["records"] == {"t-0": []}


def test_slices_give_the_events_of_their_records() -> None:
    """What a batch was cut from does not show in the event."""
    whole = batch(*((i, i, b"k%d" % i, b"v%d" % i, [("h", b"%d" % i)]) for i in range(10)))
    part = whole.tail(3).head(4)
    alone = batch(*((i, i, b"k%d" % i, b"v%d" % i, [("h", b"%d" % i)]) for i in range(3, 7)))
    assert kinesis_event(part) == kinesis_event(alone)
    assert kafka_event(part) == kafka_event(alone)


# --- sizes

KEYS = st.none() | st.binary(max_size=20) | st.text(max_size=20).map(str.encode)
TIMESTAMPS = st.integers(-1, 10**6) | st.integers(0, 4 * 10**12) | st.integers(-(10**15), 2**62)
HEADERS = st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=20)), max_size=3)
RECORDS = st.lists(
    st.tuples(st.integers(1, 10**6), TIMESTAMPS, KEYS, st.none() | st.binary(max_size=40), HEADERS), max_size=8
)
IMAGES = st.dictionaries(
    st.text(max_size=4),
    st.text(max_size=10).map(lambda text: {"S": text}) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)
CHANGES = st.builds(
    lambda keys, new, sequence, spaced, plain: json.dumps(
        {
            "eventName": "MODIFY",
            "dynamodb": {
                "Keys": keys,
                **({} if new is None else {"NewImage": new}),
                **({} if sequence is None else {"SequenceNumber": sequence}),
            },
        },
        indent=1 if spaced else None,
        ensure_ascii=not plain,
    ).encode(),
    IMAGES,
    st.none() | IMAGES,
    st.none() | st.sampled_from(["", "7", "49" * 20]),
    st.booleans(),
    st.booleans(),
)
SOURCES = [
    EventSource("kinesis", "us-east-1", role="r"),
    EventSource("kafka", "us-east-1", arn="arn:x", bootstrap_servers="a:1,b:2", event_source="aws:kafka"),
    EventSource("dynamodb", "us-east-1"),
    EventSource("firehose", "us-east-1"),
]
KINDS = [source.kind for source in SOURCES]


def event_bytes(source: EventSource, made: Batch) -> int:
    envelope = source.envelope(made, "5c1bd3f3-5b4f-4c7e-9d3c-0f6f6ecb38d7")
    return len(orjson.dumps(event_of(source.kind, made, envelope)))


@given(
    data=st.data(),
    records=RECORDS,
    first=st.integers(0, 2**62),
    skip=st.integers(0, 3),
    partition=st.integers(0, 10**5),
)
@pytest.mark.parametrize("source", SOURCES, ids=KINDS)
def test_sizes_are_those_of_the_events(
    source: EventSource, data: st.DataObject, records: list[Any], first: int, skip: int, partition: int
) -> None:
    """Each record adds to the event's JSON what was foretold, also in slices of a batch."""
    payload = payload_for(source)
    offset, rows = first, []
    for gap, timestamp, key, value, headers in records:
        offset += gap
        given = data.draw(CHANGES) if source.kind == "dynamodb" else value
        rows.append((offset, timestamp, key, given, headers))
    made = from_rows("t-1", partition, rows, start=first, end=offset + 1).tail(min(skip, len(rows)))
    sizes = payload.payload_bytes(made)
    assert len(sizes) == len(made)
    assert str(sizes.dtype) == "int64"
    assert int(sizes.sum()) <= payload.payload_bytes_bound(made)
    total = payload.envelope_bytes(made)
    for count in range(1, len(made) + 1):
        total += int(sizes[count - 1])
        assert total == event_bytes(source, made.head(count))


@pytest.mark.parametrize("timestamp", [-1, 0, 10**14 - 1, 10**14, 10**15 + 7, 2**53 + 1, 2**62 + 5, 2**63 - 1])
def test_sizes_of_timestamps_at_their_bounds(timestamp: int) -> None:
    """Float seconds lose digits far in the future; the sizes follow."""
    for source in SOURCES:
        value = b'{"eventName": "INSERT", "dynamodb": {"Keys": {}}}' if source.kind == "dynamodb" else b"v"
        made = batch((1, timestamp, b"k", value, []))
        payload = payload_for(source)
        size = int(payload.payload_bytes(made).sum())
        assert size + payload.envelope_bytes(made) == event_bytes(source, made)
        assert size <= payload.payload_bytes_bound(made)


def test_sizes_of_a_null_list_of_headers() -> None:
    """A source may leave the headers column null; that is a record without headers."""
    records = pa.RecordBatch.from_pylist(
        [{"offset": 1, "timestamp": 2, "key": b"k", "value": b"v", "headers": None}], schema=empty_records().schema
    )
    made = Batch("t", 0, 1, 2, records)
    source = SOURCES[KINDS.index("kafka")]
    payload = payload_for(source)
    assert int(payload.payload_bytes(made).sum()) + payload.envelope_bytes(made) == event_bytes(source, made)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_event_is_made_of_goes_through_json(kind: EventKind) -> None:
    """Another process gets the envelope as JSON, and builds the same event from it."""
    source = SOURCES[KINDS.index(kind)]
    made = batch((1, 5, b"k", b'{"eventName": "INSERT", "dynamodb": {"Keys": {}}}', []))
    envelope = source.envelope(made, "id")
    assert same(event_of(kind, made, json.loads(json.dumps(envelope))), event_of(kind, made, envelope))


def test_an_arn_that_is_given_stands_in_the_event() -> None:
    """It replaces the one that is made of the topic's name."""
    arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders"
    event: Any = kinesis_event(batch(PLAIN), arn=arn)
    assert event["Records"][0]["eventSourceARN"] == arn
