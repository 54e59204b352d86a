"""Growing Arrow buffers that the kernel writes records into, and the record batch that they become.

Not here: what stands in the bytes (`kernel`) and where they come from (`record_batches`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from connectors.kafka import kernel
from connectors.kafka.kernel import codes
from connectors.kafka.kernel.codes import COLUMN_BYTES_MAX, Bytes, Ends, Integers
from engine.batch import HEADERS, RECORDS

INT64, BINARY = pa.int64(), pa.binary()

ROWS_MIN = 16
BYTES_MIN = 256

#: What a buffer may hold beside what is in use of it, as a share of that, and what is not worth giving back.
SPARE_SHARE = 1 / 8
SPARE_BYTES = 256

#: The outputs that have an item for each row, and those that have one more; the same for headers.
BY_ROW = (codes.OFFSETS, codes.TIMESTAMPS, codes.KEY_SET, codes.VALUE_SET)
ROW_ENDS = (codes.KEY_ENDS, codes.VALUE_ENDS, codes.HEADER_ENDS)
HEADER_SET_AND_ENDS = ((codes.CONTENT_SET, 0), (codes.NAME_ENDS, 1), (codes.CONTENT_ENDS, 1))

#: Which output a code says is too small, and the cursor of what is in use of it.
FULL = {
    codes.KEYS_FULL: (codes.KEYS, codes.KEY_BYTES),
    codes.VALUES_FULL: (codes.VALUES, codes.VALUE_BYTES),
    codes.NAMES_FULL: (codes.NAMES, codes.NAME_BYTES),
    codes.CONTENTS_FULL: (codes.CONTENTS, codes.CONTENT_BYTES),
}


class BadRecord(ValueError):
    """Record number ``index`` of a batch is malformed."""

    def __init__(self, code: int, index: int) -> None:
        super().__init__(f"{codes.FAULTS[code]} (record {index} of the batch)")
        self.code = code
        self.index = index


def _ends(count: int) -> Ends:
    made = np.empty(count + 1, np.int32)
    made[0] = 0
    return made


#: Outputs of no items, which nothing is written to.
NO_BYTES: Bytes = np.empty(0, np.uint8)
NO_ENDS = _ends(0)

#: Most records have no headers.
NO_HEADERS = pa.array([], HEADERS.value_type)


class Columns:
    """Records of one partition, appended batch by batch.

    ``rows`` and ``value_bytes`` are what room there is to begin with; more is made when it is needed.
    """

    def __init__(self, rows: int = 0, value_bytes: int = 0) -> None:
        rows, value_bytes = max(rows, ROWS_MIN), max(value_bytes, BYTES_MIN)
        self._cursors = np.zeros(2 * codes.CURSORS, np.int64)
        self._outputs: list[Any] = [
            np.empty(rows, np.int64),
            np.empty(rows, np.int64),
            _ends(rows),
            np.empty(rows, np.uint8),
            NO_BYTES,
            _ends(rows),
            np.empty(rows, np.uint8),
            np.empty(value_bytes, np.uint8),
            _ends(rows),
            NO_ENDS,
            NO_BYTES,
            NO_ENDS,
            NO_BYTES,
            NO_BYTES,
        ]

    def __len__(self) -> int:
        return int(self._cursors[codes.ROWS])

    @property
    def nbytes(self) -> int:
        """Bytes in use of keys, values and headers."""
        cursors: list[int] = self._cursors.tolist()
        keys, values = cursors[codes.KEY_BYTES], cursors[codes.VALUE_BYTES]
        return keys + values + cursors[codes.NAME_BYTES] + cursors[codes.CONTENT_BYTES]

    def append(
        self,
        response: Bytes,
        inflated: Bytes,
        frames: Integers,
        places: Integers,
        *,
        offset_min: int,
        bytes_max: int = COLUMN_BYTES_MAX,
    ) -> int:
        """Append the records of batches, without those below ``offset_min``: how many batches.

        All of ``places``, the first rows of ``frames`` (see `kernel.decode`), or fewer: those before one that is
        malformed, those that bring this to ``bytes_max``, or those that Arrow can address. Raises BadRecord where
        the first one is malformed, and has appended nothing then.
        """
        done = 0
        while done < len(places):
            count, code = kernel.decode(
                response, inflated, frames[done:], places[done:], offset_min, bytes_max, self._cursors,
                tuple(self._outputs),
            )  # fmt: skip
            done += count
            if code == codes.OK:
                break
            if code < codes.ROWS_FULL:
                if not done:
                    raise BadRecord(code, int(self._cursors[codes.RECORD]))
                break
            self._grow(code)
        return done

    def _grow(self, code: int) -> None:
        """Room in the output that was too small, for all batches that are left."""
        cursors: list[int] = self._cursors.tolist()
        if code == codes.ROWS_FULL:
            rows = max(cursors[codes.ROWS] + cursors[codes.ROWS_LEFT], 2 * self._outputs[codes.OFFSETS].size)
            for output in BY_ROW:
                self._resize(output, rows, cursors[codes.ROWS])
            for output in ROW_ENDS:
                self._resize(output, rows + 1, cursors[codes.ROWS] + 1)
        elif code == codes.HEADERS_FULL:
            count = 2 * self._outputs[codes.CONTENT_SET].size + BYTES_MIN
            for output, more in HEADER_SET_AND_ENDS:
                self._resize(output, count + more, cursors[codes.HEADERS] + more)
        else:
            output, cursor = FULL[code]
            used, size = cursors[cursor], self._outputs[output].size
            wanted = used + cursors[codes.BYTES_LEFT]
            if output != codes.VALUES:  # of which there is seldom much
                wanted = min(wanted, 2 * size + cursors[codes.BYTES_LEFT] // 16)
            self._resize(output, min(COLUMN_BYTES_MAX, max(wanted, size + size // 2, BYTES_MIN)), used)

    def _resize(self, output: int, size: int, used: int) -> None:
        old = self._outputs[output]
        made = np.empty(size, old.dtype)
        made[:used] = old[:used]
        self._outputs[output] = made

    def _fit(self, output: int, used: int) -> pa.Buffer:
        """The first ``used`` items of an output, which gives back what it has beyond them."""
        array = self._outputs[output]
        spare = (array.size - used) * array.itemsize
        if spare > SPARE_BYTES and spare > SPARE_SHARE * used * array.itemsize:
            # Shrinks where it lies, mostly. Nothing else refers to it: the kernel keeps nothing.
            array.resize(used, refcheck=False)
        return pa.py_buffer(array if array.size == used else array[:used])

    def record_batch(self) -> pa.RecordBatch:
        """The records, with the columns of `engine.batch.RECORDS`. The buffers go with them: use this no more."""
        cursors: list[int] = self._cursors.tolist()
        rows = cursors[codes.ROWS]
        offset, timestamp = (
            pa.Array.from_buffers(INT64, rows, [None, self._fit(output, rows)], null_count=0)
            for output in (codes.OFFSETS, codes.TIMESTAMPS)
        )
        key = self._binary(
            rows, codes.KEY_ENDS, codes.KEYS, cursors[codes.KEY_BYTES], codes.KEY_SET, cursors[codes.KEY_NULLS]
        )
        nulls = cursors[codes.VALUE_NULLS]
        value = self._binary(
            rows, codes.VALUE_ENDS, codes.VALUES, cursors[codes.VALUE_BYTES], codes.VALUE_SET, nulls
        )
        header = pa.Array.from_buffers(
            HEADERS,
            rows,
            [None, self._fit(codes.HEADER_ENDS, rows + 1)],
            null_count=0,
            children=[self._headers(cursors) if cursors[codes.HEADERS] else NO_HEADERS],
        )
        return pa.RecordBatch.from_arrays([offset, timestamp, key, value, header], schema=RECORDS)

    def _headers(self, cursors: list[int]) -> pa.Array:
        """All headers of all records, flat: structs of key and value."""
        count, name_bytes, nulls = cursors[codes.HEADERS], cursors[codes.NAME_BYTES], cursors[codes.CONTENT_NULLS]
        name = pa.Array.from_buffers(
            pa.string(),
            count,
            [None, self._fit(codes.NAME_ENDS, count + 1), self._fit(codes.NAMES, name_bytes)],
            null_count=0,
        )
        content = self._binary(
            count, codes.CONTENT_ENDS, codes.CONTENTS, cursors[codes.CONTENT_BYTES], codes.CONTENT_SET, nulls
        )
        return pa.Array.from_buffers(HEADERS.value_type, count, [None], null_count=0, children=[name, content])

    def _binary(self, count: int, ends: int, data: int, used: int, present: int, nulls: int) -> pa.Array:
        bitmap = None
        if nulls:
            bitmap = pa.py_buffer(np.packbits(self._outputs[present][:count], bitorder="little"))
        return pa.Array.from_buffers(
            BINARY, count, [bitmap, self._fit(ends, count + 1), self._fit(data, used)], null_count=nulls
        )
