"""`headrace invoke` as a process: rows on standard output, everything else on standard error, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from engine.cli.invoke import invoke

ROOT = Path(__file__).parents[2]

#: The command alone, so that this test does not depend on the others that the program has.
PROGRAM = """
import typer
from engine.cli.invoke import invoke
app = typer.Typer()
app.command()(invoke)
app(prog_name="headrace invoke")
"""

APP = """
import base64, json, os, time

def kinesis(event, context):
    print("printed by the handler")
    print(context.memory_limit_in_mb, os.environ.get("TABLE"), context.get_remaining_time_in_millis() > 15_000)
    return {"rows": [
        {"id": record["eventID"], "data": json.loads(base64.b64decode(record["kinesis"]["data"]))}
        for record in event["Records"]
    ]}

async def kafka(event, context):
    [(name, records)] = event["records"].items()
    return {"rows": [{"name": name, "n": len(records), "offsets": [record["offset"] for record in records]}]}

def rows(rows, context):
    for row in rows:
        yield {"offset": row["_offset"], "a": row.get("a"), "o": row.get("o"), "rest": row.get("_rest")}

def arrow(batch, context):
    return batch

def bad(rows, context):
    return [{"a": 1}, "no dict"]

def fails(event, context):
    raise LookupError("no such user")

def slow(event, context):
    time.sleep(30)

def leaves(event, context):
    os._exit(7)

def dynamodb(event, context):
    return {"rows": [{"id": record["dynamodb"]["Keys"]["id"]["N"]} for record in event["Records"]]}

def firehose(event, context):
    results = iter(["Ok", "Dropped", "ProcessingFailed", "Ok"])
    return {"records": [
        {"recordId": record["recordId"], "result": next(results), "data": record["data"]}
        for record in event["records"]
    ]}

def big(rows, context):
    return [{"n": 2 ** 80, "b": b"\\xff\\x00", "t": b"text"}]
"""

BOOTSTRAP = """
import json, os, urllib.request

api = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation"
while True:
    with urllib.request.urlopen(f"{api}/next") as answer:
        request_id = answer.headers["Lambda-Runtime-Aws-Request-Id"]
        event = json.load(answer)
    data = json.dumps({"rows": [{"n": len(event["Records"])}]}).encode()
    urllib.request.urlopen(f"{api}/{request_id}/response", data).close()
"""

LINES = '{"a": 1, "o": {"x": [1]}}\n{"a": 2, "new": null}\nnot JSON\n\n{"a": 3}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "my events.jsonl").write_text(LINES)
    return tmp_path


def run(folder: Path, *arguments: str, stdin: str = "") -> tuple[int, list[Any], str]:
    """Exit code, rows, and what stood on standard error."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # A function's own traceback belongs to its output, as on AWS; none has a line of ours.
    assert f'File "{ROOT / "engine"}' not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


pytestmark = pytest.mark.slow


def test_a_kinesis_handler_gets_each_line(folder: Path) -> None:
    """Every line that is not blank is a record, its offset the number of its line; prints stay out of the rows."""
    (folder / "my events.jsonl").write_text('{"a": 1}\n\n[2]\n')
    options = ("--memory-size", "256", "--environment", "TABLE=a=b", "--timeout", "20")
    code, rows, errors = run(folder, "app.kinesis", "my events.jsonl", "--kind", "kinesis", *options)
    assert code == 0, errors
    assert [row["data"] for row in rows] == [{"a": 1}, [2]]
    assert [row["id"][-3:] for row in rows] == ["000", "002"]
    assert "printed by the handler\n256 a=b True\n" in errors
    report = errors.splitlines()[-2]
    assert report.startswith("REPORT RequestId: ")
    assert "\tMemory Size: 256 MB\t" in report
    assert "\tInit Duration: " in report
    assert "2 records, 2 rows, 0 failed, " in errors.splitlines()[-1]


def test_a_kafka_handler_gets_batches(folder: Path) -> None:
    """--batch-size cuts; the topic is named after the file; an async handler works; no line has to be JSON."""
    code, rows, errors = run(folder, "app.kafka", "my events.jsonl", "--kind", "kafka", "--batch-size", "3")
    assert code == 0, errors
    assert rows == [
        {"name": "my_events-0", "n": 3, "offsets": [0, 1, 2]},
        {"name": "my_events-0", "n": 1, "offsets": [4]},
    ]


def test_dynamodb_records_that_are_none_cost_themselves_alone(folder: Path) -> None:
    """A line that is no change is named; the others are handled."""
    change = '{"eventName": "INSERT", "dynamodb": {"Keys": {"id": {"N": "%d"}}}}\n'
    lines = change % 1 + "{}\n" + change % 3
    code, rows, errors = run(folder, "app.dynamodb", "-", "--kind", "dynamodb", stdin=lines)
    assert code == 0, errors
    assert rows == [{"id": "1"}, {"id": "3"}]
    assert "line 2 (offset 1): eventName is null, not INSERT, MODIFY or REMOVE\n" in errors
    assert "3 records, 2 rows, 1 failed, " in errors.splitlines()[-1]


