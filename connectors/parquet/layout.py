"""Where everything of a Parquet sink lies, and how its files are called.

    <root>/[column=value/]<topic>[~incarnation]-<partition>-<start>-<end>-<seq>[-n].parquet
    <root>/.headrace/sink.json, sink-<incarnation>.json, schema-<name>.json, temporary/
    <root>/.headrace/<topic id>/<partition>/log/<seq>.json, <seq>.checkpoint.json
    <root>/.headrace/<topic id>/<partition>/staging/<seq of the owner's takeover>-<owner>-<what>
                                                    (the shard's state stays here: <n>.state)
    <root>/.headrace/<topic id>/<partition>/failures/<start>-<end>.jsonl, delivered.json

Only committed files end in ``.parquet``: recursive globs of some readers look into hidden directories too.
Not here: any file operation.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from pathlib import Path

HIDDEN = ".headrace"

_PLAIN = frozenset(string.ascii_letters + string.digits + "_-.")
_STEM_TOPIC_CHARS_MAX = 150


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
