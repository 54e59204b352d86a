"""JSON texts to values whose numbers keep their spelling. Strict, and safe for any input.

Not here: columns (`engine.values`), whose decoders have other rules.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from engine.filters.numbers import Number

#: Levels of arrays and objects; deeper text counts as no JSON. (Jackson, AWS's reader, stops at 1,000.)
DEPTH_MAX = 500

# A whole string, also one that never ends, so that no quote is looked at twice; or a bracket.
_OUTSIDE_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class Members(list[tuple[str, Any]]):
    """The members of an object, in order, those that stand twice too."""


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_no_number)
_MEMBERS = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=_no_number, object_pairs_hook=Members
)


def parse(text: str, *, members: bool = False) -> Any:
    """The value of a JSON text: dicts (the last of equal keys counts), lists, strings, `Number`, True, False, None.

    With ``members`` objects come as `Members`. Raises ValueError, with the reason, for what is no JSON.
    """
    if text.count("[") + text.count("{") > DEPTH_MAX:
        _check_depth(text)
    return (_MEMBERS if members else _DECODER).decode(text)


def _check_depth(text: str) -> None:
    depth = 0
    for match in _OUTSIDE_STRINGS.finditer(text):
        first = match[0][0]
        if first in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise ValueError(f"more than {DEPTH_MAX} levels of arrays and objects")
        elif first in "]}":
            depth -= 1


def container(payload: bytes | None) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array that a payload is, else None: also for strings and numbers, and what is no UTF-8."""
    if payload is None:
        return None
    try:
        found = parse(payload.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError among them
        return None
    return found if isinstance(found, dict | list) else None
