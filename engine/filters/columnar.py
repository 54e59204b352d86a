"""`Columnar`: the filters of a mapping over a whole batch, without a Python object for each record.

Compiles branches into the tables of `engine.filters.kernel` and calls it. Not here: the few records that it
cannot tell (`engine.filters.evaluate` can), and what is known of a record apart from its value
(`engine.filters.metadata`). Importing this compiles, or loads, machine code: done only where filters are set.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.filters import codes, entry, rules
from engine.filters.kernel import Plan, Work
from engine.filters.rules import Rule
from engine.values.fast.nested import scratch

_KINDS = {None: codes.NULL, True: codes.TRUE, False: codes.FALSE}
_FOLDED = {"whole": codes.FOLDED_TEXT, "prefix": codes.FOLDED_PREFIX, "suffix": codes.FOLDED_SUFFIX}
_INT64_MIN = -(2**63)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one branch asks: of paths inside the JSON value, of the whole plain value, and which groups hold.

    ``groups`` are rows of the matrix that `Columnar.judge` is given; of the paths in ``ask`` only the reference
    can tell.
    """

    paths: Mapping[str, Sequence[Rule]]
    whole: Sequence[Rule] | None
    groups: Sequence[int]
    ask: frozenset[str] = frozenset()


class Columnar:
    """Compiled once; any number of threads may use one."""

    def __init__(self, branches: Sequence[Conditions], *, lenient: bool) -> None:
        self._alive: list[bytes | np.ndarray] = []  # what the tables have addresses of
        self._nodes: list[list[int]] = [[-1, -1, 0, 0, -1]]
        self._names = [""]
        self._rules: list[tuple[int, int, int]] = []
        self._leaves = 0
        self._depth = 1
        whole = self._leaf() if any(branch.whole is not None for branch in branches) else -1
        conditions: list[tuple[int, int, int, int]] = []
        lines: list[tuple[int, int, int, int]] = []
        groups: list[int] = []
        for branch in branches:
            first = len(conditions)
            for path, asked in branch.paths.items():
                conditions.append((int(path in branch.ask), self._path(path), *self._add(asked)))
            if branch.whole is not None:
                conditions.append((0, whole, *self._add(branch.whole)))
            lines.append((first, len(conditions) - first, len(groups), len(branch.groups)))
            groups += branch.groups
        tables = [self._table(table) for table in (self._nodes, self._rules, conditions, lines)]
        self._plan = Plan._make([*tables, len(lines), self._table([groups]), self._leaves, int(lenient), whole])

    def judge(self, values: pa.BinaryArray, groups: NDArray[np.uint8], verdicts: NDArray[np.uint8]) -> int:
        """Set the verdicts that are `codes.NO`, and give the number of those that are `codes.ASK` then.

        ``groups`` is a matrix of a row for each group and a column for each value, 1 where the group holds.
        """
        rows = len(values)
        if rows == 0:
            return 0
        _, bounds, octets = values.buffers()
        offsets = np.frombuffer(bounds, np.int32, rows + 1, 4 * values.offset)
        present = values.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8) if values.null_count else None
        leaves = np.zeros((3, self._leaves + 1), np.int64)
        stamps, stack, room = np.full(len(self._nodes), -1, np.int64), np.zeros(self._depth, np.int64), scratch()
        work = Work._make(map(_address, (*leaves, stamps, stack, room)))
        assert groups.flags.c_contiguous
        assert verdicts.flags.c_contiguous
        asked: int = entry.judge(
            self._plan,
            work,
            0 if octets is None else octets.address,
            0 if octets is None else octets.size,
            _address(offsets),
            0 if present is None else _address(present),
            rows,
            _address(groups),
            _address(verdicts),
        )
        return asked

    def _leaf(self) -> int:
        self._leaves += 1
        return self._leaves - 1

    def _path(self, path: str) -> int:
        """The leaf of a path, which gets one if it has none yet."""
        node = 0
        names = path.split(".")
        self._depth = max(self._depth, len(names) + 1)
        for name in names:
            child = self._nodes[node][0]
            while child >= 0 and self._names[child] != name:
                child = self._nodes[child][1]
            if child < 0:
                child = len(self._nodes)
                self._nodes.append([-1, self._nodes[node][0], *self._bytes(name), -1])
                self._names.append(name)
                self._nodes[node][0] = child
            node = child
        if self._nodes[node][4] < 0:
            self._nodes[node][4] = self._leaf()
        return self._nodes[node][4]

    def _add(self, asked: Sequence[Rule]) -> tuple[int, int]:
        """The place of rules in the table, and their number."""
        made = [self._rule(rule) for rule in asked]
        self._rules += made
        return len(self._rules) - len(made), len(made)

    def _rule(self, rule: Rule) -> tuple[int, int, int]:
        match rule:
            case rules.Text(text):
                return codes.TEXT, *self._bytes(text)
            case rules.Prefix(text):
                return codes.PREFIX, *self._bytes(text)
            case rules.Suffix(text):
                return codes.SUFFIX, *self._bytes(text)
            case rules.Word(value):
                return codes.WORD, _KINDS[value], 0
            case rules.Equal(number):
                if not number.exact:  # equal to its own spelling alone, which the kernel leaves to the reference
                    return codes.EQUAL, 1, 0
                return codes.EQUAL, ordered(number.value), ordered(number.value)
            case rules.Range(low, low_open, high, high_open):
                return codes.RANGE, ordered(low) + low_open, ordered(high) - high_open
            case rules.Exists():
                return codes.EXISTS, 0, 0
            case rules.Absent():
                return codes.ABSENT, 0, 0
            case rules.Wildcard(parts):
                return codes.WILDCARD, *self._add([rules.Text(part) for part in parts])
            case rules.IgnoreCase(text=text, place=place) if text.isascii():
                return _FOLDED[place], *self._bytes(text.lower())
            case rules.AnythingBut(inner):
                return codes.ANYTHING_BUT, *self._add(inner)
        return codes.OTHER, 0, 0

    def _bytes(self, text: str) -> tuple[int, int]:
        """Address and size of a text as UTF-8. What has lone surrogates is equal to no UTF-8."""
        octets = np.frombuffer(text.encode("utf-8", "surrogatepass") or b"\0", np.uint8)
        self._alive.append(octets)
        return _address(octets), len(text.encode("utf-8", "surrogatepass"))

    def _table(self, lines: Sequence[Sequence[int]]) -> int:
        table = np.array([each for line in lines for each in line] or [0], np.int64)
        self._alive.append(table)
        return _address(table)


def ordered(value: float) -> int:
    """A whole number for a double, in the same order and with one zero: neighbours differ by 1."""
    if math.isnan(value):
        raise ValueError("no order")
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits if bits >= 0 else _INT64_MIN - bits


def _address(array: np.ndarray) -> int:
    place: int = array.__array_interface__["data"][0]
    return place
