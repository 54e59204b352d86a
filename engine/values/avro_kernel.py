"""Avro records walked by compiled code: every byte accounted for, and where each top-level field's value lies.

The walk trusts nothing: lengths, counts, branches, symbols and nesting are checked before use, and a record must
end where its bytes end. So what a library reads of it afterwards cannot lead it astray. Not here: schemas
(`engine.values.avro` makes `Plan`s of them), and Arrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from engine.values.documents import DEPTH_MAX

#: Kinds of nodes. The first ones are scalars.
NULL, BOOLEAN, INT, LONG, FLOAT, DOUBLE, BYTES, STRING, FIXED, ENUM, ARRAY, MAP, UNION, RECORD = range(14)

#: What is wrong with a record; 0 is nothing.
GOOD, TRUNCATED, VARINT, FLAG, LENGTH, SYMBOL, BRANCH, COUNT, DEEP, EXTRA = range(10)

REASONS = {
    TRUNCATED: "the value ends within {field}",
    VARINT: "{field} has a malformed integer",
    FLAG: "{field} has a boolean that is neither 0 nor 1",
    LENGTH: "{field} has a length that is negative or reaches beyond the value's end",
    SYMBOL: "{field} has an enum index that the schema does not have",
    BRANCH: "{field} has a union branch that the schema does not have",
    COUNT: "{field} has a block of more elements than bytes",
    DEEP: f"{{field}} is nested too deep: more than {DEPTH_MAX} levels of arrays, maps and records",
    EXTRA: "the value has bytes after its last field",
}

NO_BRANCH = -1  #: of a field that is no union, and of null branches that are none


class Plan(NamedTuple):
    """A schema as tables. Of node n: ``kinds[n]``; ``sizes[n]`` (bytes of a FIXED, symbols of an ENUM, children of
    a UNION or RECORD); ``firsts[n]``: where its children stand in ``children`` (one of an ARRAY or MAP).

    Of top-level field f: ``fields[f]`` is its node, or, where ``null_at[f]`` is not `NO_BRANCH`, that of the other
    branch of a union with null, which is its branch ``null_at[f]``; ``scalar[f]``: whether that node is to be read.
    """

    kinds: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray
    children: np.ndarray
    fields: np.ndarray
    null_at: np.ndarray
    scalar: np.ndarray


class Slots(NamedTuple):
    """By field and record: ``valid``; ``at``, where the value starts; ``value``: the number (of a double or float
    its bits), or how many bytes it has. By record: ``fault`` and ``place``, the field that it is in.
    """

    valid: np.ndarray
    at: np.ndarray
    value: np.ndarray
    fault: np.ndarray
    place: np.ndarray


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep anything in: each process compiles for itself
        return njit(nogil=True)(function)


@_compiled
def _integer(octets, at, end):  # type: ignore[no-untyped-def]
    """A zigzag varint, where it ends, and what is wrong with it."""
    result = np.uint64(0)
    shift = 0
    while True:
        if at >= end:
            return 0, at, TRUNCATED
        octet = octets[at]
        at += 1
        if shift == 63 and octet > 1:
            return 0, at, VARINT
        result |= np.uint64(octet & 127) << np.uint64(shift)
        if octet < 128:
            break
        shift += 7
    half = np.int64(result >> np.uint64(1))
    return (~half if result & np.uint64(1) else half), at, GOOD


@_compiled
def _scalar(plan, node, octets, at, end):  # type: ignore[no-untyped-def]
    """The number or the length of a scalar, where its bytes start, where it ends, and what is wrong."""
    kind = plan.kinds[node]
    if kind == NULL:
        return 0, at, at, GOOD
    if kind == BOOLEAN:
        if at >= end:
            return 0, at, at, TRUNCATED
        if octets[at] > 1:
            return 0, at, at, FLAG
        return np.int64(octets[at]), at, at + 1, GOOD
    if kind in (FLOAT, DOUBLE, FIXED):
        size = 4 if kind == FLOAT else 8 if kind == DOUBLE else plan.sizes[node]
        if size > end - at:
            return 0, at, at, TRUNCATED
        bits = np.uint64(0)
        if kind != FIXED:
            for place in range(size):
                bits |= np.uint64(octets[at + place]) << np.uint64(8 * place)
            return np.int64(bits), at, at + size, GOOD
        return np.int64(size), at, at + size, GOOD
    number, start, fault = _integer(octets, at, end)
    if fault != GOOD:
        return 0, at, at, fault
    if kind == INT and (number < -2147483648 or number > 2147483647):
        return 0, at, at, VARINT
    if kind == ENUM and (number < 0 or number >= plan.sizes[node]):
        return 0, at, at, SYMBOL
    if kind in (BYTES, STRING):
        if number < 0 or number > end - start:
            return 0, at, at, LENGTH
        return number, start, start + number, GOOD
    return number, at, start, GOOD


@_compiled
def _skip(plan, node, octets, at, end, nodes, left):  # type: ignore[no-untyped-def]
    """Where a value of any kind ends, and what is wrong with it.

    Open arrays, maps and records stand on a stack: their ``nodes``, and how many children are ``left`` (of an array
    or map: elements of the block, -1 before its count is read).
    """
    depth = 0
    entering = node
    while True:
        if entering >= 0:
            kind = plan.kinds[entering]
            while kind == UNION:
                branch, at, fault = _integer(octets, at, end)
                if fault != GOOD:
                    return at, fault
                if branch < 0 or branch >= plan.sizes[entering]:
                    return at, BRANCH
                entering = plan.children[plan.firsts[entering] + branch]
                kind = plan.kinds[entering]
            if kind < ARRAY:
                _, _, at, fault = _scalar(plan, entering, octets, at, end)
                if fault != GOOD:
                    return at, fault
            else:
                if depth == len(nodes):
                    return at, DEEP
                nodes[depth] = entering
                left[depth] = plan.sizes[entering] if kind == RECORD else -1
                depth += 1
            entering = -1
        if depth == 0:
            return at, GOOD
        top = nodes[depth - 1]
        kind = plan.kinds[top]
        if kind == RECORD:
            if left[depth - 1] == 0:
                depth -= 1
                continue
            entering = plan.children[plan.firsts[top] + plan.sizes[top] - left[depth - 1]]
            left[depth - 1] -= 1
            continue
        if left[depth - 1] <= 0:
            count, at, fault = _integer(octets, at, end)
            if fault != GOOD:
                return at, fault
            if count == 0:
                depth -= 1
                continue
            if count < 0:
                size, at, fault = _integer(octets, at, end)
                if fault != GOOD:
                    return at, fault
                if size < 0 or size > end - at:
                    return at, LENGTH
                if count == -9223372036854775808:
                    return at, COUNT
                count = -count
            if count > end - at:
                return at, COUNT
            left[depth - 1] = count
        left[depth - 1] -= 1
        if kind == MAP:
            size, at, fault = _integer(octets, at, end)
            if fault != GOOD:
                return at, fault
            if size < 0 or size > end - at:
                return at, LENGTH
            at += size
        entering = plan.children[plan.firsts[top]]


@_compiled
def walk(plan, octets, starts, ends, slots, nodes, left):  # type: ignore[no-untyped-def]
    """Fill the slots of the records that lie from ``starts`` to ``ends``.

    ``nodes`` and ``left`` are room for as many levels as a record may have.
    """
    for row in range(len(starts)):
        at, end, fault = starts[row], ends[row], GOOD
        for field in range(len(plan.fields)):
            slots.place[row] = field
            node = plan.fields[field]
            slots.valid[field, row] = 1
            if plan.null_at[field] != NO_BRANCH:
                branch, at, fault = _integer(octets, at, end)
                if fault != GOOD:
                    break
                if branch < 0 or branch > 1:
                    fault = BRANCH
                    break
                if branch == plan.null_at[field]:
                    slots.valid[field, row] = 0
                    continue
            if plan.scalar[field]:
                number, start, at, fault = _scalar(plan, node, octets, at, end)
                slots.value[field, row] = number
                slots.at[field, row] = start
            else:
                slots.at[field, row] = at
                at, fault = _skip(plan, node, octets, at, end, nodes, left)
                slots.value[field, row] = at - slots.at[field, row]
            if fault != GOOD:
                break
        if fault == GOOD and at != end:
            fault = EXTRA
        slots.fault[row] = fault
        if fault != GOOD:
            for field in range(len(plan.fields)):
                slots.valid[field, row] = 0


@_compiled
def gather(octets, valid, at, size, offsets, target):  # type: ignore[no-untyped-def]
    """The bytes of one field, side by side, and where each starts; with an empty target, the offsets alone."""
    if len(target) == 0:
        total = 0
        for row in range(len(valid)):
            offsets[row] = total
            if valid[row]:
                total += size[row]
        offsets[len(valid)] = total
        return
    for row in range(len(valid)):
        if valid[row]:
            start, place = at[row], offsets[row]
            for octet in range(size[row]):
                target[place + octet] = octets[start + octet]
