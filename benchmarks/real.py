"""The benchmark's real data: access log lines and change events of a table, and what must come of them.

They are looked for where HEADRACE_TEST_DATA says (by default ``../shared/data`` beside the repository); without
them the samples that ship take their place, which are smaller. Either is repeated pass after pass; a pass of
changes has higher positions than the one before, so that after the last pass the table is what it was after the
first.

Answers: the 4xx lines that a query without any stream engine found, or the counts by status that ship with the
sample; and the table's own final version, row by row. Not here: the handlers (`functions`).
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import orjson

from functions import samples
from functions.etl import RUNWAYS

ROOT = Path(__file__).resolve().parents[1]
_LOGS = "nasa-aug95-20k/nasa.log"
_LOGS_ANSWER = "answers/nasa-aug95-20k/q4-filter-4xx.csv"
_CHANGES = "ourairports-runways-cdc/runways.cdc.jsonl.gz"
_CHANGES_ANSWER = "ourairports-runways-cdc/runways.final.csv"
_POSITION = b'"pos":'

#: A record's key, and its value.
Pair = tuple[bytes | None, bytes]


class Differs(Exception):
    """A result is not the answer; the text says in what."""


def data() -> Path:
    """Where the full sets are, if they are."""
    return Path(os.environ.get("HEADRACE_TEST_DATA") or ROOT.parent / "shared" / "data")


def source(topic: str) -> str:
    """Which data a topic is made of, for the report."""
    full = (data() / (_LOGS if topic == "logs" else _CHANGES)).exists()
    return ("the full set" if full else "the sample that ships") + ", repeated"


def pass_events(topic: str) -> int:
    """How many events one pass over ``logs`` or ``changes`` has."""
    return len(_lines(topic))


def records(topic: str, passes: int) -> Iterator[list[Pair]]:
    """All passes, each as a list of records in order."""
    lines = _lines(topic)
    if topic == "logs":
        for _ in range(passes):
            yield [(None, line) for line in lines]
        return
    keys, parts = [], []
    for line in lines:
        change = orjson.loads(line)
        keys.append(((change["after"] or change["before"])["id"]).encode())
        start, _, rest = line.partition(_POSITION)
        digits = rest[: rest.index(b"}")]
        parts.append((start + _POSITION, int(digits), rest[len(digits) :]))
    step = max(position for _, position, _ in parts)
    for number in range(passes):
        shift = number * step
        yield [
            (key, b"%b%d%b" % (before, position + shift, after))
            for key, (before, position, after) in zip(keys, parts, strict=True)
        ]


def check_logs(output: Path, count: int) -> None:
    """The kept lines of the Parquet files beneath ``output``, by status, host and path. Raises Differs."""
    passes = count // pass_events("logs")
    answer = data() / _LOGS_ANSWER
    wanted: Counter[tuple[object, ...]] = Counter()
    if (data() / _LOGS).exists() and answer.exists():
        columns = "status::BIGINT, host, path"
        with answer.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                wanted[int(row["status"]), row["host"], row["request"].split(" ")[1]] += passes
    else:
        columns = "status::BIGINT"
        for status, line in samples.expected("nasa-access")["status"].items():
            if int(status) >= 400:
                wanted[(int(status),)] += line["lines"] * passes
    # Asked for by folder: a glob would find what a sink keeps for itself.
    files = [str(path) for path in output.glob("*.parquet")]
    if not files:
        raise Differs("there is no file")
    with duckdb.connect() as database:
        found = database.execute(f"SELECT {columns}, count(*) FROM read_parquet({files!r}) GROUP BY ALL").fetchall()
    if {tuple(row[:-1]): row[-1] for row in found} != wanted:
        total = sum(row[-1] for row in found)
        raise Differs(f"{total:,} lines were kept, of {sum(wanted.values()):,}, or others")


def check_changes(output: Path, _count: int) -> None:
    """The table ``runways`` of the DuckDB file in ``output``, row by row. Raises Differs."""
    columns = ", ".join(
        f"""coalesce("{name}", '') AS "{name}\"""" if kind == "VARCHAR" else f'"{name}"'
        for name, kind in RUNWAYS.items()
    )
    found = next(output.glob("*.db"), None)
    if found is None:
        raise Differs("there is no database")
    with duckdb.connect() as database:
        answer = database.read_csv(str(_final_table()), dtype=dict(RUNWAYS), header=True)  # noqa: F841 - as above
        database.execute(f"ATTACH '{found}' AS result (READ_ONLY)")
        missing, surplus, total = database.sql(
            f"""
            WITH wanted AS (SELECT {columns} FROM answer), found AS (SELECT {columns} FROM result.runways)
            SELECT (SELECT count(*) FROM (FROM wanted EXCEPT ALL FROM found)),
                (SELECT count(*) FROM (FROM found EXCEPT ALL FROM wanted)), (SELECT count(*) FROM wanted)
            """
        ).fetchall()[0]
    if missing or surplus:
        raise Differs(f"of {total:,} rows {missing:,} are missing, and {surplus:,} should not be there")


def _final_table() -> Path:
    return data() / _CHANGES_ANSWER if (data() / _CHANGES).exists() else samples.path("runways-final")


def _lines(topic: str) -> Sequence[bytes]:
    if topic == "logs":
        file, sample = data() / _LOGS, samples.path("nasa-access")
    else:
        file, sample = data() / _CHANGES, samples.path("runways-changes")
    path = file if file.exists() else sample
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
