"""What to keep of parsed log lines: by status, level, path or pattern. All that are given must hold.

Patterns are RE2's (pyarrow's), which match in linear time whatever the pattern.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

#: Names of levels, and how severe: RFC 5424's numbers, with log4j's names among them.
RANKS = {
    **dict.fromkeys(("emerg", "emergency", "panic"), 0),
    "alert": 1,
    **dict.fromkeys(("crit", "critical", "fatal"), 2),
    **dict.fromkeys(("err", "error"), 3),
    **dict.fromkeys(("warning", "warn"), 4),
    "notice": 5,
    "info": 6,
    "debug": 7,
    "trace": 8,
}
_RANK_NAMES, _RANK_VALUES = pa.array(list(RANKS)), pa.array(list(RANKS.values()), pa.int8())


@dataclass(frozen=True, slots=True)
class Keep:
    """Conditions on parsed lines; an empty one keeps everything."""

    status: tuple[tuple[int, int], ...] = ()  #: inclusive ranges
    ranks: frozenset[int] = frozenset()
    path: str = ""  #: a pattern for the path without its query
    pattern: str = ""

    def mask(self, lines: pa.Array, columns: Mapping[str, pa.Array]) -> pa.Array | None:
        """Which rows to keep; None for all. A row without the value that is asked for is not kept."""
        masks = []
        if self.status:
            code = columns["status"]
            inside = [pc.and_(pc.greater_equal(code, low), pc.less_equal(code, high)) for low, high in self.status]
            masks.append(functools.reduce(pc.or_, inside))
        if self.ranks:
            rank = _RANK_VALUES.take(pc.index_in(pc.utf8_lower(columns["level"]), _RANK_NAMES))
            masks.append(pc.is_in(rank, pa.array(sorted(self.ranks), pa.int8())))
        if self.path:
            masks.append(pc.match_substring_regex(columns["path"], self.path))
        if self.pattern:
            masks.append(pc.match_substring_regex(lines, self.pattern))
        return functools.reduce(pc.and_kleene, masks) if masks else None


def status_ranges(wanted: str | int | Sequence[str | int], faults: list[str]) -> tuple[tuple[int, int], ...]:
    """Ranges from ``"500-599,429"``, ``"5xx"``, ``404`` or a list of those; what is none goes to ``faults``."""
    ranges = []
    for item in _items(wanted):
        if match := re.fullmatch(r"([1-9])xx", item.lower()):
            ranges.append((int(match[1]) * 100, int(match[1]) * 100 + 99))
        elif (match := re.fullmatch(r"(\d{3})(?:\s*-\s*(\d{3}))?", item)) and match[1] <= (match[2] or match[1]):
            ranges.append((int(match[1]), int(match[2] or match[1])))
        else:
            faults.append(f"keep_status: {item!r} is not a status (404), a range (500-599) or a class (5xx)")
    return tuple(ranges)


def level_ranks(wanted: str | Sequence[str], faults: list[str]) -> frozenset[int]:
    """Ranks from a level: that one and all more severe; or from a list of levels: exactly those."""
    names = _items(wanted)
    for name in names:
        if name.lower() not in RANKS:
            faults.append(f"keep_level: {name!r} is not a level; valid are {', '.join(RANKS)}")
    ranks = [RANKS[name.lower()] for name in names if name.lower() in RANKS]
    if isinstance(wanted, str) and len(names) == 1 and ranks:
        return frozenset(range(ranks[0] + 1))
    return frozenset(ranks)


def path_pattern(wanted: str | Sequence[str], faults: list[str]) -> str:
    """One pattern from prefixes (``/api/``) and globs (``*.gif``; ``*`` any run, ``?`` any one character)."""
    # [^?] because the query is not part of the path that is matched.
    tail = r"(?:\?.*)?$"
    choices = []
    for item in _items(wanted):
        if "*" in item or "?" in item:
            glob = "".join({"*": "[^?]*", "?": "[^?]"}.get(char, re.escape(char)) for char in item)
            choices.append(glob + tail)
        else:
            choices.append(re.escape(item))
    if not choices:
        faults.append(f"keep_path: {wanted!r} names no path; give a prefix (/api/) or a glob (*.gif)")
    return f"(?s)^(?:{'|'.join(choices)})"


def line_pattern(wanted: str, faults: list[str]) -> str:
    """The pattern itself, if RE2 can read it."""
    try:
        pc.match_substring_regex(pa.array(["x"]), wanted)
    except pa.ArrowInvalid as error:
        faults.append(f"keep_pattern: {wanted!r} is not a regular expression that RE2 can read: {error}")
    return wanted


def _items(wanted: str | int | Sequence[str | int]) -> list[str]:
    parts = wanted.split(",") if isinstance(wanted, str) else [wanted] if isinstance(wanted, int) else wanted
    return [str(part).strip() for part in parts if str(part).strip()]
