"""Page events typed and counted: real streams against answers computed elsewhere, and each thing refused."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import itertools
import json
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.context import Context
from engine.errors import ConfigError, HandlerError
from functions import samples
from functions.clickstream import page_events, page_events_of, per_minute, queries
from functions.samples import handlers

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
ANSWERS = DATA / "answers/wikiticker"
needs_data = pytest.mark.skipif(
    not ANSWERS.is_dir(), reason="the shared data are not here; the sample's tests stand in"
)
CONTEXT = Context("clickstream", "512", 0)


def traced(columns: Mapping[str, pa.Array | Sequence[object]], first: int = 0) -> pa.RecordBatch:
    """Columns with the trace columns before them."""
    count = len(next(iter(columns.values())))
    return pa.record_batch(
        {
            "_partition": pa.array([0] * count, pa.int32()),
            "_offset": pa.array(range(first, first + count), pa.int64()),
            "_timestamp": pa.array([0] * count, pa.timestamp("ms", tz="UTC")),
            **{
                name: values if isinstance(values, pa.Array) else pa.array(values)
                for name, values in columns.items()
            },
        }
    )


def one(values: Mapping[str, object], handler: Any = page_events) -> dict[str, Any]:
    """The row of one event, without trace columns."""
    result = handler(traced({name: [value] for name, value in values.items()}), CONTEXT)
    assert (list(result.faults), result.dropped) == ([], 0)
    (row,) = result.rows.to_pylist()
    return {name: value for name, value in row.items() if not name.startswith("_")}


EVENT = {"time": "2026-11-23T10:00:59.5Z", "user": "u1", "page": " /cart ", "event": "purchase", "price": "19.90"}


def test_the_documented_example() -> None:
    """The example in the docstring is what comes out, for events and for counts."""
    assert one(EVENT) == {
        "event_id": None,
        "ts": dt.datetime(2026, 11, 23, 10, 0, 59, 500000, tzinfo=dt.UTC),
        "user": "u1",
        "visit": None,
        "page": "/cart",
        "event": "purchase",
        "referrer": None,
        "price": Decimal("19.9000"),
    }
    assert one(EVENT, per_minute) == {
        "minute": dt.datetime(2026, 11, 23, 10, 0, tzinfo=dt.UTC),
        "page": "/cart",
        "events": 1,
        "views": 0,
        "conversions": 1,
        "revenue": Decimal("19.9000"),
    }


@pytest.mark.parametrize(
    ("values", "unit", "wanted"),
    [
        (["2015-09-12T00:46:58.771Z"], "ms", "2015-09-12T00:46:58.771000+00:00"),
        (["2015-09-12 00:46:58,771"], "ms", "2015-09-12T00:46:58.771000+00:00"),
        (["2015-09-12T00:46:58.123456789+05:30"], "ms", "2015-09-11T19:16:58.123456+00:00"),
        (["2015-09-12T00:46"], "ms", "2015-09-12T00:46:00+00:00"),
        (["2015-09-12"], "ms", "2015-09-12T00:00:00+00:00"),
        ([1442018818771], "ms", "2015-09-12T00:46:58.771000+00:00"),
        ([1442018818], "s", "2015-09-12T00:46:58+00:00"),
        ([1442018818771001], "us", "2015-09-12T00:46:58.771001+00:00"),
        (pa.array([1442018818771], pa.timestamp("ms", tz="UTC")), "ms", "2015-09-12T00:46:58.771000+00:00"),
        (["2015-02-31T00:00:00Z"], "ms", None),
        (["2015-09-12T24:00:00Z"], "ms", None),
        (["yesterday"], "ms", None),
        (["1969-12-31T23:59:59Z"], "ms", None),
        ([-1], "ms", None),
        ([1442018818771001], "s", None),
        ([""], "ms", None),
        (pa.array([None], pa.string()), "ms", None),
    ],
)
def test_times(values: Any, unit: str, wanted: str | None) -> None:
    """Event times come as text, numbers or timestamps; what is no time is a fault at its offset."""
    batch = traced({"time": values, "user": ["u"], "page": ["p"]}, 40)
    result = page_events_of(time_unit=unit)(batch, CONTEXT)
    if wanted is None:
        assert [fault.offset for fault in result.faults] == [40]
        assert "time" in result.faults[0].reason
    else:
        assert [row["ts"].isoformat() for row in result.rows.to_pylist()] == [wanted]


def test_bad_records_are_faults_and_the_others_go_on() -> None:
    """Each record that cannot be typed is reported once, with the first reason; the rest keeps its order."""
    batch = traced(
        {
            "time": ["2026-01-01T00:00:00Z"] * 5 + ["x", "2026-01-01T00:00:01Z"],
            "user": ["a", None, " ", "a", "a", None, "b"],
            "page": ["/", "/", "/", "", "/", "/", "/"],
            "price": ["1.5", None, "1", "1", "1e5", "1", "-2.50000"],
        },
        10,
    )
    result = page_events(batch, CONTEXT)
    assert [(fault.offset, fault.reason) for fault in result.faults] == [
        (11, "the user (user) is missing"),
        (12, "the user (user) is missing"),
        (13, "the page (page) is missing"),
        (14, "the price '1e5' is no number with at most 14 digits before the point and 4 after"),
        (15, "the user (user) is missing"),
    ]
    assert result.rows.column("_offset").to_pylist() == [10, 16]
    assert result.rows.column("price").to_pylist() == [Decimal("1.5000"), Decimal("-2.5000")]
    assert per_minute(batch, CONTEXT).faults == result.faults
    assert per_minute(batch, CONTEXT).rows.column("events").to_pylist() == [2]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.1 + 0.2], Decimal("0.3000")),
        ([19.99], Decimal("19.9900")),
        ([7], Decimal("7.0000")),
        ([None, "99999999999999.9999"], Decimal("99999999999999.9999")),
        ([float("inf")], None),
        ([float("nan")], None),
        ([1e14], None),
        ([10**15], None),
        (["100000000000000"], None),
        (["0.00001"], None),
    ],
)
def test_prices(values: list[Any], wanted: Decimal | None) -> None:
    """Prices are exact decimals whatever they come as; what would not fit is refused."""
    count = len(values)
    batch = traced({"time": [0] * count, "user": ["u"] * count, "page": ["p"] * count, "price": values})
    result = page_events(batch, CONTEXT)
    if wanted is None:
        assert len(result.faults) == 1
        assert "price" in result.faults[0].reason
    else:
        assert result.rows.column("price")[-1].as_py() == wanted


@pytest.mark.parametrize(
    ("url", "page"),
    [
        ("https://shop.example/a/b?x=1#top", "/a/b"),
        ("https://shop.example", "/"),
        ("http://[2001:db8::1]:80/é?q", "/é"),
        ("/already/a/path#x", "/already/a/path"),
    ],
)
def test_urls(url: str, page: str) -> None:
    """Where pages are URLs, the path is the page."""
    assert one({**EVENT, "page": url}, page_events_of(urls=True))["page"] == page


PRICES = st.decimals(min_value=-1000, max_value=1000, places=4, allow_nan=False).map(str)
EVENTS = st.tuples(
    st.integers(0, 400_000), st.sampled_from("ab"), st.sampled_from(["page_view", "purchase", "click"]), PRICES
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_counts_add_up_wherever_the_stream_is_cut(events: list[tuple[int, str, str, str]], cuts: list[int]) -> None:
    """Sums over the rows of any cutting are the counts of a plain Python loop over all events."""
    wanted: dict[tuple[int, str], list[Any]] = defaultdict(lambda: [0, 0, 0, Decimal(0)])
    for time, page, name, price in events:
        cell = wanted[time // 60_000, page]
        cell[0] += 1
        cell[1] += name == "page_view"
        cell[2] += name == "purchase"
        cell[3] += Decimal(price) if name == "purchase" else 0
    found: dict[tuple[int, str], list[Any]] = defaultdict(lambda: [0, 0, 0, Decimal(0)])
    edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for start, end in itertools.pairwise(edges):
        time, page, name, price = zip(*events[start:end], strict=True)
        columns = {"time": time, "user": ["u"] * len(time), "page": page, "event": name, "price": price}
        rows = per_minute(traced(columns, start), CONTEXT).rows
        assert sum(rows.column("events").to_pylist()) == end - start
        for row in rows.to_pylist():
            assert start <= row["_offset_first"] <= row["_offset_last"] < end
            cell = found[int(row["minute"].timestamp()) // 60, row["page"]]
            for place, column in enumerate(("events", "views", "conversions", "revenue")):
                cell[place] += row[column]
    assert found == wanted


def test_visits_split_after_more_than_the_gap() -> None:
    """A gap of exactly 30 minutes goes on with the visit, a millisecond more starts another."""
    minute = 60_000
    times = [0, 30 * minute, 60 * minute + 1, 60 * minute + 1, 0]
    batch = traced({"time": times, "user": [*"aaaa", "b"], "page": ["x", "y", "x", "x", "x"]})
    events = page_events(batch, CONTEXT).rows
    assert events.num_rows == 5
    found = duckdb.sql(f'SELECT "user", visit, events, pages FROM ({queries.visits("events")})').fetchall()
    assert found == [("a", 1, 2, 2), ("a", 2, 2, 1), ("b", 1, 1, 1)]
    starts = duckdb.sql(f"SELECT epoch_ms(minute), visits FROM ({queries.visits_per_minute('events')})").fetchall()
    assert starts == [(0, 2), (60 * minute, 1)]


def cells(query: str, **tables: pa.Table) -> list[tuple[Any, ...]]:
    """A query's rows, by way of Arrow: DuckDB alone gives no times with a zone to Python."""
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return [tuple(row.values()) for row in connection.execute(query).to_arrow_table().to_pylist()]


