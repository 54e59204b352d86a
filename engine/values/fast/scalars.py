"""Strings, numbers, days and instants of JSON at plain addresses: where they end, and what they are worth.

Each function reads only between the addresses that it is given, and says no (an end of 0, or `NOTHING`) to
whatever is malformed or beyond what it knows; the caller then leaves the whole record to the slow decoder.
Not here: arrays and objects (`engine.values.fast.nested`), and which value a column takes (`.kernel`).
"""

from __future__ import annotations

import numpy as np

from engine.values.fast.primitives import (
    BLOCK_BYTES,
    below,
    compiled,
    high_product,
    leading_zeros,
    load8,
    load64,
    lowest_bit,
    scan,
    shift_right,
    store8,
)

NOTHING = -(2**63)  #: no day, no instant, no double

ESCAPED = 1  #: a string has escapes
RESPELT = 2  #: and such that a writer of JSON would write otherwise (``\u0041``, ``\/``)

INTEGER = 1  #: a number has neither fraction nor exponent
NEGATIVE = 2
CANONICAL = 4  #: a number is spelt as a writer of JSON would write its value

DIGITS_MAX = 19  #: significant digits that fit into 64 bits
POWER_MIN, POWER_MAX = -300, 288  #: of ten, with which `nearest` deals

_QUOTE, _BACKSLASH = 34, 92
_ALL_HIGH = -0x7F7F7F7F7F7F7F80  # the highest bit of each of 8 bytes
_ESCAPES = np.zeros(256, np.uint8)  # what a letter behind a backslash stands for, except u
for _letter, _meaning in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    _ESCAPES[_letter] = _meaning


@compiled
def skip(at: int, end: int) -> int:
    """The first place that holds no whitespace."""
    while at < end:
        octet = load8(at)
        if octet != 32 and octet != 10 and octet != 13 and octet != 9:
            break
        at += 1
    return at


@compiled
def word(at: int, end: int) -> int:
    """The end of ``true``, ``false`` or ``null``, or 0."""
    first = load8(at)
    if first == 116:
        if end - at >= 4 and load8(at + 1) == 114 and load8(at + 2) == 117 and load8(at + 3) == 101:
            return at + 4
    elif first == 110:
        if end - at >= 4 and load8(at + 1) == 117 and load8(at + 2) == 108 and load8(at + 3) == 108:
            return at + 4
    elif first == 102 and end - at >= 5 and load8(at + 1) == 97:
        return at + 5 if load8(at + 2) == 108 and load8(at + 3) == 115 and load8(at + 4) == 101 else 0
    return 0


@compiled
def _scan_few(at: int, count: int) -> int:
    """As `scan`, of fewer bytes than a block."""
    bits = 0
    for place in range(count):
        octet = load8(at + place)
        if octet < 32 or octet in (_QUOTE, _BACKSLASH):
            bits |= 1 << place
        if octet >= 128:
            bits |= 1 << (32 + place)
    return bits


@compiled
def _hexadecimal(at: int) -> int:
    """The number of 4 hexadecimal digits, or -1."""
    number = 0
    for place in range(4):
        octet = load8(at + place)
        if 48 <= octet <= 57:
            number = number * 16 + octet - 48
        elif 97 <= octet <= 102:
            number = number * 16 + octet - 87
        elif 65 <= octet <= 70:
            number = number * 16 + octet - 55
        else:
            return -1
    return number


@compiled
def _code_point(at: int, end: int) -> tuple[int, int]:
    r"""The code point of a ``\u`` escape or a pair of them, and its bytes; 0 bytes if it is malformed or half."""
    if end - at < 6:
        return 0, 0
    high = _hexadecimal(at + 2)
    if high < 0 or 0xDC00 <= high < 0xE000:
        return 0, 0
    if high < 0xD800 or high >= 0xE000:
        return high, 6
    if end - at < 12 or load8(at + 6) != _BACKSLASH or load8(at + 7) != 117:
        return 0, 0
    low = _hexadecimal(at + 8)
    if low < 0xDC00 or low >= 0xE000:
        return 0, 0
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00), 12


@compiled
def is_utf8(at: int, end: int) -> bool:
    """Whether the bytes are UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF."""
    while at < end:
        if end - at >= 8 and load64(at) & _ALL_HIGH == 0:
            at += 8
            continue
        lead = load8(at)
        at += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        if end - at < more:
            return False
        second = load8(at)
        low, high = 0x80, 0xBF
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
        elif lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
        if second < low or second > high:
            return False
        for place in range(1, more):
            if load8(at + place) & 0xC0 != 0x80:
                return False
        at += more
    return True