def test_a_firehose_function_decides_on_each_record(folder: Path) -> None:
    """One row, one dropped, one failed, one that is text: counted as such, the failed one named."""
    lines = '{"a": 1}\n{"a": 2}\n{"a": 3}\ntext\n'
    code, rows, errors = run(folder, "app.firehose", "-", "--kind", "firehose", "--json", stdin=lines)
    assert code == 0, errors
    assert rows == [{"a": 1, "_offset": 0}, {"data": "text", "_offset": 3}]
    report, fault, closing = (json.loads(line) for line in errors.splitlines())
    assert (report["report"]["status"], report["report"]["memory_size_mb"]) == ("success", 128)
    assert fault["fault"] == {"line": 3, "offset": 2, "reason": "the function answered ProcessingFailed"}
    assert (closing["records"], closing["rows"], closing["failed"], closing["dropped"]) == (4, 2, 1, 1)


def test_a_program_of_any_language_can_be_invoked(folder: Path) -> None:
    """--command runs what speaks the Runtime API; the file is then the only argument."""
    (folder / "bootstrap.py").write_text(BOOTSTRAP)
    command = f"{sys.executable} bootstrap.py"
    code, rows, errors = run(folder, "my events.jsonl", "--kind", "kinesis", "--command", command)
    assert code == 0, errors
    assert rows == [{"n": 4}]
    assert "\nREPORT RequestId: " in f"\n{errors}"


def test_a_function_that_ends_its_process_shows_the_fault(folder: Path) -> None:
    """The type is AWS's; exit code 2."""
    code, rows, errors = run(folder, "app.leaves", "my events.jsonl", "--kind", "kinesis")
    assert (code, rows) == (2, [])
    assert "error: Runtime.ExitError: " in errors
    assert '"errorType": "Runtime.ExitError"' in errors


def test_faulty_lines_are_named_and_the_others_flow(folder: Path) -> None:
    """A line that cannot be decoded costs itself alone, and is named with its number."""
    code, rows, errors = run(folder, "app.rows", "my events.jsonl", "--kind", "rows")
    assert code == 0, errors
    assert rows == [
        {"offset": 0, "a": 1, "o": {"x": [1]}, "rest": None},
        {"offset": 1, "a": 2, "o": None, "rest": {"new": None}},
        {"offset": 4, "a": 3, "o": None, "rest": None},
    ]
    fault, closing = errors.splitlines()
    assert fault.startswith("line 3 (offset 2): malformed JSON")
    assert closing.startswith("4 records, 3 rows, 1 failed, ")


def test_declared_columns_are_typed(folder: Path) -> None:
    """--columns declares, with types that hold commas; what does not fit is a fault of its line."""
    code, rows, errors = run(
        folder, "app.arrow", "-", "--kind", "arrow", "--columns", 'a DECIMAL(9, 2), "b c" VARCHAR',
        stdin='{"a": 1.25, "b c": "x"}\n{"a": "x"}\n{"a": 2}',
    )  # fmt: skip
    assert code == 0, errors
    assert [(row["a"], row["b c"], row["_offset"]) for row in rows] == [("1.25", "x", 0), ("2.00", None, 2)]
    assert "line 2 (offset 1): " in errors


def test_text_lines_need_no_json(folder: Path) -> None:
    """--format text keeps every line, blank ones too, without its end."""
    code, rows, errors = run(
        folder, "app.arrow", "-", "--kind", "arrow", "--format", "text", stdin="one\r\n\nthree"
    )
    assert code == 0, errors
    assert [row["line"] for row in rows] == ["one", "", "three"]


def test_sql_takes_a_query_and_a_file(folder: Path) -> None:
    """The file is then the only argument."""
    query = "SELECT count(*) AS n, sum(a)::BIGINT AS total FROM batch"
    code, rows, errors = run(folder, "my events.jsonl", "--kind", "sql", "--query", query)
    assert code == 0, errors
    assert rows == [{"n": 3, "total": 6}]


def test_json_reports(folder: Path) -> None:
    """With --json each line of standard error is an object."""
    code, _, errors = run(folder, "app.rows", "my events.jsonl", "--kind", "rows", "--json")
    fault, closing = (json.loads(line) for line in errors.splitlines())
    assert code == 0
    assert (fault["fault"]["line"], fault["fault"]["offset"]) == (3, 2)
    assert closing.pop("milliseconds") >= 0
    assert closing == {"records": 4, "rows": 3, "failed": 1, "dropped": 0}


def test_values_beyond_json_are_written_all_the_same(folder: Path) -> None:
    """Whole numbers beyond 64 bits as numbers, bytes as text where they are text, else as base64."""
    code, rows, errors = run(folder, "app.big", "my events.jsonl", "--kind", "rows", "--batch-size", "9")
    assert code == 0, errors
    assert rows == [{"n": 2**80, "b": "/wA=", "t": "text"}]


