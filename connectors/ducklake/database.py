"""One lake, owned by this process: its catalogue is a DuckDB file, so all of `connectors.duckdb.Database` holds.

The instance of DuckDB is in memory; the lake is attached to it as ``lake``, the current catalogue of every
connection that is lent. Beside the catalogue there are data files, which only this process's transactions write.

Not here: what a commit writes (`connectors.duckdb.commit`, `ledger`) and headrace's tables (`catalog`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import duckdb

from connectors.analysis.lending import Lending
from connectors.duckdb.database import SPILL_BYTES_MAX, Database, _Locked
from connectors.duckdb.serving import Server, ServingSettings
from connectors.ducklake import catalog, place
from connectors.ducklake.attaching import LAKE, METADATA, Held, confine, instance, leave, literal, use
from connectors.ducklake.ledger import LakeLedger
from engine.errors import SinkUnavailable
from engine.protocols import Clock

_log = logging.getLogger(__name__)


class LakeLending(Lending):
    """Cursors whose current catalogue is the lake."""

    @contextlib.contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with super().cursor() as cursor:
            cursor.execute(f"USE {LAKE}")
            yield cursor


class LakeDatabase(Database):
    """A lake: its catalogue at ``path``, its files in ``data_path`` (``PATH.files`` when left out).

    The other parameters are those of `Database`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        data_path: str | os.PathLike[str] | None = None,
        *,
        lock_wait_seconds_max: float = -1,
        memory_limit_bytes: int | None = None,
        threads: int | None = None,
        clock: Clock | None = None,
        confined: bool = False,
        serving: ServingSettings | None = None,
        spill_bytes_max: int = SPILL_BYTES_MAX,
    ) -> None:
        super().__init__(
            path,
            lock_wait_seconds_max=lock_wait_seconds_max,
            memory_limit_bytes=memory_limit_bytes,
            threads=threads,
            clock=clock,
            confined=confined or serving is not None,
            spill_bytes_max=spill_bytes_max,
        )
        self.lending = LakeLending(str(self.path))
        self._server = None if serving is None else Server(self.path, serving, self.lending)
        if data_path is None:
            data_path = self.path.with_name(self.path.name + ".files")
        self.data_path = Path(data_path).resolve()
        self.ledger = LakeLedger(self.data_path)

    # What follows runs in the writing thread.

    def _connect(self) -> None:
        connection = instance(self.path, self._settings)
        try:
            self._make(connection)
            use(connection, self.path, self._options(create=False))
            catalog.prepare(connection)
            self._sweep(connection)
            self._lend(connection)
        except Held as held:
            self._let_go(connection)
            raise _Locked(str(held)) from held
        except duckdb.Error as error:
            self._let_go(connection)
            raise self._unavailable(error) from error
        except BaseException:
            self._let_go(connection)
            raise
        self._connection = connection
        # Whoever still makes such a file is too late: the catalogue is there.
        for leftover in self.path.parent.glob(f".{self.path.name}.*.creating*"):
            leftover.unlink(missing_ok=True)

    def _options(self, *, create: bool) -> str:
        return f"DATA_PATH {literal(str(self.data_path))}, CREATE_IF_NOT_EXISTS {str(create).lower()}"

    def _make(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make directories and catalogue where they are missing. Raises SinkUnavailable where they cannot be."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            place.make(self.data_path)
            if not self.path.exists():
                self._draft(connection)
        except OSError as error:
            raise SinkUnavailable(
                f"DuckLake at {self.path}, with its files in {self.data_path}, cannot be made: {error}",
                hint="Give the sink a path and a data_path that can be written.",
            ) from error

    def _draft(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the catalogue whole and give it its name in one step: one torn by a kill would never open again."""
        draft = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.creating")
        place.claim(self.data_path, self.path)
        try:
            use(connection, draft, self._options(create=True))
            catalog.prepare(connection)
            connection.execute(f"CHECKPOINT {METADATA}")
            leave(connection)
            # FileExistsError, FileNotFoundError: another process made it first and cleaned up.
            os.link(draft, self.path)
        except (FileExistsError, FileNotFoundError):
            if not self.path.exists():
                raise
        finally:
            for leftover in (draft, draft.with_name(draft.name + ".wal")):
                leftover.unlink(missing_ok=True)
        place.flush(self.path.parent)

    def _sweep(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Remove data files of transactions that were cut off: nobody else can have one under way."""
        if not place.is_claimed(self.data_path, self.path):
            return
        try:
            found = connection.execute(
                f"CALL ducklake_delete_orphaned_files('{LAKE}', cleanup_all => true)"
            ).fetchall()
        except duckdb.Error as error:
            _log.warning("%s: what was cut off stays in %s: %s", self.path, self.data_path, error)
            return
        if found:
            _log.info("%s: removed %d data files that no snapshot names", self.path, len(found))

    def _lend(self, connection: duckdb.DuckDBPyConnection) -> None:
        served = self._server is not None and self._server.prepare(connection)
        if self._confined:
            spill = self.path.with_name(self.path.name + ".tmp")
            confine(connection, [self.path.parent, self.data_path, spill], self._spill_bytes_max)
        self.lending.opened(connection)
        if served:
            assert self._server is not None
            self._server.start(connection)

    def _disconnect(self) -> None:
        if self._connection is not None:
            # A CHECKPOINT of a lake would merge, rewrite and expire; that of its catalogue ends the WAL.
            with suppress(duckdb.Error):
                self._connection.execute(f"USE {METADATA}")
        super()._disconnect()

    def _let_go(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._end_readers(connection)
        with suppress(duckdb.Error):
            leave(connection)
        super()._let_go(connection)
