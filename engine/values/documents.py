"""JSON documents: record values parsed to dicts, and a reason for each value that is no proper JSON object.

Strict: UTF-8, one object with nothing after it, no NaN, no number beyond a double, no lone surrogates, no
member twice in one object, no more than `DEPTH_MAX` levels. Not here: which column takes a member.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from engine.values.decoder import null_rows
from engine.values.reasons import Literal, describe, excerpt

#: Levels of arrays and objects in one value, the outermost object included. orjson writes at most 254.
DEPTH_MAX = 200

_MEMBER = b'":'
_MEMBER_SPACED = re.compile(rb'"[ \t\n\r]*:')

# A literal of at most 15 significant digits and of a normal double's exponent comes back from the double
# digit for digit; any other has 16 digits and points in a row, or an exponent of -100 and below.
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789.", b"0000000000")
_LONG_NUMBER = b"0" * 16
_SMALL_EXPONENT = re.compile(rb"[eE]-[0-9]{3}")

_NEXT_TO_ZERO = Decimal("1e-999999999999999999")

_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


@dataclass(slots=True)
class Documents:
    """Parsed values: ``docs[row]`` is a dict, the given placeholder where ``wrong`` has the row or it is null.

    ``raws[row]`` are the bytes it was parsed from; ``nulls`` are the rows without a value.
    """

    docs: list[dict[str, Any]]
    raws: list[bytes]
    wrong: dict[int, str]
    nulls: list[int]


def parse(values: pa.BinaryArray, placeholder: dict[str, Any]) -> Documents:
    """Parse each value of the array. Never raises for a value: what is wrong with it is in ``wrong``."""
    wrong: dict[int, str] = {}
    nulls = null_rows(values)
    raws: list[bytes] = (values.fill_null(b"") if nulls else values).to_pylist()
    docs: list[Any] = []
    append, loads = docs.append, orjson.loads
    errors: dict[int, orjson.JSONDecodeError] = {}
    for raw in raws:
        try:
            append(loads(raw))
        except orjson.JSONDecodeError as refused:
            errors[len(docs)] = refused
            append(None)
    if set(map(type, docs)) != {dict}:
        skip = set(nulls)
        for row, doc in enumerate(docs):
            if type(doc) is not dict:
                if row not in skip:
                    error = errors.get(row)
                    wrong[row] = _not_an_object(doc) if error is None else _malformed(raws[row], error)
                docs[row] = placeholder
    _refuse_deep(values, raws, docs, wrong, placeholder)
    _refuse_repeated(values, raws, docs, wrong, placeholder)
    return Documents(docs, raws, wrong, nulls)


def _not_an_object(value: object) -> str:
    return f"the value is no JSON object but a JSON {describe(value)}"


def _malformed(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """Why orjson refused a value."""
    if not raw:
        return "the value is empty (0 bytes)"
    if raw.startswith(b"\xef\xbb\xbf"):
        return "the value starts with a byte order mark, which JSON does not allow"
    try:
        text = raw.decode()
    except UnicodeDecodeError as broken:
        return f"invalid UTF-8 at byte {broken.start:,} (0x{raw[broken.start]:02x}): {broken.reason}"
    where = f"line {error.lineno:,}, column {error.colno:,} (character {error.pos:,})"
    if "infinity" in error.msg:
        found = _number_at(text, error.pos)
        return f"number {found} at {where}{_infinite_member(text)} is out of range: beyond a DOUBLE"
    if "depth" in error.msg:
        return f"nesting too deep: more than {DEPTH_MAX} levels of arrays and objects"
    constant = re.compile(r"[+-]?(?:NaN|Infinity|Inf)").match(text, error.pos)
    if constant:
        return f"malformed JSON at {where}: {constant[0]} is no JSON number"
    if "surrogate" in error.msg:
        return f"lone surrogate at {where}: {error.msg}"
    if "after document" in error.msg:
        return f"trailing data at {where}: {excerpt(text[error.pos :])}"
    return f"malformed JSON at {where}: {error.msg}"


def _number_at(text: str, position: int) -> str:
    found = re.compile(r"[-+0-9.eE]*").match(text, position)
    number = found[0] if found else ""
    return number if len(number) <= 40 else f"{number[:40]}…"


def _infinite_member(text: str) -> str:
    """`` in member "x"``, when the member of the object can be told that holds a number beyond a double."""
    inf = float("inf")
    try:
        doc = json.loads(text, parse_int=float)
        for name, value in doc.items():
            if value in (inf, -inf):
                return f" in member {excerpt(name)}"
    except (ValueError, RecursionError, AttributeError):
        pass  # the rest of the value is malformed too, or no object: the position must do
    return ""


def _refuse_deep(
    values: pa.BinaryArray,
    raws: list[bytes],
    docs: list[dict[str, Any]],
    wrong: dict[int, str],
    placeholder: dict[str, Any],
) -> None:
    """Refuse documents of more than `DEPTH_MAX` levels. A level takes two brackets, so most are too short."""
    longest = pc.max(pc.binary_length(values)).as_py()
    if longest is None or longest <= 2 * DEPTH_MAX:
        return
    for row, raw in enumerate(raws):
        if len(raw) > 2 * DEPTH_MAX and raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and _is_deep(docs[row]):
            wrong[row] = f"nesting too deep: more than {DEPTH_MAX} levels of arrays and objects"
            docs[row] = placeholder


def _is_deep(doc: dict[str, Any]) -> bool:
    """Whether arrays and objects are nested more than `DEPTH_MAX` levels; without recursion."""
    level: list[Any] = [doc]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _refuse_repeated(
    values: pa.BinaryArray,
    raws: list[bytes],
    docs: list[dict[str, Any]],
    wrong: dict[int, str],
    placeholder: dict[str, Any],
) -> None:
    """Refuse documents in which an object, at any depth, has a member twice: orjson keeps the last in silence.

    Each written member puts one ``":`` into the text, and strings may put in more; so the count is at least
    the number of members written, which is at least the number of members parsed. Where the count equals the
    members of the outermost object, nothing is repeated and nothing nested. Where it does not, the same count
    over the document written again decides (see `_is_written_once`), and what is left is parsed exactly.
    With whitespace before a colon the count is one of a pattern instead.
    """
    counts = [raw.count(_MEMBER) for raw in raws]
    spaced: set[int] = set()
    if _has_spaced_colon(values):
        spaced = {
            row for row, raw in enumerate(raws) if b" :" in raw or b"\n:" in raw or b"\t:" in raw or b"\r:" in raw
        }
        for row in spaced:
            counts[row] = len(_MEMBER_SPACED.findall(raws[row]))
    members = list(map(len, docs))
    if counts == members:
        return
    skip = {*wrong, *(row for row, doc in enumerate(docs) if doc is placeholder)}
    for row, (count, size) in enumerate(zip(counts, members, strict=True)):
        if count != size and row not in skip and not _is_written_once(raws[row], docs[row], count, row in spaced):
            name = repeated_member(raws[row])
            if name is not None:
                wrong[row] = f"member {excerpt(name)} stands more than once in one object"
                docs[row] = placeholder


def _has_spaced_colon(values: pa.BinaryArray) -> bool:
    """Whether a colon follows whitespace anywhere in the values, in a string or not."""
    _, offsets, data = values.buffers()
    if data is None or len(values) == 0:
        return False
    bounds = pa.Array.from_buffers(pa.int32(), len(values) + 1, [None, offsets], offset=values.offset)
    start, end = bounds[0].as_py(), bounds[len(values)].as_py()
    octets = data.slice(start, end - start).to_pybytes()  # one search over all is cheaper than one for each
    return any(white in octets and white + b":" in octets for white in (b" ", b"\t", b"\n", b"\r"))


def _is_written_once(raw: bytes, doc: dict[str, Any], count: int, spaced: bool) -> bool:
    r"""Whether writing the document again gives as many ``":`` as the value has: then no member was lost.

    The value's count is its members plus the quote-colon pairs in its strings. Without ``\u00..`` escapes both
    of the pair stand there as themselves (the quote behind a backslash), as they do in what orjson writes. A
    member that was lost takes at least its own ``":`` with it, so equality proves that none was.
    """
    if b"\\u00" in raw:
        return False
    text = orjson.dumps(doc)
    return count == (len(_MEMBER_SPACED.findall(text)) if spaced else text.count(_MEMBER))


class _Repeated(Exception):
    """Carries a name out of the parser."""


def _once(pairs: list[tuple[str, object]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise _Repeated(name)
        names.add(name)


def repeated_member(raw: bytes) -> str | None:
    """The name of a member that an object of this JSON text has twice, or None; exact, and slow.

    ``raw`` is JSON that orjson took, of at most `DEPTH_MAX` levels.
    """
    try:
        json.loads(raw.decode(), object_pairs_hook=_once, parse_int=str, parse_float=str)
    except _Repeated as repeated:
        return str(repeated.args[0])
    return None


def has_float(value: object) -> bool:
    """Whether a parsed value is, or holds at any depth, a float: a number that may have been rounded."""
    if type(value) is float:
        return True
    stack = [value]
    while stack:
        inner = stack.pop()
        children = inner.values() if type(inner) is dict else inner if type(inner) is list else ()
        for child in children:
            kind = type(child)
            if kind is float:
                return True
            if kind is dict or kind is list:
                stack.append(child)
    return False


def may_be_rounded(raw: bytes) -> bool:
    """Whether a JSON text may hold a number that its double, written shortest, does not give back."""
    if _LONG_NUMBER in raw.translate(_DIGITS_AS_ZEROS):
        return True
    return (b"e-" in raw or b"E-" in raw) and _SMALL_EXPONENT.search(raw) is not None


def exact(raw: bytes) -> dict[str, Any]:
    """The document with each number that neither 64-bit ints nor doubles hold kept as a `Literal`."""
    doc: dict[str, Any] = json.loads(raw.decode(), parse_int=_exact_int, parse_float=_exact_float)
    return doc


def _exact_int(text: str) -> int | Literal:
    number = int(text)
    return number if _INT64_MIN <= number <= _UINT64_MAX else Literal(text)


def _exact_float(text: str) -> float | Literal:
    number = float(text)
    return number if to_decimal(number) == to_decimal(text) else Literal(text)


def to_decimal(number: object) -> Decimal:
    """The value of a parsed number (a float: of its shortest writing) or of a JSON number's text."""
    try:
        return Decimal(repr(number) if type(number) is float else str(number))
    except InvalidOperation:  # an exponent of 19 digits and more: orjson took it, so it is next to zero or zero
        mantissa = str(number).lower().partition("e")[0]
        return Decimal(0) if Decimal(mantissa) == 0 else _NEXT_TO_ZERO


def to_text(value: object) -> str:
    """JSON text of a parsed value, without whitespace; a `Literal` as it was written."""
    return orjson.dumps(value, default=_fragment, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode()


def _fragment(literal: Literal) -> orjson.Fragment:
    assert type(literal) is Literal, type(literal)
    return orjson.Fragment(str(literal))
