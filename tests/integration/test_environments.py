"""Environments for Python handlers, as real processes: whatever a handler does costs one invocation and no more.

How many there are, and how they come and go, is in test_environment_pool.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop

from engine.errors import FunctionError
from functions.environments import wire
from functions.environments.contract import FunctionSpec, Request
from functions.environments.logs import FunctionLogs
from functions.environments.python import PythonStarter
from tests.integration.environment_world import (
    APP,
    ENVELOPE,
    SECONDS_MAX,
    Sink,
    World,
    batch,
    call,
    descriptors,
    gone,
    request,
    tidy_world,
    until,
    warden_up,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def warden() -> Iterator[None]:
    """Up before anything is counted."""
    with warden_up():
        yield


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Handlers and pools, of which nothing is left when the test ends."""
    async with tidy_world(tmp_path) as made:
        yield made


#: What a handler does, the error's type, and how its message begins (after the request's id).
BAD = [
    (
        "segfault",
        "Runtime.ExitError",
        "RequestId: id-1 Error: Runtime exited with error: signal: segmentation fault",
    ),
    ("leave 7", "Runtime.ExitError", "RequestId: id-1 Error: Runtime exited with error: exit status 7"),
    ("leave 0", "Runtime.ExitError", "RequestId: id-1 Error: Runtime exited without providing a reason"),
    ("system_exit 3", "Runtime.ExitError", "RequestId: id-1 Error: Runtime exited with error: exit status 3"),
    ("kill_self", "Runtime.ExitError", "RequestId: id-1 Error: Runtime exited with error: signal: killed"),
    ("close_all", "Runtime.ExitError", "RequestId: id-1 Error: Runtime exited with error: signal: killed"),
    ("garbage", "Runtime.ExitError", "RequestId: id-1 Error: Runtime exited with error: signal: killed"),
    ("leak", "Runtime.OutOfMemory", "RequestId: id-1 Error: Runtime exited with error: signal: killed"),
    ("leak_and_return", "Runtime.OutOfMemory", "RequestId: id-1 Error: Runtime exited with error: signal: killed"),
    ("raises text", "KeyError", "'text'"),
    ("ill", "Ill", "its text cannot be had: ValueError"),
    ("recursion", "RecursionError", "maximum recursion depth exceeded"),
    (
        "unserialisable",
        "Runtime.MarshalError",
        "Unable to marshal response: Object of type set is not JSON serializable",
    ),
    ("outside", "Runtime.MarshalError", "Unable to marshal response: Object of type date is not JSON serializable"),
    ("tagged", "Runtime.MarshalError", "Unable to marshal response: "),
    (
        "large 20000000",
        "Function.ResponseSizeTooLarge",
        "Response payload size (20000002 bytes) exceeded maximum allowed payload size (6291456 bytes).",
    ),
]


@pytest.mark.parametrize(("act", "error_type", "message"), BAD, ids=[each[0] for each in BAD])
async def test_a_bad_invocation_costs_itself(world: World, act: str, error_type: str, message: str) -> None:
    """It fails as on AWS, is reported so, and the next invocation works."""
    pool = world.pool()
    with pytest.raises(FunctionError) as failed:
        await call(pool, act)
    assert (failed.value.error_type, failed.value.message[: len(message)]) == (error_type, message)
    assert [(each.status, each.error_type) for each in world.reports] == [("error", error_type)]
    assert isinstance(await call(pool, "ok", request_id="id-2"), dict)
    assert world.reports[-1].status == "success"


@pytest.mark.parametrize("act", ["block", "spin", "fork_and_stay_blocked"])
async def test_a_timeout_ends_the_environment(world: World, act: str) -> None:
    """The invocation fails as on AWS when its time is over, and its whole process group is gone."""
    world.write(APP + "\n    def fork_and_stay_blocked(_): fork_and_stay(_); block(_)\n")
    pool = world.pool(timeout_seconds=0.3)
    await pool.warm()
    [pid] = pool.pids
    with pytest.raises(FunctionError) as failed:
        await call(pool, act)
    assert failed.value.error_type == "Sandbox.Timedout"
    assert failed.value.message == "RequestId: id-1 Error: Task timed out after 0.30 seconds"
    assert any(line.endswith("Z id-1 Task timed out after 0.30 seconds") for line in world.sinks[0].lines)
    assert world.reports[0].status == "timeout"
    assert 300 <= world.reports[0].duration_ms < 2_000
    assert gone(pid)
    assert await call(pool) != pid


@pytest.mark.parametrize("act", ["close_stdout", "chdir", "deaf", "background", "fork_and_return", "fork_and_stay"])
async def test_an_odd_invocation_keeps_its_environment(world: World, act: str) -> None:
    """What the handler has done to its process is no fault, and the next invocation is not disturbed by it."""
    pool = world.pool()
    await call(pool, act)
    before = pool.pids
    await call(pool, "prints after")
    assert (await call(pool), pool.pids) == ({"pid": before[0], "calls": 3}, before)
    assert world.sinks[0].output == b"after\nerror after\nraw\nopen"


