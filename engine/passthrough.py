"""The handler of a pipeline without a function: the decoded records are the rows."""

from __future__ import annotations

import pyarrow as pa

from engine.protocols import Invocation, Result


class Passthrough:
    wants_columns = True

    async def invoke(self, invocation: Invocation) -> Result:
        assert invocation.columns is not None
        return Result(pa.Table.from_batches([invocation.columns]))

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return
