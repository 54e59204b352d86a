"""What handlers may answer: success and failure forms, records by name, rows beside failures, windows' states."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from engine.errors import HandlerError
from engine.protocols import Result, Window
from functions.environments.contract import EventKind
from functions.kinds.kinesis import sequence_number
from functions.kinds.responses import ItemFailures, read_response

LABEL = "app.handler (kind kinesis)"
OFFSETS = (10, 11, 13, 17)
WINDOW = Window(start=0, end=60, state=b"{}", is_final=False, is_terminated_early=False)


def batch(kind: EventKind = "kinesis", offsets: tuple[int, ...] = OFFSETS) -> Batch:
    rows = [(offset, 0, None, change(offset) if kind == "dynamodb" else b"x", []) for offset in offsets]
    return from_rows("my-topic", 3, rows, start=10, end=20)


def change(offset: int) -> bytes:
    """A stream record; those of even offsets have a sequence number of their own."""
    own = {} if offset % 2 else {"SequenceNumber": f"{offset}00"}
    return json.dumps({"eventName": "INSERT", "dynamodb": {"Keys": {"id": {"N": "1"}}, **own}}).encode()


def read(
    response: object, kind: EventKind = "kinesis", *, reports: bool = True, window: Window | None = None
) -> Result:
    return read_response(LABEL, kind, batch(kind), response, reports_item_failures=reports, window=window)


def failing(*identifiers: object, **members: object) -> dict[str, object]:
    return {"batchItemFailures": [{"itemIdentifier": each} for each in identifiers], **members}


# --- without ReportBatchItemFailures


@pytest.mark.parametrize(
    "response",
    [
        None, "", "text", {}, [], [1, {"a": None}], 0, 1.5, True,
        {"batchItemFailures": []},
        {"batchItemFailures": None},
        {"statusCode": 200, "amount": 3},
        {"rows": None},
    ],
)  # fmt: skip
def test_any_answer_is_success_where_failures_are_not_reported(response: object) -> None:
    """As on AWS the answer of a function that did not raise says nothing."""
    assert read(response, reports=False) == Result()


def test_item_failures_that_were_not_asked_for_are_ignored_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The whole batch counts as handled; the log says so once for each function."""
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for label in ("one (kind kinesis)", "two (kind kinesis)"):
                given = failing(sequence_number(10))
                assert read_response(label, "kinesis", batch(), given, reports_item_failures=False) == Result()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "one (kind kinesis) returned batchItemFailures, which is ignored" in said[0]


# --- with it


@pytest.mark.parametrize(
    "response",
    [None, "", [], {}, {"batchItemFailures": []}, {"batchItemFailures": None}, {"statusCode": 200}],
)
@pytest.mark.parametrize("kind", ["kinesis", "kafka", "dynamodb"])
def test_forms_of_complete_success(kind: EventKind, response: object) -> None:
    """The six that were recorded on AWS, and an object that does not speak of failures."""
    assert read(response, kind) == Result()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (failing(""), r"reported a str: '', which names no record of its batch"),
        (failing(None), "reported None, which names no record"),
        ({"batchItemFailures": [{"foo": sequence_number(10)}]}, "it has no itemIdentifier"),
        ({"batchItemFailures": [{"foo": None}]}, "it has no itemIdentifier"),
        ({"batchItemFailures": [sequence_number(10)]}, "it has no itemIdentifier"),
        (
            {"batchItemFailures": {"itemIdentifier": sequence_number(10)}},
            "as batchItemFailures; it has to be a list",
        ),
        ({"batchItemFailures": "no"}, "as batchItemFailures; it has to be a list"),
        (failing(sequence_number(12)), "which names no record of its batch"),
        (failing(sequence_number(10), sequence_number(20)), "which names no record of its batch"),
        (failing("10"), "which names no record of its batch"),
        (failing(10), "which names no record of its batch"),
        (failing([sequence_number(10)]), "which names no record of its batch"),
        ("text", "gave a str: 'text'; it has to give an object with batchItemFailures, or null"),
        ([1], "it has to give an object"),
        (7, "it has to give an object"),
        (False, "it has to give an object"),
    ],
)
def test_forms_of_complete_failure(response: object, message: str) -> None:
    """An identifier that is empty, null, misnamed or unknown fails the whole batch, as does what is no response."""
    with pytest.raises(ItemFailures, match=message) as caught:
        read(response)
    assert caught.value.error_type == "BatchItemFailures"
    assert isinstance(caught.value, HandlerError)


