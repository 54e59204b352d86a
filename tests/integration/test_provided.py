"""Functions of any language over the Runtime API: AWS's Python client unmodified, Node, and a compiled program."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.batch import Batch, from_rows
from engine.clock import SystemClock
from engine.errors import FunctionError
from functions.environments import provided
from functions.environments.contract import FunctionSpec, Report, Request
from functions.environments.pool import EnvironmentPool
from functions.environments.provided import ProvidedEnvironment, ProvidedStarter, event_json, variables_of
from functions.kinds import kafka, kinesis

SAMPLES = Path(__file__).parent / "bootstraps"
ENVELOPE = kinesis.envelope(kinesis.KinesisStream("clicks", "eu-west-1"))
NODE = shutil.which("node")
CC = shutil.which("cc")


class Log:
    """A log sink that keeps what it gets."""

    group_name = "/aws/lambda/fn"

    def __init__(self) -> None:
        self.data = b""
        self.name = "2026/01/31/[$LATEST]" + "0" * 32

    def write(self, data: bytes) -> None:
        self.data += data

    def platform(self, line: str) -> None:
        raise AssertionError("the platform's lines are the pool's")


class PoolLog(Log):
    """One for a pool, which writes the platform's lines."""

    def platform(self, line: str) -> None:
        self.write(line.encode() + b"\n")


def batch_of(*values: bytes | None) -> Batch:
    rows = [(offset, 1_700_000_000_000 + offset, b"k", value, []) for offset, value in enumerate(values)]
    return from_rows("clicks", 3, rows, start=0, end=len(rows))


def request_of(*values: bytes | None, request_id: str = "r-1", **extra: object) -> Request:
    return Request(request_id, int(time.time() * 1000) + 30_000, "kinesis", batch_of(*values), ENVELOPE, extra)


def spec_of(*command: str, **changes: Any) -> FunctionSpec:
    given: dict[str, Any] = {"variables": {}, "root": SAMPLES, **changes}
    return FunctionSpec("fn", None, command, timeout_seconds=30, memory_size_mb=256, region="eu-west-1", **given)


@contextlib.asynccontextmanager
async def running(spec: FunctionSpec) -> AsyncIterator[tuple[ProvidedEnvironment, Log]]:
    """An environment that is killed at the end, and leaves no process of its session behind."""
    log = Log()
    environment = await asyncio.wait_for(ProvidedStarter().start(spec, log), 30)
    try:
        yield environment, log
    finally:
        await environment.kill()
        assert not environment.is_alive
        await until(lambda: members(environment.pid) == [], seconds=2)


def ric(handler: str, **changes: Any) -> FunctionSpec:
    """A function that AWS's own client runs."""
    return spec_of("python", "-m", "awslambdaric", handler, **changes)


