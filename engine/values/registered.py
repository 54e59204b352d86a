"""`RegisteredDecoder`: records behind a registry's prefix, each read with the schema that wrote it, as columns.

Not here: the formats (`engine.values.avro`, `engine.values.protobuf`), and how a registry is reached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from engine.batch import Batch
from engine.values.decoder import Decoded, OnNullValue, settle, values_of
from engine.values.documents import to_text
from engine.values.reasons import excerpt
from engine.values.schema import REST, whole
from engine.values.trace import trace_arrays
from engine.values.typed import Source, TypedColumn, inferred, json_texts, typed_fields
from engine.values.wire import Prefixes, Registered, SchemaSource, UnusableSchema, prefixes

READERS_MAX = 1_000  #: schemas that are kept ready to read; beyond, the oldest is made ready again

#: Fields times records that are read at once.
CELLS_MAX = 200_000

Key = tuple[int, tuple[int, ...]]  #: a schema's id and, within it, the way to a message type


class Records(Protocol):
    """Values of one schema that were looked at; ``wrong`` has a reason for each that cannot be read."""

    wrong: dict[int, str]

    def column(self, name: str) -> tuple[Source, pa.Array, dict[int, str]]:
        """A field's values, with a row for each record, and what is wrong with some of them."""


class Reader(Protocol):
    """Reads values of one schema; ``fields`` are those of its outermost record."""

    fields: dict[str, Source]

    def open(self, values: pa.BinaryArray) -> Records: ...


class Format(Protocol):
    kind: str  #: what the registry calls it

    def sections(self, values: pa.BinaryArray, found: Prefixes) -> tuple[dict[Key, np.ndarray], dict[int, str]]:
        """Rows by what they are read with, and what is wrong with others."""

    def reader(self, schema: Registered, path: tuple[int, ...]) -> Reader:
        """Raises UnusableSchema."""


class Readers:
    """What reads each schema, made once. Any thread may ask."""

    def __init__(self, form: Format, source: SchemaSource) -> None:
        self.form = form
        self._source = source
        self._readers: OrderedDict[Key, Reader | str] = OrderedDict()

    def fetch(self, batch: Batch) -> None:
        """Have the schemas of a batch here. Blocks; raises what the source raises when it is away."""
        for key in self.form.sections(batch.records.column("value"), prefixes(batch.records.column("value")))[0]:
            self.reader(key)

    def is_ready(self, batch: Batch) -> bool:
        """Whether `reader` would answer at once for every record of the batch."""
        sections, _ = self.form.sections(values := batch.records.column("value"), prefixes(values))
        return all(key in self._readers for key in sections)

    def reader(self, key: Key) -> Reader | str:
        """What reads such records, or why nothing does. An id that is unknown is asked for again another time."""
        found = self._readers.get(key)
        if found is not None:
            return found
        schema_id, path = key
        try:
            schema = self._source.schema(schema_id)
            if schema is None:
                return f"the registry has no schema {schema_id}"
            if schema.kind != self.form.kind:
                raise UnusableSchema(f"it is {schema.kind} and not {self.form.kind}")
            made: Reader | str = self.form.reader(schema, path)
        except UnusableSchema as error:
            made = f"schema {schema_id} cannot be used: {error}"
        self._readers[key] = made
        while len(self._readers) > READERS_MAX:
            self._readers.popitem(last=False)
        return made

    def infer(self, batch: Batch) -> pa.Schema:
        """The columns of the first record's schema that can be used; none where no record has one."""
        sections, _ = self.form.sections(values := batch.records.column("value"), prefixes(values))
        for key in sorted(sections, key=lambda each: int(sections[each][0])):
            reader = self.reader(key)
            if not isinstance(reader, str) and len(columns := inferred(reader.fields)):
                return columns
        return pa.schema([])


