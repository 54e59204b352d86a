"""What a commit of the DuckDB sink costs: upserts into 1 M and 10 M rows, and 64 shards together or alone.

A table of ``--rows`` rows (key, two texts, a number, the trace columns) is made first and is not timed. Then
each batch size gets ``--commits`` commits, of which every ten changes are six updates of random keys, three
new keys and one delete. Times are of `commit` alone: position, lookup, delete, insert, tombstones and fsync.
Not here: Kafka, decoding, handlers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from connectors.duckdb import Database, DuckDBShard, DuckDBSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.protocols import Counts, Outcome

ROWS = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("city", pa.string()),
        ("amount", pa.float64()),
        ("_deleted", pa.bool_()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_timestamp", pa.int64()),
    ]
)
SHARDS = 64


def outcome(partition: int, start: int, ids: Sequence[int], deleted: Sequence[bool]) -> Outcome:
    count = len(ids)
    rows = pa.table(
        {
            "id": ids,
            "name": [f"name {key}" for key in ids],
            "city": [f"city {key % 1000}" for key in ids],
            "amount": [key * 0.5 for key in ids],
            "_deleted": deleted,
            "_partition": [partition] * count,
            "_offset": range(start, start + count),
            "_timestamp": [1_700_000_000_000] * count,
        },
        schema=ROWS,
    )
    return Outcome(start, start + count, rows, Counts(handled=count))


def changes(partition: int, start: int, count: int, rows: int, rng: random.Random) -> Outcome:
    """``count`` changes: six of ten update, three insert, one deletes."""
    kinds = [rng.randrange(10) for _ in range(count)]
    ids = [rows + start + number if kind in (6, 7, 8) else rng.randrange(rows) for number, kind in enumerate(kinds)]
    return outcome(partition, start, ids, [kind == 9 for kind in kinds])


async def opened(path: Path, mode: str) -> DuckDBSink:
    database = Database(path)
    clock = SystemClock()
    sink = (
        DuckDBSink(database, pipeline="bench", table="people", clock=clock, mode="upsert", key=["id"])
        if mode == "upsert"
        else DuckDBSink(database, pipeline="bench", table="people", clock=clock)
    )
    await sink.open(Stream("cluster", "people", "id", SHARDS))
    await sink.adopt_schema("rows", ROWS)
    return sink


async def fill(sink: DuckDBSink, rows: int) -> None:
    await sink.database.run(
        lambda connection: connection.execute(
            "INSERT INTO people BY NAME SELECT i AS id, 'name ' || i AS name, 'city ' || i % 1000 AS city,"
            " i * 0.5 AS amount, 0 AS _partition, i AS _offset, 1700000000000 AS _timestamp"
            f" FROM range({rows}) r(i)"
        )
    )


def report(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(seconds) * 1000, 1),
        "mean_ms": round(statistics.mean(seconds) * 1000, 1),
        "max_ms": round(max(seconds) * 1000, 1),
    }


async def upserts(path: Path, rows: int, batches: Sequence[int], commits: int) -> None:
    """Time commits of one shard into a table of ``rows`` rows, per batch size."""
    rng = random.Random(rows)
    sink = await opened(path, "upsert")
    await fill(sink, rows)
    shard, start = await sink.acquire(0), 2 * rows
    for batch in batches:
        seconds = []
        for _ in range(commits):
            await shard.write(changes(0, start, batch, rows, rng))
            start += batch
            began = time.perf_counter()
            await shard.commit()
            seconds.append(time.perf_counter() - began)
        report(
            what="upsert",
            table_rows=rows,
            batch_rows=batch,
            commits=commits,
            **milliseconds(seconds),
            rows_per_second=round(batch * commits / sum(seconds)),
        )
    began = time.perf_counter()
    await sink.close()
    report(
        what="close",
        table_rows=rows,
        seconds=round(time.perf_counter() - began, 2),
        file_mb=(await asyncio.to_thread(path.stat)).st_size >> 20,
        resident_mb_max=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    )


async def together(path: Path, mode: str, rows: int, rounds: int) -> None:
    """Time 64 shards with 100 rows each: all ready at once, then one after the other."""
    rng = random.Random(64)
    sink = await opened(path, mode)
    await fill(sink, rows)
    shards = [await sink.acquire(number) for number in range(SHARDS)]
    starts = [rows * 2 + number * 1_000_000 for number in range(SHARDS)]

    async def write(shard: DuckDBShard, number: int) -> None:
        await shard.write(changes(number, starts[number], 100, rows, rng))
        starts[number] += 100

    for grouped in (True, False):
        seconds = []
        before = sink.database.statistics().transactions
        for _ in range(rounds):
            for number, shard in enumerate(shards):
                await write(shard, number)
            began = time.perf_counter()
            if grouped:
                await asyncio.gather(*(shard.commit() for shard in shards))
            else:
                for shard in shards:
                    await shard.commit()
            seconds.append(time.perf_counter() - began)
        report(
            what=f"{SHARDS} shards of 100 rows, {'grouped' if grouped else 'alone'}",
            mode=mode,
            table_rows=rows,
            transactions_per_round=(sink.database.statistics().transactions - before) / rounds,
            **milliseconds(seconds),
        )
    await sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="sizes of the table")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 100, 10_000, 100_000], help="changes a commit"
    )
    parser.add_argument("--commits", type=int, default=20, help="commits for each batch size")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of the 64 shards; 0 leaves them out")
    parser.add_argument(
        "--directory", type=Path, default=None, help="where the files are made (default: temporary)"
    )
    options = parser.parse_args()
    if min(*options.rows, *options.batches, options.commits) < 1:
        sys.exit("upsert: rows, batches and commits are at least 1")
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        for rows in options.rows:
            asyncio.run(upserts(Path(folder) / f"{rows}.db", rows, options.batches, options.commits))
        if options.rounds:
            asyncio.run(together(Path(folder) / "append.db", "append", 100_000, options.rounds))
            asyncio.run(together(Path(folder) / "upsert.db", "upsert", min(options.rows), options.rounds))


if __name__ == "__main__":
    main()
