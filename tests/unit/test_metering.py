"""What invocations cost: sums, the file that processes share, what is left of it after crashes and years."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import io
import math
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.environments import metering
from functions.environments.contract import Report
from functions.environments.metering import Meter, MeteringFile, Usage, add_up, from_line, lines_of, to_line
from tests.clock import ManualClock

REPORT = Report("f", "1", 0.0, 15.741, 16, 128, 56)


def report(**changes: object) -> Report:
    return dataclasses.replace(REPORT, **changes)  # type: ignore[arg-type]


def used(*reports: Report) -> Usage:
    usage = Usage()
    for each in reports:
        usage.count(each)
    return usage


def read(path: Path) -> dict[tuple[str, str], Usage]:
    with path.open("rb") as file:
        return add_up(entry for line in lines_of(file) if (entry := from_line(line)))


def total(path: Path) -> Usage:
    usage = Usage()
    for each in read(path).values():
        usage.add(each)
    return usage


def test_invocations_are_summed() -> None:
    """Timeouts are errors too, GB-seconds come from the memory's size and the billed time."""
    usage = used(
        report(init_ms=100.0, billed_ms=116),
        report(status="timeout", error_type="Sandbox.Timedout", duration_ms=3_000.0, billed_ms=3_000),
        report(
            status="error", error_type="KeyError", memory_size_mb=1_024, memory_used_mb_max=900, billed_ms=1_000
        ),
    )
    assert (usage.requests, usage.errors, usage.timeouts, usage.cold_starts) == (3, 2, 1, 1)
    assert (usage.billed_ms, usage.init_ms, usage.duration_ms_max) == (4_116, 100.0, 3_000.0)
    assert (usage.memory_size_mb_max, usage.memory_used_mb_max) == (1_024, 900)
    assert usage.gb_seconds == pytest.approx(0.125 * 3.116 + 1.0)


@given(st.lists(st.floats(0.01, 1_000_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_percentiles_are_close(durations: list[float], share: float) -> None:
    """Never below the duration that is at that place among all of them, and at most 9.1% above."""
    usage = used(*(report(duration_ms=each) for each in durations))
    exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
    assert exact * (1 - 1e-9) <= usage.percentile_ms(share) <= exact * 1.091


def test_nothing_has_no_percentile() -> None:
    """A function that was only throttled took no time."""
    assert Usage(throttles=3).percentile_ms(0.5) == 0.0


NUMBER = st.integers(0, 2**40)
USAGES = st.builds(
    Usage, **{name: NUMBER for name in metering._NUMBERS if name not in metering._FLOATS},
    **{name: st.integers(0, 10**9).map(lambda n: n / 8) for name in metering._FLOATS},
    durations=st.dictionaries(st.integers(0, len(metering.CLASS_BOUNDS_MS)), st.integers(1, 2**40), max_size=5),
)  # fmt: skip
TIMES = st.datetimes().map(lambda at: at.isoformat(timespec="minutes"))
KEYS = st.tuples(st.tuples(TIMES, st.sampled_from(metering.SPANS)).map(lambda pair: pair[0][: pair[1]]), st.text())


@given(KEYS, USAGES)
def test_a_line_gives_its_sums_back(key: tuple[str, str], usage: Usage) -> None:
    """All members, of every span, for any name; in one line."""
    line = to_line(key, usage)
    assert line.count(b"\n") == 1
    assert from_line(line) == (key, usage)


@pytest.mark.parametrize(
    "change",
    [
        b"", b"{", b"[]", b"null", b"1", b"[" * 100_000, b"\0\0\0", b"\xff",
        b'{"at":"2026-03-01T08:15","function":"f"}',
        b'{"at":"2026-03-01T08:15","durations":{}}',
        b'{"at":"2026-03-01T08:1","function":"f","durations":{}}',
        b'{"at":"2026-03-01T25:15","function":"f","durations":{}}',
        b'{"at":"2026-13","function":"f","durations":{}}',
        b'{"at":"2026-03-01T08:15","function":"f","requests":-1,"durations":{}}',
        b'{"at":"2026-03-01T08:15","function":"f","requests":1.5,"durations":{}}',
        b'{"at":"2026-03-01T08:15","function":"f","requests":true,"durations":{}}',
        b'{"at":"2026-03-01T08:15","function":"f","requests":9223372036854775808,"durations":{}}',
        b'{"at":"2026-03-01T08:15","function":"f","duration_ms":NaN,"durations":{}}',
        b'{"at":"2026-03-01T08:15","function":"f","durations":{"x":1}}',
        b'{"at":"2026-03-01T08:15","function":"f","durations":{"1":0}}',
        b'{"at":"2026-03-01T08:15","function":"f","durations":{"99999":1}}',
    ],
)  # fmt: skip
def test_lines_that_are_none_are_refused(change: bytes) -> None:
    """Torn, foreign or impossible ones count for nothing."""
    assert from_line(change) is None


@given(st.lists(st.tuples(KEYS, USAGES), max_size=8), st.sampled_from(metering.SPANS))
def test_merging_loses_no_count(lines: list[tuple[tuple[str, str], Usage]], span: int) -> None:
    """The total is the same whatever the spans are, and no time is finer than the span."""
    merged = add_up(lines, span)
    assert all(len(at) <= span for at, _ in merged)
    before, after = Usage(), Usage()
    for _, usage in lines:
        before.add(usage)
    for usage in merged.values():
        after.add(usage)
    assert before == after


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"."))))
def test_lines_are_read_whole(lines: list[bytes]) -> None:
    """Each line of the file as it is, also a last one without an end."""
    data = b"\n".join(lines)
    expected = data.split(b"\n")
    assert list(lines_of(io.BytesIO(data))) == (expected[:-1] if expected[-1] == b"" else expected)


