"""What invocations cost: sums over their reports, for each function, in memory and in a file of JSON lines.

A line is what one function took in one minute, or in a part of it: lines are added up by whoever reads them, so
that several processes write to one file, and what is old is merged into hours, days, months and years without
losing a count. Not here: measuring an invocation (the pool does) and laying out a report (`headrace report`).
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import datetime as dt
import errno
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import BinaryIO, Final, Literal

from engine.protocols import Clock
from engine.status import Billing
from functions.environments.contract import Report

logger = logging.getLogger("headrace.metering")

Architecture = Literal["x86_64", "arm64"]

#: US dollars, in most regions, without volume tiers. Taken from third-party copies of AWS's price page: look at the
#: page itself, for your region, before money depends on them.
USD_PER_GB_SECOND: Final[dict[Architecture, float]] = {"x86_64": 0.0000166667, "arm64": 0.0000133334}
USD_PER_REQUEST: Final = 0.20 / 1_000_000

#: Free in each calendar month, over all functions of an account; from the same copies.
FREE_REQUESTS: Final = 1_000_000
FREE_GB_SECONDS: Final = 400_000

#: Beyond so many functions the others are one.
FUNCTIONS_MAX: Final = 1_000
OTHERS: Final = "(others)"

FLUSH_SECONDS: Final = 10.0

#: A larger file is merged until it is half of this.
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
LINE_BYTES_MAX: Final = 65_536

#: For another process that has the file.
LOCK_SECONDS_MAX: Final = 2.0

#: Lengths of ``at``: 2026-03-01T08:15, and the same cut off at the hour, the day, the month and the year.
SPANS: Final = (16, 13, 10, 7, 4)

#: Bounds of the classes that durations are counted in, in milliseconds: eight for each doubling, from a hundredth
#: of a millisecond to AWS's 15 minutes.
CLASS_BOUNDS_MS: Final = tuple(0.01 * 2 ** (number / 8) for number in range(213))

_COUNT_MAX: Final = 2**63


@dataclass(slots=True)
class Usage:
    """Sums over invocations of one function, exact but for percentiles.

    ``billed_mb_ms`` is the memory's size in megabytes times billed milliseconds. ``errors`` has timeouts among
    them, as CloudWatch's metric has. ``throttles`` are no requests, and cost nothing.
    """

    requests: int = 0
    errors: int = 0
    timeouts: int = 0
    throttles: int = 0
    cold_starts: int = 0
    billed_ms: int = 0
    billed_mb_ms: int = 0
    duration_ms: float = 0.0
    duration_ms_max: float = 0.0
    init_ms: float = 0.0
    memory_size_mb_max: int = 0
    memory_used_mb_max: int = 0
    #: How many invocations took up to the bound of each class of `CLASS_BOUNDS_MS`; only those that have any.
    durations: dict[int, int] = field(default_factory=dict)

    @property
    def gb_seconds(self) -> float:
        """What AWS bills: the memory size's gigabytes (of 1,024 MB) times billed seconds."""
        return self.billed_mb_ms / 1024 / 1000

    def count(self, report: Report) -> None:
        """Add one invocation."""
        self.requests += 1
        self.errors += report.status != "success"
        self.timeouts += report.status == "timeout"
        self.billed_ms += report.billed_ms
        self.billed_mb_ms += report.billed_ms * report.memory_size_mb
        self.duration_ms += report.duration_ms
        self.duration_ms_max = max(self.duration_ms_max, report.duration_ms)
        if report.init_ms is not None:
            self.cold_starts += 1
            self.init_ms += report.init_ms
        self.memory_size_mb_max = max(self.memory_size_mb_max, report.memory_size_mb)
        self.memory_used_mb_max = max(self.memory_used_mb_max, report.memory_used_mb_max)
        number = bisect.bisect_left(CLASS_BOUNDS_MS, report.duration_ms)
        self.durations[number] = self.durations.get(number, 0) + 1

    def add(self, other: Usage) -> None:
        """Add what others have summed up."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _HIGHEST:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for number, count in other.durations.items():
            self.durations[number] = self.durations.get(number, 0) + count

    def percentile_ms(self, share: float) -> float:
        """A duration, in milliseconds, within which ``share`` (0 to 1) of the invocations were; 0.0 for none.

        It is never too low, and at most 9.1% too high: the bound of a class, or the longest that was seen.
        """
        rest = max(1, math.ceil(share * sum(self.durations.values())))
        for number in sorted(self.durations):
            rest -= self.durations[number]
            if rest <= 0 and number < len(CLASS_BOUNDS_MS):
                return min(CLASS_BOUNDS_MS[number], self.duration_ms_max)
        return self.duration_ms_max


_HIGHEST: Final = ("duration_ms_max", "memory_size_mb_max", "memory_used_mb_max")
_FLOATS: Final = ("duration_ms", "duration_ms_max", "init_ms")
_NUMBERS: Final = tuple(each.name for each in fields(Usage) if each.name != "durations")
_SUMMED: Final = tuple(name for name in _NUMBERS if name not in _HIGHEST)

#: What one function took in the span that begins at a time, cut off as in `SPANS`.
Key = tuple[str, str]


def minute(at: float) -> str:
    """Seconds since the epoch as the minute that they are in, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M", time.gmtime(at))


