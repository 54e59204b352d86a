"""What the disk says no to, in one line each. Nothing here writes; it only explains and looks ahead."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import ExternalError

FREE_MEGABYTES_MIN = 256
"""For each node two log segments of 128 MB: with less, Kafka starts, and stops in the middle of somebody's work."""

ELSEWHERE = "choose another place: --data DIR for its data, XDG_CACHE_HOME for its jars"

DiskFree = Callable[[Path], int]
"""Free bytes on the disk that holds a directory."""


def disk_free(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def full(
    directory: Path, free_bytes: int | None = None, needed_megabytes: int = FREE_MEGABYTES_MIN
) -> ExternalError:
    """The one line for a disk without room."""
    room = ""
    if free_bytes is not None:
        room = f": the broker needs {needed_megabytes} MB, {free_bytes // 1024**2} MB are left"
    return ExternalError(f"the disk that holds {directory} is full{room}", hint=f"free some space, or {ELSEWHERE}")


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn an `OSError` of the disk into an `engine.errors.ExternalError`; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(directory) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            where = error.filename or directory
            raise ExternalError(
                f"{where} cannot be written: {error.strerror}",
                hint=ELSEWHERE,
            ) from error
        raise
