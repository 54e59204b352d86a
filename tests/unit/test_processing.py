"""One batch through decode, handler and retries: what is handled, tried again, reported, dropped, or stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from connectors.memory import MemorySink, MemoryStore
from engine.attempts import Processed, Stopping, Work
from engine.attempts import refused as without_refused
from engine.batch import Batch, Stream
from engine.batching import KEYS_AND_VALUES
from engine.clock import SystemClock
from engine.config import SchemaConfig
from engine.decoding import Decoders
from engine.errors import DataError, HandlerError, RowsRefused
from engine.failing import Cause, describe, failed_records
from engine.output import Output
from engine.processing import Processor
from engine.protocols import Counts, FailedRecord, Fault, Invocation, Result
from tests.unit.engine_world import TOPIC, FunctionHandler, batch, context, copy, failing, policy, rows_of

REPORTS = policy(reports=True, retries_max=0)


async def processor(handler: FunctionHandler, rules: object = REPORTS, **schema: Any) -> Processor:
    """A processor over a fresh sink; with options of `SchemaConfig` its handler is called with columns."""
    sink = MemorySink(MemoryStore(), pipeline="p", clock=SystemClock())
    await sink.open(Stream("cluster", TOPIC, "id", 1))
    executor = ThreadPoolExecutor(1)
    decoders = None
    if schema:
        handler.wants_columns = True
        decoders = Decoders(SchemaConfig(**schema), sink, executor)
    return Processor(
        name="p",
        handler=handler,
        decoders=decoders,
        output=Output(sink),
        policy=rules,  # type: ignore[arg-type]
        context=context,
        payload=KEYS_AND_VALUES,
        clock=SystemClock(),
        executor=executor,
    )


async def process(handler: FunctionHandler, given: Batch, rules: object = REPORTS, **schema: Any) -> Processed:
    return await first(Work(await processor(handler, rules, **schema), given))


async def first(work: Work, stopping: asyncio.Event | None = None) -> Processed:
    """The first part of the work that is settled."""
    while True:
        done = await work.step(stopping or asyncio.Event())
        if done is not None:
            return done


def offsets(done: Processed) -> list[int]:
    return [] if done.outcome.rows is None else done.outcome.rows.column("_offset").to_pylist()


def failed(done: Processed) -> list[int]:
    return [record.offset for record in done.outcome.failures]


def columns(invocation: Invocation) -> Result:
    """The decoded columns as they are."""
    assert invocation.columns is not None
    return Result(rows=pa.Table.from_batches([invocation.columns]))


async def test_a_range_without_records_is_not_handled() -> None:
    """Absent offsets are accounted for; the handler is not called."""
    handler = FunctionHandler(copy)
    done = await process(handler, batch([], start=3, end=8))
    assert done.outcome.counts == Counts(absent=5)
    assert (done.outcome.start, done.outcome.end, done.error, handler.invocations) == (3, 8, None, [])


async def test_a_handled_batch_accounts_for_its_gaps() -> None:
    """Records are handled, other offsets absent; the range is the batch's own."""
    done = await process(FunctionHandler(copy), batch([b"a", b"b"], start=4, end=9))
    assert (done.outcome.start, done.outcome.end) == (4, 9)
    assert done.outcome.counts == Counts(handled=2, absent=3)
    assert offsets(done) == [4, 5]


@pytest.mark.parametrize("schema", [{}, {"format": "raw"}])
async def test_a_record_over_its_bound_never_reaches_the_function(schema: dict[str, Any]) -> None:
    """It is reported with its size, as one that was not invoked; its neighbours flow."""
    rules = policy(reports=True, record_bytes_max=10)
    handler = FunctionHandler(columns if schema else copy)
    done = await process(handler, batch([b"a", b"b" * 11, b"c"]), rules, **schema)
    assert (offsets(done), failed(done)) == ([0, 2], [1])
    (record,) = done.outcome.failures
    assert "11 bytes, more than record_bytes_max = 10" in record.reason
    assert (record.attempts, record.value) == (0, b"b" * 11)
    assert len(handler.invocations[0].batch) == 2


async def test_a_batch_of_nothing_but_oversized_records_is_reported_whole() -> None:
    """No handler and no inference is asked about a batch of which nothing is left."""
    handler = FunctionHandler(columns)
    done = await process(handler, batch([b"a" * 20] * 3), policy(reports=True, record_bytes_max=10), format="json")
    assert (failed(done), handler.invocations) == ([0, 1, 2], [])


async def test_bad_values_are_reported_alone() -> None:
    """Each record that cannot be decoded fails with its own reason; the function sees the others only."""
    values = [b'{"a": 1}', b"{", b'{"a": 2}', b"\xff", None, b""]
    handler = FunctionHandler(columns)
    done = await process(handler, batch(values), format="json", columns={"a": "BIGINT"})
    assert (offsets(done), failed(done)) == ([0, 2], [1, 3, 4, 5])
    assert done.outcome.counts == Counts(handled=2, failed=4)
    assert all(record.reason for record in done.outcome.failures)
    assert handler.invocations[0].batch.records.column("offset").to_pylist() == [0, 2]


