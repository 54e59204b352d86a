"""Which public files a compaction joins: small ones of one shard and one directory that follow each other.

Not here: reading, writing or moving any of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.parquet.filesystem import FileSystem
from connectors.parquet.layout import PublicName, parse_public

#: Files that are joined into one, at most.
GROUP_FILES_MAX = 1_000

#: A file beyond this part of the target is left as it is.
SMALL_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A public file: its directory below the root (``""`` for the root), its name, its size."""

    directory: str
    name: PublicName
    text: str
    bytes: int

    @property
    def path(self) -> str:
        return f"{self.directory}/{self.text}" if self.directory else self.text


@dataclass(frozen=True, slots=True)
class Group:
    """Files to be joined into one, in the order of their rows."""

    files: tuple[PublicFile, ...]

    @property
    def directory(self) -> str:
        return self.files[0].directory

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def output(self, compaction: int) -> str:
        """The path below the root of the file that joins them."""
        name = self.files[0].name.joined(self.files[-1].name, compaction)
        return f"{self.directory}/{name}" if self.directory else name


@dataclass(frozen=True, slots=True)
class Rules:
    """When files are joined. ``eager`` joins what there is, however often its rows have been joined before."""

    file_bytes_target: int
    files_min: int
    eager: bool = False


def scan(filesystem: FileSystem, root: Path) -> list[PublicFile]:
    """All public files of a sink below ``root``, in the order of directory and name."""
    return sorted(_scan(filesystem, root, ""), key=lambda file: (file.directory, file.name))


def _scan(filesystem: FileSystem, root: Path, directory: str) -> Iterator[PublicFile]:
    try:
        names = filesystem.names(root / directory)
    except (FileNotFoundError, NotADirectoryError):  # removed since, or no directory at all
        return
    for text in names:
        path = f"{directory}/{text}" if directory else text
        if text.startswith("."):
            continue
        if "=" in text:  # which is encoded in values and in the names of files
            yield from _scan(filesystem, root, path)
        elif (name := parse_public(text)) is not None and (size := filesystem.size(root / path)) is not None:
            yield PublicFile(directory, name, text, size)


def groups(files: Sequence[PublicFile], rules: Rules, busy: Collection[str]) -> list[Group]:
    """What should be joined of ``files``, as `scan` gives them; those in ``busy`` are part of something already."""
    found = []
    for run in _runs(files, rules, busy):
        found += [Group(tuple(group)) for group in _cut(run, rules)]
    return found


def _runs(files: Sequence[PublicFile], rules: Rules, busy: Collection[str]) -> Iterator[list[PublicFile]]:
    """Small files with no other one of their shard and directory between them."""
    run: list[PublicFile] = []
    for file in files:
        if run and (run[-1].directory, run[-1].name.shard) != (file.directory, file.name.shard):
            yield run
            run = []
        if file.path in busy or file.bytes > rules.file_bytes_target * SMALL_SHARE:
            yield run
            run = []
        else:
            run.append(file)
    yield run


def _cut(run: Sequence[PublicFile], rules: Rules) -> Iterator[Sequence[PublicFile]]:
    """Parts near the target; the last one only where each of its rows is joined with as much as it is part of."""
    count_min = 2 if rules.eager else rules.files_min
    start = total = 0
    for end, file in enumerate(run):
        if total + file.bytes > rules.file_bytes_target or end - start == GROUP_FILES_MAX:
            if end - start >= count_min:
                yield run[start:end]
            start, total = end, 0
        total += file.bytes
    rest = run[start:]
    if not rules.eager:
        # Otherwise a file that grows to the target would be written anew for every few small ones.
        while rest and rest[0].bytes > sum(file.bytes for file in rest[1:]):
            rest = rest[1:]
    if len(rest) >= count_min:
        yield rest
