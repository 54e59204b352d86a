"""Page events of a web site: typed events, counts per minute, visits. Handlers of kind ``arrow``, and queries.

`page_events` cleans and types; `per_minute` counts, batch by batch, so that the counts add up; `queries` has the
SQL that gives visits, pages and conversions per minute from what they wrote. A record that cannot be typed is
reported as a fault with its reason, and the others go on. Not here: identifying users, or removing robots.

    [pipelines.clicks.source]
    topic = "clicks"

    [pipelines.clicks.schema]
    format = "json"
    columns = { time = "VARCHAR", user = "VARCHAR", page = "VARCHAR", event = "VARCHAR", price = "VARCHAR" }

    [pipelines.clicks.function]
    kind = "arrow"
    handler = "functions.clickstream.page_events"

    [pipelines.clicks.sink]
    type = "parquet"
    path = "out/clicks"

Where the members have other names, bind a handler in a module of one's own::

    from functions.clickstream import page_events_of

    edits = page_events_of(columns={"event": "action"}, extra=["country"])

``{"time": "2026-11-23T10:00:59.5Z", "user": "u1", "page": " /cart ", "event": "purchase", "price": "19.90"}``
becomes, after its trace columns, ``event_id=None, ts=2026-11-23T10:00:59.5Z, user="u1", visit=None, page="/cart",
event="purchase", referrer=None, price=19.9000``; `per_minute` makes of it ``minute=2026-11-23T10:00:00Z,
page="/cart", events=1, views=0, conversions=1, revenue=19.9000``.
"""

from __future__ import annotations

from functions.clickstream import queries
from functions.clickstream.events import page_events_of
from functions.clickstream.minutes import per_minute_of

__all__ = ["page_events", "page_events_of", "per_minute", "per_minute_of", "queries"]

page_events = page_events_of()
per_minute = per_minute_of()