async def test_a_stray_descendant_ends_with_its_environment(world: World) -> None:
    """Also one that has left the process group."""
    pool = world.pool()
    answer = await call(pool, "stray")
    assert isinstance(answer, dict)
    assert not gone(answer["child"])
    await pool.close()
    await until(lambda: gone(answer["child"]))


async def test_a_flood_of_output_is_bounded(world: World) -> None:
    """100 MB of output are read and left out beyond a bound, with a notice."""
    logs = FunctionLogs(world.root / "logs")
    pool = world.pool(logs=lambda: logs.stream("clicks"))
    await call(pool, "flood 100000000")
    await call(pool, "prints after")
    await pool.close()
    logs.close()
    text = b"".join(path.read_bytes() for path in (world.root / "logs").rglob("*") if path.is_file())
    assert len(text) < 20_000_000
    assert b"left out" in text
    assert b"after" in text


async def test_output_belongs_to_its_invocation(world: World) -> None:
    """All of it stands between START and END, then comes the REPORT line; a log record has AWS's format."""
    pool = world.pool()
    await call(pool, "logs hello", request_id="id-7")
    start, line, end, report = world.sinks[0].lines
    assert (start, end) == ("START RequestId: id-7 Version: $LATEST", "END RequestId: id-7")
    level, stamp, request_id, message = line.split("\t")
    assert (level, request_id, message) == ("[WARNING]", "id-7", "hello\n")
    assert len(stamp) == len("2026-01-01T00:00:00.000Z")
    assert report.startswith("REPORT RequestId: id-7\tDuration: ")
    assert "Init Duration: " in report
    await call(pool, request_id="id-8")
    assert "Init Duration: " not in world.sinks[0].lines[-1]


async def test_an_error_has_its_stack_and_its_log_line(world: World) -> None:
    """Frames are the handler's own, outermost first; the log has AWS's line."""
    pool = world.pool()
    with pytest.raises(FunctionError) as failed:
        await call(pool, "raises text")
    frames = failed.value.stack_trace
    assert [frame.splitlines()[0].rpartition(", in ")[2] for frame in frames] == ["act", "raises"]
    assert all(str(world.root / "app.py") in frame for frame in frames)
    assert world.sinks[0].output.startswith(
        b"[ERROR] KeyError: 'text'\rTraceback (most recent call last):\r\xc2\xa0"
    )


