"""Where log lines go: stderr, as text for people or, with --json, as one JSON object a line."""

from __future__ import annotations

import datetime as dt
import logging
import sys
from typing import TextIO

import orjson

#: aiokafka reports each failed try of a connection as an error; headrace says what matters of it itself.
CHATTY = ("aiokafka", "aiokafka.conn", "aiokafka.cluster")

#: What functions print is logged under this name and their own.
FUNCTIONS = "headrace.function."


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        who = f"{record.name.removeprefix(FUNCTIONS)}: " if record.name.startswith(FUNCTIONS) else ""
        text = f"{time} {level}{who}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


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
