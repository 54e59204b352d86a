"""The workloads: what each system has to do, and whether what it left is right.

Answers are computed by DuckDB over the generated events' columns (`benchmarks.events`), never by a system; results
are read with DuckDB, or a consumer of the output topic. A sum of prices is compared in whole cents, and of each row
of `etl` and `filter` all ten fields count, by their hash. Of the real data, answers are published files or counts
that were made without any stream engine. Not here: running a system (`benchmarks.harness`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks import events, real

MINUTE_MS = 60_000
SUM_TOLERANCE = 1e-3
_PARQUET = b"PAR1"

#: A row's ten fields as one number; the same for a JSON document and a Parquet file.
_HASH = (
    "hash("
    + ", ".join(
        "round(price * 100)::BIGINT" if name == "price" else f"{name}::{kind}"
        for name, kind in events.COLUMNS.items()
    )
    + ")"
)
_SUMS = (
    "count(*)::BIGINT, sum(event_id)::BIGINT, sum(round(price * 100)::BIGINT)::BIGINT, "
    f"count(DISTINCT event_id)::BIGINT, sum({_HASH})::HUGEINT"
)
_SUM_NAMES = ("events", "sum(event_id)", "cents", "distinct event_id", "hash of all fields")
_KEPT = "event_type = 'purchase' AND price > 90"


class Wrong(Exception):
    """A result that is not the answer; the text says in what."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``topic`` names the events that it reads; ``check`` raises `Wrong` for a result that is not the answer."""

    name: str
    title: str
    topic: str
    is_quick: bool = False
    writes_topic: bool = False


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("etl", "ETL to Parquet, ten typed columns", "clicks", is_quick=True),
        Workload("filter", "Filter to a topic", "clicks", is_quick=True, writes_topic=True),
        Workload("window", "60 s tumbling windows, count and sum by page", "clicks", is_quick=True),
        Workload("handler", "Kinesis-kind handler, batches of up to 1,000", "clicks", is_quick=True),
        Workload("logs", "Real data: access logs, failures kept and typed, to Parquet", "logs"),
        Workload("changes", "Real data: change events upserted into DuckDB", "changes"),
    )
}


@dataclass(frozen=True, slots=True)
class Sums:
    """What DuckDB says of rows of events: their number, two sums, distinct ids, and the sum of the rows' hashes."""

    values: tuple[int | None, ...]

    def compare(self, answer: Sums) -> None:
        differences = [
            f"{name} {found} instead of {wanted}"
            for name, found, wanted in zip(_SUM_NAMES, self.values, answer.values, strict=True)
            if found != wanted
        ]
        if differences:
            raise Wrong("; ".join(differences))


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers for the first ``count`` click events; ``windows`` is a Parquet file."""

    count: int
    all: Sums
    kept: Sums
    windows: Path


def answers(count: int, directory: Path) -> Answers:
    """Compute them; ``directory`` keeps the windows."""
    windows = directory / f"windows-{count}.parquet"
    with duckdb.connect() as database:
        every = _sums(database, _events(count))
        kept = _sums(database, _events(count), _KEPT)
        reader = _events(count)  # noqa: F841 - DuckDB finds it by its name
        database.execute(
            f"COPY (SELECT ts - ts % {MINUTE_MS} AS window_start, page, count(*) AS count, sum(price) AS sum "
            f"FROM reader GROUP BY ALL) TO '{windows}'"
        )
    return Answers(count, every, kept, windows)


def _events(count: int) -> pa.RecordBatchReader:
    batches = (batch for table in events.tables(count) for batch in table.to_batches())
    return pa.RecordBatchReader.from_batches(events.SCHEMA, batches)


def _sums(database: duckdb.DuckDBPyConnection, rows: object, where: str = "true") -> Sums:
    """Of ``rows``, anything that DuckDB can select from by a variable's name."""
    found = database.execute(f"SELECT {_SUMS} FROM rows WHERE {where}").fetchone()
    assert found is not None
    return Sums(found)


