"""Asking a DuckDB file that another process serves by the Quack protocol: one question, its rows in a local table.

Not here: the server (`connectors.duckdb.serving`), where it is, and how an answer is laid out.
"""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from connectors.analysis.extensions import load
from engine.errors import ExternalError, HeadraceError, UserError

#: The table that `fetch` makes.
ANSWER = "headrace_answer"

#: What a server's message begins with where the same question may be answered later.
LATER = "Not now: "

_CONTEXT = re.compile(r"\n\s*\nLINE \d+: .*\Z", re.DOTALL)
_KIND = re.compile(r"^(?:(?:Invalid Input|IO|HTTP) Error: )+")


def fetch(connection: duckdb.DuckDBPyConnection, uri: str, token: str, sql: str, *, database: Path) -> None:
    """Make the table `ANSWER` of what the server at ``uri`` answers. ``database`` names it in messages.

    Raises UserError for the question, and ExternalError for a server that is away, busy, or another one.
    """
    load(connection, "httpfs", "quack")
    try:
        connection.execute(f"CREATE TEMP TABLE {ANSWER} AS FROM quack_query(?, ?, token => ?)", [uri, sql, token])
    except duckdb.Error as error:
        raise _failure(error, database) from None


def _failure(error: duckdb.Error, database: Path) -> HeadraceError:
    # DuckDB shows the statement as well, which is not the one that was asked.
    text = _KIND.sub("", _CONTEXT.sub("", str(error))).strip()
    if "Could not connect" in text or "Failed to send message" in text:
        return ExternalError(
            f"DuckDB file {database} is held by an engine that does not answer",
            hint="it may be starting, ending, or overloaded; ask again in a moment",
        )
    if text == "Authentication failed":
        return ExternalError(
            f"the engine that serves DuckDB file {database} takes another token than that of {database}.quack.json",
            hint="ask again in a moment; if it stays so, another process listens at that address",
        )
    if text == "Authorization failed":
        return UserError("INSERT is no question: a query only reads")
    if text.startswith(LATER):
        return ExternalError(text.removeprefix(LATER))
    return UserError(text)
