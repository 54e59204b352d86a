"""`headrace invoke`: a handler over the lines of a file, without a broker and without a sink.

Not here: how handlers are built (`engine.compose.handlers`) and how values are decoded (`engine.values`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, time
from pathlib import Path
from time import monotonic
from time import time as unix_seconds
from typing import IO, Annotated, Literal

import orjson
import pyarrow as pa
import typer

from engine.batch import Batch, from_rows
from engine.compose.handlers import (
    KINDS,
    EventSettings,
    Report,
    build_handler,
    error_payload,
    faults_of,
    report_line,
)
from engine.config import EVENT_KINDS, VARIABLE
from engine.context import Context
from engine.errors import FunctionError, HeadraceError, UserError
from engine.processing import without
from engine.protocols import Fault, Handler, Invocation, Result
from engine.values import Decoded, Decoder, JsonDecoder, RawDecoder, TextDecoder, infer

FUNCTION_NAME = "invoke"

_STDIN = "-"


_HANDLER = typer.Argument(metavar="MODULE.FUNCTION", help="The handler; left out for kind sql and --command.")
_EVENTS = typer.Argument(metavar="EVENTS.jsonl", help="One record's value per line; - is standard input.")
_KIND = typer.Option(help=f"How the handler is called: {', '.join(KINDS)}.")
_QUERY = typer.Option(help="For kind sql: a query over `batch`.")
_SIZE = typer.Option(min=1, max=1_000_000, help="Records per call.")
_FORMAT = typer.Option("--format", help="How lines are decoded for rows, arrow and sql.")
_COLUMNS = typer.Option(help='Typed columns, as "a BIGINT, b VARCHAR"; inferred when left out.')
_TIMEOUT = typer.Option(min=0.001, max=900, help="Seconds per call.")
_MEMORY = typer.Option(min=128, max=10_240, help="MB that a function of an event kind may take; 128 when left out.")
_ENVIRONMENT = typer.Option(metavar="NAME=VALUE", help="A variable of the function's environment; may be repeated.")
_COMMAND = typer.Option(help="A program that speaks the Lambda Runtime API, to run instead of a Python handler.")
_JSON = typer.Option("--json", help="Faults, errors and the closing line as JSON.")


def invoke(
    handler: Annotated[str, _HANDLER],
    events: Annotated[str | None, _EVENTS] = None,
    kind: Annotated[str, _KIND] = "",
    query: Annotated[str | None, _QUERY] = None,
    batch_size: Annotated[int, _SIZE] = 100,
    value_format: Annotated[Literal["json", "text", "raw"], _FORMAT] = "json",
    columns: Annotated[str | None, _COLUMNS] = None,
    timeout: Annotated[float, _TIMEOUT] = 30.0,
    memory_size: Annotated[int | None, _MEMORY] = None,
    environment: Annotated[list[str] | None, _ENVIRONMENT] = None,
    command: Annotated[str | None, _COMMAND] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Call a handler with the lines of a file, and print the rows it returns.

    No broker is needed: each line becomes a record, and its offset is the
    line's number counted from 0. Rows go to standard output as JSON lines.
    What the handler prints, records that cannot be decoded, and a closing
    line go to standard error.

    Handlers of Lambda's event kinds (kinesis, kafka, dynamodb, firehose) run
    as they do on AWS: in a process of their own, bounded in time and memory,
    with a REPORT line for each call.

    \b
      # app.py
      def handler(event, context):
          return {"rows": [r["kinesis"] for r in event["Records"]]}

    \b
      headrace invoke app.handler events.jsonl --kind kinesis
      headrace invoke events.jsonl --kind sql --query "SELECT avg(x) FROM batch"

    Exit codes: 0, or 2 when the file, the options or the handler are at fault.
    """
    report = _Report(as_json)
    try:
        name, source = _what_to_run(kind, handler, events, query, command)
        given = _event_options(kind, memory_size, environment, command)
        settings = replace(given, logs=lambda _: _FunctionOutput(), on_report=report.invoked)
        made = build_handler(kind=kind, handler=name, query=query, timeout_seconds=timeout, events=settings)
        decoding = _decoding(made, kind, value_format, columns)
        # What the handler prints must not run into the rows.
        rows_out = sys.stdout
        with contextlib.redirect_stdout(sys.stderr), _lines(source) as lines:
            batches = _batches(_topic(source), lines, batch_size, keep_blank=value_format != "json")
            asyncio.run(_run(made, name or "function", decoding, batches, timeout, rows_out, report))
    except HeadraceError as error:
        report.error(error)
        raise typer.Exit(int(error.domain)) from None
    except _Raised as raised:
        report.raised(raised.cause, raised.request_id)
        raise typer.Exit(2) from None


