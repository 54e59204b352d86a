"""An analyst as a process: asks without a pause, and holds every answer against what must be true at any moment.

``python -m tests.crash.reader_process WAY PATH PAUSE SECONDS_MAX``, with a WAY of `WAYS`. A line ``N`` on its
standard input says that there are N events in the end: when it has seen them all it looks at each row, and ends. It
prints one JSON object: `Seen`, with a ``fault`` when an answer was wrong, which ends it at once.

Only a file that is served may be away, for as long as no engine serves it; then the reader asks again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from connectors.analysis.client import ANSWER, fetch
from connectors.duckdb.serving import read_address
from connectors.parquet.view import NAME, VIEW
from engine.errors import ExternalError, HeadraceError
from tests.crash.events import EVENTS_MAX, PARTITIONS

#: Of the tables that are served and copied; the view has a name of its own.
TABLE = "events"

APPEAR_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.02

#: Of each shard: its rows, how many are distinct, and their first and last. A bit for each offset is a third of the
#: work of count(DISTINCT): there are many readers.
SHARDS = f"""
SELECT _partition, count(*), bit_count(bitstring_agg(_offset, 0, {EVENTS_MAX})), min(_offset), max(_offset)
FROM {{table}} GROUP BY _partition ORDER BY _partition
"""

#: Event n went to partition n % PARTITIONS as its (n // PARTITIONS)-th record.
ROWS = f"""
SELECT count(*), count(DISTINCT id), min(id), max(id), count(*) FILTER (
    WHERE _partition IS DISTINCT FROM id % {PARTITIONS} OR _offset IS DISTINCT FROM id // {PARTITIONS}
    OR page IS DISTINCT FROM '/page/' || (id % 97) OR bucket IS DISTINCT FROM 'b' || (id % 3)
)
FROM {{table}}
"""

Rows = list[tuple[Any, ...]]
Ask = Callable[[str], Rows]


class Away(Exception):
    """Nobody answers now; somebody will."""


@dataclass
class Seen:
    """What a reader can tell in the end. Seconds of `reconnects` are from the first failure to the next answer."""

    way: str
    queries: int = 0
    rows: int = 0
    changes: int = 0  #: answers that had more rows than the one before
    query_seconds_max: float = 0.0
    reconnects: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    fault: str | None = None


class Wrong(Exception):
    """An answer that cannot be."""


def view(path: Path) -> Ask:
    """The view beside the files in ``path``, attached once."""
    connection = _connection()
    connection.execute(f"ATTACH '{path / NAME}' AS sink (READ_ONLY)")
    return lambda sql: connection.execute(sql.format(table=f"sink.{VIEW}")).fetchall()


def served(path: Path) -> Ask:
    """The file at ``path``, asked by the Quack protocol of the engine that has it open."""

    def ask(sql: str) -> Rows:
        address = read_address(path)
        if address is None:
            raise Away("there is no address")
        with _connection() as connection:
            try:
                fetch(connection, address.uri, address.token, sql.format(table=TABLE), database=path)
            except ExternalError as error:
                raise Away(str(error)) from None
            return connection.execute(f"FROM {ANSWER}").fetchall()

    return ask


def copied(path: Path) -> Ask:
    """The copy at ``path``, opened for each question, as a tool would that opens files."""

    def ask(sql: str) -> Rows:
        with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as connection:
            return connection.execute(sql.format(table=TABLE)).fetchall()

    return ask


#: How to read, and which file has to be there first.
WAYS: dict[str, tuple[Callable[[Path], Ask], str]] = {
    "view": (view, f"{{path}}/{NAME}"),
    "served": (served, "{path}.quack.json"),
    "copied": (copied, "{path}"),
}


class Reader:
    """Asks and compares."""

    def __init__(self, ask: Ask, seen: Seen) -> None:
        self._ask = ask
        self._seen = seen
        self._last: dict[int, int] = {}
        self._away_since: float | None = None

    def begin(self) -> None:
        """Return when the table is there: the one moment at which a question may fail."""
        deadline = time.monotonic() + APPEAR_SECONDS_MAX
        while True:
            try:
                self._ask("SELECT 1 FROM {table} LIMIT 0")
                return
            except (duckdb.Error, HeadraceError, Away) as error:
                if time.monotonic() > deadline:
                    raise Wrong(f"no answer within {APPEAR_SECONDS_MAX:g} s: {error}") from None
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """One question, one check. Raises Wrong."""
        answer = self._asked(SHARDS)
        if answer is None:
            return
        shards = {row[0]: row[1:] for row in answer}
        for partition, (count, distinct, low, high) in shards.items():
            if count != distinct:
                raise Wrong(f"partition {partition}: {count - distinct} duplicates; {_both(answer, self._last)}")
            if low != 0 or count != high - low + 1:
                raise Wrong(f"partition {partition}: a hole; {_both(answer, self._last)}")
        for partition, before in self._last.items():
            if partition not in shards or shards[partition][0] < before:
                raise Wrong(f"partition {partition}: fewer rows than before; {_both(answer, self._last)}")
        self._last = {partition: count for partition, (count, *_) in shards.items()}
        total = sum(self._last.values())
        self._seen.changes += total > self._seen.rows
        self._seen.rows = total

    def end(self, count: int) -> None:
        """Every row, one by one. Raises Wrong."""
        answer = None
        while answer is None:
            answer = self._asked(ROWS)
        if answer != [(count, count, 0, count - 1, 0)]:
            raise Wrong(f"rows, distinct, first, last, wrong of {count} events are {answer}")

    def _asked(self, sql: str) -> Rows | None:
        """None while nobody answers."""
        began = time.monotonic()
        try:
            answer = self._ask(sql)
        except Away as error:
            if self._away_since is None:
                self._away_since = began
                self._seen.reasons.append(str(error))
            return None
        except (duckdb.Error, HeadraceError) as error:
            raise Wrong(f"{type(error).__name__}: {error}; asked {' '.join(sql.split())}") from None
        now = time.monotonic()
        self._seen.queries += 1
        self._seen.query_seconds_max = max(self._seen.query_seconds_max, now - began)
        if self._away_since is not None:
            self._seen.reconnects.append(now - self._away_since)
            self._away_since = None
        return answer


def read(way: str, path: Path, pause_seconds: float, seconds_max: float) -> Seen:
    """Ask until everything is there: ``seconds_max`` after it is said how much that is."""
    seen = Seen(way)
    make, first = WAYS[way]
    count, deadline = None, float("inf")
    try:
        _appears(Path(first.format(path=path)))
        reader = Reader(make(path), seen)
        reader.begin()
        while count is None or seen.rows < count:
            reader.look()
            if count is None and select.select([sys.stdin], [], [], pause_seconds)[0]:
                count, deadline = int(sys.stdin.readline()), time.monotonic() + seconds_max
            if time.monotonic() > deadline:
                raise Wrong(f"{seen.rows} of {count} rows are there {seconds_max:g} s after the last was sent")
        reader.end(count)
    except Wrong as wrong:
        seen.fault = f"query {seen.queries + 1}: {wrong}"
    return seen


def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1, "memory_limit": "2GB"})


def _appears(path: Path) -> None:
    deadline = time.monotonic() + APPEAR_SECONDS_MAX
    while not path.exists():
        if time.monotonic() > deadline:
            raise Wrong(f"{path} did not appear within {APPEAR_SECONDS_MAX:g} s")
        time.sleep(LOOK_SECONDS)


def _both(answer: Rows, before: dict[int, int]) -> str:
    return f"(partition, rows, distinct, first, last) are {answer}, rows before {before}"


def main() -> None:
    # The engine comes first: what is shown is that readers see the truth, not that they see it fast.
    with contextlib.suppress(OSError):
        os.nice(5)
    seen = read(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    print(json.dumps(dataclasses.asdict(seen)), flush=True)
    sys.exit(seen.fault is not None)


if __name__ == "__main__":
    main()
