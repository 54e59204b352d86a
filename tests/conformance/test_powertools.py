"""AWS's Powertools for Python, unmodified, in functions that headrace runs: nothing that it is given is rejected.

The functions are in `powertools/`. Not here: what each answer means in detail (tests/unit/test_kinds_responses.py).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from connectors.kafka.broker import Broker
from engine.errors import FunctionError
from engine.protocols import Window
from functions.kinds.kinesis import sequence_number
from tests.conformance.lambda_support import TIMESTAMP_MS, Function, batch, function, worked
from tests.integration.support import Project, pipeline
from tests.unit.engine_world import policy

pytestmark = pytest.mark.slow

APPS = Path(__file__).parent / "powertools"
STREAM_ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/clicks"


@pytest.fixture(autouse=True)
def _us_east_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def clicks(*numbers: int, bad: tuple[int, ...] = ()) -> list[bytes]:
    return [json.dumps({"id": n, **({"bad": True} if n in bad else {})}).encode() for n in numbers]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def variables(folder: Path) -> dict[str, str]:
    return {"KEPT": str(folder / "kept.sqlite"), "EFFECTS": str(folder / "effects")}


# --- kinesis


async def test_kinesis_events_are_what_powertools_reads(tmp_path: Path) -> None:
    """Every property of its data classes, its models and its envelope, in a tumbling window and outside of one."""
    values = clicks(1)
    async with function("kinesis", "kinesis_app.handler", APPS, variables=variables(tmp_path)) as clicked:
        await _data_classes_of_kinesis(clicked, values[0])
        await _windows_of_kinesis(clicked)
        [record] = (await clicked.seen(batch(*values, key=b"parsed")))["Records"]
        assert record["kinesis"]["data"] == values[0].decode()
        assert record["kinesis"]["approximateArrivalTimestamp"] == TIMESTAMP_MS / 1000
        assert record["eventID"] == f"shardId-000000000003:{sequence_number(0)}"
        found = await clicked.seen(batch(*clicks(1, 2, bad=(2,)), key=b"enveloped"))
        assert found == [{"id": 1, "bad": False}, {"id": 2, "bad": True}]
        await _logs_and_metrics(clicked)
    assert {report.status for report in clicked.reports} == {"success"}


async def _data_classes_of_kinesis(clicked: Function, value: bytes) -> None:
    seen = await clicked.seen(batch(value, key=b"data"))
    assert seen == {
        "records": [
            {
                "aws_region": "us-east-1",
                "event_id": f"shardId-000000000003:{sequence_number(0)}",
                "event_name": "aws:kinesis:record",
                "event_source": "aws:kinesis",
                "event_source_arn": STREAM_ARN,
                "event_version": "1.0",
                "invoke_identity_arn": "arn:aws:iam::000000000000:role/clicks-fn",
                "kinesis": {
                    "approximate_arrival_timestamp": TIMESTAMP_MS / 1000,
                    "data": b64(value),
                    "kinesis_schema_version": "1.0",
                    "partition_key": "data",
                    "sequence_number": sequence_number(0),
                },
                "text": value.decode(),
                "json": {"id": 1},
            }
        ],
        "window": None,
        "state": {},
        "shard_id": None,
        "event_source_arn": None,
        "is_final_invoke_for_window": None,
        "is_window_terminated_early": None,
    }


async def _windows_of_kinesis(clicked: Function) -> None:
    window = Window(
        start=1_700_000_000, end=1_700_000_060, state=b'{"calls":4}', is_final=True, is_terminated_early=False
    )
    empty = batch(key=b"data")
    result = await clicked.call(empty, window=window)
    assert result.state == b'{"calls":5}'
    assert not isinstance(result.rows, type(None))
    [row] = result.rows  # type: ignore[misc]
    assert json.loads(str(row["seen"])) == {
        "records": [],
        "window": {"start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:14:20Z"},
        "state": {"calls": 4},
        "shard_id": "shardId-000000000003",
        "event_source_arn": STREAM_ARN,
        "is_final_invoke_for_window": True,
        "is_window_terminated_early": False,
    }


async def _logs_and_metrics(clicked: Function) -> None:
    """Its logger takes the context as it is; its metrics are lines of the log. Its tracer needs X-Ray."""
    clicked.log.clear()
    left = await clicked.seen(batch(*clicks(1, 2), key=b"logged"))
    assert 0 < left <= 30_000
    start, *lines, end, report = clicked.log.lines
    request_id = start.removeprefix("START RequestId: ").removesuffix(" Version: $LATEST")
    assert end == f"END RequestId: {request_id}"
    assert report.startswith(f"REPORT RequestId: {request_id}\t")
    said = [json.loads(line) for line in lines]
    [logged] = [each for each in said if "level" in each]
    expected = {
        "level": "INFO",
        "message": "got 2",
        "service": "clicks",
        "function_name": "clicks-fn",
        "function_memory_size": "512",
        "function_arn": "arn:aws:lambda:us-east-1:000000000000:function:clicks-fn",
        "function_request_id": request_id,
        "shard": "shardId-000000000003",
    }
    assert {name: logged[name] for name in expected} == expected
    measured = [each for each in said if "_aws" in each]
    assert [each["Clicks"] for each in measured if "Clicks" in each] == [[2.0]]
    assert [each["function_name"] for each in measured if "ColdStart" in each] == ["clicks-fn"]


async def test_what_powertools_reports_of_kinesis_is_what_is_tried_again(tmp_path: Path) -> None:
    """Its batch processors, of plain functions, coroutines and models: the lowest failed record begins the rest."""
    rules = policy(retries_max=2, reports=True)
    halves = policy(retries_max=0, reports=True, bisects=True)
    async with function("kinesis", "kinesis_app.handler", APPS, variables=variables(tmp_path)) as clicked:
        for act in (b"batch", b"async", b"models"):
            clicked.calls.clear()
            done = await worked(clicked, batch(*clicks(0, 1, 2, 3, 4, bad=(2,)), key=act), rules)
            assert (act, clicked.calls) == (act, [[0, 1, 2, 3, 4], [2, 3, 4], [2, 3, 4]])
            assert (done.handled, done.failed) == (2, [2, 3, 4])
            assert {(each.error_type, each.attempts) for each in done.failures} == {("BatchItemFailures", 3)}
            clicked.calls.clear()
            assert (await worked(clicked, batch(*clicks(0, 1), key=act), rules)).failed == []
            assert clicked.calls == [[0, 1]]
        clicked.calls.clear()
        done = await worked(clicked, batch(*clicks(0, 1, bad=(0, 1)), key=b"batch"), halves)
        assert clicked.calls == [[0, 1], [0], [1]], "it raises when all have failed, and the batch is halved"
        assert {each.error_type for each in done.failures} == {"BatchProcessingError"}
        clicked.calls.clear()
        done = await worked(clicked, batch(*clicks(0, 1, bad=(0, 1)), key=b"lenient"), halves)
        assert clicked.calls == [[0, 1], [0], [1]], "it reports that all have failed, and the first is set apart"
        assert (done.failed, {each.error_type for each in done.failures}) == ([0, 1], {"BatchItemFailures"})


async def test_idempotent_functions_have_their_effects_once(tmp_path: Path) -> None:
    """What is delivered again has its effect once, in the same process and in the next one."""
    effects = tmp_path / "effects"
    given = batch(*clicks(0, 1, 2, 3, bad=(1,)), key=b"idempotent")
    rules = policy(retries_max=2, reports=True)
    for _ in range(2):
        async with function("kinesis", "kinesis_app.handler", APPS, variables=variables(tmp_path)) as clicked:
            done = await worked(clicked, given, rules)
            assert (clicked.calls, done.failed) == ([[0, 1, 2, 3], [1, 2, 3], [1, 2, 3]], [1, 2, 3])
            first = await clicked.call(batch(*clicks(7), key=b"whole"))
            second = await clicked.call(batch(*clicks(7), key=b"whole"))
            assert first == second
            assert first.rows
    assert sorted(effects.read_text().split()) == ["0", "2", "3", "whole"]


# --- kafka


async def test_kafka_events_are_what_powertools_reads() -> None:
    """Every property of its data classes, its models, its envelope and its consumer, with headers and null keys."""
    headers = [("trace", b"\x00\x7f\x80\xff"), ("empty", b"")]
    settings: dict[str, Any] = {"bootstrap_servers": "b1:9092,b2:9092"}
    async with function("kafka", "kafka_app.handler", APPS, **settings) as clicked:
        given = batch(*clicks(1), key=b"parsed", headers=headers)
        seen = await clicked.seen(given)
        assert seen["eventSource"] == "SelfManagedKafka"
        [record] = seen["records"]["clicks-3"]
        assert (record["key"], record["value"], record["offset"]) == ("parsed", '{"id": 1}', 0)
        assert record["headers"] == [{"trace": "0x007f80ff"}, {"empty": ""}]
        assert record["timestamp"] == "2023-11-14T22:13:20.123000+00:00"
        assert await clicked.seen(batch(*clicks(1, 2), key=b"enveloped")) == [
            {"id": 1, "bad": False},
            {"id": 2, "bad": False},
        ]
        await _data_classes_of_kafka(clicked)
        [record] = (await clicked.seen(batch(*clicks(1), key=None)))["records"]
        assert (record["key"], record["decoded_key"]) == (None, None)
        await _kafka_consumer(clicked)
    arn = "arn:aws:kafka:us-east-1:123456789012:cluster/c/1-2"
    settings |= {"event_source": "aws:kafka", "event_source_arn": arn}
    async with function("kafka", "kafka_app.handler", APPS, **settings) as clicked:
        seen = await clicked.seen(batch(*clicks(1), key=b"msk", headers=headers[1:]))
        assert (seen["eventSource"], seen["eventSourceArn"]) == ("aws:kafka", arn)
        assert seen["bootstrapServers"] == ["b1:9092", "b2:9092"]
        assert (await clicked.seen(batch(*clicks(1), key=b"data")))["event_source_arn"] == arn


async def _data_classes_of_kafka(clicked: Function) -> None:
    value = clicks(1)[0]
    headers = [("Trace", bytes([0, 65, 66])), ("empty", b""), ("none", None)]
    seen = await clicked.seen(batch(value, key=b"data", headers=headers))
    assert seen == {
        "event_source": "SelfManagedKafka",
        "event_source_arn": None,
        "bootstrap_servers": "b1:9092,b2:9092",
        "decoded_bootstrap_servers": ["b1:9092", "b2:9092"],
        "records": [
            {
                "topic": "clicks",
                "partition": 3,
                "offset": 0,
                "timestamp": TIMESTAMP_MS,
                "timestamp_type": "CREATE_TIME",
                "key": b64(b"data"),
                "decoded_key": "data",
                "value": b64(value),
                "decoded_value": value.decode(),
                "json_value": {"id": 1},
                "headers": [{"Trace": [0, 65, 66]}, {"empty": []}, {"none": []}],
                "decoded_headers": {"trace": "\x00AB", "empty": "", "none": ""},
                "key_schema_metadata": None,
                "value_schema_metadata": None,
            }
        ],
    }


async def _kafka_consumer(clicked: Function) -> None:
    """JSON into a model, Protobuf into its message. Avro needs a package that headrace does not have."""
    [first, second] = await clicked.seen(batch(*clicks(1, 2), key=b"consumer", headers=[("a", b"b")]))
    assert (first["id"], second["id"], second["type"]) == (1, 2, "Click")
    assert (first["key"], first["headers"], first["original_headers"]) == ("consumer", {"a": "b"}, [{"a": [98]}])
    assert first["original_value"] == b64(clicks(1)[0])
    message = Timestamp(seconds=1_700_000_000).SerializeToString()
    found = await clicked.seen(batch(message, key=b'"protobuf"'))
    assert found == [["protobuf", "2023-11-14T22:13:20Z"]]


async def test_what_powertools_reports_of_kafka_is_what_is_tried_again() -> None:
    """Its batch processor names partition and offset; what lies before the lowest is not handled again."""
    async with function("kafka", "kafka_app.handler", APPS) as clicked:
        given = batch(*clicks(0, 1, 2, 3, bad=(2,)), key=b"batch", start=40)
        done = await worked(clicked, given, policy(retries_max=1, reports=True))
        assert (clicked.calls, done.handled) == ([[40, 41, 42, 43], [42, 43]], 2)
        assert [(each.offset, each.attempts) for each in done.failures] == [(42, 2), (43, 2)]


async def test_a_tombstone_is_what_powertools_cannot_decode() -> None:
    """Its models want a value of every record; its data classes read all else of one that has none."""
    async with function("kafka", "kafka_app.handler", APPS) as clicked:
        with pytest.raises(FunctionError) as failed:
            await clicked.call(batch(None, key=b"parsed"))
        assert failed.value.error_type in ("ValidationError", "TypeError", "ValueError")
        [offset] = await clicked.seen(batch(None, key=b"tombstones", start=9))
        assert offset == 9


# --- dynamodb


def order(act: str, number: int, **members: object) -> bytes:
    keys = {"act": {"S": act}, "id": {"N": str(number)}}
    return json.dumps({"eventName": "INSERT", "dynamodb": {"Keys": keys, "NewImage": keys, **members}}).encode()


async def test_dynamodb_events_are_what_powertools_reads() -> None:
    """Every property of its data classes, its model and its envelope; members that were left out are filled in."""
    async with function("dynamodb", "dynamodb_app.handler", APPS) as ordered:
        own = order("data", 1, SequenceNumber="111", SizeBytes=26, OldImage={"id": {"N": "-0.5"}})
        window = Window(1_700_000_000, 1_700_000_060, b"{}", is_final=False, is_terminated_early=False)
        seen = await ordered.seen(batch(own), window=window)
        arn = "arn:aws:dynamodb:us-east-1:000000000000:table/clicks/stream/1970-01-01T00:00:00.000"
        image = {"act": "data", "id": "1"}
        assert seen == {
            "records": [
                {
                    "aws_region": "us-east-1",
                    "dynamodb": {
                        "approximate_creation_date_time": TIMESTAMP_MS // 1000,
                        "keys": image,
                        "new_image": image,
                        "old_image": {"id": "-0.5"},
                        "sequence_number": "111",
                        "size_bytes": 26,
                        "stream_view_type": "NEW_AND_OLD_IMAGES",
                    },
                    "event_id": "shardId-000000000003:111",
                    "event_name": "INSERT",
                    "event_source": "aws:dynamodb",
                    "event_source_arn": arn,
                    "event_version": "1.1",
                    "user_identity": {},
                }
            ],
            "window": {"start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:14:20Z"},
            "state": {},
            "shard_id": "shardId-000000000003",
            "event_source_arn": arn,
            "is_final_invoke_for_window": False,
            "is_window_terminated_early": False,
        }
        [record] = (await ordered.seen(batch(order("parsed", 2))))["Records"]
        assert record["dynamodb"]["SequenceNumber"] == sequence_number(0)
        assert record["dynamodb"]["NewImage"] == {"act": "parsed", "id": "2"}
        assert record["dynamodb"]["ApproximateCreationDateTime"] == "2023-11-14T22:13:20+00:00"
        [found] = await ordered.seen(batch(order("enveloped", 3)))
        assert found["NewImage"] == {"act": "enveloped", "id": 3}
        for act in ("batch", "async"):
            ordered.calls.clear()
            given = batch(*(order(act, number) for number in (0, 1, -2, 3)))
            done = await worked(ordered, given, policy(retries_max=1, reports=True))
            assert (ordered.calls, done.failed) == ([[0, 1, 2, 3], [2, 3]], [2, 3])


# --- firehose


async def test_firehose_events_are_what_powertools_reads_and_its_response_what_is_done() -> None:
    """Every property of its data classes and its model; Ok, Dropped, ProcessingFailed, text and partition keys."""
    values = [json.dumps({"do": do}).encode() for do in ("tell", "drop", "fail", "text")]
    async with function("firehose", "firehose_app.handler", APPS) as transforms:
        result = await transforms.call(batch(*values))
    told, text = result.rows or ()  # type: ignore[misc]
    assert (result.dropped, [fault.offset for fault in result.faults]) == (1, [2])
    assert text == {"data": "a line", "_offset": 3}
    sequence = sequence_number(0)
    metadata = {
        "shard_id": "shardId-000000000003",
        "partition_key": "k",
        "approximate_arrival_timestamp": TIMESTAMP_MS,
        "sequence_number": sequence,
        "subsequence_number": 0,
    }
    assert told["event"].pop("invocation_id")
    assert told == {
        "approximate_arrival_timestamp": TIMESTAMP_MS,
        "data": b64(values[0]),
        "data_as_bytes": values[0].decode(),
        "data_as_text": values[0].decode(),
        "data_as_json": {"do": "tell"},
        "metadata": metadata,
        "record_id": sequence,
        "event": {
            "delivery_stream_arn": "arn:aws:firehose:us-east-1:000000000000:deliverystream/clicks",
            "source_kinesis_stream_arn": STREAM_ARN,
            "region": "us-east-1",
        },
        "model": {
            "data": values[0].decode(),
            "recordId": sequence,
            "approximateArrivalTimestamp": TIMESTAMP_MS,
            "kinesisRecordMetadata": {
                "shardId": "shardId-000000000003",
                "partitionKey": "k",
                "approximateArrivalTimestamp": TIMESTAMP_MS,
                "sequenceNumber": sequence,
                "subsequenceNumber": 0,
            },
        },
        "envelope": {"do": "tell"},
        "day": "monday",
        "_offset": 0,
    }


# --- the whole


@pytest.mark.broker
async def test_pipelines_run_functions_with_powertools(
    tmp_path: Path, broker: Broker, topic: Callable[..., Awaitable[str]]
) -> None:
    """From a real topic into Parquet: rows once, failures in the destination; endless retries of Kafka are ten."""
    project, name = Project(tmp_path, broker.bootstrap), await topic()
    await project.produce(name, {0: clicks(*range(10), bad=(2, 7))})
    common: dict[str, Any] = {
        "maximum_batching_window_in_seconds": 5,
        "batch_size": 5,
        "function_response_types": ["ReportBatchItemFailures"],
        "retry_backoff_seconds": 0.001,
        "retry_backoff_seconds_max": 0.001,
    }
    streams = {
        "kind": "kinesis",
        "handler": "kinesis_app.handler",
        "root": str(APPS),
        "environment": variables(tmp_path),
    }
    topics = {"kind": "kafka", "handler": "kafka_app.handler", "root": str(APPS)}
    bad = await topic(name="bad")
    await project.produce(bad, {0: clicks(1, 2, bad=(1, 2))})
    project.configure(
        {
            "streams": pipeline(
                name,
                {"type": "parquet", "path": "streams", "file_age_max_seconds": 0.2},
                function=streams,
                on_failure="streams.jsonl",
                maximum_retry_attempts=1,
                **common,
            ),
            "topics": pipeline(bad, None, function=topics, on_failure="topics.jsonl", **common),
        }
    )
    ended = await project.run()
    assert ended.code == 0, ended.err
    rows = project.rows("parquet", "_offset, id", path="streams")
    assert rows == [(0, 0), (1, 1), (5, 5), (6, 6)]
    assert _reported(tmp_path / "streams.jsonl") == dict.fromkeys((2, 3, 4, 7, 8, 9), ("BatchItemFailures", 2))
    assert _reported(tmp_path / "topics.jsonl") == {
        0: ("BatchProcessingError", 11),
        1: ("BatchProcessingError", 11),
    }


def _reported(path: Path) -> dict[int, tuple[str, int]]:
    """The cause and the number of attempts of each offset in an on-failure file."""
    found = [json.loads(line)["headrace"] for line in path.read_text().splitlines()]
    return {each["offset"]: (each["error_type"], each["attempts"]) for each in found}
