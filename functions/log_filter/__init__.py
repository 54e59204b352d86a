"""Log lines parsed to typed columns, and the ones of interest kept. A handler of kind ``arrow``.

Lines that cannot be parsed are reported as faults, one by one; lines that are not kept count as dropped.
Not here: what a line's fields are (`access`, `system`), and how a condition is matched (`keep`).

A pipeline reads lines as text, in one column ``line``, and names a handler::

    [pipelines.errors.source]
    topic = "access-log"

    [pipelines.errors.schema]
    format = "text"

    [pipelines.errors.function]
    kind = "arrow"
    handler = "functions.log_filter.server_errors"

Ready ones are `access_log` (all lines, common or combined), `server_errors` (status 500 to 599), `failures` (400
to 599), `syslog` and `warnings` (syslog at warning or worse). `handler` is set by environment variables. Anything
else is one line in a module of one's own::

    from functions.log_filter import log_filter

    slow_api = log_filter(format="combined", keep_status="5xx,429", keep_path="/api/")

The line ``199.72.81.55 - - [01/Jul/1995:00:00:01 -0400] "GET /history/ HTTP/1.0" 200 6245`` becomes the row
``host="199.72.81.55", ident=None, user=None, ts=1995-07-01T04:00:01Z, method="GET", path="/history/",
protocol="HTTP/1.0", status=200, bytes=6245, referrer=None, agent=None``, after its trace columns.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from engine.context import Context
from engine.errors import ConfigError
from engine.protocols import Result
from functions.columns import Refusals, column, text
from functions.log_filter import access, system
from functions.log_filter.keep import Keep, level_ranks, line_pattern, path_pattern, status_ranges

__all__ = [
    "FORMATS",
    "access_log",
    "failures",
    "from_environment",
    "handler",
    "log_filter",
    "server_errors",
    "syslog",
    "warnings",
]

LogFilter = Callable[[pa.RecordBatch, Context], Result]

#: The formats, and the conditions that each has a column for (``keep_pattern`` goes with all).
FORMATS: Mapping[str, tuple[str, ...]] = {
    "access": ("keep_status", "keep_path"),
    "common": ("keep_status", "keep_path"),
    "combined": ("keep_status", "keep_path"),
    "syslog": ("keep_level",),
    "rfc3164": ("keep_level",),
    "rfc5424": ("keep_level",),
    "log4j": ("keep_level",),
}
_ENVIRONMENT_PREFIX = "LOG_FILTER_"
_SETTINGS = ("format", "keep_status", "keep_level", "keep_path", "keep_pattern", "utc_offset", "line_column")


def log_filter(
    format: str = "access",  # noqa: A002 - the setting's name in every log tool
    *,
    keep_status: str | int | Sequence[str | int] | None = None,
    keep_level: str | Sequence[str] | None = None,
    keep_path: str | Sequence[str] | None = None,
    keep_pattern: str | None = None,
    utc_offset: str = "+00:00",
    line_column: str = "line",
) -> LogFilter:
    """A handler for lines of one format. All conditions that are given must hold for a line to be kept.

    ``format``: "common", "combined", "access" (either), "rfc3164", "rfc5424", "syslog" (either) or "log4j".
    ``keep_status``: ``"500-599,429"``, ``"5xx"``, ``404``, or a list of those.
    ``keep_level``: one level keeps it and all more severe; a list (``"info,notice"``) keeps exactly those.
    ``keep_path``: a prefix (``/api/``), a glob (``*.gif``), or a list; the query string does not count.
    ``keep_pattern``: a regular expression of RE2 that is searched in the whole line.
    ``utc_offset``: the zone of times that name none (RFC 3164, log4j).

    Rows: the trace columns, then for access logs ``host, ident, user, ts, method, path, protocol, status,
    bytes, referrer, agent``; for syslog ``priority, facility, severity, level, ts, host, app, pid, msgid, data,
    message``; for log4j ``ts, level, message, logger``. ``ts`` is timestamp[us, UTC].

    Raises ConfigError with every setting that cannot be used.
    """
    faults: list[str] = []
    if format not in FORMATS:
        faults.append(f"format: {format!r} is not a log format; valid are {', '.join(FORMATS)}")
    if not re.fullmatch(r"[+-]\d{2}:\d{2}", utc_offset):
        faults.append(f"utc_offset: {utc_offset!r} is not an offset like +02:00")
    given = {"keep_status": keep_status, "keep_level": keep_level, "keep_path": keep_path}
    faults += [
        f"{name}: lines of format {format!r} have no {name.removeprefix('keep_')}"
        for name, value in given.items()
        if value is not None and name not in FORMATS.get(format, tuple(given))
    ]
    keep = Keep(
        status=() if keep_status is None else status_ranges(keep_status, faults),
        ranks=frozenset() if keep_level is None else level_ranks(keep_level, faults),
        path="" if keep_path is None else path_pattern(keep_path, faults),
        pattern="" if keep_pattern is None else line_pattern(keep_pattern, faults),
    )
    if faults:
        raise ConfigError("log_filter", faults)

    def filter_lines(batch: pa.RecordBatch, context: Context) -> Result:
        lines = text(column(batch, line_column, wanted_by="log_filter"))
        refusals = Refusals(batch)
        if format == "log4j":
            columns = system.parse_log4j(lines, refusals, utc_offset=utc_offset)
        elif format in ("syslog", "rfc3164", "rfc5424"):
            columns = system.parse_syslog(lines, refusals, kind=format, batch=batch, utc_offset=utc_offset)
        else:
            columns = access.parse(lines, refusals, kind=format)
        return refusals.result(columns, keep.mask(lines, columns))

    return filter_lines


def from_environment(environment: Mapping[str, str]) -> LogFilter:
    """The handler that variables named LOG_FILTER_FORMAT, LOG_FILTER_KEEP_STATUS and so on describe.

    They are `log_filter`'s settings in capitals; lists are separated by commas. Raises ConfigError for
    unknown ones, with the nearest valid name.
    """
    given = {
        name.removeprefix(_ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_ENVIRONMENT_PREFIX)
    }
    faults = []
    for name in given.keys() - set(_SETTINGS):
        near = difflib.get_close_matches(name, _SETTINGS, n=1)
        valid = near[0] if near else ", ".join(_SETTINGS)
        faults.append(f"{_ENVIRONMENT_PREFIX}{name.upper()}: no such setting; valid: {valid.upper()}")
    if faults:
        raise ConfigError("the environment", sorted(faults))
    return log_filter(**given)


@functools.cache
def _configured() -> LogFilter:
    return from_environment(os.environ)


def handler(batch: pa.RecordBatch, context: Context) -> Result:
    """The handler that the environment describes, read once, at the first call."""
    return _configured()(batch, context)


access_log = log_filter("access")
server_errors = log_filter("access", keep_status="5xx")
failures = log_filter("access", keep_status="400-599")
syslog = log_filter("syslog")
warnings = log_filter("syslog", keep_level="warning")
