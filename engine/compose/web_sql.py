"""The page's SQL box over the sinks of a run: what can be asked, and answers as text or as files.

DuckDB and DuckLake files are asked by cursors of the engine's own databases, Parquet sinks by a DuckDB in memory
over their committed files. What may be asked, and for how long, is `connectors.analysis`. Not here: HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.analysis import Busy, Cancelled, Runner, Running
from connectors.duckdb import Database
from connectors.parquet.live import live_files
from connectors.query import VIEW, open_directory
from engine.config import PipelineConfig
from engine.config_serving import QueryConfig
from engine.config_sinks import DuckDBSinkConfig, DuckLakeSinkConfig, ParquetSinkConfig
from engine.errors import ExternalError, UserError
from engine.web.documents import SHOWN_CELL_CHARACTERS_MAX
from engine.web.view import Column, Export, ExportFormat, QueryBusy, QueryCancelled, SqlAnswer, SqlTarget

#: Of one query over Parquet files, and of writing answers as text; beyond that a query spills to the disk.
MEMORY_BYTES_MAX = 128 * 1024 * 1024
SPILL_BYTES_MAX = 4 * 1024**3

_WAITERS_MAX = 256

#: One more than is shown tells that there is more.
_CELL_CHARACTERS = SHOWN_CELL_CHARACTERS_MAX + 1


class SqlBox:
    """Asks the sinks of ``pipelines``; ``databases`` are those of the engine by their resolved path.

    Called on one event loop. Every method raises UserError, QueryCancelled, QueryBusy, ExternalError.
    """

    def __init__(
        self, pipelines: Mapping[str, PipelineConfig], databases: Mapping[Path, Database], settings: QueryConfig
    ) -> None:
        self._settings = settings
        self._databases = databases
        self._runners: dict[str, Runner] = {}
        self._running: dict[str, Running] = {}
        self._closed = False
        self._files: Path | None = None
        self._room = threading.Semaphore(settings.queries_max)
        self._targets = _targets(pipelines)
        # They only wait: DuckDB's work is in the runners' threads.
        self._waiters = ThreadPoolExecutor(_WAITERS_MAX, thread_name_prefix="headrace-web-sql")
        self._writer = Writer()

    def targets(self) -> list[SqlTarget]:
        return [shown for shown, _ in self._targets.values()]

    async def ask(self, target: str, sql: str, identifier: str, rows_max: int) -> SqlAnswer:
        """The first ``rows_max`` rows as text."""
        running = self._start(target, sql, identifier, rows_max)
        table = await self._result(running)
        columns, rows = await asyncio.get_running_loop().run_in_executor(self._waiters, self._writer.texts, table)
        return SqlAnswer(columns, rows, running.truncated, running.seconds)

    async def export(self, target: str, sql: str, identifier: str, form: ExportFormat) -> Export:
        """The whole answer in a file, which is the caller's to remove."""
        table = await self._result(self._start(target, sql, identifier, None))
        path = self._folder() / f"{uuid.uuid4().hex}.{form}"
        writing = asyncio.get_running_loop().run_in_executor(
            self._waiters, self._writer.csv if form == "csv" else _parquet, table, path
        )
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(lambda _done: _remove(path))  # the thread still writes
            raise
        except BaseException:
            _remove(path)
            raise
        return Export(path, table.num_rows)

    def cancel(self, identifier: str) -> bool:
        if (running := self._running.get(identifier)) is None:
            return False
        running.cancel()
        return True

    async def close(self) -> None:
        """End all queries; no more are taken. Idempotent."""
        if self._closed:
            return
        self._closed = True
        runners = list(self._runners.values())
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._waiters, runner.close) for runner in runners))
        self._waiters.shutdown(wait=False)
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)

    def _folder(self) -> Path:
        """Where answers wait to be taken: for this user's eyes, which DuckDB's own files would not be."""
        if self._files is None:
            self._files = Path(tempfile.mkdtemp(prefix="headrace-answers-"))
        return self._files

    def _start(self, target: str, sql: str, identifier: str, rows_max: int | None) -> Running:
        if self._closed:
            raise QueryBusy("no query is taken any more: the engine ends")
        if identifier in self._running:
            raise UserError(f"a query {identifier} is under way already")
        runner = self._runner(target)
        try:
            running = runner.start(sql, identifier=identifier, rows_max=rows_max, truncate=rows_max is not None)
        except Busy as error:
            raise QueryBusy(error.message, hint=error.hint) from None
        self._running[identifier] = running
        return running

    async def _result(self, running: Running) -> pa.Table:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._waiters, running.result)
        except Cancelled as error:
            raise QueryCancelled(error.message, hint=error.hint) from None
        except Busy as error:
            raise QueryBusy(error.message, hint=error.hint) from None
        finally:
            running.cancel()  # whoever waited has gone, or there is nothing to cancel
            self._running.pop(running.id, None)

    def _runner(self, target: str) -> Runner:
        if target not in self._targets:
            valid = ", ".join(self._targets) or "none: no pipeline has a sink that SQL can be asked of"
            raise UserError(f"there is no target {target!r}", hint=f"valid are {valid}")
        shown, where = self._targets[target]
        if target not in self._runners:
            if shown.kind == "parquet":
                self._runners[target] = self._parquet_runner(where, target)
            else:
                self._runners[target] = self._database_runner(where)
        return self._runners[target]

    def _database_runner(self, path: Path) -> Runner:
        if path not in self._databases:
            raise ExternalError(f"{path} is not open in this engine", hint="its pipeline has ended, or not begun")
        return self._databases[path].lending.runner(
            queries_max=self._settings.queries_max,
            seconds_max=self._settings.seconds_max,
            rows_max=self._settings.rows_max,
        )

    @contextlib.contextmanager
    def _admitted(self, path: Path, pipeline: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """A runner is bounded for its sink; those over Parquet are bounded together."""
        if not self._room.acquire(timeout=self._settings.seconds_max):
            raise Busy(f"{self._settings.queries_max} queries run at a time, and none of them ended in time")
        try:
            with open_files(path, pipeline) as connection:
                yield connection
        finally:
            self._room.release()

    def _parquet_runner(self, path: Path, pipeline: str) -> Runner:
        return Runner(
            lambda: self._admitted(path, pipeline),
            queries_max=self._settings.queries_max,
            seconds_max=self._settings.seconds_max,
            rows_max=self._settings.rows_max,
        )


def _targets(pipelines: Mapping[str, PipelineConfig]) -> dict[str, tuple[SqlTarget, Path]]:
    """By name: what is shown, and where it is. Files are called by their names, directories by their pipelines."""
    found: dict[str, tuple[SqlTarget, Path]] = {}
    files: dict[tuple[str, Path], list[str]] = {}
    for name, pipeline in pipelines.items():
        match pipeline.sink:
            case ParquetSinkConfig(path=path):
                found[name] = (_shown(name, "parquet", [name]), path.resolve())
            case DuckDBSinkConfig(path=path, table=table):
                files.setdefault(("duckdb", path.resolve()), []).append(table)
            case DuckLakeSinkConfig(path=path, table=table):
                files.setdefault(("ducklake", path.resolve()), []).append(table)
    for (kind, path), tables in files.items():
        name = path.name if path.name not in found else str(path)
        found[name] = (_shown(name, kind, tables), path)
    return found


def _shown(name: str, kind: str, tables: list[str]) -> SqlTarget:
    table = ".".join(_word(part) for part in _parts(kind, tables[0]))
    example = f"SELECT * FROM {table} LIMIT 100"  # noqa: S608 - shown to users, who may run anything that reads
    assert kind in ("duckdb", "parquet", "ducklake")
    return SqlTarget(name, kind, tuple(tables), example)  # type: ignore[arg-type]


def _parts(kind: str, table: str) -> list[str]:
    return [table] if kind == "parquet" else table.split(".", 1)


@contextlib.contextmanager
def open_files(path: Path, pipeline: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """The committed files of a Parquet sink as a view with the pipeline's name, and as `VIEW`. Blocks.

    Raises UserError and ExternalError, the latter for a sink that nothing was committed to.
    """
    if not path.is_dir():
        raise ExternalError(f"{pipeline} has written nothing yet", hint="ask again in a moment")
    files = [str(file) for file in live_files(path.resolve())]
    if not files:
        with open_directory(path) as empty:
            if empty is None:
                raise ExternalError(f"{pipeline} has written nothing yet", hint="ask again in a moment")
            yield empty
        return
    hive = any("=" in file.removeprefix(str(path.resolve())) for file in files)
    listed = ", ".join(map(_text, files))
    with (
        tempfile.TemporaryDirectory(prefix="headrace-page-") as spill,
        duckdb.connect(config=_limits()) as connection,
    ):
        try:
            connection.execute(f"SET allowed_paths = [{listed}]")
            for name in (pipeline, VIEW):
                connection.execute(
                    f"CREATE OR REPLACE VIEW {_quoted(name)} AS FROM read_parquet([{listed}],"
                    f" union_by_name = true, hive_partitioning = {hive})"
                )
            _confine(connection, Path(spill))
        except duckdb.Error as error:
            text = str(error).strip().splitlines()[0]
            raise UserError(f"the Parquet files of {path} cannot be read together: {text}") from None
        yield connection
        connection.close()  # before its directory goes


class Writer:
    """Writes answers as DuckDB has them as text: one instance in memory, without files, for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instance: duckdb.DuckDBPyConnection | None = None

    def texts(self, table: pa.Table) -> tuple[list[Column], list[tuple[str | None, ...]]]:
        """The columns, and each value as text, of long ones a little more than is shown."""
        with self._answer(table) as (connection, types):
            columns = [Column(name, kind) for name, kind in zip(table.schema.names, types, strict=True)]
            # Cut here: a cell may have hundreds of megabytes, and as much again for each copy.
            wanted = ", ".join(f"left(c{index}::VARCHAR, {_CELL_CHARACTERS})" for index in range(len(columns)))
            return columns, connection.execute(f"SELECT {wanted} FROM answer").fetchall()  # noqa: S608 - own names

    def csv(self, table: pa.Table, path: Path) -> None:
        """A file with a line of names and one for each row; NULL is nothing, and an empty text is quoted."""
        with self._answer(table) as (connection, _types):
            own = [_quoted(name) for name in _unique(table.schema.names)]
            names = ", ".join(f"c{index} AS {name}" for index, name in enumerate(own))
            chosen = f"SELECT {names} FROM answer"  # noqa: S608 - quoted names
            connection.execute(f"COPY ({chosen}) TO {_text(str(path))} (FORMAT csv, HEADER)")

    @contextlib.contextmanager
    def _answer(self, table: pa.Table) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[str]]]:
        with self._lock:
            if self._instance is None:
                self._instance = duckdb.connect(config=_limits())
                self._instance.execute("SET GLOBAL TimeZone = 'UTC'")
            cursor = self._instance.cursor()
        with cursor:
            # Names may repeat in an answer, and do not in a table.
            cursor.execute("SET TimeZone = 'UTC'")
            cursor.register("answer", table.rename_columns([f"c{index}" for index in range(table.num_columns)]))
            types = [str(kind) for kind in cursor.sql("FROM answer").types]
            yield cursor, types


def _parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table.rename_columns(_unique(table.schema.names)), path, compression="zstd")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _limits() -> dict[str, str | bool | int | float | list[str]]:
    return {
        "memory_limit": f"{MEMORY_BYTES_MAX}B",
        "threads": 1,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def _confine(connection: duckdb.DuckDBPyConnection, spill: Path) -> None:
    connection.execute(f"SET temp_directory = {_text(str(spill))}")
    connection.execute(f"SET max_temp_directory_size = '{SPILL_BYTES_MAX}B'")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _unique(names: list[str]) -> list[str]:
    seen: set[str] = set()
    found = []
    for name in names:
        own, count = name, 1
        while own.lower() in seen:
            own = f"{name}_{count}"
            count += 1
        seen.add(own.lower())
        found.append(own)
    return found


def _word(name: str) -> str:
    """A name as it is written in SQL, in quotes where it needs them."""
    return name if name.isascii() and name.isidentifier() and name.islower() else _quoted(name)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
