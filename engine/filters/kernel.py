"""The compiled scanner: which records of a batch match, as far as it can tell without making Python objects.

It reads each JSON value once, keeps the tokens at the paths that the filters name, and asks the rules about them.
Whatever needs more (arrays at those paths, escapes, numbers of more than 15 digits, repeated keys, operators
that it does not know, anything that may be no JSON) is `ASK`: the caller asks `engine.filters.evaluate`.

Everything is an address or an ``int64``, as in `engine.values.fast.kernel`. Not here: making the tables
(`engine.filters.columnar`).
"""

from __future__ import annotations

from typing import NamedTuple

from engine.filters.codes import (
    ABSENT,
    ANYTHING_BUT,
    ASK,
    BRANCH_FIELDS,
    CONDITION_FIELDS,
    EQUAL,
    EXISTS,
    FALSE,
    FOLDED_PREFIX,
    FOLDED_SUFFIX,
    FOLDED_TEXT,
    MISSING,
    NO,
    NODE_FIELDS,
    NULL,
    NUMBER,
    NUMBER_HARD,
    PREFIX,
    RANGE,
    RULE_FIELDS,
    STRING,
    STRING_HARD,
    SUFFIX,
    TEXT,
    TRUE,
    WILDCARD,
    WORD,
    YES,
)
from engine.values.fast.nested import value
from engine.values.fast.primitives import compiled, get, load8, load32, put, same, store8
from engine.values.fast.scalars import NEGATIVE, NOTHING, is_utf8, nearest, number, skip, string, word

#: What a record is: read, neither object nor array (or no value at all), or to be asked about.
READ, PLAIN, UNREAD = 0, 1, 2

_DIGITS_MAX = 15  # significant ones that always come back from a double

_QUOTE, _COMMA, _COLON, _MINUS, _DOT = 34, 44, 58, 45, 46
_ARRAY, _ARRAY_END, _OBJECT, _OBJECT_END = 91, 93, 123, 125
_N, _T = 110, 116


class Plan(NamedTuple):
    """Addresses of what the filters are: see `engine.filters.codes` for the tables.

    ``lenient`` is 1 where a rule that does not fit the kind of payload is passed over (Kafka), 0 where the
    record fails it (Kinesis). ``whole`` is the leaf that stands for a plain payload itself, or -1.
    """

    nodes: int
    rules: int
    conditions: int
    branches: int
    branch_count: int
    groups: int
    leaf_count: int
    lenient: int
    whole: int


class Work(NamedTuple):
    """Addresses that one call writes to: tokens of the leaves (kind, two numbers), and each node's last row."""

    kinds: int
    first: int
    second: int
    stamps: int
    stack: int
    room: int


@compiled
def _child(plan: Plan, node: int, at: int, size: int) -> int:
    """The node that a key leads to from a node, or -1. Keys with dots lead through several."""
    while True:
        child = get(plan.nodes, NODE_FIELDS * node)
        while child >= 0:
            length = get(plan.nodes, NODE_FIELDS * child + 3)
            if (
                length <= size
                and (length == size or load8(at + length) == _DOT)
                and same(at, get(plan.nodes, NODE_FIELDS * child + 2), length)
            ):
                break
            child = get(plan.nodes, NODE_FIELDS * child + 1)
        if child < 0:
            return -1
        length = get(plan.nodes, NODE_FIELDS * child + 3)
        if length == size:
            return child
        node = child
        at += length + 1
        size -= length + 1


@compiled
def _scalar(work: Work, leaf: int, at: int, first: int, end: int) -> int:
    """The end of a string, number or word, or 0; what it is goes to the leaf, unless that is -1."""
    octet = load8(at)
    kind, one, two = MISSING, 0, 0
    if octet == _QUOTE:
        start = at + 1
        at, flags = string(start, first, end)
        if at == 0:
            return 0
        kind, one, two = STRING_HARD if flags else STRING, start, at - start
        at += 1
    elif octet == _MINUS or 48 <= octet <= 57:
        at, mantissa, power, digits, flags = number(at, end)
        if at == 0:
            return 0
        if leaf >= 0:
            kind = NUMBER_HARD
            if digits <= _DIGITS_MAX:
                bits = nearest(mantissa, power)
                if bits != NOTHING:
                    kind, one = NUMBER, -bits if flags & NEGATIVE else bits
    else:
        kind = NULL if octet == _N else TRUE if octet == _T else FALSE
        at = word(at, end)
    if leaf >= 0:
        put(work.kinds, leaf, kind)
        put(work.first, leaf, one)
        put(work.second, leaf, two)
    return at