def test_the_lowest_record_that_is_named_is_where_the_rest_begins() -> None:
    """Several identifiers, in any order and repeated: the lowest sequence number is the checkpoint."""
    numbers = [sequence_number(offset) for offset in (17, 11, 13, 11)]
    assert read(failing(*numbers)) == Result(failed_from=11)
    assert read(failing(sequence_number(10))) == Result(failed_from=10)


def test_a_kafka_record_is_named_by_partition_and_offset() -> None:
    """As an object, as AWS documents it, or as one text, as libraries write it."""
    named = {"partition": "my-topic-3", "offset": 13}
    assert read(failing(named), "kafka") == Result(failed_from=13)
    assert read(failing("my-topic-3-13"), "kafka") == Result(failed_from=13)
    assert read(failing("my-topic-3-17", named), "kafka") == Result(failed_from=13)


@pytest.mark.parametrize(
    "identifier",
    [
        {"partition": "my-topic-4", "offset": 13},
        {"partition": "my-topic-3", "offset": 12},
        {"partition": "my-topic-3", "offset": "13"},
        {"partition": "my-topic-3", "offset": True},
        {"partition": "my-topic-3"},
        {"offset": 13},
        {},
        "my-topic-3-",
        "my-topic-3-12",
        "my-topic-3-+13",
        "my-topic-4-13",
        "my-topic-3-" + "9" * 5000,
        sequence_number(13),
    ],
)
def test_a_kafka_record_that_is_not_there_fails_the_batch(identifier: object) -> None:
    """Another partition or offset, or another form: the whole batch is tried again."""
    with pytest.raises(ItemFailures, match="which names no record of its batch"):
        read(failing(identifier), "kafka")


def test_a_dynamodb_record_is_named_by_its_own_sequence_number() -> None:
    """The one in the record, else the one that the event gave it."""
    assert read(failing("1000"), "dynamodb") == Result(failed_from=10)
    assert read(failing(sequence_number(13)), "dynamodb") == Result(failed_from=13)
    with pytest.raises(ItemFailures, match="which names no record of its batch"):
        read(failing(sequence_number(10)), "dynamodb")


# --- rows


def test_rows_are_what_headrace_adds() -> None:
    """Rows go to the sink as they are."""
    for reports in (False, True):
        assert read({"rows": [{"at": 1.5, "n": 1}]}, reports=reports) == Result(rows=[{"at": 1.5, "n": 1}])
        assert read({"rows": []}, reports=reports) == Result(rows=[])


def test_rows_may_name_their_record_by_sequence_number() -> None:
    """It becomes the offset, which the trace in the sink is made of; failures or not."""
    rows = [{"n": 1, "_sequence_number": sequence_number(13)}, {"n": 2, "_offset": 10}]
    expected = Result(rows=[{"n": 1, "_offset": 13}, {"n": 2, "_offset": 10}])
    for kind in ("kinesis", "kafka"):
        assert read({"rows": rows}, kind, reports=False) == expected  # type: ignore[arg-type]
    own = {"rows": [{"n": 1, "_sequence_number": "1000"}]}
    assert read(own, "dynamodb", reports=False) == Result(rows=[{"n": 1, "_offset": 10}])


