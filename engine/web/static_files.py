"""The page's files, and the chart library's script out of its wheel. Nothing outside of the two is ever read.

Not here: what the files are (`engine/web/static`).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from engine.web.security import refusal

STATIC = Path(__file__).parent / "static"

#: No file of the page is as large.
FILE_BYTES_MAX = 16 * 1024 * 1024

#: Smaller files are sent as they are.
GZIP_BYTES_MIN = 1_024

CHARTS = "plotly.min.js"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
COMPRESSED = (".png", ".woff2")


@dataclass(frozen=True, slots=True)
class _Asset:
    plain: bytes
    packed: bytes | None
    tag: str


class StaticFiles:
    """Answers for ``/`` and ``/static/...``. Files are kept in memory as long as they do not change on disk."""

    def __init__(self, root: Path = STATIC) -> None:
        self._root = root.resolve()
        self._kept: dict[Path, tuple[tuple[int, int], _Asset]] = {}
        self._packing = asyncio.Lock()

    async def index(self, request: Request) -> Response:
        return await self._answer(request, "index.html")

    async def icon(self, request: Request) -> Response:
        return await self._answer(request, "icon.svg")

    async def file(self, request: Request) -> Response:
        return await self._answer(request, request.path_params["path"])

    async def _answer(self, request: Request, name: str) -> Response:
        path = self._path(name)
        async with self._packing:
            asset = await asyncio.to_thread(self._asset, path) if path is not None else None
        if path is None or asset is None:
            return refusal(404, "there is no such file")
        # The page's files are asked for each time, and mostly not sent; the library changes with its wheel.
        lasting = name == CHARTS
        headers = {
            "ETag": asset.tag,
            "Vary": "Accept-Encoding",
            "Cache-Control": "private, max-age=86400" if lasting else "no-cache",
        }
        if asset.tag in (each.strip() for each in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        body = asset.plain
        if asset.packed is not None and takes_gzip(request):
            body = asset.packed
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers, media_type=TYPES[path.suffix])

    def _path(self, name: str) -> Path | None:
        """The file of that name below the root; None for a name that leads anywhere else."""
        if name == CHARTS:
            return charts()
        if "\x00" in name or "\\" in name or any(part.startswith(".") for part in name.split("/")):
            return None
        try:
            path = (self._root / name).resolve()
        except OSError:
            return None
        inside = path.is_relative_to(self._root)
        return path if inside and path.suffix in TYPES else None

    def _asset(self, path: Path) -> _Asset | None:
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            kept = self._kept.get(path)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            if not path.is_file() or found.st_size > FILE_BYTES_MAX:
                return None
            data = path.read_bytes()
        except OSError:
            return None
        packs = len(data) >= GZIP_BYTES_MIN and path.suffix not in COMPRESSED
        packed = gzip.compress(data, 6, mtime=0) if packs else None
        asset = _Asset(data, packed, f'W/"{hashlib.sha256(data).hexdigest()[:24]}"')
        self._kept[path] = (stamp, asset)
        return asset


def charts() -> Path | None:
    """The chart library's script; None where its wheel is not installed. Imports nothing of it."""
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "package_data" / CHARTS


def takes_gzip(request: Request) -> bool:
    return any(
        part.partition(";")[0].strip().lower() == "gzip" and "q=0" not in part.replace(" ", "").replace("q=0.", "")
        for part in request.headers.get("accept-encoding", "").split(",")
    )
