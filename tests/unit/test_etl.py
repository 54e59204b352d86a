"""Change events: real streams against the tables they end in, both envelopes, each type, each refusal."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.context import Context
from engine.errors import ConfigError, HandlerError
from engine.protocols import Result
from functions import samples
from functions.etl import RUNWAYS, changes, runways

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the shared data are not here; the sample's tests stand in"
)
CONTEXT = Context("etl", "512", 0)


def traced(columns: Mapping[str, Sequence[object]], first: int = 0) -> pa.RecordBatch:
    """String columns with the trace columns before them."""
    count = len(next(iter(columns.values())))
    return pa.record_batch(
        {
            "_partition": pa.array([0] * count, pa.int32()),
            "_offset": pa.array(range(first, first + count), pa.int64()),
            "_timestamp": pa.array([0] * count, pa.timestamp("ms", tz="UTC")),
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
        }
    )


def whole(lines: Sequence[str | None], first: int = 0) -> pa.RecordBatch:
    """Envelopes as text lines."""
    return traced({"line": lines}, first)


def decoded(events: Sequence[Mapping[str, Any]], members: Iterable[str], first: int = 0) -> pa.RecordBatch:
    """Envelopes as the engine decodes them: text as it is, objects as JSON, null as null."""

    def cell(value: object) -> object:
        return value if value is None or isinstance(value, str) else json.dumps(value)

    return traced({name: [cell(event.get(name)) for event in events] for name in members}, first)


DEBEZIUM = ("before", "after", "source", "op", "ts_ms")


def merged(rows: pa.Table, key: str) -> pa.Table:
    """What an upserting sink makes of rows: the last of each key by order, without the deleted."""
    assert rows.num_rows
    query = f'SELECT * FROM rows QUALIFY row_number() OVER (PARTITION BY "{key}" ORDER BY _order DESC) = 1'
    return duckdb.sql(f'SELECT * FROM ({query}) WHERE NOT _deleted ORDER BY "{key}"').to_arrow_table()


def taken(results: Sequence[Result]) -> pa.Table:
    """The rows of results in which nothing was refused."""
    assert [fault for result in results for fault in result.faults] == []
    return pa.concat_tables([result.rows for result in results])


def in_batches(handler: Any, lines: Sequence[str], size: int, *, as_text: bool = False) -> pa.Table:
    """Events through a handler, ``size`` at a time."""
    results = []
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        batch = whole(part, start) if as_text else decoded([json.loads(line) for line in part], DEBEZIUM, start)
        results.append(handler(batch, CONTEXT))
    return taken(results)


def from_csv(rows: Iterable[Mapping[str, str]], columns: Mapping[str, str]) -> list[tuple[object, ...]]:
    """The runways' file typed in plain Python, as an oracle of the types."""
    readers: dict[str, Any] = {
        "BIGINT": int,
        "DOUBLE": float,
        "VARCHAR": str,
        "BOOLEAN": lambda text: {"0": False, "1": True}[text],
    }
    return [
        tuple(
            None if row[name] == "" and kind != "VARCHAR" else readers[kind](row[name])
            for name, kind in columns.items()
        )
        for row in rows
    ]


def cells(table: pa.Table, columns: Iterable[str]) -> list[tuple[object, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))


@pytest.mark.parametrize("as_text", [False, True])
def test_sample_ends_in_the_sources_own_file(as_text: bool) -> None:
    """The sample's changes, merged by key, are the newest version of the source's file, row for row."""
    lines = samples.lines("runways-changes")
    rows = in_batches(runways, lines, 1000, as_text=as_text)
    wanted = samples.expected("runways")
    assert rows.num_rows == len(lines) == wanted["changes"]
    final = from_csv(csv.DictReader(samples.lines("runways-final")), RUNWAYS)
    assert cells(merged(rows, "id"), RUNWAYS) == sorted(final)
    assert len(final) == wanted["rows"]
    assert rows.column("_deleted").to_pylist().count(True) == wanted["ops"]["d"]


