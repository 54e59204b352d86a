"""What handlers return, as rows of one schema, each with its trace."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from connectors.memory import MemorySink, MemoryStore
from engine.batch import Batch, Stream
from engine.clock import SystemClock
from engine.errors import HandlerError
from engine.output import Output
from tests.unit.engine_world import TOPIC, batch

STAMP = dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)  # of the first record in memory


async def sink(store: MemoryStore | None = None) -> MemorySink:
    given = MemorySink(store or MemoryStore(), pipeline="p", clock=SystemClock())
    await given.open(Stream("cluster", TOPIC, "id", 1))
    return given


async def output(**options: Any) -> Output:
    return Output(await sink(), **options)


def three() -> Batch:
    return batch([b"a", b"b", b"c"], start=10, end=15)


Rows = pa.Table | Sequence[Mapping[str, object]]


async def aligned(out: Output, rows: Rows, given: Batch | None = None) -> pa.Table:
    table = await out.align(rows, given or three())
    assert table is not None
    return table


async def test_no_rows_are_no_table() -> None:
    """None, an empty list and an empty table all mean that there is nothing to write."""
    out = await output()
    for rows in (None, [], pa.table({"a": pa.array([], pa.int64())})):
        assert await out.align(rows, three()) is None


@pytest.mark.parametrize("kind", ["dicts", "table"])
async def test_rows_that_name_their_record_carry_its_trace(kind: str) -> None:
    """Partition and timestamp come from the record of the offset, in any order and number."""
    rows: Rows = [{"_offset": 12, "n": 1}, {"_offset": 10, "n": 2}, {"_offset": 12, "n": 3}]
    if kind == "table":
        rows = pa.Table.from_pylist(list(rows))
    table = await aligned(await output(), rows)
    assert table.schema.names == ["n", "_partition", "_offset", "_timestamp"]
    assert table.column("_offset").to_pylist() == [12, 10, 12]
    milliseconds = [dt.timedelta(milliseconds=at) for at in (12, 10, 12)]
    assert table.column("_timestamp").to_pylist() == [STAMP + after for after in milliseconds]
    assert table.schema.field("_partition").type == pa.int32()


async def test_rows_of_a_batch_carry_its_range() -> None:
    """Rows that come from the whole batch name the offsets that it accounts for, and its latest timestamp."""
    table = await aligned(await output(), [{"count": 3}])
    assert table.to_pylist() == [
        {
            "count": 3,
            "_partition": 0,
            "_offset_first": 10,
            "_offset_last": 14,
            "_timestamp": STAMP + dt.timedelta(milliseconds=12),
        }
    ]


async def test_the_trace_can_be_left_out() -> None:
    """Without it rows are only what the handler returned."""
    table = await aligned(await output(trace=False), [{"count": 3}])
    assert table.schema.names == ["count"]


async def test_a_handlers_own_trace_is_not_believed() -> None:
    """Columns of the trace are made from the records, whatever the handler put there."""
    table = await aligned(await output(), [{"_offset": 11, "_partition": 77, "n": 1}])
    assert table.column("_partition").to_pylist() == [0]


async def test_the_first_output_fixes_the_schema() -> None:
    """Later rows get its columns and types: missing members are null, order does not matter."""
    out = await output(trace=False)
    first = await aligned(out, [{"a": 1, "b": "x", "c": None}])
    assert [str(field.type) for field in first.schema] == ["int64", "string", "string"]
    later = await aligned(out, [{"c": "late", "b": "y"}, {"a": 2}])
    assert later.schema == first.schema
    assert later.to_pylist() == [{"a": None, "b": "y", "c": "late"}, {"a": 2, "b": None, "c": None}]


async def test_nulls_inside_of_others_are_taken_as_text() -> None:
    """A list or an object of nothing but nulls must not fix a type that nothing ever fits."""
    out = await output(trace=False)
    first = await aligned(out, [{"tags": [], "who": {"name": None}}])
    assert first.schema.field("tags").type == pa.list_(pa.string())
    later = await aligned(out, [{"tags": ["x"], "who": {"name": "y"}}])
    assert later.to_pylist() == [{"tags": ["x"], "who": {"name": "y"}}]


async def test_every_shard_and_run_has_the_same_schema() -> None:
    """The sink keeps it: another process that computed another one adopts what is there."""
    store = MemoryStore()
    await aligned(Output(await sink(store), trace=False), [{"a": 1}])
    racing = Output(await sink(store), trace=False)
    assert (await aligned(racing, [{"a": 2.0}])).schema.field("a").type == pa.int64()
    restarted = Output(await sink(store), trace=False)
    await restarted.open()
    with pytest.raises(HandlerError, match="'b' that the rows before"):
        await aligned(restarted, [{"b": 1}])


async def test_shards_that_begin_at_once_fix_it_once() -> None:
    """The sink is asked to keep a schema by the first of them alone, and the others' rows are made to fit it."""

    class Counted(MemorySink):
        kept = 0

        async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
            self.kept += 1
            await asyncio.sleep(0)
            return await super().adopt_schema(name, schema)

    counted = Counted(MemoryStore(), pipeline="p", clock=SystemClock())
    await counted.open(Stream("cluster", TOPIC, "id", 1))
    out = Output(counted, trace=False)
    tables = await asyncio.gather(*(aligned(out, [{"a": value}]) for value in (1, 2.0, 3)))
    await aligned(out, [{"a": 4}])
    assert [str(table.schema.field("a").type) for table in tables] == ["int64"] * 3
    assert counted.kept == 1


