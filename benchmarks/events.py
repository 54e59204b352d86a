"""The benchmark's click events: ten fields, about 234 bytes of JSON each, the same for every run and every system.

Events come in chunks of `CHUNK_EVENTS`, each from a seed of its own, so that the first N events are the same
however many are made. A chunk is made column-wise: as typed columns, from which answers are computed, and as the
JSON that goes into a topic. Not here: bringing them into a topic (`benchmarks.topics`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.columns import CLICKS

_ARROW = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "VARCHAR": pa.string()}
#: Names and types in DuckDB.
COLUMNS = CLICKS
SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS.items()])

CHUNK_EVENTS = 100_000
USERS = 100_000
PAGES = 500
SESSIONS = 9_973
FIRST_TS_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z
TS_STEP_MS = 2
SEED = 7

EVENT_TYPES = ("view", "click", "purchase")
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X)",
    "curl/8.1",
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events ``[start, start + len)``; ``table`` has `SCHEMA`, ``keys`` (the user's number) and ``values`` (JSON)
    are binary arrays of the same length."""

    start: int
    table: pa.Table
    keys: pa.Array
    values: pa.Array

    def __len__(self) -> int:
        return len(self.keys)


def chunks(count: int) -> Iterator[Chunk]:
    """The first ``count`` events, a chunk at a time."""
    for number in range(-(-count // CHUNK_EVENTS)):
        chunk = _chunk(number)
        left = count - chunk.start
        yield chunk if left >= CHUNK_EVENTS else _first(chunk, left)


def tables(count: int) -> Iterator[pa.Table]:
    """The first ``count`` events as typed columns alone."""
    for number in range(-(-count // CHUNK_EVENTS)):
        start = number * CHUNK_EVENTS
        columns = _columns(number)
        yield pa.table(columns, SCHEMA).slice(0, min(CHUNK_EVENTS, count - start))


def _first(chunk: Chunk, count: int) -> Chunk:
    return Chunk(chunk.start, chunk.table.slice(0, count), chunk.keys.slice(0, count), chunk.values.slice(0, count))


def _chunk(number: int) -> Chunk:
    columns = _columns(number)
    keys = pc.utf8_slice_codeunits(columns["user_id"], 1).cast(pa.binary())
    return Chunk(number * CHUNK_EVENTS, pa.table(columns, SCHEMA), keys, _json(columns))


def _columns(number: int) -> dict[str, pa.Array]:
    start = number * CHUNK_EVENTS
    chance = np.random.default_rng((SEED, number))
    ids = np.arange(start, start + CHUNK_EVENTS, dtype=np.int64)
    users = chance.integers(0, USERS, CHUNK_EVENTS)
    texts = _texts()

    def take(name: str, indices: np.ndarray) -> pa.Array:
        return texts[name].take(pa.array(indices))

    return {
        "event_id": pa.array(ids),
        "user_id": take("user_id", users),
        "session": take("session", users % SESSIONS),
        "page": take("page", chance.integers(0, PAGES, CHUNK_EVENTS)),
        "event_type": take("event_type", chance.integers(0, len(EVENT_TYPES), CHUNK_EVENTS)),
        "ts": pa.array(FIRST_TS_MS + ids * TS_STEP_MS),
        "referrer": take("referrer", chance.integers(0, PAGES, CHUNK_EVENTS)),
        "ua": take("ua", chance.integers(0, len(AGENTS), CHUNK_EVENTS)),
        "price": pa.array(chance.integers(0, 10_000, CHUNK_EVENTS) / 100),
        "ip": take("ip", (users % 256) * 256 + ids % 256),
    }


@functools.cache
def _texts() -> dict[str, pa.Array]:
    """The values that text columns take, by number."""
    return {
        "user_id": pa.array([f"u{user}" for user in range(USERS)]),
        "session": pa.array([f"s{session}" for session in range(SESSIONS)]),
        "page": pa.array([f"/p/{page}" for page in range(PAGES)]),
        "event_type": pa.array(EVENT_TYPES),
        "referrer": pa.array([f"https://example.com/p/{page}" for page in range(PAGES)]),
        "ua": pa.array(AGENTS),
        "ip": pa.array([f"10.{high}.{low}.1" for high in range(256) for low in range(256)]),
    }


@functools.cache
def _price_texts() -> pa.Array:
    """Prices as JSON has them, by number of cents."""
    return pa.array([repr(cents / 100) for cents in range(10_000)])


def _json(columns: Mapping[str, pa.Array]) -> pa.Array:
    """One JSON object a row, members in the order of `COLUMNS`. No text here needs an escape."""
    parts: list[pa.Array | str] = []
    text = "{"
    for name, kind in COLUMNS.items():
        quote = '"' if kind == "VARCHAR" else ""
        parts.append(f'{text}"{name}":{quote}')
        if kind == "DOUBLE":
            cents = np.rint(columns[name].to_numpy() * 100).astype(np.int64)
            parts.append(_price_texts().take(pa.array(cents)))
        else:
            parts.append(columns[name].cast(pa.string()))
        text = f"{quote},"
    parts.append(f"{text[:-1]}}}")
    return pc.binary_join_element_wise(*parts, "").cast(pa.binary())
