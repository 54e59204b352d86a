"""Filters of a source: where payloads and metadata stand in patterns, and AWS's tables for what does not fit."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.batch import Batch, from_rows
from engine.errors import UserError
from engine.filters import FILTERS_MAX, FilterCriteria, InvalidPattern, Pattern
from engine.filters.json_text import parse
from engine.filters.trial import Trial
from functions.kinds import dynamodb, firehose, kafka, kinesis
from tests.unit.filter_worlds import world

JSON_RULE = '"type":["click"]'
CLICK, VIEW, TEXT, BINARY = b'{"type":"click"}', b'{"type":"view"}', b"click", b"\xff\xfe"

KINESIS_LIKE = ("kinesis", "firehose")
KAFKA_LIKE = ("kafka", "rows", "arrow", "sql")


def batch_of(*values: bytes | None, keys: list[bytes | None] | None = None, **changed: Any) -> Batch:
    keys = keys or [b"user-1"] * len(values)
    headers = (("trace", b"\x01\xff"),)
    rows = [
        (at + 7, 1_700_000_000_123 + at, key, value, headers)
        for at, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    return from_rows("clicks", 3, rows, start=7, end=7 + len(rows), **changed)


def kept(kind: str, patterns: str | list[str], batch: Batch, **settings: str) -> list[bool]:
    criteria = FilterCriteria.of([patterns] if isinstance(patterns, str) else patterns, kind=kind, **settings)
    found: list[bool] = criteria.select(batch).tolist()
    assert found == criteria.select_by_reference(batch).tolist()
    return found


@pytest.mark.parametrize("kind", KINESIS_LIKE)
@pytest.mark.parametrize(
    ("payload", "pattern", "expected"),
    [
        # JSON payload, JSON pattern: filtered
        (CLICK, '{"data":{"type":["click"]}}', True),
        (VIEW, '{"data":{"type":["click"]}}', False),
        (b'[{"type":"click"}]', '{"data":{"type":["click"]}}', True),
        # JSON payload, no pattern on data: metadata only
        (VIEW, '{"approximateArrivalTimestamp":[{"numeric":[">",0]}]}', True),
        (VIEW, '{"approximateArrivalTimestamp":[{"numeric":["<",0]}]}', False),
        # no JSON, JSON pattern: dropped
        (TEXT, '{"data":{"type":["click"]}}', False),
        (TEXT, '{"data":{"type":[{"exists":false}]}}', False),
        (b'"click"', '{"data":{"type":[{"exists":false}]}}', False),
        (BINARY, '{"data":{"type":[{"exists":false}]}}', False),
        (b"", '{"data":{"type":[{"exists":false}]}}', False),
        (None, '{"data":{"type":[{"exists":false}]}}', False),
        (b'{"type":"click"', '{"data":{"type":["click"]}}', False),
        # no JSON, no pattern on data: metadata only
        (TEXT, '{"approximateArrivalTimestamp":[{"numeric":[">",0]}]}', True),
        (BINARY, '{"approximateArrivalTimestamp":[{"numeric":["<",0]}]}', False),
        # both
        (CLICK, '{"data":{"type":["click"]},"approximateArrivalTimestamp":[{"numeric":["<",0]}]}', False),
        (CLICK, '{"data":{"type":["click"]},"approximateArrivalTimestamp":[{"numeric":[">",0]}]}', True),
    ],
)
def test_table_of_kinesis(kind: str, payload: bytes | None, pattern: str, expected: bool) -> None:
    """AWS's table for Kinesis: what is no JSON is dropped as soon as the pattern asks for JSON."""
    assert kept(kind, pattern, batch_of(payload)) == [expected]


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("kinesis", '{"data":["click"]}'),
        ("firehose", '{"data":[{"prefix":"c"}]}'),
        ("kinesis", '{"$or":[{"data":["click"]},{"partitionKey":["a"]}]}'),
        ("dynamodb", '{"dynamodb":["x"]}'),
    ],
)
def test_plain_strings_are_refused_for_json_sources(kind: str, pattern: str) -> None:
    """A pattern of plain strings on the data of Kinesis or DynamoDB is an error when it is set."""
    with pytest.raises(InvalidPattern, match="Invalid filter pattern definition"):
        FilterCriteria.of([pattern], kind=kind)


