"""What is reported of records that fail for good: the engine's counts in AWS's shapes, from the first attempt on.

Not here: the documents member by member, and the way back (tests/unit/test_failures.py); where they go
(tests/integration/test_destination.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.batch import Stream
from engine.failing import ITEM_FAILURES
from engine.protocols import Invocation, Result
from functions.failures import Documents
from functions.kinds.responses import ItemFailures
from tests.conformance.lambda_support import TIMESTAMP_MS, TOPIC, Steps, batch, worked
from tests.unit.engine_world import FunctionHandler, policy

STREAM = Stream("cluster-1", TOPIC, "id-1", 4)
ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"


def documents(done: Any, kind: str = "kinesis", *, to_topic: bool = False) -> list[dict[str, Any]]:
    make = Documents("p", kind, ARN, to_topic=to_topic, now=lambda: 1_700_000_123.456)
    return [dict(make(failure, STREAM)) for failure in done.failures]


def raises(invocation: Invocation) -> Result:
    raise ValueError("no")


async def test_the_rest_of_a_batch_has_the_retries_that_are_left() -> None:
    """Three records, the last one bad, three retries: four invocations in all, of which the report speaks."""

    def reports_the_last(invocation: Invocation) -> Result:
        return Result(failed_from=2)

    handler = FunctionHandler(reports_the_last)
    done = await worked(handler, batch(b"a", b"b", b"c"), policy(reports=True, retries_max=3))
    assert [call.batch.offsets.tolist() for call in handler.invocations] == [[0, 1, 2], [2], [2], [2]]
    [document] = documents(done)
    assert document["requestContext"] == {
        "requestId": handler.invocations[-1].context.aws_request_id,
        "functionArn": ARN,
        "condition": "RetryAttemptsExhausted",
        "approximateInvokeCount": 4,
    }
    assert document["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": None,
    }
    info = document["KinesisBatchInfo"]
    assert (info["batchSize"], info["shardId"]) == (1, "shardId-000000000003")
    assert info["startSequenceNumber"] == info["endSequenceNumber"]
    assert info["startSequenceNumber"].endswith("02")


async def test_a_raised_error_is_unhandled() -> None:
    """One retry: two attempts; one document for each record, where AWS has one for the batch."""
    handler = FunctionHandler(raises)
    done = await worked(handler, batch(b"a", b"b"), policy(reports=True, retries_max=1))
    first, second = documents(done)
    for document in (first, second):
        assert document["requestContext"]["condition"] == "RetryAttemptsExhausted"
        assert document["requestContext"]["approximateInvokeCount"] == 2
        assert document["responseContext"]["functionError"] == "Unhandled"
        assert (document["version"], document["timestamp"]) == ("1.0", "2023-11-14T22:15:23.456Z")
    arrivals = [each["KinesisBatchInfo"]["approximateArrivalOfFirstRecord"] for each in (first, second)]
    assert arrivals == ["2023-11-14T22:13:20.123Z", "2023-11-14T22:13:21.123Z"]


@pytest.mark.parametrize("kind", ["kinesis", "kafka", "dynamodb"])
async def test_a_response_that_fails_the_whole_batch_has_no_function_error(kind: str) -> None:
    """An identifier that names no record: each record failed, but the function raised nothing."""

    def malformed(invocation: Invocation) -> Result:
        raise ItemFailures("names no record of its batch")

    done = await worked(FunctionHandler(malformed), batch(b"a", b"b"), policy(reports=True, retries_max=0))
    assert done.failed == [0, 1]
    assert {each.error_type for each in done.failures} == {ITEM_FAILURES}
    for document in documents(done, kind):
        assert document["responseContext"] == {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": None,
        }


async def test_a_record_that_is_too_old_has_no_response() -> None:
    """Neither null nor an object: there is no such member. It may never have been tried."""
    handler = FunctionHandler(raises)
    done = await worked(handler, batch(b"a"), policy(reports=True, age_seconds_max=60))
    [document] = documents(done)
    assert document["requestContext"]["condition"] == "RecordAgeExceeded"
    assert document["requestContext"]["approximateInvokeCount"] == 0
    assert document["requestContext"]["requestId"] is None
    assert "responseContext" not in document
    assert handler.invocations == []


async def test_a_record_that_became_too_old_has_the_attempts_that_there_were() -> None:
    """Retries without limit end at its age; the last error is in its reason."""
    clock = Steps(TIMESTAMP_MS / 1000)

    def fails(invocation: Invocation) -> Result:
        clock.now += 10
        raise ValueError("no")

    handler = FunctionHandler(fails)
    done = await worked(handler, batch(b"a"), policy(reports=True, age_seconds_max=60), clock)
    [document] = documents(done)
    assert document["requestContext"]["condition"] == "RecordAgeExceeded"
    assert document["requestContext"]["approximateInvokeCount"] == len(handler.invocations) == 7
    assert "responseContext" not in document
    assert "ValueError: no" in done.failures[0].reason


async def test_a_record_that_no_invocation_can_hold_has_a_null_response() -> None:
    """Its size is its condition; it was never sent, and its neighbours flow."""
    handler = FunctionHandler(lambda invocation: Result())
    done = await worked(handler, batch(b"a", b"b" * 200, b"c"), policy(reports=True, payload_bytes_max=100))
    [document] = documents(done, "kafka")
    assert document["requestContext"]["condition"] == "MaximumPayloadSizeExceeded"
    assert document["requestContext"]["approximateInvokeCount"] == 0
    assert document["responseContext"] is None
    assert (done.handled, done.failed) == (2, [1])


async def test_a_kafka_topic_gets_one_message_for_each_record() -> None:
    """With AWS's word for its condition, the record's own info, and an event that holds it alone."""
    done = await worked(FunctionHandler(raises), batch(b"a", b"b"), policy(reports=True, retries_max=0))
    found = documents(done, "kafka", to_topic=True)
    assert [each["requestContext"]["condition"] for each in found] == ["RetriesExhausted"] * 2
    assert [each["KafkaBatchInfo"]["recordInfo"]["offset"] for each in found] == ["0", "1"]
    for document in found:
        [records] = document["payload"]["records"].values()
        assert len(records) == 1
    assert found[0]["payload"]["records"]["clicks-3"][0]["timestamp"] == TIMESTAMP_MS