def test_a_line_without_an_end_is_no_burden() -> None:
    """Gigabytes without a line end come in pieces."""
    size = metering.LINE_BYTES_MAX * 5
    pieces = list(lines_of(io.BytesIO(b"x" * size + b"\nnext")))
    assert pieces[-1] == b"next"
    assert sum(map(len, pieces)) == size + 4
    assert max(map(len, pieces)) <= metering.LINE_BYTES_MAX * 2


KEY = ("2026-03-01T08:15", "f")


@pytest.mark.parametrize("torn", [b'{"at":"2026-03-0', b"x" * 200_000, b"\0" * 10])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    """What a crash left of a line is gone with the next append, and no whole line is."""
    path = tmp_path / "metering.jsonl"
    file = MeteringFile(path)
    file.append({KEY: used(REPORT)})
    with path.open("ab") as raw:
        raw.write(torn)
    file.append({KEY: used(REPORT)})
    assert path.read_bytes() == to_line(KEY, used(REPORT)) * 2


def test_a_file_of_nothing_but_a_torn_line_is_begun_anew(tmp_path: Path) -> None:
    """The first line may be the torn one."""
    path = tmp_path / "metering.jsonl"
    path.write_bytes(b"torn")
    MeteringFile(path).append({KEY: used(REPORT)})
    assert path.read_bytes() == to_line(KEY, used(REPORT))


def test_the_file_never_grows_beyond_its_bound(tmp_path: Path) -> None:
    """Years of minutes are merged, the counts stay; what is merged last is in longer spans."""
    path = tmp_path / "metering.jsonl"
    file = MeteringFile(path, bytes_max=20_000)
    spread = random.Random(5)
    lengths = set()
    for number in range(3_000):
        at = metering.minute(1_700_000_000 + number * 40_000)
        file.append({(at, spread.choice("abc")): used(REPORT)})
        assert path.stat().st_size <= 20_000
        lengths |= {len(at) for at, _ in read(path)} if number % 100 == 0 else set()
    assert total(path).requests == 3_000
    assert total(path).billed_mb_ms == 3_000 * 16 * 128
    assert {7, 4} <= lengths
    assert sorted(each.name for each in tmp_path.iterdir()) == ["metering.jsonl", "metering.jsonl.lock"]


