"""The batcher, against a list of records and three rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, from_rows, join
from engine.batching import Batcher, value_bytes


def batch_of(start: int, sizes: list[int | None], end: int | None = None) -> Batch:
    rows = [(start + i, 0, None, None if size is None else b"x" * size, ()) for i, size in enumerate(sizes)]
    return from_rows("t", 0, rows, start=start, end=start + len(sizes) if end is None else end)


def batcher(records_max: int = 10, window: float = 1.0, payload: int = 1_000) -> Batcher:
    return Batcher(records_max=records_max, window_seconds=window, payload_bytes_max=payload)


def test_closes_at_the_record_count() -> None:
    """A full batch is due at once and holds exactly records_max records."""
    gather = batcher(records_max=3)
    gather.add(batch_of(0, [1, 1, 1, 1]), now=5.0)
    taken = gather.take(5.0)
    assert [(part.start, part.end, len(part)) for part in taken] == [(0, 3, 3)]
    assert gather.take(5.0) == []


def test_closes_at_the_payload() -> None:
    """A batch never passes the payload bound unless its first record alone does."""
    gather = batcher(payload=10)
    gather.add(batch_of(0, [6, 4, 1, 25, 3]), now=0.0)
    ranges = [(b.start, b.end) for [b] in iter(lambda: gather.take(0.0, flush=True), [])]
    assert ranges == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_closes_at_the_window() -> None:
    """A partial batch on a quiet topic is held no longer than its window, counted from its first record."""
    gather = batcher(window=2.0)
    gather.add(batch_of(0, [1]), now=10.0)
    gather.add(batch_of(1, [1]), now=11.5)
    assert gather.due_at() == 12.0
    assert gather.take(11.9) == []
    taken = gather.take(12.0)
    assert [(part.start, part.end) for part in taken] == [(0, 1), (1, 2)]
    assert gather.due_at() is None


def test_a_range_without_records_still_moves() -> None:
    """Control records and compacted offsets come out as an empty range, so that the position moves."""
    gather = batcher(window=0.0)
    gather.add(batch_of(7, [], end=9), now=0.0)
    [taken] = gather.take(0.0)
    assert (taken.start, taken.end, len(taken), taken.absent) == (7, 9, 0, 2)


@pytest.mark.parametrize("sliced", [0, 2])
def test_value_bytes_of_nulls_and_slices(sliced: int) -> None:
    """Payload bytes are exact for nulls and for sliced columns."""
    batch = batch_of(0, [3, None, 0, 5]).tail(sliced)
    assert value_bytes(batch).tolist() == [3, 0, 0, 5][sliced:]


@given(
    fetched=st.lists(
        st.tuples(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 3), st.floats(0, 2)), max_size=12
    ),
    records_max=st.integers(1, 8),
    payload=st.integers(1, 60),
)
def test_nothing_is_lost_reordered_or_oversized(
    fetched: list[tuple[list[int], int, float]], records_max: int, payload: int
) -> None:
    """Whatever is added comes out once, in order, contiguous, and within the bounds."""
    gather = batcher(records_max=records_max, payload=payload)
    now = 0.0
    position = 0
    expected: list[int] = []
    out: list[Batch] = []
    for sizes, gap, wait in fetched:
        now += wait
        batch = batch_of(position, list(sizes), end=position + len(sizes) + gap)
        expected += range(position, position + len(sizes))
        position = batch.end
        gather.add(batch, now)
        out += map(join, iter(lambda: gather.take(now), []))  # noqa: B023 - used up at once
    out += map(join, iter(lambda: gather.take(now, flush=True), []))
    assert gather.is_empty
    assert gather.nbytes == 0
    assert [o for b in out for o in b.records.column(0).to_pylist()] == expected
    assert [b.start for b in out[1:]] == [b.end for b in out[:-1]]
    if out:
        assert (out[0].start, out[-1].end) == (0, position)
    for batch in out:
        assert len(batch) <= records_max
        assert len(batch) <= 1 or int(np.sum(value_bytes(batch))) <= payload
