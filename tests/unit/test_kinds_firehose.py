"""The kind firehose: AWS's event, every form of answer for a record, and dynamic partitioning into Parquet."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.parquet import ParquetSink
from engine.batch import Batch, Stream, from_rows
from engine.clock import SystemClock
from engine.errors import HandlerError
from engine.output import Output
from engine.protocols import Counts, Outcome, Result
from functions.kinds.kinesis import sequence_number
from functions.kinds.responses import read_response
from functions.kinds.sources import EventSource, event_of
from functions.kinds.transforms import columns_of

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
ARN = "arn:aws:firehose:eu-west-1:123456789012:deliverystream/orders"
LABEL = "app.handler (kind firehose)"


def batch(*values: bytes | None, first: int = 7) -> Batch:
    rows = [(first + i, 1545084650987 + i, b"k%d" % i, value, []) for i, value in enumerate(values)]
    return from_rows("orders", 2, rows, start=first, end=first + len(rows))


def answer(offset: int, result: object = "Ok", data: object = b'{"n": 1}', **members: object) -> dict[str, object]:
    text = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"recordId": sequence_number(offset), "result": result, "data": text, **members}


def keys(**values: object) -> dict[str, object]:
    return {"partitionKeys": values}


def read(*answers: object, count: int | None = None) -> Result:
    made = batch(*[b"x"] * (len(answers) if count is None else count))
    return read_response(LABEL, "firehose", made, {"records": list(answers)}, reports_item_failures=True)


def reasons(result: Result) -> list[tuple[int, str]]:
    return [(fault.offset, fault.reason) for fault in result.faults]


def test_the_event_literally() -> None:
    """Members and their order; a record without a value has empty data."""
    source = EventSource("firehose", "eu-west-1")
    made = batch(b'{"a":1}', None)
    sequence = sequence_number(7)
    metadata = {
        "sequenceNumber": sequence,
        "subsequenceNumber": 0,
        "partitionKey": "k0",
        "shardId": "shardId-000000000002",
        "approximateArrivalTimestamp": 1545084650987,
    }
    expected = {
        "invocationId": "an-id",
        "sourceKinesisStreamArn": "arn:aws:kinesis:eu-west-1:000000000000:stream/orders",
        "deliveryStreamArn": "arn:aws:firehose:eu-west-1:000000000000:deliverystream/orders",
        "region": "eu-west-1",
        "records": [
            {
                "recordId": sequence,
                "approximateArrivalTimestamp": 1545084650987,
                "data": "eyJhIjoxfQ==",
                "kinesisRecordMetadata": metadata,
            }
        ],
    }
    event: Any = event_of("firehose", made, source.envelope(made, "an-id"))
    second = event["records"].pop()
    assert json.dumps(event) == json.dumps(expected)
    assert (second["recordId"], second["data"]) == (sequence_number(8), "")
    named = EventSource("firehose", "eu-west-1", arn=ARN).envelope(made, "an-id")
    assert named["deliveryStreamArn"] == ARN


def test_the_members_are_those_of_a_public_fixture() -> None:
    """A third party's event of a delivery stream that reads a Kinesis stream has the same members and types."""
    path = DATA / "aws-powertools-events" / "kinesisFirehoseKinesisEvent.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set HEADRACE_TEST_DATA")

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {name: shape(each) for name, each in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value)

    made = batch(b'{"a":1}')
    event = event_of("firehose", made, EventSource("firehose", "eu-west-1").envelope(made, "an-id"))
    assert shape(event) == shape(json.loads(path.read_text()))


