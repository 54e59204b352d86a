"""The page of a run: what its server asks (`engine.web.view`), answered by the runtime, the sinks and the replayer.

Nothing here runs on the engine's event loop but `serve` and `Page`: all else is called in the server's thread.
Not here: SQL (`web_sql`), HTTP (`engine.web`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from connectors.duckdb import Database
from engine.compose import dlq
from engine.compose.retry import SUFFIX, companions, retry_name
from engine.compose.web_sql import SqlBox
from engine.config import Config, PipelineConfig
from engine.errors import ExternalError, HeadraceError, UserError
from engine.metrics import commit_waits
from engine.recent import LogEntry, RecentFailure
from engine.runtime import Runtime
from engine.status import EngineStatus
from engine.web import runfile
from engine.web.server import WebServer
from engine.web.view import Export, ExportFormat, ReplayOutcome, SqlAnswer, SqlTarget
from functions.environments.logs import LogTail

log = logging.getLogger("headrace.web")

#: A failed record is on its way to its destination for a while after it was committed.
DELIVERY_SECONDS_MAX = 8.0
DELIVERY_POLL_SECONDS = 1.0

REPLAY_SECONDS_MAX = 60.0
REPLAYS_WAITING_MAX = 8

#: How often it is looked whether databases are served, for the file that tells other commands.
TELL_SECONDS = 2.0


class RuntimeView:
    """An `EngineView` over a runtime."""

    def __init__(
        self,
        runtime: Runtime,
        config: Config,
        *,
        tail: LogTail,
        databases: Mapping[Path, Database],
        bootstrap: str | None = None,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._tail = tail
        self._bootstrap = bootstrap
        enabled = {name: each for name, each in config.pipelines.items() if each.enabled}
        self._pipelines = {**enabled, **companions(config.pipelines)}
        self._functions = {name: _function_name(name, each) for name, each in self._pipelines.items()}
        self._pipeline_of = {function: name for name, function in reversed(self._functions.items())}
        self._sql = SqlBox(self._pipelines, databases, config.query)
        self._replaying = asyncio.Lock()
        self._replays_waiting = 0
        self._waits = commit_waits(config)

    def status(self) -> EngineStatus | None:
        return self._runtime.status()

    def waits(self) -> Mapping[str, float]:
        return self._waits

    def failures(self, pipeline: str | None, limit: int) -> Sequence[RecentFailure]:
        if pipeline is not None:
            self._known(pipeline)
        return self._runtime.recent.latest(pipeline, limit)

    def failures_since(self, sequence: int, limit: int) -> Sequence[RecentFailure]:
        return self._runtime.recent.since(sequence, limit)

    def failures_last(self) -> int:
        return self._runtime.recent.last

    def replay_refusal(self, pipeline: str) -> str | None:
        config = self._pipelines.get(pipeline)
        own = pipeline if pipeline in self._config.pipelines else pipeline.removesuffix(SUFFIX)
        if config is None:
            return f"there is no pipeline {pipeline!r}"
        settings = config.source.destination_config
        if settings.on_failure is None:
            return (
                f"pipeline {own} has no on-failure destination: set source.destination_config.on_failure ="
                ' "kafka://TOPIC" or "file:PATH", and source.destination_config.replay = true, and start again'
            )
        if not self._config.pipelines[own].source.destination_config.replay:
            return (
                f"pipeline {own} has nobody to read what is sent again:"
                " set source.destination_config.replay = true, and start again"
            )
        return None

    async def replay(self, pipeline: str, partition: int, offset: int) -> ReplayOutcome:
        self._known(pipeline)
        if (refusal := self.replay_refusal(pipeline)) is not None:
            raise UserError(refusal)
        if self._replays_waiting >= REPLAYS_WAITING_MAX:
            raise ExternalError(
                "replays wait for one another already", hint="`headrace dlq replay` sends many at once"
            )
        self._replays_waiting += 1
        try:
            async with asyncio.timeout(REPLAY_SECONDS_MAX), self._replaying:
                return await self._replay(pipeline, dlq.Selection(partition=partition, offset=offset))
        except TimeoutError:
            raise ExternalError(
                f"the replay took longer than {REPLAY_SECONDS_MAX:g} s",
                hint="ask again: it sends the record only where it was not sent",
            ) from None
        finally:
            self._replays_waiting -= 1

    async def _replay(self, pipeline: str, selection: dlq.Selection) -> ReplayOutcome:
        """One at a time: a second replay of a pipeline would fence the first one."""
        own = pipeline if pipeline in self._config.pipelines else pipeline.removesuffix(SUFFIX)
        for _ in range(int(DELIVERY_SECONDS_MAX / DELIVERY_POLL_SECONDS)):
            looked = await dlq.replay(self._config, pipeline, selection, dry_run=True, bootstrap=self._bootstrap)
            if looked.sent or looked.before:
                break
            await asyncio.sleep(DELIVERY_POLL_SECONDS)
        else:
            raise ExternalError(
                f"the record is not in the on-failure destination of pipeline {own} yet",
                hint="try again in a moment; `headrace dlq list` shows what waits in the sink",
            )
        if looked.sent:
            looked = await dlq.replay(self._config, pipeline, selection, bootstrap=self._bootstrap)
        return ReplayOutcome(sent=looked.sent > 0, before=looked.before > 0, topic=retry_name(own))

    def logs(self, pipeline: str | None, search: str | None, limit: int) -> Sequence[tuple[int, LogEntry]]:
        functions = None if pipeline is None else {self._functions[self._known(pipeline)]}
        return self._tail.latest(limit, functions=functions, search=search)

    def logs_since(self, sequence: int, limit: int) -> Sequence[tuple[int, LogEntry]]:
        return self._tail.since(sequence, limit)

    def logs_last(self) -> int:
        return self._tail.last

    def pipeline_of(self, function: str) -> str | None:
        return self._pipeline_of.get(function)

    async def targets(self) -> Sequence[SqlTarget]:
        return self._sql.targets()

    async def ask(self, target: str, sql: str, identifier: str, rows_max: int) -> SqlAnswer:
        return await self._sql.ask(target, sql, identifier, rows_max)

    async def export(self, target: str, sql: str, identifier: str, form: ExportFormat) -> Export:
        return await self._sql.export(target, sql, identifier, form)

    def cancel(self, identifier: str) -> bool:
        return self._sql.cancel(identifier)

    async def close(self) -> None:
        await self._sql.close()

    def _known(self, pipeline: str) -> str:
        if pipeline not in self._pipelines:
            raise UserError(f"there is no pipeline {pipeline!r}", hint=f"it has {', '.join(self._pipelines)}")
        return pipeline


class Page:
    """What `serve` has started. ``url`` is None where only the file that tells of the run was written."""

    def __init__(self, server: WebServer | None, databases: Mapping[Path, Database], config_path: Path) -> None:
        self.url: str | None = None
        self._server = server
        self._databases = databases
        self._config_path = config_path
        self._started_at = time.time()
        self._told: runfile.RunFile | None = None
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._server is not None:
            self.url = await self._server.start()
        self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """End the server; bounded in time. Idempotent."""
        if self._telling is not None:
            self._telling.cancel()
            with suppress(asyncio.CancelledError):
                await self._telling
        if self._server is not None:
            await self._server.close()
        if self._told is not None:
            await asyncio.to_thread(runfile.remove, self._told)

    async def _tell(self) -> None:
        """Keep the file that other commands find this run by."""
        while True:
            run = self._run()
            if run != self._told:
                try:
                    await asyncio.to_thread(runfile.write, run)
                    self._told = run
                except HeadraceError as error:
                    log.warning("`headrace top` and others will not find this run: %s", error)
                    return
            await asyncio.sleep(TELL_SECONDS)

    def _run(self) -> runfile.RunFile:
        served = tuple(
            runfile.RunDatabase(str(path), database.server.uri, database.server.token)
            for path, database in list(self._databases.items())
            if database.server is not None and database.server.uri is not None
        )
        return runfile.RunFile(
            pid=os.getpid(),
            url=self.url,
            config=str(self._config_path.resolve()),
            started_at=self._started_at,
            token=self._server.token if self._server is not None else None,
            databases=served,
        )


async def serve(
    runtime: Runtime,
    config: Config,
    config_path: Path,
    *,
    tail: LogTail,
    databases: Mapping[Path, Database],
    bootstrap: str | None = None,
) -> Page:
    """Serve the page of a run, if ``web.enabled``, and tell other commands of it. Called on the engine's loop.

    ``tail`` is that of the functions' logs, ``databases`` those of the engine by resolved path; they may be opened
    later. Raises UserError where the address needs a token, or cannot be listened at.
    """
    server = None
    if config.web.enabled:
        view = RuntimeView(runtime, config, tail=tail, databases=databases, bootstrap=bootstrap)
        server = WebServer(view, config.web)
    page = Page(server, databases, config_path)
    await page.start()
    return page


def _function_name(pipeline: str, config: PipelineConfig) -> str:
    return (config.function.name if config.function is not None else None) or pipeline