#: A module's text, the handler's name, the error's type, a part of its message.
INIT = [
    (
        "import nothing_there",
        "bad.handler",
        "Runtime.ImportModuleError",
        "Unable to import module 'bad': No module",
    ),
    ("def handler(e, c) return", "bad.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'bad'"),
    ("x = 1", "bad.handler", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'bad'"),
    ("x = 1", "handler", "Runtime.MalformedHandlerName", "Bad handler 'handler'"),
    ("x = 1", "sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys"),
    ("raise OSError('no')", "bad.handler", "OSError", "no"),
    ("import sys; sys.exit(4)", "bad.handler", "Runtime.ExitError", "Runtime exited with error: exit status 4"),
]


@pytest.mark.parametrize(("text", "handler", "error_type", "message"), INIT, ids=[each[2] for each in INIT])
async def test_an_init_fault_is_aws_s(world: World, text: str, handler: str, error_type: str, message: str) -> None:
    """`warm` shows it before anything is read; an invocation fails with it and is reported."""
    world.write(text, "bad.py")
    pool = world.pool(handler=handler)
    with pytest.raises(FunctionError, match=r".") as warming:
        await pool.warm()
    with pytest.raises(FunctionError) as failed:
        await call(pool)
    for error in (warming.value, failed.value):
        assert error.error_type == error_type
        assert message in error.message
    assert [each.error_type for each in world.reports] == [error_type]
    assert any(line.startswith("INIT_REPORT Init Duration: ") for line in world.sinks[-1].lines)


async def test_a_slow_init_phase_is_done_over_in_the_invocation(world: World) -> None:
    """It is cut off, and the next one has the invocation's own time; when that is too short too, it times out."""
    world.write(
        "import os, time\nif not os.path.exists('slept'): open('slept', 'w').close(); time.sleep(3600)\n"
        + textwrap.dedent(APP)
    )
    pool = world.pool(init=0.4)
    assert isinstance(await call(pool), dict)
    assert "Phase: init\tStatus: timeout" in world.sinks[0].lines[0]
    world.write("import time\ntime.sleep(3600)")
    slow = world.pool(init=0.2, timeout_seconds=0.3)
    with pytest.raises(FunctionError, match=r"Task timed out after 0\.30 seconds"):
        await call(slow)


async def test_a_missing_folder_is_named(world: World) -> None:
    """The error says which folder is not there."""
    spec = FunctionSpec("f", "app.act", (), world.root / "nowhere", 1.0, 128, "eu-west-1")
    with pytest.raises(FunctionError, match="nowhere") as failed:
        await PythonStarter().start(spec, Sink())
    assert failed.value.error_type == "Runtime.InvalidWorkingDir"


async def test_the_environment_is_aws_s(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables, working directory and context are AWS's; headrace's own variables are not passed on."""
    monkeypatch.setenv("HEADRACE_SECRET", "x")
    monkeypatch.setenv("OTHER", "y")
    pool = world.pool(variables={"TABLE": "t", "LANG": "C.UTF-8"})
    given = await call(pool, "environ")
    assert isinstance(given, dict)
    # But for the mark by which what the handler starts is known.
    assert [name for name in given if name.startswith("HEADRACE_")] == ["HEADRACE_ENVIRONMENT"]
    expected = {
        "OTHER": "y",
        "TABLE": "t",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "_HANDLER": "app.act",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_LAMBDA_FUNCTION_NAME": "clicks",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/clicks",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
        "LAMBDA_TASK_ROOT": str(world.root),
    }
    assert {name: given.get(name) for name in expected} == expected
    assert await call(pool, "cwd") == str(world.root)
    shown = await call(pool, "context", request_id="id-9")
    assert isinstance(shown, dict)
    assert 0 < shown.pop("left") <= SECONDS_MAX * 1000
    assert shown == {
        "id": "id-9",
        "arn": "arn:aws:lambda:eu-west-1:000000000000:function:clicks",
        "memory": "128",
        "group": "/aws/lambda/clicks",
        "name": "clicks",
        "version": "$LATEST",
    }


async def test_packages_with_headrace_s_names_are_the_function_s(world: World) -> None:
    """A function may have packages called functions and engine."""
    for name in ("functions", "engine"):
        (world.root / name).mkdir()
        (world.root / name / "__init__.py").write_text("")
    (world.root / "engine" / "errors.py").write_text("text = 'mine'")
    (world.root / "functions" / "kinds.py").write_text(
        "from engine.errors import text\ndef handler(event, context): return [text, len(event['Records'])]"
    )
    assert await call(world.pool(handler="functions/kinds.handler")) == ["mine", 1]


async def test_rows_keep_their_types(world: World) -> None:
    """Values that JSON has no type for come back as they were; beside rows, what AWS's encoder takes is taken."""
    import datetime as dt
    import decimal
    import uuid

    pool = world.pool()
    reply = await pool.invoke(request("typed"))
    assert reply.has_typed_values
    assert wire.revived(reply.payload) == {
        "batchItemFailures": [],
        "rows": [
            {
                "at": dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.timezone(dt.timedelta(hours=2))),
                "day": dt.date(2026, 1, 2),
                "time": dt.time(1, 2, 3),
                "took": dt.timedelta(days=-1, microseconds=1),
                "raw": b"\x00\xff",
                "id": uuid.UUID(int=1),
                "price": decimal.Decimal("1.10"),
                "text": "é",
                "none": None,
                "nan": float("inf"),
                "list": [b"a"],
            }
        ],
    }
    loose = await pool.invoke(request("loose"))
    assert (loose.payload, loose.has_typed_values) == ('{"price": 1.5, "nan": NaN, "text": "é"}'.encode(), False)
    assert (await pool.invoke(request("bare"))).payload == b"bytes"
    assert (await pool.invoke(request("half"))).payload == b'"\\ud800"'
    assert loose.times is not None
    assert loose.times.handler_ms >= 0


async def test_an_asynchronous_handler_keeps_its_loop(world: World) -> None:
    """One loop serves all invocations; what it raises is an error like any other, without the loop's frames."""
    pool = world.pool(handler="app.later")
    assert await call(pool) == {"loops": 1}
    with pytest.raises(FunctionError, match="async") as failed:
        await call(pool, key="bad")
    assert failed.value.error_type == "OSError"
    assert [frame.rpartition(", in ")[2].splitlines()[0] for frame in failed.value.stack_trace] == ["later"]
    assert await call(pool) == {"loops": 1}


async def test_large_requests_and_answers_go_through(world: World) -> None:
    """Beyond what a socket holds at once; the largest answer that is allowed is taken."""
    pool = world.pool()
    values = ["large 6291454", *["x" * 4_000 for _ in range(1_000)]]
    reply = await pool.invoke(Request("id-1", 0, "kinesis", batch(*values), ENVELOPE))
    assert len(reply.payload) == 6 * 1024 * 1024


def test_it_works_on_uvloop(tmp_path: Path) -> None:
    """The event loop of production: answers, output, deaths and timeouts are seen as on asyncio's own."""

    async def run() -> None:
        world = World(tmp_path)
        pool = world.pool(timeout_seconds=0.5)
        await call(pool, "prints text")
        assert world.sinks[0].output == b"text\nerror text\nraw\nopen"
        for act, error_type in (("leave 1", "Runtime.ExitError"), ("block", "Sandbox.Timedout")):
            with pytest.raises(FunctionError) as failed:
                await call(pool, act)
            assert failed.value.error_type == error_type
        await call(pool, f"large {5_000_000}")
        await pool.close()

    uvloop.run(asyncio.sleep(0))  # libuv keeps a pipe for signals from its first loop on
    before = descriptors()
    uvloop.run(run())
    assert descriptors() == before
