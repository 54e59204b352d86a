"""What engine and Python environment say to each other: frames over a socket pair, records as flat buffers.

A frame is two 32-bit lengths, a small JSON header, and a body. A request's body holds a batch's Arrow buffers as
they are, so that the engine makes no Python object for a record:

    offsets, timestamps     8 bytes for each record
    keys, values            where each begins and the last one ends (4 bytes each), a bitmap of those that are
                            there (only where some are null), the bytes
    headers                 where each record's begin, then their names and values as above; only if there are any

Numbers are in the machine's own order: both ends are on one machine. Both ends bound what they take. A reply's body
is the handler's answer as JSON; inside of a top-level "rows", values that JSON has no type for are tagged
(`TAG`), and `revived` makes them what they were.

Not here: sockets on the event loop (`python`) and the program at the other end (`child`), which uses this module
too: it needs the standard library alone.
"""

from __future__ import annotations

import json
import socket
import struct
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.batch import Batch
    from functions.environments.contract import Request

PREFIX = struct.Struct("=II")  #: bytes of the header, bytes of the body

#: Of a request: its envelope and a window's state (1 MB, escaped) are in the header.
REQUEST_HEADER_BYTES_MAX = 8 * 1024 * 1024
#: Records of a batch are fewer than their event, which has 6 MB.
REQUEST_BODY_BYTES_MAX = 32 * 1024 * 1024
REPLY_HEADER_BYTES_MAX = 64 * 1024

#: The only member of an object that stands for a value: its type and its text.
TAG = "\x00headrace"
TAG_TEXT = json.dumps(TAG)

Pair = dict[str, "str | bytes | None"]
Buffer = bytes | memoryview


class ProtocolError(Exception):
    """The other end sent what cannot be a frame."""


# The engine's side.


def request_frame(request: Request) -> list[Buffer]:
    """A request as buffers to be sent one after the other. Raises ValueError for one that is too large."""
    batch = request.batch
    body: list[Buffer] = []
    columns: list[list[int]] = []
    if len(batch):
        position = 0
        for name in ("offset", "timestamp"):
            column = batch.records.column(name)
            body.append(_slice(column.buffers()[1], 8 * column.offset, 8 * len(column)))
        position += 16 * len(batch)
        for name in ("key", "value"):
            column = batch.records.column(name)
            bounds = batch.bounds(name)
            first, last = int(bounds[0]), int(bounds[-1])
            position, shape = _binary(body, position, column, bounds, first, last)
            columns.append(shape)
        if batch.column_bytes("headers"):
            columns += _headers(body, position, batch)
    head = {
        "id": request.request_id,
        "deadline": request.deadline_ms,
        "kind": request.kind,
        "partition": batch.partition,
        "count": len(batch),
        "columns": columns,
        "trace": request.trace,
        "envelope": request.envelope,
        "extra": request.extra,
    }
    header = json.dumps(head, separators=(",", ":")).encode()
    size = sum(map(len, body))
    if len(header) > REQUEST_HEADER_BYTES_MAX or size > REQUEST_BODY_BYTES_MAX:
        raise ValueError(f"a request of {len(header) + size} bytes is more than an environment takes")
    return [PREFIX.pack(len(header), size) + header, *body]


def _slice(buffer: pa.Buffer | None, start: int, size: int) -> Buffer:
    return memoryview(buffer).cast("B")[start : start + size] if buffer is not None and size else b""


def _binary(
    body: list[Buffer], position: int, column: pa.Array, bounds: Any, first: int, last: int
) -> tuple[int, list[int]]:
    """Add a binary column; its shape is (bytes of the bitmap, bit of the first record, bytes of data, base).

    ``bounds`` is the column's own array of 32-bit positions, with or without numpy; ``base`` is what the other end
    takes off them to have positions in the body.
    """
    validity, _, data = column.buffers()
    bitmap, bit = _bitmap(column, validity)
    at = position + 4 * (len(column) + 1) + len(bitmap)
    base = first - at
    if hasattr(bounds, "astype"):  # numpy's: positions in the body cost the other end nothing
        bounds, base = bounds - base, 0
    content = _slice(data, first, last - first)
    body += [memoryview(bounds).cast("B"), bitmap, content]
    return at + len(content), [len(bitmap), bit, len(content), base]


def _bitmap(column: pa.Array, validity: pa.Buffer | None) -> tuple[Buffer, int]:
    if validity is None or not column.null_count:
        return b"", 0
    begin, end = column.offset // 8, (column.offset + len(column) + 7) // 8
    return _slice(validity, begin, end - begin), column.offset % 8


def _headers(body: list[Buffer], position: int, batch: Batch) -> list[list[int]]:
    column = batch.records.column("headers")
    bounds = batch.bounds("headers")
    first, last = int(bounds[0]), int(bounds[-1])
    bitmap, bit = _bitmap(column, column.buffers()[0])
    starts: Any = bounds - first
    body += [memoryview(starts).cast("B"), bitmap]
    position += 4 * (len(column) + 1) + len(bitmap)
    shapes = [[len(bitmap), bit, last - first, 0]]
    for child in column.values.slice(first, last - first).flatten():
        own = _slice(child.buffers()[1], 4 * child.offset, 4 * (len(child) + 1))
        positions = memoryview(own).cast("i")
        position, shape = _binary(body, position, child, positions, positions[0], positions[-1])
        shapes.append(shape)
    return shapes