def test_sample_in_any_order_and_twice() -> None:
    """The order column decides, not the order of arrival, and a second copy changes nothing."""
    lines = samples.lines("runways-changes")[-3000:]
    once = in_batches(runways, lines, 3000)
    again = in_batches(runways, list(reversed(lines)) + lines[:500], 700)
    assert cells(merged(again, "id"), RUNWAYS) == cells(merged(once, "id"), RUNWAYS)


@needs_data
@pytest.mark.slow
def test_runways_end_in_the_final_file() -> None:
    """All 170,675 changes end in the 48,184 rows of the final file, and in the answers computed elsewhere."""
    with gzip.open(DATA / "ourairports-runways-cdc/runways.cdc.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = in_batches(runways, file.read().split("\n")[:-1], 10_000, as_text=True)
    live = merged(rows, "id")
    with (DATA / "ourairports-runways-cdc/runways.final.csv").open(encoding="utf-8", newline="") as file:
        assert cells(live, RUNWAYS) == sorted(from_csv(csv.DictReader(file), RUNWAYS))
    with (DATA / "answers/ourairports-runways-cdc/q3-upsert-table.csv").open(encoding="utf-8", newline="") as file:
        answer = [(int(row["id"]), int(row["last_pos"])) for row in csv.DictReader(file)]
    assert cells(live, ("id", "_order")) == answer
    surfaces = duckdb.sql(
        "SELECT surface, count(*) AS n, sum(length_ft)::BIGINT FROM live GROUP BY 1 ORDER BY n DESC, surface"
    ).fetchall()
    with (DATA / "answers/ourairports-runways-cdc/q4-live-by-surface.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        wanted = [(row["surface"], int(row["n"]), row["total_length_ft"]) for row in csv.DictReader(file)]
    assert [(name, n, "" if total is None else str(total)) for name, n, total in surfaces] == wanted


TANTIVY = {"path": "VARCHAR", "mode": "VARCHAR", "blob": "VARCHAR"}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("as_text", [False, True])
def test_tantivy_ends_in_the_final_tree(as_text: bool) -> None:
    """The file changes of a repository end in its newest tree, with the last position of each path."""
    with gzip.open(DATA / "git-cdc-tantivy/tantivy.cdc.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[:-1]
    live = merged(in_batches(changes(TANTIVY, key=["path"]), lines, 4000, as_text=as_text), "path")
    tree = (DATA / "git-cdc-tantivy/tantivy.final.tsv").read_text(encoding="utf-8").split("\n")
    assert cells(live, TANTIVY) == sorted(tuple(line.split("\t")) for line in tree if line)
    with (DATA / "answers/git-cdc-tantivy/q3-upsert-table.csv").open(encoding="utf-8", newline="") as file:
        wanted = [(*(row[name] for name in TANTIVY), int(row["last_pos"])) for row in csv.DictReader(file)]
    assert cells(live, (*TANTIVY, "_order")) == wanted


@needs_data
def test_paimon_debezium_files_parse() -> None:
    """Another project's Debezium samples, with and without the schema wrapper, are rows or named faults."""
    folder = DATA / "paimon-cdc/resources/kafka/debezium"
    wrapped, plain = 0, 0
    handler = changes({"id": "BIGINT", "name": "VARCHAR", "weight": "DOUBLE"}, key=["id"], order="_offset")
    for file in sorted(folder.rglob("schemaevolution/debezium-data-*.txt")):
        lines = [line for line in file.read_text().splitlines() if line.startswith("{")]
        result = handler(whole(lines), CONTEXT)
        events = [json.loads(line) for line in lines]
        payloads = [event.get("payload", event) for event in events]
        ids = [(event["after"] or event["before"]).get("id") for event in payloads]
        assert result.faults == [] or None in ids, (file, result.faults)
        wanted = [(key, event["op"] == "d") for key, event in zip(ids, payloads, strict=True) if key is not None]
        assert cells(result.rows, ("id", "_deleted")) == [(int(key), deleted) for key, deleted in wanted]
        wrapped += sum("payload" in event for event in events)
        plain += sum("payload" not in event for event in events)
    assert wrapped > 5
    assert plain > 5


def event(op: str, before: object = None, after: object = None, **source: object) -> dict[str, object]:
    return {"op": op, "before": before, "after": after, "source": {"pos": 1, **source}}


ROW = {"id": "BIGINT", "name": "VARCHAR"}


def test_ops_and_wrapper() -> None:
    """r, c, u and d give rows; a delete gives its key alone; the schema wrapper makes no difference."""
    events = [
        event("r", None, {"id": 1, "name": "a"}, pos=5),
        event("c", None, {"id": 2, "name": None, "more": 1}, pos="6"),
        event("u", {"id": 1, "name": "a"}, {"id": 1, "name": "b"}, pos=7),
        event("d", {"id": 1, "name": 9}, None, pos=8),
    ]
    wanted = [(1, "a", 5, False), (2, None, 6, False), (1, "b", 7, False), (1, None, 8, True)]
    handler = changes(ROW, key=["id"])
    wrapped = [{"schema": {"type": "struct"}, "payload": each} for each in events]
    payloads = traced({"schema": [None] * 4, "payload": [json.dumps(each) for each in events]})
    for batch in (
        decoded(events, DEBEZIUM),
        whole([json.dumps(each) for each in events]),
        whole([json.dumps(each) for each in wrapped]),
        payloads,
    ):
        result = handler(batch, CONTEXT)
        assert result.faults == []
        assert cells(result.rows, ("id", "name", "_order", "_deleted")) == wanted
        assert result.rows.column_names == [
            "_partition",
            "_offset",
            "_timestamp",
            "id",
            "name",
            "_order",
            "_deleted",
        ]
        assert result.rows.schema.field("_order").type == pa.int64()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "the record is not valid JSON"),
        ("", "the record is not valid JSON"),
        (None, "the record is not valid JSON"),
        ("[]", "the record has no op: it is not a change event"),
        ("null", "the record has no op: it is not a change event"),
        ('{"ddl": "create table"}', "the record has no op: it is not a change event"),
        (event("t"), "op 't' empties the table, which no row by key can say"),
        (event("x"), "op x is none of r, c, u and d"),
        (event("c"), "the change has no new image of its row"),
        (event("c", None, [1]), "the change has no new image of its row"),
        (event("d"), "the delete has no before"),
        (event("c", None, {"name": "a"}), "id: the key is missing"),
        (event("d", {"name": "a"}), "id: the key is missing"),
        (event("c", None, {"id": 1.5}), "id: 1.5 is not BIGINT"),
        (event("c", None, {"id": 1, "name": 7}), "name: 7 is not VARCHAR"),
        (event("c", None, {"id": 1, "name": {"a": 1}}), 'name: {"a":1} is not VARCHAR'),
        (event("c", None, {"id": ""}), 'id: "" is not BIGINT'),
        (event("c", None, {"id": 1}, pos=None), "source.pos: the place in the order is missing"),
        (event("c", None, {"id": 1}, pos="x"), "source.pos: x is no BIGINT"),
        (
            event("u", {"id": 1}, {"id": 2}),
            "the update changes its key from [1] to [2]; a delete and a create do that",
        ),
    ],
)
def test_refusals(line: object, reason: str) -> None:
    """What cannot be taken is a fault at its offset that says why; its neighbours go on."""
    text = json.dumps(line) if isinstance(line, dict) else line
    good = json.dumps(event("c", None, {"id": 1, "name": "a"}))
    result = changes(ROW, key=["id"])(whole([good, text, good], 7), CONTEXT)
    assert [(fault.offset, fault.reason) for fault in result.faults] == [(8, reason)]
    assert result.rows.column("_offset").to_pylist() == [7, 9]
    assert result.dropped == 0


