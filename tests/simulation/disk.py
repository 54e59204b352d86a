"""A disk in memory that forgets, when the machine dies, what was not flushed; the production code runs over it.

File contents are certain up to the last `sync`; of what follows any prefix may survive. A change of a
directory is certain after `sync_directory`; before, any subset of the changes may survive, so renames are
reordered. A rename is atomic, but its old name may come back once only its new directory was flushed.
Not here: who runs when (`tests.simulation.world`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from connectors.parquet.filesystem import WritableFile


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: int = 0


@dataclass(eq=False)
class Directory:
    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


Node = File | Directory


@dataclass(eq=False)
class Change:
    """A name that came to a directory (``node``), or went (None in ``node``)."""

    directory: Directory
    name: str
    node: Node | None
    done: bool = False

    def apply(self) -> None:
        if not self.done:
            self.done = True
            if self.node is not None:
                self.directory.durable[self.name] = self.node
            else:
                self.directory.durable.pop(self.name, None)


class Disk:
    """The medium and the page cache over it. ``linked`` hears of each new name of a file."""

    def __init__(self, root: Path) -> None:
        self.linked: Callable[[Path, File], None] = lambda path, file: None
        self._top = Directory()
        self._journal: list[tuple[Change, ...]] = []
        at = self._top
        for part in root.parts[1:]:
            new = Directory()
            at.entries[part] = at.durable[part] = new
            at = new

    def crash(self, rng: random.Random) -> None:
        """Lose power: what is not certain survives or not, as ``rng`` has it."""
        odds = rng.choice([0.0, 0.5, 0.5, 0.9, 1.0])
        for changes in self._journal:
            for change in changes:  # the new name of a rename, then the old one: never the old one's end alone
                if not change.done and rng.random() >= odds:
                    break
                change.apply()
        self._journal.clear()
        self._revert(self._top, rng)

    def _revert(self, directory: Directory, rng: random.Random) -> None:
        directory.entries = dict(directory.durable)
        for node in directory.entries.values():
            if isinstance(node, Directory):
                self._revert(node, rng)
            elif node.synced < len(node.data):
                del node.data[rng.choice([node.synced, rng.randint(node.synced, len(node.data))]) :]
                node.synced = len(node.data)

    def files(self, path: Path) -> dict[Path, bytes]:
        """Every file below ``path``."""
        found: dict[Path, bytes] = {}
        for name, node in self.directory(path).entries.items():
            if isinstance(node, Directory):
                found.update(self.files(path / name))
            else:
                found[path / name] = bytes(node.data)
        return found

    def directory(self, path: Path) -> Directory:
        node = self.node(path)
        if not isinstance(node, Directory):
            raise NotADirectoryError(path)
        return node

    def node(self, path: Path) -> Node:
        at: Node = self._top
        for part in path.parts[1:]:
            if not isinstance(at, Directory):
                raise NotADirectoryError(path)
            if part not in at.entries:
                raise FileNotFoundError(2, "no such file", str(path))
            at = at.entries[part]
        return at

    def file(self, path: Path) -> File:
        node = self.node(path)
        if isinstance(node, Directory):
            raise IsADirectoryError(path)
        return node

    def add(self, path: Path, node: Node, *, replace: bool = False, source: Path | None = None) -> None:
        """Give ``node`` the name ``path``; take the name ``source`` away in the same step."""
        directory = self.directory(path.parent)
        if path.name in directory.entries and not replace:
            raise FileExistsError(17, "exists", str(path))
        changes = [Change(directory, path.name, node)]
        directory.entries[path.name] = node
        if source is not None:
            changes.append(self._remove(source))
        self._journal.append(tuple(changes))
        if isinstance(node, File):
            self.linked(path, node)

    def remove(self, path: Path) -> None:
        self.file(path)
        self._journal.append((self._remove(path),))

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all in it, in one step."""
        self.directory(path)
        self._journal.append((self._remove(path),))

    def _remove(self, path: Path) -> Change:
        directory = self.directory(path.parent)
        del directory.entries[path.name]
        return Change(directory, path.name, None)

    def sync_directory(self, path: Path) -> None:
        directory = self.directory(path)
        for changes in self._journal:
            last = max((i for i, change in enumerate(changes) if change.directory is directory), default=-1)
            for change in changes[: last + 1]:
                change.apply()
        self._journal = [changes for changes in self._journal if not all(change.done for change in changes)]


class _OpenFile:
    def __init__(self, file: File, gate: Callable[[str], None]) -> None:
        self._file = file
        self._gate = gate

    def write(self, data: bytes | memoryview) -> None:
        self._gate("write")
        self._file.data += bytes(data)

    def sync(self) -> None:
        self._gate("sync")
        self._file.synced = len(self._file.data)

    def close(self) -> None:
        pass


class DiskFileSystem:
    """`connectors.parquet.FileSystem` over a `Disk`. ``gate`` is called before each operation and may raise."""

    def __init__(self, disk: Disk, gate: Callable[[str], None] = lambda operation: None) -> None:
        self.disk = disk
        self.gate = gate

    def create(self, path: Path) -> WritableFile:
        self.gate("create")
        file = File()
        self.disk.add(path, file)
        return _OpenFile(file, self.gate)

    def sync_directory(self, path: Path) -> None:
        self.gate("sync_directory")
        self.disk.sync_directory(path)

    def link(self, source: Path, target: Path) -> None:
        self.gate("link")
        self.disk.add(target, self.disk.file(source))

    def rename(self, source: Path, target: Path) -> None:
        self.gate("rename")
        file = self.disk.file(source)
        if source != target:
            self.disk.add(target, file, replace=True, source=source)

    def unlink(self, path: Path) -> None:
        self.gate("unlink")
        self.disk.remove(path)

    def names(self, path: Path) -> list[str]:
        self.gate("names")
        return list(self.disk.directory(path).entries)

    def read(self, path: Path) -> bytes:
        self.gate("read")
        return bytes(self.disk.file(path).data)

    def size(self, path: Path) -> int | None:
        self.gate("size")
        try:
            node = self.disk.node(path)
        except FileNotFoundError:
            return None
        return len(node.data) if isinstance(node, File) else 0

    def make_directory(self, path: Path) -> None:
        self.gate("make_directory")
        self.disk.add(path, Directory())
