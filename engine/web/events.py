"""Server-sent events: what happens in the engine, to every page that listens. One task makes them for all clients.

====== ============================================================ ==========================================
event  data                                                         when
====== ============================================================ ==========================================
status what GET /api/status answers, whole                          about once a second, and on connecting
failure a failed record, as in GET /api/failures                    when it is committed
log    a line of a function, as in GET /api/logs                    as it is printed, `LOGS_MAX` a tick at most
====== ============================================================ ==========================================

``id`` is ``START-FAILURE-LOG``: when the engine started (milliseconds since the epoch), and the sequence numbers
of the latest failed record and line. A browser sends it when it connects again (Last-Event-ID), and hears what it
has missed, as far as that is kept, unless the engine was started anew: then START differs. A comment keeps silent
connections open.

Each frame is encoded, and compressed, once for all clients: the compressor is flushed in full after each, so that
any client may begin at any frame. 1,000 shards are 370 KB, 75 KB compressed, for 5 ms a second, whoever listens.

A client that does not take its frames is cut off; its browser connects again. Nothing is made while nobody listens.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from engine.errors import ExternalError
from engine.status import EngineStatus
from engine.web import documents
from engine.web.view import EngineView

#: How often it is looked whether there is something new.
TICK_SECONDS = 0.5

#: After so long without an event a comment is sent.
HEARTBEAT_SECONDS = 10.0

CLIENTS_MAX = 64

#: Of one client: what waits to be sent. One status of 10,000 shards has room.
WAITING_FRAMES_MAX = 256
WAITING_BYTES_MAX = 8 * 1024 * 1024

#: In one tick, and for a client that connects again; older ones are asked for by GET.
FAILURES_MAX = 20
LOGS_MAX = 50

#: Smaller frames are not worth compressing on their own, but a stream is compressed or it is not.
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

_ID = re.compile(r"(\d{1,16})-(\d{1,18})-(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Position:
    """What a client has heard: of which engine, up to which sequence numbers."""

    started_ms: int
    failure: int
    log: int

    def __str__(self) -> str:
        return f"{self.started_ms}-{self.failure}-{self.log}"

    @classmethod
    def parse(cls, text: str | None) -> Position | None:
        """None for what is no position."""
        found = _ID.fullmatch(text or "")
        return cls(*map(int, found.groups())) if found else None


class Frame:
    """Bytes for every client, compressed when the first one wants them so."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self._compressed: bytes | None = None

    def bytes(self, gzip: bool) -> bytes:
        if not gzip:
            return self.plain
        if self._compressed is None:
            compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
            self._compressed = compressor.compress(self.plain) + compressor.flush(zlib.Z_FULL_FLUSH)
        return self._compressed


HEARTBEAT = Frame(b": still here\n\n")


class Client:
    """One listener: a bounded queue of frames. ``cut`` is set when it is too slow, or the server ends."""

    def __init__(self, gzip: bool) -> None:
        self._gzip = gzip
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._more = asyncio.Event()
        self.cut = asyncio.Event()
        if gzip:
            self._waiting.append(GZIP_HEADER)

    def put(self, frame: Frame) -> None:
        if self.cut.is_set():
            return
        data = frame.bytes(self._gzip)
        full = self._waiting_bytes + len(data) > WAITING_BYTES_MAX or len(self._waiting) >= WAITING_FRAMES_MAX
        if full and self._waiting:
            self.cut.set()
            self._waiting.clear()
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._more.set()

    async def frames(self) -> AsyncIterator[bytes]:
        """What waits, together, and then what comes, without an end."""
        while True:
            await self._more.wait()
            self._more.clear()
            data = b"".join(self._waiting)
            self._waiting.clear()
            if data:
                # What is being sent still counts: it is in memory until the client has taken it.
                yield data
            self._waiting_bytes = sum(map(len, self._waiting))


