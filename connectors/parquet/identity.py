"""Whose sink a directory is: pipeline, cluster, topic, and the incarnations of the topic; and its schemas.

All of it is created without replacing, so of two processes that open a new sink at once one decides.
Not here: positions (`connectors.parquet.log`).
"""

from __future__ import annotations

import base64
import dataclasses
import uuid
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa

from connectors.parquet.files import Directories, create_once
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.layout import HIDDEN, encode
from connectors.parquet.manifest import FORMAT, load_json
from engine.batch import Stream
from engine.errors import InternalError, RecreatedTopic, SinkMismatch


@dataclass(frozen=True, slots=True)
class Identity:
    """What a sink is bound to. ``incarnation`` counts the times that its topic was made anew."""

    pipeline: str
    cluster_id: str
    topic: str
    topic_id: str
    partitions_at_start: int
    incarnation: int = 0


class IdentityFiles:
    """``sink.json``, ``sink-<incarnation>.json`` and ``schema-<name>.json`` of one sink."""

    def __init__(self, filesystem: FileSystem, root: Path, directories: Directories) -> None:
        self._filesystem = filesystem
        self._root = root
        self._home = root / HIDDEN
        self._temporary = self._home / "temporary"
        self._directories = directories

    def prepare(self) -> None:
        self._directories.ensure(self._temporary)

    def history(self) -> list[Identity]:
        """What the sink was and (last) is bound to; empty if it is new."""
        names = set(self._filesystem.names(self._home))
        self._filesystem.sync_directory(self._home)  # who bound it may have died before doing that
        found: list[Identity] = []
        while _name(len(found)) in names:
            path = self._home / _name(len(found))
            found.append(_load(self._filesystem.read(path), path))
        return found

    def bind(self, identity: Identity) -> Identity:
        """Bind the sink, unless another process just did; what it is bound to."""
        data = orjson.dumps({"format": FORMAT, **dataclasses.asdict(identity)}, option=orjson.OPT_INDENT_2)
        path = self._home / _name(identity.incarnation)
        return _load(create_once(self._filesystem, self._temporary_path(), path, data), path)

    def check(self, identity: Identity, pipeline: str, stream: Stream) -> None:
        """Raise SinkMismatch or RecreatedTopic unless the sink is bound to ``pipeline`` and ``stream``."""
        wanted = {"pipeline": pipeline, "cluster_id": stream.cluster_id, "topic": stream.topic}
        faults = [
            f"its {key.replace('_', ' ')} is {getattr(identity, key)!r}, not {value!r}"
            for key, value in wanted.items()
            if getattr(identity, key) != value
        ]
        if faults:
            raise SinkMismatch(
                f"the Parquet sink {self._root} belongs to somebody else: {'; '.join(faults)}",
                hint="Give this pipeline a directory of its own, or name the one that this directory belongs to.",
            )
        if identity.topic_id != stream.topic_id:
            raise RecreatedTopic(
                f"topic {stream.topic!r} was deleted and made anew: the Parquet sink {self._root} holds positions "
                f"of topic id {identity.topic_id}, the topic now has {stream.topic_id}",
                hint='Set on_recreated_topic = "restart" to read the new topic from its start into the same sink.',
            )

    def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        data = orjson.dumps(
            {
                "format": FORMAT,
                "name": name,
                "columns": {field.name: str(field.type) for field in schema},  # for people
                "arrow": base64.b64encode(schema.serialize().to_pybytes()).decode("ascii"),
            },
            option=orjson.OPT_INDENT_2,
        )
        path = self._schema_path(name)
        return _load_schema(create_once(self._filesystem, self._temporary_path(), path, data), path)

    def schema(self, name: str) -> pa.Schema | None:
        path = self._schema_path(name)
        try:
            return _load_schema(self._filesystem.read(path), path)
        except FileNotFoundError:
            return None

    def _schema_path(self, name: str) -> Path:
        return self._home / f"schema-{encode(name)}.json"

    def _temporary_path(self) -> Path:
        return self._temporary / uuid.uuid4().hex


def _name(incarnation: int) -> str:
    return f"sink-{incarnation}.json" if incarnation else "sink.json"


def _load(data: bytes, path: Path) -> Identity:
    fields = load_json(data, path)
    fields.pop("format")
    try:
        return Identity(**fields)
    except TypeError as error:
        raise InternalError(f"{path} is no sink identity: {error}") from error


def _load_schema(data: bytes, path: Path) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(load_json(data, path)["arrow"])))
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise InternalError(f"{path} is no schema: {error}") from error
