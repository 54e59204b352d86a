"""Questions about page events, as SQL text for DuckDB over what the handlers wrote. Runs nothing.

``relation`` is what stands after FROM: a table's name, or ``read_parquet('out/clicks/**/*.parquet')``. It is put
into the text as it is, so it must not come from a stranger. `visits`, `visits_per_minute`, `pages_per_minute` and
`conversions_per_minute` read the rows of `page_events`; `totals_per_minute` reads those of `per_minute`.
"""

from __future__ import annotations

from collections.abc import Sequence

# ruff: noqa: S608 - the functions' purpose is SQL from a relation that the caller names

#: A visit ends when its user does nothing for longer than this.
VISIT_GAP_MINUTES = 30


def visits(relation: str, *, gap_minutes: int = VISIT_GAP_MINUTES) -> str:
    """Visits: ``user, visit`` (from 1 for each user) ``, visit_start, visit_end, events, pages``.

    A new visit starts when the gap to the same user's previous event is *more* than ``gap_minutes``. Events of the
    same time go by their place in the topic. ``visit_end`` is the time of the last event, ``pages`` how many
    different ones there were.
    """
    return f"""
        WITH gaps AS (
            SELECT "user", ts, page, _partition, _offset,
                ts - lag(ts) OVER one_user > INTERVAL {int(gap_minutes)} MINUTE AS after_gap
            FROM {relation}
            WINDOW one_user AS (PARTITION BY "user" ORDER BY ts, _partition, _offset)
        ), numbered AS (
            SELECT "user", ts, page, 1 + count(*) FILTER (WHERE after_gap) OVER (
                PARTITION BY "user" ORDER BY ts, _partition, _offset ROWS UNBOUNDED PRECEDING
            ) AS visit
            FROM gaps
        )
        SELECT "user", visit, min(ts) AS visit_start, max(ts) AS visit_end, count(*) AS events,
            count(DISTINCT page) AS pages
        FROM numbered GROUP BY "user", visit ORDER BY "user", visit
    """


def visits_per_minute(relation: str, *, gap_minutes: int = VISIT_GAP_MINUTES) -> str:
    """Visits by the minute in which they start: ``minute, visits``."""
    return f"""
        SELECT time_bucket(INTERVAL 1 MINUTE, visit_start) AS minute, count(*) AS visits
        FROM ({visits(relation, gap_minutes=gap_minutes)}) GROUP BY minute ORDER BY minute
    """


def pages_per_minute(relation: str, *, view_events: Sequence[str] = ("page_view",), minutes: int = 1) -> str:
    """Views of each page per window of ``minutes`` (aligned to the epoch): ``minute, page, views, users``."""
    return f"""
        SELECT {_window(minutes)} AS minute, page, count(*) AS views, count(DISTINCT "user") AS users
        FROM {relation} WHERE {_one_of("event", view_events)} GROUP BY ALL ORDER BY minute, page
    """


def conversions_per_minute(
    relation: str,
    *,
    conversion_events: Sequence[str] = ("purchase",),
    conversion_pages: Sequence[str] = (),
    view_events: Sequence[str] = ("page_view",),
    minutes: int = 1,
) -> str:
    """Conversions per window, as `per_minute_of` counts them: ``minute, conversions, users, revenue``."""
    page = f"({_one_of('event', view_events)} AND {_one_of('page', conversion_pages)})"
    return f"""
        SELECT {_window(minutes)} AS minute, count(*) AS conversions, count(DISTINCT "user") AS users,
            coalesce(sum(price), 0) AS revenue
        FROM {relation} WHERE {_one_of("event", conversion_events)} OR {page} GROUP BY minute ORDER BY minute
    """


def totals_per_minute(relation: str) -> str:
    """The partial counts of `per_minute` added up: ``minute, page, events, views, conversions, revenue``."""
    return f"""
        SELECT minute, page, sum(events)::BIGINT AS events, sum(views)::BIGINT AS views,
            sum(conversions)::BIGINT AS conversions, sum(revenue) AS revenue
        FROM {relation} GROUP BY minute, page ORDER BY minute, page
    """


def _window(minutes: int) -> str:
    # An origin, because DuckDB aligns windows to 2000-01-03 otherwise.
    return f"time_bucket(INTERVAL {int(minutes)} MINUTE, ts, TIMESTAMPTZ '1970-01-01 00:00:00+00')"


def _one_of(name: str, values: Sequence[str]) -> str:
    if not values:
        return "false"
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{name} IN ({listed})"
