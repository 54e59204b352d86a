"""Access log lines of web servers: the common and the combined format of Apache and nginx.

Gives columns for a column of lines; keeps and drops nothing. The fields are those of Apache's
``mod_log_config`` ("Common Log Format", "Combined Log Format").
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from functions.columns import Refusals, by_case, cast_or_null, times, unless

_HEAD = r"(?s)^(?P<host>\S+) (?P<ident>\S+) "
_TIME = r" \[(?P<time>[^\]]+)\] "
_SIZE = r" (?P<status>\d{3}) (?P<bytes>\d+|-)"
_QUOTED = r'"(?:[^"\\]|\\.)*"'

# The plain line: nothing escaped, no blank inside of the path. RE2 checks it without capturing, which is
# eight times as fast as taking it apart; the taking apart is then done at the quotes and blanks.
_WORD = r'[^\s"\\]+'
_PLAIN = (
    rf"^{_WORD} {_WORD} {_WORD} \[\d\d/[A-Z][a-z][a-z]/\d\d\d\d:\d\d:\d\d:\d\d [+-]\d\d\d\d\] "
    rf'"[A-Za-z][A-Za-z_-]* {_WORD}(?: HTTP/{_WORD})?" \d\d\d (?:\d+|-)'
)
_PLAIN_COMMON = f"{_PLAIN}$"
_PLAIN_COMBINED = rf'{_PLAIN} "[^"\\]*" "[^"\\]*"$'
# What today's servers write: quotes inside of quoted fields are escaped. Unambiguous.
_STRICT = (
    f"{_HEAD}(?P<user>\\S+){_TIME}(?P<request>{_QUOTED}){_SIZE}"
    f"(?: (?P<referrer>{_QUOTED}) (?P<agent>{_QUOTED}))?\\s*$"
)
# What old servers wrote: quotes as they came. The request then reaches to the last quote that a status
# and a size follow. User names may hold blanks.
_LENIENT = f'{_HEAD}(?P<user>.*?){_TIME}(?P<request>".*"){_SIZE}(?: (?P<referrer>".*?") (?P<agent>".*"))?\\s*$'
_REQUEST = r"(?s)^(?P<method>[A-Za-z][A-Za-z_-]*) +(?P<path>\S.*?)(?: +(?P<protocol>HTTP/\S+))?\s*$"
_TIME_SHAPE = r"^\d\d/[A-Z][a-z][a-z]/\d\d\d\d:\d\d:\d\d:\d\d [+-]\d\d\d\d$"
_MONTHS = pa.array(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
_MONTH_NUMBERS = pa.array([f"{month:02}" for month in range(1, 13)])
_ESCAPE = re.compile(rb'\\(?:x([0-9A-Fa-f]{2})|(")|\\)')


def parse(lines: pa.Array, refusals: Refusals, *, kind: str) -> dict[str, pa.Array]:
    """Columns of access log lines; lines of another shape are refused.

    ``kind`` is "common", "combined" or "access", which takes both. A size of "-" is 0, as Apache
    documents it; "-" in any other field is null. A request that is no request line (a TLS greeting on a
    plain port) stands in ``path`` as it came, without a method.
    """
    parts = _either(
        lines, _PLAIN_COMMON, _plain, lambda rest: _either(rest, _PLAIN_COMBINED, _plain_combined, _odd)
    )
    parsed, referrer = pc.is_valid(parts["host"]), parts["referrer"]
    refusals.refuse(pc.invert(parsed), f"the line is not in the {_TITLES[kind]} log format: {{}}", lines)
    if kind != "access":
        other = pc.and_(parsed, pc.is_null(referrer) if kind == "combined" else pc.is_valid(referrer))
        refusals.refuse(other, f"the line is not in the {_TITLES[kind]} log format: {{}}", lines)
    ts = _times(parts["time"])
    refusals.refuse(pc.and_(parsed, pc.is_null(ts)), "the line's time {} is none", parts["time"])
    size = parts["bytes"]
    sent = cast_or_null(pc.if_else(pc.equal(size, "-"), "0", size), pa.int64())
    refusals.refuse(pc.and_(parsed, pc.is_null(sent)), "the line's size {} is out of range", size)
    return {
        "host": parts["host"],
        "ident": unless(parts["ident"], "-"),
        "user": unless(parts["user"], "-"),
        "ts": ts,
        **{name: parts[name] for name in ("method", "path", "protocol")},
        "status": pc.cast(parts["status"], pa.int16()),
        "bytes": sent,
        "referrer": unless(referrer, "-"),
        "agent": unless(parts["agent"], "-"),
    }


_Parser = Callable[[pa.Array], dict[str, pa.Array]]
_TITLES = {"common": "common", "combined": "combined", "access": "common or combined"}


def _either(lines: pa.Array, pattern: str, work: _Parser, other: _Parser) -> dict[str, pa.Array]:
    """The parts of lines by ``work`` where the pattern matches, by ``other`` where not."""
    matched = pc.fill_null(pc.match_substring_regex(lines, pattern), False)
    return by_case(lines, [(matched, work), (pc.invert(matched), other)])


def _plain(lines: pa.Array) -> dict[str, pa.Array]:
    """The parts of plain lines of the common format."""
    quoted = pc.split_pattern(lines, '"')
    head = pc.split_pattern(pc.list_element(quoted, 0), " ")
    request = pc.split_pattern(pc.list_element(quoted, 1), " ")
    tail = pc.split_pattern(pc.list_element(quoted, 2), " ")
    clock, zone = pc.utf8_slice_codeunits(pc.list_element(head, 3), 1), pc.list_element(head, 4)
    named = pc.equal(pc.list_value_length(request), 3)
    # Lists of two give their last part a second time, where it is not looked at.
    last = pc.list_element(pc.list_slice(request, 1, 3, return_fixed_size_list=True), 1)
    return {
        **{name: pc.list_element(head, place) for place, name in enumerate(("host", "ident", "user"))},
        "time": pc.binary_join_element_wise(clock, pc.utf8_slice_codeunits(zone, 0, 5), " "),
        "method": pc.list_element(request, 0),
        "path": pc.list_element(request, 1),
        "protocol": pc.if_else(named, last, pa.scalar(None, pa.string())),
        "status": pc.list_element(tail, 1),
        "bytes": pc.list_element(tail, 2),
        "referrer": pa.nulls(len(lines), pa.string()),
        "agent": pa.nulls(len(lines), pa.string()),
    }


def _plain_combined(lines: pa.Array) -> dict[str, pa.Array]:
    """The parts of plain lines of the combined format."""
    quoted = pc.split_pattern(lines, '"')
    return {**_plain(lines), "referrer": pc.list_element(quoted, 3), "agent": pc.list_element(quoted, 5)}


def _odd(lines: pa.Array) -> dict[str, pa.Array]:
    """The parts of any line: by the strict pattern, and what that leaves by the lenient one. Null if neither."""
    strict = pc.extract_regex(lines, _STRICT)
    parts = by_case(
        lines,
        [
            (pc.is_valid(strict), lambda rows: _captured(rows, _STRICT)),
            (pc.is_null(strict), lambda rows: _captured(rows, _LENIENT)),
        ],
    )
    request = _unquoted(parts.pop("request"))
    method, path, protocol = pc.extract_regex(request, _REQUEST).flatten()
    return {
        **parts,
        "method": method,
        "path": pc.if_else(pc.is_valid(method), path, unless(unless(request, "-"), "")),
        "protocol": unless(protocol, ""),
        # An empty capture is a group without a part in the match: a value would have its quotes.
        "referrer": _unquoted(unless(parts["referrer"], "")),
        "agent": _unquoted(unless(parts["agent"], "")),
    }


def _captured(lines: pa.Array, pattern: str) -> dict[str, pa.Array]:
    found = pc.extract_regex(lines, pattern)
    return dict(zip([field.name for field in found.type], found.flatten(), strict=True))


def _times(time: pa.Array) -> pa.Array:
    """``01/Aug/1995:00:00:01 -0400`` as timestamp[us, UTC]; null where it is no time.

    Not strptime: it takes month names from the process's locale and 31 February for 3 March. Servers log
    many lines in a second, so each different text is parsed once.
    """
    coded = pc.dictionary_encode(time)
    shaped = pc.match_substring_regex(coded.dictionary, _TIME_SHAPE)
    texts = pc.if_else(shaped, coded.dictionary, pa.scalar(None, pa.string()))
    spans = ((0, 2), (3, 6), (7, 11), (12, 20), (21, 26))
    day, month, year, clock, zone = (pc.utf8_slice_codeunits(texts, *span) for span in spans)
    number = _MONTH_NUMBERS.take(pc.index_in(month, _MONTHS))
    date = pc.binary_join_element_wise(year, number, day, "-")
    iso = pc.binary_join_element_wise(pc.binary_join_element_wise(date, clock, "T"), zone, "")
    return times(iso).take(coded.indices)


def _unquoted(values: pa.Array) -> pa.Array:
    """Without the quotes around, and with escapes undone where there are any."""
    bare = pc.utf8_slice_codeunits(values, 1, -1)
    escaped = pc.fill_null(pc.match_substring(bare, "\\"), False)
    if not pc.any(escaped, min_count=0).as_py():
        return bare
    return pc.replace_with_mask(bare, escaped, pa.array([_unescape(v) for v in bare.filter(escaped).to_pylist()]))


def _unescape(value: str) -> str:
    r"""Undo ``\"`` and ``\xhh``, which stands for a byte of UTF-8; as it came if the bytes are none.

    A doubled backslash stays: old servers wrote single ones as they came, so what it means is not known.
    """
    plain = _ESCAPE.sub(lambda m: bytes.fromhex(m[1].decode()) if m[1] else m[2] or m[0], value.encode())
    try:
        return plain.decode()
    except UnicodeDecodeError:
        return value
