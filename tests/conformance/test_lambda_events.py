"""The events that functions get, member by member and in order, as they arrive in a process of their own.

Not here: partition keys, sizes and other values of single members (tests/unit/test_kinds_events.py and others), and
what arrives over the Runtime API (tests/integration/test_provided.py).
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Batch, from_rows
from engine.protocols import Window
from functions.kinds.kinesis import sequence_number
from tests.conformance.lambda_support import TIMESTAMP_MS, Function, batch, function

pytestmark = pytest.mark.slow

WINDOW = Window(1_700_000_000, 1_700_000_060, b'{"n":1}', is_final=False, is_terminated_early=True)
WINDOW_MEMBERS = {
    "window": {"start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:14:20Z"},
    "state": {"n": 1},
    "shardId": "shardId-000000000003",
    "isFinalInvokeForWindow": False,
    "isWindowTerminatedEarly": True,
}
FIRST, SECOND = sequence_number(7), sequence_number(8)
KINESIS_ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/clicks"

#: Gives back what it was called with, as text, so that the order of members is seen too.
ECHO = """
import json

def stream(event, context):
    return {"state": {}, "rows": [{"seen": json.dumps(json.dumps(event))}]}

def firehose(event, context):
    import base64
    data = base64.b64encode(json.dumps({"seen": json.dumps(event)}).encode()).decode()
    return {"records": [{"recordId": each["recordId"], "result": "Ok", "data": data} for each in event["records"]]}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "app.py").write_text(ECHO)
    return tmp_path


def same(one: object, other: object) -> bool:
    """Equal, with types and the order of members."""
    return json.dumps(one) == json.dumps(other)


async def seen(echo: Function, given: Batch, window: Window | None = None) -> Any:
    return json.loads(await echo.seen(given, window=window))


async def test_a_kinesis_event(root: Path) -> None:
    """A record with a key, one without key and value; with a window, its members come after the records."""
    rows = [(7, TIMESTAMP_MS, b"user-1", b"\x00data", [("h", b"x")]), (8, 1, None, None, [])]
    given = from_rows("clicks", 3, rows, start=7, end=9)

    def record(sequence: str, key: str, data: str, at: float) -> dict[str, object]:
        return {
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": key,
                "sequenceNumber": sequence,
                "data": data,
                "approximateArrivalTimestamp": at,
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": f"shardId-000000000003:{sequence}",
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": "arn:aws:iam::000000000000:role/clicks-fn",
            "awsRegion": "us-east-1",
            "eventSourceARN": KINESIS_ARN,
        }

    records = [record(FIRST, "user-1", "AGRhdGE=", 1_700_000_000.123), record(SECOND, "null", "", 0.001)]
    async with function("kinesis", "app.stream", root) as echo:
        assert same(await seen(echo, given), {"Records": records})
        found = await seen(echo, given, WINDOW)
        assert found == {"Records": records, **WINDOW_MEMBERS, "eventSourceARN": KINESIS_ARN}
        nothing = await seen(echo, given.head(0), WINDOW)
        assert nothing == {"Records": [], **WINDOW_MEMBERS, "eventSourceARN": KINESIS_ARN}
        assert type(found["Records"][0]["kinesis"]["approximateArrivalTimestamp"]) is float
        many = await seen(echo, batch(*[b"x"] * 500))
        assert {each["eventID"].partition(":")[0] for each in many["Records"]} == {"shardId-000000000003"}