@compiled
def _member(plan: Plan, node: int, at: int, first: int, end: int) -> tuple[int, int]:
    """The place of a member's value, or 0 for what has to be asked about, and the node of its name, or -1."""
    if at >= end or load8(at) != _QUOTE:
        return 0, -1
    start = at + 1
    at, flags = string(start, first, end)
    if at == 0 or flags:
        return 0, -1
    child = _child(plan, node, start, at - start)
    at += 1
    if at >= end or load8(at) != _COLON:
        at = skip(at, end)
        if at >= end or load8(at) != _COLON:
            return 0, -1
    at += 1
    if at < end and load8(at) <= 32:
        at = skip(at, end)
    return (at, child) if at < end else (0, -1)


@compiled
def _read(plan: Plan, work: Work, row: int, first: int, end: int) -> int:
    """Read a record into the leaves: `READ`, `PLAIN` or `UNREAD`."""
    at = skip(first, end)
    if at >= end:
        return PLAIN
    octet = load8(at)
    if octet != _OBJECT:
        return UNREAD if octet == _ARRAY else PLAIN
    at = skip(at + 1, end)
    if at >= end:
        return UNREAD
    if load8(at) == _OBJECT_END:
        return READ if skip(at + 1, end) == end else UNREAD
    node, depth = 0, 0
    while True:
        at, child = _member(plan, node, at, first, end)
        if at == 0:
            return UNREAD
        octet = load8(at)
        leaf = -1
        if child >= 0:
            if get(work.stamps, child) == row:  # the path a second time
                return UNREAD
            put(work.stamps, child, row)
            leaf = get(plan.nodes, NODE_FIELDS * child + 4)
            if octet == _OBJECT and get(plan.nodes, NODE_FIELDS * child) >= 0:
                inside = skip(at + 1, end)
                if inside >= end:
                    return UNREAD
                if load8(inside) != _OBJECT_END:
                    put(work.stack, depth, node)
                    depth += 1
                    node, at = child, inside
                    continue
            elif octet == _ARRAY:
                inside = skip(at + 1, end)
                if inside >= end or load8(inside) != _ARRAY_END:
                    return UNREAD
        if octet in (_OBJECT, _ARRAY):
            at, _ = value(at, first, end, work.room)
        else:
            at = _scalar(work, leaf, at, first, end)
        if at == 0:
            return UNREAD
        while True:
            if at < end and load8(at) <= 32:
                at = skip(at, end)
            if at >= end:
                return UNREAD
            octet = load8(at)
            at += 1
            if octet == _COMMA:
                if at < end and load8(at) <= 32:
                    at = skip(at, end)
                break
            if octet != _OBJECT_END:
                return UNREAD
            if depth == 0:
                return READ if skip(at, end) == end else UNREAD
            depth -= 1
            node = get(work.stack, depth)


@compiled
def _folded(at: int, folded: int, size: int) -> bool:
    """Whether bytes are those at ``folded`` (lower case, ASCII) but for the case of ASCII letters."""
    for place in range(size):
        octet = load8(at + place)
        if 65 <= octet <= 90:
            octet += 32
        if octet != load8(folded + place):
            return False
    return True


@compiled
def _wildcard(plan: Plan, part: int, count: int, at: int, size: int) -> bool:
    """Whether a string consists of the parts with anything between them; each as far left as it goes."""
    end = at + size
    for place in range(count):
        text, length = (
            get(plan.rules, RULE_FIELDS * (part + place) + 1),
            get(plan.rules, RULE_FIELDS * (part + place) + 2),
        )
        if place == count - 1:
            if place == 0:
                return end - at == length and same(at, text, length)
            return end - at >= length and same(end - length, text, length)
        if place == 0:
            if end - at < length or not same(at, text, length):
                return False
        else:
            while end - at >= length and not same(at, text, length):
                at += 1
            if end - at < length:
                return False
        at += length
    return False


@compiled
def _one(plan: Plan, rule: int, kind: int, one: int, two: int) -> int:
    """Whether a rule that is no `ANYTHING_BUT` takes a token: `YES`, `NO` or `ASK`."""
    place = RULE_FIELDS * rule
    operator = get(plan.rules, place)
    if operator == EXISTS:
        return NO if kind == MISSING else YES
    if operator == ABSENT:
        return YES if kind == MISSING else NO
    if operator == WORD:
        return YES if kind == get(plan.rules, place + 1) else NO
    if operator in (EQUAL, RANGE):
        if kind == NUMBER_HARD:
            return ASK
        if kind != NUMBER:
            return NO
        return YES if get(plan.rules, place + 1) <= one <= get(plan.rules, place + 2) else NO
    if kind == STRING_HARD:
        return ASK
    if kind != STRING:
        return NO
    at, size = get(plan.rules, place + 1), get(plan.rules, place + 2)
    if operator == TEXT:
        return YES if two == size and same(one, at, size) else NO
    if operator == PREFIX:
        return YES if two >= size and same(one, at, size) else NO
    if operator == SUFFIX:
        return YES if two >= size and same(one + two - size, at, size) else NO
    if operator == FOLDED_TEXT:
        return YES if two == size and _folded(one, at, size) else NO
    if operator == FOLDED_PREFIX:
        return YES if two >= size and _folded(one, at, size) else NO
    if operator == FOLDED_SUFFIX:
        return YES if two >= size and _folded(one + two - size, at, size) else NO
    if operator == WILDCARD:
        return YES if _wildcard(plan, at, size, one, two) else NO
    return ASK