def sample(handler: Any, size: int) -> pa.Table:
    """The page view sample through a handler; nothing of it may be refused."""
    events = [json.loads(line) for line in samples.lines("msnbc-page-views")]
    tables = []
    for start in range(0, len(events), size):
        part = events[start : start + size]
        result = handler(traced({name: [e[name] for e in part] for name in part[0]}, start), CONTEXT)
        assert (list(result.faults), result.dropped) == ([], 0)
        tables.append(result.rows)
    return pa.concat_tables(tables)


def test_sample_answers() -> None:
    """Events, visits, pages and conversions of the sample are those counted in plain Python."""
    wanted = samples.expected("msnbc-page-views")
    events, partial = sample(handlers.page_events, 10_000), sample(handlers.per_minute, 777)
    assert events.num_rows == wanted["events"]
    visits = duckdb.sql(f'SELECT count(*), count(DISTINCT "user") FROM ({queries.visits("events")})').fetchone()
    assert visits == (wanted["visits"], wanted["users"])
    assert (
        sum(duckdb.sql(queries.visits_per_minute("events")).to_arrow_table().column("visits").to_pylist())
        == visits[0]
    )
    pages = duckdb.sql("SELECT page, sum(views)::BIGINT FROM partial GROUP BY page ORDER BY page").fetchall()
    assert dict(pages) == wanted["pages"]
    totals = duckdb.sql(queries.totals_per_minute("partial")).to_arrow_table()
    assert totals.num_rows < partial.num_rows
    busiest = duckdb.sql(
        """SELECT strftime(minute, '%Y-%m-%dT%H:%MZ'), sum(views)::BIGINT AS n FROM totals
            GROUP BY 1 ORDER BY n DESC, 1"""
    ).fetchall()
    assert [list(row) for row in busiest[:10]] == wanted["busiest_minutes"]
    assert len(busiest) == wanted["minutes"]
    by_event = cells(handlers.conversions_per_minute("events"), events=events)
    by_count = cells(
        "SELECT minute, sum(conversions)::BIGINT AS n FROM totals GROUP BY 1 HAVING n > 0 ORDER BY 1", totals=totals
    )
    assert [row[:2] for row in by_event] == by_count
    assert (sum(row[1] for row in by_count), len(by_count)) == (wanted["conversions"], wanted["conversion_minutes"])
    views = cells(queries.pages_per_minute("events"), events=events)
    assert [row[:3] for row in views] == [
        (row["minute"], row["page"], row["views"]) for row in totals.to_pylist() if row["views"]
    ]


