"""The JSON that the page's server answers with: statuses, failed records, lines, answers. Not here: who gets it.

Numbers are JSON numbers, times are seconds since the epoch unless a name says otherwise, what is unknown is null.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import orjson

from engine.recent import LogEntry, RecentFailure
from engine.status import EngineStatus, History, PipelineStatus, ShardStatus
from engine.web.view import SqlAnswer, SqlTarget

#: Of a failed record's key and value, so much is sent.
SHOWN_BYTES_MAX = 16_384

#: Of a line of a function.
SHOWN_LINE_CHARACTERS_MAX = 16_384

#: Of one cell of an answer.
SHOWN_CELL_CHARACTERS_MAX = 10_000

Document = dict[str, Any]


def encode(document: object) -> bytes:
    """JSON; NaN and infinities become null, and lone surrogates (of file names) stay as escapes."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return json.dumps(document, default=_plain).encode()


def status(moment: EngineStatus) -> Document:
    """`EngineStatus` with ``offset_lag`` of shards and pipelines, and ``iterator_age_seconds`` of pipelines."""
    document = _fields(moment)
    document["pipelines"] = [_pipeline(pipeline) for pipeline in moment.pipelines]
    return document


def history(past: History) -> Document:
    """``{step_seconds, moments: {PIPELINE: [Moment, ...]}}``, oldest first."""
    moments = {name: [_fields(moment) for moment in found] for name, found in past.moments.items()}
    return {"step_seconds": past.step_seconds, "moments": moments}


def failure(recent: RecentFailure, refusal: str | None) -> Document:
    """A failed record. ``refusal`` says why it cannot be sent again; null where it can.

    ``key``, ``value`` and each header's ``value`` are null or ``{text, base64, bytes, truncated}``: ``text`` where
    it is UTF-8, else ``base64``, the other one null; ``bytes`` is the whole length.
    """
    entry = recent.entry
    return {
        "sequence": recent.sequence,
        "pipeline": entry.pipeline,
        "topic": entry.topic,
        "partition": entry.partition,
        "offset": entry.offset,
        "timestamp": entry.timestamp,
        "failed_at": entry.failed_at,
        "key": payload(entry.key, recent.key_bytes),
        "value": payload(entry.value, recent.value_bytes),
        "headers": [
            {"key": _valid(name), "value": payload(value, None if value is None else len(value))}
            for name, value in entry.headers
        ],
        "reason": _valid(entry.reason),
        "error_type": _valid(entry.error_type),
        "attempts": entry.attempts,
        "request_id": entry.request_id,
        "replayable": refusal is None,
        "replay_refusal": refusal,
    }


def payload(data: bytes | None, length: int | None) -> Document | None:
    """The beginning of some bytes of which there are ``length``, to be read by people."""
    if data is None or length is None:
        return None
    shown = data[:SHOWN_BYTES_MAX]
    truncated = len(shown) < length
    text = _utf8(shown, truncated)
    encoded = None if text is not None else base64.b64encode(shown).decode("ascii")
    return {"text": text, "base64": encoded, "bytes": length, "truncated": truncated}


def line(sequence: int, entry: LogEntry, pipeline: str | None) -> Document:
    """A line of a pipeline's function. ``origin`` is function, platform, or notice (output is missing)."""
    text = _valid(entry.text)
    return {
        "sequence": sequence,
        "at": entry.at,
        "pipeline": pipeline,
        "function": entry.function,
        "stream": entry.stream,
        "origin": entry.origin,
        "text": text[:SHOWN_LINE_CHARACTERS_MAX],
        "truncated": len(text) > SHOWN_LINE_CHARACTERS_MAX,
    }


def target(found: SqlTarget) -> Document:
    document = _fields(found)
    document["tables"] = list(found.tables)
    return document


def answer(identifier: str, found: SqlAnswer) -> Document:
    """``rows`` are text or null; ``cut`` cells are shown in part."""
    cut = 0
    rows = []
    for row in found.rows:
        shown = []
        for cell in row:
            if cell is not None and len(cell) > SHOWN_CELL_CHARACTERS_MAX:
                cell = cell[:SHOWN_CELL_CHARACTERS_MAX] + "…"
                cut += 1
            shown.append(cell)
        rows.append(shown)
    return {
        "id": identifier,
        "columns": [{"name": column.name, "type": column.type} for column in found.columns],
        "rows": rows,
        "truncated": found.truncated,
        "cut": cut,
        "seconds": found.seconds,
    }


def _pipeline(pipeline: PipelineStatus) -> Document:
    document = _fields(pipeline)
    document["shards"] = [_shard(shard) for shard in pipeline.shards]
    document["offset_lag"] = pipeline.offset_lag
    document["iterator_age_seconds"] = pipeline.iterator_age_seconds
    return document


def _shard(shard: ShardStatus) -> Document:
    document = _shard_fields(shard)
    document["offset_lag"] = shard.offset_lag
    return document


def _fields(value: Any) -> Document:
    """The fields as they are: what is a dataclass in them becomes JSON in `encode`."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _reader(kind: type) -> Callable[[Any], Document]:
    """`_fields` for one class, with its names looked up once."""
    names = [field.name for field in dataclasses.fields(kind)]
    return lambda value: {name: getattr(value, name) for name in names}


_shard_fields = _reader(ShardStatus)


def _utf8(data: bytes, truncated: bool) -> str | None:
    """Text, but for a character that was cut; None for what is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if truncated and error.start >= len(data) - 3 and error.reason == "unexpected end of data":
            return data[: error.start].decode()
        return None


def _valid(text: str) -> str:
    """Without lone surrogates, which JSON in UTF-8 has no room for."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    raise TypeError(f"{type(value).__name__} is not for JSON")
