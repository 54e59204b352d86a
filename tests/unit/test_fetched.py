"""What was fetched and has not been taken: pieces put together, errors behind them, who decodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka import fetched as module
from connectors.kafka.fetched import Fetched
from connectors.kafka.fetcher import Fetcher
from connectors.kafka.record_batches import QUICK_BYTES_MAX, RecordBatches
from connectors.kafka.settings import KafkaSettings
from engine.batch import Batch, from_rows, join
from engine.errors import CorruptRecords
from tests.clock import ManualClock
from tests.unit.record_bytes import PARTITION, TIME, TOPIC, built, empty, legacy, rows_of


def piece(start: int, values: Sequence[bytes], end: int | None = None) -> Batch:
    """A batch of records from ``start`` on, without gaps between them."""
    rows = [(start + at, TIME, None, value, ()) for at, value in enumerate(values)]
    return from_rows(TOPIC, PARTITION, rows, start=start, end=start + len(values) if end is None else end)


def held(*pieces: Batch) -> Fetched:
    fetched = Fetched(PARTITION, pieces[0].start)
    for each in pieces:
        fetched.put(each)
    return fetched


def values_of(batch: Batch) -> list[bytes]:
    return batch.records.column("value").to_pylist()


def test_pieces_of_several_responses_are_one_batch() -> None:
    """What waits is put together in order, with its range, and counted no more."""
    fetched = held(piece(5, [b"a", b"b"]), piece(7, [], end=9), piece(9, [b"c"], end=12))
    assert fetched.decoded_bytes == fetched.nbytes > 0
    batch = fetched.take(10)
    assert batch is not None
    assert (batch.start, batch.end, values_of(batch)) == (5, 12, [b"a", b"b", b"c"])
    assert (fetched.taken, fetched.nbytes) == (12, 0)
    assert fetched.take(10) is None


def test_a_piece_is_parted_where_the_records_are_enough() -> None:
    """The rest comes first the next time, and the bytes that are left stay counted."""
    fetched = held(piece(0, [b"a", b"b"]), piece(2, [b"c" * 100, b"d", b"e"]))
    first = fetched.take(3)
    assert first is not None
    assert (first.end, fetched.taken, values_of(first)) == (3, 3, [b"a", b"b", b"c" * 100])
    rest = piece(3, [b"d", b"e"])
    assert fetched.decoded_bytes == rest.nbytes
    second = fetched.take(3)
    assert second is not None
    assert (second.start, second.end, values_of(second)) == (3, 5, [b"d", b"e"])


@pytest.mark.parametrize(
    ("sizes", "taken"), [([100, 200], 1), ([200, 100], 1), ([100, 100, 100], 2), ([900, 1], 1)]
)
def test_large_pieces_stay_apart(sizes: list[int], taken: int) -> None:
    """Copying them together costs more than a call of its own; one that is larger than the bound comes alone."""
    starts = range(len(sizes))
    fetched = held(*(piece(start, [b"x" * size * 1_024]) for start, size in zip(starts, sizes, strict=True)))
    batch = fetched.take(1_000)
    assert batch is not None
    assert len(batch) == taken
    assert module.JOIN_BYTES_MAX == 256 * 1024


@given(
    st.lists(st.lists(st.binary(max_size=40), max_size=6), min_size=1, max_size=8),
    st.lists(st.integers(1, 7), min_size=60, max_size=60),
)
def test_whatever_is_taken_is_all_of_it(pieces: list[list[bytes]], wanted: list[int]) -> None:
    """Every record once, in order, ranges that meet, never more than asked for, nothing counted at the end."""
    start, made = 0, []
    for values in pieces:
        made.append(piece(start, values, end=start + len(values) + 1))  # with an offset that has no record
        start = made[-1].end
    fetched, found = held(*made), []
    while (batch := fetched.take(wanted[len(found)])) is not None:
        assert len(batch) <= wanted[len(found)]
        assert fetched.taken == batch.end
        found.append(batch)
    assert join(found).records.equals(join(made).records)
    assert (found[0].start, found[-1].end, fetched.decoded_bytes) == (0, start, 0)


def test_an_error_comes_behind_what_is_there() -> None:
    """Records before it are given first; then it is raised each time."""
    fetched = held(piece(0, [b"a"]))
    fetched.fail(CorruptRecords(TOPIC, PARTITION, 1, "torn"))
    assert fetched.take(10) is not None
    for _ in range(2):
        with pytest.raises(CorruptRecords, match="torn"):
            fetched.take(10)


def test_an_error_waits_for_what_is_decoded() -> None:
    """While responses before it are at work, nothing is there and nothing is wrong."""
    fetched = Fetched(PARTITION, 0)
    fetched.is_decoding = True
    fetched.fail(CorruptRecords(TOPIC, PARTITION, 1, "torn"))
    assert fetched.take(10) is None


def response(data: bytes, position: int = 0) -> RecordBatches:
    return RecordBatches(data, topic=TOPIC, partition=PARTITION, position=position)


BIG = [(None, b"v" * QUICK_BYTES_MAX, [])]


@pytest.mark.parametrize(
    ("data", "is_quick"),
    [
        (built(rows_of(5)), True),
        (built(rows_of(5), codec="snappy"), True),
        (built(rows_of(5), codec="lz4"), True),
        (built(rows_of(5), codec="gzip"), False),
        (built(rows_of(5), codec="zstd"), False),
        (built(rows_of(5)) + built(rows_of(5), codec="zstd", base=5), False),
        (built(rows_of(5)) + empty(base=5, last_delta=3), True),
        (legacy([(None, b"v")], magic=1), False),
        (built(BIG), False),
        # A codec whose ratio is bounded, so what counts are the bytes that came.
        (built(BIG, codec="lz4"), True),
    ],
)
def test_what_is_decoded_at_once(data: bytes, is_quick: bool) -> None:
    """A few kilobytes of format 2, in no codec that can make anything of them."""
    assert response(data).is_quick is is_quick


def test_what_is_left_can_be_quick() -> None:
    """A large response's last batches count for themselves."""
    reader = response(built(BIG) + built(rows_of(3), base=1))
    assert not reader.is_quick
    reader.read(1)
    assert reader.has_more
    assert reader.is_quick


