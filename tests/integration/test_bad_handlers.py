"""Handlers that cannot be loaded, that raise, or return what their kind does not allow, through `headrace run`.

Not here: what loading and calling say of each fault in detail (tests/unit/test_loader.py, test_kinds_*).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from connectors.kafka.broker import Broker
from tests.integration.support import SINKS, Project, pipeline, value_of

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TopicFactory = Callable[..., Awaitable[str]]

HANDLERS = '''
import base64, json, os, time

not_callable = 3

def note(name, count):
    with open(f"{name}.calls", "a") as file:
        file.write(f"{count}\\n")

def raises(event, context):
    note(context.function_name, len(event["Records"]))
    raise ValueError("no such customer\\nand more")

def once(event, context):
    """Fails on its first call, and then takes what comes."""
    first = not os.path.exists(f"{context.function_name}.calls")
    note(context.function_name, len(event["Records"]))
    if first:
        raise KeyError("page")

def leaves(rows, context):
    note(context.function_name, len(rows))
    raise SystemExit(3)

def fails_on_poison(rows, context):
    if any(row["id"] == 13 for row in rows):
        raise RuntimeError("poison")
    return [{"id": row["id"], "_offset": row["_offset"]} for row in rows]

def slow(rows, context):
    time.sleep(60)

def a_set(event, context):
    return {1, 2}

def bad_rows(event, context):
    return {"rows": {"id": 1}}

def a_dict(rows, context):
    return {"id": 1}

def no_dicts(rows, context):
    return [1, 2]

def some_offsets(rows, context):
    return [{"id": 1, "_offset": rows[0]["_offset"]}, {"id": 2}]

def foreign_offset(rows, context):
    return [{"id": 1, "_offset": 10_000}]

def two_columns(batch, context):
    import pyarrow as pa
    return pa.table([[1], [2]], names=["id", "id"])

def dicts(batch, context):
    return [{"id": 1}]

def partial(event, context):
    """Takes what comes before the first record that is odd, and reports that one."""
    rows = []
    for record in event["Records"]:
        number = json.loads(base64.b64decode(record["kinesis"]["data"]))["id"]
        sequence = record["kinesis"]["sequenceNumber"]
        if number == 13:
            return {"rows": rows, "batchItemFailures": [{"itemIdentifier": sequence}]}
        rows.append({"id": number, "_sequence_number": sequence})
    return {"rows": rows}

def transforms(event, context):
    """One record for each result."""
    answers = []
    for record in event["records"]:
        number = json.loads(base64.b64decode(record["data"]))["id"]
        result = {13: "ProcessingFailed", 14: "Dropped"}.get(number, "Ok")
        keys = {"partitionKeys": {"kind": "even" if number % 2 == 0 else "odd"}}
        answers.append({"recordId": record["recordId"], "result": result, "data": record["data"], "metadata": keys})
    return {"records": answers}

def mixed(rows, context):
    return [{"id": 1}, {"id": "x"}]
'''


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Project:
    made = Project(tmp_path, broker.bootstrap)
    made.write("handlers.py", HANDLERS)
    return made


def place(name: str) -> dict[str, object]:
    """A Parquet sink of a pipeline's own."""
    return {**SINKS["parquet"], "path": name}


def function(kind: str, handler: str) -> dict[str, object]:
    return {"kind": kind, "handler": f"handlers.{handler}"}


