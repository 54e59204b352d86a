"""Page events, cleaned and typed. Not here: counting them (`minutes`) and asking about them (`queries`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from engine.context import Context
from engine.errors import ConfigError
from engine.protocols import Result
from functions.columns import EVENT_TIME, Refusals, cast_or_null, column, text, times, unless

PageEvents = Callable[[pa.RecordBatch, Context], Result]

#: Prices are exact: sums of them do not depend on how the stream was cut into batches.
PRICE = pa.decimal128(18, 4)
PRICE_TEXT = r"^-?\d{1,14}(?:\.\d{1,4}0*)?$"
#: Members of an event, and the batch's columns that hold them unless told otherwise.
MEMBERS = ("event_id", "time", "user", "visit", "page", "event", "referrer", "price")
REQUIRED = ("time", "user", "page")
TIME_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
#: Event times lie in [1970, 10000): before and after are units mistaken for one another.
_YEAR_10000_US = 253_402_300_800_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read page events from a batch; built and checked by `reading`."""

    columns: Mapping[str, str]
    time_unit: str
    default_event: str
    urls: bool
    extra: tuple[str, ...]


def reading(
    *,
    columns: Mapping[str, str] | None = None,
    time_unit: str = "ms",
    default_event: str = "page_view",
    urls: bool = False,
    extra: Sequence[str] = (),
) -> Reading:
    """Check the settings that `page_events_of` documents. Raises ConfigError with all that cannot be used."""
    faults = [
        f"columns: {name!r} is not a member of page events; valid are {', '.join(MEMBERS)}"
        for name in columns or {}
        if name not in MEMBERS
    ]
    if time_unit not in TIME_UNITS:
        faults.append(f"time_unit: {time_unit!r} is not one of {', '.join(TIME_UNITS)}")
    faults += [f"extra: {name!r} is a member of page events already" for name in extra if name in (*MEMBERS, "ts")]
    if faults:
        raise ConfigError("page_events", faults)
    names = {name: (columns or {}).get(name, name) for name in MEMBERS}
    return Reading(names, time_unit, default_event, urls, tuple(extra))


def page_events_of(
    *,
    columns: Mapping[str, str] | None = None,
    time_unit: str = "ms",
    default_event: str = "page_view",
    urls: bool = False,
    extra: Sequence[str] = (),
) -> PageEvents:
    """A handler that types page events.

    ``columns``: members (``event_id, time, user, visit, page, event, referrer, price``) to the batch's columns
    that hold them, where those have other names. ``time``, ``user`` and ``page`` must be there.
    ``time_unit``: the unit of times that are integers since the epoch: "s", "ms" or "us". Text is ISO 8601, in UTC
    where it names no zone.
    ``default_event``: the event of records that name none.
    ``urls``: pages are URLs; keep their path alone, without host, query and fragment.
    ``extra``: columns to pass on as they are.

    Rows: the trace columns, ``event_id, ts`` (timestamp[us, UTC]) ``, user, visit, page, event, referrer, price``
    (DECIMAL(18,4)) and ``extra``. Text is stripped of blanks around it, and null where nothing remains.
    Faults: a time, user or page that is missing, what is no time, a price that is no number of at most 14 digits
    before the point and 4 after.
    """
    how = reading(columns=columns, time_unit=time_unit, default_event=default_event, urls=urls, extra=extra)

    def take_page_events(batch: pa.RecordBatch, context: Context) -> Result:
        refusals = Refusals(batch)
        return refusals.result(typed(batch, how, refusals))

    return take_page_events


def typed(batch: pa.RecordBatch, how: Reading, refusals: Refusals) -> dict[str, pa.Array]:
    """The columns of page events, a row for each of the batch; what cannot be taken is refused."""
    found = {
        name: column(batch, source, wanted_by=f"page_events ({name})")
        for name, source in how.columns.items()
        if name in REQUIRED or source in batch.schema.names
    }
    absent = pa.nulls(batch.num_rows, pa.string())
    texts = {
        name: _cleaned(found[name]) if name in found else absent
        for name in MEMBERS
        if name not in ("time", "price")
    }
    for name in ("user", "page"):
        refusals.refuse(pc.is_null(texts[name]), f"the {name} ({how.columns[name]}) is missing")
    page = texts["page"]
    if how.urls:
        page = pc.replace_substring_regex(page, r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "")
        page = pc.replace_substring_regex(page, r"(?s)[?#].*$", "")
        page = pc.if_else(pc.equal(page, ""), "/", page)
    return {
        "event_id": texts["event_id"],
        "ts": _times(found["time"], how, refusals),
        "user": texts["user"],
        "visit": texts["visit"],
        "page": page,
        "event": pc.fill_null(texts["event"], how.default_event),
        "referrer": texts["referrer"],
        "price": _prices(found["price"], refusals) if "price" in found else pa.nulls(batch.num_rows, PRICE),
        **{name: column(batch, name, wanted_by="page_events (extra)") for name in how.extra},
    }


def _cleaned(values: pa.Array) -> pa.Array:
    return unless(pc.utf8_trim_whitespace(text(values)), "")


def _times(values: pa.Array, how: Reading, refusals: Refusals) -> pa.Array:
    missing = pc.is_null(values)
    refusals.refuse(missing, f"the time ({how.columns['time']}) is missing")
    if pa.types.is_integer(values.type):
        limit = _YEAR_10000_US // TIME_UNITS[how.time_unit]
        sane = pc.and_(pc.greater_equal(values, 0), pc.less(values, limit))
        checked = pc.cast(pc.if_else(sane, values, pa.scalar(None, values.type)), pa.int64())
        ts = pc.cast(pc.multiply(checked, pa.scalar(TIME_UNITS[how.time_unit], pa.int64())), EVENT_TIME)
    elif pa.types.is_timestamp(values.type):
        ts = pc.cast(values, EVENT_TIME, safe=False)
    else:
        ts = times(pc.utf8_trim_whitespace(text(values)))
    micros = pc.cast(ts, pa.int64())
    inside = pc.and_(pc.greater_equal(micros, 0), pc.less(micros, _YEAR_10000_US))
    ts = pc.if_else(inside, ts, pa.scalar(None, EVENT_TIME))
    bad = pc.and_(pc.invert(missing), pc.is_null(ts))
    refusals.refuse(bad, f"the time {{}} ({how.columns['time']}) is none of the years 1970 to 9999", values)
    return ts


def _prices(values: pa.Array, refusals: Refusals) -> pa.Array:
    if pa.types.is_floating(values.type):
        sane = pc.and_(pc.is_finite(values), pc.less(pc.abs(values), 1e14))
        prices = pc.cast(pc.if_else(sane, values, pa.scalar(None, values.type)), PRICE)
    elif pa.types.is_integer(values.type) or pa.types.is_decimal(values.type):
        # Arrow asks for room for all 19 digits of an int64 first.
        wide = pc.cast(values, pa.decimal128(38, 4)) if pa.types.is_integer(values.type) else values
        prices = cast_or_null(wide, PRICE)
    else:
        given = _cleaned(values)
        plain = pc.if_else(pc.match_substring_regex(given, PRICE_TEXT), given, pa.scalar(None, pa.string()))
        prices = cast_or_null(pc.replace_substring_regex(plain, r"(\.\d{4})0+$", r"\1"), PRICE)
        values = given
    bad = pc.and_(pc.is_valid(values), pc.is_null(prices))
    refusals.refuse(bad, "the price {} is no number with at most 14 digits before the point and 4 after", values)
    return prices
