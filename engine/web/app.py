"""The routes of the page's server, as one Starlette application over an `EngineView`. Not here: the socket.

=================================  ===========================================================================
GET  /, /static/*                  the page; open to everybody, it holds no data
POST /api/login, /api/logout       {token} to a session's cookie, only where a token is set
GET  /api/status                   `EngineStatus` as JSON, with ``offset_lag``
GET  /api/history                  {step_seconds, moments: {PIPELINE: [...]}}
GET  /api/events                   server-sent events (`engine.web.events`)
GET  /api/failures                 ?pipeline= &limit=: the latest failed records, newest first
POST /api/failures/replay          {pipeline, partition, offset} to {sent, before, topic}
GET  /api/logs                     ?pipeline= &search= &limit=: lines of functions, newest first
GET  /api/sql/targets              what SQL can be asked of
POST /api/sql, /api/sql/export     `engine.web.sql`
POST /api/sql/{id}/cancel          {cancelled}
GET  /metrics, /healthz            for Prometheus and for probes
=================================  ===========================================================================

Every refusal is ``{error, hint}`` with a status from 400 on.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from engine.config_serving import WebConfig
from engine.errors import Domain, HeadraceError
from engine.metrics import expose, health
from engine.web import documents
from engine.web.events import Client, Hub
from engine.web.history import HistoryRing
from engine.web.requests import Refused, json_body, limit, parameter, text, whole
from engine.web.security import Gate, limited, refusal
from engine.web.sql import Sql
from engine.web.static_files import StaticFiles, takes_gzip
from engine.web.view import EngineView, QueryBusy, QueryCancelled

FAILURES_SHOWN = 50
LOGS_SHOWN = 200
LOGS_SHOWN_MAX = 1_000

#: A client of events that takes nothing for so long is cut off.
SEND_SECONDS_MAX = 30.0

EVENT_STREAM = "text/event-stream; charset=utf-8"


def build_app(view: EngineView, settings: WebConfig, gate: Gate, hub: Hub, history: HistoryRing) -> Starlette:
    """The application, without the guard that stands before it."""
    routes = _Routes(view, settings, gate, hub, history)
    sql, static = Sql(view), StaticFiles()
    return Starlette(
        routes=[
            Route("/", static.index),
            Route("/favicon.ico", static.icon),
            Route("/static/{path:path}", static.file),
            Route("/api/login", routes.login, methods=["POST"]),
            Route("/api/logout", routes.logout, methods=["POST"]),
            Route("/api/status", routes.status),
            Route("/api/history", routes.history),
            Route("/api/events", routes.events, methods=["GET"]),
            Route("/api/failures", routes.failures),
            Route("/api/failures/replay", routes.replay, methods=["POST"]),
            Route("/api/logs", routes.logs),
            Route("/api/sql/targets", sql.targets),
            Route("/api/sql", sql.ask, methods=["POST"]),
            Route("/api/sql/export", sql.export, methods=["POST"]),
            Route("/api/sql/{id}/cancel", sql.cancel, methods=["POST"]),
            Route("/metrics", routes.metrics),
            Route("/healthz", routes.healthz),
        ],
        exception_handlers={
            HeadraceError: _failed,
            HTTPException: _refused,
            ClientDisconnect: _gone,
            Exception: _faulty,
        },
    )


class _Routes:
    def __init__(self, view: EngineView, settings: WebConfig, gate: Gate, hub: Hub, history: HistoryRing) -> None:
        self._view = view
        self._settings = settings
        self._gate = gate
        self._hub = hub
        self._history = history

    async def login(self, request: Request) -> Response:
        gate = self._gate
        address = request.client.host if request.client is not None else ""
        body = await json_body(request)
        if gate.is_open:
            return _json({"ok": True})
        if gate.is_limited(address):
            return limited()
        if not gate.takes(text(body, "token")):
            await gate.wrong(address)
            return refusal(401, "the token is wrong")
        response = _json({"ok": True})
        response.set_cookie(gate.cookie, gate.begin_session(), path="/", httponly=True, samesite="strict")
        return response

    async def logout(self, request: Request) -> Response:
        if (session := self._gate.session_of(request.headers)) is not None:
            self._gate.end_session(session)
        response = _json({"ok": True})
        response.delete_cookie(self._gate.cookie, path="/", httponly=True, samesite="strict")
        return response

    async def status(self, request: Request) -> Response:
        moment = self._view.status()
        return _starting() if moment is None else _json(documents.status(moment))

    async def history(self, request: Request) -> Response:
        return _json(documents.history(self._history.history()))

    async def events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type=EVENT_STREAM)
        gzip = takes_gzip(request)
        client = self._hub.join(request.headers.get("last-event-id"), gzip=gzip)
        return _EventStream(client, self._hub, gzip)

    async def failures(self, request: Request) -> Response:
        most = self._settings.failures_max
        count = limit(request, min(FAILURES_SHOWN, most), most)
        found = self._view.failures(parameter(request, "pipeline"), count)
        return _json([documents.failure(each, self._view.replay_refusal(each.entry.pipeline)) for each in found])

    async def replay(self, request: Request) -> Response:
        body = await json_body(request)
        outcome = await self._view.replay(text(body, "pipeline"), whole(body, "partition"), whole(body, "offset"))
        return _json({"sent": outcome.sent, "before": outcome.before, "topic": outcome.topic})

    async def logs(self, request: Request) -> Response:
        pipeline, search = parameter(request, "pipeline"), parameter(request, "search")
        count = limit(request, LOGS_SHOWN, LOGS_SHOWN_MAX)
        found = await asyncio.to_thread(self._view.logs, pipeline, search, count)
        view = self._view
        return _json([documents.line(number, each, view.pipeline_of(each.function)) for number, each in found])

    async def metrics(self, request: Request) -> Response:
        moment = self._view.status()
        if moment is None:
            return _starting()
        # In a thread: some 50 ms for 1,000 shards, which the events need not wait for.
        body, media = await asyncio.to_thread(expose, moment, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": media})

    async def healthz(self, request: Request) -> Response:
        moment = self._view.status()
        if moment is None:
            return _starting()
        found = health(
            moment,
            stall_seconds_max=self._settings.stall_seconds_max,
            now=time.time(),
            waits=self._view.waits(),
        )
        return _json(found.document(), found.http_status)


class _EventStream(Response):
    """Sends a client's frames until it goes, is too slow, or the server ends."""

    def __init__(self, client: Client, hub: Hub, gzip: bool) -> None:
        headers = {"X-Accel-Buffering": "no", "Vary": "Accept-Encoding"}
        if gzip:
            headers["Content-Encoding"] = "gzip"
        super().__init__(headers=headers, media_type=EVENT_STREAM)
        del self.headers["content-length"]
        self._client = client
        self._hub = hub

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self._client.frames():
                async with asyncio.timeout(SEND_SECONDS_MAX):
                    await send({"type": "http.response.body", "body": data, "more_body": True})

        waits = (pump(), _disconnected(receive), self._client.cut.wait())
        tasks = {asyncio.ensure_future(each) for each in waits}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.leave(self._client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Whatever it has not taken it would have to take before its connection could end.
            if (abort := scope.get("headrace.abort")) is not None:
                abort()
                await _disconnected(receive)  # else it would pass for an answer that was forgotten


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(document: object, status: int = 200) -> Response:
    return Response(documents.encode(document), status, media_type="application/json")


def _starting() -> Response:
    return refusal(503, "the engine is starting", "ask again in a second", {"Retry-After": "1"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return refusal(error.status_code, error.detail)
    if error.status_code == 404:
        return refusal(404, "there is no such address")
    return refusal(error.status_code, error.detail, None, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    """The engine's own errors: their text is for users, and holds no secret."""
    assert isinstance(error, HeadraceError)
    if isinstance(error, QueryCancelled):
        return refusal(409, error.message, error.hint)
    if isinstance(error, QueryBusy):
        return refusal(503, error.message, error.hint, {"Retry-After": "1"})
    status = {Domain.USER: 400, Domain.EXTERNAL: 503 if error.retry else 502, Domain.INTERNAL: 500}[error.domain]
    return refusal(status, error.message, error.hint)


async def _gone(request: Request, error: Exception) -> Response:
    return refusal(499, "the client has gone")


async def _faulty(request: Request, error: Exception) -> Response:
    """Anything else is a bug: the guard writes it to the log, and nothing of it is told."""
    return refusal(500, "headrace has failed to answer", "the log says more")
