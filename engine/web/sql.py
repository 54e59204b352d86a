"""SQL over HTTP: targets, answers to show, whole results as files, and ending a query. Not here: running it.

Queries belong to their request: when its client goes away, by closing the page or by aborting, the query is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from engine.web import documents
from engine.web.requests import Refused, identifier, json_body, text
from engine.web.view import EngineView, Export, ExportFormat

#: Rows that are sent to be shown.
ROWS_MAX = 1_000

SQL_CHARACTERS_MAX = 100_000

#: A piece of a file that is sent; it bounds what a slow client costs.
PIECE_BYTES = 256 * 1024

#: A client that takes no piece for so long is left.
PIECE_SECONDS_MAX = 60.0

#: Exports under way, each with a file of its own.
EXPORTS_MAX = 8

MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}

T = TypeVar("T")


class Sql:
    """The routes of ``/api/sql``."""

    def __init__(self, view: EngineView) -> None:
        self._view = view
        self._exports = 0

    async def targets(self, request: Request) -> Response:
        """``[{name, kind, tables, example, note}]``."""
        return _json([documents.target(found) for found in await self._view.targets()])

    async def ask(self, request: Request) -> Response:
        """``{target, sql, id}`` to ``{id, columns, rows, truncated, cut, seconds}``."""
        target, sql, own = _question(await json_body(request))
        answer = await self._attended(request, own, self._view.ask(target, sql, own, ROWS_MAX))
        document = await asyncio.to_thread(lambda: documents.encode(documents.answer(own, answer)))
        return Response(document, media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """``{cancelled}``: whether there was such a query."""
        return _json({"cancelled": self._view.cancel(identifier(request.path_params["id"]))})

    async def export(self, request: Request) -> Response:
        """``{target, sql, id, format}`` to the whole result as a file."""
        body = await json_body(request)
        target, sql, own = _question(body)
        form = text(body, "format")
        if form not in MEDIA:
            raise Refused(400, "format is csv or parquet")
        if self._exports >= EXPORTS_MAX:
            raise Refused(503, f"{self._exports} results are sent already; try again later")
        self._exports += 1
        try:
            chosen = cast(ExportFormat, form)
            export = await self._attended(request, own, self._view.export(target, sql, own, chosen))
            return _Download(export, form, self._ended)
        except BaseException:
            self._ended()
            raise

    def _ended(self) -> None:
        self._exports -= 1

    async def _attended(self, request: Request, own: str, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` gives, which is ended where the client goes away before."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            gone.cancel()
            if not working.done():
                self._view.cancel(own)
                working.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await working


class _Download(StreamingResponse):
    """A temporary file, which goes when it is sent or its client is gone."""

    def __init__(self, export: Export, form: str, ended: Any) -> None:
        self._path, self._ended = export.path, ended
        headers = {
            "Content-Disposition": f'attachment; filename="result.{form}"',
            "Content-Length": str(export.path.stat().st_size),
            "X-Headrace-Rows": str(export.rows),
        }
        super().__init__(_pieces(export.path), headers=headers, media_type=MEDIA[form])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def in_time(message: Any) -> None:
            async with asyncio.timeout(PIECE_SECONDS_MAX):
                await send(message)

        try:
            await super().__call__(scope, receive, in_time)
        finally:
            self._path.unlink(missing_ok=True)
            self._ended()


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    try:
        while piece := await asyncio.to_thread(os.read, descriptor, PIECE_BYTES):
            yield piece
    finally:
        os.close(descriptor)


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _question(body: dict[str, Any]) -> tuple[str, str, str]:
    return text(body, "target"), text(body, "sql", SQL_CHARACTERS_MAX), identifier(text(body, "id"))


def _json(document: object) -> Response:
    return Response(documents.encode(document), media_type="application/json")
