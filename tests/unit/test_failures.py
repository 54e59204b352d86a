"""The documents of failed records: AWS's shapes, from which every record comes back as it was."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.destination import DOCUMENT_BYTES, DOCUMENT_GROWTH
from engine.batch import Stream
from engine.delivery import document as plain_document
from engine.protocols import FailedRecord
from functions.failures import Documents, Failure, Identity, from_document
from functions.kinds.kafka import KafkaSource

STREAM = Stream("cluster-1", "clicks", "id-1", 4)
NOW = 1_700_000_123.456
ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"
KINDS = ("kinesis", "kafka", "dynamodb", "firehose", "rows", "arrow", "sql")


def documents(kind: str, *, to_topic: bool = False) -> Documents:
    source = KafkaSource("b1:9092,b2:9092")
    return Documents("p", kind, ARN, source, to_topic=to_topic, now=lambda: NOW)


def record(**changes: Any) -> FailedRecord:
    given = {
        "partition": 3,
        "offset": 12,
        "timestamp": 1_699_999_999_999,
        "key": b"user-1",
        "value": b'{"id": 1}',
        "headers": (),
        "reason": "ValueError: no",
        "error_type": "ValueError",
        "attempts": 3,
        "request_id": "c0ffee",
    }
    return FailedRecord(**{**given, **changes})


def made(kind: str, *, to_topic: bool = False, **changes: Any) -> dict[str, Any]:
    found = json.loads(orjson.dumps(documents(kind, to_topic=to_topic)(record(**changes), STREAM)))
    assert isinstance(found, dict)
    return found


def test_kinesis_has_the_shape_of_the_s3_destination() -> None:
    """Every member that AWS has, in AWS's order, the event as a JSON string, and headrace beside them."""
    found = made("kinesis")
    assert list(found) == [
        *("requestContext", "responseContext", "version", "timestamp", "KinesisBatchInfo", "payload", "headrace")
    ]
    assert found["requestContext"] == {
        "requestId": "c0ffee",
        "functionArn": ARN,
        "condition": "RetryAttemptsExhausted",
        "approximateInvokeCount": 3,
    }
    assert found["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    assert (found["version"], found["timestamp"]) == ("1.0", "2023-11-14T22:15:23.456Z")
    sequence = "49" + "0" * 52 + "12"
    assert found["KinesisBatchInfo"] == {
        "shardId": "shardId-000000000003",
        "startSequenceNumber": sequence,
        "endSequenceNumber": sequence,
        "approximateArrivalOfFirstRecord": "2023-11-14T22:13:19.999Z",
        "approximateArrivalOfLastRecord": "2023-11-14T22:13:19.999Z",
        "batchSize": 1,
        "streamArn": "arn:aws:kinesis:us-east-1:000000000000:stream/clicks",
    }
    [event] = json.loads(found["payload"])["Records"]
    assert event["eventID"] == f"shardId-000000000003:{sequence}"
    assert base64.b64decode(event["kinesis"]["data"]) == b'{"id": 1}'
    assert found["headrace"] == {
        "version": 1,
        "pipeline": "p",
        "cluster_id": "cluster-1",
        "topic": "clicks",
        "topic_id": "id-1",
        "partition": 3,
        "offset": 12,
        "timestamp": 1_699_999_999_999,
        "error_type": "ValueError",
        "reason": "ValueError: no",
        "attempts": 3,
    }


@pytest.fixture(autouse=True)
def _us_east_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def test_kafka_to_a_file_has_records_info_and_a_payload_as_text() -> None:
    """The S3 shape of Kafka mappings: the range by partition, as text, and the event as a JSON string."""
    found = made("kafka")
    assert found["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert found["KafkaBatchInfo"] == {
        "batchSize": 1,
        "eventSourceArn": None,
        "bootstrapServers": "b1:9092,b2:9092",
        "payloadSize": len(found["payload"]),
        "recordsInfo": {
            "clicks-3": {
                "firstRecordOffset": "12",
                "lastRecordOffset": "12",
                "firstRecordTimestamp": "2023-11-14T22:13:19.999Z",
                "lastRecordTimestamp": "2023-11-14T22:13:19.999Z",
            }
        },
    }
    event = json.loads(found["payload"])
    assert event["eventSource"] == "SelfManagedKafka"
    assert event["records"]["clicks-3"][0]["offset"] == 12


def test_kafka_to_a_topic_has_record_info_and_a_payload_as_an_object() -> None:
    """The shape of Kafka topics as destinations, with their own word for the condition."""
    found = made("kafka", to_topic=True)
    assert found["requestContext"]["condition"] == "RetriesExhausted"
    assert found["KafkaBatchInfo"]["recordInfo"] == {"offset": "12", "timestamp": "2023-11-14T22:13:19.999Z"}
    assert "recordsInfo" not in found["KafkaBatchInfo"]
    assert found["payload"]["records"]["clicks-3"][0]["key"] == base64.b64encode(b"user-1").decode()


@pytest.mark.parametrize("kind", ["rows", "arrow", "sql"])
def test_kinds_that_aws_has_not_take_the_shape_of_kafka(kind: str) -> None:
    """Their records are those of a topic."""
    for to_topic in (False, True):
        assert made(kind, to_topic=to_topic) == made("kafka", to_topic=to_topic)


def test_dynamodb_has_its_own_info_and_event() -> None:
    """The batch info is that of DynamoDB streams, and the payload the change as an event."""
    value = b'{"eventName": "INSERT", "dynamodb": {"Keys": {"id": {"N": "1"}}}}'
    found = made("dynamodb", value=value)
    assert found["DDBStreamBatchInfo"]["shardId"] == "shardId-000000000003"
    assert ":dynamodb:" in found["DDBStreamBatchInfo"]["streamArn"]
    assert json.loads(found["payload"])["Records"][0]["dynamodb"]["Keys"] == {"id": {"N": "1"}}
    assert json.loads(made("dynamodb", value=b"no JSON")["payload"]) == {"Records": []}


def test_firehose_has_the_shape_of_its_error_output() -> None:
    """Each member of Firehose's error output, the data in base64, times in milliseconds."""
    found = made("firehose", key=None)
    own = found.pop("headrace")
    assert found == {
        "attemptsMade": 3,
        "arrivalTimestamp": 1_699_999_999_999,
        "errorCode": "Lambda.FunctionError",
        "errorMessage": "ValueError: no",
        "attemptEndingTimestamp": int(NOW * 1000),
        "rawData": base64.b64encode(b'{"id": 1}').decode(),
        "lambdaArn": ARN,
    }
    assert (own["offset"], own["request_id"], own["key"]) == (12, "c0ffee", None)


@pytest.mark.parametrize(
    ("error_type", "attempts", "condition", "response"),
    [
        ("ValueError", 1, "RetryAttemptsExhausted", "Unhandled"),
        ("Sandbox.Timedout", 1, "RetryAttemptsExhausted", "Unhandled"),
        ("BatchItemFailures", 4, "RetryAttemptsExhausted", None),
        ("RecordAgeExceeded", 2, "RecordAgeExceeded", "absent"),
        ("RecordAgeExceeded", 0, "RecordAgeExceeded", "absent"),
        ("MaximumPayloadSizeExceeded", 0, "MaximumPayloadSizeExceeded", "null"),
        ("RecordFault", 0, "DESERIALIZATION_ERROR", "null"),
    ],
)
@pytest.mark.parametrize("kind", ["kinesis", "kafka"])
def test_the_contexts_say_what_aws_was_seen_to_say(
    kind: str, error_type: str, attempts: int, condition: str, response: str | None
) -> None:
    """None at all where the record was too old, null where it was not sent, no error for partial responses."""
    found = made(kind, error_type=error_type, attempts=attempts)
    assert found["requestContext"]["condition"] == condition
    assert found["requestContext"]["approximateInvokeCount"] == attempts
    if response == "absent":
        assert "responseContext" not in found
    elif response == "null":
        assert found["responseContext"] is None
    else:
        assert found["responseContext"]["functionError"] == response


def test_only_what_the_event_loses_is_said_twice() -> None:
    """A plain key, a value and a header's bytes stand in the event alone; null and other bytes beside it."""
    assert "key" not in made("kinesis")["headrace"]
    assert made("kinesis", key=b"null")["headrace"].keys().isdisjoint({"key", "value", "headers"})
    assert made("kinesis", key=None)["headrace"]["key"] is None
    assert made("kinesis", key=b"\xff")["headrace"]["key"] == "/w=="
    assert made("kinesis", value=None)["headrace"]["value"] is None
    assert made("kinesis", headers=(("h", b"1"),))["headrace"]["headers"] == [["h", "MQ=="]]
    plain = set(made("kinesis")["headrace"])
    assert set(made("kafka", key=None, value=None, headers=(("h", b"\xff"),))["headrace"]) == plain
    assert made("kafka", headers=(("h", b""), ("h", None)))["headrace"]["null_headers"] == [1]


BYTES = st.none() | st.binary(max_size=20)
RECORDS = st.builds(
    FailedRecord,
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-1, 2**60),
    key=BYTES | st.text(max_size=8).map(str.encode),
    value=BYTES | st.just(b'{"eventName": "REMOVE", "dynamodb": {"Keys": {}, "x": 1e300}}'),
    headers=st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=4).map(tuple),
    reason=st.text(max_size=20),
    error_type=st.sampled_from(
        ["KeyError", "RecordAgeExceeded", "MaximumPayloadSizeExceeded", "BatchItemFailures", "RecordFault"]
    ),
    attempts=st.integers(0, 10),
    request_id=st.none() | st.uuids().map(str),
)


