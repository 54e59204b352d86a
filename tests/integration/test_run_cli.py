"""`headrace run` and `headrace check` as processes: signals, several pipelines in one file, exit codes, messages.

Not here: what is wrong with records, handlers and the outside (test_bad_*), and death by SIGKILL (tests/crash).
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from connectors.kafka.broker import Broker
from tests.integration.support import POLL_SECONDS, SECONDS_MAX, SINKS, Project, pipeline

TopicFactory = Callable[..., Awaitable[str]]

#: A handler that takes a moment for each batch and notes its calls, so that a signal finds it at work.
HANDLERS = """
import asyncio, time

def note(name, rows):
    with open(name, "a") as file:
        file.writelines(f"{row['id']}\\n" for row in rows)

def steady(rows, context):
    note("calls", rows)
    time.sleep(0.05)
    return [{"id": row["id"], "_offset": row["_offset"]} for row in rows]

def stuck(rows, context):
    note("calls", rows)
    time.sleep(3600)

async def stubborn(rows, context):
    note("calls", rows)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

def raises(rows, context):
    raise ValueError("never")
"""

broker_test = pytest.mark.broker
slow = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, broker: Broker) -> Project:
    made = Project(tmp_path, broker.bootstrap)
    made.write("handlers.py", HANDLERS)
    return made


def rows_kind(handler: str, timeout: float = 30) -> dict[str, object]:
    return {"kind": "rows", "handler": f"handlers.{handler}", "timeout": timeout}


def ids(count: int) -> list[bytes]:
    return [b'{"id": %d}' % number for number in range(count)]


async def called(project: Project, times: int) -> None:
    """Wait for so many records to have been given to the handler."""
    path = project.directory / "calls"
    deadline = time.monotonic() + SECONDS_MAX
    while not path.exists() or path.read_text().count("\n") < times:
        assert time.monotonic() < deadline, "the handler was not called"
        await asyncio.sleep(POLL_SECONDS)


# Signals


@broker_test
@slow
@pytest.mark.parametrize(("number", "sink"), [(signal.SIGTERM, "parquet"), (signal.SIGINT, "duckdb")])
async def test_a_signal_during_work_drains_and_the_next_run_goes_on(
    project: Project, topic: TopicFactory, sink: str, number: signal.Signals
) -> None:
    """The batch at hand is finished and committed, exit 0; no record is handled again, none is left out."""
    name = await topic(partitions=2)
    await project.produce(name, {0: ids(40), 1: ids(40)})
    lazy = {**SINKS[sink]}  # nothing but the drain would commit
    lazy |= {"file_age_max_seconds": 600} if sink == "parquet" else {"commit_interval_max_seconds": 600}
    project.configure({"clicks": pipeline(name, lazy, function=rows_kind("steady"), batch_size=2)})
    async with project.running() as running:
        await called(project, 6)
        running.signal(number)
        ended = await running.ended()
    assert ended.code == 0, ended.err
    assert f"{number.name}: draining for at most 10 s; once more stops at once" in ended.err
    kept = project.rows(sink, "_partition, _offset, id")
    handled = (project.directory / "calls").read_text().split()
    assert 6 <= len(kept) == len(handled) < 80
    first, second = await project.positions(sink, "clicks", name)
    assert kept == [(0, n, n) for n in range(first or 0)] + [(1, n, n) for n in range(second or 0)]

    ended = await project.run()
    assert ended.code == 0, ended.err
    whole = [(partition, n, n) for partition in (0, 1) for n in range(40)]
    assert project.rows(sink, "_partition, _offset, id") == whole
    assert len((project.directory / "calls").read_text().split()) == 80, "no record was handled twice"


@broker_test
@slow
@pytest.mark.parametrize("sink", list(SINKS))
async def test_a_second_signal_stops_at_once_and_loses_nothing(
    project: Project, topic: TopicFactory, sink: str
) -> None:
    """Exit 128 + signal while a handler still holds the drain; the next run writes each record once."""
    name = await topic()
    await project.produce(name, {0: ids(6)})
    stuck = pipeline(name, sink, function=rows_kind("stuck", 900), batch_size=2)
    project.configure({"clicks": stuck}, engine={"drain_seconds_max": 300})
    async with project.running() as running:
        await called(project, 2)
        running.signal(signal.SIGTERM)
        await running.says("SIGTERM: draining for at most 300 s")
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        ended = await running.ended()
    assert time.monotonic() - began < 5
    assert ended.code == 128 + signal.SIGTERM, ended.err
    assert "SIGTERM again: stopping at once" in ended.err
    project.configure({"clicks": pipeline(name, sink, function=rows_kind("steady"), batch_size=2)})
    ended = await project.run()
    assert ended.code == 0, ended.err
    assert project.rows(sink, "_offset, id") == [(n, n) for n in range(6)]


@broker_test
@slow
@pytest.mark.parametrize("handler", ["stuck", "stubborn"])
async def test_a_handler_that_never_returns_holds_the_drain_no_longer_than_its_bound(
    project: Project, topic: TopicFactory, handler: str
) -> None:
    """A thread that sleeps and a coroutine that takes no cancellation: the process ends, the batch is left."""
    name = await topic()
    await project.produce(name, {0: ids(4)})
    sink = SINKS["parquet"]
    project.configure(
        {"clicks": pipeline(name, sink, function=rows_kind(handler, 900), batch_size=2)},
        engine={"drain_seconds_max": 2},
    )
    async with project.running() as running:
        await called(project, 2)
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        ended = await running.ended()
    assert time.monotonic() - began < 2 + 5 + 3, "drain, closing, and a margin for a loaded machine"
    assert ended.code == 0, ended.err
    left = "clicks[0]: left offsets 0 to 1, which were being handled"
    assert (left if handler == "stuck" else "clicks: a shard did not stop within 2.0 s") in ended.err
    assert project.rows("parquet") == []
    project.configure({"clicks": pipeline(name, sink, function=rows_kind("steady"), batch_size=2)})
    assert (await project.run()).code == 0
    assert project.rows("parquet", "_offset, id") == [(n, n) for n in range(4)]


@slow
async def test_a_signal_ends_the_wait_for_a_broker(tmp_path: Path) -> None:
    """A run that waits for its broker, or for a DuckDB file, stops when it is told to, exit 0."""
    project = Project(tmp_path, "127.0.0.1:1")
    project.configure({"clicks": pipeline("clicks", "parquet")}, kafka={"broker_wait_seconds_max": 600})
    async with project.running() as running:
        await running.says("no broker at 127.0.0.1:1 yet; still trying")
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        ended = await running.ended()
    assert ended.code == 0, ended.err
    assert time.monotonic() - began < 8


# Several pipelines


@broker_test
@slow
async def test_a_pipeline_that_fails_does_not_stop_the_other(project: Project, topic: TopicFactory) -> None:
    """Each runs to its own end; the exit code is the failing one's, and its message names it."""
    good, bad = await topic(), await topic()
    await project.produce(good, {0: ids(30)})
    await project.produce(bad, {0: ids(3)})
    project.configure(
        {
            "fails": pipeline(bad, "parquet", function=rows_kind("raises"), maximum_retry_attempts=0),
            "works": pipeline(good, "duckdb", function=rows_kind("steady"), batch_size=2),
        }
    )
    ended = await project.run()
    assert ended.code == 2, ended.err
    assert "fails: ended with partition 0 stopped" in ended.err
    assert project.rows("duckdb", "_offset, id") == [(n, n) for n in range(30)]
    assert project.rows("parquet") == []
    assert await project.positions("parquet", "fails", bad) == [0]
    assert "works: 30 records, 30 rows, 0 failed" in ended.err