@pytest.mark.parametrize("kind", KAFKA_LIKE)
@pytest.mark.parametrize(
    ("payload", "pattern", "expected"),
    [
        # plain string, plain pattern: filtered
        (TEXT, '{"value":["click"]}', True),
        (b"view", '{"value":["click"]}', False),
        (b"clicks", '{"value":[{"prefix":"click"}]}', True),
        (b"", '{"value":[""]}', True),
        (b"42", '{"value":["42"]}', True),
        (b"42", '{"value":[42]}', False),
        (None, '{"value":[null]}', True),
        (None, '{"value":["click"]}', False),
        # JSON, JSON pattern: filtered
        (CLICK, '{"value":{"type":["click"]}}', True),
        (VIEW, '{"value":{"type":["click"]}}', False),
        # mismatch either way: the rule is passed over, the record is kept
        (TEXT, '{"value":{"type":["click"]}}', True),
        (b"{torn", '{"value":{"type":["click"]}}', True),
        (None, '{"value":{"type":["click"]}}', True),
        (CLICK, '{"value":["view"]}', True),
        (TEXT, '{"value":{"type":["click"]},"partition":[3]}', True),
        (TEXT, '{"value":{"type":["click"]},"partition":[4]}', False),
        (CLICK, '{"value":["view"],"partition":[4]}', False),
        # not UTF-8: metadata only
        (BINARY, '{"value":["click"]}', True),
        (BINARY, '{"value":{"type":["click"]}}', True),
        (BINARY, '{"value":["click"],"partition":[4]}', False),
        # no pattern on the value
        (TEXT, '{"partition":[3]}', True),
        (TEXT, '{"partition":[4]}', False),
    ],
)
def test_table_of_kafka(kind: str, payload: bytes | None, pattern: str, expected: bool) -> None:
    """AWS's table for Kafka: a rule that does not fit the payload is passed over, and the record kept."""
    assert kept(kind, pattern, batch_of(payload)) == [expected]


