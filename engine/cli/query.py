"""`headrace query`: SQL over results, as a table, JSON lines or CSV. `engine.compose.query` asks; this lays out."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.errors import ExternalError, UserError

if TYPE_CHECKING:
    from engine.compose.query import Answer

#: A table has to be held in memory; JSON and CSV are not limited.
TABLE_ROWS_MAX = 1_000

NULL = "NULL"

Row = Sequence[str | None]

_SQL = typer.Argument(metavar="SQL", help="One SELECT, SHOW, DESCRIBE, SUMMARIZE, PIVOT, or EXPLAIN.")
_DB = typer.Option("--db", metavar="FILE", help="A DuckDB file; also while an engine writes to it.")
_PARQUET = typer.Option(
    "--parquet", metavar="DIR", help="Parquet files, as the view `data` (or the directory's name)."
)
_JSON = typer.Option("--json", help="One JSON object a line.")
_CSV = typer.Option("--csv", help='CSV with a header; an empty field is NULL, "" an empty string.')
_LIMIT = typer.Option(min=1, metavar="N", help=f"Rows at most; {TABLE_ROWS_MAX:,} for tables, else all.")


def query(
    sql: Annotated[str, _SQL],
    db: Annotated[Path | None, _DB] = None,
    parquet: Annotated[Path | None, _PARQUET] = None,
    as_json: Annotated[bool, _JSON] = False,
    as_csv: Annotated[bool, _CSV] = False,
    limit_rows: Annotated[int | None, _LIMIT] = None,
) -> None:
    """Ask a DuckDB file or the committed Parquet files of a directory.

    Only reads, and only what is named. A DuckDB file that an engine is writing is asked through that engine, with
    the limits of its [query] table. JSON and CSV give every value in full: times in UTC, numbers that are
    not finite as strings in JSON.

    \b
        headrace query "SELECT page, count(*) FROM data GROUP BY ALL" --parquet out/clicks
        headrace query "FROM runways LIMIT 5" --db out/runways.duckdb --csv

    A sink of which nothing is committed yet answers with its columns and no rows, so that count(*) is 0. Until its
    first batch it has no columns either: then nothing is asked, standard output stays empty in every format, a
    line on standard error says so, and the exit code is 3.

    Exit codes: 0 for an answer, also one without rows; 2 for the SQL or a name, or a directory that has no
    Parquet file and is no sink; 3 while a process writes to the DuckDB file that does not serve it, or is busy, or
    a sink has no columns yet.
    """
    from engine.compose import query as compose

    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other")
    with compose.query(sql, database=db, directory=parquet, rendering="json" if as_json else "text") as answer:
        if answer is None:
            typer.echo(
                f"{parquet}: no Parquet file is committed there yet, so there are no rows, "
                "and its columns are not known yet; ask again after the pipeline's first batch",
                err=True,
            )
            raise typer.Exit(int(ExternalError.domain))
        limit = limit_rows if limit_rows is not None or as_json or as_csv else TABLE_ROWS_MAX
        rows, rest = _limited(itertools.chain.from_iterable(answer.rows), limit)
        if as_json:
            _write(f"{row[0]}\n" for row in rows)
        elif as_csv:
            _write(itertools.chain([csv_line(answer.columns)], (csv_line(row) for row in rows)))
        else:
            _table(answer, list(rows))
        if next(rest, None) is not None:
            typer.echo(f"only {limit:,} rows are shown; --limit-rows N shows more", err=True)


def _limited(rows: Iterator[Row], limit: int | None) -> tuple[Iterator[Row], Iterator[Row]]:
    """The first rows, and what comes after them."""
    return (rows, iter(())) if limit is None else (itertools.islice(rows, limit), rows)


def _write(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line)
    sys.stdout.flush()


def csv_line(row: Row) -> str:
    """A CSV line: NULL is an empty field, an empty string is ``""``; quoted is what would be read otherwise."""
    return ",".join("" if value is None else _csv_field(value) for value in row) + "\n"


def _csv_field(value: str) -> str:
    if value and not re.search(r'[",\r\n]|^\s|\s$', value):
        return value
    return '"' + value.replace('"', '""') + '"'


def _table(answer: Answer, rows: list[Row]) -> None:
    console = Console()
    if not console.is_terminal:
        _write(plain_table(answer.columns, answer.numeric, rows))
        return
    table = Table()
    for name, numeric in zip(answer.columns, answer.numeric, strict=True):
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("[dim]NULL[/dim]" if value is None else escape(value) for value in row))
    console.print(table)
    typer.echo("1 row" if len(rows) == 1 else f"{len(rows):,} rows", err=True)


def plain_table(columns: Sequence[str], numeric: Sequence[bool], rows: Sequence[Row]) -> Iterator[str]:
    """Aligned columns, two spaces apart, numbers to the right; line ends inside of values are escaped."""
    shown = [[_one_line(value) for value in row] for row in rows]
    names = [_one_line(name) for name in columns]
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip() + "\n"

    yield line(names)
    yield line(["-" * width for width in widths])
    yield from map(line, shown)


def _one_line(value: str | None) -> str:
    if value is None:
        return NULL
    return value.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n") if "\n" in value else value
