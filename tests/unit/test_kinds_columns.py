"""The kinds rows and arrow: what functions of decoded columns get, and what they may give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from engine.batch import Batch, from_rows
from engine.context import Context
from engine.errors import HandlerError
from engine.protocols import Fault, Invocation, Result
from engine.values import JsonDecoder, column_field
from functions.kinds.arrow import ArrowHandler
from functions.kinds.rows import RowsHandler, as_dicts

CONTEXT = Context(function_name="app.handler", memory_limit_in_mb="128", deadline_ms=0)
COLUMNS = pa.record_batch({"a": [1, 2], "b": ["x", None]})
TABLE = pa.Table.from_batches([COLUMNS])


def batch(*values: bytes) -> Batch:
    rows = [(i, 1_000 * i, None, value, []) for i, value in enumerate(values)]
    return from_rows("t", 3, rows, start=0, end=len(values))


async def invoke(kind: type[RowsHandler] | type[ArrowHandler], function: Callable[..., object]) -> Result:
    handler = kind(function, name="app.handler", timeout_seconds=20, concurrency_max=1)
    assert handler.wants_columns
    try:
        return await handler.invoke(Invocation(batch(b"", b""), COLUMNS, CONTEXT))
    finally:
        await handler.close()


# --- rows


async def test_rows_come_as_dicts_with_the_context() -> None:
    """A list of plain dicts, and the invocation's own context."""
    seen: list[object] = []
    await invoke(RowsHandler, lambda rows, context: seen.extend([rows, context]))
    assert seen == [[{"a": 1, "b": "x"}, {"a": 2, "b": None}], CONTEXT]


def test_json_columns_hold_what_their_text_says() -> None:
    """Objects, lists and scalars of JSON columns are parsed, big numbers exactly; text stays text."""
    schema = pa.schema([column_field("j", "JSON"), column_field("l", "JSON[]"), column_field("t", "VARCHAR")])
    columns = pa.RecordBatch.from_pylist(
        [
            {"j": '{"a":[1,null]}', "l": ['{"b":1}', None, "2"], "t": '{"a":1}'},
            {"j": "123456789012345678901234567890", "l": None, "t": None},
            {"j": None, "l": [], "t": ""},
        ],
        schema=schema,
    )
    assert as_dicts(columns) == [
        {"j": {"a": [1, None]}, "l": [{"b": 1}, None, 2], "t": '{"a":1}'},
        {"j": 123456789012345678901234567890, "l": None, "t": None},
        {"j": None, "l": [], "t": ""},
    ]


def test_decoded_records_become_rows_with_their_trace() -> None:
    """What the engine's decoder gives is what a function sees: typed, with the rest and the trace."""
    decoder = JsonDecoder({"n": "BIGINT", "o": "JSON"}, rest=True)
    columns = decoder.decode(batch(b'{"n": 1, "o": {"x": [1]}, "more": true}', b'{"n": 2}')).columns
    first, second = as_dicts(columns)
    assert first == {
        "n": 1,
        "o": {"x": [1]},
        "_rest": {"more": True},
        "_partition": 3,
        "_offset": 0,
        "_timestamp": datetime(1970, 1, 1, tzinfo=UTC),
    }
    assert second["_rest"] is None


def generator(rows: list[dict[str, object]], context: object) -> Iterator[dict[str, object]]:
    yield from ({**row, "n": i} for i, row in enumerate(rows))


async def async_generator(rows: list[dict[str, object]], context: object) -> AsyncIterator[dict[str, object]]:
    for row in generator(rows, context):
        yield row


async def coroutine(rows: list[dict[str, object]], context: object) -> Iterator[dict[str, object]]:
    return generator(rows, context)


EXPECTED = [{"a": 1, "b": "x", "n": 0}, {"a": 2, "b": None, "n": 1}]


@pytest.mark.parametrize(
    "function",
    [generator, async_generator, coroutine, lambda rows, c: tuple(generator(rows, c)), lambda rows, c: EXPECTED],
    ids=["generator", "async generator", "coroutine", "tuple", "list"],
)
async def test_any_iterable_of_dicts_is_taken(function: Callable[..., object]) -> None:
    """Generators of both kinds, tuples and lists."""
    assert (await invoke(RowsHandler, function)).rows == EXPECTED


