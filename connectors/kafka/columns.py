"""Growing Arrow buffers that the kernel writes records into, and the record batch that they become.

Not here: what stands in the bytes (`kernel`) and where they come from (`record_batches`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.kafka import kernel
from engine.batch import HEADERS, RECORDS

#: Arrow's offsets have 32 bits.
COLUMN_BYTES_MAX = 2**31 - 1

ROWS_MIN = 16
BYTES_MIN = 256


class BadRecord(ValueError):
    """Record number ``index`` of a batch is malformed."""

    def __init__(self, code: int, index: int) -> None:
        super().__init__(f"{kernel.FAULTS[code]} (record {index} of the batch)")
        self.code = code
        self.index = index


class Columns:
    """Records of one partition, appended batch by batch.

    ``rows`` and ``value_bytes`` are what room there is to begin with; more is made when it is needed.
    """

    def __init__(self, rows: int = 0, value_bytes: int = 0) -> None:
        rows, value_bytes = max(rows, ROWS_MIN), max(value_bytes, BYTES_MIN)
        self._cursors = np.zeros(kernel.CURSORS, np.int64)
        self._offsets = np.empty(rows, np.int64)
        self._timestamps = np.empty(rows, np.int64)
        self._key_ends = _ends(rows)
        self._key_set = np.empty(rows, np.uint8)
        self._keys = np.empty(max(BYTES_MIN, value_bytes // 16), np.uint8)
        self._value_ends = _ends(rows)
        self._value_set = np.empty(rows, np.uint8)
        self._values = np.empty(value_bytes, np.uint8)
        self._header_ends = _ends(rows)
        self._name_ends = _ends(0)
        self._names = np.empty(0, np.uint8)
        self._content_ends = _ends(0)
        self._content_set = np.empty(0, np.uint8)
        self._contents = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return int(self._cursors[kernel.ROWS])

    @property
    def nbytes(self) -> int:
        """Bytes in use of keys, values and headers."""
        cursors: list[int] = self._cursors.tolist()
        keys, values = cursors[kernel.KEY_BYTES], cursors[kernel.VALUE_BYTES]
        return keys + values + cursors[kernel.NAME_BYTES] + cursors[kernel.CONTENT_BYTES]

    def has_room(self, size: int) -> bool:
        """Whether a batch of ``size`` bytes fits into what Arrow can address."""
        return self.nbytes + size <= COLUMN_BYTES_MAX

    def append(
        self,
        source: npt.NDArray[np.uint8],
        *,
        count: int,
        base_offset: int,
        offset_delta_max: int,
        base_timestamp: int,
        append_timestamp: int | None,
        offset_min: int,
    ) -> None:
        """Append the ``count`` records that ``source`` holds, without those below ``offset_min``.

        All timestamps are ``append_timestamp`` where that is given. Raises BadRecord and has appended nothing then.
        """
        if count > source.size // kernel.RECORD_BYTES_MIN:
            raise BadRecord(kernel.BAD_LENGTH, source.size // kernel.RECORD_BYTES_MIN)
        before = self._cursors.copy()
        self._room_for_rows(int(before[kernel.ROWS]) + count)
        while True:
            code = kernel.decode(
                source, count, base_offset, offset_delta_max, base_timestamp, append_timestamp or 0,
                append_timestamp is not None, offset_min, self._cursors, self._offsets, self._timestamps,
                self._key_ends, self._key_set, self._keys, self._value_ends, self._value_set, self._values,
                self._header_ends, self._name_ends, self._names, self._content_ends, self._content_set,
                self._contents,
            )  # fmt: skip
            if code == kernel.OK:
                return
            index = int(self._cursors[kernel.RECORD])
            self._cursors[:] = before
            if code < kernel.ROWS_FULL:
                raise BadRecord(code, index)
            self._grow(code, source.size)

    def _room_for_rows(self, rows: int) -> None:
        if rows <= self._offsets.size:
            return
        rows = max(rows, 2 * self._offsets.size)
        for name in ("_offsets", "_timestamps", "_key_set", "_value_set"):
            self._resize(name, rows)
        for name in ("_key_ends", "_value_ends", "_header_ends"):
            self._resize(name, rows + 1)

    def _grow(self, code: int, size: int) -> None:
        """Room for a batch of ``size`` bytes in the output that was too small, whatever is in it."""
        if code == kernel.HEADERS_FULL:
            count = 2 * self._content_set.size + BYTES_MIN
            self._resize("_content_set", count)
            self._resize("_name_ends", count + 1)
            self._resize("_content_ends", count + 1)
            return
        name, cursor = {
            kernel.KEYS_FULL: ("_keys", kernel.KEY_BYTES),
            kernel.VALUES_FULL: ("_values", kernel.VALUE_BYTES),
            kernel.NAMES_FULL: ("_names", kernel.NAME_BYTES),
            kernel.CONTENTS_FULL: ("_contents", kernel.CONTENT_BYTES),
        }[code]
        needed = int(self._cursors[cursor]) + size
        self._resize(name, min(COLUMN_BYTES_MAX, max(needed, int(1.5 * getattr(self, name).size))))

    def _resize(self, name: str, size: int) -> None:
        old = getattr(self, name)
        made = np.empty(size, old.dtype)
        made[: old.size] = old
        setattr(self, name, made)

    def record_batch(self) -> pa.RecordBatch:
        """The records, with the columns of `engine.batch.RECORDS`. The buffers go with them: use this no more."""
        cursors = [int(cursor) for cursor in self._cursors]
        rows, headers = cursors[kernel.ROWS], cursors[kernel.HEADERS]
        key = _binary(
            rows, self._key_ends, self._keys, cursors[kernel.KEY_BYTES], self._key_set, cursors[kernel.KEY_NULLS]
        )
        value = _binary(
            rows,
            self._value_ends,
            self._values,
            cursors[kernel.VALUE_BYTES],
            self._value_set,
            cursors[kernel.VALUE_NULLS],
        )
        name = pa.Array.from_buffers(
            pa.string(),
            headers,
            [
                None,
                pa.py_buffer(self._name_ends[: headers + 1]),
                pa.py_buffer(self._names[: cursors[kernel.NAME_BYTES]]),
            ],
            null_count=0,
        )
        content = _binary(
            headers,
            self._content_ends,
            self._contents,
            cursors[kernel.CONTENT_BYTES],
            self._content_set,
            cursors[kernel.CONTENT_NULLS],
        )
        pairs = pa.Array.from_buffers(HEADERS.value_type, headers, [None], null_count=0, children=[name, content])
        lists = pa.Array.from_buffers(
            HEADERS, rows, [None, pa.py_buffer(self._header_ends[: rows + 1])], null_count=0, children=[pairs]
        )
        return pa.RecordBatch.from_arrays(
            [_integers(self._offsets[:rows]), _integers(self._timestamps[:rows]), key, value, lists], schema=RECORDS
        )


def _ends(count: int) -> npt.NDArray[np.int32]:
    made = np.empty(count + 1, np.int32)
    made[0] = 0
    return made


def _integers(values: npt.NDArray[np.int64]) -> pa.Array:
    return pa.Array.from_buffers(pa.int64(), values.size, [None, pa.py_buffer(values)], null_count=0)


def _binary(
    count: int,
    ends: npt.NDArray[np.int32],
    data: npt.NDArray[np.uint8],
    used: int,
    present: npt.NDArray[np.uint8],
    nulls: int,
) -> pa.Array:
    bitmap = None
    if nulls:
        bitmap = pa.py_buffer(np.packbits(present[:count], bitorder="little"))
    return pa.Array.from_buffers(
        pa.binary(),
        count,
        [bitmap, pa.py_buffer(ends[: count + 1]), pa.py_buffer(data[:used])],
        null_count=nulls,
    )