REFUSED = object()
UTC = dt.UTC


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("BIGINT", 9223372036854775807, 9223372036854775807),
        ("BIGINT", 9223372036854775808, REFUSED),
        ("BIGINT", 99999999999999999999, REFUSED),
        ("BIGINT", "-12", -12),
        ("BIGINT", "007", 7),
        ("BIGINT", " 12", REFUSED),
        ("BIGINT", "1_000", REFUSED),
        ("BIGINT", 1.7, REFUSED),
        ("BIGINT", 1.0, REFUSED),
        ("BIGINT", "1e3", REFUSED),
        ("BIGINT", True, REFUSED),
        ("BIGINT", [1], REFUSED),
        ("BIGINT", None, None),
        ("TINYINT", 128, REFUSED),
        ("TINYINT", -128, -128),
        ("UINTEGER", -1, REFUSED),
        ("DOUBLE", 1, 1.0),
        ("DOUBLE", "1.5e3", 1500.0),
        ("DOUBLE", "1e400", REFUSED),
        ("DOUBLE", "nan", REFUSED),
        ("DOUBLE", "x", REFUSED),
        ("DECIMAL(12,2)", "10.50", Decimal("10.50")),
        ("DECIMAL(12,2)", 10.5, Decimal("10.50")),
        ("DECIMAL(12,2)", "10.505", REFUSED),
        ("DECIMAL(12,2)", "10.500", Decimal("10.50")),
        ("DECIMAL(4,2)", "100", REFUSED),
        ("DECIMAL(38,2)", "123456789012345678901234567890.12", Decimal("123456789012345678901234567890.12")),
        ("DECIMAL(38,2)", 12345678901234567.12, REFUSED),
        ("BOOLEAN", True, True),
        ("BOOLEAN", 0, False),
        ("BOOLEAN", "1", True),
        ("BOOLEAN", "yes", REFUSED),
        ("VARCHAR", 'é " \\ \n', 'é " \\ \n'),
        ("VARCHAR", "", ""),
        ("VARCHAR", 1, REFUSED),
        ("JSON", {"a": [1, None]}, '{"a":[1,null]}'),
        ("DATE", "2024-02-29", dt.date(2024, 2, 29)),
        ("DATE", "2023-02-29", REFUSED),
        ("DATE", 19782, dt.date(2024, 2, 29)),
        ("TIMESTAMP", "2024-02-29T12:00:00.5", dt.datetime(2024, 2, 29, 12, 0, 0, 500000)),
        ("TIMESTAMP", 1709208000500000, dt.datetime(2024, 2, 29, 12, 0, 0, 500000)),
        ("TIMESTAMP_MS", 1709208000500, dt.datetime(2024, 2, 29, 12, 0, 0, 500000)),
        ("TIMESTAMP_S", 1709208000, dt.datetime(2024, 2, 29, 12, 0)),
        ("TIMESTAMP", "tomorrow", REFUSED),
        ("TIMESTAMPTZ", "2024-02-29T12:00:00+02:00", dt.datetime(2024, 2, 29, 10, 0, tzinfo=UTC)),
        ("TIMESTAMPTZ", "2024-02-30T12:00:00Z", REFUSED),
        ("BLOB", "AQI=", b"\x01\x02"),
        ("BLOB", "###", REFUSED),
    ],
)
def test_types(kind: str, value: object, wanted: object) -> None:
    """Each type takes what it can hold exactly, and refuses the rest by name."""
    handler = changes({"id": "BIGINT", "v": kind}, key=["id"])
    result = handler(whole([json.dumps(event("c", None, {"id": 1, "v": value}))]), CONTEXT)
    if wanted is REFUSED:
        assert [fault.reason.startswith("v: ") for fault in result.faults] == [True]
        assert result.rows.num_rows == 0
    else:
        assert result.faults == []
        assert result.rows.column("v").to_pylist() == [wanted]


