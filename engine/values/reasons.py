"""The words of a fault: what was found, short enough to log. Not here: what counts as a fault."""

from __future__ import annotations

import json

EXCERPT_CHARS_MAX = 60  #: of a value or a name within a reason
REASON_CHARS_MAX = 400  #: of a whole reason


class Literal(str):
    """A JSON number as it was written, where neither an int of 64 bits nor a double has its value."""

    __slots__ = ()


class Refused(Exception):
    """A value that its column does not take; the text completes "column x wants T, found v"."""


def excerpt(text: str) -> str:
    """At most `EXCERPT_CHARS_MAX` characters of a text, control characters escaped, in double quotes."""
    short = text[:EXCERPT_CHARS_MAX]
    quoted = json.dumps(short, ensure_ascii=False)
    return quoted if len(short) == len(text) else f"{quoted} and {len(text) - len(short):,} more characters"


def bounded(reason: str) -> str:
    """The reason, cut where a long column name or the like made it longer than `REASON_CHARS_MAX`."""
    return reason if len(reason) <= REASON_CHARS_MAX else reason[: REASON_CHARS_MAX - 1] + "…"


def json_type(value: object) -> str:
    """The JSON type of a parsed value: null, boolean, number, string, array or object."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float, Literal)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def describe(value: object) -> str:
    """A parsed value in a few words, such as ``number 1.7``, ``string "x"``, ``array of 3``."""
    kind = json_type(value)
    if isinstance(value, (list, dict)):
        return f"{kind} of {len(value):,}"
    if kind == "string":
        return f"string {excerpt(str(value))}"
    if kind == "null":
        return "null"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return f"{kind} {text[:EXCERPT_CHARS_MAX]}{'…' if len(text) > EXCERPT_CHARS_MAX else ''}"
