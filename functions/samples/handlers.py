"""Handlers for the samples whose members are named in their own way. Not for other data.

The runways go through `functions.etl.runways`, the access log through `functions.log_filter`.

The msnbc page views have no clock of their own: ``made_up_time`` was made up, so only the order of one visitor's
pages is real. The set knows no purchases either: here a view of a page of the category ``travel`` counts as a
conversion, as if the site lived from bookings.

    [pipelines.clicks.schema]
    format = "json"
    columns = { made_up_time = "VARCHAR", user = "VARCHAR", position = "BIGINT", page = "VARCHAR" }

    [pipelines.clicks.function]
    kind = "arrow"
    handler = "functions.samples.handlers.page_events"

``{"made_up_time": "1999-09-28T00:00:20Z", "user": "v00001", "position": 2, "page": "travel"}`` becomes the row
``ts=1999-09-28T00:00:20Z, user="v00001", page="travel", event="page_view", position=2`` and so on, after its trace
columns.
"""

from __future__ import annotations

from functions.clickstream import page_events_of, per_minute_of, queries

__all__ = ["CONVERSION_PAGES", "conversions_per_minute", "page_events", "per_minute"]

CONVERSION_PAGES = ("travel",)

page_events = page_events_of(columns={"time": "made_up_time"}, extra=["position"])
per_minute = per_minute_of(
    columns={"time": "made_up_time"}, conversion_events=(), conversion_pages=CONVERSION_PAGES
)


def conversions_per_minute(relation: str) -> str:
    """`queries.conversions_per_minute` for rows of `page_events`."""
    return queries.conversions_per_minute(relation, conversion_events=(), conversion_pages=CONVERSION_PAGES)