async def test_declared_columns_are_the_schema() -> None:
    """Types come from the declaration, the trace stands behind, and what is not declared is refused."""
    out = await output(columns=pa.schema([("when", pa.timestamp("us")), ("n", pa.int16())]))
    table = await aligned(out, [{"n": 1, "_offset": 10}])
    assert table.schema.names == ["when", "n", "_partition", "_offset", "_timestamp"]
    assert table.column("when").to_pylist() == [None]
    with pytest.raises(HandlerError, match=r"'wen'.*did you mean 'when'"):
        await aligned(out, [{"wen": 1, "_offset": 10}])
    with pytest.raises(HandlerError, match="'n' cannot be stored as int16"):
        await aligned(out, [{"n": 100_000, "_offset": 10}])


FIRST: Rows = pa.table({"name": ["x"], "n": pa.array([1], pa.int32())})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pa.table({"name": ["x"]}), "no column 'n', which the rows before had"),
        (pa.table({"name": ["x"], "n": [1], "nane": ["y"]}), "'nane'.*did you mean 'name'"),
        (pa.table({"name": ["x"], "n": [2**40]}), "'n' as int64, which does not fit int32"),
        (pa.table({"name": ["x"], "n": [1.5]}), "'n' as double, which does not fit int32"),
        (pa.table({"name": ["x"], "n": [[1]]}), r"'n' as list<.*>, which does not fit int32"),
        (pa.table([pa.array(["x"]), pa.array([1]), pa.array([2])], names=["name", "n", "n"]), "two columns 'n'"),
        ([{"name": "x", "n": "many"}], "'n' cannot be stored as int32"),
        ([{"name": 5}], "'name' cannot be stored as string"),
        ([{"other": 5}], "'other' that the rows before"),
        ([{}], "without any column"),
        ([{"name": object()}], "'name' cannot be stored as string"),
    ],
)
async def test_misfits_are_the_handlers(rows: Rows, message: str) -> None:
    """Rows that do not fit what is stored fail the invocation, with the column and both types."""
    out = await output(trace=False)
    await aligned(out, FIRST)
    with pytest.raises(HandlerError, match=message):
        await out.align(rows, three())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"_offset": 9}], "_offset that is not in its batch"),
        ([{"_offset": 13}], "_offset that is not in its batch"),
        ([{"_offset": 10, "n": 1}, {"n": 2}], "some have _offset and some have not"),
        (pa.table({"_offset": ["ten"]}), "_offset as string"),
        (pa.table({"_offset": [[1]]}), "_offset as list"),
        ([{"_offset": "ten"}], "'_offset' cannot be stored"),
        ([{"n": 1}, {"n": "x"}], "'n' cannot be stored as one column type"),
    ],
)
async def test_rows_that_cannot_be_traced_are_refused(rows: Rows, message: str) -> None:
    """An offset that no record of the batch has, or that is none, fails the invocation."""
    with pytest.raises(HandlerError, match=message):
        await (await output()).align(rows, three())


async def test_rows_of_records_and_of_batches_do_not_mix() -> None:
    """The trace that the first rows had is that of all; the message speaks of what the handler returned."""
    out = await output()
    await aligned(out, [{"_offset": 10, "n": 1}])
    with pytest.raises(HandlerError, match="have no _offset, while the rows before them had an _offset"):
        await aligned(out, [{"n": 1}])
    out = await output()
    await aligned(out, [{"n": 1}])
    with pytest.raises(HandlerError, match="have an _offset, while the rows before them had no _offset"):
        await aligned(out, [{"_offset": 10, "n": 1}])
