"""What the compiled code and its callers agree on: codes, faults, and the columns of their tables.

Not here: code. The format is that of Kafka's documentation, "Message format".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Ends = npt.NDArray[np.int32]

#: What a call gives. From `ROWS_FULL` on: this output is too small, give a larger one and call again.
OK = 0
BAD_VARINT = 1
BAD_LENGTH = 2
BAD_KEY = 3
BAD_VALUE = 4
BAD_HEADERS = 5
BAD_NAME = 6
BAD_TEXT = 7
BAD_OFFSET = 8
BAD_TIMESTAMP = 9
BAD_END = 10
TRAILING = 11
CUT_OFF = 12
BAD_FRAME = 13
BAD_RANGE = 14
BAD_FORMAT = 15
BAD_CHECKSUM = 16
BAD_COUNT = 17
BAD_CODEC = 18
#: No fault: `plan` leaves the batch to its caller.
SPECIAL = 19
ROWS_FULL = 20
KEYS_FULL = 21
VALUES_FULL = 22
HEADERS_FULL = 23
NAMES_FULL = 24
CONTENTS_FULL = 25

FAULTS = {
    BAD_VARINT: "a number does not end within the record or is too large",
    BAD_LENGTH: "a record claims a length that its batch does not have",
    BAD_KEY: "a key claims a length that its record does not have",
    BAD_VALUE: "a value claims a length that its record does not have",
    BAD_HEADERS: "a record claims more headers than it has room for",
    BAD_NAME: "a header's key claims a length that its record does not have",
    BAD_TEXT: "a header's key is not UTF-8",
    BAD_OFFSET: "a record's offset does not follow the one before it, or lies beyond its batch",
    BAD_TIMESTAMP: "a record's timestamp is out of range",
    BAD_END: "a record ends elsewhere than it claims",
    TRAILING: "bytes are left over behind the last record",
    CUT_OFF: "the response ends within its first record batch",
    BAD_FRAME: "a record batch is shorter than its own header",
    BAD_RANGE: "a record batch's offsets do not follow those before it",
    BAD_FORMAT: "a record batch is in a format that there is not",
    BAD_CHECKSUM: "its checksum is not that of its bytes",
    BAD_COUNT: "it claims a number of records below zero",
    BAD_CODEC: "there is no such codec",
}

#: The cursors: how much of each output is in use; which record a fault was found in; and how many rows, and how
#: many bytes of all kinds, the batches that are left may need.
ROWS, KEY_BYTES, VALUE_BYTES, HEADERS, NAME_BYTES, CONTENT_BYTES, KEY_NULLS, VALUE_NULLS, CONTENT_NULLS = range(9)
RECORD, ROWS_LEFT, BYTES_LEFT = 9, 10, 11
CURSORS = 12

#: The outputs. ``*_ENDS`` are Arrow offsets, one longer than what they count; ``*_SET`` is a byte for each that
#: says whether it is not null.
OFFSETS, TIMESTAMPS, KEY_ENDS, KEY_SET, KEYS, VALUE_ENDS, VALUE_SET, VALUES = range(8)
HEADER_ENDS, NAME_ENDS, NAMES, CONTENT_ENDS, CONTENT_SET, CONTENTS = range(8, 14)
Outputs = tuple[Integers, Integers, Ends, Bytes, Bytes, Ends, Bytes, Bytes, Ends, Ends, Bytes, Ends, Bytes, Bytes]

#: The columns of what `walk` finds: where a batch begins and ends, its format, its offsets [base, next), and what
#: its header says. Those from `FRAME_DELTA` on are of format 2 alone.
FRAME_START, FRAME_END, FRAME_MAGIC, FRAME_BASE, FRAME_NEXT, FRAME_ATTRIBUTES = range(6)
FRAME_DELTA, FRAME_TIMESTAMP, FRAME_TIMESTAMP_MAX, FRAME_PRODUCER, FRAME_RECORDS, FRAME_CRC = range(6, 12)
FRAME_COLUMNS = 12

#: The columns of what `plan` finds to be decompressed: of which frame, how, from where to where in the response,
#: and what it may become.
BLOCK_FRAME, BLOCK_KIND, BLOCK_START, BLOCK_END, BLOCK_BYTES_MAX = range(5)
BLOCK_COLUMNS = 5

#: The columns of where a batch's records are.
PLACE_START, PLACE_END = range(2)
PLACE_COLUMNS = 2

#: How: a whole payload of a codec, whose numbers are Kafka's; or one block of an LZ4 frame, or a stored one.
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
LZ4_BLOCK = 5
STORED = 6

#: What every batch begins with (offset and length), and the least that follows in formats 0 and 1, and 2.
OVERHEAD_BYTES = 12
LEGACY_BYTES_MIN = 14
HEADER_BYTES = 49

#: Where the fields of a batch lie.
MAGIC_AT = 16
CRC_AT = 17
LEGACY_ATTRIBUTES_AT = 17
ATTRIBUTES_AT = 21
DELTA_AT = 23
TIMESTAMP_AT = 27
TIMESTAMP_MAX_AT = 35
PRODUCER_AT = 43
RECORDS_COUNT_AT = 57
RECORDS_AT = 61

CODEC_BITS = 0x07
APPEND_TIME_BIT = 0x08
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

#: Arrow's offsets have 32 bits.
COLUMN_BYTES_MAX = 2**31 - 1

#: The least that a record takes: seven numbers of one byte each.
RECORD_BYTES_MIN = 7