@given(record=RECORDS, kind=st.sampled_from(KINDS), to_topic=st.booleans())
def test_any_record_comes_back_with_its_identity(record: FailedRecord, kind: str, to_topic: bool) -> None:
    """Whatever key, value and headers it has, and whatever its kind."""
    entry = orjson.loads(orjson.dumps(documents(kind, to_topic=to_topic)(record, STREAM)))
    found = from_document(entry)
    assert found.record == record
    assert found.identity == Identity("p", "cluster-1", "clicks", "id-1", record.partition, record.offset)
    assert found.reported_at == int(NOW * 1000)


@given(record=RECORDS)
def test_a_document_of_the_older_shape_is_still_read(record: FailedRecord) -> None:
    """What destinations hold from before has the identity at its top, and says not when it was reported."""
    entry = orjson.loads(orjson.dumps(plain_document("p", STREAM, record)))
    identity = Identity("p", "cluster-1", "clicks", "id-1", record.partition, record.offset)
    assert from_document(entry) == Failure(identity, record, None, None)
    del entry["request_id"]  # nor do the oldest say this
    assert from_document(entry).record.request_id is None


@pytest.mark.parametrize(
    "entry",
    [
        *(None, [], "text", {}, {"headrace": None}, {"headrace": {}}, {"version": "1.0", "pipeline": "p"}),
        {**json.loads(orjson.dumps(documents("kafka")(record(), STREAM))), "payload": "{"},
        {**json.loads(orjson.dumps(documents("kinesis")(record(), STREAM))), "payload": '{"Records": []}'},
        {**json.loads(orjson.dumps(documents("firehose")(record(), STREAM))), "rawData": "?"},
    ],
)
def test_anything_else_is_a_value_error(entry: object) -> None:
    """A destination may hold what others wrote, or what was damaged."""
    with pytest.raises(ValueError, match=r"."):
        from_document(entry)


