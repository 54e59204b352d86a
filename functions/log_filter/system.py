"""Syslog lines, of RFC 5424 and of RFC 3164, and lines of log4j's usual layout, as columns.

Keeps and drops nothing. A record is a line: the lines of a stack trace that follow a log4j line in a file
are lines of their own, and are refused, unless the producer sends them within one record.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from functions.columns import EVENT_TIME, Refusals, by_case, cast_or_null, column, times, unless

#: RFC 5424, table 2: the level's name by its number.
LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
#: RFC 5424, table 1, with the names that syslog.h and its manuals use.
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "clock"),
    *(f"local{number}" for number in range(8)),
)
PRIORITY_MAX = 191

_ISO_TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2})"
_5424 = (
    r"(?s)^<(?P<priority>\d{1,3})>[1-9]\d{0,2} (?P<time>-|"
    + _ISO_TIME
    + r") (?P<host>\S+) (?P<app>\S+) (?P<pid>\S+)"
    r' (?P<msgid>\S+) (?P<data>-|(?:\[(?:[^"\]]|"(?:[^"\\]|\\.)*")*\])+)(?: (?P<message>.*))?$'
)
# The priority is optional because files do not hold it; the time may be RFC 3339 because rsyslog's files do.
_3164 = (
    r"(?s)^(?:<(?P<priority>\d{1,3})>)?(?P<time>[A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2}|" + _ISO_TIME + r") "
    r"(?P<host>\S+) (?:(?P<app>[^\s\[\]:]+)(?:\[(?P<pid>[^\]]*)\])?: ?)?(?P<message>.*?)\s*$"
)
_NEW = r"^<\d{1,3}>[1-9]\d{0,2} "
_LOG4J = (
    r"(?s)^\[(?P<time>\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}(?:[,.]\d{1,6})?)\] +(?P<level>[A-Z]+) +(?P<message>.*?)"
    r"(?: \((?P<logger>[\w.$-]+)\))?\s*$"
)
_MONTHS = pa.array(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
_MONTH_NUMBERS = pa.array([f"{month:02}" for month in range(1, 13)])
_PARTS = ("priority", "time", "host", "app", "pid", "msgid", "data", "message")


def parse_syslog(
    lines: pa.Array, refusals: Refusals, *, kind: str, batch: pa.RecordBatch, utc_offset: str
) -> dict[str, pa.Array]:
    """Columns of syslog lines; lines of another shape, and priorities above 191, are refused.

    ``kind`` is "rfc3164", "rfc5424" or "syslog", which tells them apart line by line. RFC 3164 has no year
    and no zone: the year is the one that brings the time nearest to the record's own timestamp, the zone
    is ``utc_offset``. RFC 5424's "-" is null, and so is what RFC 3164 lacks.
    """
    new = pc.fill_null(pc.match_substring_regex(lines, _NEW), False)
    if kind != "syslog":
        new = pa.repeat(kind == "rfc5424", len(lines))
    parts = _syslog_parts(lines, new)
    parsed = pc.is_valid(parts["time"])
    title = {"rfc3164": "RFC 3164", "rfc5424": "RFC 5424"}.get(kind, "RFC 3164 or RFC 5424")
    refusals.refuse(pc.invert(parsed), f"the line is not syslog of {title}: {{}}", lines)
    time, priority = parts["time"], cast_or_null(parts["priority"], pa.int16())
    refusals.refuse(pc.greater(priority, PRIORITY_MAX), f"priority {{}} is above {PRIORITY_MAX}", priority)
    ts = _syslog_times(time, batch, utc_offset)
    refusals.refuse(
        pc.and_(pc.is_valid(time), pc.and_(pc.is_null(ts), pc.not_equal(time, "-"))), "{} is no time", time
    )
    priority = pc.if_else(pc.less_equal(priority, PRIORITY_MAX), priority, pa.scalar(None, pa.int16()))
    facility = pc.divide(priority, pa.scalar(8, pa.int16()))
    severity = pc.subtract(priority, pc.multiply(facility, pa.scalar(8, pa.int16())))
    return {
        "priority": priority,
        "facility": pa.array(FACILITIES).take(facility),
        "severity": severity,
        "level": pa.array(LEVELS).take(severity),
        "ts": ts,
        **{name: parts[name] for name in ("host", "app", "pid", "msgid", "data")},
        "message": pc.utf8_ltrim(parts["message"], "\ufeff"),
    }


def parse_log4j(lines: pa.Array, refusals: Refusals, *, utc_offset: str) -> dict[str, pa.Array]:
    """Columns of lines like ``[2016-12-19 16:22:43,101] INFO message (logger)``; other lines are refused.

    The times have no zone: they are taken as of ``utc_offset``.
    """
    time, level, message, logger = pc.extract_regex(lines, _LOG4J).flatten()
    refusals.refuse(pc.is_null(time), "the line is not in the layout [time] LEVEL message (logger): {}", lines)
    ts = times(time, utc_offset=utc_offset)
    refusals.refuse(pc.and_(pc.is_valid(time), pc.is_null(ts)), "{} is no time", time)
    return {"ts": ts, "level": level, "message": message, "logger": unless(logger, "")}


def _syslog_parts(lines: pa.Array, new: pa.Array) -> dict[str, pa.Array]:
    """The parts of each line as text: lines where ``new`` holds by RFC 5424, the others by RFC 3164."""

    def recent(rows: pa.Array) -> dict[str, pa.Array]:
        parts = _captured(rows, _5424)
        return {
            name: values if name in ("time", "message") else unless(values, "-") for name, values in parts.items()
        }

    def old(rows: pa.Array) -> dict[str, pa.Array]:
        parts = {name: unless(values, "") for name, values in _captured(rows, _3164).items()}
        absent = pa.nulls(len(rows), pa.string())
        return {**parts, "msgid": absent, "data": absent}

    return by_case(lines, [(new, recent), (pc.invert(new), old)])


def _captured(lines: pa.Array, pattern: str) -> dict[str, pa.Array]:
    found = pc.extract_regex(lines, pattern)
    parts = dict(zip([field.name for field in found.type], found.flatten(), strict=True))
    return {name: parts[name] for name in _PARTS if name in parts}


def _syslog_times(time: pa.Array, batch: pa.RecordBatch, utc_offset: str) -> pa.Array:
    """Times of both RFCs as timestamp[us, UTC]; null where there is none."""
    parts = pc.extract_regex(time, r"^(?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<clock>\S+)$")
    month, day, clock = parts.flatten()
    dated = pc.is_valid(month)
    whole = times(pc.if_else(dated, pa.scalar(None, pa.string()), time))
    if not pc.any(dated, min_count=0).as_py():
        return whole
    received = pc.cast(column(batch, "_timestamp", wanted_by="the year of RFC 3164 times"), EVENT_TIME)
    number = _MONTH_NUMBERS.take(pc.index_in(month, _MONTHS))
    rest = pc.binary_join_element_wise(number, pc.replace_substring(day, " ", "0"), "-")
    rest = pc.binary_join_element_wise(rest, pc.binary_join_element_wise(clock, utc_offset, ""), "T")
    best, best_gap = pa.nulls(len(time), EVENT_TIME), pa.nulls(len(time), pa.int64())
    years = pc.cast(pc.utf8_slice_codeunits(pc.cast(received, pa.string()), 0, 4), pa.int32())
    for step in (0, -1, 1):
        year = pc.cast(pc.add(years, pa.scalar(step, pa.int32())), pa.string())
        candidate = times(pc.binary_join_element_wise(year, rest, "-"))
        gap = pc.abs(pc.cast(pc.subtract(candidate, received), pa.int64()))
        nearer = pc.fill_null(pc.or_kleene(pc.less(gap, best_gap), pc.is_null(best_gap)), True)
        nearer = pc.and_(nearer, pc.is_valid(gap))
        best, best_gap = pc.if_else(nearer, candidate, best), pc.if_else(nearer, gap, best_gap)
    return pc.coalesce(whole, best)
