"""The kind `arrow`: a function of a record batch of decoded columns, which gives columns.

Not here: decoding values, and fitting columns to a schema (the engine does both).
"""

from __future__ import annotations

import pyarrow as pa

from engine.errors import HandlerError
from engine.protocols import Invocation, Result
from functions.kinds.calling import Caller
from functions.kinds.loader import Function
from functions.kinds.rows import check_result, shown


class ArrowHandler:
    """An `engine.protocols.Handler` over ``function(batch, context)``.

    ``batch`` is a pyarrow.RecordBatch with a row for each record that could be decoded. The function gives a
    record batch, a table, None, or a Result.
    """

    wants_columns = True

    def __init__(self, function: Function, *, name: str, timeout_seconds: float, concurrency_max: int) -> None:
        self._label = f"{name} (kind arrow)"
        self._caller = Caller(function, name=name, timeout_seconds=timeout_seconds, concurrency_max=concurrency_max)

    async def open(self) -> None:
        """Nothing to do: the function is there since the handler was made."""

    async def invoke(self, invocation: Invocation) -> Result:
        assert invocation.columns is not None, "this kind wants columns"
        return await self._caller.call(
            lambda: (invocation.columns, invocation.context), lambda given: read_columns(self._label, given)
        )

    async def close(self) -> None:
        await self._caller.close()


def read_columns(label: str, given: object) -> Result:
    """The result that a function's return value stands for. Raises HandlerError."""
    if given is None:
        return Result()
    if isinstance(given, Result):
        result = check_result(label, given)
    elif isinstance(given, pa.RecordBatch):
        result = Result(pa.Table.from_batches([given]))
    elif isinstance(given, pa.Table):
        result = Result(given)
    else:
        raise HandlerError(
            f"{label} gave {shown(given)}; it has to give a pyarrow RecordBatch, a Table, None, or an "
            "engine.protocols.Result",
            hint="dicts are for kind rows; pyarrow.Table.from_pylist and from_pandas make tables",
        )
    if isinstance(result.rows, pa.Table):
        check_names(label, result.rows)
    return result


def check_names(label: str, table: pa.Table) -> None:
    """A sink cannot keep two columns of one name apart. Raises HandlerError."""
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HandlerError(f"{label} gave more than one column named {', '.join(map(repr, twice))}")