def test_no_records_are_no_error(folder: Path) -> None:
    """An empty input calls nothing and says so."""
    code, rows, errors = run(folder, "app.fails", "-", "--kind", "kinesis")
    assert (code, rows) == (0, [])
    assert errors.startswith("0 records, 0 rows, 0 failed, ")


def test_a_handler_that_raises_shows_the_payload_of_aws(folder: Path) -> None:
    """Exit code 2, and the payload as AWS's callers would get it, with the handler's frames alone."""
    code, rows, errors = run(folder, "app.fails", "my events.jsonl", "--kind", "kinesis")
    said = "error: the handler raised LookupError: no such user\n"
    assert (code, rows) == (2, [])
    assert errors.count(said) == 1
    shown = json.loads(errors.partition(said)[2])
    assert list(shown) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert [frame.split(", in ")[1].split("\n")[0] for frame in shown["stackTrace"]] == ["fails"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app.rows", "none.jsonl", "--kind", "rows"], "error: cannot read none.jsonl: No such file or directory"),
        (["app.nothing", "my events.jsonl", "--kind", "rows"], "has no 'nothing'"),
        (["app.bad", "my events.jsonl", "--kind", "rows"], "row 1 is a str: 'no dict'; each row has to be a dict"),
        (
            ["app.slow", "my events.jsonl", "--kind", "kafka", "--timeout", "0.1"],
            "Task timed out after 0.10 seconds",
        ),
        (["my events.jsonl", "--kind", "sql", "--query", "SELECT nope FROM batch"], 'column "nope" not found'),
        (["app.none", "my events.jsonl", "--kind", "kafka"], "Runtime.HandlerNotFound: Handler 'none' missing"),
        (["ap.kafka", "my events.jsonl", "--kind", "kafka"], "there is no module 'ap'"),
    ],
)
def test_what_the_user_can_mend_is_exit_code_2(folder: Path, arguments: list[str], message: str) -> None:
    """One clear message on standard error, nothing on standard output."""
    code, rows, errors = run(folder, *arguments)
    assert (code, rows) == (2, [])
    assert message in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app.rows", ".", "--kind", "rows"], "error: cannot read .: Is a directory"),
        (["app.rows", "--kind", "rows"], "error: EVENTS.jsonl is missing"),
        (["app.rows", "my events.jsonl"], "error: --kind is missing; kinds are kinesis, kafka, dynamodb, "),
        (["app.rows", "my events.jsonl", "--kind", "row"], "error: there is no handler kind 'row'"),
        (["SELECT 1 FROM batch", "my events.jsonl", "--kind", "sql"], "the query goes with --query:"),
        (["my events.jsonl", "--kind", "sql"], "error: kind sql takes a query over `batch`, and no handler"),
        (["app.rows", "-", "--kind", "rows", "--columns", "a"], "error: --columns: 'a' is not a name and a type"),
        (["app.rows", "-", "--kind", "rows", "--columns", "a INT, a INT"], "error: --columns: 'a' is given twice"),
        (
            ["app.kafka", "-", "--kind", "kafka", "--columns", "a INT"],
            "--columns is for kinds that are called with",
        ),
        (["app.rows", "-", "--kind", "rows", "--columns", "a INT", "--format", "raw"], "goes with --format json"),
        (["app.rows", "-", "--kind", "rows", "--memory-size", "256"], "--memory-size is for functions that run in"),
        (
            ["app.kafka", "-", "--kind", "kafka", "--environment", "9=x"],
            "--environment: '9' is not the start of NAME=",
        ),
        (["app.kafka", "-", "--kind", "kafka", "--environment", "NAME"], "--environment: 'NAME' is not the start"),
        (["-", "--kind", "kafka", "--command", "'x"], "--command: No closing quotation"),
        (["-", "--kind", "kafka", "--command", " "], "--command is empty"),
    ],
)
def test_what_is_malformed_is_refused_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """Options that are malformed, missing, or for other kinds: exit code 2 and one clear message."""
    monkeypatch.chdir(folder)
    app = typer.Typer()
    app.command()(invoke)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert ended.stdout == ""


def test_an_unknown_column_type_is_exit_code_2(folder: Path) -> None:
    """The type is checked when the first records come."""
    code, rows, errors = run(folder, "app.rows", "my events.jsonl", "--kind", "rows", "--columns", "a BIGNUM")
    assert (code, rows) == (2, [])
    assert 'error: --columns: column "a": unknown column type "BIGNUM"' in errors


def test_help_teaches_with_an_example(folder: Path) -> None:
    """--help shows a handler and its call."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--help"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "headrace invoke app.handler events.jsonl --kind kinesis" in done.stdout
    assert "def handler(event, context):" in done.stdout
