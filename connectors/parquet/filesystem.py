"""The seam between the Parquet sink and the operating system: the few file operations that the sink uses.

Tests put a disk here that fills up, or one that forgets what was not flushed when the machine dies.
Not here: what the files hold, or in which order the operations happen.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from engine.errors import SinkUnavailable


class WritableFile(Protocol):
    """A file that is being written."""

    def write(self, data: bytes | memoryview) -> None:
        """Append all of ``data``."""

    def sync(self) -> None:
        """Return when everything written is on the medium."""

    def close(self) -> None: ...


class FileSystem(Protocol):
    """What the sink asks of a file system. Every call blocks and raises OSError as the ``os`` module does.

    `link` and `rename` are atomic: another process sees the name or does not. After a loss of power a
    name is certain only once `sync_directory` has returned for its directory.
    """

    def create(self, path: Path) -> WritableFile:
        """Create a new file. FileExistsError if the name is taken."""

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are on the medium."""

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, never replacing one: FileExistsError."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, replacing what had it."""

    def unlink(self, path: Path) -> None: ...

    def names(self, path: Path) -> list[str]:
        """The names in a directory, in no order."""

    def read(self, path: Path) -> bytes: ...

    def size(self, path: Path) -> int | None:
        """Bytes of a file, None if nothing has the name."""

    def make_directory(self, path: Path) -> None:
        """Create one directory. FileExistsError if the name is taken."""


class _OsFile:
    def __init__(self, path: Path) -> None:
        self._file: Any = path.open("xb", buffering=0)  # unbuffered: an abandoned file has nothing left to flush

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while len(rest):
            rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class OsFileSystem:
    """`FileSystem` over the operating system."""

    def create(self, path: Path) -> WritableFile:
        return _OsFile(path)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def names(self, path: Path) -> list[str]:
        return os.listdir(path)  # noqa: PTH208 - names, not paths

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def size(self, path: Path) -> int | None:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def make_directory(self, path: Path) -> None:
        path.mkdir()


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Turn an OSError into a `SinkUnavailable` that names the path and what to do."""
    try:
        yield
    except OSError as error:
        raise SinkUnavailable(
            f"Parquet sink {path}: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename is not None else ""),
            hint=_hint(error),
        ) from error


def _hint(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there and start again: what is committed stays, the rest is read again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Give this user permission to write there (hard links included), or set another path."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "The path must be a directory, or free to become one."
    if error.errno == errno.EXDEV:
        return "The whole directory must lie on one file system."
    return "Once the path works again, start again: what is committed stays, the rest is read again."