@broker_test
@slow
async def test_the_gravest_of_several_errors_is_the_exit_code(project: Project, topic: TopicFactory) -> None:
    """An unknown topic (2) beside a sink that cannot be written (3) gives 3; each is said with its pipeline."""
    name = await topic()
    project.write("taken", "a file")
    project.configure(
        {
            "unknown": pipeline("no-such-topic", "duckdb"),
            "blocked": pipeline(name, {**SINKS["parquet"], "path": "taken/rows"}),
        }
    )
    ended = await project.run()
    assert ended.code == 3, ended.err
    assert "error: unknown: topic 'no-such-topic' does not exist" in ended.err
    assert "error: blocked: Parquet sink" in ended.err


# What is said, and how


@broker_test
@slow
async def test_an_empty_topic_is_caught_up_and_json_logs_are_json(project: Project, topic: TopicFactory) -> None:
    """Nothing to do is done at once, exit 0; with --json each line of the log is an object."""
    name = await topic(partitions=3)
    project.configure({"clicks": pipeline(name, "parquet")})
    ended = await project.run("--json")
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert any("0 records, 0 rows" in line["message"] for line in lines)
    assert await project.positions("parquet", "clicks", name) == [0, 0, 0]


@broker_test
@slow
async def test_the_command_line_names_the_broker_before_the_file(project: Project, topic: TopicFactory) -> None:
    """--bootstrap outranks kafka.bootstrap, which outranks HEADRACE_BOOTSTRAP."""
    name = await topic()
    await project.produce(name, {0: ids(1)})
    away = {"HEADRACE_BOOTSTRAP": "127.0.0.1:1"}
    project.configure({"clicks": pipeline(name, "parquet")}, kafka={"bootstrap": "127.0.0.1:1"})
    ended = await project.run("--bootstrap", project.bootstrap, env=away)
    assert ended.code == 0, ended.err
    project.configure({"clicks": pipeline(name, "parquet")})
    ended = await project.run(env=away)
    assert ended.code == 0, ended.err
    assert project.rows("parquet", "id") == [(0,)]


