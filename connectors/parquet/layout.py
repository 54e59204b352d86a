"""Where everything of a Parquet sink lies, and how its files are called.

    <root>/[column=value/]<topic>[~incarnation]-<partition>-<start>-<end>-<seq>[-n].parquet
    <root>/[column=value/]<topic>[~incarnation]-<partition>-<start>-<end>-<seq>~c<id>.parquet   (joined from others)
    <root>/headrace.duckdb                                     (a view of what is live, for readers)
    <root>/.headrace/sink.json, sink-<incarnation>.json, schema-<name>.json, view.json, temporary/
    <root>/.headrace/compaction/<seq>.ndjson, staging/, lock
    <root>/.headrace/view/[column=.../]none.parquez           (no rows: the view finds one file at least)
    <root>/.headrace/<topic id>/<partition>/log/<seq>.json, <seq>.checkpoint.json
    <root>/.headrace/<topic id>/<partition>/staging/<seq of the owner's takeover>-<owner>-<what>
                                                    (the shard's state stays here: <n>.state)
    <root>/.headrace/<topic id>/<partition>/failures/<start>-<end>.jsonl, delivered.json

Only committed files end in ``.parquet``: recursive globs of some readers look into hidden directories too.
Not here: any file operation.
"""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass
from pathlib import Path

HIDDEN = ".headrace"

_PLAIN = frozenset(string.ascii_letters + string.digits + "_-.")
_STEM_TOPIC_CHARS_MAX = 150

#: What every public file ends in, and nothing else.
PUBLIC = ".parquet"

_PUBLIC_NAME = re.compile(
    r"(?P<shard>.+-\d+)-(?P<start>\d{20,})-(?P<end>\d{20,})-(?P<seq>\d+)"
    r"(?:-(?P<part>\d+)|~c(?P<compaction>\d+))?\.parquet"
)


def encode(text: str) -> str:
    """Percent-encode everything but ASCII letters, digits, ``_``, ``-`` and ``.``."""
    return "".join(
        char if char in _PLAIN else "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in text
    )


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """The directories of one shard of one incarnation of the topic."""

    root: Path
    topic: str
    topic_id: str
    partition: int
    incarnation: int = 0

    @property
    def home(self) -> Path:
        return shards_home(self.root, self.topic_id) / str(self.partition)

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def staging(self) -> Path:
        return self.home / "staging"

    @property
    def failures(self) -> Path:
        return self.home / "failures"

    def public_stem(self, start: int, end: int, seq: int) -> str:
        """The public name without counter and suffix. Padded, so that names sort by offset.

        ``seq`` keeps commits of an empty range apart, the incarnation topics that were made anew. Some
        readers skip names that start with a dot or an underscore, which Kafka allows in topics.
        """
        topic = encode(self.topic)
        if topic[0] in "._":
            topic = f"%{ord(topic[0]):02X}{topic[1:]}"
        if len(topic) > _STEM_TOPIC_CHARS_MAX:
            topic = f"{topic[:120]}~{hashlib.sha256(topic.encode()).hexdigest()[:16]}"
        if self.incarnation:
            topic += f"~{self.incarnation}"
        return f"{topic}-{self.partition}-{start:020d}-{end:020d}-{seq}"

    def failures_name(self, start: int, end: int) -> str:
        return f"{start:020d}-{end:020d}.jsonl"


def shards_home(root: Path, topic_id: str) -> Path:
    """The directory that holds the shards of one incarnation of the topic."""
    return root / HIDDEN / f"topic-{encode(topic_id)}"


@dataclass(frozen=True, slots=True, order=True)
class PublicName:
    """A public file's name, taken apart. They sort in the order of their rows within a shard.

    ``shard`` is the topic's part of the name with incarnation and partition; ``compaction`` the id of the
    compaction that made the file, 0 for a commit's.
    """

    shard: str
    start: int
    end: int
    seq: int
    part: int = 0
    compaction: int = 0

    @property
    def partition(self) -> int:
        return int(self.shard.rpartition("-")[2])

    def covers(self, other: PublicName) -> bool:
        """Whether the rows of ``other`` lie in the range of this one."""
        return self.shard == other.shard and self.start <= other.start and other.end <= self.end

    def joined(self, last: PublicName, compaction: int) -> str:
        """The name of the file that joins this one, the first, and others up to ``last``."""
        return f"{self.shard}-{self.start:020d}-{last.end:020d}-{last.seq}~c{compaction}{PUBLIC}"


def parse_public(name: str) -> PublicName | None:
    """The parts of a public file's name; None for a name that no sink gives."""
    found = _PUBLIC_NAME.fullmatch(name)
    if found is None:
        return None
    numbers = (int(found[part] or 0) for part in ("start", "end", "seq", "part", "compaction"))
    return PublicName(found["shard"], *numbers)


def compaction_home(root: Path) -> Path:
    """The directory of a sink's compaction records."""
    return root / HIDDEN / "compaction"
