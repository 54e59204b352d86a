"""Environments for Python handlers, as real processes: whatever a handler does costs one invocation and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from engine.batch import Batch, from_rows
from engine.clock import SystemClock
from engine.errors import FunctionError, Throttled
from functions.environments import wire
from functions.environments.contract import FunctionSpec, LogSink, Report, Request
from functions.environments.logs import FunctionLogs
from functions.environments.pool import EnvironmentPool
from functions.environments.process import spawner
from functions.environments.python import PythonEnvironment, PythonStarter
from functions.kinds import kinesis
from tests.clock import ManualClock

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVELOPE = kinesis.envelope(kinesis.KinesisStream("clicks", "us-east-1"))
SECONDS_MAX = 20.0

APP = """
    import asyncio, base64, ctypes, datetime, decimal, json, logging, os, signal, subprocess, sys, threading
    import time, uuid

    calls = 0
    kept = []

    def act(event, context):
        # What to do is the value of the first record; it is a member of this module.
        global calls
        calls += 1
        data = base64.b64decode(event["Records"][0]["kinesis"]["data"]).decode()
        name, _, argument = data.partition(" ")
        return globals()[name](argument) if name != "context" else shown(context)

    def shown(context):
        return {
            "id": context.aws_request_id, "arn": context.invoked_function_arn, "memory": context.memory_limit_in_mb,
            "left": context.get_remaining_time_in_millis(), "group": context.log_group_name,
            "name": context.function_name, "version": context.function_version,
        }

    def ok(_): return {"pid": os.getpid(), "calls": calls}
    def segfault(_): ctypes.string_at(0)
    def leave(code): os._exit(int(code))
    def system_exit(code): sys.exit(int(code))
    def kill_self(_): os.kill(os.getpid(), signal.SIGKILL)
    def block(_): time.sleep(3600)
    def spin(_):
        while True: pass
    def deaf(_):
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        return ok(_)
    def raises(text): raise KeyError(text)
    def ill(_):
        class Ill(Exception):
            def __str__(self): raise ValueError("no text")
        raise Ill
    def recursion(_): return recursion(_)
    def unserialisable(_): return {"a": {1, 2}}
    def large(size): return "x" * int(size)
    def leak(_):
        while True:
            kept.append(bytearray(4_000_000)); time.sleep(0.002)
    def leak_and_return(_):
        kept.append(bytearray(300_000_000))
    def fork_and_stay(_):
        if (child := os.fork()) == 0:
            time.sleep(3600)
        return {"child": child}
    def fork_and_return(_):
        os.fork()
        return ok(_)
    def stray(_):
        return {"child": subprocess.Popen(["sleep", "3600"], start_new_session=True).pid}
    def flood(size):
        block = b"x" * 65_535 + b"\\n"
        for _ in range(int(size) // len(block)): os.write(1, block)
    def close_stdout(_): sys.stdout.close(); os.close(1); os.close(2)
    def close_all(_): os.closerange(3, 256); time.sleep(3600)
    def garbage(_):
        for number in range(3, 64):
            try: os.write(number, b"garbage " * 100)
            except OSError: pass
        time.sleep(3600)
    def chdir(_): os.chdir("/")
    def prints(text):
        print(text)
        print("error " + text, file=sys.stderr)
        os.write(1, b"raw\\n")
        sys.stdout.write("open")
    def logs(text): logging.getLogger().warning(text)
    def environ(_): return dict(os.environ)
    def cwd(_): return os.getcwd()
    def background(_):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return ok(_)
    def typed(_):
        zone = datetime.timezone(datetime.timedelta(hours=2))
        return {"batchItemFailures": [], "rows": [{
            "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6, zone), "day": datetime.date(2026, 1, 2),
            "time": datetime.time(1, 2, 3), "took": datetime.timedelta(days=-1, microseconds=1),
            "raw": b"\\x00\\xff", "id": uuid.UUID(int=1), "price": decimal.Decimal("1.10"), "text": "\\u00e9",
            "none": None, "nan": float("inf"), "list": [b"a"],
        }]}
    def tagged(_): return {"rows": [{"\\x00headrace": ["date", "2026-01-01"]}]}
    def outside(_): return {"at": datetime.date(2026, 1, 2), "rows": []}
    def loose(_): return {"price": decimal.Decimal("1.5"), "nan": float("nan"), "text": "\\u00e9"}
    def bare(_): return b"bytes"
    def half(_): return "\\ud800"
    def wait(path):
        while not os.path.exists(path): time.sleep(0.01)
        return ok(path)

    async def later(event, context):
        kept.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        if event["Records"][0]["kinesis"]["partitionKey"] == "bad": raise OSError("async")
        return {"loops": len(set(map(id, kept)))}
"""


class Sink:
    """A log stream that keeps everything."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.output = b""

    def write(self, data: bytes) -> None:
        self.output += data
        self.lines.append(data.decode(errors="replace"))

    def platform(self, line: str) -> None:
        self.lines.append(line)


class World:
    """A folder with handlers, and pools of environments for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sinks: list[Sink] = []
        self.reports: list[Report] = []
        self.throttled: list[str] = []
        self.pools: list[EnvironmentPool] = []
        self.write(APP)

    def write(self, text: str, name: str = "app.py") -> None:
        (self.root / name).write_text(textwrap.dedent(text))

    def sink(self) -> Sink:
        self.sinks.append(Sink())
        return self.sinks[-1]

    def spec(self, **changes: object) -> FunctionSpec:
        given = {"handler": "app.act", "timeout_seconds": SECONDS_MAX, "memory_size_mb": 128, **changes}
        return FunctionSpec(name="clicks", command=(), root=self.root, region="eu-west-1", **given)  # type: ignore[arg-type]

    def pool(
        self,
        *,
        size: int = 1,
        idle: float = 300.0,
        clock: object = None,
        logs: Callable[[], LogSink] | None = None,
        init: float = 10.0,
        **changes: object,
    ) -> EnvironmentPool:
        pool = EnvironmentPool(
            self.spec(**changes),
            PythonStarter(),
            reserved_concurrency=size,
            idle_seconds_max=idle,
            clock=clock or SystemClock(),  # type: ignore[arg-type]
            logs=logs or self.sink,
            on_report=self.reports.append,
            on_throttle=self.throttled.append,
            memory_sample_seconds=0.02,
            init_seconds_max=init,
        )
        self.pools.append(pool)
        return pool


def batch(*values: str, key: str = "k") -> Batch:
    rows = [(i, 1_700_000_000_000, key.encode(), value.encode(), ()) for i, value in enumerate(values)]
    return from_rows("clicks", 0, rows, start=0, end=len(rows))


def request(value: str = "ok", *, request_id: str = "id-1", key: str = "k") -> Request:
    return Request(request_id, 0, "kinesis", batch(value, key=key), ENVELOPE)


async def call(pool: EnvironmentPool, value: str = "ok", **members: str) -> object:
    return json.loads((await pool.invoke(request(value, **members))).payload)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def processes() -> set[int]:
    """This process's descendants that are not over."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                found.add(each.pid)
    return found


async def until(condition: Callable[[], bool], seconds_max: float = SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.005)


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module", autouse=True)
def warden() -> Iterator[None]:
    """The spawner's thread and its warden are there before anything is counted, and end with the module."""

    async def first() -> None:
        process = await spawner().start(["/bin/true"], root=Path("/"), variables={}, log=Sink())
        await process.ended

    asyncio.run(first())
    yield
    spawner().close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Handlers and pools. When the test ends nothing is left of them: no process, descriptor or shared memory."""
    before = descriptors(), processes(), shared_memory()
    made = World(tmp_path)
    yield made
    for pool in made.pools:
        await pool.close()
        assert (pool.running, pool.idle, pool.pids) == (0, 0, [])
    await until(lambda: (descriptors(), processes(), shared_memory()) == before, 5.0)


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
    assert not [name for name in given if name.startswith("HEADRACE_")]
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


async def test_no_more_environments_than_reserved(world: World) -> None:
    """Callers wait in order for one of them, and each runs one invocation at a time."""
    pool = world.pool(size=2)
    answers = await asyncio.gather(*(call(pool, request_id=f"id-{i}") for i in range(20)))
    pids = {answer["pid"] for answer in answers if isinstance(answer, dict)}
    assert len(pids) == 2
    assert (pool.idle, pool.running) == (2, 0)
    assert sorted(each.request_id for each in world.reports) == sorted(f"id-{i}" for i in range(20))


async def test_idle_environments_are_retired(world: World) -> None:
    """After the configured time, and not before; the one used last is used next."""
    clock = ManualClock()
    pool = world.pool(size=2, idle=100.0, clock=clock)
    await asyncio.gather(call(pool), call(pool))
    first, second = pool.pids
    await clock.advance(60)
    assert await call(pool) == {"pid": second, "calls": 2}
    await clock.advance(60)
    await until(lambda: gone(first))
    assert pool.pids == [second]
    await clock.advance(120)
    await until(lambda: gone(second))
    assert pool.idle == 0


async def test_changed_code_runs_in_new_environments(world: World) -> None:
    """What is under way ends on the old code; the old environment goes when it has."""
    pool = world.pool(size=2)
    go = world.root / "go"
    old = asyncio.create_task(call(pool, f"wait {go}"))
    await until(lambda: pool.running == 1 and len(pool.pids) == 1)
    [old_pid] = pool.pids
    world.write("def act(event, context): return 'new'")
    await pool.replace(world.spec(version=1))
    assert await call(pool) == "new"
    go.touch()
    assert await old == {"pid": old_pid, "calls": 1}
    await until(lambda: gone(old_pid))
    assert await call(pool) == "new"


async def test_a_cancelled_invocation_ends_its_environment(world: World) -> None:
    """Nobody knows what it is doing; the next one has another."""
    pool = world.pool()
    task = asyncio.create_task(call(pool, "block"))
    await until(lambda: pool.running == 1 and len(pool.pids) == 1)
    [pid] = pool.pids
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)
    assert isinstance(await call(pool), dict)


async def test_a_cancelled_start_leaves_nothing(world: World) -> None:
    """At whichever moment it is cancelled; what is left is looked for when the test ends."""
    pool = world.pool()
    for turns in (1, 2, 3, 10, 100):
        task = asyncio.create_task(call(pool))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert pool.running == 0


async def test_closing_fails_what_is_under_way(world: World) -> None:
    """The running invocation and the waiting one end, and new ones are refused."""
    pool = world.pool()
    tasks = [asyncio.create_task(call(pool, "block")) for _ in range(2)]
    await until(lambda: pool.running == 1 and len(pool.pids) == 1)
    await pool.close()
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, FunctionError)
    assert isinstance(second, Throttled)
    with pytest.raises(Throttled):
        await call(pool)


async def test_no_room_for_a_process_is_no_fault_of_the_function(world: World) -> None:
    """Too many open files: Throttled, without a report; it works again when there is room."""
    import resource

    pool = world.pool()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + 3, limits[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(Throttled, match="open files"):
            await call(pool)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
    assert (world.reports, world.throttled) == ([], ["clicks"])
    assert isinstance(await call(pool), dict)


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


async def test_nothing_outlives_the_engine(world: World, tmp_path: Path) -> None:
    """Two seconds after the engine's SIGKILL neither environments nor what they have forked are left."""
    program = f"""
        import asyncio, sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from tests.integration.test_environments import World, call
        async def main():
            pool = World(Path({str(tmp_path)!r})).pool(size=3)
            answer, _ = await asyncio.gather(call(pool, "fork_and_stay"), call(pool))
            asyncio.create_task(call(pool, "spin"))
            while pool.running < 1 or len(pool.pids) < 2: await asyncio.sleep(0.01)
            print(answer["child"], *pool.pids, flush=True)
            await asyncio.sleep(3600)
        asyncio.run(main())
    """
    engine = subprocess.Popen(  # noqa: ASYNC220  # milliseconds
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    with engine:
        assert engine.stdout is not None
        line = await asyncio.to_thread(engine.stdout.readline)
        pids = {
            *map(int, line.split()),
            *(each.pid for each in psutil.Process(engine.pid).children(recursive=True)),
        }
        assert len(pids) >= 4  # two environments, a fork, the warden
        engine.send_signal(signal.SIGKILL)
        await until(lambda: all(map(gone, pids)), 2.0)


async def test_an_environment_ends_when_its_socket_does(world: World) -> None:
    """The engine's end alone is enough, should kernel and warden fail."""
    environment = await PythonStarter().start(world.spec(), Sink())
    assert isinstance(environment, PythonEnvironment)
    environment._socket.shutdown(socket.SHUT_RDWR)
    await until(lambda: gone(environment.pid))
    assert not environment.is_alive
    await environment.kill()
