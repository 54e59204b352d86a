"""Where the output of environments goes: the engine's log, or files as CloudWatch has them; all in one thread.

A `LogStream` is one environment's `contract.LogSink`: it only puts bytes aside, so that a function that floods its
standard output costs the event loop next to nothing. The thread of `FunctionLogs` makes lines of them. Everything
is bounded: a line, an invocation, what waits, a function's files. What is left out is counted and said. The latest
lines of all functions stay in memory besides (`LogTail`), to be looked through while the engine runs.

Not here: reading the processes' pipes, and what the platform's lines say (`functions.environments.report`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from engine.recent import LogEntry, Ring

logger = logging.getLogger("headrace.function")

#: A longer line goes on in the next one; what CloudWatch takes as one event.
LINE_BYTES_MAX: Final = 262_144

#: Of one invocation, and of what is printed between two of them.
INVOCATION_BYTES_MAX: Final = 6 * 1024 * 1024
INVOCATION_LINES_MAX: Final = 50_000

#: Of all streams together, taken and not written yet.
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024

#: What an item that waits takes beside its bytes.
ITEM_BYTES: Final = 200

#: The thread waits so long for more before it writes.
GATHER_SECONDS: Final = 0.05

#: A notice says that output is missing: at most once a second for each stream, unless it is so much.
NOTICE_BYTES: Final = 65_536

#: A stream's bytes are split, and its lines handed on, in portions.
PORTION_LINES: Final = 1_000
PORTION_BYTES: Final = 65_536

#: Of one function. Files that hold next to nothing would else be too many before they are too large.
FILES_MAX: Final = 10_000

#: The tail in memory: of all functions together, and of one line.
TAIL_LINES_MAX: Final = 20_000
TAIL_BYTES_MAX: Final = 8 * 1024 * 1024
TAIL_LINE_CHARACTERS_MAX: Final = 16_384

Origin = Literal["function", "platform", "notice"]


class Line(NamedTuple):
    """One line, without its end. ``at`` is seconds since the epoch; a notice is ours about what is missing."""

    at: float
    origin: Origin
    text: str


class Target(Protocol):
    """Where the lines of one stream end up. Called by one thread only."""

    def write(self, lines: list[Line]) -> None: ...


class LoggerTarget:
    """To ``headrace.function.NAME``: the function's lines at INFO, the platform's at DEBUG, notices at WARNING."""

    LEVELS: Final = {"function": logging.INFO, "platform": logging.DEBUG, "notice": logging.WARNING}

    def __init__(self, function_name: str) -> None:
        self._logger = logger.getChild(function_name)

    def write(self, lines: list[Line]) -> None:
        for line in lines:
            # AWS's runtime joins a traceback's lines with CR, which a terminal would print over one another.
            self._logger.log(self.LEVELS[line.origin], "%s", line.text.replace("\r", "\n"))


class FileGroup:
    """The files of one function below ``directory``/aws/lambda/NAME; the oldest go when they exceed ``bytes_max``.

    Exact for one process; others that share the directory look for themselves. Reads the folder once for each
    sixteenth of ``bytes_max`` that is written.
    """

    def __init__(self, directory: Path, function_name: str, bytes_max: int) -> None:
        self.path = directory / "aws" / "lambda" / _file_name(function_name)
        self.file_bytes_max = max(1, bytes_max // 8)
        self._bytes_max = bytes_max
        self._step = max(1, bytes_max // 16)
        self._room = 0
        self._files_room = 0

    def admit(self, size: int, is_new: bool) -> None:
        """Make room for ``size`` bytes that are written next."""
        self._room -= size
        self._files_room -= is_new
        if self._room < 0 or self._files_room < 0:
            kept, count = self._prune(self._bytes_max - max(size, self._step))
            self._room = self._bytes_max - kept - size
            self._files_room = FILES_MAX - count

    def _prune(self, bytes_max: int) -> tuple[int, int]:
        """Remove the oldest files beyond ``bytes_max``; the bytes and the number of those that stay."""
        found = []
        for path in self.path.rglob("*.log"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        found.sort(reverse=True)
        kept = count = 0
        for _, path, size in found:
            if kept + size <= bytes_max and count < FILES_MAX * 3 // 4:
                kept += size
                count += 1
                continue
            bytes_max = 0  # what is older than a file that goes, goes as well
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # folders of years, months and days, when nothing is left in them
                for folder in path.relative_to(self.path).parents[:-1]:
                    (self.path / folder).rmdir()
        return kept, count


class FileTarget:
    """To a file of the stream's own, each line with its time, as CloudWatch exports them.

    Opened for each portion and closed again: hundreds of environments hold no descriptors, and a file that
    somebody removes is simply begun again. When it is full, the next one has a number in its name.
    """

    def __init__(self, group: FileGroup, stream_name: str) -> None:
        self._group = group
        self._name = "/".join(_file_name(part) for part in stream_name.split("/"))
        self._number = 0
        self._failed_at = -1e9

    def write(self, lines: list[Line]) -> None:
        portion: list[bytes] = []
        size = 0
        for line in lines:
            data = f"{_iso(line.at)} {line.text}".replace("\n", "\r").encode("utf-8", "replace") + b"\n"
            if size + len(data) > self._group.file_bytes_max and portion:
                self._append(b"".join(portion))
                portion, size = [], 0
            portion.append(data)
            size += len(data)
        self._append(b"".join(portion))

    def _append(self, data: bytes) -> None:
        try:
            path, size = self._path(), 0
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
            if size and size + len(data) > self._group.file_bytes_max:
                self._number += 1
                path, size = self._path(), 0
            self._group.admit(len(data), is_new=size == 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                file.write(data)
        except OSError as error:
            if time.monotonic() - self._failed_at > 60:
                self._failed_at = time.monotonic()
                logger.warning("%s: function output cannot be kept: %s", self._group.path, error)

    def _path(self) -> Path:
        return self._group.path / f"{self._name}{f'.{self._number}' if self._number else ''}.log"


def _file_name(text: str) -> str:
    """Safe as one part of a path, and the same for names that AWS allows."""
    return re.sub(r"[^A-Za-z0-9_.$\[\]-]", "_", text).lstrip(".")[:200] or "_"


def _iso(at: float) -> str:
    stamp = dt.datetime.fromtimestamp(at, dt.UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LogTail:
    """The latest lines of all functions, in bounded memory. Written by the logs' thread, read in any."""

    def __init__(self, *, lines_max: int = TAIL_LINES_MAX, bytes_max: int = TAIL_BYTES_MAX) -> None:
        self._ring: Ring[LogEntry] = Ring(lines_max, bytes_max, _entry_bytes)

    @property
    def last(self) -> int:
        """The newest line's sequence number; 0 before the first."""
        return self._ring.last

    def add(self, function_name: str, stream_name: str, lines: list[Line]) -> None:
        # Of a flood the earlier lines would go at once.
        for line in lines[-TAIL_LINES_MAX:]:
            text = line.text[:TAIL_LINE_CHARACTERS_MAX]
            self._ring.add(LogEntry(line.at, function_name, stream_name, line.origin, text))

    def latest(
        self, limit: int, *, functions: Collection[str] | None = None, search: str | None = None
    ) -> list[tuple[int, LogEntry]]:
        """The newest lines with their sequence numbers, newest first: those of ``functions`` that hold ``search``.

        Case is ignored. Looks through everything that is kept, which takes some milliseconds.
        """
        wanted = search.casefold() if search else None
        found: list[tuple[int, LogEntry]] = []
        for sequence, entry in reversed(self._ring.items()):
            if len(found) >= limit:
                break
            if functions is not None and entry.function not in functions:
                continue
            if wanted is None or wanted in entry.text.casefold():
                found.append((sequence, entry))
        return found

    def since(self, sequence: int, limit: int) -> list[tuple[int, LogEntry]]:
        """The newest ``limit`` of the lines after ``sequence``, oldest first."""
        return self._ring.since(sequence, limit)