def test_ok_dropped_and_failed_records() -> None:
    """One row, nothing, one failure: each for its own record, in whatever order they come back."""
    result = read(
        answer(9, "ProcessingFailed"),
        answer(8, "Dropped", None),
        answer(7, data=b'{"n": 1, "o": {"a": [1]}}\n'),
    )
    assert result.rows == [{"n": 1, "o": {"a": [1]}, "_offset": 7}]
    assert result.dropped == 1
    assert reasons(result) == [(9, "the function answered ProcessingFailed")]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "the function's answer lacks its recordId; each has to come back exactly once"),
        ([answer(7), answer(7)], "the function's answer has its recordId 2 times"),
        ([answer(7, "Dropped"), answer(7)], "the function's answer has its recordId 2 times"),
        ([answer(8)], "the function's answer lacks its recordId"),
        ([{"recordId": 7, "result": "Ok", "data": ""}, "x", None], "the function's answer lacks its recordId"),
        ([answer(7, "ok")], "the function answered a str: 'ok', which is not Ok, Dropped or ProcessingFailed"),
        ([answer(7, None)], "the function answered None, which is not Ok"),
        ([answer(7, data=None)], "the function answered Ok with None as data, which has to be text in base64"),
        ([answer(7, data={"n": 1})], "the function answered Ok with a dict"),
        ([answer(7, data="no base64!")], "the function answered Ok with data that is not base64: "),
        ([answer(7, data="é===")], "the function answered Ok with data that is not base64: "),
        ([answer(7, data="YQ")], "the function answered Ok with data that is not base64: Incorrect padding"),
        ([answer(7, data=b"\xff\xfe")], "the function answered Ok with data that is not UTF-8 text"),
        ([answer(7, data=b'{"n": 1}\n{"n": 2}\n')], "the function answered Ok with several JSON objects in one"),
        ([answer(7, data=b'{"n": 1}{"n": 2}')], "the function answered Ok with several JSON objects in one"),
        ([answer(7, data=b'{"n": 1} x')], "with data that begins as a JSON object, but is none: "),
        ([answer(7, data=b'{"n": ')], "with data that begins as a JSON object, but is none: "),
        ([answer(7, metadata={"partitionKeys": [1]})], "as metadata.partitionKeys, not with an object"),
        ([answer(7, metadata="x")], "as metadata.partitionKeys, not with an object"),
        ([answer(7, metadata=keys(day=None))], "with None as partition key 'day', not with text"),
        ([answer(7, metadata=keys(day=""))], "with a str: '' as partition key 'day', not with text"),
        ([answer(7, metadata=keys(day=["x"]))], "as partition key 'day', not with text"),
        ([answer(7, metadata=keys(_offset="1"))], "the partition key name '_offset', which cannot be a column's"),
        ([answer(7, metadata={"partitionKeys": {"": "x"}})], "the partition key name '', which cannot be"),
    ],
)
def test_a_record_that_does_not_come_back_right_has_failed(given: list[object], reason: str) -> None:
    """That record alone, with why; no row of it is kept."""
    result = read(*given, count=1)
    assert result.rows == []
    assert result.dropped == 0
    [(offset, said)] = reasons(result)
    assert offset == 7
    assert reason in said


@pytest.mark.parametrize("response", [None, "text", [], {}, {"records": None}, {"records": {}}, 7])
def test_an_answer_without_records_fails_the_invocation(response: object) -> None:
    """Then nothing is known of any record, and the invocation is tried again."""
    with pytest.raises(HandlerError, match="it has to give an object with a list of records"):
        read_response(LABEL, "firehose", batch(b"x"), response, reports_item_failures=False)


def test_an_id_that_was_not_asked_for_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """It concerns no record; the log names it."""
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            given = {"records": [answer(7), {**answer(7), "recordId": "other"}]}
            result = read_response("strangers", "firehose", batch(b"x"), given, reports_item_failures=False)
            assert result.rows == [{"n": 1, "_offset": 7}]
    [record] = caplog.records
    assert "strangers answered with a str: 'other', the recordId of no record" in record.getMessage()


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b' \r\n{"a": 1}\r\n', {"a": 1}),
        (b'{"a": 12345678901234567890123}', {"a": 12345678901234567890123}),
        (b'{"_offset": 3, "a": null}', {"_offset": 3, "a": None}),
        (b"{}", {}),
        (b"plain text\n", {"data": "plain text"}),
        (b"a,b\r\n", {"data": "a,b"}),
        (b"two\nlines\n\n", {"data": "two\nlines\n"}),
        (b'[{"a": 1}]', {"data": '[{"a": 1}]'}),
        (b"7", {"data": "7"}),
        (b"", {"data": ""}),
    ],
)
def test_what_data_becomes(data: bytes, columns: dict[str, object]) -> None:
    """A JSON object's members are columns; any other text is the column data, without its line end."""
    assert columns_of(data) == columns