async def test_a_kafka_event(root: Path) -> None:
    """One partition's records, with signed header bytes, null keys and values, and the clock of the topic."""
    rows = [(7, TIMESTAMP_MS, b"k", b"v", [("h", b"\x7f\x80"), ("h", b"")]), (9, 5, None, None, [])]
    given = from_rows("a.b-c_1", 12, rows, start=7, end=10, log_append_time=True)
    first = {
        "topic": "a.b-c_1",
        "partition": 12,
        "offset": 7,
        "timestamp": TIMESTAMP_MS,
        "timestampType": "LOG_APPEND_TIME",
        "key": "aw==",
        "value": "dg==",
        "headers": [{"h": [127, -128]}, {"h": []}],
    }
    second = {**first, "offset": 9, "timestamp": 5, "key": None, "value": None, "headers": []}
    records = {"a.b-c_1-12": [first, second]}
    servers = {"bootstrap_servers": "b1:9092,b2:9092"}
    head = {"bootstrapServers": "b1:9092,b2:9092", "records": records}
    async with function("kafka", "app.stream", root, **servers) as echo:
        assert same(await seen(echo, given), {"eventSource": "SelfManagedKafka", **head})
        members = await seen(echo, given.head(0), WINDOW)
        assert members["records"] == {"a.b-c_1-12": []}
        assert {name: members[name] for name in WINDOW_MEMBERS} == {
            **WINDOW_MEMBERS,
            "shardId": "shardId-000000000012",
        }
        assert "eventSourceARN" not in members
    arn = "arn:aws:kafka:eu-west-1:123456789012:cluster/c/1-2"
    async with function(
        "kafka", "app.stream", root, event_source="aws:kafka", event_source_arn=arn, **servers
    ) as echo:
        assert same(await seen(echo, given), {"eventSource": "aws:kafka", "eventSourceArn": arn, **head})


async def test_a_dynamodb_event(root: Path) -> None:
    """A stream record as it is, and a bare change with what it lacks; times are whole seconds."""
    whole = {
        "eventID": "1",
        "eventName": "REMOVE",
        "eventVersion": "1.0",
        "eventSource": "aws:dynamodb",
        "awsRegion": "eu-west-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_600_000_000,
            "Keys": {"id": {"N": "101"}},
            "OldImage": {"id": {"N": "101"}},
            "SequenceNumber": "111",
            "SizeBytes": 26,
            "StreamViewType": "OLD_IMAGE",
        },
        "eventSourceARN": "arn:own",
        "userIdentity": {"type": "Service", "principalId": "dynamodb.amazonaws.com"},
    }
    bare = {"eventName": "INSERT", "dynamodb": {"Keys": {"id": {"S": "a"}}, "NewImage": {"id": {"S": "a"}}}}
    given = batch(json.dumps(whole).encode(), json.dumps(bare).encode(), start=7)
    arn = "arn:aws:dynamodb:us-east-1:000000000000:table/clicks/stream/1970-01-01T00:00:00.000"
    filled = {
        "eventID": f"shardId-000000000003:{SECOND}",
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_700_000_001,
            **bare["dynamodb"],  # type: ignore[dict-item]
            "SequenceNumber": SECOND,
            "SizeBytes": len(json.dumps(bare)),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
        "eventSourceARN": arn,
    }
    async with function("dynamodb", "app.stream", root) as echo:
        assert same(await seen(echo, given), {"Records": [whole, filled]})
        found = await seen(echo, given.head(0), WINDOW)
        assert found == {"Records": [], **WINDOW_MEMBERS, "eventSourceARN": arn}


async def test_a_firehose_event(root: Path) -> None:
    """Of a delivery stream that reads a Kinesis stream; times are whole milliseconds."""
    async with function("firehose", "app.firehose", root) as echo:
        result = await echo.call(batch(b"data", start=7))
        [row] = result.rows  # type: ignore[misc]
        event = json.loads(str(row["seen"]))
        assert event.pop("invocationId") == echo.reports[0].request_id
    expected = {
        "sourceKinesisStreamArn": KINESIS_ARN,
        "deliveryStreamArn": "arn:aws:firehose:us-east-1:000000000000:deliverystream/clicks",
        "region": "us-east-1",
        "records": [
            {
                "recordId": FIRST,
                "approximateArrivalTimestamp": TIMESTAMP_MS,
                "data": base64.b64encode(b"data").decode(),
                "kinesisRecordMetadata": {
                    "sequenceNumber": FIRST,
                    "subsequenceNumber": 0,
                    "partitionKey": "k",
                    "shardId": "shardId-000000000003",
                    "approximateArrivalTimestamp": TIMESTAMP_MS,
                },
            }
        ],
    }
    assert same(event, expected)