async def test_handlers_that_cannot_be_used_are_all_named_before_anything_runs(
    project: Project, topic: TopicFactory
) -> None:
    """A missing module, a missing name, no callable, wrong parameters and a bad query: all at once, exit 2."""
    name = await topic()
    project.write("broken.py", "import no_such_package\n")
    functions = {
        "module": {"kind": "rows", "handler": "handlerz.slow"},
        "attribute": {"kind": "rows", "handler": "handlers.sloow"},
        "callable": {"kind": "rows", "handler": "handlers.not_callable"},
        "parameters": {"kind": "rows", "handler": "handlers.note.x"},
        "imports": {"kind": "rows", "handler": "broken.handler"},
        "lambda": {"kind": "kinesis", "handler": "handlerz.raises"},
        "program": {"kind": "kafka", "handler": "handlers"},
        "query": {"kind": "sql", "query": "SELEC id FROM batch"},
        "statement": {"kind": "sql", "query": "DROP TABLE batch"},
        "column": {"kind": "sql", "query": "SELECT idd FROM batch"},
    }
    schema = {"columns": {"id": "BIGINT"}}
    project.configure({key: pipeline(name, place(key), function=f, schema=schema) for key, f in functions.items()})
    ended = await project.run()
    assert ended.code == 2
    for said in (
        "error: the pipelines cannot be built: 10 faults",
        "pipelines.module: handler 'handlerz.slow': there is no module 'handlerz'",
        "nearest: handlers",
        "pipelines.attribute: handler 'handlers.sloow': module handlers",
        "nearest: slow",
        "pipelines.callable: handler 'handlers.not_callable' is of type int, which cannot be called",
        "pipelines.parameters: handler 'handlers.note.x'",
        "pipelines.imports: handler 'broken.handler': broken imports 'no_such_package', which is not installed",
        "pipelines.lambda: handler 'handlerz.raises': there is no module 'handlerz'",
        "pipelines.program: handler 'handlers' is not of the form module.function",
        "pipelines.query: the query (kind sql)",
        "pipelines.statement: the query (kind sql) has to be one SELECT, got DROP",
        "pipelines.column: the query (kind sql), line 1, column 8",
    ):
        assert said in ended.err, f"no {said!r} in\n{ended.err}"
    assert "Traceback" not in ended.err
    assert not any((project.directory / key).exists() for key in functions), "nothing was begun"


async def test_a_lambda_handler_that_cannot_be_imported_ends_the_run(project: Project, topic: TopicFactory) -> None:
    """Its process says why, with AWS's name for the fault; exit 2, and no record is passed."""
    name = await topic()
    await project.produce(name, {0: [b'{"id": 1}']})
    project.write("broken.py", "import no_such_package\n")
    made = {"kind": "kinesis", "handler": "broken.handler"}
    project.configure({"clicks": pipeline(name, place("clicks"), function=made, maximum_retry_attempts=0)})
    ended = await project.run()
    assert ended.code == 2, ended.err
    assert "Unable to import module 'broken': No module named 'no_such_package'" in ended.err
    assert project.rows("parquet", path="clicks") == []


async def test_a_handler_that_raises_is_tried_so_often_and_then_reported(
    project: Project, topic: TopicFactory
) -> None:
    """maximum_retry_attempts counts what follows the first attempt; then the whole batch goes, and work goes on."""
    name = await topic()
    values = [b'{"id": %d}' % n for n in range(3)]
    await project.produce(name, {0: values})
    pipelines = {}
    for key, handler, kind, retries in (
        ("never", "raises", "kinesis", 0),
        ("twice", "raises", "kinesis", 2),
        ("recovers", "once", "kinesis", 1),
        ("exits", "leaves", "rows", 1),
    ):
        settings = {"maximum_retry_attempts": retries, "on_failure": f"{key}.jsonl", "batch_size": 3}
        pipelines[key] = pipeline(
            name, place(key), function=function(kind, handler), maximum_batching_window_in_seconds=5, **settings
        )
    project.configure(pipelines)
    ended = await project.run()
    assert ended.code == 0, ended.err
    for key, attempts, error_type, reason in (
        ("never", 1, "ValueError", "no such customer"),
        ("twice", 3, "ValueError", "no such customer"),
        ("exits", 2, "HandlerError", "SystemExit"),
    ):
        assert (project.directory / f"{key}.calls").read_text() == "3\n" * attempts
        found = project.failures(f"{key}.jsonl")
        assert [(each["offset"], each["attempts"]) for each in found] == [(n, attempts) for n in range(3)], key
        assert {each["error_type"] for each in found} == {error_type}
        assert all(reason in each["reason"] for each in found), found
        assert [value_of(each) for each in found] == values
        assert await project.positions("parquet", key, name, path=key) == [3]
    assert re.search(r"attempt 1 .*failed: .*no such customer", ended.err)
    assert (project.directory / "recovers.calls").read_text() == "3\n3\n"
    assert project.failures("recovers.jsonl") == []