SNOWPLOW = {
    "time": "derived_tstamp",
    "user": "domain_userid",
    "visit": "domain_sessionid",
    "page": "page_urlpath",
    "event": "event_name",
    "referrer": "page_referrer",
    "price": "tr_total_base",
}
#: Sessions, by the ends of their names, that Snowplow's model counts in ways of its own: why, and our count.
SNOWPLOW_SPECIAL = {
    "77bd35": ("days long: the model cuts it off", 4),
    "1b12d": ("has an event eight months before the others: the model leaves it out", 2),
    "71a3b": ("its event has no user: a fault here", 0),
    "f9140d": ("page pings alone, which the model counts as a view", 0),
    "0fce8": ("page pings alone, which the model counts as a view", 0),
    "f9140e": ("page pings alone, which the model counts as a view", 0),
}


def test_snowplow_page_views_and_sessions() -> None:
    """The page views and session counts that Snowplow's own model expects are in the typed events."""
    records = [json.loads(line) for line in samples.lines("snowplow-events")]
    wanted = samples.expected("snowplow-events")
    batch = traced({name: pa.array([r[name] for r in records], pa.string()) for name in records[0]})
    result = page_events_of(columns=SNOWPLOW, extra=["page_view_id"])(batch, CONTEXT)
    assert [fault.reason for fault in result.faults] == ["the user (domain_userid) is missing"]
    rows = result.rows.to_pylist()
    views = {
        (row["page_view_id"], row["event_id"], row["visit"], row["page"], row["ts"].replace(tzinfo=None))
        for row in rows
        if row["event"] == "page_view"
    }
    nameless = {r["event_id"] for r in records if r["domain_userid"] is None}
    expected = {
        (
            v["page_view_id"],
            v["event_id"],
            v["domain_sessionid"],
            v["page_urlpath"],
            dt.datetime.fromisoformat(v["derived_tstamp"]),
        )
        for v in wanted["page_views"]
        if v["event_id"] not in nameless
    }
    assert len(expected) == 42
    assert expected <= views
    per_visit = defaultdict(set)
    for row in rows:
        if row["event"] == "page_view":
            per_visit[row["visit"]].add(row["page_view_id"])
    found = {
        session["domain_sessionid"]: len(per_visit[session["domain_sessionid"]]) for session in wanted["sessions"]
    }
    special = {name: n for name in found for end, (_, n) in SNOWPLOW_SPECIAL.items() if name.endswith(end)}
    assert len(special) == len(SNOWPLOW_SPECIAL)
    model = {session["domain_sessionid"]: int(session["page_views"]) for session in wanted["sessions"]}
    assert found == {**model, **special}
    assert [row["price"] for row in rows if row["price"] is not None] == [Decimal("15.9000")]