class TailedTarget:
    """To the tail, and to another target."""

    def __init__(self, tail: LogTail, function_name: str, stream_name: str, target: Target) -> None:
        self._tail = tail
        self._function_name = function_name
        self._stream_name = stream_name
        self._target = target

    def write(self, lines: list[Line]) -> None:
        self._tail.add(self._function_name, self._stream_name, lines)
        self._target.write(lines)


def _entry_bytes(entry: LogEntry) -> int:
    """About what a line takes: a text beyond Latin takes up to four bytes for a character."""
    return ITEM_BYTES + len(entry.text) * (1 if entry.text.isascii() else 4)


class LogStream:
    """One environment's output: a `contract.LogSink`. Made by `FunctionLogs.stream`; never waits, never raises."""

    def __init__(self, owner: FunctionLogs, group_name: str, name: str, target: Target) -> None:
        #: ``/aws/lambda/NAME``, and ``2023/11/14/[$LATEST]...``: what the context object calls them.
        self.group_name = group_name
        self.name = name
        self._owner = owner
        self._target = target
        self._room = INVOCATION_BYTES_MAX
        self._refused = 0
        # From here on the thread's own.
        self._held = bytearray()
        self._lines_left = INVOCATION_LINES_MAX
        self._left_out = 0
        self._noticed_at = -1e9

    def write(self, data: bytes) -> None:
        """Bytes of the function's output, in any portions."""
        taken = data[: self._room]
        if taken and self._owner.put(self, taken):
            self._room -= len(taken)
            self._refused += len(data) - len(taken)
        else:
            self._refused += len(data)

    def platform(self, line: str) -> None:
        """A line of the platform: it ends the function's line that is open, and begins new bounds."""
        refused, self._refused, self._room = self._refused, 0, INVOCATION_BYTES_MAX
        if not self._owner.put(self, line[:LINE_BYTES_MAX], refused):
            self._refused = refused

    def lines(self, at: float, data: bytes | str, refused: int) -> list[Line]:
        """In the thread: the lines that ``data`` ends; ``refused`` bytes were left out before it."""
        if isinstance(data, bytes):
            return self._split(at, data)
        lines = []
        if self._held and self._lines_left > 0:
            lines.append(self._line(at))
        self._left_out += refused + len(self._held)
        self._held.clear()
        if self._left_out > NOTICE_BYTES or (self._left_out and at >= self._noticed_at + 1):
            text = f"{self._left_out:,} bytes of the function's output before this are left out"
            lines.append(Line(at, "notice", text))
            self._left_out, self._noticed_at = 0, at
        lines.append(Line(at, "platform", data))
        self._lines_left = INVOCATION_LINES_MAX
        return lines

    def hand_on(self, lines: list[Line]) -> None:
        """In the thread: write lines. A fault costs them, and is logged; the thread goes on."""
        try:
            self._target.write(lines)
        except Exception:
            logger.exception("%s: output is lost", self.group_name)

    def _split(self, at: float, data: bytes) -> list[Line]:
        lines: list[Line] = []
        pieces = data.split(b"\n")
        for index, piece in enumerate(pieces):
            if self._lines_left <= 0:
                self._left_out += len(piece) + (index < len(pieces) - 1)
                continue
            self._held += piece
            while len(self._held) > LINE_BYTES_MAX:
                lines.append(self._line(at))
            if index < len(pieces) - 1:
                lines.append(self._line(at))
        return lines

    def _line(self, at: float) -> Line:
        """The held bytes as a line, or as much of them as one may have; never cut inside of a character."""
        end = len(self._held)
        if end > LINE_BYTES_MAX:
            end = LINE_BYTES_MAX
            while end > LINE_BYTES_MAX - 4 and self._held[end] & 0xC0 == 0x80:
                end -= 1
        text = self._held[:end].decode("utf-8", "replace").removesuffix("\r")
        del self._held[:end]
        self._lines_left -= 1
        return Line(at, "function", text)