@compiled
def _condition(plan: Plan, work: Work, place: int) -> int:
    """Whether one of a condition's rules takes the token of its leaf."""
    leaf = get(plan.conditions, place + 1)
    kind, one, two = get(work.kinds, leaf), get(work.first, leaf), get(work.second, leaf)
    verdict = NO
    first = get(plan.conditions, place + 2)
    for rule in range(first, first + get(plan.conditions, place + 3)):
        answer = NO
        if get(plan.rules, RULE_FIELDS * rule) == ANYTHING_BUT:
            if kind != MISSING:
                inner = get(plan.rules, RULE_FIELDS * rule + 1)
                answer = YES
                for each in range(inner, inner + get(plan.rules, RULE_FIELDS * rule + 2)):
                    taken = _one(plan, each, kind, one, two)
                    if taken == YES:
                        answer = NO
                        break
                    if taken == ASK:
                        answer = ASK
        else:
            answer = _one(plan, rule, kind, one, two)
        if answer == YES:
            return YES
        if answer == ASK:
            verdict = ASK
    return verdict


@compiled
def _branch(plan: Plan, work: Work, branch: int, row: int, rows: int, groups: int, status: int, utf8: int) -> int:
    """Whether a branch takes the record; ``groups`` has its verdicts on what is not in the value."""
    place = BRANCH_FIELDS * branch
    first = get(plan.branches, place + 2)
    for at in range(first, first + get(plan.branches, place + 3)):
        if load8(groups + get(plan.groups, at) * rows + row) == 0:
            return NO
    verdict = YES
    first = get(plan.branches, place)
    for condition in range(first, first + get(plan.branches, place + 1)):
        at = CONDITION_FIELDS * condition
        leaf = get(plan.conditions, at + 1)
        answer = YES
        if status == UNREAD or get(plan.conditions, at):
            answer = ASK
        elif status == READ:
            if leaf != plan.whole:
                answer = _condition(plan, work, at)
        elif plan.lenient == 0:
            return NO
        elif leaf == plan.whole and utf8:
            answer = _condition(plan, work, at)
        if answer == NO:
            return NO
        if answer == ASK:
            verdict = ASK
    return verdict


@compiled
def judge(
    plan: Plan, work: Work, base: int, size: int, offsets: int, valid: int, rows: int, groups: int, verdicts: int
) -> int:
    """Set the verdict (a byte each) of all rows whose verdict is `NO` so far; how many became `ASK`.

    ``offsets`` are the rows' bounds from ``base`` (int32, one more than rows); ``valid`` has a byte for each row,
    0 if it has no value; as 0 itself it says that all have. ``groups`` has ``rows`` bytes for each group of
    conditions on what is not in the value: 1 where it holds.
    """
    asked = 0
    for row in range(rows):
        if load8(verdicts + row) != NO:
            continue
        start, stop = load32(offsets + 4 * row), load32(offsets + 4 * row + 4)
        first, end = base + start, base + stop
        for leaf in range(plan.leaf_count):
            put(work.kinds, leaf, MISSING)
        status, utf8 = PLAIN, 0
        if valid != 0 and load8(valid + row) == 0:
            if plan.whole >= 0:
                put(work.kinds, plan.whole, NULL)
                utf8 = 1
        elif start <= stop <= size:  # as Arrow promises
            status = _read(plan, work, row, first, end)
            if status == PLAIN and plan.whole >= 0 and is_utf8(first, end):
                put(work.kinds, plan.whole, STRING)
                put(work.first, plan.whole, first)
                put(work.second, plan.whole, stop - start)
                utf8 = 1
        else:
            status = UNREAD
        verdict = NO
        for branch in range(plan.branch_count):
            answer = _branch(plan, work, branch, row, rows, groups, status, utf8)
            if answer == YES:
                verdict = YES
                break
            if answer == ASK:
                verdict = ASK
        if verdict != NO:
            store8(verdicts + row, verdict)
            asked += 1 if verdict == ASK else 0
    return asked
