"""Log lines parsed, kept and refused: the formats' own examples, real lines with known answers, odd lines."""

from __future__ import annotations

import csv
import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.context import Context
from engine.errors import ConfigError, HandlerError
from engine.protocols import Result
from functions import samples
from functions.log_filter import access_log, failures, from_environment, log_filter, server_errors, syslog, warnings

DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
ANSWERS = DATA / "answers/nasa-aug95-20k"
needs_data = pytest.mark.skipif(
    not ANSWERS.is_dir(), reason="the shared data are not here; the sample's tests stand in"
)
CONTEXT = Context("log-filter", "512", 0)
RECEIVED = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)


def batch(lines: Sequence[str | None], received: dt.datetime = RECEIVED) -> pa.RecordBatch:
    """Lines as the engine gives them."""
    count = len(lines)
    return pa.record_batch(
        {
            "_partition": pa.array([3] * count, pa.int32()),
            "_offset": pa.array(range(100, 100 + count), pa.int64()),
            "_timestamp": pa.array([received] * count, pa.timestamp("ms", tz="UTC")),
            "line": pa.array(lines, pa.string()),
        }
    )


def only(result: Result) -> dict[str, Any]:
    """The one row of a result without faults."""
    assert (list(result.faults), result.dropped) == ([], 0)
    (row,) = result.rows.to_pylist()
    return row


def row_of(line: str, handler: Any = access_log) -> dict[str, Any]:
    """The row of one line, without trace columns."""
    return {
        name: value for name, value in only(handler(batch([line]), CONTEXT)).items() if not name.startswith("_")
    }


def test_common_line() -> None:
    """The common format's example in Apache's manual gives its fields, the trace columns first."""
    line = '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326'
    assert only(access_log(batch([line]), CONTEXT)) == {
        "_partition": 3,
        "_offset": 100,
        "_timestamp": RECEIVED,
        "host": "127.0.0.1",
        "ident": None,
        "user": "frank",
        "ts": dt.datetime(2000, 10, 10, 20, 55, 36, tzinfo=dt.UTC),
        "method": "GET",
        "path": "/apache_pb.gif",
        "protocol": "HTTP/1.0",
        "status": 200,
        "bytes": 2326,
        "referrer": None,
        "agent": None,
    }


COMBINED = (
    '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326 '
    '"http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)"'
)


def test_combined_line() -> None:
    """The combined format's example in Apache's manual gives referrer and agent."""
    row = row_of(COMBINED)
    assert row["referrer"] == "http://www.example.com/start.html"
    assert row["agent"] == "Mozilla/4.08 [en] (Win98; I ;Nav)"
    assert (row["status"], row["bytes"], row["path"]) == (200, 2326, "/apache_pb.gif")