class RegisteredDecoder:
    """Decodes to the given columns; ``docs/values.md`` says which value becomes what.

    ``columns`` maps a field's name to a column type, or is a schema that `Readers.infer` gave. Fields without a
    column are kept in ``_rest`` when ``rest`` is on, else ignored. Raises ValueError for columns that cannot be.
    `decode` raises `engine.errors.RegistryUnavailable` for schemas that were not fetched and cannot be.
    """

    def __init__(
        self,
        readers: Readers,
        columns: Mapping[str, str] | pa.Schema,
        *,
        rest: bool,
        trace: bool = True,
        on_null_value: OnNullValue = "fail",
    ) -> None:
        self._readers = readers
        self._columns = [TypedColumn(field) for field in typed_fields(columns)]
        self._rest = rest
        self._trace = trace
        self._on_null_value = on_null_value
        self._fields = [each.field for each in self._columns] + ([REST] if rest else [])
        self._schema = whole(self._fields, trace=trace)

    @property
    def schema(self) -> pa.Schema:
        """The columns in order, ``_rest``, ``_partition``, ``_offset``, ``_timestamp``."""
        return self._schema

    def decode(self, batch: Batch) -> Decoded:
        """Decode every record of the batch; a record that is refused costs itself alone."""
        values = values_of(batch)
        found = prefixes(values)
        sections, misled = self._readers.form.sections(values, found)
        wrong = {**found.wrong, **misled}
        parts: list[list[pa.Array]] = []
        order: list[np.ndarray] = []
        for key, rows in sections.items():
            reader = self._readers.reader(key)
            if isinstance(reader, str):
                wrong.update(dict.fromkeys(rows.tolist(), reader))
                continue
            size = max(1, CELLS_MAX // max(1, len(reader.fields)))
            for first in range(0, len(rows), size):
                some = rows[first : first + size]
                is_run = some[-1] - some[0] + 1 == len(some)
                own = values.slice(some[0], len(some)) if is_run else values.take(pa.array(some))
                arrays, refused = self._section(reader, own)
                wrong.update({int(some[at]): reason for at, reason in refused.items()})
                parts.append(arrays)
                order.append(some)
        arrays = self._joined(parts, order, len(batch))
        if self._trace:
            arrays += trace_arrays(batch)
        columns = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        return settle(batch, columns, wrong, found.nulls, self._on_null_value)

    def _joined(self, parts: list[list[pa.Array]], order: list[np.ndarray], count: int) -> list[pa.Array]:
        """The sections' arrays in the order of the records, with NULL for records of no section."""
        rows = np.concatenate([*order, np.zeros(0, np.int64)]).astype(np.int64)
        if len(rows) == count and np.array_equal(rows, np.arange(count)) and parts:
            return parts[0] if len(parts) == 1 else [pa.concat_arrays(each) for each in zip(*parts, strict=True)]
        place = np.full(count, len(rows), np.int64)
        place[rows] = np.arange(len(rows))
        taken = pa.array(place)
        return [
            pa.concat_arrays([*(part[at] for part in parts), pa.nulls(1, field.type)]).take(taken)
            for at, field in enumerate(self._fields)
        ]

    def _section(self, reader: Reader, values: pa.BinaryArray) -> tuple[list[pa.Array], dict[int, str]]:
        """Arrays of the columns and ``_rest`` for values of one schema, and reasons."""
        records = reader.open(values)
        wrong = dict(records.wrong)
        arrays = []
        taken = set()
        for each in self._columns:
            name = next((name for name in each.names if name in reader.fields), None)
            if name is None:
                arrays.append(each.missing(len(values)))
                continue
            taken.add(name)
            source, physical, broken = records.column(name)
            array, refused = each.array(source, physical)
            arrays.append(array)
            for row, reason in (*broken.items(), *refused.items()):
                wrong.setdefault(row, reason)
        if self._rest:
            arrays.append(
                self._rest_array(records, [name for name in reader.fields if name not in taken], wrong, len(values))
            )
        return arrays, wrong

    @staticmethod
    def _rest_array(records: Records, names: Sequence[str], wrong: dict[int, str], count: int) -> pa.Array:
        """JSON text of the fields that no column takes."""
        if not names:
            return pa.nulls(count, REST.type)
        members: list[Iterable[str | None]] = []
        for name in names:
            source, physical, broken = records.column(name)
            texts, refused = json_texts(source, physical)
            for row, reason in broken.items():
                wrong.setdefault(row, reason)
            for row, reason in refused.items():
                wrong.setdefault(row, f"field {excerpt(name)}: {reason}")
            members.append(texts.to_pylist())
        heads = [f"{to_text(name)}:" for name in names]
        rows = [
            "{" + ",".join(f"{head}{text or 'null'}" for head, text in zip(heads, row, strict=True)) + "}"
            for row in zip(*members, strict=True)
        ]
        return pa.array(rows, REST.type)
