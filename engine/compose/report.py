"""What functions took and what AWS would have charged: out of metering files and of logs with REPORT lines.

Reads line by line; what is kept is a sum for each function and month. Lays nothing out: `engine.cli.report` does.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from engine.errors import UserError
from functions.environments import metering
from functions.environments.contract import Report
from functions.environments.metering import Architecture, Key, Usage
from functions.environments.report import parse_report_line

#: In place of a file's name.
STANDARD_INPUT = "-"

#: A function whose name neither the line nor the path tells.
UNNAMED = "(unnamed)"

_GROUP = re.compile(r"aws/lambda/([A-Za-z0-9_.-]{1,140})")
_TIME = re.compile(r'\s*"?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)')
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Period:
    """Times from ``since``, and before ``until``; None is without a bound."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None

    def holds(self, at: dt.datetime) -> bool:
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


@dataclass(slots=True)
class Found:
    """Sums by (month or "", function), and how many REPORT lines were left out because they have no time."""

    sums: dict[Key, Usage] = field(default_factory=dict)
    undated: int = 0
    first: dt.datetime | None = None
    last: dt.datetime | None = None

    def add(self, at: dt.datetime | None, function: str, usage: Usage) -> None:
        month = "" if at is None else f"{at:%Y-%m}"
        self.sums.setdefault((month, function), Usage()).add(usage)
        if at is not None:
            self.first = at if self.first is None else min(self.first, at)
            self.last = at if self.last is None else max(self.last, at)


@dataclass(frozen=True, slots=True)
class Charge:
    """One function's sums, or those of all, and US dollars for its requests and its GB-seconds."""

    function: str
    usage: Usage
    requests_usd: float
    duration_usd: float

    @property
    def usd(self) -> float:
        return self.requests_usd + self.duration_usd


@dataclass(frozen=True, slots=True)
class Bill:
    """``charges`` by function, the most expensive first; they add up to ``total``."""

    charges: list[Charge]
    total: Charge
    found: Found
    usd_per_gb_second: float
    usd_per_request: float = metering.USD_PER_REQUEST


def report(
    paths: Sequence[Path],
    *,
    architecture: Architecture = "x86_64",
    free_tier: bool = False,
    period: Period = Period(),
) -> Bill:
    """Sum up files, directories of them, and standard input (`STANDARD_INPUT`).

    Raises UserError for what cannot be read, and when nothing of it is a report.
    """
    found = Found()
    for path in paths:
        for name, file in _files(path):
            with file:
                _read(name, file, period, found)
    if not found.sums:
        names = ", ".join(map(str, paths))
        if found.undated:
            raise UserError(
                f"{names}: {found.undated:,} REPORT lines, none with a time, so that no period can be told",
                hint="leave --since and --until out, or export the log with its times",
            )
        raise UserError(
            f"{names}: no REPORT line and no metering line{' in that period' if period != Period() else ''}",
            hint="give a file of [engine] metering_path, a log with AWS's REPORT lines, or - for standard input",
        )
    return bill(found, architecture, free_tier=free_tier)


def bill(found: Found, architecture: Architecture, *, free_tier: bool) -> Bill:
    """What AWS would have charged. The free tier is for all functions together, shared out by what each took."""
    price = metering.USD_PER_GB_SECOND[architecture]
    months: dict[str, Usage] = {}
    functions: dict[str, tuple[Usage, list[float]]] = {}
    for (month, _), usage in found.sums.items():
        months.setdefault(month, Usage()).add(usage)
    for (month, function), usage in found.sums.items():
        sums, usd = functions.setdefault(function, (Usage(), [0.0, 0.0]))
        sums.add(usage)
        whole = months[month]
        paid = paid_seconds = 1.0
        if free_tier:
            paid = _share(whole.requests, metering.FREE_REQUESTS)
            paid_seconds = _share(whole.gb_seconds, metering.FREE_GB_SECONDS)
        usd[0] += usage.requests * paid * metering.USD_PER_REQUEST
        usd[1] += usage.gb_seconds * paid_seconds * price
    charges = [Charge(function, sums, *usd) for function, (sums, usd) in functions.items()]
    charges.sort(key=lambda charge: (-charge.usd, charge.function))
    everything = Usage()
    for charge in charges:
        everything.add(charge.usage)
    total = Charge(
        "total",
        everything,
        math.fsum(charge.requests_usd for charge in charges),
        math.fsum(charge.duration_usd for charge in charges),
    )
    return Bill(charges, total, found, price)