HEAD = "h - - [01/Aug/1995:00:00:01 +0530]"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (f'{HEAD} "GET / HTTP/1.0" 304 -', {"bytes": 0, "path": "/"}),
        (f'{HEAD} "GET /a"b HTTP/1.0" 200 5', {"path": '/a"b', "protocol": "HTTP/1.0", "bytes": 5}),
        (f'{HEAD} "GET /a"b HTTP/1.0" 200 5 "r" "x"', {"path": '/a"b', "referrer": "r", "agent": "x"}),
        (f'{HEAD} "GET /a\\"b HTTP/1.1" 200 5', {"path": '/a"b', "protocol": "HTTP/1.1"}),
        (f'{HEAD} "GET /old" 200 5', {"method": "GET", "path": "/old", "protocol": None}),
        (f'{HEAD} "GET /two words HTTP/1.0" 200 5', {"path": "/two words", "protocol": "HTTP/1.0"}),
        (f'{HEAD} "GET /blanks   HTTP/1.0" 200 5', {"path": "/blanks", "protocol": "HTTP/1.0"}),
        (
            f'{HEAD} "-" 408 0 "-" "-"',
            {"method": None, "path": None, "referrer": None, "agent": None, "status": 408},
        ),
        (f'{HEAD} "\\x16\\x03\\xff" 400 0', {"method": None, "path": "\\x16\\x03\\xff", "status": 400}),
        (f'{HEAD} "GET /\\xc3\\xa9 HTTP/1.1" 200 5', {"path": "/é"}),
        (f'{HEAD} "GET /é/日本 HTTP/1.1" 200 5', {"path": "/é/日本"}),
        (f'{HEAD} "GET /\\\\x41 HTTP/1.1" 200 5', {"path": "/\\\\x41"}),
        ('2001:db8::1 - - [01/Aug/1995:00:00:01 +0000] "GET / HTTP/2.0" 200 5', {"host": "2001:db8::1"}),
        ('h - a b [01/Aug/1995:00:00:01 +0000] "GET / HTTP/1.1" 200 5', {"user": "a b"}),
        (
            f'{HEAD} "GET / HTTP/1.1" 200 5\r',
            {"bytes": 5, "ts": dt.datetime(1995, 7, 31, 18, 30, 1, tzinfo=dt.UTC)},
        ),
        (f'{HEAD} "GET / HTTP/1.1" 200 5 "" ""', {"referrer": "", "agent": ""}),
    ],
)
def test_odd_access_lines(line: str, wanted: dict[str, object]) -> None:
    """Lines that servers do write, but not every day, are parsed to what they say."""
    row = row_of(line)
    assert {name: row[name] for name in wanted} == wanted
    assert row["host"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "the line is not in the common or combined log format: ''"),
        (None, "the line is not in the common or combined log format: None"),
        ("nonsense", "the line is not in the common or combined log format: 'nonsense'"),
        (COMBINED + " more", "not in the common or combined log format"),
        ('h - - [31/Feb/1995:00:00:01 +0000] "GET / HTTP/1.0" 200 5', "time '31/Feb/1995:00:00:01 +0000' is none"),
        ('h - - [01/Foo/1995:00:00:01 +0000] "GET / HTTP/1.0" 200 5', "time '01/Foo/1995:00:00:01 +0000' is none"),
        ('h - - [01/Aug/1995:24:00:01 +0000] "GET / HTTP/1.0" 200 5', "time '01/Aug/1995:24:00:01 +0000' is none"),
        (f'{HEAD} "GET / HTTP/1.0" 200 99999999999999999999', "size '99999999999999999999' is out of range"),
        (f'{HEAD} "GET / HTTP/1.0" 20 5', "not in the common or combined log format"),
    ],
)
def test_unparsable_lines_are_faults(line: str | None, reason: str) -> None:
    """A line that is none is a fault at its offset, and the lines around it go on."""
    good = f'{HEAD} "GET / HTTP/1.0" 200 5'
    result = access_log(batch([good, line, good]), CONTEXT)
    assert [(fault.offset, reason in fault.reason) for fault in result.faults] == [(101, True)]
    assert result.rows.column("_offset").to_pylist() == [100, 102]
    assert result.dropped == 0


def test_formats_are_told_apart() -> None:
    """Common takes no combined line and the reverse; access takes both."""
    lines = [f'{HEAD} "GET / HTTP/1.0" 200 5', COMBINED]
    found = {
        kind: [fault.offset for fault in log_filter(kind)(batch(lines), CONTEXT).faults]
        for kind in ("common", "combined", "access")
    }
    assert found == {"common": [101], "combined": [100], "access": []}


@settings(deadline=None)
@given(st.lists(st.text(max_size=80) | st.text(alphabet='ab "[]:/-0123 \\\n', max_size=80), max_size=20))
def test_every_line_is_accounted_for(lines: list[str]) -> None:
    """Whatever the lines are: a row, a fault or dropped, each exactly once."""
    lines = [*lines, COMBINED]
    for handler in (access_log, server_errors, syslog, log_filter("log4j"), log_filter(keep_pattern="a")):
        result = handler(batch(lines), CONTEXT)
        assert result.rows.num_rows + len(result.faults) + result.dropped == len(lines)
        offsets = [*result.rows.column("_offset").to_pylist(), *(fault.offset for fault in result.faults)]
        assert len(set(offsets)) == len(offsets)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([COMBINED, "x", f'{HEAD} "GET /a b" 404 -', f'{HEAD} "GET /a HTTP/1.0" 500 7']), max_size=12
    )
)
def test_rows_do_not_depend_on_their_neighbours(lines: list[str]) -> None:
    """Plain, combined and odd lines in any mixture give the rows that each gives alone, in order."""
    alone = [
        row for line in lines for row in access_log(batch([line]), CONTEXT).rows.drop_columns("_offset").to_pylist()
    ]
    assert access_log(batch(lines), CONTEXT).rows.drop_columns("_offset").to_pylist() == alone


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_status": "5xx"}, [2]),
        ({"keep_status": "400-499,200"}, [0, 1]),
        ({"keep_status": 404}, [1]),
        ({"keep_path": "/api/"}, [0, 2]),
        ({"keep_path": "*.gif"}, [1]),
        ({"keep_path": "/img/?.gif,/api/x"}, [0, 1, 2]),
        ({"keep_path": "/x.y"}, []),
        ({"keep_pattern": r"HTTP/1\.1"}, [2]),
        ({"keep_status": "5xx", "keep_path": "/img"}, []),
        ({}, [0, 1, 2]),
    ],
)
def test_keep(settings: dict[str, Any], kept: list[int]) -> None:
    """Each condition keeps what it says, all must hold, and the rest counts as dropped."""
    lines = [
        f'{HEAD} "GET /api/x?from=/img/a.gif HTTP/1.0" 200 5',
        f'{HEAD} "GET /img/a.gif?v=1 HTTP/1.0" 404 5',
        f'{HEAD} "GET /api/xzy HTTP/1.1" 503 5',
    ]
    result = log_filter(**settings)(batch(lines), CONTEXT)
    assert [offset - 100 for offset in result.rows.column("_offset").to_pylist()] == kept
    assert (list(result.faults), result.dropped) == ([], 3 - len(kept))


