"""One browser for all tests of the page, made-up engines behind the real server, and what no page may ever do."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

import tests.web_world as web_world
from connectors.analysis.check import mistake
from engine.config_serving import WebConfig
from engine.status import EngineStatus, ShardStatus
from engine.web.events import Hub
from engine.web.history import HistoryRing
from engine.web.security import Gate

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: How long a page may take for anything; the machine may be busy.
WAIT_MS = 15_000


class World(web_world.World):
    """Moves in steps of a fraction of a second, so that tests need not wait for its next status."""

    def __init__(
        self, *, step_seconds: float = 0.1, age_seconds: float = 3_700.0, well: bool = False, **given: Any
    ) -> None:
        super().__init__(**given)
        self.step_seconds = step_seconds
        self.well = well  #: else a shard of the second pipeline has stopped
        self.made = 0  #: statuses so far
        self.started_at = time.time() - age_seconds

    def status(self) -> EngineStatus:
        at = self.paused_at or math.floor(time.time() / self.step_seconds) * self.step_seconds
        if self.kept is None or self.kept[0] != at:
            self.kept = at, self._status(at)
            self.made += 1
        return self.kept[1]

    def _shard(self, partition: int, number: int, seconds: float) -> ShardStatus:
        """At a rate that rises and falls by a fifth, with a lag that comes and goes, however long it runs."""
        shard = super()._shard(partition, number, seconds)
        rate = random.Random(partition * 31 + number).uniform(200, 1_500)
        waves = math.sin(seconds / 170 + partition / 3) + 0.1 * math.sin(seconds / 2 + partition)
        lag = max(0, int(rate * waves))
        records = int(rate * (seconds + 12 * (1 - math.cos(seconds / 60))))
        return dataclasses.replace(
            shard,
            position=records,
            read=records,
            end=records + lag,
            iterator_age_seconds=round(lag / rate, 3),
            stalled_seconds=0.0,
            state="running" if self.well else shard.state,
            error=None if self.well else shard.error,
            records=records,
            batches=records // 100,
            rows=records,
        )

    async def ask(self, target: str, sql: str, identifier: str, rows_max: int) -> Any:
        """With mistakes told as a real engine tells them."""
        try:
            duckdb.extract_statements(sql)
        except duckdb.Error as error:
            raise mistake(error, sql) from None
        return await super().ask(target, sql, identifier, rows_max)


class Server(web_world.WorldServer):
    """The real server, whose history has the last hour from the start."""

    def _application(self, gate: Gate, hub: Hub, history: HistoryRing) -> Any:
        world = self._view
        assert isinstance(world, World)
        now = time.time()
        for step in range(361, 0, -1):
            at = now - step * history._step_seconds
            if at > world.started_at:
                history.add(world._status(at))
        return super()._application(gate, hub, history)


def in_thread(coroutine: Any) -> Any:
    """What a coroutine gives, run beside the loop that Playwright keeps in this thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return found[0] if found else None


Serve = Callable[..., str]


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """``serve(world, token=None)`` gives the URL of a page over it, for as long as the tests run."""
    servers: list[Server] = []

    def start(world: World, *, token: str | None = None) -> str:
        server = Server(world, WebConfig(port=0, token=token), tick_seconds=world.step_seconds / 2)
        servers.append(server)
        url = in_thread(server.start())
        assert url, "the server has not started"
        return str(url)

    yield start
    for server in servers:
        in_thread(server.close())


@pytest.fixture(scope="session")
def world() -> World:
    """A made-up engine of three pipelines, which the tests share: they add to it, and change nothing else."""
    made = World(shards=12, pipelines=3)
    for _ in range(7):
        made.fail()
    return made


@pytest.fixture(scope="session")
def url(serve: Serve, world: World) -> str:
    return serve(world)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module: Playwright keeps a loop running in this thread, which tests of other modules cannot have."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing: install Debian's package chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield launched
        launched.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """``open_page(url, "sql", width=1280, scheme="light", expected="")`` gives a page that shows a view.

    When the test ends no page has written an error, but for those that match ``expected``, and none has asked
    another origin for anything.
    """
    contexts = []
    faults: list[str] = []

    def open_one(
        url: str,
        view: str = "",
        *,
        width: int = 1280,
        height: int = 800,
        scheme: str = "light",
        expected: str = "(?!)",
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
            locale="en-GB",
        )
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        pattern = re.compile(expected)

        def heard(message: ConsoleMessage) -> None:
            # A browser calls an answer of 503 an error, and that is how /healthz says what is wrong.
            ill = "503" in message.text and message.location["url"] == f"{url}/healthz"
            if message.type in ("error", "warning") and not ill and not pattern.search(message.text):
                faults.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", functools.partial(_within, url, faults))
        page.goto(f"{url}/#/{view}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


def _within(url: str, faults: list[str], request: Any) -> None:
    if not request.url.startswith((f"{url}/", "data:", f"blob:{url}/")):
        faults.append(f"left the origin: {request.url}")