def test_a_full_disk_writes_no_half(tmp_path: Path) -> None:
    """An append that does not fit leaves the file as it was: its lines come again with the next one."""
    path = tmp_path / "metering.jsonl"
    file = MeteringFile(path)
    file.append({KEY: used(REPORT)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
    try:
        with pytest.raises(OSError, match=r"No space left|too large"):
            file.append({KEY: used(REPORT)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_merge_that_fails_counts_nothing_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lines are in the file by then, so that the append has done its work."""
    path = tmp_path / "metering.jsonl"
    (tmp_path / "metering.jsonl.new").mkdir()
    file = MeteringFile(path, bytes_max=100)
    for _ in range(3):
        file.append({KEY: used(REPORT)})
    assert total(path).requests == 3
    assert "cannot be merged" in caplog.text
    (tmp_path / "metering.jsonl.new").rmdir()
    file.append({KEY: used(REPORT)})
    assert (total(path).requests, len(path.read_bytes().splitlines())) == (4, 1)


WRITER = """
import sys
from pathlib import Path
from functions.environments.contract import Report
from functions.environments.metering import MeteringFile, Usage
usage = Usage()
usage.count(Report("f", "1", 0.0, 1.0, 1, 128, 56))
file = MeteringFile(Path(sys.argv[1]), bytes_max=5_000)
for number in range(150):
    file.append({("2026-03-01T%02d:%02d" % (number // 60, number % 60), sys.argv[2]): usage})
"""


@pytest.mark.slow
def test_processes_share_a_file(tmp_path: Path) -> None:
    """Three of them append and merge at the same time, and nothing is lost or counted twice."""
    path = tmp_path / "metering.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    counts: dict[str, int] = {}
    for (_, function), usage in read(path).items():
        counts[function] = counts.get(function, 0) + usage.requests
    assert counts == {"a": 150, "b": 150, "c": 150}
    assert path.stat().st_size <= 5_000


async def test_a_meter_writes_every_few_seconds(tmp_path: Path) -> None:
    """Nothing while nothing happens; what was not written yet is when it is stopped."""
    path = tmp_path / "sub" / "metering.jsonl"
    clock = ManualClock(0.0)
    meter = Meter(path, clock=clock)
    running = asyncio.create_task(meter.run())
    await clock.advance(25.0)
    assert not path.exists()
    meter.on_report(REPORT)
    await clock.advance(10.0)
    await until_written(path, 1)
    meter.on_report(REPORT)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert line_count(path) == 2
    assert total(path).requests == 2


async def test_a_meter_counts_by_function_and_minute(tmp_path: Path) -> None:
    """A line for each function and minute in which something happened, and sums of all in memory."""
    path = tmp_path / "metering.jsonl"
    clock = ManualClock(0.0)
    meter = Meter(path, clock=clock)
    for _ in range(3):
        meter.on_report(REPORT)
        meter.on_report(report(function_name="g"))
        meter.on_throttle("g")
        await clock.advance(30.0)
    await meter.flush()
    await meter.flush()
    assert {key: (usage.requests, usage.throttles) for key, usage in read(path).items()} == {
        ("1970-01-01T00:00", "f"): (2, 0),
        ("1970-01-01T00:00", "g"): (2, 2),
        ("1970-01-01T00:01", "f"): (1, 0),
        ("1970-01-01T00:01", "g"): (1, 1),
    }
    assert line_count(path) == 4
    snapshot = meter.snapshot()
    assert (snapshot["f"].requests, snapshot["g"].throttles) == (3, 3)
    snapshot["f"].count(REPORT)
    assert meter.snapshot()["f"].requests == 3


async def until_written(path: Path, lines: int) -> None:
    async with asyncio.timeout(10):
        while line_count(path) < lines:  # noqa: ASYNC110 - a file says nothing when it changes
            await asyncio.sleep(0.005)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def test_what_cannot_be_written_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, tried again, and complete when the disk is back."""
    folder = tmp_path / "later"
    folder.write_text("in the way")
    clock = ManualClock(0.0)
    meter = Meter(folder / "metering.jsonl", clock=clock)
    for _ in range(5):
        meter.on_report(REPORT)
        await meter.flush()
        await clock.advance(60.0)
    assert caplog.text.count("cannot be written") == 1
    folder.unlink()
    meter.on_report(REPORT)
    await meter.flush()
    assert total(folder / "metering.jsonl").requests == 6
    assert len(read(folder / "metering.jsonl")) == 6


async def test_a_lock_that_is_kept_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that is stopped inside of its append costs the others nothing but a later line."""
    monkeypatch.setattr(metering, "LOCK_SECONDS_MAX", 0.05)
    path = tmp_path / "metering.jsonl"
    meter = Meter(path, clock=ManualClock())
    meter.on_report(REPORT)
    with (tmp_path / "metering.jsonl.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await meter.flush()
        assert "keeps it locked" in caplog.text
    await meter.flush()
    assert total(path).requests == 1


async def test_a_meters_memory_is_bounded(tmp_path: Path) -> None:
    """Names beyond the bound are one function; what waits for the disk is kept by the day."""
    (tmp_path / "file").write_text("in the way")
    clock = ManualClock(0.0)
    meter = Meter(tmp_path / "file" / "metering.jsonl", clock=clock)
    for hour in range(4):
        for number in range(1_500):
            meter.on_report(report(function_name=str(number)))
        await meter.flush()
        assert len(meter._unwritten) <= 2 * (metering.FUNCTIONS_MAX + 1), hour
        await clock.advance(3_600.0)
    assert len(meter.snapshot()) == metering.FUNCTIONS_MAX + 1
    assert meter.snapshot()[metering.OTHERS].requests == 2_000
    assert sum(usage.requests for usage in meter._unwritten.values()) == 6_000