def test_syslog_5424() -> None:
    """RFC 5424's examples give their fields, structured data as text, nil values as null."""
    first = row_of(
        "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed", syslog
    )
    assert first == {
        "priority": 34,
        "facility": "auth",
        "severity": 2,
        "level": "crit",
        "ts": dt.datetime(2003, 10, 11, 22, 14, 15, 3000, tzinfo=dt.UTC),
        "host": "mymachine.example.com",
        "app": "su",
        "pid": None,
        "msgid": "ID47",
        "data": None,
        "message": "'su root' failed",
    }
    data = r'[a@1 iut="3" x="q\"]"][b@2 c="d"]'
    second = row_of(f"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - {data}", syslog)
    assert (second["data"], second["pid"], second["message"]) == (data, "8710", "")
    assert second["ts"] == dt.datetime(2003, 8, 24, 12, 14, 15, 3, tzinfo=dt.UTC)
    assert row_of("<0>1 - - - - - -", syslog)["ts"] is None


@pytest.mark.parametrize(
    ("received", "offset", "line", "wanted"),
    [
        ("2024-03-01", "+00:00", "<34>Oct 11 22:14:15 mymachine su: failed", "2023-10-11T22:14:15+00:00"),
        ("2024-01-01", "+00:00", "Dec 31 23:59:59 m cron[7]: x", "2023-12-31T23:59:59+00:00"),
        ("2023-12-31", "+00:00", "Jan  1 00:00:01 m x", "2024-01-01T00:00:01+00:00"),
        ("2025-03-01", "+00:00", "Feb 29 01:00:00 m x", "2024-02-29T01:00:00+00:00"),
        ("2024-03-01", "+02:00", "Mar  1 02:00:00 m x", "2024-03-01T00:00:00+00:00"),
        ("2024-03-01", "+02:00", "2003-10-11T22:14:15.5-07:00 m x", "2003-10-12T05:14:15.500000+00:00"),
    ],
)
def test_syslog_3164_times(received: str, offset: str, line: str, wanted: str) -> None:
    """The year is the one nearest to the record's timestamp; the zone is the setting's, where the line has none."""
    when = dt.datetime.fromisoformat(received).replace(tzinfo=dt.UTC)
    row = only(log_filter("syslog", utc_offset=offset)(batch([line], when), CONTEXT))
    assert row["ts"] == dt.datetime.fromisoformat(wanted)


def test_syslog_3164_fields() -> None:
    """Tag, process and message are told apart, with and without a priority."""
    row = row_of("Jun 14 15:16:01 combo sshd(pam_unix)[19939]: authentication failure; logname= uid=0", syslog)
    assert (row["host"], row["app"], row["pid"]) == ("combo", "sshd(pam_unix)", "19939")
    assert (row["message"], row["priority"], row["level"]) == ("authentication failure; logname= uid=0", None, None)
    bare = row_of("<13>Jun 14 15:16:01 combo last message repeated 2 times", syslog)
    assert (bare["app"], bare["message"], bare["level"]) == (None, "last message repeated 2 times", "notice")


def test_syslog_refusals() -> None:
    """Impossible priorities and times, and lines that are no syslog, are faults."""
    lines = ["<192>1 - - - - - -", "<34>Feb 30 22:14:15 m su: x", "hello", "<34>1 2003-13-11T22:14:15Z h a - - -"]
    result = syslog(batch(lines), CONTEXT)
    assert [fault.offset for fault in result.faults] == [100, 101, 102, 103]
    assert [fault.reason.split(":")[0][:30] for fault in result.faults] == [
        "priority 192 is above 191",
        "'Feb 30 22",
        "the line is not syslog of RFC ",
        "'2003-13-11T22",
    ]
    assert result.rows.num_rows == 0


