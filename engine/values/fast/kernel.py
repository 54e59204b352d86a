"""Records of JSON to slots of columns, in one pass over a batch, and from slots to the bytes of Arrow columns.

For each record the kernel bets that the member after this one is the one that came after it last time, with
the same bytes between the values; a name is looked up where the bet fails. What it takes it takes exactly as
`engine.values.json_decoder.ReferenceJsonDecoder` does; all else it marks `SLOW`, and never guesses.
Not here: Arrow (`engine.values.fast.decoder`), and what is wrong with a record (the reference says).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.values.fast.nested import OTHERWISE, SPACED, value, write
from engine.values.fast.primitives import compiled, copy, get, load8, load32, move16, put, same, store8, store32
from engine.values.fast.scalars import (
    DIGITS_MAX,
    ESCAPED,
    INTEGER,
    NEGATIVE,
    NOTHING,
    day,
    instant,
    nearest,
    number,
    skip,
    string,
    unescape,
    word,
)

TAKEN, SLOW, NULL = 0, 1, 2  #: what came of a record

#: How the values of a column are read; the kinds from `TEXT` on need `gather`.
BOOLEAN, SIGNED, UNSIGNED, DOUBLE, FLOAT, DECIMAL, DATE, INSTANT, TEXT, JSON, KEEP, IGNORE, NEVER = range(13)

SHORT_BYTES_MAX = 32  #: of texts that `gather` copies without looking at their length
UNKNOWN_MAX = 256  #: names of members without a column that one batch may have; records with more are slow

_QUOTE, _COMMA, _COLON, _OPEN, _CLOSE, _N = 34, 44, 58, 123, 125, 110
_PART_ROWS = 512  # that `gather` writes of one column after the other
_SPELLING = 1  # of a slot of text: escapes to resolve, or whitespace to leave out
_TENS = np.array([10**power for power in range(DIGITS_MAX)], np.int64)


class Plan(NamedTuple):
    """The columns, then room for `UNKNOWN_MAX` names: addresses of arrays of int64, by the number of a name.

    ``low`` and ``high`` bound integers, unscaled DECIMALs and, in milliseconds, instants; of a FLOAT, ``high``
    has the bits of the double that rounds to infinite. ``extra`` is, of a DECIMAL, its scale; of an INSTANT,
    microseconds in a unit, negative where a zone is wanted.
    ``table`` finds names: ``mask`` and one places, a power of two, each a number or -1. `parse` fills it, and
    adds names until there are ``places``; the first ``columns`` are there before.
    """

    kinds: int
    low: int
    high: int
    extra: int
    name_at: int
    name_size: int
    table: int
    mask: int
    places: int
    columns: int


class Bets(NamedTuple):
    """Addresses of arrays of int64: what stood last time behind the value of each name, and whose name it was.

    Their first place is for what stands before all values. ``seen`` has the last row of each name; ``room`` is
    of `engine.values.fast.nested.scratch`; ``text`` adds up the bytes of each column's texts, and behind them
    those of ``_rest``; ``known`` has one place, for how many names there are so far.
    """

    at: int
    size: int
    name: int
    seen: int
    room: int
    text: int
    known: int


class Slots(NamedTuple):
    """Addresses of what ``rows`` hold: by column and row an int64, and a byte that is 1 if there is one; last, of
    ``_rest``. By row, a byte of ``status``: `TAKEN`, `SLOW` or `NULL`.

    Of text the slot has the place, from the values' first byte or that of ``rest``, in the upper half, then
    the bytes, and in the lowest bit whether it has to be written otherwise.
    """

    values: int
    valid: int
    status: int
    rows: int


@compiled
def _hash(at: int, size: int) -> int:
    """A hash of a name, for `Plan.table`."""
    bits = size
    for place in range(size):
        bits = (bits ^ load8(at + place)) * 0x100000001B3
    return bits ^ (bits >> 29)


@compiled
def _find(plan: Plan, bets: Bets, at: int, size: int) -> int:
    """The number of a name, which it is given here if it is new, or -1 if there are too many."""
    mask = plan.mask
    place = _hash(at, size) & mask
    while get(plan.table, place) >= 0:
        found = get(plan.table, place)
        if get(plan.name_size, found) == size and same(get(plan.name_at, found), at, size):
            return found
        place = (place + 1) & mask
    new = get(bets.known, 0)
    if new == plan.places:
        return -1
    put(plan.table, place, new)
    put(plan.name_at, new, at)
    put(plan.name_size, new, size)
    put(bets.known, 0, new + 1)
    return new


@compiled
def _member(plan: Plan, bets: Bets, at: int, first: int, end: int, opening: bool) -> tuple[int, int]:
    """The place behind the colon (and whitespace) of the next member, and the number of its name.

    ``opening`` says whether it is the first. A number of -1 for no; of -2 for the end of an empty object.
    """
    at = skip(at, end)
    if at >= end or load8(at) != (_OPEN if opening else _COMMA):
        return 0, -1
    at = skip(at + 1, end)
    if at >= end:
        return 0, -1
    if opening and load8(at) == _CLOSE:
        return at, -2
    if load8(at) != _QUOTE:
        return 0, -1
    start = at + 1
    at, flags = string(start, first, end)
    if at == 0 or flags & ESCAPED:
        return 0, -1
    colon = skip(at + 1, end)
    if colon >= end or load8(colon) != _COLON:
        return 0, -1
    return skip(colon + 1, end), _find(plan, bets, start, at - start)


@compiled
def _figure(plan: Plan, name: int, at: int, end: int) -> tuple[int, int]:
    """The end of a number, and its slot, for the kinds that take numbers; an end of 0 for no."""
    octet = load8(at)
    if octet != 45 and (octet < 48 or octet > 57):
        return 0, 0
    at, figures, power, digits, flags = number(at, end)
    if at == 0 or digits > DIGITS_MAX:
        return 0, 0
    kind = get(plan.kinds, name)
    negative = flags & NEGATIVE != 0
    if kind in (DOUBLE, FLOAT):
        bits = nearest(figures, power)
        if bits == NOTHING:
            return 0, 0
        if kind == FLOAT and bits >= get(plan.high, name):
            return 0, 0
        return at, bits | NOTHING if negative else bits
    if kind == UNSIGNED and digits == DIGITS_MAX:
        return (at, figures) if flags & INTEGER and not negative and get(plan.high, name) == -1 else (0, 0)
    if figures < 0:  # of 19 digits, beyond 63 bits
        return 0, 0
    figures = -figures if negative else figures
    if kind == DECIMAL:
        shift = get(plan.extra, name) + power
        if shift < 0 or digits + shift >= DIGITS_MAX:
            return 0, 0
        figures *= _TENS[shift]
        return (at, figures) if get(plan.low, name) <= figures <= get(plan.high, name) else (0, 0)
    if flags & INTEGER == 0 or figures < get(plan.low, name):
        return 0, 0
    if figures > get(plan.high, name) and not (kind == UNSIGNED and get(plan.high, name) == -1):
        return 0, 0
    if kind == INSTANT and abs(get(plan.extra, name)) == 1:
        figures *= 1000
    return at, figures


@compiled
def _stamp(plan: Plan, name: int, at: int, first: int, end: int) -> tuple[int, int]:
    """The end of a string that is a day or an instant, and its slot; an end of 0 for no."""
    start = at + 1
    at, flags = string(start, first, end)
    if at == 0 or flags:
        return 0, 0
    if get(plan.kinds, name) == DATE:
        days = day(start) if at - start == 10 else NOTHING
        return (at + 1, days) if days != NOTHING else (0, 0)
    unit = abs(get(plan.extra, name))
    micros, zoned = instant(start, at, 6 if unit == 1 else 3)
    if micros == NOTHING or (get(plan.extra, name) < 0 and not zoned):
        return 0, 0
    millis = micros // 1000  # the bounds are of milliseconds, as numbers have it
    if millis < get(plan.low, name) or millis > get(plan.high, name):
        return 0, 0
    return at + 1, micros // unit


@compiled
def _slot(plan: Plan, bets: Bets, name: int, at: int, first: int, end: int, base: int) -> tuple[int, int]:
    """The end of a value that is not null, and its slot, for a name that has a column; an end of 0 for no."""
    kind = get(plan.kinds, name)
    octet = load8(at)
    if kind == TEXT:
        if octet != _QUOTE:
            return 0, 0
        start = at + 1
        at, flags = string(start, first, end)
        if at == 0:
            return 0, 0
        return at + 1, (start - base) << 32 | (at - start) << 1 | (flags & ESCAPED)
    if kind <= DECIMAL or (kind == INSTANT and octet != _QUOTE):
        if kind == BOOLEAN:
            return (word(at, end), 1 if octet == 116 else 0) if octet == 116 or octet == 102 else (0, 0)
        return _figure(plan, name, at, end)
    if kind <= INSTANT:
        return _stamp(plan, name, at, first, end) if octet == _QUOTE else (0, 0)
    if kind == JSON:
        start = at
        at, flags = value(at, first, end, bets.room)
        if flags & OTHERWISE:
            return 0, 0
        return at, (start - base) << 32 | (at - start) << 1 | (_SPELLING if flags & SPACED else 0)
    return 0, 0


@compiled
def _keep(plan: Plan, name: int, to: int, opening: bool, at: int, end: int, spaced: bool) -> int:
    """Write a member into ``_rest``: never more bytes than it has in the record. The place behind it."""
    size = get(plan.name_size, name)
    store8(to, _OPEN if opening else _COMMA)
    store8(to + 1, _QUOTE)
    copy(to + 2, get(plan.name_at, name), size)
    to += size + 2
    store8(to, _QUOTE)
    store8(to + 1, _COLON)
    return to + 2 + write(to + 2, at, end, spaced)


@compiled
def _record(
    plan: Plan, bets: Bets, slots: Slots, row: int, first: int, end: int, base: int, rest: int
) -> tuple[bool, int]:
    """Whether the record was taken, and the place in ``rest`` behind its unknown members.

    ``first`` and ``end`` bound the record, ``base`` is where the values start.
    """
    at, before, to = first, 0, rest
    while True:
        size = get(bets.size, before)
        if size and size < end - at and same(at, get(bets.at, before), size):
            at += size
            name = get(bets.name, before)
        else:
            start = at
            at, name = _member(plan, bets, at, first, end, before == 0)
            if name == -2:
                break
            if name < 0 or at >= end:
                return False, rest
            put(bets.at, before, start)
            put(bets.size, before, at - start)
            put(bets.name, before, name)
        if get(bets.seen, name) == row:
            return False, rest
        put(bets.seen, name, row)
        octet = load8(at)
        if octet <= 32:
            at = skip(at, end)
            if at >= end:
                return False, rest
            octet = load8(at)
        kind = get(plan.kinds, name)
        if kind in (KEEP, IGNORE):
            start = at
            at, flags = value(at, first, end, bets.room)
            if at == 0:
                return False, rest
            if kind == KEEP:
                if flags & OTHERWISE:
                    return False, rest
                to = _keep(plan, name, to, to == rest, start, at, flags & SPACED != 0)
        elif octet == _N:
            at = word(at, end)
        else:
            at, slot = _slot(plan, bets, name, at, first, end, base)
            if at == 0:
                return False, rest
            put(slots.values, name * slots.rows + row, slot)
            if kind >= TEXT:
                put(bets.text, name, get(bets.text, name) + ((slot >> 1) & 0x7FFFFFFF))
            store8(slots.valid + name * slots.rows + row, 1)
        if at == 0 or at >= end:
            return False, rest
        octet = load8(at)
        if octet == _CLOSE:
            break
        if octet <= 32:
            close = skip(at, end)
            if close < end and load8(close) == _CLOSE:
                at = close
                break
        before = name + 1
    if skip(at + 1, end) != end:
        return False, rest
    if to != rest:
        store8(to, _CLOSE)
        to += 1
    return True, to


@compiled
def parse(plan: Plan, bets: Bets, slots: Slots, base: int, size: int, offsets: int, valid: int, rest: int) -> int:
    """Fill the slots from the ``size`` bytes of values at ``base``, and give the number of rows that are slow.

    ``offsets`` are the rows' bounds from ``base`` (int32, one more than rows). ``valid`` has a byte for each row,
    0 if it has no value; as 0 itself it says that all have. ``rest`` is the place of as many bytes as there are
    from the first row's start to the last one's end.
    """
    for name in range(plan.columns):
        _find(plan, bets, get(plan.name_at, name), get(plan.name_size, name))
    to, slow = rest, 0
    behind_last, last = load32(offsets), min(load32(offsets + 4 * slots.rows), size)
    for row in range(slots.rows):
        if valid != 0 and load8(valid + row) == 0:
            store8(slots.status + row, NULL)
            continue
        start, stop = load32(offsets + 4 * row), load32(offsets + 4 * row + 4)
        taken = False
        if behind_last <= start < stop <= last:  # as Arrow promises; ``rest`` would be too small otherwise
            behind_last = stop
            taken, behind = _record(plan, bets, slots, row, base + start, base + stop, base, to)
            if behind != to:
                put(slots.values, plan.columns * slots.rows + row, (to - rest) << 32 | (behind - to) << 1)
                store8(slots.valid + plan.columns * slots.rows + row, 1)
                put(bets.text, plan.columns, get(bets.text, plan.columns) + behind - to)
                to = behind
        if not taken:
            store8(slots.status + row, SLOW)
            slow += 1
    return slow


class Job(NamedTuple):
    """One column of text for `gather`: addresses, apart from ``json``, which is 0 or 1.

    Of ``slots`` and ``valid`` (see `Slots`) the places are from ``base``, and nothing behind ``limit`` is read.
    ``other`` and ``other_offsets`` are texts from elsewhere. What is written goes to ``offsets`` and to ``to``,
    which has room for `SHORT_BYTES_MAX` bytes more than all texts; ``start`` is where it was at first.
    """

    slots: int
    valid: int
    json: int
    base: int
    limit: int
    other: int
    other_offsets: int
    offsets: int
    to: int
    start: int


@compiled
def _gather(job: Job, first: int, last: int, source: int) -> int:
    """Write the texts of a part of the rows, and give the place behind them."""
    to = job.to
    for row in range(first, last):
        origin = get(source, row) if source != 0 else row
        if origin < 0:
            begin = load32(job.other_offsets + 4 * (-1 - origin))
            size = load32(job.other_offsets - 4 * origin) - begin
            copy(to, job.other + begin, size)
            to += size
        elif load8(job.valid + origin):
            slot = get(job.slots, origin)
            begin, size = job.base + (slot >> 32), (slot >> 1) & 0x7FFFFFFF
            if slot & _SPELLING:
                to += write(to, begin, begin + size, True) if job.json else unescape(to, begin, begin + size)
            else:
                if size <= SHORT_BYTES_MAX <= job.limit - begin:
                    move16(to, begin)  # the next text, or nothing, comes over what is too much
                    move16(to + 16, begin + 16)
                else:
                    copy(to, begin, size)
                to += size
        store32(job.offsets + 4 * row + 4, to - job.start)
    return to


@compiled
def gather(jobs: int, count: int, rows: int, source: int) -> None:
    """Write each column's texts one after another, and where each ends, for ``count`` jobs (`Job`, as int64).

    ``source`` has for each row the row of the slots, or -1 - i for the i-th text from elsewhere; as 0 it stands
    for the rows in order. Some rows of all columns at a time, while the processor still has their bytes at hand.
    """
    for first in range(0, rows, _PART_ROWS):
        last = min(first + _PART_ROWS, rows)
        for each in range(count):
            place = jobs + 8 * 10 * each
            job = Job(
                get(place, 0),
                get(place, 1),
                get(place, 2),
                get(place, 3),
                get(place, 4),
                get(place, 5),
                get(place, 6),
                get(place, 7),
                get(place, 8),
                get(place, 9),
            )
            if first == 0:
                store32(job.offsets, 0)
            put(place, 8, _gather(job, first, last, source))
