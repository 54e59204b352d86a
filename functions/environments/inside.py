"""What a Python handler finds around itself: the context object, the root logger, standard output.

All of it as AWS's Python runtime has it (its public runtime interface client; developer guide, "Python context
object" and "Log and monitor Python Lambda functions"). Not here: calling the handler (`child`). Needs the standard
library alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Mapping

#: Members of a log record that are not what a caller added with ``extra``.
_OWN_MEMBERS = {*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "aws_request_id"}
_STAMP = "%Y-%m-%dT%H:%M:%S"


def trace_id() -> str:
    """An invocation's trace in X-Ray's form, of a trace that is not sampled."""
    return f"Root=1-{int(time.time()):08x}-{random.getrandbits(96):024x};Sampled=0"


class CognitoIdentity:
    """Always there; both are None where no Cognito identity calls."""

    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self) -> None:
        self.cognito_identity_id: str | None = None
        self.cognito_identity_pool_id: str | None = None


class LambdaContext:
    """The second argument of a handler. A plain object, as on AWS, so that handlers may put members on it.

    ``memory_limit_in_mb`` is text: the environment variable as it is.
    """

    def __init__(self, request_id: str, deadline_ms: int, arn: str) -> None:
        given = os.environ.get
        self.aws_request_id = request_id
        self.log_group_name = given("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = given("AWS_LAMBDA_LOG_STREAM_NAME")
        self.function_name = given("AWS_LAMBDA_FUNCTION_NAME")
        self.memory_limit_in_mb = given("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.function_version = given("AWS_LAMBDA_FUNCTION_VERSION")
        self.invoked_function_arn = arn
        self.tenant_id: str | None = None
        self.client_context: object | None = None
        self.identity = CognitoIdentity()
        self._epoch_deadline_time_in_ms = deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation is ended, never below 0."""
        return max(0, self._epoch_deadline_time_in_ms - int(time.time() * 1000))

    def w3c(self) -> dict[str, str]:
        """The caller's trace context; an event source mapping has none."""
        return {}

    def log(self, msg: object) -> None:
        """Write to the function's log, without a line end of its own."""
        sys.stdout.write(str(msg))

    def __repr__(self) -> str:
        shown = ",".join(f"{name}={value}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"LambdaContext([{shown}])"


class LogHandler(logging.Handler):
    """The root logger's handler. ``request_id`` is the invocation's, for every line that is written in it."""

    def __init__(self) -> None:
        super().__init__()
        self.request_id = ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stdout.write(self.format(record))
        except Exception:
            self.handleError(record)

    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = self.request_id
        return bool(super().filter(record))


class JsonFormatter(logging.Formatter):
    """AWS's JSON lines (AWS_LAMBDA_LOG_FORMAT=JSON)."""

    def format(self, record: logging.LogRecord) -> str:
        is_plain = isinstance(record.msg, dict) and not record.args
        line: dict[str, object] = {
            "timestamp": self.formatTime(record, f"{_STAMP}Z"),
            "level": record.levelname,
            "message": record.msg if is_plain else record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["stackTrace"] = traceback.format_tb(record.exc_info[2])
            line["errorType"] = record.exc_info[0].__name__
            line["errorMessage"] = str(record.exc_info[1])
            line["location"] = f"{record.pathname}:{record.funcName}:{record.lineno}"
        line["requestId"] = getattr(record, "aws_request_id", None)
        line |= {name: value for name, value in vars(record).items() if name not in _OWN_MEMBERS}
        return json.dumps(line, ensure_ascii=False, default=str) + "\n"


def set_up_logging() -> LogHandler:
    """Give the root logger AWS's handler, format and level."""
    logging.Formatter.converter = time.gmtime  # as AWS's runtime does, for all formatters
    handler = LogHandler()
    if _is_json():
        handler.setFormatter(JsonFormatter())
    else:
        line = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
        handler.setFormatter(logging.Formatter(line, _STAMP))
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    level = "DEBUG" if level == "TRACE" else level
    root = logging.getLogger()
    if level in logging.getLevelNamesMapping():
        root.setLevel(level)
    root.addHandler(handler)
    return handler


def _is_json() -> bool:
    return os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"


def log_error(error: Mapping[str, object]) -> None:
    """Write an error that ended an invocation, as AWS does: one line, whose parts are joined with CR."""
    if _is_json():
        stamp = time.strftime(f"{_STAMP}Z", time.gmtime())
        text = json.dumps({"timestamp": stamp, "level": "ERROR", **error}, ensure_ascii=False)
    else:
        head = f"[ERROR] {error['errorType']}"
        lines = [f"{head}: {error['errorMessage']}" if error["errorMessage"] else head]
        lines.append("Traceback (most recent call last):")
        trace = error["stackTrace"]
        assert isinstance(trace, list)
        for frame in trace:
            for line in str(frame).splitlines():
                bare = line.lstrip(" ")
                lines.append("\u00a0" * (len(line) - len(bare)) + bare)
        text = "\r".join(lines)
    with contextlib.suppress(Exception):  # the handler may have closed its output
        sys.stdout.write(text + "\n")


class Output:
    """Standard output and error: one pipe to the engine. They are mended when a handler has closed them."""

    def __init__(self) -> None:
        self._spare = os.dup(1)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]

    def settle(self) -> None:
        """Put out what is buffered, so that it comes before the answer."""
        for number, name in ((1, "stdout"), (2, "stderr")):
            try:
                os.fstat(number)
            except OSError:
                os.dup2(self._spare, number)
            stream = getattr(sys, name)
            try:
                stream.flush()
            except Exception:  # closed, or what a handler has put there
                self._reopen(number, name)

    def _reopen(self, number: int, name: str) -> None:
        stream = open(number, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115  # for good
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
