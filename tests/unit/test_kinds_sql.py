"""The kind sql: queries over a batch, checked when loaded, shut off from everything else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from engine.batch import Batch, empty_records
from engine.context import Context
from engine.errors import HandlerError
from engine.protocols import Invocation, Result
from functions.kinds.calling import TimedOut
from functions.kinds.sql import SqlHandler

CONTEXT = Context(function_name="q", memory_limit_in_mb="128", deadline_ms=0)
COLUMNS = pa.record_batch({"a": [1, 2, 3], "s": ["x", "y", None]})


def made(query: str, *, seconds: float = 20, count: int = 1, schema: pa.Schema | None = None) -> SqlHandler:
    return SqlHandler(query, timeout_seconds=seconds, concurrency_max=count, schema=schema)


async def run(handler: SqlHandler, columns: pa.RecordBatch = COLUMNS) -> pa.Table:
    result: Result = await handler.invoke(Invocation(Batch("t", 0, 0, 3, empty_records()), columns, CONTEXT))
    assert isinstance(result.rows, pa.Table)
    return result.rows


async def once(query: str) -> pa.Table:
    handler = made(query)
    try:
        return await run(handler)
    finally:
        await handler.close()


async def test_the_batch_is_a_table() -> None:
    """Its columns can be selected, and rows keep their order."""
    table = await once("SELECT a + 1 AS b, s FROM batch WHERE s IS NOT NULL;")
    assert table.to_pylist() == [{"b": 2, "s": "x"}, {"b": 3, "s": "y"}]


@pytest.mark.parametrize("query", ["FROM batch", "-- all\nWITH x AS (SELECT * FROM batch) SELECT * FROM x"])
async def test_every_form_of_select_works(query: str) -> None:
    """DuckDB's short form, comments and common table expressions are queries too."""
    assert (await once(query)).num_rows == 3


async def test_a_query_without_rows_gives_an_empty_table() -> None:
    """Types stay known when no row is left."""
    table = await once("SELECT a FROM batch WHERE a > 10")
    assert (table.num_rows, table.schema.names) == (0, ["a"])


async def test_calls_at_once_see_their_own_batch() -> None:
    """Four calls under way at once never mix up their batches."""
    handler = made("SELECT sum(a)::BIGINT AS total, count(*) AS n FROM batch", count=4)
    batches = [pa.record_batch({"a": [i] * 1000}) for i in range(24)]
    tables = await asyncio.gather(*(run(handler, columns) for columns in batches))
    assert [table.to_pylist() for table in tables] == [[{"total": i * 1000, "n": 1000}] for i in range(24)]
    await handler.close()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "has to be one SELECT, got nothing"),
        ("SELECT 1; SELECT 2", "has to be one SELECT, got SELECT, SELECT"),
        ("CREATE TABLE x AS SELECT 1", "has to be one SELECT, got CREATE"),
        ("SET threads = 1", "has to be one SELECT, got SET"),
        ("COPY (SELECT 1) TO 'x.csv'", "has to be one SELECT, got COPY"),
        ("ATTACH 'x.db'", "has to be one SELECT, got ATTACH"),
        ("SELECT 1 +\n  FROM batch", 'line 2, column 3: Parser Error: syntax error at or near "FROM"'),
        ("SELEC 1", 'line 1, column 1: Parser Error: syntax error at or near "SELEC"'),
    ],
)
def test_what_is_no_query_is_refused_when_loaded(query: str, message: str) -> None:
    """One SELECT, and one that parses; else the place is named."""
    with pytest.raises(HandlerError, match=message):
        made(query)


def test_a_missing_column_is_refused_when_the_schema_is_known() -> None:
    """Line, column and a mark under the fault; umlauts before it do not shift it."""
    with pytest.raises(HandlerError) as caught:
        made("SELECT 'ä' AS u,\n 'öö', nope FROM batch", schema=COLUMNS.schema)
    text = str(caught.value)
    assert text.startswith(
        'the query (kind sql), line 2, column 8: Binder Error: Referenced column "nope" not found'
    )
    assert text.endswith("\n   'öö', nope FROM batch\n         ^")
    assert made("SELECT a FROM batch", schema=COLUMNS.schema)


async def test_an_error_in_the_data_names_its_place() -> None:
    """What only the data shows fails the invocation, with the place in the query."""
    with pytest.raises(HandlerError, match=r"line 1, column 9: Conversion Error: Could not convert string 'x'"):
        await once("SELECT s::INTEGER FROM batch")
    with pytest.raises(HandlerError, match="Invalid Input Error: boo"):
        await once("SELECT error('boo') FROM batch")


async def test_two_columns_of_one_name_are_refused() -> None:
    """A sink could not keep them apart."""
    with pytest.raises(HandlerError, match="gave more than one column named 'x'"):
        await once("SELECT a AS x, s AS x FROM batch")


async def test_nothing_outside_can_be_reached(tmp_path: Path) -> None:
    """No file, no Python variable, no setting."""
    path = tmp_path / "secret.csv"
    path.write_text("a\n1\n")
    for query, message in [
        (f"SELECT * FROM read_csv('{path}')", "Permission Error"),
        (f"SELECT * FROM '{path}'", "Error"),
        (f"SELECT content FROM read_text('{path}')", "Permission Error"),
        (f"SELECT * FROM glob('{tmp_path}/*')", "Error"),
        ("SELECT * FROM columns", "Table with name columns does not exist"),  # a variable beside the call
    ]:
        with pytest.raises(HandlerError, match=message):
            await once(query)


async def test_a_query_is_stopped_at_its_deadline() -> None:
    """It is interrupted, so that its thread serves the next call at once."""
    handler = made(
        "SELECT sum(r.range * b.a) AS n FROM batch b, range(CASE WHEN b.a > 5 THEN 100000000000 ELSE 1 END) r",
        seconds=0.2,
    )
    endless = pa.record_batch({"a": [10]})
    with pytest.raises(TimedOut, match=r"^Task timed out after 0.20 seconds$"):
        await run(handler, endless)
    assert (await run(handler)).num_rows == 1
    await handler.close()
