"""What a function finds around itself and what is said of it: context, variables, log lines, errors, limits.

In one or two environments, built as pipelines build theirs. Not here: every way in which an invocation can fail
(tests/integration/test_environments.py), and other languages (tests/integration/test_provided.py).
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Batch
from engine.config import FunctionConfig
from engine.errors import FunctionError
from functions.environments import child
from functions.environments.contract import FunctionSpec
from functions.environments.python import variables_of
from functions.environments.report import parse_report_line
from tests.conformance.lambda_support import Log, batch, function

pytestmark = pytest.mark.slow

#: What to do is the first record's key.
APP = r"""
import decimal, json, logging, os, resource, sys, time

calls = 0
STARTED = time.time()
print("cold")

def handler(event, context):
    global calls
    calls += 1
    return {"rows": [{"seen": json.dumps(ACTS[event["Records"][0]["kinesis"]["partitionKey"]](context))}]}

def told(context):
    names = [name for name in dir(context) if not name.startswith("_")]
    first = context.get_remaining_time_in_millis()
    time.sleep(0.01)
    context.own = "anything"
    return {
        "values": {n: getattr(context, n) for n in names if not callable(getattr(context, n)) and n != "identity"},
        "own": context.own,
        "limits": [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_NPROC)],
        "processors": len(os.sched_getaffinity(0)),
        "methods": [n for n in names if callable(getattr(context, n))],
        "identity": [context.identity.cognito_identity_id, context.identity.cognito_identity_pool_id],
        "left": [first, context.get_remaining_time_in_millis()],
        "environ": dict(os.environ), "cwd": os.getcwd(), "path": sys.path[0], "calls": calls, "pid": os.getpid(),
    }

def late(context):
    context._epoch_deadline_time_in_ms -= 10**9
    return context.get_remaining_time_in_millis()

def said(context):
    context.log("from the context\n")
    logging.getLogger("mine").warning("a %s", "warning")
    logging.getLogger("mine").info("below the root's level")
    print("printed")

def raised(context):
    def inner():
        raise KeyError("user")
    inner()

def gone(context):
    open("/tmp/" + os.environ["MARK"], "w").close()
    os._exit(3)

def stayed(context):
    path = "/tmp/" + os.environ["MARK"]
    found = os.path.exists(path)
    os.unlink(path)
    return [found, calls]

def wait(context):
    time.sleep(60)

def loose(event, context):
    return {"rows": [], "price": decimal.Decimal("1.5"), "nan": float("nan"), "text": "\u00e9"}

ACTS = {each.__name__: each for each in (told, late, said, raised, gone, stayed, wait)}
"""

REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ARN = "arn:aws:lambda:us-east-1:000000000000:function:clicks-fn"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the engine")
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def act(name: str) -> Batch:
    return batch(b"x", key=name.encode())


async def test_context_and_variables_are_awss(root: Path) -> None:
    """Every attribute, method and variable, in the first invocation and in a later one of the same environment."""
    async with function("kinesis", "app.handler", root, variables={"TABLE": "t"}) as clicked:
        first, second = await clicked.seen(act("told")), await clicked.seen(act("told"))
        assert await clicked.seen(act("late")) == 0
    found = first["values"]
    assert REQUEST_ID.fullmatch(found.pop("aws_request_id"))
    stream = found.pop("log_stream_name")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", stream)
    assert found == {
        "function_name": "clicks-fn",
        "function_version": "$LATEST",
        "invoked_function_arn": ARN,
        "memory_limit_in_mb": "512",
        "log_group_name": "/aws/lambda/clicks-fn",
        "client_context": None,
        "tenant_id": None,
    }
    assert first["identity"] == [None, None]
    assert {"get_remaining_time_in_millis", "log"} <= set(first["methods"])
    assert 20_000 < first["left"][1] < first["left"][0] <= 30_000
    assert (first["calls"], second["calls"], first["pid"]) == (1, 2, second["pid"])
    assert (first["own"], "own" in second["values"]) == ("anything", False)
    _variables(first["environ"], root, stream)
    assert (first["cwd"], first["path"]) == (str(root), str(root))

    _bounds(first)


def _bounds(told: dict[str, Any]) -> None:
    """Descriptors, processes and processors are those of the machine."""
    names = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
    assert told["limits"] == [list(resource.getrlimit(name)) for name in names]
    assert told["processors"] == len(os.sched_getaffinity(0))


def _variables(environ: dict[str, str], root: Path, stream: str) -> None:
    expected = {
        "_HANDLER": "app.handler",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python3.{sys.version_info.minor}",
        "AWS_LAMBDA_FUNCTION_NAME": "clicks-fn",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/clicks-fn",
        "AWS_LAMBDA_LOG_STREAM_NAME": stream,
        "AWS_SECRET_ACCESS_KEY": "of the engine",
        "LAMBDA_TASK_ROOT": str(root),
        "LANG": "en_US.UTF-8",
        "TZ": "UTC",
        "TABLE": "t",
    }
    assert {name: environ.get(name) for name in expected} == expected
    assert Path(environ["LAMBDA_RUNTIME_DIR"]).is_dir()
    assert environ["_X_AMZN_TRACE_ID"].startswith("Root=1-")
    # Not there for Python, which is called over a socket of its own.
    assert "AWS_LAMBDA_RUNTIME_API" not in environ


def test_awss_own_variables_can_be_given() -> None:
    """AWS refuses a function that sets them; here the function's value is what its code sees."""
    variables = {"AWS_REGION": "eu-north-1", "AWS_ACCESS_KEY_ID": "key", "LAMBDA_TASK_ROOT": "/srv"}
    spec = FunctionSpec("f", "app.handler", (), Path("/opt"), 3.0, 128, "us-east-1", variables=variables)
    found = variables_of(spec, Log())
    assert {name: found[name] for name in variables} == variables
    assert FunctionConfig(kind="kinesis", handler="app.handler", environment=variables)  # type: ignore[arg-type]