INTEGERS = changes({"id": "BIGINT", "v": "BIGINT"}, key=["id"])


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_integers_against_an_oracle(value: Any) -> None:
    """Any JSON value is the integer that it is, NULL, or refused; never another number."""
    line = json.dumps(event("c", None, {"id": 1, "v": value}))
    result = INTEGERS(whole([line]), CONTEXT)
    text = value if isinstance(value, str) else json.dumps(value)
    digits = text.removeprefix("-")
    integer = digits.isascii() and digits.isdigit() and -(2**63) <= int(text) < 2**63
    if value is None or integer:
        assert result.rows.column("v").to_pylist() == [None if value is None else int(text)]
    else:
        assert len(result.faults) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["op", "before", "after", "id", "v", "pos", "source", "payload"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)
HOSTILE = [
    json.dumps({"op": "c", "after": {"id": 1, "v": "\ud800"}, "source": {"pos": 1}}),
    json.dumps({"op": "\ud800", "after": {"id": 1}, "source": {"pos": 1}}),
    json.dumps({"op": "c", "after": {"id": 1, "v": "\0"}, "source": {"pos": "\0"}}),
    '{"op": "c", "after": {"id": 1, "id": 2}, "source": {"pos": 1}}',
    "[" * 100_000,
    '{"op": "c", "after": {"id": 1, "v": ' + "[" * 5000 + "]" * 5000 + '}, "source": {"pos": 1}}',
    json.dumps({"op": "c", "after": {"id": 1, "v": "x" * 5_000_000}, "source": {"pos": 1}}),
    '{"op": "c", "after": {"id": 1e999}, "source": {"pos": 1}}',
    '{"op": "u", "before": "x", "after": {"id": 1}, "source": {"pos": 1}}',
    '{"op": "d", "before": [{"id": 1}], "source": 7}',
]
EVERYTHING = {
    kind: changes({"id": "VARCHAR", "v": kind}, key=["id"])
    for kind in (
        "VARCHAR",
        "JSON",
        "DOUBLE",
        "DECIMAL(38,3)",
        "DATE",
        "TIMESTAMP",
        "TIMESTAMPTZ",
        "BLOB",
        "BOOLEAN",
    )
}


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=30) | JSON.map(json.dumps), max_size=6))
def test_every_record_is_accounted_for(lines: list[str]) -> None:
    """Whatever a record holds, it is a row or a fault, and never fails the batch."""
    for handler in EVERYTHING.values():
        result = handler(whole(lines), CONTEXT)
        assert result.rows.num_rows + len(result.faults) == len(lines)


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_records(line: str) -> None:
    """Each hostile record is a row or a fault, in both inputs, and the good one beside it is a row."""
    good = json.dumps(event("c", None, {"id": "1"}))
    for handler in EVERYTHING.values():
        result = handler(whole([line, good]), CONTEXT)
        assert result.rows.column("_offset").to_pylist()[-1] == 1
        assert result.rows.num_rows + len(result.faults) == 2


