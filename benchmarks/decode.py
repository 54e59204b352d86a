"""Rows per second of the value decoders: ten typed columns of 234-byte click events, on one core.

Run ``python -m benchmarks.decode``. Each line is the best of several rounds over one batch, by processor time.
Every record is fully validated (UTF-8, types, ranges, repeated members); ``_rest`` and the trace columns are on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence

import orjson

from engine.batch import Batch, from_rows
from engine.values import Decoder, JsonDecoder, RawDecoder, TextDecoder

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


def rate(decoder: Decoder, batch: Batch, rounds: int) -> tuple[float, int]:
    """Rows per second of the best round, and the number of faults."""
    best, faults = float("inf"), 0
    for _ in range(rounds):
        begun = time.process_time()
        faults = len(decoder.decode(batch).faults)
        best = min(best, time.process_time() - begun)
    return len(batch) / best, faults


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--rounds", type=int, default=7)
    arguments = options.parse_args()
    chance = random.Random(7)
    clean = [event(number, chance) for number in range(arguments.rows)]
    spoilt = [
        SPOILS[number // 100 % len(SPOILS)](value) if number % 100 == 7 else value
        for number, value in enumerate(clean)
    ]
    extra = [value[:-1] + b',"agent":"x","ip":"10.0.0.1"}' for value in clean]
    nested = [value[:-1] + b',"geo":{"lat":52.5,"lon":13.4}}' for value in clean]
    pretty = [json.dumps(orjson.loads(value), separators=(" , ", " : ")).encode() for value in clean]
    print(f"{arguments.rows:,} records of {sum(map(len, clean)) / len(clean):.0f} bytes, ten columns, _rest, trace")
    for name, decoder, values in (
        ("json, 0% bad", JsonDecoder(COLUMNS, rest=True), clean),
        ("json, 1% bad", JsonDecoder(COLUMNS, rest=True), spoilt),
        ("json, two members to _rest", JsonDecoder(COLUMNS, rest=True), extra),
        ("json, an object to _rest", JsonDecoder(COLUMNS, rest=True), nested),
        ("json, an object to a JSON column", JsonDecoder({**COLUMNS, "geo": "JSON"}, rest=True), nested),
        ("json, spaces before colons", JsonDecoder(COLUMNS, rest=True), pretty),
        ("text", TextDecoder(), clean),
        ("raw", RawDecoder(), clean),
    ):
        rows_per_second, faults = rate(decoder, batch_of(values), arguments.rounds)
        print(f"{name:34} {rows_per_second:12,.0f} rows/s  {faults:6,} faults")


if __name__ == "__main__":
    main()
