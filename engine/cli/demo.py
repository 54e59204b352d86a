"""`headrace demo`: a real Kafka, real events, three pipelines, and a table of answers."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from engine import logs

DIRECTORY_DEFAULT = Path(".headrace-demo")


def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where the demo's broker, configuration and results live; emptied first.")
    ] = DIRECTORY_DEFAULT,
    bootstrap: Annotated[
        str | None,
        typer.Option(
            "--bootstrap", metavar="HOST:PORT,...", help="Use this cluster instead of an embedded broker."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Run the demo: page views, an access log and table changes, through Kafka, into Parquet and DuckDB.

    It starts an Apache Kafka of its own on a free port, sends it three samples of real data, runs three
    pipelines over them until they have caught up, asks the results, and puts the answers beside those that
    were computed from the samples without headrace. The results stay in --dir, to be queried.
    """
    from engine.compose import demo as scenario

    logs.configure()
    report = asyncio.run(
        scenario.run(directory, bootstrap=bootstrap, progress=lambda line: typer.echo(line, err=True))
    )
    if json:
        typer.echo(orjson.dumps(report.document(), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(report, directory)
    if not report.is_right:
        raise typer.Exit(4)


def _show(report: object, directory: Path) -> None:
    from engine.compose.demo import Report

    assert isinstance(report, Report)
    console = Console()
    runs = Table(title="What ran", title_justify="left")
    for heading in ("pipeline", "records", "rows", "dropped", "failed", "seconds", "records/s"):
        runs.add_column(heading, justify="left" if heading == "pipeline" else "right")
    for ran in report.runs:
        rate = ran.records / ran.seconds if ran.seconds else 0.0
        counts = (ran.records, ran.rows, ran.dropped, ran.failed)
        runs.add_row(ran.pipeline, *(f"{count:,}" for count in counts), f"{ran.seconds:.1f}", f"{rate:,.0f}")
    console.print(runs)
    answers = Table(title="Answers", title_justify="left")
    for heading in ("question", "answer", "computed without headrace", ""):
        answers.add_column(heading)
    for answer in report.answers:
        mark = "equal" if answer.is_right else "WRONG"
        answers.add_row(answer.question, answer.found, answer.expected, mark)
    console.print(answers)
    console.print(f"The results are in {directory}. Ask them yourself:", highlight=False)
    command = "headrace" if shutil.which("headrace") else sys.argv[0]
    for line in report.suggestions:
        console.print(f"  {command} {line}", highlight=False, soft_wrap=True)
