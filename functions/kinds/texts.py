"""JSON text, read and written without losing digits, quickly where that is possible.

Not here: records' values of other kinds (`engine.values`).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import orjson

#: Digits as 0, what a number may follow as a comma, all else as x. A search in this is much quicker than a pattern.
_CLASSES = bytes(48 if chr(i) in "0123456789" else 44 if chr(i) in " \t\r\n:,[-" else 120 for i in range(256))

#: A number of so many digits may be beyond 64 bits. Those inside of strings mostly follow a quote.
_LONG_NUMBER = b"," + b"0" * 19


def loads(text: bytes) -> object:
    """What a JSON text says, as Python's own parser reads it: whole numbers of any size, NaN, infinity.

    Raises ValueError for what is no JSON.
    """
    if _LONG_NUMBER not in (b"," + text).translate(_CLASSES):
        try:
            return orjson.loads(text)
        except ValueError:
            pass  # NaN, half a surrogate pair, or no JSON
    try:
        return json.loads(text.decode())
    except RecursionError:
        raise ValueError("nests too deep") from None


def dumps(value: object, default: Callable[[object], object] | None = None) -> bytes:
    """Compact JSON in UTF-8; whole numbers of any size. Raises TypeError or ValueError where JSON has no form."""
    try:
        return orjson.dumps(value, default=default)
    except TypeError:
        return json.dumps(value, default=default, ensure_ascii=False, separators=(",", ":")).encode()