async def test_log_lines_are_awss(root: Path) -> None:
    """START, the function's own lines, END and REPORT; Init Duration on a cold start alone; errors on one line."""
    async with function("kinesis", "app.handler", root) as clicked:
        await clicked.call(act("said"))
        lines = list(clicked.log.lines)
        request_id = clicked.reports[0].request_id
        assert lines[0] == "cold"
        assert lines[1:3] == [f"START RequestId: {request_id} Version: $LATEST", "from the context"]
        level, stamp, said_in, message = lines[3].split("\t")
        assert (level, said_in, message) == ("[WARNING]", request_id, "a warning")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
        assert lines[4:6] == ["printed", f"END RequestId: {request_id}"]
        pattern = (
            rf"REPORT RequestId: {request_id}\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\t"
            r"Memory Size: 512 MB\tMax Memory Used: \d+ MB\tInit Duration: \d+\.\d\d ms"
        )
        assert re.fullmatch(pattern, lines[6])
        report = parse_report_line(lines[6])
        assert report is not None
        assert report.init_ms is not None
        assert report.billed_ms >= report.duration_ms + report.init_ms - 1
        clicked.log.clear()
        with pytest.raises(FunctionError) as failed:
            await clicked.call(act("raised"))
        lines = clicked.log.lines
    _error(failed.value, root)
    assert lines[1].startswith("[ERROR] KeyError: 'user'\rTraceback (most recent call last):\r\u00a0\u00a0File ")
    assert "Init Duration" not in lines[-1]
    assert lines[-1].endswith("\tStatus: error\tError Type: KeyError")
    assert clicked.reports[1].billed_ms == -(-clicked.reports[1].duration_ms // 1)


def _error(failed: FunctionError, root: Path) -> None:
    """Type, message, and the handler's own frames; the object that AWS's callers get has these four members."""
    assert (failed.error_type, failed.message) == ("KeyError", "'user'")
    names = [frame.splitlines()[0].rpartition(", in ")[2] for frame in failed.stack_trace]
    assert names == ["handler", "raised", "inner"]
    assert failed.stack_trace[0].startswith(f'  File "{root / "app.py"}", line ')
    described = child.describe(KeyError("user"), "id-1")
    assert list(described) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert described["requestId"] == "id-1"


async def test_a_crash_takes_the_globals_and_leaves_tmp(root: Path) -> None:
    """The next invocation has a new process, in which initialisation runs again; files in /tmp are still there."""
    async with function("kinesis", "app.handler", root, variables={"MARK": root.name}) as clicked:
        await clicked.seen(act("told"))
        with pytest.raises(FunctionError, match="exit status 3") as failed:
            await clicked.call(act("gone"))
        assert failed.value.error_type == "Runtime.ExitError"
        assert Path("/tmp", root.name).exists()  # noqa: ASYNC240  # the machine's, not its own
        assert await clicked.seen(act("stayed")) == [True, 1]
        assert clicked.log.lines.count("cold") == 2
    assert [report.init_ms is None for report in clicked.reports] == [False, True, False]


async def test_a_timeout_has_awss_words(root: Path) -> None:
    """In the log and in the error; the REPORT line says timeout, and the invocation is billed for its time."""
    async with function("kinesis", "app.handler", root, timeout_seconds=0.25) as clicked:
        with pytest.raises(FunctionError) as failed:
            await clicked.call(act("wait"))
    [report] = clicked.reports
    said = f"{report.request_id} Task timed out after 0.25 seconds"
    assert any(re.fullmatch(rf"\d{{4}}-\S+Z {re.escape(said)}", line) for line in clicked.log.lines)
    assert failed.value.error_type == "Sandbox.Timedout"
    assert clicked.log.lines[-1].endswith("\tStatus: timeout")
    assert report.billed_ms >= 250


def test_answers_are_marshalled_as_awss_client_does() -> None:
    """Decimals as doubles, NaN as it is, text unescaped, bytes raw; what has no form is a fault of the runtime."""

    def text(answer: object) -> bytes:
        return child.marshalled(answer, "t", '"t"')[0]

    from decimal import Decimal

    given: dict[str, Any] = {"price": Decimal("1.5"), "nan": float("nan"), "text": "é"}
    assert text(given) == '{"price": 1.5, "nan": NaN, "text": "é"}'.encode()
    assert text(b"\x00raw") == b"\x00raw"
    assert json.loads(text(None)) is None
    with pytest.raises(child.Fault, match="Unable to marshal response") as fault:
        text({1, 2})
    assert fault.value.error_type == "Runtime.MarshalError"
