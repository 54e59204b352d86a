"""The kind `rows`: a function of decoded records as dicts, which gives rows as dicts.

Not here: decoding values, and fitting rows to a schema (the engine does both).
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import orjson
import pyarrow as pa

from engine.errors import HandlerError
from engine.protocols import Invocation, Result
from engine.values.types import TYPE_KEY
from functions.kinds.calling import Caller
from functions.kinds.loader import Function

_LONG_NUMBER = re.compile(r"\d{19}")

_ALLOWED = "an iterable of dicts, None, or an engine.protocols.Result"


class RowsHandler:
    """An `engine.protocols.Handler` over ``function(rows, context)``.

    ``rows`` is a list with a dict for each record that could be decoded. The function gives an iterable of
    dicts (a generator's body runs before the invocation's deadline too), None, or a Result.
    """

    wants_columns = True

    def __init__(self, function: Function, *, name: str, timeout_seconds: float, concurrency_max: int) -> None:
        self._label = f"{name} (kind rows)"
        self._caller = Caller(function, name=name, timeout_seconds=timeout_seconds, concurrency_max=concurrency_max)

    async def open(self) -> None:
        """Nothing to do: the function is there since the handler was made."""

    async def invoke(self, invocation: Invocation) -> Result:
        assert invocation.columns is not None, "this kind wants columns"
        columns = invocation.columns
        return await self._caller.call(
            lambda: (as_dicts(columns), invocation.context), lambda given: read_rows(self._label, given)
        )

    async def close(self) -> None:
        await self._caller.close()


def as_dicts(columns: pa.RecordBatch) -> list[dict[str, object]]:
    """The rows of a record batch as Python objects; JSON columns (and lists of JSON) hold what their text says."""
    rows: list[dict[str, object]] = columns.to_pylist()
    for field in columns.schema:
        if (field.metadata or {}).get(TYPE_KEY, b"").startswith(b"JSON"):
            name = field.name
            for row in rows:
                row[name] = _parsed(row[name])
    return rows


def _parsed(value: object) -> object:
    if isinstance(value, str):
        # orjson makes doubles of whole numbers beyond 64 bits
        return json.loads(value) if _LONG_NUMBER.search(value) else orjson.loads(value)
    if isinstance(value, list):
        return [_parsed(each) for each in value]
    return value


def read_rows(label: str, given: object) -> Result:
    """The result that a function's return value stands for. Raises HandlerError."""
    if given is None:
        return Result()
    if isinstance(given, Result):
        return check_result(label, given)
    if isinstance(given, Mapping | str | bytes | pa.Table | pa.RecordBatch) or not isinstance(given, Iterable):
        hint = "put the dict into a list" if isinstance(given, Mapping) else f"return {_ALLOWED}"
        raise HandlerError(f"{label} gave {shown(given)}; it has to give {_ALLOWED}", hint=hint)
    return Result(rows=check_rows(label, given if isinstance(given, list) else list(given)))


def check_result(label: str, result: Result) -> Result:
    """A Result that a function made itself, looked through as far as a plain return value would be."""
    if result.rows is None or isinstance(result.rows, pa.Table):
        return result
    if isinstance(result.rows, pa.RecordBatch):
        return replace(result, rows=pa.Table.from_batches([result.rows]))
    if isinstance(result.rows, Mapping | str | bytes) or not isinstance(result.rows, Iterable):
        raise HandlerError(f"{label} gave a Result whose rows are {shown(result.rows)}")
    return replace(result, rows=check_rows(label, list(result.rows)))


def check_rows(label: str, rows: list[object]) -> Sequence[Mapping[str, object]]:
    """``rows`` if each is a mapping with text keys; else HandlerError that names the first that is not."""
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise HandlerError(f"{label}: row {index} is {shown(row)}; each row has to be a dict")
        for name in row:
            if not isinstance(name, str):
                raise HandlerError(f"{label}: row {index} has the key {shown(name)}; keys have to be text")
    return rows  # type: ignore[return-value]  # each has been looked at


def shown(value: object) -> str:
    """A value for a message: its type and the start of its text."""
    if value is None:
        return "None"
    article = "an" if type(value).__name__[:1].lower() in "aeiou" else "a"
    if isinstance(value, pa.Table | pa.RecordBatch):
        return f"{article} pyarrow {type(value).__name__}"
    return f"{article} {type(value).__name__}: {_SHORT.repr(value)}"


_SHORT = reprlib.Repr()  # takes no arguments before Python 3.12
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxdict = 3
_SHORT.maxlevel = 2
