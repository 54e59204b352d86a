"""The record that a commit is: which offsets, which files, which counts. And its JSON.

Not here: where manifests lie and in what order they are written (`connectors.parquet.log`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from engine.errors import InternalError
from engine.protocols import Counts

FORMAT = 1

Kind = Literal["takeover", "start", "commit"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a commit: its name in the shard's staging directory, and its public path below the root."""

    staged: str
    public: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One entry of a shard's log.

    ``takeover`` has no files and an empty range; ``start`` is the first position of a shard; ``commit``
    accounts for the offsets ``[start, end)``. ``start`` and ``end`` are None only in takeovers before the
    first position. ``created`` is seconds since the epoch.
    """

    seq: int
    owner: str
    kind: Kind
    topic: str
    topic_id: str
    partition: int
    start: int | None
    end: int | None
    created: float
    files: tuple[FileEntry, ...] = ()
    failures: FileEntry | None = None
    counts: Counts = field(default_factory=Counts)
    rows_out: int = 0
    schema: str | None = None

    def check(self, seq: int, position: int | None) -> None:
        """Raise InternalError unless this entry may follow a log that ends at ``seq - 1`` and ``position``.

        Called on write and again on read-back.
        """
        faults = []
        if self.seq != seq:
            faults.append(f"it says seq {self.seq}")
        if self.kind == "takeover":
            if self.start != position or self.end != position:
                faults.append(f"a takeover at position {position} has the range [{self.start}, {self.end})")
            if self.files or self.failures or self.counts.total or self.rows_out:
                faults.append("a takeover has content")
        elif self.start is None or self.end is None or self.start > self.end:
            faults.append(f"the range [{self.start}, {self.end}) is none")
        else:
            if position is not None and self.start != position:
                faults.append(f"it starts at {self.start}, the one before ends at {position}")
            if self.counts.total != self.end - self.start:
                faults.append(f"{self.counts} does not account for [{self.start}, {self.end})")
        if sum(file.rows for file in self.files) != self.rows_out:
            faults.append(f"its files do not have {self.rows_out} rows")
        if (self.failures.rows if self.failures else 0) != self.counts.failed:
            faults.append(f"its failures file does not have {self.counts.failed} records")
        if faults:
            raise InternalError(
                f"manifest {seq} of {self.topic}-{self.partition} is broken: {'; '.join(faults)}",
                hint="Keep the directory as it is and report this: committing further could lose or repeat rows.",
            )

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """Everything that has to be renamed: data files, then the failures file."""
        return self.files if self.failures is None else (*self.files, self.failures)

    def dump(self) -> bytes:
        return orjson.dumps({"format": FORMAT, **dataclasses.asdict(self)}, option=orjson.OPT_INDENT_2)


def load_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in ``data``; InternalError naming ``path`` if it is none."""
    fields = load_json(data, path)
    try:
        fields.pop("format")
        fields["files"] = tuple(FileEntry(**file) for file in fields["files"])
        fields["failures"] = FileEntry(**fields["failures"]) if fields["failures"] else None
        fields["counts"] = Counts(**fields["counts"])
        return Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise InternalError(f"{path} is no manifest: {error}") from error


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log amounts to up to and with ``seq``: all that is below it is published, durably."""

    seq: int = 0
    position: int | None = None

    def dump(self) -> bytes:
        return orjson.dumps({"format": FORMAT, "seq": self.seq, "position": self.position})


def load_checkpoint(data: bytes, path: Path) -> Checkpoint:
    """The checkpoint in ``data``; InternalError naming ``path`` if it is none."""
    fields = load_json(data, path)
    try:
        return Checkpoint(fields["seq"], fields["position"])
    except KeyError as error:
        raise InternalError(f"{path} is no checkpoint: it lacks {error}") from error


def load_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in ``data``, of the format that is written here; InternalError naming ``path`` if none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InternalError(f"{path} is torn or was edited: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InternalError(
            f"{path} is of a format that this version does not know; it knows format {FORMAT}",
            hint="Run the version that wrote it, or a later one.",
        )
    return value
