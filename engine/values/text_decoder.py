"""`TextDecoder`: records whose values are text, such as log lines. Not here: what a line means (functions)."""

from __future__ import annotations

import pyarrow as pa

from engine.batch import Batch
from engine.values.decoder import Decoded, OnNullValue, null_rows, settle, values_of
from engine.values.schema import whole
from engine.values.trace import trace_arrays

_LINE = pa.field("line", pa.string(), nullable=False)


class TextDecoder:
    """One VARCHAR column ``line``: the value as it is, line ends and byte order marks included.

    An empty value is an empty line. Invalid UTF-8 and a null value are faults.
    """

    def __init__(
        self,
        *,
        trace: bool = True,
        on_null_value: OnNullValue = "fail",
    ) -> None:
        self._trace = trace
        self._on_null_value = on_null_value
        self._schema = whole([_LINE], trace=trace)

    @property
    def schema(self) -> pa.Schema:
        """``line``, then the trace columns where those are on."""
        return self._schema

    def decode(self, batch: Batch) -> Decoded:
        """Decode every record of the batch; a record that is refused costs itself alone."""
        values = values_of(batch)
        nulls = null_rows(values)
        wrong: dict[int, str] = {}
        filled = values.fill_null(b"") if nulls else values
        try:
            lines = filled.cast(pa.string())
        except pa.ArrowInvalid:
            lines = _lines(filled, wrong)
        columns = pa.RecordBatch.from_arrays(
            [lines, *(trace_arrays(batch) if self._trace else [])], schema=self._schema
        )
        return settle(batch, columns, wrong, nulls, self._on_null_value)


def _lines(values: pa.BinaryArray, wrong: dict[int, str]) -> pa.StringArray:
    """Value by value: the text, or an empty one and a reason in ``wrong``."""
    lines = []
    for row, value in enumerate(values.to_pylist()):
        try:
            lines.append(value.decode())
        except UnicodeDecodeError as broken:
            lines.append("")
            byte = f"byte {broken.start:,} (0x{value[broken.start]:02x})"
            wrong.setdefault(row, f"invalid UTF-8 at {byte}: {broken.reason}")
    return pa.array(lines, pa.string())