class Replies:
    """Puts replies together from what a socket gives."""

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._held = bytearray()

    def take(self, data: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Header and body, once all of a reply is there. Raises ProtocolError."""
        held = self._held
        held += data
        if len(held) < PREFIX.size:
            return None
        head, size = PREFIX.unpack_from(held)
        if head > REPLY_HEADER_BYTES_MAX or size > self._body_bytes_max:
            raise ProtocolError(f"a reply of {head} and {size} bytes")
        end = PREFIX.size + head + size
        if len(held) < end:
            return None
        if len(held) > end:
            raise ProtocolError("more than one reply")
        try:
            header = json.loads(held[PREFIX.size : PREFIX.size + head])
        except ValueError as error:
            raise ProtocolError(f"a reply whose header is no JSON: {error}") from None
        if not isinstance(header, dict):
            raise ProtocolError("a reply whose header is no object")
        body = bytes(memoryview(held)[PREFIX.size + head :])
        self._held = bytearray()
        return header, body


def revived(payload: bytes) -> object:
    """What a reply with typed values says. Raises ValueError for what the other end would not have written."""
    return json.loads(payload.decode(), object_hook=_revive)


def _revive(found: dict[str, Any]) -> object:
    if TAG not in found:
        return found
    import base64
    import datetime
    import decimal
    import uuid

    kind, text = found[TAG]
    match kind:
        case "datetime":
            return datetime.datetime.fromisoformat(text)
        case "date":
            return datetime.date.fromisoformat(text)
        case "time":
            return datetime.time.fromisoformat(text)
        case "timedelta":
            return datetime.timedelta(microseconds=int(text))
        case "Decimal":
            return decimal.Decimal(text)
        case "UUID":
            return uuid.UUID(text)
        case "bytes":
            return base64.b64decode(text, validate=True)
    raise ValueError(f"a value of the type {kind!r}")


# The environment's side.


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """The next request's header and body; None when the engine is gone. Raises ProtocolError."""
    prefix = _exactly(connection, PREFIX.size)
    if prefix is None:
        return None
    head, size = PREFIX.unpack(prefix)
    if head > REQUEST_HEADER_BYTES_MAX or size > REQUEST_BODY_BYTES_MAX:
        raise ProtocolError(f"a request of {head} and {size} bytes")
    header, body = _exactly(connection, head), _exactly(connection, size)
    if header is None or body is None:
        return None
    return json.loads(header), body


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    """So many bytes; None at the end."""
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    while len(data) < size:  # a signal came between
        more = connection.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            return None
        data += more
    return data


def send(connection: socket.socket, header: Mapping[str, object], body: bytes) -> None:
    """Send a reply, whole."""
    head = json.dumps(header).encode()
    connection.sendall(PREFIX.pack(len(head), len(body)) + head + body)


Columns = tuple[
    Sequence[int],
    Sequence[int],
    Sequence["bytes | None"],
    Sequence["bytes | None"],
    Sequence["list[Pair] | None"],
]


def columns(header: Mapping[str, Any], body: bytes) -> Columns:
    """Offsets, timestamps, keys, values and headers of a request. Raises ProtocolError."""
    count = header["count"]
    if not count:
        return (), (), (), (), ()
    view = memoryview(body)
    position = 16 * count
    if position > len(body):
        raise ProtocolError("a request that is too short")
    offsets = view[: 8 * count].cast("q").tolist()
    timestamps = view[8 * count : position].cast("q").tolist()
    shapes = header["columns"]
    position, keys = _read_binary(body, position, count, shapes[0])
    position, values = _read_binary(body, position, count, shapes[1])
    if len(shapes) == 2:
        return offsets, timestamps, keys, values, [None] * count
    return offsets, timestamps, keys, values, _read_headers(body, position, count, shapes[2:])


def _bounds(body: bytes, position: int, count: int) -> list[int]:
    if position + 4 * (count + 1) > len(body):
        raise ProtocolError("a request that is too short")
    return array("i", body[position : position + 4 * (count + 1)]).tolist()


def _read_binary(body: bytes, position: int, count: int, shape: Sequence[int]) -> tuple[int, list[bytes | None]]:
    bitmap_bytes, bit, size, base = shape
    bounds = _bounds(body, position, count)
    position += 4 * (count + 1)
    end = position + bitmap_bytes + size
    if bounds[0] - base != position + bitmap_bytes or bounds[-1] - base != end or end > len(body):
        raise ProtocolError("a request whose buffers do not fit together")
    if base:
        bounds = [bound - base for bound in bounds]
    if not bitmap_bytes:
        return end, [body[a:b] for a, b in pairwise(bounds)]
    given = _bits(body[position : position + bitmap_bytes], bit, count)
    return end, [body[a:b] if bit == "1" else None for (a, b), bit in zip(pairwise(bounds), given, strict=True)]


def _bits(bitmap: bytes, first: int, count: int) -> str:
    """A bitmap as "1" and "0", the first record first."""
    return f"{int.from_bytes(bitmap, 'little'):0{8 * len(bitmap)}b}"[::-1][first : first + count]


def _read_headers(
    body: bytes, position: int, count: int, shapes: Sequence[Sequence[int]]
) -> list[list[Pair] | None]:
    bitmap_bytes, bit, pairs_count, _ = shapes[0]
    bounds = _bounds(body, position, count)
    position += 4 * (count + 1)
    given = _bits(body[position : position + bitmap_bytes], bit, count) if bitmap_bytes else "1" * count
    position += bitmap_bytes
    position, names = _read_binary(body, position, pairs_count, shapes[1])
    position, values = _read_binary(body, position, pairs_count, shapes[2])
    pairs: list[Pair] = [
        {"key": (name or b"").decode(), "value": value} for name, value in zip(names, values, strict=True)
    ]
    return [pairs[a:b] if bit == "1" else None for (a, b), bit in zip(pairwise(bounds), given, strict=True)]