def test_rows_of_records_that_are_tried_again_are_left_out() -> None:
    """They would be there twice: the record named first and all that follow come again."""
    rows: list[dict[str, object]] = [{"n": offset, "_offset": offset} for offset in OFFSETS]
    rows[1] = {"n": 11, "_sequence_number": sequence_number(11)}
    response = failing(sequence_number(13), rows=rows)
    assert read(response) == Result(rows=[{"n": 10, "_offset": 10}, {"n": 11, "_offset": 11}], failed_from=13)
    assert read(failing(sequence_number(10), rows=rows)) == Result(rows=[], failed_from=10)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (failing(sequence_number(13), rows=[{"n": 1}]), "row 0 does not name its record"),
        (failing(sequence_number(13), rows=[{"_offset": 10}, {"_offset": "11"}]), "row 1 does not name its record"),
        (failing(sequence_number(13), rows=[{"_offset": True}]), "row 0 does not name its record"),
        ({"rows": [{"_sequence_number": sequence_number(12)}]}, "row 0 has the _sequence_number .* of no record"),
        ({"rows": [{"_sequence_number": 10}]}, "row 0 has the _sequence_number an int: 10, which is of no record"),
        (
            {"rows": [{"_sequence_number": sequence_number(10), "_offset": 11}]},
            "row 0 has the _offset an int: 11 and the _sequence_number of 10",
        ),
        ({"rows": {"a": 1}}, 'gave a dict: .* under "rows"'),
        ({"rows": "abc"}, "gave a str: 'abc' under \"rows\""),
        ({"rows": [{"a": 1}, 7]}, r'"rows": row 1 is an int: 7; each row has to be a dict'),
    ],
)
def test_rows_that_cannot_be_used_fail_the_invocation(response: object, message: str) -> None:
    """A row beside failures has to name its record; a name has to be that of a record."""
    with pytest.raises(HandlerError, match=message) as caught:
        read(response)
    assert not isinstance(caught.value, ItemFailures)


# --- tumbling windows


def test_the_state_of_a_window_is_handed_on_as_it_is() -> None:
    """Compact JSON, numbers beyond 64 bits and large states included: bounds are the engine's."""
    state = {"n": 2**80, "é": [1.5, None], "text": "x" * 2_000_000}
    result = read({"state": state, "rows": [{"n": 1}]}, window=WINDOW)
    assert result.state is not None
    assert json.loads(result.state) == state
    assert b'"n":1208925819614629174706176,' in result.state
    assert result.rows == [{"n": 1}]


def test_a_state_goes_with_a_partial_failure() -> None:
    """What was counted before the failed record is not lost."""
    assert read(failing(sequence_number(13), state={"n": 2}), window=WINDOW) == Result(
        failed_from=13, state=b'{"n":2}'
    )


@pytest.mark.parametrize(
    "response", [None, "", {}, {"state": None}, {"state": [1]}, {"state": "{}"}, [{"state": {}}]]
)
@pytest.mark.parametrize("reports", [False, True])
def test_an_answer_without_a_state_fails_its_invocation(response: object, reports: bool) -> None:
    """As on AWS, where a missing state is a failed invocation."""
    with pytest.raises(HandlerError, match="in a tumbling window it has to give an object with an object state"):
        read(response, reports=reports, window=WINDOW)


def test_outside_of_windows_a_state_means_nothing() -> None:
    """A handler that always returns one can be used without windows too."""
    assert read({"state": {"n": 1}}) == Result()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["my-topic-3-10"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["batchItemFailures", "itemIdentifier", "rows", "state", "partition", "offset", "_offset"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(response=JSON, reports=st.booleans(), windowed=st.booleans())
@pytest.mark.parametrize("kind", ["kinesis", "kafka", "dynamodb", "firehose"])
def test_no_answer_is_a_fault_of_ours(kind: EventKind, response: Any, reports: bool, windowed: bool) -> None:
    """Whatever JSON comes back is a result or a HandlerError, and failures name records of the batch."""
    try:
        result = read(response, kind, reports=reports, window=WINDOW if windowed else None)
    except HandlerError:
        return
    assert result.failed_from is None or (reports and result.failed_from in OFFSETS)
    assert (result.state is not None) == (windowed and kind != "firehose")


def test_without_a_sink_rows_are_nobodys() -> None:
    """An answer may have a member of that name, as it may on AWS; whatever it is, it means nothing."""
    for rows in (4, "none", [1, 2], [{"id": 1}], None):
        result = read_response(
            "f", "kinesis", batch(), {"statusCode": 200, "rows": rows}, reports_item_failures=True, takes_rows=False
        )
        assert result == Result()