CHANGE = {
    "eventName": "INSERT",
    "dynamodb": {"Keys": {"id": {"S": "a"}}, "NewImage": {"id": {"S": "a"}, "n": {"N": "101"}}},
}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ('{"eventName":["INSERT"]}', True),
        ('{"eventName":["REMOVE"]}', False),
        ('{"dynamodb":{"NewImage":{"n":{"N":["101"]}}}}', True),
        ('{"dynamodb":{"NewImage":{"n":{"N":[101]}}}}', False),  # attribute numbers are strings
        ('{"dynamodb":{"NewImage":{"n":{"N":[{"numeric":["=",101]}]}}}}', False),
        ('{"dynamodb":{"OldImage":{"id":{"S":[{"exists":false}]}}}}', True),
        ('{"dynamodb":{"NewImage":{"id":[{"exists":true}]}}}', False),  # an object is no leaf
        ('{"dynamodb":{"ApproximateCreationDateTime":[{"numeric":[">",1699999999]}]}}', True),
        ('{"dynamodb":{"ApproximateCreationDateTime":["1700000000"]}}', False),
        ('{"eventSource":["aws:dynamodb"],"awsRegion":["us-east-1"],"eventVersion":["1.1"]}', True),
        ('{"dynamodb":{"StreamViewType":["NEW_AND_OLD_IMAGES"],"SizeBytes":[{"numeric":[">",50]}]}}', True),
        ('{"dynamodb":{"SequenceNumber":[{"suffix":"7"}]},"eventID":[{"prefix":"shardId-000000000003:49"}]}', True),
        ('{"eventSourceARN":[{"wildcard":"*:table/clicks/*"}]}', True),
    ],
)
def test_dynamodb_patterns_see_the_whole_record(
    pattern: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value is the stream record; what the event fills in can be asked for, and its time is a number."""
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert kept("dynamodb", pattern, batch_of(json.dumps(CHANGE).encode(), TEXT, b"[]")) == [expected, False, False]


def test_the_time_of_a_dynamodb_record_may_be_text() -> None:
    """A creation time that is spelt as a string is compared as the number that it is."""
    pattern = '{"dynamodb":{"ApproximateCreationDateTime":[{"numeric":["<",1000]}]}}'
    values = [
        json.dumps({**CHANGE, "dynamodb": {"ApproximateCreationDateTime": at}})
        for at in (999, "999.5", "soon", 1001)
    ]
    assert kept("dynamodb", pattern, batch_of(*[value.encode() for value in values])) == [True, True, False, False]


@pytest.mark.parametrize(
    ("kind", "pattern", "expected"),
    [
        ("kinesis", '{"partitionKey":["user-1"]}', [True, False, False, False]),
        ("kinesis", '{"partitionKey":["null"]}', [False, True, False, False]),
        ("kinesis", '{"partitionKey":["/w=="]}', [False, False, True, False]),
        ("kinesis", '{"sequenceNumber":[{"suffix":"08"}]}', [False, True, False, False]),
        (
            "kinesis",
            '{"eventID":[{"prefix":"shardId-000000000003:49"}],"eventName":["aws:kinesis:record"]}',
            [True] * 4,
        ),
        (
            "kinesis",
            '{"eventSource":["aws:kinesis"],"eventVersion":["1.0"],"kinesisSchemaVersion":["1.0"]}',
            [True] * 4,
        ),
        ("kinesis", '{"eventSourceARN":["arn:given"],"awsRegion":["eu-north-1"]}', [True] * 4),
        ("kinesis", '{"approximateArrivalTimestamp":[1700000000.124]}', [False, True, False, False]),
        ("kinesis", '{"invokeIdentityArn":[{"exists":true}],"nope":[{"exists":false}]}', [True] * 4),
        ("kinesis", '{"nope":["x"]}', [False] * 4),
        ("kafka", '{"topic":["clicks"],"partition":[3],"timestampType":["CREATE_TIME"]}', [True] * 4),
        ("kafka", '{"offset":[{"numeric":[">=",8,"<",10]}]}', [False, True, True, False]),
        ("kafka", '{"timestamp":[1700000000124]}', [False, True, False, False]),
        ("kafka", '{"headers":{"trace":[-1]}}', [True] * 4),
        ("kafka", '{"headers":{"trace":[255]}}', [False] * 4),
        ("kafka", '{"key":["user-1"]}', [True, False, True, True]),  # the third is no UTF-8, the fourth JSON
        ("kafka", '{"key":[null]}', [False, True, True, True]),
        ("kafka", '{"key":{"id":[5]}}', [True, True, True, False]),
        ("kafka", '{"key":{"id":[6]}}', [True, True, True, True]),
        (
            "firehose",
            '{"kinesisRecordMetadata":{"partitionKey":["user-1"],"subsequenceNumber":[0]}}',
            [True, False, False, False],
        ),
        (
            "firehose",
            '{"recordId":[{"suffix":"10"}],"approximateArrivalTimestamp":[1700000000126]}',
            [False, False, False, True],
        ),
    ],
)
def test_metadata(kind: str, pattern: str, expected: list[bool]) -> None:
    """What is known of a record beside its value can be asked for, as older documents of AWS have it."""
    batch = batch_of(CLICK, CLICK, CLICK, CLICK, keys=[b"user-1", None, b"\xff", b'{"id":6}'])
    settings = {"event_source_arn": "arn:given", "region": "eu-north-1"}
    assert kept(kind, pattern, batch, **settings) == expected


def test_names_of_headers_may_be_any_bytes() -> None:
    """A header whose name is no UTF-8 stops nothing, in a part of a batch as well."""
    batch = batch_of(CLICK, CLICK, CLICK)
    names = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa")]
    )
    flat = pa.StructArray.from_arrays([names, pa.array([b"x", b"\x05"], pa.binary())], ["key", "value"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1, 2], pa.int32()), flat)
    columns = [*batch.records.columns[:4], lists]
    changed = Batch(
        "clicks", 3, batch.start, batch.end, pa.RecordBatch.from_arrays(columns, names=batch.records.schema.names)
    )
    assert kept("kafka", '{"headers":{"a":[5]}}', changed) == [False, False, True]
    assert kept("kafka", '{"headers":{"a":[5]}}', changed.tail(1)) == [False, True]
    assert kept("kafka", '{"headers":{"\ufffd":[120]}}', changed) == [True, False, False]


def test_append_time_is_told() -> None:
    """The clock of a batch's timestamps is metadata."""
    assert kept("kafka", '{"timestampType":["LOG_APPEND_TIME"]}', batch_of(CLICK, log_append_time=True)) == [True]


def test_filters_are_alternatives() -> None:
    """A record is kept by any one of the filters; without filters all are."""
    batch = batch_of(CLICK, VIEW, b'{"type":"buy"}', TEXT)
    two = ['{"data":{"type":["click"]}}', '{"data":{"type":["buy"]}}']
    assert kept("kinesis", two, batch) == [True, False, True, False]
    assert kept("kinesis", [*two, '{"eventName":["aws:kinesis:record"]}'], batch) == [True] * 4
    assert kept("kinesis", [], batch) == [True] * 4
    both = '{"$or":[{"data":{"type":["click"]}},{"sequenceNumber":[{"suffix":"10"}]}]}'
    assert kept("kinesis", both, batch) == [True, False, False, True]


def test_limits_and_names() -> None:
    """Ten filters are taken, an eleventh is refused with AWS's words; a kind that is none is named."""
    one = '{"data":{"type":["click"]}}'
    FilterCriteria.of([one] * FILTERS_MAX, kind="kinesis")
    with pytest.raises(InvalidPattern, match="There are 11 filters; a mapping has at most 10"):
        FilterCriteria.of([one] * (FILTERS_MAX + 1), kind="kinesis")
    with pytest.raises(UserError, match="kind 'sqs' has no filters"):
        FilterCriteria.of([one], kind="sqs")


def columns(batch: Batch) -> list[list[Any]]:
    return [batch.records.column(name).to_pylist() for name in ("offset", "timestamp", "key", "value", "headers")]


def records(kind: str, batch: Batch) -> list[dict[str, Any]]:
    """The records of the event that a function of the kind gets."""
    rest = (batch.partition, *columns(batch))
    if kind == "kinesis":
        made = kinesis.build_event(kinesis.envelope(kinesis.KinesisStream(batch.topic, kinesis.region())), *rest)
        return made["Records"]  # type: ignore[return-value]
    if kind == "firehose":
        stream = firehose.DeliveryStream(batch.topic, kinesis.region())
        return firehose.build_event(firehose.envelope(stream, "id"), *rest)["records"]  # type: ignore[return-value]
    if kind == "dynamodb":
        head = dynamodb.envelope(dynamodb.DynamoStream(batch.topic, kinesis.region()))
        return dynamodb.build_event(head, *rest)["Records"]  # type: ignore[return-value]
    head = kafka.envelope(kafka.KafkaSource(), batch.topic, log_append_time=batch.log_append_time)
    return kafka.build_event(head, *rest)["records"][f"{batch.topic}-{batch.partition}"]  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("kind", ["kinesis", "firehose", "kafka", "dynamodb"])
def test_metadata_are_those_of_the_event(kind: str) -> None:
    """Each value that stands in a record of the event is matched by a pattern that names just it."""
    value = json.dumps(CHANGE).encode()
    batch = batch_of(value, keys=[b"user-1"])
    (record,) = records(kind, batch)
    if kind == "kinesis":
        record |= record.pop("kinesis")
    payloads = {"kinesis": ("data",), "firehose": ("data",), "kafka": ("value", "key")}.get(kind, ())

    def asked(found: Any) -> Any:
        if isinstance(found, dict):
            return {name: asked(each) for name, each in found.items()}
        return asked(found[0]) if isinstance(found, list) else [found]

    found = 0
    for name, each in record.items():
        if name in payloads:
            continue
        found += 1
        assert kept(kind, json.dumps({name: asked(each)}), batch) == [True], name
    assert found >= 3


def test_files_are_judged_like_batches() -> None:
    """A record tried by itself, as it stands in an event, is kept as it is in a batch."""
    seen = 0
    for seed in range(150):
        criteria, batch = world(Random(seed))
        if criteria.kind not in ("kinesis", "firehose", "kafka"):
            continue
        trial = Trial(criteria.patterns)
        made = [parse(json.dumps(record)) for record in records(criteria.kind, batch)]
        assert [trial.matches(record) for record in made] == criteria.select(batch).tolist(), seed
        seen += len(made)
    assert seen > 300


def test_a_whole_event_matches_by_one_record() -> None:
    """A Lambda event of a source is matched if one of its records is; other objects are taken as they are."""
    trial = Trial([Pattern.of('{"data":{"type":["click"]}}')])
    view, click = records("kinesis", batch_of(VIEW, CLICK))
    assert trial.matches({"Records": [view, click]})
    assert not trial.matches({"Records": [view, view]})
    assert trial.matches({"invocationId": "i", "records": records("firehose", batch_of(VIEW, CLICK))})
    of_kafka = Trial([Pattern.of('{"value":{"type":["click"]}}')])
    assert of_kafka.matches({"records": {"clicks-3": records("kafka", batch_of(VIEW, CLICK))}})
    assert not of_kafka.matches({"records": {"clicks-3": records("kafka", batch_of(VIEW))}})
    plain = Trial([Pattern.of('{"Records":{"id":[1]}}')])
    assert plain.matches({"Records": [{"id": 1}]})
    sqs = Trial([Pattern.of('{"body":["x"]}')])
    assert sqs.matches({"Records": [{"eventSource": "aws:sqs", "body": "x"}]})