def _share(used: float, free: float) -> float:
    """The part of what was used that is beyond what is free."""
    return max(0.0, used - free) / used if used else 0.0


def _files(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    if str(path) == STANDARD_INPUT:
        yield "", sys.stdin.buffer
        return
    names = sorted(path.rglob("*")) if path.is_dir() else [path]
    for name in names:
        if name.is_dir() or (path.is_dir() and name.suffix not in (".log", ".json", ".jsonl", ".txt")):
            continue
        try:
            yield str(name.absolute()), name.open("rb")
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}") from None


def _read(name: str, file: BinaryIO, period: Period, found: Found) -> None:
    group = _GROUP.search(name)
    function = group.group(1) if group else Path(name).stem or UNNAMED
    is_first = True
    for line in metering.lines_of(file):
        if is_first and line.startswith(_GZIP):
            raise UserError(f"{name} is compressed", hint="unpack it first: zcat FILE | headrace report -")
        is_first = False
        if b'"at":' in line and (entry := metering.from_line(line)) is not None:
            (at, whose), usage = entry
            start = metering.start_of(at)
            if start is not None and period.holds(start):
                found.add(start, whose, usage)
        elif b"REPORT RequestId:" in line or b"platform.report" in line:
            _count(line, function, period, found)


def _count(line: bytes, function: str, period: Period, found: Found) -> None:
    reported = _from_json(line) if line.lstrip().startswith(b"{") else _from_text(line.decode("utf-8", "replace"))
    if reported is None:
        return
    invocation, at = reported
    if at is None and period != Period():
        found.undated += 1
    elif at is None or period.holds(at):
        usage = Usage()
        usage.count(invocation)
        found.add(at, invocation.function_name or function, usage)


def _from_text(text: str) -> tuple[Report, dt.datetime | None] | None:
    # A line of JSON that is laid out over several has the message with its tabs escaped.
    plain = text.replace("\\t", "\t").replace("\\n", "\t").rstrip('", \r')
    group, at = _GROUP.search(text), _TIME.match(text)
    invocation = parse_report_line(plain, function_name=group.group(1) if group else "")
    return (invocation, _time(at.group(1)) if at else None) if invocation is not None else None


def _from_json(line: bytes) -> tuple[Report, dt.datetime | None] | None:
    """A line of a log in JSON: AWS's own format, an event of CloudWatch's interface, or headrace's --json."""
    try:
        members = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _from_text(line.decode("utf-8", "replace"))
    if not isinstance(members, dict):
        return None
    at = _time(members.get("time", members.get("timestamp")))
    logger = str(members.get("logger", ""))
    name = logger.removeprefix("headrace.function.") if logger.startswith("headrace.function.") else ""
    if not name and (group := _GROUP.search(str(members.get("logGroup", "")))):
        name = group.group(1)
    if members.get("type") == "platform.report":
        text = _platform_report(members.get("record"))
    else:
        text = str(members.get("message", ""))
    invocation = parse_report_line(text, function_name=name)
    return (invocation, at) if invocation is not None else None


def _platform_report(record: object) -> str:
    """AWS's report in JSON as its line of text, so that one parser judges both."""
    metrics = record.get("metrics") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(metrics, dict):
        return ""
    init = metrics.get("initDurationMs")
    return "\t".join(
        [
            f"REPORT RequestId: {record.get('requestId')}",
            f"Duration: {metrics.get('durationMs')} ms",
            f"Billed Duration: {metrics.get('billedDurationMs')} ms",
            f"Memory Size: {metrics.get('memorySizeMB')} MB",
            f"Max Memory Used: {metrics.get('maxMemoryUsedMB')} MB",
            f"Init Duration: {init} ms" if init is not None else "",
            f"Status: {record.get('status', 'success')}",
            f"Error Type: {record['errorType']}" if record.get("errorType") else "",
        ]
    )


def _time(value: object) -> dt.datetime | None:
    """Milliseconds since the epoch, or ISO text, which is UTC where it names no zone."""
    try:
        if isinstance(value, int | float):
            return dt.datetime.fromtimestamp(value / 1000, dt.UTC)
        if isinstance(value, str):
            at = dt.datetime.fromisoformat(value.replace(",", "."))
            return (at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None
