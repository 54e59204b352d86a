"""`headrace dlq`: failed records, and sending them again. Formats only; `engine.compose.dlq` acts."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from engine import config_file, logs
from engine.cli.options import Bootstrap
from engine.cli.progress import ProgressReport
from engine.errors import HeadraceError, UserError

if TYPE_CHECKING:
    from engine.compose.dlq import Entry, Listing, Replay

LIMIT = 50
LIMIT_MAX = 100_000

#: Of a reason, and with --full of a key or value, on a line.
REASON_CHARACTERS = 90
DATA_CHARACTERS = 2_000

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_FILE = typer.Argument(metavar="FILE", help="The configuration, usually headrace.toml.")
_PIPELINES = typer.Option("--pipeline", metavar="NAME", help="This one only; all that report failures if left out.")
_LIMIT = typer.Option("--limit", metavar="N", min=1, max=LIMIT_MAX, help="Show the newest N of each pipeline.")
_JSON = typer.Option("--json", help="Print one JSON document.")
_FULL = typer.Option("--full", help="Keys, values, headers and whole reasons as well.")
_PIPELINE = typer.Option("--pipeline", metavar="NAME", help="Whose records; NAME.retry: those that failed again.")
_TYPE = typer.Option("--error-type", metavar="TYPE", help="Only those; `headrace dlq list` shows the types.")
_PARTITION = typer.Option("--partition", metavar="P", min=0, help="Only those of this partition.")
_OFFSET = typer.Option("--offset", metavar="O", min=0, help="Only this one; goes with --partition.")
_SINCE = typer.Option("--since", metavar="TIME", help="Only those reported since, as in 2026-03-01T08:00Z.")
_DRY = typer.Option("--dry-run", help="Say what would be sent, and send nothing.")


@app.command("list")
def list_(
    file: Annotated[Path, _FILE],
    pipeline: Annotated[str | None, _PIPELINES] = None,
    limit: Annotated[int, _LIMIT] = LIMIT,
    bootstrap: Bootstrap = None,
    as_json: Annotated[bool, _JSON] = False,
    full: Annotated[bool, _FULL] = False,
) -> None:
    """Show failed records with their cause, newest last, and how many of each error type there are.

    They are read from the on-failure destination that the configuration names; what waits in the sink to be
    delivered is shown as well where it can be looked into. Each record is shown once, however often it was
    delivered. Changes nothing; the pipelines may run meanwhile.

    \b
        headrace dlq list headrace.toml
        headrace dlq list headrace.toml --pipeline clicks --limit 5 --full
    """
    from engine.compose import dlq as compose

    logs.configure(json=as_json)
    config = config_file.load(file)
    names = [pipeline] if pipeline is not None else _reporting(config.pipelines)
    found: list[Listing] = []
    failed: list[tuple[str, HeadraceError]] = []
    for name in names:
        with ProgressReport(f"{name}: reading") as report:
            try:
                found.append(
                    asyncio.run(compose.show(config, name, limit=limit, bootstrap=bootstrap, tell=report.update))
                )
            except HeadraceError as error:
                failed.append((name, error))
    if as_json:
        typer.echo(_document(found, failed, full))
    else:
        typer.echo("\n\n".join("\n".join(_lines(each, full)) for each in found))
    for name, failure in failed:
        typer.echo(f"error: {name}: {failure}", err=True)
    if failed:
        raise typer.Exit(max(failure.domain for _, failure in failed))


@app.command()
def replay(
    file: Annotated[Path, _FILE],
    pipeline: Annotated[str, _PIPELINE],
    error_type: Annotated[str | None, _TYPE] = None,
    partition: Annotated[int | None, _PARTITION] = None,
    offset: Annotated[int | None, _OFFSET] = None,
    since: Annotated[str | None, _SINCE] = None,
    dry_run: Annotated[bool, _DRY] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Send failed records again, each once, to the topic NAME.retry, which that pipeline alone reads.

    Needs source.destination_config.replay = true: `headrace run` then runs the function on that topic too. However
    often this is run, or killed, no record is sent twice; one that fails again is another failed record, of
    topic NAME.retry, and can be sent again. Key, value, headers and timestamp are as they were, with headers
    headrace.* behind them that say which record it was.

    \b
        headrace dlq replay headrace.toml --pipeline clicks --dry-run
        headrace dlq replay headrace.toml --pipeline clicks --error-type KeyError --since 2026-03-01T08:00Z
        headrace dlq replay headrace.toml --pipeline clicks --partition 3 --offset 1200

    Exit codes: 0 sent, or nothing was left to send, 2 refused, 3 something outside (broker).
    """
    from engine.compose import dlq as compose

    logs.configure()
    if offset is not None and partition is None:
        raise UserError("--offset goes with --partition: the offset means another record in each partition")
    selection = compose.Selection(error_type, partition, offset, _milliseconds(since))
    config = config_file.load(file)
    with ProgressReport(f"{pipeline}: replaying") as report:
        work = compose.replay(config, pipeline, selection, dry_run=dry_run, bootstrap=bootstrap, tell=report.update)
        done = asyncio.run(work)
    typer.echo("\n".join(_replayed(done)))


def _reporting(pipelines: dict[str, Any]) -> list[str]:
    """The pipelines that have a destination. Raises UserError if none has."""
    names = [name for name, each in pipelines.items() if each.source.destination_config.on_failure is not None]
    if not names:
        raise UserError(
            "no pipeline has an on-failure destination, so failed records are nowhere to be found",
            hint='set source.destination_config.on_failure = "kafka://TOPIC" or "file:PATH"',
        )
    return names


