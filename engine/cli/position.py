"""`headrace position`: where pipelines stand, and moving them. Formats only; `engine.compose.position` acts."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer

from engine import config_file, logs
from engine.cli.options import Bootstrap
from engine.errors import HeadraceError, UserError

if TYPE_CHECKING:
    from engine.compose.position import ShardPosition

OFFSET_MAX = 2**63 - 1

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_FILE = typer.Argument(metavar="FILE", help="The configuration, usually headrace.toml.")
_PIPELINES = typer.Option("--pipeline", metavar="NAME", help="This one only; all when left out.")
_JSON = typer.Option("--json", help="Print one JSON document.")
_PIPELINE = typer.Option("--pipeline", metavar="NAME", help="The pipeline that is moved.")
_TO = typer.Option("--to", metavar="WHERE", help="earliest, latest, an offset, or a time like 2026-03-01T08:00Z.")
_PARTITIONS = typer.Option("--partition", metavar="N", min=0, help="Of this one; repeat it for more; else of all.")
_SKIP = typer.Option("--skip", help="Confirm that the records in between are passed by for good.")

COLUMNS = ("pipeline", "topic", "partition", "position", "log start", "last stable", "lag", "group offset", "")


@app.command()
def show(
    file: Annotated[Path, _FILE],
    pipeline: Annotated[str | None, _PIPELINES] = None,
    bootstrap: Bootstrap = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show each shard's position: the offset of the next record, as the sink has it.

    Beside it where the log starts and ends (the last stable offset), how many records are between, and the
    group offset, which follows the sink and decides nothing. Nothing is changed, and a pipeline that writes
    Parquet may run meanwhile; a DuckDB file can be read only while nobody writes to it.

    Example:  headrace position show headrace.toml --pipeline clicks
    """
    from engine.compose import position as compose

    logs.configure(json=as_json)
    config = config_file.load(file)
    found: list[tuple[str, list[ShardPosition]]] = []
    failed: list[tuple[str, HeadraceError]] = []
    for name in [pipeline] if pipeline is not None else config.pipelines:
        try:
            found.append((name, asyncio.run(compose.show(config, name, bootstrap=bootstrap))))
        except HeadraceError as error:
            failed.append((name, error))
    if as_json:
        typer.echo(_document(found, failed))
    elif found:
        typer.echo("\n".join(_table([_row(shard) for _, shards in found for shard in shards])))
    for _, failure in failed:
        typer.echo(f"error: {failure}", err=True)
    if failed:
        raise typer.Exit(max(failure.domain for _, failure in failed))


@app.command("set")
def set_(
    file: Annotated[Path, _FILE],
    pipeline: Annotated[str, _PIPELINE],
    to: Annotated[str, _TO],
    partition: Annotated[list[int] | None, _PARTITIONS] = None,
    skip: Annotated[bool, _SKIP] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Move the position of a pipeline, in its sink.

    A shard that has not started yet begins there. One that has goes forward only, and --skip confirms that
    the records in between are passed by; it never goes back, for the sink holds their rows already. The
    pipeline may run meanwhile where it writes Parquet. One without a sink may be moved either way while nobody
    runs it.

    \b
        headrace position set headrace.toml --pipeline clicks --to latest --skip
        headrace position set headrace.toml --pipeline clicks --to 1200 --partition 3

    Exit codes: 0 moved, 2 refused, and nothing was moved, 3 something outside (broker, sink in use).
    """
    from engine.compose import position as compose

    logs.configure()
    config = config_file.load(file)
    work = compose.move(
        config,
        pipeline,
        parse_target(to),
        partitions=partition or (),
        skip=skip,
        bootstrap=bootstrap,
        tell=lambda move: typer.echo(str(move)),
    )
    asyncio.run(work)


def parse_target(text: str) -> Literal["earliest", "latest"] | int | dt.datetime:
    """What --to says. Raises UserError for anything else, and for a time without a zone: it would be a guess."""
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    if text.isascii() and text.isdecimal():
        offset = int(text)
        if offset > OFFSET_MAX:
            raise UserError(f"--to is {text}; offsets end at {OFFSET_MAX}")
        return offset
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"--to is {text!r}; valid are earliest, latest, an offset, and a time like 2026-03-01T08:00Z"
        ) from None
    if time.tzinfo is None:
        raise UserError(
            f"--to is {text!r}, a time without a zone",
            hint="add one, as in 2026-03-01T08:00Z or 2026-03-01T08:00+02:00",
        )
    return time


def _row(shard: ShardPosition) -> list[str]:
    numbers = (shard.partition, shard.position, shard.log_start, shard.end, shard.lag, shard.group_offset)
    shown = ["-" if number is None else str(number) for number in numbers]
    return [shard.pipeline, shard.topic, *shown, shard.note or ""]


def _table(rows: list[list[str]]) -> list[str]:
    """Aligned columns, numbers to the right."""
    widths = [max(len(row[index]) for row in [list(COLUMNS), *rows]) for index in range(len(COLUMNS))]
    last = len(COLUMNS) - 1

    def line(row: list[str]) -> str:
        cells = [
            cell.rjust(width) if 2 <= index < last else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(list(COLUMNS)), *(line(row) for row in rows)]


def _document(found: list[tuple[str, list[ShardPosition]]], failed: list[tuple[str, HeadraceError]]) -> str:
    pipelines: list[dict[str, object]] = [
        {
            "pipeline": name,
            "topic": shards[0].topic if shards else None,
            "shards": [
                {
                    "partition": shard.partition,
                    "position": shard.position,
                    "log_start": shard.log_start,
                    "last_stable_offset": shard.end,
                    "lag": shard.lag,
                    "group_offset": shard.group_offset,
                    "note": shard.note,
                }
                for shard in shards
            ],
        }
        for name, shards in found
    ]
    pipelines += [{"pipeline": name, "error": error.message} for name, error in failed]
    return orjson.dumps({"pipelines": pipelines}, option=orjson.OPT_INDENT_2).decode()