async def test_a_handler_that_raises_without_a_destination_stops_its_shard_alone(
    project: Project, topic: TopicFactory
) -> None:
    """Batches before the bad one are committed, other shards finish, exit 2; with the handler mended it goes on."""
    name = await topic(partitions=2)
    numbers = {0: [b'{"id": %d}' % n for n in (1, 2, 13, 4)], 1: [b'{"id": %d}' % n for n in (5, 6)]}
    await project.produce(name, numbers)
    settings = {"maximum_retry_attempts": 1, "batch_size": 1, "function": function("rows", "fails_on_poison")}
    project.configure({"clicks": pipeline(name, "duckdb", **settings)})
    ended = await project.run()
    assert ended.code == 2, ended.err
    said = f"clicks: {name}-0 offsets 2 to 2: the handler failed 2 times, at last with RuntimeError: poison"
    assert said in ended.err
    assert "set source.destination_config.on_failure" in ended.err
    assert project.rows("duckdb", "_partition, _offset, id") == [(0, 0, 1), (0, 1, 2), (1, 0, 5), (1, 1, 6)]
    assert await project.positions("duckdb", "clicks", name) == [2, 2]
    project.write("handlers.py", HANDLERS.replace("== 13", "== 14"))
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert [row[2] for row in project.rows("duckdb", "_partition, _offset, id")] == [1, 2, 13, 4, 5, 6]


async def test_functions_that_fail_for_some_records_cost_those_alone(project: Project, topic: TopicFactory) -> None:
    """A reported record is set apart from what follows it; a transformation fails each for itself."""
    name = await topic()
    values = {number: b'{"id": %d}' % number for number in (12, 13, 14, 15)}
    await project.produce(name, {0: list(values.values())})
    whole = {"maximum_retry_attempts": 0, "batch_size": 4, "maximum_batching_window_in_seconds": 5}
    project.configure(
        {
            "partial": pipeline(
                name,
                place("partial"),
                function=function("kinesis", "partial"),
                function_response_types=["ReportBatchItemFailures"],
                bisect_batch_on_function_error=True,
                on_failure="partial.jsonl",
                **whole,
            ),
            "transforms": pipeline(
                name,
                {**place("transforms"), "partition_by": ["kind"]},
                function=function("firehose", "transforms"),
                on_failure="transforms.jsonl",
                **whole,
            ),
        }
    )
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("parquet", "_offset, id", path="partial") == [(0, 12), (2, 14), (3, 15)]
    [reported] = project.failures("partial.jsonl")
    assert (reported["offset"], reported["error_type"]) == (1, "BatchItemFailures")
    assert project.rows("parquet", "_offset, id, kind", path="transforms") == [(0, 12, "even"), (3, 15, "odd")]
    assert (project.directory / "transforms" / "kind=odd").is_dir()
    [failure] = project.failures("transforms.jsonl")
    assert (failure["offset"], value_of(failure)) == (1, values[13])
    assert failure["reason"] == "the function answered ProcessingFailed"
    for key in ("partial", "transforms"):
        assert await project.positions("parquet", key, name, path=key) == [4]


async def test_a_handler_that_takes_too_long_fails_its_attempt(project: Project, topic: TopicFactory) -> None:
    """An attempt ends at the timeout; the process does not wait for the thread that is still in the handler."""
    name = await topic()
    await project.produce(name, {0: [b'{"id": 1}']})
    slow = {**function("rows", "slow"), "timeout": 0.3}
    settings = {"maximum_retry_attempts": 1, "on_failure": "failed.jsonl"}
    project.configure({"clicks": pipeline(name, place("out"), function=slow, **settings)})
    ended = await project.run()
    assert ended.code == 0, ended.err
    [failure] = project.failures()
    assert failure["attempts"] == 2
    assert failure["reason"] == "Task timed out after 0.30 seconds"