def check(workload: str, output: Path, answer: Answers, topic_values: Callable[[], Sequence[bytes]]) -> None:
    """Compare what a system left with the answer. Raises `Wrong`.

    ``topic_values`` gives the values of the output topic. A result that cannot be read is wrong too.
    """
    checks: Mapping[str, Callable[[], None]] = {
        "etl": lambda: _check_rows(output, answer.all),
        "filter": lambda: _check_values(topic_values(), answer.kept),
        "window": lambda: _check_windows(output, answer.windows),
        "handler": lambda: _check_handled(output, answer),
        "logs": lambda: real.check_logs(output, answer.count),
        "changes": lambda: real.check_changes(output, answer.count),
    }
    try:
        checks[workload]()
    except (duckdb.Error, OSError, ValueError, real.Differs) as error:
        raise Wrong(f"{type(error).__name__}: {error}") from error


def _check_rows(output: Path, answer: Sums) -> None:
    with duckdb.connect() as database:
        _sums(database, _result(database, output)).compare(answer)


def _check_values(values: Sequence[bytes], answer: Sums) -> None:
    lines = pa.table({"value": pa.array(values, pa.binary()).cast(pa.string())})  # noqa: F841 - as above
    columns = json.dumps(dict(events.COLUMNS))
    with duckdb.connect() as database:
        rows = database.sql(f"SELECT unnest(from_json_strict(value, '{columns}')) FROM lines")
        _sums(database, rows).compare(answer)


def _check_windows(output: Path, answer: Path) -> None:
    """Where a system emits updates, the row with the largest count of a key counts."""
    with duckdb.connect() as database:
        rows = _result(database, output)  # noqa: F841 - as above
        found = database.execute(
            f"""
            WITH found AS (
                SELECT window_start::BIGINT AS window_start, page, max(count)::BIGINT AS count,
                    arg_max(sum, count)::DOUBLE AS sum
                FROM rows GROUP BY ALL)
            SELECT count(*) FILTER (found.count = answer.count AND abs(found.sum - answer.sum) < {SUM_TOLERANCE}),
                count(answer.page), count(found.page)
            FROM found FULL JOIN '{answer}' AS answer USING (window_start, page)
            """
        ).fetchone()
    assert found is not None
    right, wanted, given = found
    if not right == wanted == given:
        raise Wrong(f"{right:,} windows are right of {wanted:,}; there are {given:,}")


def _check_handled(output: Path, answer: Answers) -> None:
    counted = [json.loads(path.read_text()) for path in output.glob("*.json")]
    found = sum(each["events"] for each in counted), sum(each["sum"] for each in counted)
    if found != (wanted := answer.all.values[:2]):
        raise Wrong(f"events and sum(event_id) are {found} instead of {wanted}")


def _result(database: duckdb.DuckDBPyConnection, output: Path) -> duckdb.DuckDBPyRelation:
    """What a system wrote: Parquet, JSON lines, or the table ``windows`` of a DuckDB file."""
    found = visible(output)
    if not found:
        raise Wrong("there is no file")
    databases = [path for path in found if path.suffix == ".db"]
    if databases:
        database.execute(f"ATTACH '{databases[0]}' AS result (READ_ONLY)")
        return database.sql("SELECT * FROM result.windows")
    names = [str(path) for path in found]
    if all(_is_parquet(path) for path in found):
        return database.read_parquet(names, union_by_name=True)
    return database.sql(f"SELECT * FROM read_json({names!r}, format = 'newline_delimited', union_by_name = true)")


def visible(output: Path) -> list[Path]:
    """Files with rows, but hidden ones (``.x``, ``_x``) and headrace's view of its own, which are bookkeeping."""
    return sorted(
        path
        for path in output.rglob("*")
        if path.is_file()
        and path.stat().st_size
        and path.name != "headrace.duckdb"
        and not any(part[0] in "._" for part in path.relative_to(output).parts)
    )


def _is_parquet(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(4) == _PARQUET
    return False