def test_empty_strings() -> None:
    """Where it is asked for, an empty string is NULL in any column but text."""
    columns = {"id": "BIGINT", "n": "BIGINT", "d": "DATE", "t": "VARCHAR"}
    line = json.dumps(event("c", None, {"id": 1, "n": "", "d": "", "t": ""}))
    rows = changes(columns, key=["id"], empty_is_null=True)(whole([line]), CONTEXT).rows
    assert cells(rows, columns) == [(1, None, None, "")]
    assert len(changes(columns, key=["id"])(whole([line]), CONTEXT).faults) == 1


def test_order_by_offset_and_by_lsn() -> None:
    """The order can be another member, or the record's own offset."""
    line = json.dumps(event("c", None, {"id": 1}, lsn=24023128))
    by = {order: changes({"id": "BIGINT"}, key=["id"], order=order) for order in ("source.lsn", "_offset")}
    found = {
        order: handler(whole([line], 77), CONTEXT).rows.column("_order").to_pylist()
        for order, handler in by.items()
    }
    assert found == {"source.lsn": [24023128], "_offset": [77]}


def stream(name: str, number: str, image: object) -> dict[str, object]:
    keys = {"Id": {"N": "101"}}
    return {"eventName": name, "dynamodb": {"Keys": keys, "NewImage": image, "SequenceNumber": number}}


STREAM = {"Id": "BIGINT", "Message": "VARCHAR", "Price": "DECIMAL(10,2)", "Ok": "BOOLEAN", "Extra": "JSON"}