class Hub:
    """Makes events of what ``view`` says, for all clients. `run` is its one task; the rest is called beside it."""

    def __init__(self, view: EngineView, *, tick_seconds: float = TICK_SECONDS) -> None:
        self._view = view
        self._tick_seconds = tick_seconds
        self._clients: set[Client] = set()
        self._at: Position | None = None
        self._sent: EngineStatus | None = None
        self._status: tuple[EngineStatus, Frame] | None = None
        self._heard_at = 0.0
        self._closed = False

    @property
    def clients(self) -> int:
        return len(self._clients)

    def join(self, last_event_id: str | None, *, gzip: bool) -> Client:
        """A new client; it hears the status, and what it has missed. Raises ExternalError for one too many."""
        if self._closed or len(self._clients) >= CLIENTS_MAX:
            raise ExternalError(
                f"{len(self._clients)} pages listen already, {CLIENTS_MAX} at most", hint="close one of them"
            )
        client = Client(gzip)
        moment = self._view.status()
        if moment is not None:
            now = self._now(moment)
            if self._at is None or not self._clients or self._at.started_ms != now.started_ms:
                self._at = now  # nobody has listened; what came meanwhile is not for this one
            heard = Position.parse(last_event_id)
            if heard is not None and heard.started_ms == self._at.started_ms:
                for frame in self._between(heard, self._at):
                    client.put(frame)
            client.put(self._status_frame(moment))
        self._clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        self._clients.discard(client)

    def close(self) -> None:
        """Cut off all clients, and take no more."""
        self._closed = True
        for client in self._clients:
            client.cut.set()

    async def run(self) -> None:
        """Without an end."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._tick_seconds)
            if self._clients:
                self.tick(loop.time())

    def tick(self, now: float) -> None:
        """Send what is new at ``now``, on a monotonic clock."""
        frames = self._news()
        if frames:
            self._heard_at = now
        elif now - self._heard_at >= HEARTBEAT_SECONDS:
            self._heard_at = now
            frames = [HEARTBEAT]
        for client in self._clients:
            for frame in frames:
                client.put(frame)

    def _news(self) -> list[Frame]:
        moment = self._view.status()
        if moment is None:
            return []
        before, self._at = self._at, self._now(moment)
        frames = []
        if before is not None and before.started_ms == self._at.started_ms:
            frames = self._between(before, self._at)
        if moment is not self._sent:
            self._sent = moment
            frames.append(self._status_frame(moment))
        return frames

    def _now(self, moment: EngineStatus) -> Position:
        return Position(int(moment.started_at * 1000), self._view.failures_last(), self._view.logs_last())

    def _status_frame(self, moment: EngineStatus) -> Frame:
        """Made once for each moment, whoever joins meanwhile."""
        if self._status is None or self._status[0] is not moment:
            assert self._at is not None
            self._status = moment, _frame("status", self._at, documents.status(moment))
        return self._status[1]

    def _between(self, before: Position, now: Position) -> list[Frame]:
        """Frames of failed records and lines after ``before``, up to ``now``."""
        view = self._view
        frames = []
        failure, log = before.failure, before.log
        for each in view.failures_since(before.failure, FAILURES_MAX) if now.failure > before.failure else ():
            if each.sequence <= now.failure:
                failure = each.sequence
                document = documents.failure(each, view.replay_refusal(each.entry.pipeline))
                frames.append(_frame("failure", Position(now.started_ms, failure, log), document))
        for sequence, entry in view.logs_since(before.log, LOGS_MAX) if now.log > before.log else ():
            if sequence <= now.log:
                log = sequence
                document = documents.line(sequence, entry, view.pipeline_of(entry.function))
                frames.append(_frame("log", Position(now.started_ms, failure, log), document))
        return frames


def _frame(event: str, at: Position, document: object) -> Frame:
    # JSON has no line ends in it, so one data line is enough.
    return Frame(
        b"id: %s\nevent: %s\ndata: %s\n\n" % (str(at).encode(), event.encode(), documents.encode(document))
    )
