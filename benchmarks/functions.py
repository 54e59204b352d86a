"""Rows per second of the ready-made functions, one thread, on the samples that ship. Measures nothing else.

``python -m benchmarks.functions`` prints a line for each function: the best of five passes over the sample, in
batches of 10,000. Decoding and writing, which the engine does, are not in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import pyarrow as pa

from engine.context import Context
from engine.protocols import Result
from functions import samples
from functions.etl import runways
from functions.log_filter import access_log, failures, syslog
from functions.samples import handlers

BATCH_ROWS = 10_000
PASSES = 5


def batches(columns: dict[str, Sequence[object]]) -> list[pa.RecordBatch]:
    """Columns with trace columns, cut into batches."""
    count = len(next(iter(columns.values())))
    whole = pa.record_batch(
        {
            "_partition": pa.array([0] * count, pa.int32()),
            "_offset": pa.array(range(count), pa.int64()),
            "_timestamp": pa.array([0] * count, pa.timestamp("ms", tz="UTC")),
            **{name: pa.array(values) for name, values in columns.items()},
        }
    )
    return [whole.slice(start, BATCH_ROWS) for start in range(0, count, BATCH_ROWS)]


def rate(handler: Callable[[pa.RecordBatch, Context], Result], given: list[pa.RecordBatch]) -> float:
    """Records per second of the best pass."""
    context = Context("benchmark", "512", 0)
    best = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        for batch in given:
            assert not handler(batch, context).faults
        best = min(best, time.perf_counter() - start)
    return float(sum(batch.num_rows for batch in given) / best)


def main() -> None:
    """Print the table."""
    views = [json.loads(line) for line in samples.lines("msnbc-page-views")]
    pages = batches({name: [view[name] for view in views] for name in views[0]})
    lines = samples.lines("nasa-access")
    combined = [f'{line} "http://www.nasa.gov/" "Mozilla/2.0"' for line in lines]
    messages = [
        f"<{place % 192}>1 2003-10-11T22:14:15.003Z host app {place} - - message" for place in range(20_000)
    ]
    old = [f"<{place % 192}>Oct 11 22:14:15 host app[{place}]: message" for place in range(20_000)]
    changed = samples.lines("runways-changes")
    events = [json.loads(line) for line in changed]
    cells = {
        name: [None if event[name] is None else json.dumps(event[name]) for event in events]
        for name in ("before", "after", "source")
    }
    for name, handler, given in (
        ("clickstream.page_events", handlers.page_events, pages),
        ("clickstream.per_minute", handlers.per_minute, pages),
        ("log_filter.access_log, common", access_log, batches({"line": lines})),
        ("log_filter.access_log, combined", access_log, batches({"line": combined})),
        ("log_filter.failures, common", failures, batches({"line": lines})),
        ("log_filter.syslog, RFC 5424 (made)", syslog, batches({"line": messages})),
        ("log_filter.syslog, RFC 3164 (made)", syslog, batches({"line": old})),
        ("etl.runways, 20 columns, json", runways, batches({**cells, "op": [event["op"] for event in events]})),
        ("etl.runways, 20 columns, text", runways, batches({"line": changed})),
    ):
        print(f"{name:40} {rate(handler, given):12,.0f} records/s")


if __name__ == "__main__":
    main()