async def test_null_values_may_be_dropped() -> None:
    """What the decoder lets go counts as dropped, beside what the function handled."""
    options = {"format": "json", "columns": {"a": "BIGINT"}, "on_null_value": "drop"}
    done = await process(FunctionHandler(columns), batch([b'{"a": 1}', None]), **options)
    assert done.outcome.counts == Counts(handled=1, dropped=1)
    done = await process(FunctionHandler(columns), batch([None, None]), **options)
    assert done.outcome.counts == Counts(dropped=2)


async def test_without_a_destination_only_what_lies_before_a_bad_value_is_done() -> None:
    """The outcome ends where the first bad record begins, gaps before it included."""
    values = [b'{"a": 1}', b"{", b'{"a": 2}']
    done = await process(FunctionHandler(columns), batch(values, start=4), policy(), columns={"a": "BIGINT"})
    assert (done.outcome.start, done.outcome.end, offsets(done)) == (4, 5, [4])
    assert isinstance(done.error, DataError)
    assert "offset 5" in done.error.message
    done = await process(FunctionHandler(columns), batch([b"{"], start=4), policy(), columns={"a": "BIGINT"})
    assert (done.outcome.start, done.outcome.end) == (4, 4)
    assert isinstance(done.error, DataError)


async def test_without_a_destination_bad_values_may_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """With on_exhausted = "drop" they are let go, which the log says, and count as dropped."""
    rules = policy(drops=True)
    done = await process(FunctionHandler(columns), batch([b'{"a": 1}', b"{"]), rules, columns={"a": "BIGINT"})
    assert done.outcome.counts == Counts(handled=1, dropped=1)
    assert (done.error, done.outcome.failures) == (None, ())
    assert "dropped 1 records" in caplog.text


async def test_partial_failures_are_reported_alone() -> None:
    """Records that the function names fail whole, with what it said; its rows are kept."""
    done = await process(FunctionHandler(failing(1)), batch([b"a", b"b", b"c"]))
    assert offsets(done) == [0, 2]
    (record,) = done.outcome.failures
    assert record.request_id is not None
    assert record == FailedRecord(
        0, 1, record.timestamp, None, b"b", (), "1 is bad", "RecordFault", 1, record.request_id
    )


async def test_an_error_is_tried_again_until_it_passes() -> None:
    """Each attempt is an invocation of its own: with its own request id, on the same records."""
    calls = 0

    def function(invocation: Invocation) -> Result:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise ValueError("not yet")
        return copy(invocation)

    handler = FunctionHandler(function)
    done = await process(handler, batch([b"a", b"b"]), policy(retries_max=-1))
    assert offsets(done) == [0, 1]
    assert len({call.context.aws_request_id for call in handler.invocations}) == 4
    assert len({id(call.batch) for call in handler.invocations}) == 1


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_batch_that_keeps_failing_is_reported_whole(retries: int) -> None:
    """After the last attempt every record is reported with the error and the number of its attempts."""

    def function(invocation: Invocation) -> Result:
        raise KeyError("user")

    handler = FunctionHandler(function)
    done = await process(handler, batch([b"a", b"b"], start=7, end=12), policy(reports=True, retries_max=retries))
    assert (done.error, failed(done)) == (None, [7, 8])
    assert done.outcome.counts == Counts(failed=2, absent=3)
    record = done.outcome.failures[0]
    assert (record.error_type, record.reason, record.attempts) == ("KeyError", "KeyError: 'user'", retries + 1)
    assert len(handler.invocations) == retries + 1


async def test_a_batch_that_keeps_failing_may_be_dropped() -> None:
    """As on AWS, when it is asked for: the batch is let go after its attempts."""

    def function(invocation: Invocation) -> Result:
        raise KeyError("user")

    done = await process(FunctionHandler(function), batch([b"a", b"b"]), policy(drops=True, retries_max=1))
    assert (done.outcome.counts, done.error) == (Counts(dropped=2), None)


async def test_a_batch_that_keeps_failing_keeps_its_other_reasons() -> None:
    """A record that was bad already keeps its own reason beside the batch's."""

    def function(invocation: Invocation) -> Result:
        raise KeyError("user")

    rules = policy(reports=True, retries_max=0)
    done = await process(FunctionHandler(function), batch([b'{"a": 1}', b"{"]), rules, columns={"a": "BIGINT"})
    assert [record.error_type for record in done.outcome.failures] == ["KeyError", "RecordFault"]
    assert [record.attempts for record in done.outcome.failures] == [1, 0]


@pytest.mark.slow
async def test_the_pause_doubles_up_to_its_bound(caplog: pytest.LogCaptureFixture) -> None:
    """Attempts are logged with what failed and when the next one comes."""

    def function(invocation: Invocation) -> Result:
        raise ValueError("no\nmore lines")

    rules = policy(reports=True, retries_max=4, backoff_seconds=0.1, backoff_seconds_max=0.3)
    await process(FunctionHandler(function), batch([b"a"]), rules)
    lines = [record.getMessage() for record in caplog.records if "attempt" in record.getMessage()]
    assert [line.rsplit("next in ", 1)[1] for line in lines] == ["0.1 s", "0.2 s", "0.3 s", "0.3 s"]
    assert "attempt 1 (of 5) failed: ValueError: no;" in lines[0]