FAULTY = """
[kafka]
bootstrap = "127.0.0.1:9092"
sasl_password = "open sesame"
sesion_timeout_ms = 5000

[pipelines.clicks.source]
topic = "clicks"
batch_sise = 10
starting_position = "LATSET"

[pipelines.clicks.sink]
type = "parkuet"
path = "out"
"""

FAULTS = [
    "kafka.sesion_timeout_ms: unknown key; did you mean session_timeout_ms?",
    "pipelines.clicks.source.batch_sise: unknown key; did you mean batch_size?",
    "pipelines.clicks.source.starting_position = 'LATSET': valid are",
    "did you mean LATEST?",
    "pipelines.clicks.sink.type = 'parkuet': valid are 'parquet', 'duckdb', 'ducklake', 'kafka', 'none'; "
    "did you mean parquet?",
]


@slow
@pytest.mark.parametrize("command", ["run", "check"])
async def test_a_configuration_with_several_faults(tmp_path: Path, command: str) -> None:
    """All faults at once with the nearest valid names, exit 2; no secret is shown, nothing is begun."""
    project = Project(tmp_path, "127.0.0.1:1")
    project.write("headrace.toml", FAULTY)
    async with project.command(command, "headrace.toml") as running:
        ended = await running.ended()
    assert ended.code == 2
    assert "error: headrace.toml: 4 faults" in ended.err
    for fault in FAULTS:
        assert fault in ended.err, ended.err
    assert "open sesame" not in ended.err + ended.out
    assert "Traceback" not in ended.err


@slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "headrace.toml: 1 fault\n  there is no such file"),
        ("[pipelines.x\n", "headrace.toml: 1 fault\n  is not valid TOML: "),
        ("", "headrace.toml: 1 fault\n  pipelines: is missing"),
    ],
)
async def test_a_configuration_that_is_none(tmp_path: Path, text: str | None, said: str) -> None:
    """A file that is missing, no TOML, or empty is one line and exit 2."""
    project = Project(tmp_path, "127.0.0.1:1")
    if text is not None:
        project.write("headrace.toml", text)
    ended = await project.run()
    assert ended.code == 2
    assert f"error: {said}" in ended.err
    assert "Traceback" not in ended.err


@slow
async def test_check_shows_the_resolved_configuration_without_secrets(tmp_path: Path) -> None:
    """What is printed is TOML with every default, the same as with --json; the password is asterisks."""
    project = Project(tmp_path, "127.0.0.1:1")
    project.configure({"clicks": pipeline("clicks", "parquet")}, kafka={"sasl_password": "open sesame"})
    async with project.command("check", "headrace.toml") as running:
        plain = await running.ended()
    async with project.command("check", "headrace.toml", "--json") as running:
        as_json = await running.ended()
    assert (plain.code, as_json.code) == (0, 0), plain.err + as_json.err
    shown = tomllib.loads(plain.out)
    assert shown["kafka"]["sasl_password"] == "**********"
    assert shown["pipelines"]["clicks"]["source"]["starting_position"] == "TRIM_HORIZON"
    assert shown["pipelines"]["clicks"]["sink"]["path"] == str(tmp_path / "rows")
    assert "open sesame" not in plain.out + plain.err + as_json.out + as_json.err
    assert settings(json.loads(as_json.out)) == settings(shown)
    assert "no faults; 1 pipeline to run" in plain.err


async def test_check_starts_each_function_once(tmp_path: Path) -> None:
    """A function that is not there, or cannot be imported, shows before anything runs; all of them at once."""
    project = Project(tmp_path, "127.0.0.1:1")
    (tmp_path / "app.py").write_text("def handler(event, context):\n    return None\n")
    (tmp_path / "broken.py").write_text("import nosuchlibrary\n")
    functions = {"good": "app.handler", "missing": "app.nosuch", "broken": "broken.handler"}
    project.configure(
        {
            name: pipeline(name, None, function={"kind": "kafka", "handler": spec})
            for name, spec in functions.items()
        }
    )
    async with project.command("check", "headrace.toml") as running:
        ended = await running.ended()
    assert ended.code == 2
    assert "functions cannot be started: 2 faults" in ended.err
    assert (
        "pipelines.missing: the function cannot be started: Runtime.HandlerNotFound: Handler 'nosuch' missing"
        in ended.err
    )
    assert (
        "Runtime.ImportModuleError: Unable to import module 'broken': No module named 'nosuchlibrary'" in ended.err
    )


def settings(value: object, path: str = "") -> dict[str, object]:
    """What is set, by its whole key: TOML has no null, and no table of unset things."""
    if not isinstance(value, dict):
        return {} if value is None else {path: value}
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= settings(item, f"{path}.{key}")
    return found
