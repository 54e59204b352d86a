"""`JsonDecoder`: records whose values are JSON objects, one column for each declared member.

`ReferenceJsonDecoder` does the same in plain Python, one record at a time. It says what is right, and decodes
what the compiled kernel (`engine.values.fast`) leaves.
Not here: what a proper JSON value is (`engine.values.documents`), and which value a column type takes
(`engine.values.coercion`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.batch import Batch
from engine.protocols import Fault
from engine.values.coercion import column
from engine.values.decoder import NULL_VALUE, Decoded, OnNullValue, settle, values_of
from engine.values.documents import exact, has_float, may_be_rounded, parse, to_text
from engine.values.reasons import bounded
from engine.values.schema import REST, declared, whole
from engine.values.trace import trace_arrays

#: Parsed values alive at once (as many as the processor caches hold): rows and, on average, bytes of JSON.
_SLICE_ROWS_MAX = 1_024
_SLICE_BYTES_MAX = 16 * 1024 * 1024


class ReferenceJsonDecoder:
    """Decodes JSON objects to the given columns; ``docs/values.md`` says which value becomes what.

    ``columns`` maps a member's name to a column type, or is the schema of such columns (as inferred, or as
    stored from `schema`). Members without a column are kept in ``_rest`` when ``rest`` is on and ignored
    otherwise. Raises ValueError for columns that cannot be (see `engine.values.schema.declared`).
    """

    def __init__(
        self,
        columns: Mapping[str, str] | pa.Schema,
        *,
        rest: bool,
        trace: bool = True,
        on_null_value: OnNullValue = "fail",
    ) -> None:
        fields = declared(columns)
        self._columns = [column(field) for field in fields]
        self._rest = rest
        self._trace = trace
        self._on_null_value = on_null_value
        self._names = [field.name for field in fields]
        self._known = frozenset(self._names)
        self._placeholder: dict[str, Any] = dict.fromkeys(self._names)
        self._fields = [*fields, *([REST] if rest else [])]
        self._schema = whole(self._fields, trace=trace)

    @property
    def schema(self) -> pa.Schema:
        """The declared columns in order, ``_rest``, ``_partition``, ``_offset``, ``_timestamp``."""
        return self._schema

    def decode(self, batch: Batch) -> Decoded:
        """Decode every record of the batch; a record that is refused costs itself alone."""
        joined, wrong, nulls = self.arrays(values_of(batch))
        if self._trace:
            joined += trace_arrays(batch)
        columns = pa.RecordBatch.from_arrays(joined, schema=self._schema)
        return settle(batch, columns, wrong, nulls, self._on_null_value)

    def arrays(self, values: pa.BinaryArray) -> tuple[list[pa.Array], dict[int, str], list[int]]:
        """Arrays of the declared columns and ``_rest`` with a row for each value, reasons, rows that are null."""
        count = len(values)
        rows = max(1, min(_SLICE_ROWS_MAX, _SLICE_BYTES_MAX * count // max(1, values.nbytes)))
        wrong: dict[int, str] = {}
        nulls: list[int] = []
        parts = []
        for start in range(0, count, rows) or [0]:
            arrays, refused, missing = self._slice(values.slice(start, rows))
            wrong.update({start + row: reason for row, reason in refused.items()})
            nulls += [start + row for row in missing]
            parts.append(arrays)
        joined = [pa.concat_arrays(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True)]
        return joined, wrong, nulls

    def _slice(self, values: pa.BinaryArray) -> tuple[list[pa.Array], dict[int, str], list[int]]:
        """As `arrays`, of values that are parsed at once."""
        documents = parse(values, self._placeholder)
        docs, raws, wrong = documents.docs, documents.raws, documents.wrong
        arrays = []
        for name, one in zip(self._names, self._columns, strict=True):
            array, refused = one.array([doc.get(name) for doc in docs], raws)
            arrays.append(array)
            for row, reason in refused.items():
                wrong.setdefault(row, reason)
        if self._rest:
            arrays.append(self._rest_array(docs, raws))
        return arrays, wrong, documents.nulls

    def _rest_array(self, docs: Sequence[dict[str, Any]], raws: Sequence[bytes]) -> pa.Array:
        """JSON text of the members that no column takes, worked out once for each set of names."""
        known = self._known
        shapes = list(map(tuple, docs))
        unknown = {shape: [name for name in shape if name not in known] for shape in set(shapes)}
        texts: list[str | None] = [None] * len(docs)
        if any(unknown.values()):
            for row, shape in enumerate(shapes):
                if names := unknown[shape]:
                    doc = docs[row]
                    members = {name: doc[name] for name in names}
                    if has_float(members) and may_be_rounded(raws[row]):
                        doc = exact(raws[row])
                        members = {name: doc[name] for name in names}
                    texts[row] = to_text(members)
        return pa.array(texts, REST.type)


class JsonDecoder:
    """As `ReferenceJsonDecoder`, which says what it takes, raises and gives; many times as fast.

    A compiled kernel decodes what it knows to be right, the reference the rest: escaped names, deep nesting,
    numbers spelt unusually, and whatever is wrong. Any number of threads may use one decoder.
    """

    def __init__(
        self,
        columns: Mapping[str, str] | pa.Schema,
        *,
        rest: bool,
        trace: bool = True,
        on_null_value: OnNullValue = "fail",
    ) -> None:
        # Loading the compiler costs a program that decodes nothing a quarter of a second.
        from engine.values.fast.decoder import Kernel

        self._reference = ReferenceJsonDecoder(columns, rest=rest, trace=trace, on_null_value=on_null_value)
        self._kernel = Kernel(declared(columns), rest=rest)
        self._trace = trace
        self._on_null_value = on_null_value

    @property
    def schema(self) -> pa.Schema:
        """The declared columns in order, ``_rest``, ``_partition``, ``_offset``, ``_timestamp``."""
        return self._reference.schema

    def decode(self, batch: Batch) -> Decoded:
        """Decode every record of the batch; a record that is refused costs itself alone."""
        values = values_of(batch)
        if len(values) == 0:
            return self._reference.decode(batch)
        parsed = self._kernel.parse(values)
        slow: list[pa.Array] = []
        reasons: dict[int, str] = {}
        if len(parsed.slow):
            slow, wrong, nulls = self._reference.arrays(values.take(pa.array(parsed.slow)))
            assert not nulls, "a null value is never left to the reference"
            reasons = {int(parsed.slow[at]): reason for at, reason in wrong.items()}
        if self._on_null_value == "fail":
            reasons.update(dict.fromkeys(parsed.nulls.tolist(), NULL_VALUE))
        keep = None
        if reasons or len(parsed.nulls):
            keep = np.ones(len(values), np.bool_)
            keep[parsed.nulls] = False
            keep[list(reasons)] = False
        arrays = self._kernel.columns(parsed, slow, keep)
        if self._trace:
            traces = trace_arrays(batch)
            arrays += traces if keep is None else [array.filter(pa.array(keep)) for array in traces]
        bad = sorted(reasons)
        offsets = batch.records.column("offset").to_numpy()[bad].tolist() if bad else []
        faults = tuple(Fault(offset, bounded(reasons[row])) for offset, row in zip(offsets, bad, strict=True))
        kept = len(values) if keep is None else int(np.count_nonzero(keep))
        columns = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        assert columns.num_rows == kept, f"{columns.num_rows:,} rows of {kept:,} records"
        return Decoded(columns, faults, len(values) - kept - len(faults))