def wikiticker() -> pa.Table:
    """The edits of Wikipedia as page events, in batches."""
    with gzip.open(
        DATA / "wikiticker/wikiticker-2015-09-12-sampled.restored.json.gz", "rt", encoding="utf-8"
    ) as file:
        records = [json.loads(line) for line in file]
    handler = page_events_of(extra=["delta", "isRobot"])
    tables = []
    for start in range(0, len(records), 5000):
        part = records[start : start + 5000]
        columns = {name: [record[name] for record in part] for name in ("time", "user", "page", "delta", "isRobot")}
        result = handler(traced(columns, start), CONTEXT)
        assert result.faults == []
        tables.append(result.rows)
    return pa.concat_tables(tables)


def answer(name: str) -> list[tuple[str, ...]]:
    with (ANSWERS / name).open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


@needs_data
@pytest.mark.slow
def test_wikiticker_answers() -> None:
    """Top pages, sessions of every user and five-minute windows are the independent answers, row by row."""
    events = wikiticker()
    assert events.num_rows == 39_244
    top = duckdb.sql("SELECT page, count(*) AS n FROM events GROUP BY 1 ORDER BY n DESC, page LIMIT 50").fetchall()
    assert [(page, str(n)) for page, n in top] == answer("q1-top-pages.csv")
    found = duckdb.sql(
        f"""SELECT "user", epoch_ms(visit_start), epoch_ms(visit_end), events, pages
            FROM ({queries.visits("events")}) ORDER BY "user", visit_start"""
    ).fetchall()
    assert [tuple(map(str, row)) for row in found] == [row[:5] for row in answer("q3-user-sessions-30min.csv")]
    windows = Counter[str]()
    for relation in ("(SELECT * FROM events WHERE isRobot)", "(SELECT * FROM events WHERE NOT isRobot)"):
        query = queries.pages_per_minute(relation, minutes=5)
        rows = duckdb.sql(f"SELECT strftime(minute, '%Y-%m-%dT%H:%M:%SZ'), sum(views) FROM ({query}) GROUP BY 1")
        robot = "false" if "NOT" in relation else "true"
        windows.update({f"{start} {robot}": int(n) for start, n in rows.fetchall()})
    assert windows == {f"{row[0]} {row[1]}": int(row[2]) for row in answer("q5-tumbling-5min-robots.csv")}