def _what_to_run(
    kind: str, handler: str, events: str | None, query: str | None, command: str | None
) -> tuple[str | None, str]:
    """The handler's name, None for a query and for a program that is told of none, and the file."""
    if not kind:
        raise UserError(f"--kind is missing; kinds are {', '.join(KINDS)}")
    if kind == "sql":
        if events is not None or query is None:
            given = f"; {handler!r} stands in the place of one" if events is not None else ""
            raise UserError(
                f"kind sql takes a query over `batch`, and no handler{given}",
                hint='the query goes with --query: headrace invoke EVENTS.jsonl --kind sql --query "SELECT ..."',
            )
        return None, handler
    if events is not None:
        return handler, events
    if command is not None:
        return None, handler
    raise UserError("EVENTS.jsonl is missing", hint=f"headrace invoke MODULE.FUNCTION EVENTS.jsonl --kind {kind}")


def _event_options(
    kind: str, memory_size_mb: int | None, environment: list[str] | None, command: str | None
) -> EventSettings:
    """What is told of the function's process. Raises UserError for options that are malformed or do not apply."""
    for option, is_given in (
        ("--memory-size", memory_size_mb is not None),
        ("--environment", environment is not None),
        ("--command", command is not None),
    ):
        if is_given and kind not in EVENT_KINDS:
            kinds = ", ".join(each for each in KINDS if each in EVENT_KINDS)
            raise UserError(
                f"{option} is for functions that run in processes of their own, not for {kind}: {kinds}"
            )
    variables: dict[str, str] = {}
    for each in environment or ():
        name, sign, value = each.partition("=")
        if not sign or not VARIABLE.fullmatch(name):
            # The value may be a secret.
            raise UserError(f"--environment: {name!r} is not the start of NAME=VALUE", hint="as TABLE=orders")
        variables[name] = value
    try:
        words = shlex.split(command) if command is not None else []
    except ValueError as error:
        raise UserError(f"--command: {error}") from None
    if command is not None and not words:
        raise UserError("--command is empty")
    return EventSettings(
        function_name=FUNCTION_NAME,
        runtime="python" if command is None else "provided",
        command=words,
        variables=variables,
        memory_size_mb=memory_size_mb or 128,
        reserved_concurrency=1,
    )


class _FunctionOutput:
    """A log that is standard error; the platform's lines are `_Report.invoked`'s to write."""

    def write(self, data: bytes) -> None:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()

    def platform(self, line: str) -> None:
        pass


class _Raised(Exception):
    def __init__(self, cause: Exception, request_id: str) -> None:
        self.cause = cause
        self.request_id = request_id


@dataclass(slots=True)
class _Decoding:
    """The decoder of the run's values, made from the first batch where columns are to be inferred."""

    value_format: str
    columns: Mapping[str, str] | None
    _decoder: Decoder | None = field(default=None, init=False)

    def decode(self, batch: Batch) -> Decoded:
        if self._decoder is None:
            self._decoder = self._make(batch)
        return self._decoder.decode(batch)

    def _make(self, batch: Batch) -> Decoder:
        if self.value_format == "text":
            return TextDecoder()
        if self.value_format == "raw":
            return RawDecoder()
        try:
            return JsonDecoder(infer(batch) if self.columns is None else self.columns, rest=True)
        except ValueError as error:
            raise UserError(f"--columns: {error}" if self.columns is not None else str(error)) from None


def _decoding(handler: Handler, kind: str, value_format: str, columns: str | None) -> _Decoding | None:
    if columns is not None and not handler.wants_columns:
        raise UserError(f"--columns is for kinds that are called with columns, not for {kind}")
    if columns is not None and value_format != "json":
        raise UserError(f"--columns goes with --format json, not with {value_format}")
    return _Decoding(value_format, _columns(columns)) if handler.wants_columns else None