def test_a_row_keeps_the_offset_of_its_record_and_its_partition_keys() -> None:
    """Whatever the data says: the trace is ours, and partition keys are text that goes before a member."""
    given = answer(7, data=b'{"_offset": 99, "day": 5, "n": 1}', metadata=keys(day="2026-01-05", hour=7))
    assert read(given).rows == [{"_offset": 7, "day": "2026-01-05", "n": 1, "hour": "7"}]


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "recordId": st.sampled_from([sequence_number(offset) for offset in range(6, 12)]) | st.integers(),
                "result": st.sampled_from(["Ok", "Dropped", "ProcessingFailed", "ok"]) | st.none(),
                "data": st.sampled_from(["", "eA==", "e30=", "eyJhIjoxfQ=="]) | st.text(max_size=5) | st.none(),
                "metadata": st.none() | st.dictionaries(st.just("partitionKeys"), st.none() | st.just({"a": "b"})),
            },
        )
        | st.none(),
        max_size=8,
    )
)
def test_every_record_has_exactly_one_fate(answers: list[Mapping[str, object] | None]) -> None:
    """A row, dropped or failed: never two of them, never none, whatever comes back."""
    result = read(*answers, count=4)
    assert isinstance(result.rows, list)
    passed = [row["_offset"] for row in result.rows]
    failed = [fault.offset for fault in result.faults]
    assert len(set(passed) | set(failed)) == len(passed) + len(failed)
    assert set(passed) | set(failed) <= {7, 8, 9, 10}
    assert len(passed) + len(failed) + result.dropped == 4


async def test_partition_keys_become_directories(tmp_path: Path) -> None:
    """Dynamic partitioning with the Parquet sink as it is: a directory for each key, no column in the files."""
    made = batch(b"a", b"b", b"c", b"d")
    given = [
        answer(7, data=b'{"n": 1}', metadata=keys(customer="acme", day="2026-01-05")),
        answer(8, data=b'{"n": 2}', metadata=keys(customer="../evil", day="2026-01-05")),
        answer(9, "Dropped"),
        answer(10, data=b'{"n": 4}', metadata=keys(customer="acme", day="2026-01-06")),
    ]
    result = read_response(LABEL, "firehose", made, {"records": given}, reports_item_failures=False)
    sink = ParquetSink(tmp_path / "out", pipeline="p", clock=SystemClock(), partition_by=["customer", "day"])
    await sink.open(Stream("cluster", "orders", "id", 3))
    writer = await sink.acquire(2)
    rows = await Output(sink).align(result.rows, made)
    counts = Counts(handled=3, dropped=1, absent=7)
    await writer.write(Outcome(0, 11, rows, counts))
    assert await writer.commit() == 11
    found = {
        str(path.parent.relative_to(tmp_path / "out")): pq.ParquetFile(path).read().to_pydict()
        for path in (tmp_path / "out").glob("**/*.parquet")
    }
    assert {folder: columns["n"] for folder, columns in found.items()} == {
        "customer=acme/day=2026-01-05": [1],
        "customer=..%2Fevil/day=2026-01-05": [2],
        "customer=acme/day=2026-01-06": [4],
    }
    assert all(set(columns) == {"n", "_partition", "_offset", "_timestamp"} for columns in found.values())
    await sink.close()
