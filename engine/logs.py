"""Where log lines go: stderr, as text for people or, with --json, as one JSON object a line.

A line knows what it is about (pipeline, partition, trace, ...) by `about` and `task_is_about`, which hold for what
is done inside, tasks and threads that are started there included; and by ``extra`` of the call. Values that are
given to `hide` appear in no line.

Not here: what functions print before it is logged (`functions.environments.logs`).
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import TextIO

import orjson
from pydantic import BaseModel, SecretStr

from engine.errors import HandlerError, HeadraceError

#: aiokafka reports each failed try of a connection as an error; headrace says what matters of it itself.
CHATTY = ("aiokafka", "aiokafka.conn", "aiokafka.cluster")

#: What functions print is logged under this name and their own.
FUNCTIONS = "headrace.function."

#: What a line may say beside its message, as members of the JSON object, in this order.
FIELDS = (
    "pipeline",
    "topic",
    "partition",
    "offset",
    "offset_end",
    "records",
    "attempt",
    "request_id",
    "trace_id",
    "span_id",
)

#: A shorter secret is also a word of ordinary text, which would be made unreadable.
HIDDEN_CHARACTERS_MIN = 6
HIDDEN = "**********"

#: Variables that hold secrets, beside those of the configuration.
SECRET_VARIABLES = (
    "HEADRACE_SASL_PASSWORD",
    "HEADRACE_REGISTRY_PASSWORD",
    "HEADRACE_WEB_TOKEN",
    "HEADRACE_QUERY_TOKEN",
    "OTEL_EXPORTER_OTLP_HEADERS",
)

_ABOUT: ContextVar[Mapping[str, object] | None] = ContextVar("headrace_log_about", default=None)

#: Longest first, so that none is left half shown by one that it contains.
_hidden: tuple[str, ...] = ()


class about:  # noqa: N801 - reads as a word: with logs.about(pipeline=name)
    """Everything that is logged inside is about these ``fields`` (of `FIELDS`) too. For one use, in one task."""

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: object) -> None:
        self._fields = _known(fields)
        self._token: Token[Mapping[str, object] | None] | None = None

    def __enter__(self) -> None:
        self._token = _ABOUT.set({**(_ABOUT.get() or {}), **self._fields})

    def __exit__(self, *_error: object) -> None:
        assert self._token is not None
        _ABOUT.reset(self._token)


def task_is_about(**fields: object) -> None:
    """Everything that the running task logs from here on, and what it starts, is about these ``fields`` too."""
    _ABOUT.set({**(_ABOUT.get() or {}), **_known(fields)})


def _known(fields: dict[str, object]) -> dict[str, object]:
    assert fields.keys() <= set(FIELDS), f"a log line has no {sorted(fields.keys() - set(FIELDS))}"
    return fields


def hide(secrets: Iterable[str]) -> None:
    """From now on no line shows one of these texts; those too short to be told from words are left out."""
    global _hidden
    known = {*_hidden, *(each for each in secrets if len(each) >= HIDDEN_CHARACTERS_MIN)}
    _hidden = tuple(sorted(known, key=lambda each: (-len(each), each)))


def secrets_of(config: object) -> Iterator[str]:
    """Every secret of a configuration, and of the environment's variables that hold some."""
    yield from _secrets_in(config)
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        yield value
        if name.endswith("_HEADERS"):  # NAME=VALUE[,NAME=VALUE...]
            yield from (pair.partition("=")[2].strip() for pair in value.split(","))


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _secrets_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _secrets_in(each)


def shown(text: str) -> str:
    """``text`` without hidden values."""
    for secret in _hidden:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        who = f"{record.name.removeprefix(FUNCTIONS)}: " if record.name.startswith(FUNCTIONS) else ""
        text = f"{time} {level}{who}{record.getMessage()}"
        return shown(f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text)


class JsonFormatter(logging.Formatter):
    """``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``; where there are any the members of `FIELDS`,

    ``function``, and of an error ``error_type``, ``error_domain`` (user, external, internal), ``error_retry``,
    ``hint`` and ``exception`` (the traceback). The error is the one being handled, that of ``extra["error"]``, or
    an argument of the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.name.startswith(FUNCTIONS):
            line["function"] = record.name.removeprefix(FUNCTIONS)
        around = _ABOUT.get() or {}
        for name in FIELDS:
            value = getattr(record, name, None)
            value = around.get(name) if value is None else value
            if value is not None:
                line[name] = value
        error = _error_of(record)
        if error is not None:
            line |= _described(error)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if _hidden:
            line = {name: shown(value) if isinstance(value, str) else value for name, value in line.items()}
        return orjson.dumps(line, default=str).decode()


def _error_of(record: logging.LogRecord) -> BaseException | None:
    given = getattr(record, "error", None)
    if isinstance(given, BaseException):
        return given
    if record.exc_info and record.exc_info[1] is not None:
        return record.exc_info[1]
    arguments = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    return next((each for each in arguments if isinstance(each, BaseException)), None)


def _described(error: BaseException) -> dict[str, object]:
    kind = error.error_type if isinstance(error, HandlerError) else type(error).__name__
    described: dict[str, object] = {"error_type": kind}
    if isinstance(error, HeadraceError):
        described |= {"error_domain": error.domain.name.lower(), "error_retry": error.retry}
        if error.hint is not None:
            described["hint"] = error.hint
    return described


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment: a progress bar puts itself in its place while it shows."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(*, json: bool = False, verbose: bool = False) -> None:
    """Set up logging for a command. ``verbose`` adds a line for each batch."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("headrace").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING if verbose else logging.CRITICAL)
