"""What happened lately, a run's history, and the tail of functions' output: newest kept, memory bounded."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.recent import KEPT_BYTES_MAX, LogEntry, RecentFailures, Ring
from engine.status import EngineStatus, FailureEntry
from engine.web.history import HistoryRing
from functions.environments.logs import TAIL_LINE_CHARACTERS_MAX, FunctionLogs, Line, LogTail
from tests.web_world import World


def failure(offset: int, pipeline: str = "clicks", value: bytes | None = b"{}") -> FailureEntry:
    return FailureEntry(pipeline, "t", 0, offset, 0, 0.0, b"k", value, (), "bad", "ValueError", 1, None)


def offsets(recent: RecentFailures, pipeline: str | None = None) -> list[int]:
    return [each.entry.offset for each in recent.latest(pipeline, 1_000)]


def test_each_pipeline_keeps_its_latest() -> None:
    """One pipeline's flood leaves the others' failures alone."""
    recent = RecentFailures(3, 1_000_000)
    recent.add(failure(1, "orders"))
    recent.extend([failure(offset) for offset in range(10)])
    assert offsets(recent, "clicks") == [9, 8, 7]
    assert offsets(recent, "orders") == [1]
    assert offsets(recent) == [9, 8, 7, 1]
    assert recent.last == 11
    assert [each.entry.offset for each in recent.since(1, 2)] == [8, 9]
    assert recent.since(11, 5) == []
    assert offsets(recent, "nobody") == []


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 5_000)), max_size=40))
def test_bytes_are_bounded_together(given_: list[tuple[str, int]]) -> None:
    """Whatever comes; the newest one is always there."""
    recent = RecentFailures(5, 10_000)
    for at, (pipeline, size) in enumerate(given_):
        recent.add(failure(at, pipeline, b"x" * size))
        assert recent.nbytes <= 10_000
        assert offsets(recent)[0] == at
    kept = offsets(recent)
    assert kept == sorted(kept, reverse=True)


def test_a_large_value_is_cut_and_its_length_told() -> None:
    """Memory holds its beginning; null stays null."""
    recent = RecentFailures(10, 10_000_000)
    recent.extend([failure(1, value=b"x" * (KEPT_BYTES_MAX + 1)), failure(2, value=None)])
    null, large = recent.latest(None, 10)
    assert (len(large.entry.value or b""), large.value_bytes) == (KEPT_BYTES_MAX, KEPT_BYTES_MAX + 1)
    assert (null.entry.value, null.value_bytes) == (None, None)


def test_a_ring_keeps_the_latest() -> None:
    """By number and by size; an item that is too large alone is not kept."""
    ring: Ring[str] = Ring(3, 10, len)
    assert [ring.add(text) for text in ("aaaa", "bbbb", "c", "d")] == [1, 2, 3, 4]
    assert ring.items() == [(2, "bbbb"), (3, "c"), (4, "d")]
    assert ring.since(2, 1) == [(4, "d")]
    ring.add("x" * 11)
    assert (ring.items(), ring.nbytes, ring.last) == ([], 0, 5)


def test_many_threads_share_a_ring() -> None:
    """No number is given twice, and none is lost."""
    ring: Ring[int] = Ring(10_000, 10_000, lambda _: 1)

    def work() -> None:
        for number in range(500):
            ring.add(number)
            ring.since(0, 5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sequence for sequence, _ in ring.items()] == list(range(1, 2_001))


# The tail of the functions' output.


def test_the_tail_is_looked_through() -> None:
    """By function and by text, newest first, whatever the case."""
    tail = LogTail()
    tail.add("clicks", "s", [Line(1.0, "function", "Straße one"), Line(2.0, "platform", "two")])
    tail.add("orders", "s", [Line(3.0, "notice", "STRASSE three")])
    assert [entry.text for _, entry in tail.latest(10)] == ["STRASSE three", "two", "Straße one"]
    assert [number for number, _ in tail.latest(10, search="strasse")] == [3, 1]
    assert [entry.text for _, entry in tail.latest(1, functions={"clicks"})] == ["two"]
    assert [entry.text for _, entry in tail.since(1, 10)] == ["two", "STRASSE three"]
    assert tail.last == 3


def test_the_tail_is_bounded() -> None:
    """By lines and bytes, with long lines cut."""
    tail = LogTail(lines_max=100, bytes_max=40_000)
    tail.add("clicks", "s", [Line(0.0, "function", "x" * (TAIL_LINE_CHARACTERS_MAX + 1)) for _ in range(5)])
    assert [len(entry.text) for _, entry in tail.latest(10)] == [TAIL_LINE_CHARACTERS_MAX] * 2
    tail.add("clicks", "s", [Line(0.0, "function", str(number)) for number in range(1_000)])
    found = tail.latest(1_000)
    assert (len(found), found[0][1].text, found[0][0]) == (100, "999", 1_005)


def test_what_functions_print_is_in_the_tail() -> None:
    """Besides where it goes anyway."""
    logs = FunctionLogs()
    stream = logs.stream("clicks")
    stream.platform("START RequestId: 1")
    stream.write(b"hello\nwor")
    stream.write(b"ld\n")
    logs.close()
    assert [entry.text for _, entry in logs.tail.latest(10)] == ["world", "hello", "START RequestId: 1"]
    newest = logs.tail.latest(1)[0][1]
    assert newest == LogEntry(newest.at, "clicks", stream.name, "function", "world")


# The history.


def moment(seconds: float, **change: object) -> EngineStatus:
    status = World(shards=1, pipelines=1, now=1_000.0)._status(1_000.0 + seconds)
    return replace(status, started_at=0.0, **change)  # type: ignore[arg-type]


def test_rates_come_of_differences() -> None:
    """One moment for each step, however often a status comes."""
    ring = HistoryRing(10.0)
    first, last = moment(0), moment(10)
    taken = [ring.add(moment(seconds)) for seconds in range(11)]
    assert taken == [False] * 10 + [True]
    (found,) = ring.history().moments["clicks"]
    records = last.pipelines[0].records - first.pipelines[0].records
    assert found.records_per_second == pytest.approx(records / 10)
    assert found.at == last.at
    assert found.offset_lag == last.pipelines[0].offset_lag
    assert found.duration_p99_seconds is not None


def test_the_history_has_an_hour() -> None:
    """And no more, however long the run is."""
    ring = HistoryRing(10.0, moments_max=3)
    for step in range(8):
        ring.add(moment(step * 10.0))
    found = ring.history().moments["clicks"]
    assert [each.at for each in found] == [1_050.0, 1_060.0, 1_070.0]
    assert ring.history().step_seconds == 10.0


def test_a_pipeline_that_appears_later_has_no_rate_at_first() -> None:
    """Nor does one whose counts went back become negative."""
    ring = HistoryRing(10.0)
    status = moment(10)
    ring.add(moment(0, pipelines=()))
    ring.add(status)
    assert ring.history().moments == {}
    ring.add(replace(moment(20), pipelines=(replace(status.pipelines[0], records=0, rows=0),)))
    assert ring.history().moments["clicks"][0].records_per_second == 0.0