def to_line(key: Key, usage: Usage) -> bytes:
    """A line of the file, with its end. What is nothing is left out."""
    members: dict[str, object] = {"at": key[0], "function": key[1]}
    for name in _NUMBERS:
        if value := getattr(usage, name):
            members[name] = round(value, 3) if name in _FLOATS else value
    members["durations"] = {str(number): count for number, count in sorted(usage.durations.items())}
    return json.dumps(members, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> tuple[Key, Usage] | None:
    """What a line says, or None for one that is torn or none of ours. Each member is checked."""
    try:
        members = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return from_members(members)


def from_members(members: object) -> tuple[Key, Usage] | None:
    """The same, of a line that is read already."""
    if not isinstance(members, dict):
        return None
    at, function, durations = (members.get(name) for name in ("at", "function", "durations"))
    if not isinstance(function, str) or not isinstance(at, str) or not isinstance(durations, dict):
        return None
    usage = Usage()
    for name in _NUMBERS:
        value = members.get(name, 0)
        kinds = (int, float) if name in _FLOATS else (int,)
        if type(value) not in kinds or not 0 <= value < _COUNT_MAX:
            return None
        setattr(usage, name, value)
    for number, count in durations.items():
        if not (number.isdecimal() and number.isascii() and len(number) <= 3 and type(count) is int and count > 0):
            return None
        usage.durations[min(int(number), len(CLASS_BOUNDS_MS))] = count
    return ((at, function), usage) if start_of(at) is not None else None


def start_of(at: str) -> dt.datetime | None:
    """When a span begins, in UTC; None for text that is no time of ours."""
    if len(at) not in SPANS or not at.isascii():
        return None
    try:
        return dt.datetime.fromisoformat(at + "0000-01-01T00:00"[len(at) :]).replace(tzinfo=dt.UTC)
    except ValueError:
        return None


def add_up(lines: Iterable[tuple[Key, Usage]], span: int = SPANS[0]) -> dict[Key, Usage]:
    """One entry for each function and time, times cut off at ``span`` characters."""
    sums: dict[Key, Usage] = {}
    for (at, function), usage in lines:
        sums.setdefault((at[:span], function), Usage()).add(usage)
    return sums


class MeteringFile:
    """The file: lines are appended, and merged when they are too many. All processes that write to it lock it.

    Blocks; call it in a thread. Raises OSError, and `TimeoutError` when another process keeps the lock.
    """

    def __init__(self, path: Path, *, bytes_max: int = FILE_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max

    def append(self, sums: dict[Key, Usage]) -> None:
        """Add lines: all of them or, when it raises, none. A torn line that a crash left is cut off first."""
        data = b"".join(to_line(key, usage) for key, usage in sums.items())
        with self._locked():
            with self._path.open("a+b", buffering=0) as file:
                size = _whole(file.fileno())
                file.truncate(size)
                try:
                    if file.write(data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)
                    raise
            if size + len(data) > self._bytes_max:
                try:
                    self._merge()
                except OSError as error:  # the lines are there: raising would have them written twice
                    logger.warning("%s: metering cannot be merged: %s", self._path, error)

    def _merge(self) -> None:
        """Write the file anew, in the longest spans that are needed to make it half of what it may be."""
        with self._path.open("rb") as file:
            sums = add_up(entry for line in lines_of(file) if (entry := from_line(line)))
        for span in SPANS:
            sums = add_up(sums.items(), span)
            data = b"".join(to_line(key, usage) for key, usage in sums.items())
            if len(data) <= self._bytes_max // 2:
                break
        new = self._path.with_name(self._path.name + ".new")
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """A lock on a file beside it, which stays: the file itself is replaced when it is merged."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        give_up_at = time.monotonic() + LOCK_SECONDS_MAX
        with self._path.with_name(self._path.name + ".lock").open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up_at:
                        raise TimeoutError(f"{self._path}: another process keeps it locked") from None
                    time.sleep(0.02)
            yield


def _whole(descriptor: int) -> int:
    """The size without a torn last line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - LINE_BYTES_MAX)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends, in bounded memory: those that are too long to be ours come in pieces."""
    held = b""
    while data := file.read(LINE_BYTES_MAX):
        *whole, held = (held + data).split(b"\n")
        yield from whole
        if len(held) > LINE_BYTES_MAX:
            yield held
            held = b""
    if held:
        yield held


class Meter:
    """Sums up a process's invocations. Belongs to the event loop; ``path`` is the file, if there is one.

    ``on_report`` and ``on_throttle`` cost microseconds. ``run`` writes every `FLUSH_SECONDS` and, when it is
    cancelled, once more; a process that is killed loses what it did not write yet.
    """

    def __init__(self, path: Path | None = None, *, clock: Clock, bytes_max: int = FILE_BYTES_MAX) -> None:
        self._file = MeteringFile(path, bytes_max=bytes_max) if path is not None else None
        self._path = path
        self._clock = clock
        self._sums: dict[str, Usage] = {}
        self._unwritten: dict[Key, Usage] = {}
        self._is_refused = False

    def on_report(self, report: Report) -> None:
        """Count an invocation; it is in the minute in which it is reported."""
        for usage in self._usages(report.function_name):
            usage.count(report)

    def on_throttle(self, function_name: str) -> None:
        """Count an invocation that did not take place for want of an environment."""
        for usage in self._usages(function_name):
            usage.throttles += 1

    def _usages(self, name: str) -> Iterator[Usage]:
        if name not in self._sums and len(self._sums) >= FUNCTIONS_MAX:
            name = OTHERS
        yield self._sums.setdefault(name, Usage())
        if self._file is not None:
            yield self._unwritten.setdefault((minute(self._clock.time()), name), Usage())

    def snapshot(self) -> dict[str, Usage]:
        """Sums since the start, by function; copies."""
        return {name: usage for (_, name), usage in add_up((("", n), u) for n, u in self._sums.items()).items()}

    def billing(self, function: str) -> Billing:
        """What AWS would bill for a function so far, at x86_64's price, the free tier left out."""
        usage = self._sums.get(function)
        if usage is None:
            return Billing()
        usd = usage.gb_seconds * USD_PER_GB_SECOND["x86_64"] + usage.requests * USD_PER_REQUEST
        return Billing(usage.billed_ms, usage.gb_seconds, usd)

    async def run(self) -> None:
        """Write to the file every few seconds, until cancelled."""
        try:
            while True:
                await self._clock.sleep(FLUSH_SECONDS)
                await self.flush()
        finally:
            await self.flush()

    async def flush(self) -> None:
        """Write what is not written yet. What fails is logged once, kept, and tried again."""
        if self._file is None or not self._unwritten:
            return
        taken, self._unwritten = self._unwritten, {}
        try:
            await asyncio.to_thread(self._file.append, taken)
            self._is_refused = False
        except OSError as error:
            if not self._is_refused:
                self._is_refused = True
                logger.warning("%s: metering cannot be written, and will be tried again: %s", self._path, error)
            # Of a long time only the sums of days are kept.
            span = SPANS[0] if len(taken) < FUNCTIONS_MAX * 2 else SPANS[2]
            self._unwritten = add_up([*taken.items(), *self._unwritten.items()], span)
