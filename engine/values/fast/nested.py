"""Any JSON value at a plain address: where it ends, and whether its text may be copied as it stands.

A copy is right where a writer of JSON would spell the parsed value the same way. What is doubtful is left to
the slow decoder. Not here: the members of the outermost object (`engine.values.fast.kernel`).
"""

from __future__ import annotations

import numpy as np

from engine.values.fast.primitives import compiled, copy, get, load8, put, same, store8
from engine.values.fast.scalars import CANONICAL, RESPELT, number, skip, string, word

OTHERWISE = 1  #: the value would be written otherwise
SPACED = 2  #: there is whitespace in it outside of strings

LEVELS_MAX = 16  #: of arrays and objects in one value
NAMES_MAX = 64  #: of the objects that are open at once

_QUOTE, _COMMA, _COLON = 34, 44, 58
_ARRAY, _ARRAY_END, _OBJECT, _OBJECT_END = 91, 93, 123, 125


def scratch() -> np.ndarray:
    """Room for the names and levels of one value; every thread needs its own."""
    return np.zeros(2 * NAMES_MAX + LEVELS_MAX, np.int64)


@compiled
def _scalar(at: int, first: int, end: int) -> tuple[int, int]:
    """The end of a string, number or word, or 0, and `OTHERWISE`."""
    octet = load8(at)
    if octet == _QUOTE:
        at, flags = string(at + 1, first, end)
        if at == 0:
            return 0, 0
        return at + 1, OTHERWISE if flags & RESPELT else 0
    if octet == 45 or 48 <= octet <= 57:
        at, _, _, _, flags = number(at, end)
        return at, 0 if flags & CANONICAL else OTHERWISE
    return word(at, end), 0


@compiled
def _name(at: int, first: int, end: int, names: int, base: int, used: int) -> tuple[int, int]:
    """The place behind a member's name and colon, and flags; 0 too for a name that came since ``base``."""
    if at >= end or load8(at) != _QUOTE or used == NAMES_MAX:
        return 0, 0
    start = at + 1
    at, flags = string(start, first, end)
    if at == 0 or flags & RESPELT:
        return 0, 0
    size = at - start
    for other in range(base, used):
        if get(names, 2 * other + 1) == size and same(get(names, 2 * other), start, size):
            return 0, 0
    put(names, 2 * used, start)
    put(names, 2 * used + 1, size)
    colon = skip(at + 1, end)
    if colon >= end or load8(colon) != _COLON:
        return 0, 0
    return colon + 1, SPACED if colon != at + 1 else 0


@compiled
def value(at: int, first: int, end: int, room: int) -> tuple[int, int]:
    """The end of the JSON value that starts at ``at`` or behind whitespace there, and its flags.

    ``room`` is the address of `scratch`. The end is 0 for what is malformed, for a member that stands twice in
    one object, and beyond `LEVELS_MAX` and `NAMES_MAX`.
    """
    depth, used, flags, named = 0, 0, 0, False
    while True:
        start = at
        at = skip(at, end)
        if at != start:
            flags |= SPACED
        if named:
            base = get(room, 2 * NAMES_MAX + depth - 1) >> 1
            at, more = _name(at, first, end, room, base, used)
            if at == 0:
                return 0, 0
            flags |= more
            used += 1
            named = False
            continue
        if at >= end:
            return 0, 0
        octet = load8(at)
        if octet in (_OBJECT, _ARRAY):
            if depth == LEVELS_MAX:
                return 0, 0
            inside = skip(at + 1, end)
            if inside >= end:
                return 0, 0
            if load8(inside) != octet + 2:  # both closing brackets are two beyond the opening ones
                named = octet == _OBJECT
                put(room, 2 * NAMES_MAX + depth, used << 1 | (1 if named else 0))
                depth += 1
                at += 1
                continue
            if inside != at + 1:
                flags |= SPACED
            at = inside + 1
        else:
            at, more = _scalar(at, first, end)
            if at == 0:
                return 0, 0
            flags |= more
        while depth > 0:
            behind = skip(at, end)
            if behind >= end:
                return 0, 0
            if behind != at:
                flags |= SPACED
            octet = load8(behind)
            at = behind + 1
            level = get(room, 2 * NAMES_MAX + depth - 1)
            if octet == _COMMA:
                named = level & 1 == 1
                break
            if octet != (_OBJECT_END if level & 1 else _ARRAY_END):
                return 0, 0
            depth -= 1
            used = level >> 1
        else:
            return at, flags


@compiled
def write(to: int, at: int, end: int, spaced: bool) -> int:
    """Copy the text of a value, without the whitespace outside of its strings. The number of bytes."""
    if not spaced:
        copy(to, at, end - at)
        return end - at
    first, inside = to, False
    while at < end:
        octet = load8(at)
        at += 1
        if inside and octet == 92:
            store8(to, octet)
            store8(to + 1, load8(at))
            at += 1
            to += 2
            continue
        if octet == _QUOTE:
            inside = not inside
        if inside or octet > 32:
            store8(to, octet)
            to += 1
    return to - first