class Counting(ThreadPoolExecutor):
    """A pool that knows how often it was asked."""

    asked = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked += 1
        return super().submit(function, *args, **kwargs)


@pytest.mark.parametrize(
    ("codecs", "in_thread"),
    [(["none"], False), (["lz4", "none", "snappy"], False), (["gzip"], True), (["none", "zstd", "none"], True)],
)
async def test_small_responses_are_decoded_where_they_arrive(codecs: list[str], in_thread: bool) -> None:
    """No thread is asked for what is done at once; behind one that needs a thread order stays what it is."""
    clock = ManualClock()
    fetcher = Fetcher(KafkaSettings("127.0.0.1:1"), topic=TOPIC, clock=clock)
    fetcher.seek(PARTITION, 0)
    with Counting(1) as fetcher._executor:
        async with asyncio.TaskGroup() as fetcher._tasks:
            for number, codec in enumerate(codecs):
                data = built(rows_of(4), codec=codec, base=number * 4)
                answer = [(TOPIC, [(PARTITION, 0, 100, 100, None, data)])]
                fetched = fetcher._partitions[PARTITION]
                fetcher._received(
                    1,
                    {PARTITION: (fetched, number * 4)},
                    SimpleNamespace(API_VERSION=4, throttle_time_ms=0, topics=answer),
                )
            at_once = await fetcher.take(PARTITION, records_max=100, seconds_max=0)
            assert (at_once is not None) == (codecs[0] != "gzip")
        counted = fetcher._executor.asked  # type: ignore[attr-defined]
    batches = [at_once] if at_once is not None else []
    while (batch := await fetcher.take(PARTITION, records_max=100, seconds_max=0)) is not None:
        batches.append(batch)
    assert join(batches).offsets.tolist() == list(range(4 * len(codecs)))
    assert (counted > 0) is in_thread
