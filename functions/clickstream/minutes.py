"""Counts per minute and page of one batch. They add up: a minute's totals are the sums over all its rows.

So a batch needs to know nothing of the others, and sums over the sink's rows are exact wherever the stream was cut.
Visits do not add up, as a visit goes over batches: they come from the typed events (`queries`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.context import Context
from engine.protocols import Result
from functions.clickstream.events import PRICE, PageEvents, reading, typed
from functions.columns import EVENT_TIME, Refusals, column

_MINUTE_US = 60_000_000


def per_minute_of(
    *,
    view_events: Sequence[str] = ("page_view",),
    conversion_events: Sequence[str] = ("purchase",),
    conversion_pages: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    time_unit: str = "ms",
    default_event: str = "page_view",
    urls: bool = False,
) -> PageEvents:
    """A handler that counts page events per minute of event time and page.

    ``view_events``: the events that are views. ``conversion_events``: the events that are conversions; a view of
    one of ``conversion_pages`` is one too. The other settings, and the faults, are `page_events_of`'s.

    Rows, one for each minute and page of the batch: ``_partition``, ``_offset_first``, ``_offset_last`` (offsets of
    the first and the last event counted in the row), ``minute`` (timestamp[us, UTC], its start), ``page``,
    ``events``, ``views``, ``conversions`` and ``revenue`` (DECIMAL(38,4): the prices of conversions). Needs the
    trace columns.
    """
    how = reading(columns=columns, time_unit=time_unit, default_event=default_event, urls=urls)
    views, events, pages = (
        pa.array(list(names), pa.string()) for names in (view_events, conversion_events, conversion_pages)
    )

    def count_per_minute(batch: pa.RecordBatch, context: Context) -> Result:
        refusals = Refusals(batch)
        made = typed(batch, how, refusals)
        micros = pc.cast(made["ts"], pa.int64())
        viewed = pc.is_in(made["event"], views)
        converted = pc.or_(pc.is_in(made["event"], events), pc.and_(viewed, pc.is_in(made["page"], pages)))
        zero = pa.scalar(0, PRICE)
        rows = pa.table(
            {
                # Times are not before 1970, so that division rounds down.
                "minute": pc.cast(pc.multiply(pc.divide(micros, _MINUTE_US), _MINUTE_US), EVENT_TIME),
                "page": made["page"],
                "_partition": column(batch, "_partition", wanted_by="per_minute"),
                "_offset": column(batch, "_offset", wanted_by="per_minute"),
                "views": pc.cast(viewed, pa.int64()),
                "conversions": pc.cast(converted, pa.int64()),
                "revenue": pc.if_else(converted, pc.fill_null(made["price"], zero), zero),
            }
        )
        if refusals.good is not None:
            rows = rows.filter(refusals.good)
        return Result(rows=_counted(rows), faults=refusals.faults())

    return count_per_minute


def _counted(rows: Any) -> pa.Table:
    grouped = rows.group_by(["_partition", "minute", "page"], use_threads=False).aggregate(
        [
            ("_offset", "min"),
            ("_offset", "max"),
            ("_offset", "count"),
            ("views", "sum"),
            ("conversions", "sum"),
            ("revenue", "sum"),
        ]
    )
    names = {
        "_partition": "_partition",
        "_offset_min": "_offset_first",
        "_offset_max": "_offset_last",
        "minute": "minute",
        "page": "page",
        "_offset_count": "events",
        "views_sum": "views",
        "conversions_sum": "conversions",
        "revenue_sum": "revenue",
    }
    counted = grouped.select(list(names)).rename_columns(list(names.values()))
    place = counted.schema.get_field_index("revenue")
    return counted.set_column(place, "revenue", pc.cast(counted.column("revenue"), pa.decimal128(38, 4)))
