"""A DuckDB file that the engine writes, served read only by DuckDB's Quack protocol on loopback.

The protocol's server asks a function before it runs a client's text, and runs what that gives instead. The function
here checks the text, runs it itself on a cursor with a deadline, keeps the rows in a table of a database in memory,
and gives ``FROM`` that table: so the server itself never runs what a client wrote, and whatever runs can be ended.

Nothing is given for texts that begin with INSERT: the server also asks with such a text, made up, whether rows may
be appended, and takes any text at all for a yes.

Not here: what may be asked (`connectors.analysis.check`), and the writer (`database`).
"""

# ruff: noqa: S608 - only names of this module and texts that were checked are put into statements.

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import duckdb
from duckdb.func import FunctionNullHandling

from connectors.analysis.admission import Admission
from connectors.analysis.check import Question, check, mistake
from connectors.analysis.client import LATER
from connectors.analysis.execution import Execution
from connectors.analysis.extensions import load
from connectors.analysis.lending import Lending
from engine.errors import ExternalError, HeadraceError, UserError

_log = logging.getLogger(__name__)

TOKEN_VARIABLE = "HEADRACE_QUERY_TOKEN"  # noqa: S105 - the name of a variable

#: The database in memory that results are kept in, and the function that the server asks.
RESULTS = "headrace_results"
_FUNCTION = "headrace_authorize"

#: A result is read from right after it was named; what is being read stays there until the end of the reading.
RESULT_SECONDS = 5.0
RESULTS_MAX = 256

PORT_TRIES = 8
WAITING_SHARE = 8
MESSAGE_CHARS_MAX = 1_000

_INSERT = re.compile(r"\W*INSERT\b", re.IGNORECASE)

# What a client asks when it attaches, and what people ask first: they are to see the file alone, and not what else
# is open beside it.
_CATALOG = {
    "SELECT catalog_name, schema_name FROM information_schema.schemata "
    "WHERE catalog_name NOT IN ('system', 'temp') ORDER BY ALL": (
        "SELECT catalog_name, schema_name FROM information_schema.schemata"
        " WHERE catalog_name = current_database() ORDER BY ALL"
    ),
    "SELECT schema_name, sql, 'table' FROM duckdb_tables() "
    "UNION ALL SELECT schema_name, view_name, 'view' FROM duckdb_views()": (
        "SELECT schema_name, sql, 'table' FROM duckdb_tables() WHERE database_name = current_database()"
        " UNION ALL SELECT schema_name, view_name, 'view' FROM duckdb_views()"
        " WHERE database_name = current_database() AND NOT internal"
    ),
    "SHOW ALL TABLES": "FROM (SHOW ALL TABLES) WHERE database = current_database()",
}


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Where, for whom and how much. ``port`` 0 is any free one; a ``token`` is made where none is given."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    queries_max: int = 4
    seconds_max: float = 30.0
    rows_max: int = 5_000_000


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is served: the content of `address_path`. It holds the token, and is for its owner's eyes."""

    uri: str
    token: str
    pid: int
    database: str


def address_path(database: Path) -> Path:
    """The file beside a DuckDB file that says where it is served."""
    return database.with_name(database.name + ".quack.json")