def test_a_later_version_is_refused() -> None:
    """A document that this headrace would misread."""
    entry = made("kafka")
    entry["headrace"]["version"] = 2
    with pytest.raises(ValueError, match="later version"):
        from_document(entry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to_topic", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"\x01" * 10_000},
        {"key": b"\xff" * 10_000},
        {"key": b'"' * 10_000},
        {"value": b"\xff" * 10_000},
        {"value": b'{"eventName":"INSERT","dynamodb":{"Keys":{},"x":["' + b"\xc3\xa9" * 5_000 + b'"]}}'},
        {"value": b'{"eventName":"INSERT","dynamodb":{"Keys":{},"x":[' + b"1e9," * 3_000 + b"1]}}"},
        {"headers": (("", None),) * 20_000},
        {"headers": (("\x01", None),) * 20_000},
        {"headers": (("a", b"\x80"),) * 20_000},
        {"headers": (("h", b"\x80" * 10_000),)},
        {"headers": (("\x01" * 10_000, b""),)},
    ],
)
def test_a_message_is_no_larger_than_its_topic_is_made_for(
    kind: str, to_topic: bool, changes: dict[str, Any]
) -> None:
    """However badly JSON does with the bytes of a record, its growth is bounded."""
    failed = record(reason="\x01" * 2_000, **changes)
    wire = len(failed.key or b"") + len(failed.value or b"")
    wire += sum(2 + len(name) + len(value or b"") for name, value in failed.headers)
    message = len(orjson.dumps(documents(kind, to_topic=to_topic)(failed, STREAM))) + len(failed.key or b"")
    assert message <= wire * DOCUMENT_GROWTH + DOCUMENT_BYTES - 4096
