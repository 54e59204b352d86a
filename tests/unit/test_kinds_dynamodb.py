"""The kind dynamodb: AWS's event from stream records and from bare changes, and values that are neither."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from functions.kinds import changes, dynamodb
from functions.kinds.kinesis import sequence_number
from functions.kinds.sources import EventSource, event_of

SOURCE = EventSource("dynamodb", "eu-west-1")
BARE = {"eventName": "MODIFY", "dynamodb": {"Keys": {"id": {"N": "101"}}, "NewImage": {"id": {"N": "101"}}}}

#: Key order and values of a record as recorded on AWS.
RECORDED = {
    "eventID": "c4ca4238a0b923820dcc509a6f75849b",
    "eventName": "INSERT",
    "eventVersion": "1.1",
    "eventSource": "aws:dynamodb",
    "awsRegion": "us-east-1",
    "dynamodb": {
        "ApproximateCreationDateTime": 1693997155,
        "Keys": {"Id": {"N": "101"}},
        "NewImage": {"Id": {"N": "101"}, "Message": {"S": "New item!"}},
        "SequenceNumber": "4421584500000000017450439091",
        "SizeBytes": 26,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    },
    "eventSourceARN": "arn:aws:dynamodb:us-east-1:123456789012:table/Table/stream/2023-09-06T10:45:55.000",
    "userIdentity": {"type": "Service", "principalId": "dynamodb.amazonaws.com"},
}


def batch(*values: bytes | None) -> Batch:
    rows = [(7 + i, 1545084650987, b"k", value, []) for i, value in enumerate(values)]
    return from_rows("orders", 2, rows, start=7, end=7 + len(rows))


def event(*values: bytes) -> list[Any]:
    made = batch(*values)
    records: Any = event_of("dynamodb", made, SOURCE.envelope(made, "id"))["Records"]
    return list(records)


def test_a_whole_stream_record_is_passed_on_as_it_is() -> None:
    """Every member and its order."""
    [record] = event(json.dumps(RECORDED).encode())
    assert json.dumps(record) == json.dumps(RECORDED)


def test_what_a_change_lacks_is_filled_in() -> None:
    """Literally, in the order of AWS's records."""
    value = json.dumps(BARE).encode()
    [record] = event(value)
    sequence = sequence_number(7)
    expected = {
        "eventID": f"shardId-000000000002:{sequence}",
        "eventName": "MODIFY",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "eu-west-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1545084650,
            "Keys": {"id": {"N": "101"}},
            "NewImage": {"id": {"N": "101"}},
            "SequenceNumber": sequence,
            "SizeBytes": len(value),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
        "eventSourceARN": "arn:aws:dynamodb:eu-west-1:000000000000:table/orders/stream/1970-01-01T00:00:00.000",
    }
    assert json.dumps(record) == json.dumps(expected)


def test_a_change_without_images_is_one_of_keys() -> None:
    """StreamViewType follows from what is there."""
    [record] = event(b'{"eventName": "REMOVE", "dynamodb": {"Keys": {}}}')
    assert record["dynamodb"]["StreamViewType"] == "KEYS_ONLY"


def nested(depth: int) -> bytes:
    inner = '{"M": {"a": ' * depth + '{"S": "x"}' + "}}" * depth
    return b'{"eventName": "INSERT", "dynamodb": {"Keys": {}, "NewImage": {"a": %b}}}' % inner.encode()


GOOD = json.dumps(BARE).encode()
BAD = [
    (None, "it has no value"),
    (b"", "the value is not JSON: "),
    (b"{", "the value is not JSON: "),
    (b"\xff{}", "the value is not UTF-8"),
    (b"[1]", "the value is a JSON array, not a DynamoDB stream record"),
    (b"null", "the value is a JSON null, not"),
    (b"7", "the value is a JSON number, not"),
    (b'"x"', "the value is a JSON string, not"),
    (b"{}", "eventName is null, not INSERT, MODIFY or REMOVE"),
    (b'{"eventName": ["INSERT"], "dynamodb": {"Keys": {}}}', 'eventName is ["INSERT"], not INSERT'),
    (b'{"eventName": "INSERT"}', "the value has no object dynamodb with an object Keys"),
    (b'{"eventName": "INSERT", "dynamodb": {"Keys": []}}', "the value has no object dynamodb with an object Keys"),
    (b'{"eventName": "INSERT", "dynamodb": {"Keys": {}, "NewImage": 7}}', "dynamodb.NewImage is 7, not an object"),
    (
        b'{"eventName": "INSERT", "dynamodb": {"Keys": {}, "SequenceNumber": 7}}',
        "dynamodb.SequenceNumber is 7, not text",
    ),
    (b'{"eventName": "INSERT", "dynamodb": {"Keys": {"n": NaN}}}', "NaN is no JSON number"),
    (b'{"eventName": "INSERT", "dynamodb": {"Keys": {"n": 1e999}}}', "a number beyond all floats"),
    (b'{"eventName": "INSERT", "dynamodb": {"Keys": {"n": %b}}}' % (b"9" * 5000), "the value is not JSON: "),
    (b'{"eventName": "INSERT", "dynamodb": {"Keys": {"n": "\\ud800"}}}', "half of a surrogate pair"),
    (nested(60), "the value nests deeper than 100 levels"),
    (nested(100_000), "the value nests deeper than 100 levels"),
]


@pytest.mark.parametrize(("value", "reason"), BAD, ids=range(len(BAD)))
def test_a_value_that_is_no_change_is_a_fault_of_its_record_alone(value: bytes | None, reason: str) -> None:
    """Named with its offset and why; the records around it are none."""
    [fault] = changes.faults(batch(GOOD, value, GOOD))
    assert fault.offset == 8
    assert reason in fault.reason


def test_values_that_look_odd_and_are_fine_are_no_faults() -> None:
    """The deepest document that DynamoDB has, long digits inside of strings, and whole numbers beyond 64 bits."""
    long_text = b'{"eventName": "INSERT", "dynamodb": {"Keys": {"s": {"S": "%b"}}}}' % (b"1" * 5000)
    whole = b'{"eventName": "INSERT", "dynamodb": {"Keys": {"n": %b}}}' % (b"9" * 30)
    wide = b'{"eventName": "INSERT", "dynamodb": {"Keys": {"l": [%b]}}}' % b",".join([b"{}"] * 500)
    values = (nested(32), long_text, whole, wide, b" \n" + GOOD)
    assert changes.faults(batch(*values)) == []
    assert [record["eventName"] for record in event(*values)] == ["INSERT"] * 4 + ["MODIFY"]


@given(
    st.binary(max_size=30)
    | st.recursive(
        st.none() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["eventName", "dynamodb", "Keys", "SequenceNumber"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_what_is_no_fault_can_be_built_and_sent(value: bytes) -> None:
    """For any bytes: what the check lets pass becomes an event that strict JSON carries."""
    made = batch(value)
    if changes.faults(made):
        with pytest.raises(ValueError, match=r"^(the|it|eventName|dynamodb) "):
            dynamodb.check_carried(dynamodb.change(value))
    else:
        json.dumps(event(value), allow_nan=False, ensure_ascii=False).encode()
        assert list(changes.sequence_numbers(made).values()) == [7]