def test_dynamodb_stream() -> None:
    """INSERT, MODIFY and REMOVE give typed rows; sequence numbers keep all of their digits."""
    image = {
        "Id": {"N": "101"},
        "Message": {"S": "New item!"},
        "Price": {"N": "1.50"},
        "Ok": {"BOOL": False},
        "Extra": {"M": {"a": {"L": [{"N": "1.10"}, {"NULL": True}]}, "s": {"SS": ["x"]}, "n": {"NS": ["1", "2"]}}},
    }
    sparse = {"Id": {"N": "101"}, "Message": {"NULL": True}}
    number = "4421584500000000017450439091"
    events = [stream("INSERT", number, image), stream("MODIFY", "222", sparse), stream("REMOVE", "333", None)]
    handler = changes(STREAM, key=["Id"], shape="dynamodb")
    extra = '{"a":[1.10,null],"s":["x"],"n":[1,2]}'
    wanted = [
        (101, "New item!", Decimal("1.50"), False, extra, Decimal(number), False),
        (101, None, None, None, None, Decimal(222), False),
        (101, None, None, None, None, Decimal(333), True),
    ]
    for batch in (decoded(events, ("eventName", "dynamodb")), whole([json.dumps(each) for each in events])):
        result = handler(batch, CONTEXT)
        assert result.faults == []
        assert cells(result.rows, (*STREAM, "_order", "_deleted")) == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (stream("UPDATE", "1", {}), "op UPDATE is none of INSERT, MODIFY and REMOVE"),
        (stream("INSERT", "1", None), "the change has no new image of its row"),
        (stream("INSERT", "1", {"Id": {"S": "101"}}), 'Id: {"S":"101"} is not BIGINT'),
        (stream("INSERT", "1", {"Id": {"N": "1"}, "Message": {"N": "1"}}), 'Message: {"N":"1"} is not VARCHAR'),
        (stream("INSERT", "x", {"Id": {"N": "1"}}), "SequenceNumber: x is no DECIMAL(38,0)"),
    ],
)
def test_dynamodb_refusals(line: dict[str, object], reason: str) -> None:
    """Attributes of another type than the column's are refused, not converted."""
    result = changes(STREAM, key=["Id"], shape="dynamodb")(whole([json.dumps(line)]), CONTEXT)
    assert [fault.reason for fault in result.faults] == [reason]


@needs_data
def test_dynamodb_event_of_aws() -> None:
    """The records of a stream event as AWS documents it parse."""
    records = json.loads((DATA / "aws-powertools-events/dynamoStreamEvent.json").read_text())["Records"]
    handler = changes({"Id": "BIGINT", "Message": "VARCHAR"}, key=["Id"], shape="dynamodb")
    result = handler(whole([json.dumps(record) for record in records]), CONTEXT)
    assert result.faults == []
    assert cells(result.rows, ("Id", "Message")) == [(101, "New item!"), (101, "This item has changed")]


def test_settings_faults_are_all_reported() -> None:
    """Every setting that cannot be used is named at once."""
    with pytest.raises(ConfigError) as caught:
        changes({"id": "BIGNIT", 'a"b': "VARCHAR", "_order": "BIGINT"}, key=["no"], shape="dbz", order="a b")
    for part in ("'BIGNIT'", "'a\"b'", "'_order'", "'no'", "'dbz'", "'a b'"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="key: give the columns"):
        changes({"id": "BIGINT"}, key=[])


def test_missing_columns() -> None:
    """A batch that holds no envelope says what it has."""
    with pytest.raises(HandlerError, match="need the column 'op', or one of line, payload, value; the batch has x"):
        changes(ROW, key=["id"])(pa.record_batch({"x": [1]}), CONTEXT)


def test_empty_batch() -> None:
    """No events give no rows, of the same schema."""
    full = runways(decoded([json.loads(samples.lines("runways-changes")[0])], DEBEZIUM), CONTEXT).rows
    none = runways(decoded([], DEBEZIUM), CONTEXT).rows
    assert (none.num_rows, none.schema) == (0, full.schema)