def test_levels() -> None:
    """One level keeps it and what is more severe, a list exactly its own; a line without a level is dropped."""
    lines = [f"<{8 + severity}>1 - h - - - -" for severity in range(8)] + ["Jun 14 15:16:01 combo x"]
    kept = lambda handler: handler(batch(lines), CONTEXT).rows.column("severity").to_pylist()  # noqa: E731
    assert kept(warnings) == [0, 1, 2, 3, 4]
    assert kept(log_filter("syslog", keep_level="info,ERROR")) == [3, 6]
    assert warnings(batch(lines), CONTEXT).dropped == 4


def test_log4j() -> None:
    """log4j's usual layout is parsed; the lines of a stack trace are reported."""
    lines = [
        "[2016-12-20 00:00:36,888] INFO Deleting segment 912806 from log test-1. (kafka.log.Log)",
        "[2016-12-20 00:00:37,001] ERROR boom",
        "\tat kafka.Kafka.main(Kafka.scala)",
    ]
    result = log_filter("log4j", keep_level="info")(batch(lines), CONTEXT)
    assert [(row["level"], row["message"], row["logger"]) for row in result.rows.to_pylist()] == [
        ("INFO", "Deleting segment 912806 from log test-1.", "kafka.log.Log"),
        ("ERROR", "boom", None),
    ]
    assert result.rows.column("ts")[0].as_py() == dt.datetime(2016, 12, 20, 0, 0, 36, 888000, tzinfo=dt.UTC)
    assert [fault.offset for fault in result.faults] == [102]


def test_settings_faults_are_all_reported() -> None:
    """Every setting that cannot be used is named at once."""
    with pytest.raises(ConfigError) as caught:
        log_filter("comon", keep_status="600-500,x", keep_level="loud", keep_pattern="(", utc_offset="2")
    text = str(caught.value)
    for part in ("'comon'", "'600-500'", "'x'", "'loud'", "'('", "'2'"):
        assert part in text
    with pytest.raises(ConfigError, match="lines of format 'syslog' have no status"):
        log_filter("syslog", keep_status=500)


def test_environment() -> None:
    """The variables are the settings; an unknown one is refused with the nearest."""
    handler = from_environment({"LOG_FILTER_FORMAT": "common", "LOG_FILTER_KEEP_STATUS": "4xx,500", "HOME": "/"})
    result = handler(batch([f'{HEAD} "GET / HTTP/1.0" {status} 5' for status in (200, 404, 500)]), CONTEXT)
    assert result.rows.column("status").to_pylist() == [404, 500]
    with pytest.raises(ConfigError, match="LOG_FILTER_KEEP_STATSU: no such setting; valid: KEEP_STATUS"):
        from_environment({"LOG_FILTER_KEEP_STATSU": "5xx"})


def test_missing_column() -> None:
    """A batch without lines says what it has."""
    with pytest.raises(HandlerError, match="needs the column 'line'; the batch has x"):
        access_log(pa.record_batch({"x": [1]}), CONTEXT)


def test_empty_batch() -> None:
    """No lines give no rows, of the same schema."""
    full = access_log(batch([COMBINED]), CONTEXT).rows.schema
    assert access_log(batch([]), CONTEXT).rows.schema == full
    assert syslog(batch([]), CONTEXT).rows.num_rows == 0


def sample_rows(step: int = 3000) -> pa.Table:
    """The access log sample through the handler in several batches; every line must be taken."""
    lines = samples.lines("nasa-access")
    results = [access_log(batch(lines[start : start + step]), CONTEXT) for start in range(0, len(lines), step)]
    assert not any(result.faults or result.dropped for result in results)
    return pa.concat_tables([result.rows for result in results])