def read_address(database: Path) -> Address | None:
    """Where a file is served, as its engine has left word; None where there is none, or one that cannot be read."""
    try:
        content = address_path(database).read_bytes()[:65_536]
        known = json.loads(content)
        return Address(str(known["uri"]), str(known["token"]), int(known["pid"]), str(known["database"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Server:
    """Serves one file. `prepare`, `start` and `stop` are the writing thread's; clients' texts come in others.

    The address is the same each time that the file is opened again. A server that cannot be started is a warning:
    the engine's work goes on without it.
    """

    def __init__(self, path: Path, settings: ServingSettings, lending: Lending) -> None:
        self.path = path
        self.token = settings.token or os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(24)
        self.uri: str | None = None  #: while it is served
        self._settings = settings
        self._lending = lending
        self._admission = Admission(settings.queries_max, settings.queries_max * WAITING_SHARE)
        self._port = settings.port
        self._changed = threading.Condition()
        self._results: deque[tuple[float, str]] = deque()  # when each was made, and its name
        self._serving = False
        self._sweeper: threading.Thread | None = None
        lending.relieved_by(self._drop_all)

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Everything that has to be opened, before the connection is confined. False where it cannot be."""
        try:
            load(connection, "httpfs", "quack")
            connection.execute(f"ATTACH ':memory:' AS {RESULTS}")
            connection.create_function(
                _FUNCTION,
                self._answer,
                ["VARCHAR", "VARCHAR"],
                "VARCHAR",
                null_handling=FunctionNullHandling.SPECIAL,
                side_effects=True,
            )
            connection.execute(f"SET GLOBAL quack_authorization_function = '{_FUNCTION}'")
        except (duckdb.Error, ExternalError) as error:
            _log.warning("%s: not served to analysts: %s", self.path, error)
            return False
        return True

    def start(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Serve; ``connection`` is that of the writer."""
        self._serving = True
        try:
            self.uri = self._listen(connection)
            self._write_address()
        except (duckdb.Error, OSError, ExternalError) as error:
            _log.warning("%s: not served to analysts: %s", self.path, self._without_token(str(error)))
            self.stop(connection)
            return
        self._sweeper = threading.Thread(target=self._sweep, name="headrace-query-results", daemon=True)
        self._sweeper.start()
        _log.info("%s: served read only at %s", self.path, self.uri)

    def stop(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Serve no more; idempotent. Queries under way are ended by the lending's `call_back`."""
        with self._changed:
            self._serving = False
            self._results.clear()
            self._changed.notify_all()
        if self._sweeper is not None:
            self._sweeper.join()
            self._sweeper = None
        uri, self.uri = self.uri, None
        if uri is None:
            return
        self._remove_address()
        with contextlib.suppress(duckdb.Error):
            connection.execute("CALL quack_stop(?)", [uri])

    def _listen(self, connection: duckdb.DuckDBPyConnection) -> str:
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        fault: Exception | None = None
        for _ in range(PORT_TRIES):
            try:
                port = self._port or _free_port(self._settings.host)
                # The server shares its port with whoever else shares it, so see first that nobody has it.
                _require_free(self._settings.host, port)
                uri = f"quack:{host}:{port}"
                connection.execute("CALL quack_serve(?, token => ?)", [uri, self.token])
            except (duckdb.Error, OSError) as error:
                fault = error
                if self._settings.port:
                    break
                self._port = 0
            else:
                self._port = port
                return uri
        raise ExternalError(f"no port at {self._settings.host}: {fault}")

    def _write_address(self) -> None:
        assert self.uri is not None
        path = address_path(self.path)
        for leftover in path.parent.glob(f".{path.name}.*.draft"):  # of one that was killed; the file is ours now
            leftover.unlink(missing_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
        content = {"uri": self.uri, "token": self.token, "pid": os.getpid(), "database": str(self.path)}
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _remove_address(self) -> None:
        # The file is held until after this: nobody else has written its address in the meantime.
        with contextlib.suppress(OSError):
            address_path(self.path).unlink(missing_ok=True)

    def _without_token(self, text: str) -> str:
        return text.replace(self.token, "...")

    # What follows runs in the threads of the protocol's server.

    def _answer(self, session: str | None, text: str | None) -> str | None:
        """The text to run instead of a client's; None refuses without a word."""
        del session
        if text is None or _INSERT.match(text):
            return None
        try:
            return self._asked(text)
        except HeadraceError as error:
            later = LATER if isinstance(error, ExternalError) else ""
            hint = f" ({error.hint})" if error.hint else ""
            return _refusal(self._without_token(f"{later}{error.message}{hint}"))
        except Exception as error:
            _log.exception("%s: a query failed", self.path)
            return _refusal(f"the query failed: {type(error).__name__}")

    def _asked(self, text: str) -> str:
        deadline = time.monotonic() + self._settings.seconds_max
        with self._admission.admitted(deadline), self._lending.cursor() as cursor:
            own = _CATALOG.get(" ".join(text.split()))
            with Execution(cursor, deadline, self._settings.seconds_max, self._lending.executions) as execution:
                try:
                    question = check(cursor, text) if own is None else Question(own, explains=False)
                    name = self._kept(cursor, question)
                except duckdb.Error as error:
                    raise execution.error() or self._failure(error, text) from None
        return f"FROM {RESULTS}.main.{name}"

    def _kept(self, cursor: duckdb.DuckDBPyConnection, question: Question) -> str:
        """Run a question, and keep what it gives; the name of the table that has it."""
        name = f"r_{secrets.token_hex(16)}"
        rows_max = self._settings.rows_max
        if question.explains:
            rows = cursor.execute(question.sql).fetchall()
            cursor.execute(f"CREATE TABLE {RESULTS}.main.{name} (explain_key VARCHAR, explain_value VARCHAR)")
            self._remember(name)
            cursor.executemany(f"INSERT INTO {RESULTS}.main.{name} VALUES (?, ?)", rows)
            return name
        made = cursor.execute(
            f"CREATE TABLE {RESULTS}.main.{name} AS SELECT * FROM (\n{question.sql}\n) LIMIT {rows_max + 1}"
        ).fetchone()
        self._remember(name)
        if made is not None and made[0] > rows_max:
            raise UserError(
                f"the result has more than {rows_max:,} rows",
                hint="aggregate, or add LIMIT; over an attached database only NAME.query('SELECT ...') runs"
                " where the data is, all else fetches whole columns",
            )
        return name

    def _failure(self, error: duckdb.Error, text: str) -> HeadraceError:
        if isinstance(error, duckdb.OutOfMemoryException):
            return ExternalError(
                "the query needs more memory than there is",
                hint="ask for less at a time, ask a snapshot of the file, or raise engine.memory_bytes_max",
            )
        return mistake(error, text, lines_before=1)

    def _remember(self, name: str) -> None:
        with self._changed:
            self._results.append((time.monotonic(), name))
            self._changed.notify_all()

    def _sweep(self) -> None:
        """Drop results once they are old, or too many; ends with the serving."""
        while True:
            with self._changed:
                while self._serving and not self._results:
                    self._changed.wait()
                if not self._serving:
                    return
                made, _name = self._results[0]
                left = made + RESULT_SECONDS - time.monotonic()
                if left > 0 and len(self._results) <= RESULTS_MAX:
                    self._changed.wait(left)
                    continue
                _made, name = self._results.popleft()
            with contextlib.suppress(HeadraceError), self._lending.cursor() as cursor:
                self._drop(cursor, name)

    def _drop_all(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        """Whether there was any."""
        with self._changed:
            names = [name for _made, name in self._results]
            self._results.clear()
        for name in names:
            self._drop(cursor, name)
        return bool(names)

    def _drop(self, cursor: duckdb.DuckDBPyConnection, name: str) -> None:
        with contextlib.suppress(duckdb.Error):
            cursor.execute(f"DROP TABLE IF EXISTS {RESULTS}.main.{name}")


def _refusal(message: str) -> str:
    """A statement that fails with ``message``: the only way to tell a client why."""
    text = " ".join(message.replace("\0", "").split())[:MESSAGE_CHARS_MAX]
    return "SELECT error('" + text.replace("'", "''") + "')"


def _free_port(host: str) -> int:
    with _socket(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _require_free(host: str, port: int) -> None:
    with _socket(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