@compiled
def string(at: int, first: int, end: int) -> tuple[int, int]:
    """The place of the quote that closes the string whose text starts at ``at``, and `ESCAPED` and `RESPELT`.

    ``first`` and ``end`` are the record's bounds. 0 for a string that is cut off, has a control character, a
    bad escape, half a surrogate pair, or bytes that are no UTF-8.
    """
    start, flags, beyond = at, 0, 0
    while True:
        left = end - at
        if left <= 0:
            return 0, 0
        if left >= BLOCK_BYTES:
            bits = scan(at)
        elif end - first >= BLOCK_BYTES:  # look at the last block of the record again, without what was seen
            bits = scan(end - BLOCK_BYTES)
            gone = BLOCK_BYTES - left
            bits = shift_right(bits & 0xFFFFFFFF, gone) | (shift_right(bits, 32 + gone) << 32)
        else:
            bits = _scan_few(at, left)
        ends = bits & 0xFFFFFFFF
        if ends == 0:
            beyond |= shift_right(bits, 32)
            at += min(left, BLOCK_BYTES)
            continue
        place = lowest_bit(ends)
        beyond |= shift_right(bits, 32) & ((1 << place) - 1)
        at += place
        octet = load8(at)
        if octet == _QUOTE:
            if beyond != 0 and not is_utf8(start, at):
                return 0, 0
            return at, flags
        if octet != _BACKSLASH or end - at < 2:
            return 0, 0
        letter = load8(at + 1)
        flags |= ESCAPED
        if letter == 117:
            flags |= RESPELT
            _, size = _code_point(at, end)
            if size == 0:
                return 0, 0
            at += size
        elif _ESCAPES[letter] != 0:
            if letter == 47:
                flags |= RESPELT
            at += 2
        else:
            return 0, 0


@compiled
def unescape(to: int, at: int, end: int) -> int:
    """Write the text of a string that `string` took, without its escapes: never longer. The number of bytes."""
    first = to
    while at < end:
        octet = load8(at)
        if octet != _BACKSLASH:
            store8(to, octet)
            at += 1
            to += 1
            continue
        letter = load8(at + 1)
        if letter != 117:
            store8(to, np.int64(_ESCAPES[letter]))
            at += 2
            to += 1
            continue
        point, size = _code_point(at, end)
        at += size
        if point < 0x80:
            store8(to, point)
            to += 1
        elif point < 0x800:
            store8(to, 0xC0 | (point >> 6))
            store8(to + 1, 0x80 | (point & 0x3F))
            to += 2
        elif point < 0x10000:
            store8(to, 0xE0 | (point >> 12))
            store8(to + 1, 0x80 | ((point >> 6) & 0x3F))
            store8(to + 2, 0x80 | (point & 0x3F))
            to += 3
        else:
            store8(to, 0xF0 | (point >> 18))
            store8(to + 1, 0x80 | ((point >> 12) & 0x3F))
            store8(to + 2, 0x80 | ((point >> 6) & 0x3F))
            store8(to + 3, 0x80 | (point & 0x3F))
            to += 4
    return to - first


@compiled
def _exponent(at: int, end: int) -> tuple[int, int]:
    """The end of what follows an ``e``, and the exponent; an end of 0 for no digits, or more than 4."""
    negative = False
    if at < end and (load8(at) == 45 or load8(at) == 43):
        negative = load8(at) == 45
        at += 1
    start, power = at, 0
    while at < end and 48 <= load8(at) <= 57:
        if at - start == 4:
            return 0, 0
        power = power * 10 + load8(at) - 48
        at += 1
    if at == start:
        return 0, 0
    return at, -power if negative else power


@compiled
def number(at: int, end: int) -> tuple[int, int, int, int, int]:
    """The end of a number, its digits as one integer (unsigned, in 64 bits), its power of ten, the number of
    significant digits, and `INTEGER`, `NEGATIVE` and `CANONICAL`.

    With more than `DIGITS_MAX` digits the integer is not that of all digits. An end of 0 for what is malformed,
    a number of 10 ** 300 or more, and ``-0``, which readers take for different things.
    """
    flags, mantissa, digits, power = INTEGER, 0, 0, 0
    if load8(at) == 45:
        flags |= NEGATIVE
        at += 1
    start = at
    while at < end:
        digit = load8(at) - 48
        if digit < 0 or digit > 9:
            break
        if digits < DIGITS_MAX:
            mantissa = mantissa * 10 + digit
        at += 1
        digits = at - start
    if digits == 0:
        return 0, 0, 0, 0, 0
    if load8(start) == 48:
        if digits > 1:
            return 0, 0, 0, 0, 0
        digits = 0
    whole = digits
    plain = digits > 0 or flags & NEGATIVE == 0
    if at < end and load8(at) == 46:
        flags &= ~INTEGER
        at += 1
        start = at
        digit = 0
        while at < end:
            octet = load8(at) - 48
            if octet < 0 or octet > 9:
                break
            digit = octet
            at += 1
            if digits > 0 or digit > 0:
                if digits < DIGITS_MAX:
                    mantissa = mantissa * 10 + digit
                digits += 1
        power = start - at
        if power == 0:
            return 0, 0, 0, 0, 0
        lone_zero = power == -1 and digit == 0
        zeros = -power - digits if whole == 0 else 0
        plain = whole <= 15 and (lone_zero or (digit > 0 and zeros <= 2))
    if at < end and load8(at) | 32 == 101:
        flags &= ~INTEGER
        plain = False
        at, scale = _exponent(at + 1, end)
        power += scale
    if digits + power > 300 or (digits == 0 and flags & INTEGER and flags & NEGATIVE):
        return 0, 0, 0, 0, 0
    return at, mantissa, power, digits, flags | (CANONICAL if plain else 0)