def members(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


async def until(condition: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - real processes, which tell nobody
            await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bootstrap in C, compiled."""
    if CC is None:
        pytest.skip("there is no C compiler on this machine")
    program = tmp_path_factory.mktemp("compiled") / "bootstrap"
    subprocess.run([CC, "-O1", "-Wall", "-Werror", "-o", program, SAMPLES / "bootstrap.c"], check=True)
    return program


@pytest.fixture(params=["awslambdaric", "node", "compiled"])
def function(request: pytest.FixtureRequest) -> FunctionSpec:
    """The same function three times: it fails at the value "fail" and ends at "exit"."""
    if request.param == "awslambdaric":
        return ric("app.handler")
    if request.param == "node":
        if NODE is None:
            pytest.skip("there is no Node.js on this machine")
        return spec_of("node", "bootstrap.mjs", "index.handler")
    return spec_of(str(request.getfixturevalue("compiled")))


async def test_any_language_serves_one_invocation_after_the_other(function: FunctionSpec) -> None:
    """The same process answers all of them; an error in one leaves it as it is."""
    async with running(function) as (environment, _):
        assert environment.is_alive
        for number in range(3):
            reply = await environment.invoke(request_of("ü".encode(), b"b", request_id=f"r-{number}"))
            answer = json.loads(reply.payload)
            assert answer["requestId"] == f"r-{number}"
            assert answer.get("values", ["ü", "b"]) == ["ü", "b"]
            assert not reply.has_typed_values
            with pytest.raises(FunctionError, match="the record says so: ü") as raised:
                await environment.invoke(request_of(b"fail", request_id=f"f-{number}"))
            assert raised.value.error_type in ("TypeError", "Compiled.Fault")
            assert environment.is_alive
        assert members(environment.pid) != []


async def test_any_language_may_end_in_the_middle(function: FunctionSpec) -> None:
    """Its invocation fails as on AWS, the environment is over, and nothing hangs."""
    async with running(function) as (environment, _):
        await environment.invoke(request_of(b"a"))
        with pytest.raises(FunctionError, match="Runtime exited with error: exit status 3") as raised:
            await asyncio.wait_for(environment.invoke(request_of(b"exit")), 10)
        assert raised.value.error_type == "Runtime.ExitError"
        assert not environment.is_alive
        with pytest.raises(FunctionError):
            await environment.invoke(request_of(b"a"))


async def test_any_language_gets_the_largest_event(function: FunctionSpec) -> None:
    """Some 6 MB in one event, built in a thread; the event loop goes on meanwhile."""
    values = [b"x" * 100_000] * 40
    async with running(function) as (environment, _):
        answer = json.loads((await environment.invoke(request_of(*values))).payload)
        if "bytes" in answer:
            assert answer["bytes"] == len(event_json(request_of(*values)))
        else:
            assert [len(value) for value in answer["values"]] == [100_000] * 40


async def test_the_event_is_that_of_the_kind() -> None:
    """A handler that gives its event back gives what `build_event` made, with the window's members on top."""
    asked = request_of("ü".encode(), b"", None, window={"start": "a"}, isFinalInvokeForWindow=False)
    columns = [asked.batch.records.column(name).to_pylist() for name in asked.batch.records.schema.names]
    expected = kinesis.build_event(ENVELOPE, 3, *columns)
    async with running(ric("app.echo")) as (environment, _):
        answer = json.loads((await environment.invoke(asked)).payload)
        assert answer == {**expected, "window": {"start": "a"}, "isFinalInvokeForWindow": False}
        assert list(answer) == ["Records", "window", "isFinalInvokeForWindow"]


def test_events_of_other_kinds_have_their_headers() -> None:
    """Kafka's event from a batch with headers, and numbers that other encoders refuse."""
    rows = [(7, 1_700_000_000_000, b"k", b"v", [("h", b"\xff\x01"), ("n", None)])]
    batch = from_rows("clicks", 3, rows, start=7, end=8)
    envelope = kafka.envelope(kafka.KafkaSource("b:9092"), "clicks", log_append_time=False)
    event = json.loads(event_json(Request("r-1", 0, "kafka", batch, envelope, {"large": 2**70})))
    assert event["records"]["clicks-3"][0]["headers"] == [{"h": [-1, 1]}, {"n": []}]
    assert event["large"] == 2**70


async def test_awslambdaric_sees_the_context_and_the_variables_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attribute of the context object, and the environment; nothing of headrace's own settings reaches it."""
    monkeypatch.setenv("HEADRACE_SECRET", "s")
    monkeypatch.setenv("AWS_EXECUTION_ENV", "AWS_Lambda_python3.12")
    variables = {"TABLE": "t", "AWS_LAMBDA_RUNTIME_API": "elsewhere:1", "TZ": "Europe/Berlin"}
    async with running(ric("app.seen", variables=variables)) as (environment, _):
        saw = json.loads((await environment.invoke(request_of(b"a"))).payload)
        variables = saw.pop("environment")
        assert 25_000 < saw.pop("remaining") <= 30_000
        assert re.fullmatch(r"\d{4}/\d{2}/\d{2}/\[\$LATEST\][0-9a-f]{32}", saw["log_stream_name"])
        assert saw == {
            "aws_request_id": "r-1",
            "function_name": "fn",
            "function_version": "$LATEST",
            "invoked_function_arn": "arn:aws:lambda:eu-west-1:000000000000:function:fn",
            "memory_limit_in_mb": "256",
            "log_group_name": "/aws/lambda/fn",
            "log_stream_name": variables["AWS_LAMBDA_LOG_STREAM_NAME"],
            "client_context": None,
            "tenant_id": None,
            "identity": [None, None],
            "cwd": str(SAMPLES),
        }
        assert re.fullmatch(r"127\.0\.0\.1:\d+", variables["AWS_LAMBDA_RUNTIME_API"])
        assert variables["TABLE"] == "t"
        assert variables["TZ"] == "Europe/Berlin"
        assert variables["LAMBDA_TASK_ROOT"] == str(SAMPLES)
        assert variables["AWS_REGION"] == variables["AWS_DEFAULT_REGION"] == "eu-west-1"
        assert variables["AWS_LAMBDA_INITIALIZATION_TYPE"] == "on-demand"
        assert re.fullmatch(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24};Sampled=0", variables["_X_AMZN_TRACE_ID"])
        assert "AWS_EXECUTION_ENV" not in variables
        assert [name for name in variables if name.startswith("HEADRACE_")] == ["HEADRACE_ENVIRONMENT"]


def test_a_log_stream_that_has_a_name_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables come in the order: the engine's, AWS's, the user's; a proxy is kept away from loopback."""
    monkeypatch.setenv("no_proxy", "internal")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "another")
    log = Log()
    log.group_name, log.name = "group", "stream"
    found = variables_of(ric("app.seen", variables={"PATH": "/bin"}), log, "127.0.0.1:9")
    assert found["AWS_LAMBDA_LOG_GROUP_NAME"] == "group"
    assert found["AWS_LAMBDA_LOG_STREAM_NAME"] == "stream"
    assert found["AWS_LAMBDA_FUNCTION_NAME"] == "fn"
    assert found["no_proxy"] == "internal,127.0.0.1"
    assert found["PATH"] == "/bin"


async def test_awslambdaric_reports_errors_with_their_frames() -> None:
    """Type, message and formatted frames; an endless recursion too, whose cause fills a header."""
    async with running(ric("app.handler")) as (environment, log):
        with pytest.raises(FunctionError) as raised:
            await environment.invoke(request_of(b"fail"))
        assert raised.value.error_type == "TypeError"
        assert raised.value.message == "the record says so: ü"
        (frame,) = raised.value.stack_trace
        assert f'File "{SAMPLES / "app.py"}", line' in frame
        assert "in handler" in frame
        assert b"[ERROR] TypeError: the record says so" in log.data
        await environment.invoke(request_of(b"a"))
        assert b"saw 1\n" in log.data  # before the answer, not some time after it
    async with running(ric("app.deep")) as (environment, _):
        with pytest.raises(FunctionError, match="maximum recursion depth exceeded") as raised:
            await environment.invoke(request_of(b"a"))
        assert raised.value.error_type == "RecursionError"
        assert "Previous line repeated" in raised.value.stack_trace[-1]
        assert environment.is_alive


async def test_awslambdaric_reports_what_it_cannot_serialise() -> None:
    """As on AWS; bytes go back as they are."""
    async with running(ric("app.unserialisable")) as (environment, _):
        with pytest.raises(FunctionError) as raised:
            await environment.invoke(request_of(b"a"))
        assert raised.value.error_type == "Runtime.MarshalError"
    async with running(ric("app.bytes_")) as (environment, _):
        assert (await environment.invoke(request_of(b"a"))).payload == b"\x00\xff"


@pytest.mark.parametrize(
    ("handler", "error_type", "message"),
    [
        ("absent.handler", "Runtime.ImportModuleError", "Unable to import module 'absent'"),
        ("app.absent", "Runtime.HandlerNotFound", "Handler 'absent' missing on module 'app'"),
        ("handler", "Runtime.MalformedHandlerName", "Bad handler 'handler'"),
        ("sys.handler", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys"),
        ("broken.handler", "RuntimeError", "no settings: ü"),
    ],
)
async def test_awslambdaric_that_cannot_initialise_says_why(handler: str, error_type: str, message: str) -> None:
    """The start raises the fault that the client has posted, and nothing of the environment is left."""
    log = Log()
    with pytest.raises(FunctionError) as raised:
        await asyncio.wait_for(ProvidedStarter().start(ric(handler), log), 20)
    assert raised.value.error_type == error_type
    assert message in raised.value.message
    assert b"[ERROR] " + error_type.encode() in log.data
    if handler == "broken.handler":
        assert "no settings" in raised.value.stack_trace[-1]


@pytest.mark.parametrize(
    ("command", "error_type", "message"),
    [
        (("no-such-program",), "Runtime.InvalidEntrypoint", "'no-such-program' is no program"),
        (("./app.py",), "Runtime.InvalidEntrypoint", "'./app.py' is no program"),
        (("sh", "-c", "echo gone; exit 4"), "Runtime.ExitError", "Runtime exited with error: exit status 4"),
        (("sh", "-c", "exit 0"), "Runtime.ExitError", "Runtime exited without providing a reason"),
        (
            ("sh", "-c", "kill -SEGV $$"),
            "Runtime.ExitError",
            "Runtime exited with error: signal: segmentation fault",
        ),
    ],
)
async def test_a_command_that_ends_before_it_asks_has_an_init_fault(
    command: tuple[str, ...], error_type: str, message: str
) -> None:
    """A program that is not there, and ones that end at once; their output is not lost."""
    log = Log()
    with pytest.raises(FunctionError, match=message.replace(".", r"\.")) as raised:
        await asyncio.wait_for(ProvidedStarter().start(spec_of(*command), log), 20)
    assert raised.value.error_type == error_type
    assert (b"gone\n" in log.data) == ("echo gone; exit 4" in command)


async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """An init phase that takes too long is cancelled by the pool."""
    tell = tmp_path / "pid"
    command = ("sh", "-c", f"echo $$ > {tell}; sleep 3600")
    starting = asyncio.create_task(ProvidedStarter().start(spec_of(*command), Log()))
    await until(lambda: tell.exists() and tell.read_text().endswith("\n"))
    pid = int(tell.read_text())
    assert members(pid) != []
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: members(pid) == [], seconds=2)


@pytest.mark.parametrize(
    ("handler", "message"),
    [("app.stops", "Runtime exited without providing a reason"), ("app.crash", "signal: segmentation fault")],
)
async def test_awslambdaric_that_ends_fails_one_invocation(handler: str, message: str) -> None:
    """A handler that exits, and one that crashes its interpreter."""
    async with running(ric(handler)) as (environment, _):
        with pytest.raises(FunctionError, match=message) as raised:
            await asyncio.wait_for(environment.invoke(request_of(b"a")), 10)
        assert raised.value.error_type == "Runtime.ExitError"
        assert not environment.is_alive


HASTY = """
import os, socket
host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
api = socket.create_connection((host, int(port)))
api.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
api.recv(65536)
head = b"POST /2018-06-01/runtime/invocation/r-1/response HTTP/1.1\\r\\nHost: x\\r\\n"
api.sendall(head + b"Content-Length: 2000000\\r\\n\\r\\n" + b"x" * 2000000)
os._exit(0)
"""


async def test_what_a_program_said_before_its_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response whose sender did not wait for the answer to it is a response."""
    monkeypatch.setattr(provided, "_kill_session", lambda session: None)  # which takes time, and hides the race
    for _ in range(5):
        async with running(spec_of("python", "-c", HASTY)) as (environment, _):
            assert (await environment.invoke(request_of(b"a"))).payload == b"x" * 2_000_000
            await until(lambda: not environment.is_alive)


async def test_killing_a_late_handler_ends_its_invocation() -> None:
    """That is how the pool enforces a timeout; the second kill does nothing."""
    async with running(ric("app.late")) as (environment, log):
        invoking = asyncio.create_task(environment.invoke(request_of(b"a")))
        await until(lambda: b"begun" in log.data)
        await environment.kill()
        with pytest.raises(FunctionError, match="Runtime exited with error: signal: killed"):
            await invoking
        assert not environment.is_alive
        await asyncio.gather(environment.kill(), environment.kill())


async def test_a_pool_enforces_the_timeout_and_replaces_what_has_ended() -> None:
    """Late, gone, too much: each costs one invocation, and the next one has an environment."""
    reports: list[Report] = []
    spec = dataclasses.replace(ric("app.handler"), timeout_seconds=1.0)
    pool = EnvironmentPool(
        spec,
        ProvidedStarter(),
        reserved_concurrency=2,
        idle_seconds_max=60,
        clock=SystemClock(),
        logs=PoolLog,
        on_report=reports.append,
    )
    try:
        for value, error_type in (
            (b"late", "Sandbox.Timedout"),
            (b"exit", "Runtime.ExitError"),
            (b"fail", "TypeError"),
        ):
            with pytest.raises(FunctionError) as raised:
                await pool.invoke(request_of(value))
            assert raised.value.error_type == error_type
            assert json.loads((await pool.invoke(request_of(b"a"))).payload)["values"] == ["a"]
        pids = pool.pids
    finally:
        await pool.close()
    assert [report.status for report in reports] == ["timeout", "success", "error", "success", "error", "success"]
    assert [report.init_ms is not None for report in reports] == [True, True, False, True, False, False]
    await until(lambda: [members(pid) for pid in pids] == [[]], seconds=2)


async def test_a_response_of_7_mb_costs_one_invocation() -> None:
    """AWS's client ends at the refusal, and so does the environment, before the next invocation."""
    async with running(ric("app.large")) as (environment, _):
        with pytest.raises(FunctionError, match="exceeded maximum allowed payload size") as raised:
            await environment.invoke(request_of(b"a"))
        assert raised.value.error_type == "Function.ResponseSizeTooLarge"
        assert not environment.is_alive


async def test_a_flood_of_output_reaches_the_log_and_holds_nothing_up() -> None:
    """Eight megabytes in one invocation; bounding them is the log sink's part."""
    async with running(ric("app.floods")) as (environment, log):
        assert (await environment.invoke(request_of(b"a"))).payload == b'"done"'
        assert log.data.count(b"\n") >= 2000


async def test_memory_is_that_of_the_process_and_its_descendants() -> None:
    """Resident bytes, as they are now; none of a process that has ended."""
    async with running(ric("app.grows")) as (environment, _):
        await environment.invoke(request_of(b"a"))
        before = environment.memory_bytes()
        assert 5_000_000 < before < 100_000_000
        await environment.invoke(request_of(b"grow"))
        assert environment.memory_bytes() - before > 60_000_000
    assert environment.memory_bytes() == 0
    async with running(ric("app.forks")) as (environment, _):
        before = environment.memory_bytes()
        await environment.invoke(request_of(b"a"))
        assert environment.memory_bytes() > before


@pytest.mark.parametrize("handler", ["app.forks", "app.forks_apart"])
async def test_children_of_the_function_end_with_it(handler: str) -> None:
    """A process that the handler left running, in its process group or in one of its own within the session."""
    async with running(ric(handler)) as (environment, _):
        child = json.loads((await environment.invoke(request_of(b"a"))).payload)["child"]
        assert child in members(environment.pid)
        os.kill(environment.pid, signal.SIGKILL)
        await until(lambda: members(environment.pid) == [] and not environment.is_alive)


async def test_another_process_of_this_machine_is_refused() -> None:
    """This one included: only processes of the environment's session are served, its children among them."""
    ask = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
    child = f"{sys.executable} -c '{ask}' http://$AWS_LAMBDA_RUNTIME_API/x"
    command = f"echo $AWS_LAMBDA_RUNTIME_API; {child}; exec python -m awslambdaric app.handler"
    async with running(spec_of("sh", "-c", command)) as (environment, log):
        host, port = log.data.decode().splitlines()[0].split(":")
        assert b"HTTP Error 404" in log.data  # the child's question was answered
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        assert json.loads((await environment.invoke(request_of(b"a"))).payload)["values"] == ["a"]


async def test_nothing_piles_up(compiled: Path) -> None:
    """Twenty environments, ended in every way, leave no file, task or process behind."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(psutil.Process().children())  # noqa: PTH208

    async def one(number: int) -> None:
        async with running(spec_of(str(compiled))) as (environment, _):
            await environment.invoke(request_of(b"a"))
            if number % 2:
                os.kill(environment.pid, signal.SIGKILL)

    await one(0)
    before, tasks = held(), asyncio.all_tasks()
    for _ in range(4):
        await asyncio.gather(*(one(number) for number in range(5)))
    assert asyncio.all_tasks() == tasks
    assert held() == before


ENGINE = """
import asyncio, sys
from tests.integration.test_provided import Log, request_of, ric
from functions.environments import process
from functions.environments.provided import ProvidedStarter

async def main():
    if sys.argv[1] == "alone":
        process.Warden.watch = lambda self, group: None
    log = Log()
    environment = await ProvidedStarter().start(ric("app.late"), log)
    invoking = asyncio.create_task(environment.invoke(request_of(b"a")))
    while b"begun" not in log.data:
        await asyncio.sleep(0.01)
    print(environment.pid, flush=True)
    await invoking

asyncio.run(main())
"""


@pytest.mark.parametrize("watched", ["watched", "alone"])
async def test_the_command_dies_with_the_engine(watched: str) -> None:
    """A SIGKILL of the engine leaves no environment two seconds later, nor would it without the warden."""
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, watched, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert engine.stdout is not None
    pid = int(await asyncio.wait_for(engine.stdout.readline(), 30))
    assert members(pid) == [pid]
    engine.kill()
    await engine.wait()
    await until(lambda: members(pid) == [], seconds=2)


def test_the_page_shows_what_is_run() -> None:
    """The code on docs/runtime-api.md is part of the bootstraps that these tests run, word for word."""
    page = (Path(__file__).parents[2] / "docs" / "runtime-api.md").read_text()
    sources = "".join(path.read_text() for path in (SAMPLES / "bootstrap.mjs", SAMPLES / "bootstrap.c"))
    shown = re.findall(r"```(?:js|c)\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    assert [code for code in shown if code not in sources] == []
