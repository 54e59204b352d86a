"""Failed records of committed batches: their JSON Lines, and which of them have been delivered.

A failures file is published by the commit that it belongs to, under the shard's ``failures`` directory; it
goes once all of it has been delivered.
Not here: delivery itself, nor when the file is published (`connectors.parquet.log`).
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import orjson

from connectors.parquet.files import replace_durably
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.manifest import FORMAT, load_json
from engine.errors import InternalError
from engine.protocols import FailedRecord

_MARK = "delivered.json"
_SUFFIX = ".jsonl"


def dump_failures(records: Iterable[FailedRecord]) -> bytes:
    """One JSON object for each record and line, bytes in base64; ``request_id`` only where there was a request."""
    return b"".join(
        orjson.dumps(
            {
                "partition": record.partition,
                "offset": record.offset,
                "timestamp": record.timestamp,
                "key": _text(record.key),
                "value": _text(record.value),
                "headers": [[name, _text(value)] for name, value in record.headers],
                "reason": record.reason,
                "error_type": record.error_type,
                "attempts": record.attempts,
                **({} if record.request_id is None else {"request_id": record.request_id}),
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for record in records
    )


def load_failures(data: bytes, path: Path) -> list[FailedRecord]:
    """The records of a failures file; InternalError naming ``path`` if it is none."""
    records = []
    try:
        for line in data.splitlines():
            fields = orjson.loads(line)
            fields["key"], fields["value"] = _bytes(fields["key"]), _bytes(fields["value"])
            fields["headers"] = tuple((name, _bytes(value)) for name, value in fields["headers"])
            records.append(FailedRecord(**fields))
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(f"{path} is no failures file: {error}") from error
    return records


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


class FailureFiles:
    """The committed failures of one shard. The mark is the offset of the last one delivered."""

    def __init__(self, filesystem: FileSystem, directory: Path, temporary: Callable[[str], Path]) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._temporary = temporary
        self._mark: int | None = None

    def pending(self, records_max: int) -> tuple[int, Sequence[FailedRecord]]:
        """Up to ``records_max`` undelivered failures by offset, and the mark that covers them."""
        mark = self._read_mark()
        records: list[FailedRecord] = []
        for name in self._names():
            if len(records) >= records_max:
                break
            if _end(name) <= mark + 1:
                continue
            path = self._directory / name
            records += (r for r in load_failures(self._filesystem.read(path), path) if r.offset > mark)
        del records[records_max:]
        return (records[-1].offset if records else mark), records

    def delivered(self, mark: int) -> None:
        """Remember a mark, and remove the files that it covers. A lower one than before changes nothing."""
        if mark <= self._read_mark():
            return
        data = orjson.dumps({"format": FORMAT, "mark": mark})
        replace_durably(self._filesystem, self._temporary(f"{mark}.delivered"), self._directory / _MARK, data)
        self._mark = mark
        for name in self._names():
            if _end(name) <= mark + 1:
                with contextlib.suppress(FileNotFoundError):
                    self._filesystem.unlink(self._directory / name)

    def _read_mark(self) -> int:
        if self._mark is None:
            path = self._directory / _MARK
            try:
                self._mark = int(load_json(self._filesystem.read(path), path)["mark"])
            except FileNotFoundError:
                self._mark = -1
        return self._mark

    def _names(self) -> list[str]:
        return sorted(name for name in self._filesystem.names(self._directory) if name.endswith(_SUFFIX))


def _end(name: str) -> int:
    return int(name.removesuffix(_SUFFIX).partition("-")[2])
