"""Rows per second of the value decoders: ten typed columns of 234-byte click events, on one core.

Run ``python -m benchmarks.decode``. Each line is the best of several rounds over one batch, by processor time;
in each round every system decodes the batch once, one after the other, so that all see the same machine. Every
record is fully validated (UTF-8, types, ranges, repeated members); ``_rest`` and the trace columns are on. The
reference is the decoder in plain Python. DuckDB runs on one thread and gives the ten columns alone, once of
`json_transform` as it is, which takes much in silence that is wrong, and once where `json_valid` says so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import duckdb
import orjson
import pyarrow as pa

from engine.batch import Batch, from_rows
from engine.values import JsonDecoder, RawDecoder, ReferenceJsonDecoder, TextDecoder

COLUMNS = {
    "event_id": "VARCHAR",
    "user_id": "BIGINT",
    "session": "VARCHAR",
    "type": "VARCHAR",
    "page": "VARCHAR",
    "referrer": "VARCHAR",
    "ts": "TIMESTAMP_MS",
    "duration": "DOUBLE",
    "converted": "BOOLEAN",
    "country": "VARCHAR",
}

SPOILS: Sequence[Callable[[bytes], bytes]] = (
    lambda value: value[:-1],
    lambda value: value.replace(b'"duration":', b'"duration":"x","was":'),
    lambda value: value.replace(b'"user_id":', b'"user_id":99999999999999999999,"was":'),
    lambda value: value.replace(b'"country":', b'"type":"twice","country":'),
    lambda value: value.replace(b"https", b"\xff\xfe"),
)


def event(number: int, chance: random.Random) -> bytes:
    """One click event, of 234 bytes on average."""
    return orjson.dumps(
        {
            "event_id": f"evt-{number:012d}",
            "user_id": chance.randrange(10_000_000),
            "session": f"{chance.getrandbits(48):012x}",
            "type": chance.choice(["page_view", "click", "search", "purchase"]),
            "page": f"/products/c-{chance.randrange(100)}/i-{chance.randrange(10_000)}",
            "referrer": "https://www.example.com/s?q=i",
            "ts": 1_790_000_000_000 + number,
            "duration": chance.randrange(100_000) / 100,
            "converted": chance.random() < 0.1,
            "country": chance.choice(["DE", "FR", "US", "JP"]),
        }
    )


def batch_of(values: Sequence[bytes]) -> Batch:
    rows = ((offset, 1_790_000_000_000 + offset, None, value, ()) for offset, value in enumerate(values))
    return from_rows("clicks", 0, rows, start=0, end=len(values))


def duckdb_transform(connection: duckdb.DuckDBPyConnection, documents: pa.Table, *, checked: bool) -> pa.Table:
    """The ten columns by DuckDB; ``checked`` leaves out what is no JSON, which otherwise fails the batch."""
    types = {name: "BIGINT" if kind.startswith("TIMESTAMP") else kind for name, kind in COLUMNS.items()}
    only = "WHERE json_valid(document)" if checked else ""
    query = f"SELECT unnest(json_transform(document, ?)) FROM documents {only}"
    connection.register("documents", documents)
    return connection.execute(query, [json.dumps(types)]).to_arrow_table()


def rates(systems: Sequence[Callable[[], object]], rows: int, rounds: int) -> list[float]:
    """Rows per second of each system's best round."""
    best = [float("inf")] * len(systems)
    for system in systems:  # once, unmeasured
        system()
    for _ in range(rounds):
        for place, system in enumerate(systems):
            begun = time.process_time()
            system()
            best[place] = min(best[place], time.process_time() - begun)
    return [rows / seconds for seconds in best]


def first_decode_seconds(folder: str) -> float:
    """From the start of a new process to its first ten decoded records; ``folder`` keeps what numba compiles."""
    script = (
        "from benchmarks.decode import *; chance = random.Random(7);"
        "JsonDecoder(COLUMNS, rest=True).decode(batch_of([event(at, chance) for at in range(10)]))"
    )
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], env={"NUMBA_CACHE_DIR": folder, "PYTHONPATH": "."}, check=True)
    return time.perf_counter() - begun


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--start", action="store_true", help="measure the first decode of new processes too")
    arguments = options.parse_args()
    chance = random.Random(7)
    clean = [event(number, chance) for number in range(arguments.rows)]
    spoilt = [
        SPOILS[number // 100 % len(SPOILS)](value) if number % 100 == 7 else value
        for number, value in enumerate(clean)
    ]
    extra = [value[:-1] + b',"agent":"x","ip":"10.0.0.1"}' for value in clean]
    nested = [value[:-1] + b',"geo":{"lat":52.5,"lon":13.4}}' for value in clean]
    spaced = [json.dumps(orjson.loads(value)).encode() for value in clean]
    accents = [value.replace(b"/products/", "/prödukte/".encode()) for value in clean]
    escapes = [value.replace(b"/products/", rb"\/pr\u00f6dukte\/") for value in clean]
    missing = [value.replace(b'"converted":false,', b"") for value in clean]
    connection = duckdb.connect(config={"threads": 1})
    print(f"{arguments.rows:,} records of {sum(map(len, clean)) / len(clean):.0f} bytes, ten columns, _rest, trace")
    print(
        f"{'rows/s':34} {'kernel':>10} {'reference':>10} {'duckdb':>10} {'+ valid':>10}  faults  to duckdb, + valid"
    )
    for name, columns, values in (
        ("0% bad", COLUMNS, clean),
        ("1% bad", COLUMNS, spoilt),
        ("two members to _rest", COLUMNS, extra),
        ("an object to _rest", COLUMNS, nested),
        ("an object to a JSON column", {**COLUMNS, "geo": "JSON"}, nested),
        ("spaces after commas and colons", COLUMNS, spaced),
        ("beyond ASCII", COLUMNS, accents),
        ("escapes", COLUMNS, escapes),
        ("a member mostly missing", COLUMNS, missing),
    ):
        batch = batch_of(values)
        kernel, reference = JsonDecoder(columns, rest=True), ReferenceJsonDecoder(columns, rest=True)
        systems: list[Callable[[], object]] = [partial(kernel.decode, batch), partial(reference.decode, batch)]
        if values is not spoilt:  # its bytes that are no UTF-8 fail the whole batch before DuckDB sees it
            documents = pa.table({"document": batch.records.column("value").cast(pa.string())})
            systems += [partial(duckdb_transform, connection, documents, checked=on) for on in (False, True)]
        found = rates(systems, len(batch), arguments.rounds)
        ratios = ", ".join(f"{found[0] / other:.2f}" for other in found[2:])
        cells = " ".join(f"{rate:10,.0f}" for rate in found) + " " * 11 * (4 - len(found))
        print(f"{name:34} {cells}  {len(kernel.decode(batch).faults):6,}  {ratios}")
    batch = batch_of(clean)
    for name, decoder in (("text", TextDecoder()), ("raw", RawDecoder())):
        [rate] = rates([partial(decoder.decode, batch)], len(batch), arguments.rounds)
        print(f"{name:34} {rate:10,.0f}")
    if arguments.start:
        with tempfile.TemporaryDirectory() as folder:
            first, second = first_decode_seconds(folder), first_decode_seconds(folder)
        print(f"first decode of a new process: {first:.1f} s with nothing compiled, {second:.2f} s from then on")


if __name__ == "__main__":
    main()