def _powers_of_five() -> np.ndarray:
    """128 bits of 5 ** q for each power q, the highest bit set: two words, the upper one first."""
    words = []
    for power in range(POWER_MIN, POWER_MAX + 1):
        if power >= 0:
            bits = (5**power << 128) >> (5**power).bit_length()
        else:
            size = (5**-power).bit_length() + 127
            bits = (1 << size) // 5**-power + 1
        words += [bits >> 64, bits & 0xFFFFFFFFFFFFFFFF]
    return np.array(words, np.uint64).view(np.int64)


_FIVES = _powers_of_five()


@compiled
def nearest(mantissa: int, power: int) -> int:
    """The bits of the double nearest to ``mantissa * 10 ** power``, or `NOTHING` where this way cannot tell.

    The mantissa is unsigned. As in Daniel Lemire, "Number Parsing at a Gigabyte per Second", Software:
    Practice and Experience 51 (8), 2021, algorithm 1; subnormal and infinite results are left out.
    """
    if mantissa == 0:
        return 0
    if power < POWER_MIN or power > POWER_MAX:
        return NOTHING
    zeros = leading_zeros(mantissa)
    mantissa = mantissa << zeros
    at = 2 * (power - POWER_MIN)
    upper, lower = high_product(mantissa, _FIVES[at]), mantissa * _FIVES[at]
    if upper & 0x1FF == 0x1FF:  # the 9 bits below the 55 wanted: what is cut off may carry into them
        carry = high_product(mantissa, _FIVES[at + 1])
        lower += carry
        upper += below(lower, carry)
        if lower == -1 and (power < -27 or power > 55):
            return NOTHING
    top = shift_right(upper, 63)
    bits = shift_right(upper, top + 9)
    exponent = ((217706 * power) >> 16) + 63 + top - zeros + 1023
    if exponent <= 0:
        return NOTHING
    if -4 <= power <= 23 and bits & 3 == 1 and (lower == 0 or lower == 1) and bits << (top + 9) == upper:
        bits &= ~1  # exactly half way: to even, which is down
    bits = (bits + (bits & 1)) >> 1
    if bits == 1 << 53:
        bits >>= 1
        exponent += 1
    if exponent >= 2047:
        return NOTHING
    return (exponent << 52) | (bits & ((1 << 52) - 1))


@compiled
def _two(at: int) -> int:
    """The number of two digits, or -100."""
    tens, ones = load8(at) - 48, load8(at + 1) - 48
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return -100
    return tens * 10 + ones


@compiled
def day(at: int) -> int:
    """Days since 1970 of the 10 bytes ``YYYY-MM-DD``, of the years 1 to 9999, or `NOTHING`."""
    century, rest, month, days = _two(at), _two(at + 2), _two(at + 5), _two(at + 8)
    year = century * 100 + rest
    if century < 0 or rest < 0 or year < 1 or load8(at + 4) != 45 or load8(at + 7) != 45:
        return NOTHING
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    most = 30 if month in (4, 6, 9, 11) else 31
    if month == 2:
        most = 29 if leap else 28
    if month < 1 or month > 12 or days < 1 or days > most:
        return NOTHING
    if month <= 2:  # years that start in March end with the day that is not always there
        year -= 1
        month += 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + days - 719469


@compiled
def instant(at: int, end: int, decimals: int) -> tuple[int, bool]:
    """Microseconds since 1970 of an ISO 8601 time with at most ``decimals`` decimals, and whether it has a zone.

    `NOTHING` for what ``docs/values.md`` does not take, the range of the result apart.
    """
    if end - at < 16:
        return NOTHING, False
    days, hours, minutes = day(at), _two(at + 11), _two(at + 14)
    between = load8(at + 10)
    if days == NOTHING or hours < 0 or hours > 23 or minutes < 0 or minutes > 59 or load8(at + 13) != 58:
        return NOTHING, False
    if between != 84 and between != 32:
        return NOTHING, False
    at += 16
    seconds, micros = 0, 0
    if end - at >= 3 and load8(at) == 58:
        seconds = _two(at + 1)
        if seconds < 0 or seconds > 59:
            return NOTHING, False
        at += 3
        if end - at >= 2 and load8(at) == 46:
            at += 1
            unit = 100_000
            start = at
            while at < end and 48 <= load8(at) <= 57:
                micros += unit * (load8(at) - 48)
                unit //= 10
                at += 1
            if at == start or at - start > decimals:
                return NOTHING, False
    stamp = (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000 + micros
    if at == end:
        return stamp, False
    sign = load8(at)
    if sign == 90 and end - at == 1:
        return stamp, True
    if end - at != 6 or (sign != 43 and sign != 45) or load8(at + 3) != 58:
        return NOTHING, False
    hours, minutes = _two(at + 1), _two(at + 4)
    if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
        return NOTHING, False
    ahead = (hours * 60 + minutes) * 60_000_000
    return (stamp - ahead if sign == 43 else stamp + ahead), True