def test_sample_answers() -> None:
    """The sample's lines give the totals that were counted in plain Python."""
    log = sample_rows()
    wanted = samples.expected("nasa-access")
    assert log.num_rows == wanted["lines"]
    status = duckdb.sql("SELECT status, count(*), sum(bytes)::BIGINT FROM log GROUP BY 1 ORDER BY 1").fetchall()
    assert {str(code): {"lines": n, "bytes": size} for code, n, size in status} == wanted["status"]
    for column in ("path", "host"):
        top = duckdb.sql(
            f"SELECT {column}, count(*) AS n FROM log GROUP BY 1 ORDER BY n DESC, 1 LIMIT 10"
        ).fetchall()
        assert [list(row) for row in top] == wanted[f"top_{column}s"]
    lines = samples.lines("nasa-access")
    assert failures(batch(lines), CONTEXT).rows.num_rows == 188
    assert server_errors(batch(lines), CONTEXT).dropped == 20000


def answer(name: str) -> list[tuple[str, ...]]:
    """A CSV of answers, without its header."""
    with (ANSWERS / name).open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


QUERIES = {
    "q1-status-per-minute.csv": """SELECT strftime(time_bucket(INTERVAL 1 MINUTE, t), '%Y-%m-%dT%H:%M:%SZ'), status,
        count(*), sum(bytes)::BIGINT FROM log GROUP BY ALL ORDER BY 1, 2""",
    "q2-status-totals.csv": "SELECT status, count(*), sum(bytes)::BIGINT FROM log GROUP BY 1 ORDER BY 1",
    "q4-filter-4xx.csv": """SELECT line_no, status, host, concat_ws(' ', method, path, protocol) FROM log
        WHERE status BETWEEN 400 AND 499 ORDER BY 1""",
    "q5-top-paths.csv": "SELECT path, count(*) AS n FROM log GROUP BY 1 ORDER BY n DESC, path LIMIT 50",
    "q6-top-hosts.csv": """SELECT host, count(*) AS n, sum(bytes)::BIGINT FROM log GROUP BY 1
        ORDER BY n DESC, host LIMIT 50""",
    "q8-host-sessions-30min.csv": """WITH o AS (SELECT *, lag(t) OVER w AS p FROM log
            WINDOW w AS (PARTITION BY host ORDER BY t, line_no)),
        s AS (SELECT *, count(*) FILTER (WHERE p IS NULL OR t - p > INTERVAL 30 MINUTE) OVER
            (PARTITION BY host ORDER BY t, line_no ROWS UNBOUNDED PRECEDING) AS sid FROM o)
        SELECT host, strftime(min(t), '%Y-%m-%dT%H:%M:%SZ'), strftime(max(t), '%Y-%m-%dT%H:%M:%SZ'), count(*),
            sum(bytes)::BIGINT FROM s GROUP BY host, sid ORDER BY host, 2""",
    "q9-hopping-10min-by-5min.csv": """SELECT strftime(w, '%Y-%m-%dT%H:%M:%SZ'),
            strftime(w + INTERVAL 10 MINUTE, '%Y-%m-%dT%H:%M:%SZ'), count(*), count(DISTINCT host)
        FROM (SELECT host, unnest([time_bucket(INTERVAL 5 MINUTE, t),
            time_bucket(INTERVAL 5 MINUTE, t) - INTERVAL 5 MINUTE]) AS w FROM log) GROUP BY w ORDER BY 1""",
}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", QUERIES)
def test_answers(name: str) -> None:
    """The answers that were computed from the raw file without this code come out row by row."""
    rows = sample_rows(len(samples.lines("nasa-access")))
    connection = duckdb.connect()
    connection.register("rows", rows.set_column(6, "ts", rows.column("ts").cast(pa.timestamp("us"))))
    connection.execute("CREATE TABLE log AS SELECT *, _offset - 99 AS line_no, ts AS t FROM rows")
    found = connection.execute(QUERIES[name]).fetchall()
    assert [tuple(map(str, row)) for row in found] == answer(name)


@needs_data
def test_sample_is_the_shared_file() -> None:
    """The committed sample is the file that the answers were computed from; it has no 5xx and no odd line."""
    assert samples.lines("nasa-access") == (DATA / "nasa-aug95-20k/nasa.log").read_text().split("\n")[:-1]
    assert answer("q3-filter-5xx.csv") == answer("q7-unparsed-lines.csv") == []


@needs_data
@pytest.mark.slow
def test_kafka_server_logs() -> None:
    """Real server logs of another program parse as log4j; only lines that start without a time are refused."""
    parse = log_filter("log4j")
    for file in sorted((DATA / "kafka-server-logs/logs").glob("*/logs/server.log*")):
        lines = file.read_text().splitlines()
        faults = {fault.offset - 100 for fault in parse(batch(lines), CONTEXT).faults}
        assert faults == {place for place, line in enumerate(lines) if not line.startswith("[20")}