#: A handler of each kind that returns what the kind does not allow, and what is said of it.
RETURNS = {
    "kinesis-set": ("kinesis", "a_set", "Unable to marshal response: Object of type set is not JSON serializable"),
    "kafka-set": ("kafka", "a_set", "Unable to marshal response: Object of type set is not JSON serializable"),
    "kinesis-rows": ("kinesis", "bad_rows", "handlers.bad_rows (kind kinesis) gave a dict"),
    "kafka-rows": ("kafka", "bad_rows", "handlers.bad_rows (kind kafka) gave a dict"),
    "rows-dict": ("rows", "a_dict", "handlers.a_dict (kind rows) gave a dict: {'id': 1}; it has to give"),
    "rows-ints": ("rows", "no_dicts", "row 0 is an int: 1; each row has to be a dict"),
    "rows-offsets": ("rows", "some_offsets", "some have _offset and some have not"),
    "rows-foreign": ("rows", "foreign_offset", "returned a row with an _offset that is not in its batch"),
    "rows-mixed": ("rows", "mixed", "returned rows whose 'id' cannot be stored"),
    "arrow-dicts": ("arrow", "dicts", "handlers.dicts (kind arrow) gave a list: [{'id': 1}]; it has to give"),
    "arrow-names": ("arrow", "two_columns", "(kind arrow) gave more than one column named 'id'"),
    "sql-names": ("sql", "SELECT id, id FROM batch", "the query (kind sql) gave more than one column named 'id'"),
    "sql-raises": ("sql", "SELECT CAST('x' AS INT) AS a FROM batch", "Could not convert string 'x' to INT32"),
}


@pytest.mark.parametrize("reports", [False, True])
async def test_what_a_kind_does_not_allow_fails_the_batch(
    project: Project, topic: TopicFactory, reports: bool
) -> None:
    """Each kind: a wrong return is a failed attempt that names handler, kind and value; no row of it is kept."""
    name = await topic()
    await project.produce(name, {0: [b'{"id": 1}', b'{"id": 2}']})
    pipelines = {}
    for key, (kind, handler, _) in RETURNS.items():
        made = {"kind": kind, "query": handler} if kind == "sql" else function(kind, handler)
        settings = {"maximum_retry_attempts": 0, "batch_size": 2, "maximum_batching_window_in_seconds": 5}
        if reports:
            settings["on_failure"] = f"{key}.jsonl"
        pipelines[key] = pipeline(name, place(key), function=made, **settings)
    project.configure(pipelines)
    ended = await project.run()
    assert ended.code == (0 if reports else 2), ended.err
    for key, (_, _, said) in RETURNS.items():
        assert project.rows("parquet", path=key) == [], key
        assert await project.positions("parquet", key, name, path=key) == [2 if reports else 0], key
        if reports:
            found = project.failures(f"{key}.jsonl")
            assert [(each["offset"], each["attempts"]) for each in found] == [(0, 1), (1, 1)], key
            assert all(said in each["reason"] for each in found), found
        else:
            where = re.escape(f"{key}: {name}-0 offsets 0 to 1: the handler failed once, at last with ")
            assert re.search(where + ".*" + re.escape(said), ended.err), f"no {said!r} for {key} in\n{ended.err}"


async def test_rows_of_another_shape_than_before_fail_their_batch(project: Project, topic: TopicFactory) -> None:
    """The schema is fixed by the first output: a new column or a type that does not fit is reported."""
    name = await topic()
    await project.produce(name, {0: [b'{"n": 0}', b'{"n": 1}', b'{"n": 2}', b'{"n": 3}']})
    project.write(
        "shapes.py",
        "SHAPES = [{'id': 1}, {'id': 2, 'pagee': 'x'}, {'id': 'x'}, {'id': 4}]\n"
        "def handler(rows, context):\n"
        "    return [{**SHAPES[row['n']], '_offset': row['_offset']} for row in rows]\n",
    )
    made = {"kind": "rows", "handler": "shapes.handler"}
    settings = {"maximum_retry_attempts": 0, "batch_size": 1, "on_failure": "failed.jsonl"}
    project.configure({"clicks": pipeline(name, "duckdb", function=made, **settings)})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows("duckdb", "_offset, id") == [(0, 1), (3, 4)]
    column, kind = project.failures()
    assert "returned a column 'pagee' that the rows before it did not have" in column["reason"]
    assert "returned rows whose 'id' cannot be stored as int64" in kind["reason"]