class _Report:
    """What goes to standard error, as text or as one JSON object per line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._started = monotonic()
        self.records = 0
        self.rows = 0
        self.failed = 0
        self.dropped = 0

    def _write(self, text: str, **fields: object) -> None:
        sys.stderr.write((_dumps(fields).decode() if self._as_json else text) + "\n")

    def fault(self, fault: Fault) -> None:
        self.failed += 1
        line = fault.offset + 1
        self._write(
            f"line {line} (offset {fault.offset}): {fault.reason}",
            fault={"line": line, "offset": fault.offset, "reason": fault.reason},
        )

    def error(self, error: HeadraceError) -> None:
        fields = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        self._write(f"error: {error}", error=fields)

    def invoked(self, invocation: Report) -> None:
        self._write(report_line(invocation), report=asdict(invocation))

    def raised(self, error: Exception, request_id: str) -> None:
        """The payload that a caller of the function would get on AWS."""
        payload = _payload(error, request_id)
        said = f"{payload['errorType']}: {payload['errorMessage']}"
        # The platform's own types have a dot: Runtime.ExitError, Sandbox.Timedout.
        self._write(
            (f"error: {said}\n" if "." in str(payload["errorType"]) else f"error: the handler raised {said}\n")
            + orjson.dumps(payload, option=orjson.OPT_INDENT_2).decode(),
            error=payload,
        )

    def close(self) -> None:
        milliseconds = round((monotonic() - self._started) * 1000)
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        self._write(
            f"{self.records} records, {self.rows} rows, {self.failed} failed{dropped}, {milliseconds} ms",
            records=self.records,
            rows=self.rows,
            failed=self.failed,
            dropped=self.dropped,
            milliseconds=milliseconds,
        )


def _payload(error: Exception, request_id: str) -> dict[str, object]:
    if not isinstance(error, FunctionError):
        return error_payload(error, request_id)
    return {
        "errorMessage": error.message,
        "errorType": error.error_type,
        "requestId": request_id,
        "stackTrace": error.stack_trace,
    }


async def _run(
    handler: Handler,
    name: str,
    decoding: _Decoding | None,
    batches: Iterator[Batch],
    timeout_seconds: float,
    rows_out: IO[str],
    report: _Report,
) -> None:
    find = faults_of(handler)
    try:
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            report.records += len(batch)
            decoded = None
            if find is not None:
                faults = await asyncio.to_thread(find, batch)
                for fault in faults:
                    report.fault(fault)
                batch = without(batch, {fault.offset: fault for fault in faults})
                if not len(batch):
                    continue
            if decoding is not None:
                found = await asyncio.to_thread(decoding.decode, batch)
                for fault in found.faults:
                    report.fault(fault)
                report.dropped += found.dropped
                decoded = found.columns
                if decoded.num_rows == 0:
                    continue
            result = await _call(handler, name, batch, decoded, timeout_seconds)
            for fault in result.faults:
                report.fault(fault)
            report.dropped += result.dropped
            report.rows += await asyncio.to_thread(_print_rows, result, rows_out)
    finally:
        await handler.close()
    report.close()


async def _call(
    handler: Handler, name: str, batch: Batch, columns: pa.RecordBatch | None, timeout_seconds: float
) -> Result:
    deadline_ms = int((unix_seconds() + timeout_seconds) * 1000)
    context = Context(function_name=name, memory_limit_in_mb="128", deadline_ms=deadline_ms)
    try:
        return await handler.invoke(Invocation(batch, columns, context))
    except HeadraceError as error:
        if isinstance(error, FunctionError):
            raise _Raised(error, context.aws_request_id) from error
        raise
    except Exception as error:
        raise _Raised(error, context.aws_request_id) from error


def _print_rows(result: Result, rows_out: IO[str]) -> int:
    rows: Sequence[Mapping[str, object]] | None
    rows = result.rows.to_pylist() if isinstance(result.rows, pa.Table) else result.rows
    if not rows:
        return 0
    rows_out.write("".join(_dumps(row).decode() + "\n" for row in rows))
    rows_out.flush()
    return len(rows)


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # a whole number beyond 64 bits or half a surrogate pair, which orjson does not write
        text = json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def _plain(value: object) -> object:
    """What JSON has no form for: bytes as text, else as base64; times as ISO 8601; the rest as its text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


@contextlib.contextmanager
def _lines(source: str) -> Iterator[Iterable[bytes]]:
    if source == _STDIN:
        yield sys.stdin.buffer
        return
    try:
        with Path(source).open("rb") as file:
            yield file
    except OSError as error:
        if error.filename != source:
            raise
        raise UserError(
            f"cannot read {source}: {error.strerror}", hint="name a file with one record's value per line, or -"
        ) from None


def _topic(source: str) -> str:
    """A topic's name for the events of a file: its stem, in the characters that Kafka allows."""
    stem = "stdin" if source == _STDIN else Path(source).stem
    return re.sub(r"[^a-zA-Z0-9._-]", "_", stem)[:249] or "events"


def _batches(topic: str, lines: Iterable[bytes], batch_size: int, *, keep_blank: bool) -> Iterator[Batch]:
    """Records from lines. Blank lines of JSON lines are no records, but count as lines."""
    now_ms = int(unix_seconds() * 1000)
    stripped = ((offset, line.rstrip(b"\r\n")) for offset, line in enumerate(lines))
    records = ((offset, now_ms, None, line, ()) for offset, line in stripped if keep_blank or line.strip())
    start = 0
    while rows := list(itertools.islice(records, batch_size)):
        end = rows[-1][0] + 1
        yield from_rows(topic, 0, rows, start=start, end=end)
        start = end


def _columns(text: str | None) -> dict[str, str] | None:
    """Names and types of ``--columns``; commas inside parentheses belong to a type, quotes may hold a name."""
    if text is None:
        return None
    found: dict[str, str] = {}
    for part in re.split(r",(?![^(]*\))", text):
        match = re.fullmatch(r'\s*(?:"(?P<quoted>[^"]+)"|(?P<name>[^\s"]+))\s+(?P<type>\S.*?)\s*', part)
        if match is None:
            raise UserError(
                f"--columns: {part.strip()!r} is not a name and a type", hint='as "a BIGINT, b VARCHAR"'
            )
        name = match["quoted"] or match["name"]
        if name in found:
            raise UserError(f"--columns: {name!r} is given twice")
        found[name] = match["type"]
    return found
