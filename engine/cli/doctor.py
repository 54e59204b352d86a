"""`headrace doctor`: what is wrong, and what to do. Formats only; `engine.compose.doctor` looks."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from engine import logs
from engine.cli.options import Bootstrap
from engine.config import Config

if TYPE_CHECKING:
    from engine.compose.checks.finding import Finding

_FILE = typer.Argument(metavar="FILE", help="The configuration, or an AWS SAM template.")
_JSON = typer.Option("--json", help="Print one JSON document.")

_STYLES = {"ok": "32", "warn": "33", "fail": "1;31", "skipped": "2"}


def doctor(
    file: Annotated[Path, _FILE] = Path("headrace.toml"),
    bootstrap: Bootstrap = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check what a run needs: versions, broker, topics, positions, sinks, disk, memory, clock, ports, its health.

    Each line is ok, warn, fail or skipped, and says what to do. Nothing is changed, and an engine may run
    meanwhile. What is skipped could not be looked at, for a reason that stands there.

    Exit codes: 0 nothing fails, 2 something you can mend, 3 something outside (broker, disk) fails.
    """
    from engine.compose import doctor as compose

    logs.configure()

    def load() -> Config:
        from engine.cli.run import load_file, template_options

        config = load_file(file, template_options(None, None, None, None, False), bootstrap)
        logs.hide(logs.secrets_of(config))
        return config

    async def look() -> list[Finding]:
        found = []
        async for finding in compose.examine(file, load, bootstrap=bootstrap):
            found.append(finding)
            if not as_json:
                typer.echo(_text(finding, colour=sys.stdout.isatty()))
        return found

    findings = asyncio.run(look())
    code = compose.exit_code(findings)
    if as_json:
        typer.echo(_document(findings, code))
    else:
        counts = {level: sum(finding.level.value == level for finding in findings) for level in _STYLES}
        typer.echo(", ".join(f"{count} {level}" for level, count in counts.items() if count))
    if code:
        raise typer.Exit(code)


def _text(finding: Finding, *, colour: bool) -> str:
    level = finding.level.value.ljust(8)
    if colour:
        level = f"\x1b[{_STYLES[finding.level.value]}m{level}\x1b[0m"
    about = f"{finding.pipeline}: " if finding.pipeline is not None else ""
    lines = _plain(f"{about}{finding.message}").splitlines() or [""]
    lines += _plain(finding.hint).splitlines() if finding.hint is not None else []
    return "\n".join([f"{level}{finding.check:<17} {lines[0]}", *(f"{'':26}{line.strip()}" for line in lines[1:])])


def _plain(text: str) -> str:
    """Without secrets, and without what a terminal would obey: names and texts of others are in it."""
    return "".join(char if char.isprintable() or char == "\n" else "·" for char in logs.shown(text))


def _document(findings: list[Finding], code: int) -> str:
    checks = [
        {
            "check": finding.check,
            "level": finding.level.value,
            "pipeline": finding.pipeline,
            "message": logs.shown(finding.message),
            "hint": logs.shown(finding.hint) if finding.hint is not None else None,
        }
        for finding in findings
    ]
    return orjson.dumps({"exit_code": code, "findings": checks}, option=orjson.OPT_INDENT_2).decode()
