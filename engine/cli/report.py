"""`headrace report`: what functions took and what AWS would have charged. `engine.compose.report` adds up."""

from __future__ import annotations

import datetime as dt
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.cli.query import plain_table
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.compose.report import Bill, Charge


class Architecture(enum.StrEnum):
    x86_64 = "x86_64"
    arm64 = "arm64"


#: Columns of characters; only for asking how wide a table would be.
WIDTH_MAX = 10_000

_FILES = typer.Argument(
    metavar="FILE...", help="Metering files, logs, directories of them; - for standard input.", show_default=False
)
_ARCHITECTURE = typer.Option("--architecture", help="Whose price of a GB-second.")
_FREE_TIER = typer.Option("--free-tier", help="Take off what is free in each calendar month.")
_SINCE = typer.Option("--since", metavar="TIME", help="From then on: 2026-03-01 (UTC), or 2026-03-01T08:00Z.")
_UNTIL = typer.Option("--until", metavar="TIME", help="Before then.")
_JSON = typer.Option("--json", help="Print one JSON document.")

COLUMNS = (
    "function", "requests", "errors", "timeouts", "throttles", "cold", "average ms", "p95 ms", "MB used",
    "GB-seconds", "USD",
)  # fmt: skip


def report(
    files: Annotated[list[Path], _FILES],
    architecture: Annotated[Architecture, _ARCHITECTURE] = Architecture.x86_64,
    free_tier: Annotated[bool, _FREE_TIER] = False,
    since: Annotated[str | None, _SINCE] = None,
    until: Annotated[str | None, _UNTIL] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Add up what functions took, and what AWS would have charged for it.

    Reads what headrace keeps when `[engine] metering_path` names a file, and any log with AWS's REPORT lines:
    the files of `[engine] function_log_path`, what CloudWatch exports, what `aws logs tail` prints.

    \b
        headrace report metering.jsonl
        headrace report logs/ --since 2026-03-01 --architecture arm64
        aws logs tail /aws/lambda/clicks --since 1d | headrace report -

    GB-seconds are the memory's size times the billed time, as on AWS. Errors have the timeouts among them. A
    throttled invocation did not run, and costs nothing. What is in a log and in a metering file counts twice:
    give one of them. Prices are those of most regions, from third-party copies of AWS's price page, without
    volume tiers, pollers, storage or transfer: an estimate, not a bill. The free tier is that of an account,
    shared out over the functions.

    Exit codes: 0 for a report, 2 when nothing in the files is one, or for a file or time that is none.
    """
    from engine.compose import report as compose

    bill = compose.report(
        files,
        architecture=architecture.value,
        free_tier=free_tier,
        period=compose.Period(_time("--since", since), _time("--until", until)),
    )
    if as_json:
        typer.echo(_document(bill, architecture, free_tier))
    else:
        _table(bill)
        _explain(bill, architecture, free_tier)
    if bill.found.undated:
        typer.echo(f"{bill.found.undated:,} REPORT lines have no time, and are left out of the period", err=True)


def _time(option: str, text: str | None) -> dt.datetime | None:
    """A day in UTC, or a time with a zone: one without would be a guess."""
    if text is None:
        return None
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option} is {text!r}; valid are 2026-03-01 and 2026-03-01T08:00Z") from None
    if time.tzinfo is None:
        if len(text) > len("2026-03-01"):
            raise UserError(f"{option} is {text!r}, a time without a zone", hint=f"add one, as in {text}Z")
        time = time.replace(tzinfo=dt.UTC)
    return time.astimezone(dt.UTC)


def _row(charge: Charge, digits: int) -> list[str]:
    usage = charge.usage
    average = usage.duration_ms / usage.requests if usage.requests else 0.0
    return [
        charge.function,
        *(f"{n:,}" for n in (usage.requests, usage.errors, usage.timeouts, usage.throttles, usage.cold_starts)),
        f"{average:,.2f}",
        f"{usage.percentile_ms(0.95):,.2f}",
        f"{usage.memory_used_mb_max:,} of {usage.memory_size_mb_max:,}",
        f"{usage.gb_seconds:,.3f}",
        f"{charge.usd:,.{digits}f}",
    ]


def _table(bill: Bill) -> None:
    digits = 4 if bill.total.usd >= 1 else 8
    *rows, total = (_row(charge, digits) for charge in [*bill.charges, bill.total])
    console = Console()
    table = Table(show_footer=len(rows) > 1)
    for name, footer in zip(COLUMNS, total, strict=True):
        table.add_column(name, escape(footer), justify="left" if name == "function" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    # Numbers that are cut or go over several lines are worse than a line that the terminal wraps.
    wanted = console.measure(table, options=console.options.update(width=WIDTH_MAX)).maximum
    if console.is_terminal and wanted <= console.width:
        console.print(table)
    else:
        numeric = [name != "function" for name in COLUMNS]
        typer.echo("".join(plain_table(COLUMNS, numeric, [*rows, total])), nl=False)


def _explain(bill: Bill, architecture: Architecture, free_tier: bool) -> None:
    found = bill.found
    when = f"from {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC; " if found.first else ""
    free = "beyond the free tier of each month" if free_tier else "without the free tier"
    typer.echo(
        f"{when}{architecture.value} at ${bill.usd_per_gb_second:.10f} for each GB-second and "
        f"${bill.usd_per_request * 1_000_000:.2f} for a million requests, {free}; an estimate",
        err=True,
    )


def _document(bill: Bill, architecture: Architecture, free_tier: bool) -> str:
    found = bill.found
    document = {
        "architecture": architecture.value,
        "usd_per_gb_second": bill.usd_per_gb_second,
        "usd_per_request": bill.usd_per_request,
        "free_tier": free_tier,
        "first": found.first,
        "last": found.last,
        "undated_lines": found.undated,
        "functions": [{"function": charge.function, **_members(charge)} for charge in bill.charges],
        "total": _members(bill.total),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode()


def _members(charge: Charge) -> dict[str, object]:
    usage = charge.usage
    return {
        "requests": usage.requests,
        "errors": usage.errors,
        "timeouts": usage.timeouts,
        "throttles": usage.throttles,
        "cold_starts": usage.cold_starts,
        "init_ms": round(usage.init_ms, 3),
        "duration_ms": round(usage.duration_ms, 3),
        "duration_ms_p50": round(usage.percentile_ms(0.5), 3),
        "duration_ms_p95": round(usage.percentile_ms(0.95), 3),
        "duration_ms_p99": round(usage.percentile_ms(0.99), 3),
        "duration_ms_max": round(usage.duration_ms_max, 3),
        "billed_ms": usage.billed_ms,
        "memory_size_mb_max": usage.memory_size_mb_max,
        "memory_used_mb_max": usage.memory_used_mb_max,
        "gb_seconds": usage.gb_seconds,
        "requests_usd": charge.requests_usd,
        "duration_usd": charge.duration_usd,
        "usd": charge.usd,
    }
