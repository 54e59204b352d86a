"""Files that become durable: staged ones that wait for a commit, small ones written whole, directories.

Not here: when a staged file is published, which only the manifest log decides.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from connectors.parquet.filesystem import FileSystem

#: Directories that a process remembers to have made durable, before it forgets all and checks again.
DIRECTORIES_KNOWN_MAX = 4096


class StagedFile:
    """A file under a staging name. Looks enough like a Python file for a Parquet writer."""

    def __init__(self, filesystem: FileSystem, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.closed = False
        self._filesystem = filesystem
        self._file = filesystem.create(path)

    def write(self, data: bytes | memoryview) -> int:
        length = memoryview(data).nbytes
        if not self.closed:  # a Parquet writer that is thrown away still tries to write its footer
            self._file.write(data)
            self.bytes += length
        return length

    def flush(self) -> None:
        pass

    def tell(self) -> int:
        return self.bytes

    def finish(self) -> None:
        """Flush to the medium and close."""
        self._file.sync()
        self._close()

    def abandon(self) -> None:
        """Close and remove; never raises."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._filesystem.unlink(self.path)

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._file.close()


def write_whole(filesystem: FileSystem, path: Path, data: bytes) -> None:
    """Create a file that holds ``data``, flushed; its name is not yet durable."""
    file = filesystem.create(path)
    try:
        file.write(data)
        file.sync()
    finally:
        file.close()


def replace_durably(filesystem: FileSystem, temporary: Path, target: Path, data: bytes) -> None:
    """Make ``target`` hold ``data``, atomically and durably; the last writer wins."""
    write_whole(filesystem, temporary, data)
    filesystem.rename(temporary, target)
    filesystem.sync_directory(target.parent)


def create_once(filesystem: FileSystem, temporary: Path, target: Path, data: bytes) -> bytes:
    """Make ``target`` hold ``data`` unless it is there already; what it durably holds. The first writer wins."""
    write_whole(filesystem, temporary, data)
    try:
        filesystem.link(temporary, target)
    except FileExistsError:
        data = filesystem.read(target)
    finally:
        filesystem.unlink(temporary)
    filesystem.sync_directory(target.parent)  # also for the loser: the winner may have died before doing it
    return data


class Directories:
    """Directories below a root, each created durably: its name, and that of every parent, is on the medium.

    What was created once is not looked at again, and its user may have removed it since: who then meets
    FileNotFoundError calls `renew`.
    """

    def __init__(self, filesystem: FileSystem, root: Path) -> None:
        self._filesystem = filesystem
        self._root = root
        self._known: set[Path] = set()

    def ensure(self, path: Path) -> None:
        """Create a directory and its parents where they are missing.

        One that exists is flushed too: the process that created it may have died before doing so.
        """
        try:
            self._ensure(path)
        except FileNotFoundError:  # a parent was removed since
            self.renew(path)

    def renew(self, path: Path) -> None:
        """`ensure` for a directory that is gone, perhaps with its parents. FileNotFoundError if one goes again."""
        self._known.difference_update((path, *path.parents))
        self._ensure(path)

    def _ensure(self, path: Path) -> None:
        if path in self._known:
            return
        if path == self._root:
            self._ensure_root(path)
        else:
            self._ensure(path.parent)
            with contextlib.suppress(FileExistsError):
                self._filesystem.make_directory(path)
            self._filesystem.sync_directory(path.parent)
        if len(self._known) >= DIRECTORIES_KNOWN_MAX:
            self._known.clear()
        self._known.add(path)

    def _ensure_root(self, path: Path) -> None:
        try:
            self._filesystem.make_directory(path)
        except FileExistsError:
            with contextlib.suppress(PermissionError):  # a root given by somebody else, below what we may not open
                self._filesystem.sync_directory(path.parent)
            return
        except FileNotFoundError:
            self._ensure_root(path.parent)
            with contextlib.suppress(FileExistsError):
                self._filesystem.make_directory(path)
        self._filesystem.sync_directory(path.parent)