@needs_data
@pytest.mark.slow
def test_sample_is_a_part_of_the_shared_data() -> None:
    """The committed visitors' pages are those of the first sequences of the source, in their order."""
    with zipfile.ZipFile(DATA / "msnbc/msnbc990928.zip") as archive:
        text = archive.read("msnbc990928.seq").decode().split("\n")
    names = text[2].split()
    sequences = [[names[int(page) - 1] for page in line.split()] for line in text[:9000] if line[:1].isdigit()][
        :8000
    ]
    found: dict[str, list[str]] = defaultdict(list)
    for line in samples.lines("msnbc-page-views"):
        event = json.loads(line)
        found[event["user"]].append(event["page"])
        assert event["position"] == len(found[event["user"]])
    assert [found[f"v{number:05}"] for number in range(1, 8001)] == sequences


def test_settings_and_columns() -> None:
    """Settings that cannot be used are all named, and so are columns that are not there."""
    with pytest.raises(ConfigError) as caught:
        page_events_of(columns={"usr": "x"}, time_unit="h", extra=["page"])
    for part in ("'usr'", "'h'", "'page'"):
        assert part in str(caught.value)
    with pytest.raises(HandlerError, match=r"page_events \(user\) needs the column 'user'; the batch has"):
        page_events(traced({"time": [1], "page": ["x"]}), CONTEXT)
    with pytest.raises(HandlerError, match="'country'"):
        page_events_of(extra=["country"])(traced({"time": [1], "user": ["u"], "page": ["x"]}), CONTEXT)


def test_defaults() -> None:
    """A record without an event is a page view; members that are not there are null; user ids may be numbers."""
    row = one({"time": 0, "user": 17, "page": "p"})
    assert (row["event"], row["user"], row["price"], row["referrer"]) == ("page_view", "17", None, None)


def test_samples_are_named_and_small() -> None:
    """Every sample has a file below one megabyte and a description; an unknown name says which there are."""
    for name in samples.DESCRIPTIONS:
        assert 0 < samples.path(name).stat().st_size < 1_000_000
    with pytest.raises(KeyError, match="nasa-access"):
        samples.path("nope")