def _milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--since is {text!r}; valid is a time like 2026-03-01T08:00Z") from None
    if time.tzinfo is None:
        raise UserError(
            f"--since is {text!r}, a time without a zone",
            hint="add one, as in 2026-03-01T08:00Z or 2026-03-01T08:00+02:00",
        )
    return int(time.timestamp() * 1000)


def _replayed(done: Replay) -> list[str]:
    word = "would be sent" if done.dry_run else "sent"
    lines = [f"{done.pipeline}: {_count(done.sent, 'record')} {word} to {done.topic}"]
    lines += [f"  {identity}" for identity in done.identities]
    if len(done.identities) < done.sent and done.dry_run:
        lines.append(f"  and {done.sent - len(done.identities):,} more")
    if done.before:
        lines.append(f"sent before: {done.before:,}")
    if done.unreadable:
        lines.append(f"lines or messages of the destination that are no failed records: {done.unreadable:,}")
    return lines


def _lines(found: Listing, full: bool) -> list[str]:
    lines = [f"{found.pipeline}: {_count(found.records, 'failed record')} in {found.destination}"]
    if found.records > len(found.entries):
        lines[0] += f", the newest {len(found.entries)} of them"
    rows = [_row(entry) for entry in found.entries]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(5)]
    for row, entry in zip(rows, found.entries, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)]
        lines.append(f"  {'  '.join(cells)}  {row[5]}".rstrip())
        if full:
            lines += [f"      {line}" for line in _whole(entry)]
    if found.records:
        lines.append("by error type:")
        lines += [f"  {count:>9,}  {_plain(kind)}" for kind, count in found.error_types.most_common()]
    lines += _notes(found)
    return lines


def _notes(found: Listing) -> list[str]:
    notes = []
    if found.replayed:
        notes.append(f"sent again: {found.replayed:,}")
    if found.waiting:
        notes.append(f"in the sink, to be delivered: {found.waiting:,}")
    if found.unknown is not None:
        more = "whether more" if found.waiting else "how many"
        notes.append(f"{more} wait in the sink to be delivered is not known: {found.unknown}")
    if found.copies:
        notes.append(f"second deliveries, left out: {found.copies:,}")
    if found.unreadable:
        notes.append(f"lines or messages that are no failed records: {found.unreadable:,}")
    return notes


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _row(entry: Entry) -> list[str]:
    record, identity = entry.failure.record, entry.failure.identity
    state = "in sink" if entry.waits else "replayed" if entry.replayed else ""
    attempts = "not tried" if not record.attempts else _count(record.attempts, "attempt")
    reason = _plain(" ".join(record.reason.split()))
    if len(reason) > REASON_CHARACTERS:
        reason = f"{reason[: REASON_CHARACTERS - 3]}..."
    return [_time(entry.failure.reported_at), str(identity), _plain(record.error_type), attempts, state, reason]


def _whole(entry: Entry) -> list[str]:
    record = entry.failure.record
    lines = [f"reason   {_plain(line)}" for line in record.reason.splitlines()]
    lines.append(f"request  {record.request_id or '-'}")
    lines.append(f"time     {_time(record.timestamp)}")
    lines += [f"header   {_plain(name)} = {_shown(value)}" for name, value in record.headers]
    return [*lines, f"key      {_shown(record.key)}", f"value    {_shown(record.value)}"]


def _shown(data: bytes | None) -> str:
    """Bytes as text on one line; what is no text, as Python has it."""
    if data is None:
        return "null"
    cut = data[:DATA_CHARACTERS]
    more = f"... ({len(data):,} bytes)" if len(data) > DATA_CHARACTERS else ""
    try:
        text = cut.decode("utf-8", "strict" if cut is data else "ignore")
    except UnicodeDecodeError:
        return f"{cut!r}{more}"
    return f"{_plain(text)}{more}"


def _plain(text: str) -> str:
    """Text for a terminal: what came with records must not move its cursor."""
    return text if text.isprintable() else repr(text)


def _time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "-"
    try:
        time = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return str(milliseconds)
    return f"{time:%Y-%m-%d %H:%M:%S}"


def _document(found: list[Listing], failed: list[tuple[str, HeadraceError]], full: bool) -> str:
    pipelines: list[dict[str, object]] = [
        {
            "pipeline": each.pipeline,
            "destination": each.destination,
            "records": each.records,
            "error_types": dict(each.error_types.most_common()),
            "replayed": each.replayed,
            "waiting_in_sink": each.waiting,
            "waiting_unknown": each.unknown,
            "second_deliveries": each.copies,
            "unreadable": each.unreadable,
            "failures": [_entry(entry, full) for entry in each.entries],
        }
        for each in found
    ]
    pipelines += [{"pipeline": name, "error": error.message} for name, error in failed]
    return orjson.dumps({"pipelines": pipelines}, option=orjson.OPT_INDENT_2).decode()


def _entry(entry: Entry, full: bool) -> dict[str, object]:
    record, identity = entry.failure.record, entry.failure.identity
    shown: dict[str, object] = {
        "pipeline": identity.pipeline,
        "cluster_id": identity.cluster_id,
        "topic": identity.topic,
        "topic_id": identity.topic_id,
        "partition": identity.partition,
        "offset": identity.offset,
        "timestamp": record.timestamp,
        "reported_at": entry.failure.reported_at,
        "condition": entry.failure.condition,
        "error_type": record.error_type,
        "reason": record.reason,
        "attempts": record.attempts,
        "request_id": record.request_id,
        "waits_in_sink": entry.waits,
        "replayed": entry.replayed,
    }
    if full:
        shown |= {
            "key": _base64(record.key),
            "value": _base64(record.value),
            "headers": [{"key": name, "value": _base64(value)} for name, value in record.headers],
        }
    return shown


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")
