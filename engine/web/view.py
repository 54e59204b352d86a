"""What the page's server asks of a running engine. A protocol and plain data; nothing here does any work.

Everything is called in the server's own thread. What is no coroutine answers at once, from what is in memory;
coroutines run on the server's event loop, never on the engine's, and may take their time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from engine.errors import ExternalError, UserError
from engine.recent import LogEntry, RecentFailure
from engine.status import EngineStatus

ExportFormat = Literal["csv", "parquet"]


class QueryCancelled(UserError):
    """A query was cancelled by whoever asked it."""


class QueryBusy(ExternalError):
    """Too many queries run or wait already."""

    retry = True


@dataclass(frozen=True, slots=True)
class SqlTarget:
    """Something that SQL can be asked of. ``note`` says why it cannot be asked now, if so."""

    name: str
    kind: Literal["duckdb", "parquet", "ducklake"]
    tables: tuple[str, ...]
    example: str
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str  #: DuckDB's name of it


@dataclass(frozen=True, slots=True)
class SqlAnswer:
    """``rows`` are values as DuckDB writes them, None for NULL; ``truncated``: there are more rows."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | None]]
    truncated: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Export:
    """A whole result in a temporary file of its own, which whoever gets it removes."""

    path: Path
    rows: int


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """``sent`` now; ``before``: an earlier replay has sent it, so it was not sent again."""

    sent: bool
    before: bool
    topic: str


class EngineView(Protocol):
    """A running engine, as the page shows it."""

    def status(self) -> EngineStatus | None:
        """The latest moment; None before the first."""

    def waits(self) -> Mapping[str, float]:
        """Seconds that records of each pipeline may wait, by its settings, before they are committed."""

    def failures(self, pipeline: str | None, limit: int) -> Sequence[RecentFailure]:
        """The latest failed records, newest first; of all pipelines for None."""

    def failures_since(self, sequence: int, limit: int) -> Sequence[RecentFailure]:
        """The newest of those after a sequence number, oldest first."""

    def failures_last(self) -> int:
        """The newest one's sequence number."""

    def replay_refusal(self, pipeline: str) -> str | None:
        """What has to be set before failed records of the pipeline can be sent again; None: they can."""

    async def replay(self, pipeline: str, partition: int, offset: int) -> ReplayOutcome:
        """Send one failed record again, once however often it is asked. Raises HeadraceError."""

    def logs(self, pipeline: str | None, search: str | None, limit: int) -> Sequence[tuple[int, LogEntry]]:
        """Lines of functions with their sequence numbers, newest first; ``search`` ignores case."""

    def logs_since(self, sequence: int, limit: int) -> Sequence[tuple[int, LogEntry]]:
        """The newest lines after a sequence number, oldest first."""

    def logs_last(self) -> int:
        """The newest line's sequence number."""

    def pipeline_of(self, function: str) -> str | None:
        """The pipeline (the first, where there are several) that has a function of that name."""

    async def targets(self) -> Sequence[SqlTarget]:
        """What SQL can be asked of."""

    async def ask(self, target: str, sql: str, identifier: str, rows_max: int) -> SqlAnswer:
        """The first rows of an answer. Raises UserError, QueryCancelled, QueryBusy, ExternalError."""

    async def export(self, target: str, sql: str, identifier: str, form: ExportFormat) -> Export:
        """The whole answer as a file. Raises what `ask` does."""

    def cancel(self, identifier: str) -> bool:
        """End a query that is under way; whether there was one."""

    async def close(self) -> None:
        """End what is under way for the page: queries, replays."""