async def test_a_stop_ends_the_pause() -> None:
    """A shard that is to stop does not wait for the next attempt."""

    def function(invocation: Invocation) -> Result:
        raise ValueError("no")

    stopping = asyncio.Event()
    stopping.set()
    rules = policy(backoff_seconds=1_000.0, backoff_seconds_max=1_000.0)
    with pytest.raises(Stopping):
        await first(Work(await processor(FunctionHandler(function), rules), batch([b"a"])), stopping)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Result(faults=[Fault(9, "x")]), "offset 9, which is not in its batch"),
        (Result(faults=[Fault(1, "x"), Fault(1, "y")]), "an offset twice"),
        (Result(dropped=4), "dropped 4 of 3"),
        (Result(dropped=-1), "dropped -1 of 3"),
        (Result(dropped=2, faults=[Fault(0, "x"), Fault(1, "y")]), "dropped 2 of 3"),
        (Result(rows=[{"_offset": 1}], faults=[Fault(1, "x")]), "offset 1 and returned a row of it"),
        (Result(rows=[{"_offset": 9}]), "_offset that is not in its batch"),
    ],
)
async def test_a_result_that_cannot_be_true_is_a_failure(result: Result, message: str) -> None:
    """The handler is failed for it, with what is wrong; nothing of the result is kept."""
    done = await process(FunctionHandler(lambda _invocation: result), batch([b"a", b"b", b"c"]))
    assert failed(done) == [0, 1, 2]
    assert message in done.outcome.failures[0].reason
    assert done.outcome.rows is None


def refusal(*rows: int) -> RowsRefused:
    return RowsRefused(rows, [f"row {row} does not fit" for row in rows])


async def refused(
    function: Any, rules: object, rows: Sequence[int], given: Batch | None = None
) -> tuple[Processed, FunctionHandler]:
    handler = FunctionHandler(function)
    engine = await processor(handler, rules)
    given = batch([b"a", b"b", b"c", b"d"]) if given is None else given
    done = await first(Work(engine, given))
    return without_refused(engine, done, refusal(*rows)), handler


async def test_a_refused_row_fails_its_record() -> None:
    """All rows of the record go with it; earlier failures stay."""

    def function(invocation: Invocation) -> Result:
        rows = rows_of(invocation.batch, [0])
        return Result(rows=[row for row in rows for _ in range(2)], faults=[Fault(0, "first")])

    done, _ = await refused(function, REPORTS, [2])  # of b, b, c, c, d, d: the first c
    assert (offsets(done), failed(done)) == ([1, 1, 3, 3], [0, 2])
    assert [record.reason for record in done.outcome.failures] == ["first", "row 2 does not fit"]
    assert done.outcome.counts == Counts(handled=2, failed=2)


async def test_a_refused_row_may_be_dropped() -> None:
    """Where failed records are let go, so are those of refused rows."""
    done, _ = await refused(failing(0), policy(drops=True), [1])
    assert offsets(done) == [1, 3]
    assert done.outcome.counts == Counts(handled=2, dropped=2)


async def test_a_refused_row_stops_before_its_record() -> None:
    """Without a destination the rows before it are kept; the function is not called again."""
    done, handler = await refused(copy, policy(), [2])
    assert (offsets(done), done.outcome.end) == ([0, 1], 2)
    assert isinstance(done.error, DataError)
    assert [len(call.batch) for call in handler.invocations] == [4]


async def test_refused_rows_of_a_whole_batch_fail_the_batch() -> None:
    """Rows that name no record cannot fail one; earlier failures keep their own reasons."""

    def function(invocation: Invocation) -> Result:
        return Result(rows=[{"count": len(invocation.batch)}], faults=[Fault(1, "alone")])

    done, _ = await refused(function, REPORTS, [0])
    assert (failed(done), done.outcome.rows) == ([0, 1, 2, 3], None)
    assert [record.error_type for record in done.outcome.failures] == ["RowsRefused", "RecordFault"] + [
        "RowsRefused"
    ] * 2
    done, _ = await refused(lambda invocation: Result(rows=[{"count": len(invocation.batch)}]), policy(), [0])
    assert (done.outcome.end, isinstance(done.error, HandlerError)) == (0, True)


def test_errors_are_described_in_a_line() -> None:
    """Ours by their message, others by class and first line, silent ones by class."""
    assert describe(HandlerError("it is so", hint="do this")) == "it is so"
    assert describe(ValueError("one\ntwo")) == "ValueError: one"
    assert describe(ValueError()) == "ValueError"


def test_what_a_handler_said_is_kept_as_text() -> None:
    """Half a surrogate pair in an error's message, which no sink can write, is written out."""
    [failed] = failed_records(batch([b"v"]), {0: Cause("no \ud800 \U0001f600", "E\udfff", 1)})
    assert (failed.reason, failed.error_type) == ("no \\ud800 \U0001f600", "E\\udfff")
