"""Batches are cut and joined without losing an offset: each is a record, filtered, or absent, once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, from_rows, join


def made(kinds: list[str], start: int) -> Batch:
    """A batch whose offsets are of these kinds: a record, a filtered one, or none."""
    records = [(start + at, 0, b"k", kind.encode(), ()) for at, kind in enumerate(kinds) if kind != "absent"]
    batch = from_rows("t", 0, records, start=start, end=start + len(kinds))
    values = batch.records.column("value").to_pylist()
    return batch.only(np.array([value == b"record" for value in values], np.bool_), filters=True)


def fates(batch: Batch) -> dict[int, str]:
    found = dict.fromkeys(range(batch.start, batch.end), "absent")
    return (
        found | dict.fromkeys(batch.offsets.tolist(), "record") | dict.fromkeys(batch.filtered.tolist(), "filtered")
    )


KINDS = st.lists(st.sampled_from(["record", "filtered", "absent"]), min_size=1, max_size=12)


@given(kinds=KINDS, start=st.integers(0, 5), at=st.integers(0, 12))
def test_a_cut_batch_is_joined_again(kinds: list[str], start: int, at: int) -> None:
    """By count or by offset: the parts meet, and each offset keeps its fate."""
    batch = made(kinds, start)
    expected = {start + index: kind for index, kind in enumerate(kinds)}
    assert fates(batch) == expected
    for parts in ((batch.head(at + 1), batch.tail(at + 1)), batch.split(min(start + at, batch.end))):
        before, after = parts
        assert (before.start, before.end, after.end) == (batch.start, after.start, batch.end)
        assert fates(before) | fates(after) == expected
        assert fates(join(parts)) == expected
        assert all(part.absent == list(fates(part).values()).count("absent") for part in parts)


def test_a_filtered_offset_outside_of_the_range_is_a_bug() -> None:
    """The range accounts for it, or nothing does."""
    batch = made(["record", "filtered"], 3)
    with pytest.raises(AssertionError, match="filtered offset 4"):
        Batch("t", 0, 3, 4, batch.records, filtered=batch.filtered)