class FunctionLogs:
    """Takes the output of all environments of a process and writes it in a thread, which the first stream starts.

    Lines go to the engine's log or, with a ``directory``, to files below it, ``bytes_max`` for each function.
    """

    def __init__(
        self, directory: Path | None = None, *, bytes_max: int = 67_108_864, now: Callable[[], float] = time.time
    ) -> None:
        self.tail = LogTail()
        self._directory = directory
        self._bytes_max = bytes_max
        self._now = now
        self._groups: dict[str, FileGroup] = {}
        self._condition = threading.Condition()
        self._waiting: list[tuple[LogStream, float, bytes | str, int]] = []
        self._waiting_bytes = 0
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def stream(self, function_name: str, version: str = "$LATEST") -> LogStream:
        """A new log stream, named as AWS names that of a new environment."""
        today = dt.datetime.fromtimestamp(self._now(), dt.UTC)
        name = f"{today:%Y/%m/%d}/[{version}]{uuid.uuid4().hex}"
        target: Target = LoggerTarget(function_name)
        if self._directory is not None:
            if function_name not in self._groups:
                self._groups[function_name] = FileGroup(self._directory, function_name, self._bytes_max)
            target = FileTarget(self._groups[function_name], name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="headrace-function-logs", daemon=True)
            self._thread.start()
        tailed = TailedTarget(self.tail, function_name, name, target)
        return LogStream(self, f"/aws/lambda/{function_name}", name, tailed)

    def put(self, stream: LogStream, data: bytes | str, refused: int = 0) -> bool:
        """Put bytes or a platform's line aside for the thread; False when too much is waiting already."""
        # The platform's lines come through where the function's do not, but not without an end either.
        most = WAITING_BYTES_MAX if isinstance(data, bytes) else WAITING_BYTES_MAX * 5 // 4
        size = len(data) + ITEM_BYTES
        with self._condition:
            if self._is_closing or self._waiting_bytes + size > most:
                return False
            self._waiting.append((stream, self._now(), data, refused))
            self._waiting_bytes += size
            if len(self._waiting) == 1:
                self._condition.notify_all()
        return True

    def close(self, seconds_max: float = 5.0) -> None:
        """Write what is waiting and end the thread. Blocks; what comes later is left out. Idempotent."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(seconds_max)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closing)
                if not self._is_closing:
                    self._condition.wait_for(lambda: self._is_closing, GATHER_SECONDS)
                taken, self._waiting = self._waiting, []
                if not taken:
                    return
            self._write(taken)
            with self._condition:
                self._waiting_bytes -= sum(len(data) + ITEM_BYTES for _, _, data, _ in taken)

    def _write(self, items: list[tuple[LogStream, float, bytes | str, int]]) -> None:
        gathered: dict[LogStream, list[Line]] = {}
        for stream, at, data, refused in items:
            lines = gathered.setdefault(stream, [])
            # Lines of one character take far more memory than their bytes, so not all of them are made at once.
            portions = range(0, len(data), PORTION_BYTES) if isinstance(data, bytes) else ()
            for portion in [data[start : start + PORTION_BYTES] for start in portions] or [data]:
                lines += stream.lines(at, portion, refused)
                if len(lines) > PORTION_LINES:
                    stream.hand_on(lines)
                    lines.clear()
        for stream, lines in gathered.items():
            stream.hand_on(lines)