async def test_none_and_results_are_taken() -> None:
    """Nothing at all, and a Result with faults, which passes as it is."""
    assert await invoke(RowsHandler, lambda rows, context: None) == Result()
    fault = Fault(1, "no")
    given = Result(rows=({"a": 1} for _ in range(2)), faults=[fault], dropped=1, failed_from=7)  # type: ignore[arg-type]
    assert await invoke(RowsHandler, lambda rows, context: given) == Result([{"a": 1}, {"a": 1}], [fault], 1, 7)
    table = Result(TABLE)
    assert await invoke(RowsHandler, lambda rows, context: table) is table


ALLOWED = "it has to give an iterable of dicts, None, or an engine.protocols.Result"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, rf"^app.handler \(kind rows\) gave an int: 7; {ALLOWED}"),
        ("abc", rf"gave a str: 'abc'; {ALLOWED}"),
        ({"a": 1}, rf"gave a dict: .*; {ALLOWED}\n  put the dict into a list"),
        (COLUMNS, rf"gave a pyarrow RecordBatch; {ALLOWED}"),
        ([{"a": 1}, None], r"\(kind rows\): row 1 is None; each row has to be a dict"),
        ([{"a": 1}, {"a": 2}, ["x"]], r"row 2 is a list: \['x'\]"),
        ([{"a": 1}, {None: 2}], r"row 1 has the key None; keys have to be text"),
        (["x" * 10_000], r"row 0 is a str: .{50,70}; each"),
        (Result(rows={"a": 1}), "gave a Result whose rows are a dict"),  # type: ignore[arg-type]
        (Result(rows=[{"a": 1}, 3]), "row 1 is an int: 3"),  # type: ignore[list-item]
    ],
)
async def test_other_results_of_rows_are_refused(given: object, message: str) -> None:
    """Kind, what it allows, what came, and the index of the bad row; long values are cut."""
    with pytest.raises(HandlerError, match=message):
        await invoke(RowsHandler, lambda rows, context: given)


async def test_an_error_inside_a_generator_passes_through() -> None:
    """A generator's body runs within the invocation, and its error is the function's own."""

    def failing(rows: list[Any], context: object) -> Iterator[dict[str, object]]:
        yield {"a": 1}
        raise LookupError("row 1")

    with pytest.raises(LookupError, match="row 1"):
        await invoke(RowsHandler, failing)


# --- arrow


async def test_arrow_functions_get_the_columns_themselves() -> None:
    """The record batch is handed over, not copied."""
    seen: list[object] = []
    await invoke(ArrowHandler, lambda columns, context: seen.extend([columns, context]))
    assert seen[0] is COLUMNS
    assert seen[1] is CONTEXT


@pytest.mark.parametrize(
    "given", [COLUMNS, TABLE, Result(TABLE), Result(COLUMNS)], ids=lambda given: type(given).__name__
)
async def test_batches_tables_and_results_are_taken(given: object) -> None:
    """Each becomes the same table."""
    result = await invoke(ArrowHandler, lambda columns, context: given)
    assert isinstance(result.rows, pa.Table)
    assert result.rows.equals(TABLE)


async def test_an_arrow_function_may_give_nothing() -> None:
    """None stands for no rows; async functions work as well."""

    async def function(columns: pa.RecordBatch, context: Context) -> None:
        return None

    assert await invoke(ArrowHandler, function) == Result()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [{"a": 1}],
            r"^app.handler \(kind arrow\) gave a list: \[\{'a': 1\}\]; it has to give a pyarrow RecordBatch",
        ),
        (7, "gave an int: 7; it has to give a pyarrow RecordBatch, a Table, None, or"),
        (pa.table([[1], [2]], names=["a", "a"]), "gave more than one column named 'a'"),
    ],
)
async def test_other_results_of_arrow_are_refused(given: object, message: str) -> None:
    """Kind, what it allows and what came; two columns of one name could not be told apart in a sink."""
    with pytest.raises(HandlerError, match=message):
        await invoke(ArrowHandler, lambda columns, context: given)
