"""`headrace filter`: tries a pattern on the lines of a file. `engine.filters` judges, this reads and prints."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer

from engine.errors import UserError
from engine.filters import FILTERS_MAX, InvalidPattern, Pattern
from engine.filters.json_text import parse
from engine.filters.pattern import too_many
from engine.filters.trial import Trial

_STDIN = "-"

#: Of one line; a longer one is named and passed over. (A Lambda event has 6 MB at most.)
LINE_BYTES_MAX = 64 * 1024 * 1024

#: Of a file with a pattern, or with the JSON of AWS's FilterCriteria.
PATTERN_FILE_BYTES_MAX = 1024 * 1024

_PATTERN = typer.Argument(metavar="PATTERN", help="The pattern as JSON, or a file that holds it.")
_EVENTS = typer.Argument(metavar="EVENTS.jsonl", help="One event per line; - is standard input.")
_INVERT = typer.Option("--invert-match", "-v", help="The events that do not match instead.")
_COUNT = typer.Option("--count", "-c", help="Only the number of such events.")


def filter_events(
    pattern: Annotated[str, _PATTERN],
    events: Annotated[str, _EVENTS],
    invert_match: Annotated[bool, _INVERT] = False,
    count: Annotated[bool, _COUNT] = False,
) -> None:
    """Try a Lambda filter pattern: print the events that match, unchanged.

    A line is plain JSON, which the pattern is matched against as a whole; or a
    record of a Kinesis, Kafka, DynamoDB or Firehose event, whose payload the
    pattern finds decoded under `data` or `value`; or a whole Lambda event, which
    matches if one of its records does. A line that is no JSON object is named on
    standard error, and costs only itself.

    \b
      headrace filter '{"type": ["click"]}' events.jsonl
      headrace filter '{"price": [{"numeric": [">", 10, "<=", 20]}]}' events.jsonl
      headrace filter '{"page": [{"prefix": "/cart"}], "user": {"id": [{"exists": true}]}}' events.jsonl
      headrace filter '{"country": [{"anything-but": ["DE", "FR"]}]}' events.jsonl --count
      headrace filter '{"$or": [{"a": [1]}, {"b": [null]}]}' events.jsonl
      headrace filter '{"data": {"type": ["click"]}}' kinesis-records.jsonl
      headrace filter pattern.json - < events.jsonl

    The file may also hold what AWS takes as filter criteria:
    {"Filters": [{"Pattern": "{...}"}, ...]}; one of them has to match.

    Exit codes: 0 if any event was chosen, 1 if none was, 2 for a pattern that
    AWS refuses (with its words), or a file that cannot be read.
    """
    trial = Trial(_patterns(pattern))
    chosen = 0
    try:
        for number, line in _lines(events):
            if line is None:
                typer.echo(f"{events}:{number}: more than {LINE_BYTES_MAX:,} bytes; passed over", err=True)
                continue
            try:
                matched = _matches(trial, line)
            except ValueError as error:
                typer.echo(f"{events}:{number}: {error}", err=True)
                continue
            if matched != invert_match:
                chosen += 1
                if not count:
                    typer.echo(line if line.endswith(b"\n") else line + b"\n", nl=False)
        if count:
            typer.echo(str(chosen))
    except BrokenPipeError:  # the reader has had enough; what is still to be flushed must not complain at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not chosen:
        raise typer.Exit(1)


def _matches(trial: Trial, line: bytes) -> bool:
    """Whether a line matches. Raises ValueError, with a sentence, for one that is no event."""
    try:
        event = parse(line.decode())
    except UnicodeDecodeError:
        raise ValueError("no JSON: not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(event, dict):
        raise ValueError("no JSON object")
    return trial.matches(event)


def _patterns(text: str) -> list[Pattern]:
    """The patterns of the argument: JSON as it stands, or in a file."""
    if not text.lstrip().startswith("{"):
        text = _file(text)
    with contextlib.suppress(ValueError):
        document = parse(text)
        listed = document.get("Filters") if isinstance(document, dict) else None
        if isinstance(listed, list) and all(isinstance(each, dict) and "Pattern" in each for each in listed):
            texts = [each["Pattern"] for each in listed]
            if texts and all(isinstance(each, str) for each in texts):
                if len(texts) > FILTERS_MAX:
                    too_many(len(texts), FILTERS_MAX)
                return list(map(Pattern.of, texts))
    return [Pattern.of(text)]


def _file(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            octets = file.read(PATTERN_FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise InvalidPattern("It is no JSON object, and there is no file of that name.", name) from None
        raise UserError(
            f"cannot read the pattern {name[:200]!r}: {error.strerror}", hint="give JSON, or a file that holds it"
        ) from None
    if len(octets) > PATTERN_FILE_BYTES_MAX:
        raise UserError(f"the pattern's file {name} has more than {PATTERN_FILE_BYTES_MAX:,} bytes")
    try:
        return octets.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"the pattern's file {name} is not UTF-8") from None


def _lines(source: str) -> Iterator[tuple[int, bytes | None]]:
    """Numbers and lines that are not blank; None for a line that is too long."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = sys.stdin.buffer
        if source != _STDIN:
            try:
                file = stack.enter_context(Path(source).open("rb"))
            except OSError as error:
                raise UserError(
                    f"cannot read {source}: {error.strerror}", hint="name a file with one event per line, or -"
                ) from None
        number = 0
        while line := file.readline(LINE_BYTES_MAX):
            number += 1
            if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES_MAX)
                yield number, None
            elif line.strip():
                yield number, line
