"""Failed records to a file of JSON Lines: an `engine.protocols.Destination`.

Several processes (the members of a group) may share the file: each delivery locks it, repairs what a crash
left at its end, appends, and waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from engine.batch import Stream
from engine.delivery import Document
from engine.delivery import document as plain_document
from engine.errors import DestinationUnavailable, UserError
from engine.protocols import FailedRecord

LOCK_SECONDS_MAX = 10.0
LOCK_POLL_SECONDS = 0.02

_BLOCK_BYTES = 65_536
_READ_BYTES = 1024 * 1024


class FileDestination:
    """Appends one document per record and line to ``path``.

    A last line without its end, torn by a crash, was never confirmed and is delivered again: it is cut off
    before the next delivery, unless it is whole JSON (a file that somebody else wrote), which gets its end.
    ``stream_of`` is asked for the source's stream once that has been opened. ``document`` makes the documents;
    left out, they are those of `engine.delivery`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pipeline: str,
        stream_of: Callable[[], Stream],
        document: Document | None = None,
    ) -> None:
        self._path = Path(path)
        self._document = document or (lambda record, stream: plain_document(pipeline, stream, record))
        self._stream_of = stream_of
        self._one_at_a_time = asyncio.Lock()
        self._is_named_durably = False

    async def open(self) -> None:
        """Make the directory and the file, so that one that cannot be written shows at the start."""
        async with self._one_at_a_time:
            await asyncio.to_thread(self._append, b"")

    async def deliver(self, records: Sequence[FailedRecord]) -> None:
        stream = self._stream_of()
        async with self._one_at_a_time:
            await asyncio.to_thread(self._deliver, stream, records)

    async def close(self) -> None:
        """Nothing is held between deliveries."""

    def _deliver(self, stream: Stream, records: Sequence[FailedRecord]) -> None:
        lines = [orjson.dumps(self._document(each, stream), option=orjson.OPT_APPEND_NEWLINE) for each in records]
        self._append(b"".join(lines))

    def _append(self, data: bytes) -> None:
        try:
            with self._locked() as file:
                end = _repaired_end(file)
                try:
                    _write(file, data)
                    os.fsync(file)
                except OSError:
                    # Half a delivery helps nobody; what cannot be cut off now is repaired next time.
                    with contextlib.suppress(OSError):
                        os.ftruncate(file, end)
                    raise
        except OSError as error:
            raise self._unavailable(error) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + LOCK_SECONDS_MAX
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(LOCK_POLL_SECONDS)
            if not self._is_named_durably:
                # Whoever made the file or a directory above it may have died before it was durable.
                for directory in self._path.absolute().parents:
                    with contextlib.suppress(PermissionError):
                        _sync_directory(directory)
                self._is_named_durably = True
            yield file
        finally:
            os.close(file)  # and with it the lock

    def _unavailable(self, error: OSError) -> DestinationUnavailable:
        hint = "the records stay with the sink and are delivered once the file can be written"
        if isinstance(error, BlockingIOError):
            return DestinationUnavailable(
                f"on-failure file {self._path}: locked by another process for {LOCK_SECONDS_MAX:g} s", hint=hint
            )
        if isinstance(error, FileExistsError | NotADirectoryError):
            return DestinationUnavailable(
                f"on-failure file {self._path}: {error.filename} is not a directory", hint=hint
            )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DestinationUnavailable(f"on-failure file {self._path}: the disk is full", hint=hint)
        return DestinationUnavailable(f"on-failure file {self._path}: {error.strerror or error}", hint=hint)


def read(path: Path) -> Iterator[tuple[list[bytes], int, int]]:
    """The whole lines of an on-failure file, in their order: some of them, the bytes done, and all bytes; blocks.

    Ends where the file ends now. A last line without its end is not delivered (`FileDestination`) and not read,
    unless it is whole JSON. Raises UserError for what cannot be read; a file that is not there has no lines.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            done = 0
            while done < total and (lines := file.readlines(_READ_BYTES)):
                done += sum(map(len, lines))
                if not lines[-1].endswith(b"\n") and not _is_json(lines[-1]):
                    lines.pop()
                yield lines, min(done, total), total
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"on-failure file {path} cannot be read: {error.strerror or error}") from None


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _repaired_end(file: int) -> int:
    """The length of the file, which ends in a newline now (or is empty)."""
    size = os.fstat(file).st_size
    if size == 0 or os.pread(file, 1, size - 1) == b"\n":
        return size
    tail = b""
    start = size
    while start > 0 and b"\n" not in tail:
        step = min(_BLOCK_BYTES, start)
        start -= step
        tail = os.pread(file, step, start) + tail
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not _is_json(torn):
        os.ftruncate(file, size - len(torn))
        return size - len(torn)
    _write(file, b"\n")
    return size + 1


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
