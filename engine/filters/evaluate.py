"""Whether a compiled pattern matches a parsed event: the straightforward way, which defines the semantics.

An event is flattened to its leaves, each with its path and with the elements of arrays that it lies in. For a
branch to match, each of its paths needs a leaf that one of its rules takes, and the leaves that are chosen must
not lie in different elements of the same array ("array-consistent" matching). A scalar in an array is a leaf of
the array's path and excludes nothing. Objects and empty arrays are no leaves.

Not here: whole batches (`engine.filters.columnar`), whose reference this is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from engine.filters.numbers import Number
from engine.filters.pattern import Branch, Pattern
from engine.filters.rules import Absent, Leaf

#: Which element of which array, from the outermost array inwards; arrays are numbered as they are met.
Membership = tuple[tuple[int, int], ...]

Leaves = dict[str, list[tuple[Leaf, Membership]]]

#: Leaves by membership: whether one lies here, and the arrays that the rest lies in: {array: {element: tree}}.
_Tree = list[Any]


def matches(pattern: Pattern, event: Mapping[str, Any]) -> bool:
    """Whether one branch of the pattern matches the event (values as `engine.filters.json_text.parse` has them)."""
    found = leaves(event, [path for branch in pattern.branches for path in branch])
    return any(branch_matches(branch, found) for branch in pattern.branches)


def leaves(event: Mapping[str, Any] | list[Any], paths: Iterable[str]) -> Leaves:
    """The leaves of an event, or of a list of them, that have one of the paths."""
    wanted = set(paths)
    above = {path[:at] for path in wanted for at, letter in enumerate(path) if letter == "."}
    found: Leaves = {}
    arrays = 0
    waiting: list[tuple[str | None, Any, Membership]] = [(None, event, ())]
    while waiting:
        path, value, membership = waiting.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                name = key if path is None else f"{path}.{key}"
                if name in wanted or name in above:
                    waiting.append((name, inner, membership))
        elif isinstance(value, list | tuple):
            for element, inner in enumerate(value):
                nested = isinstance(inner, Mapping | list | tuple)
                waiting.append((path, inner, (*membership, (arrays, element)) if nested else membership))
            arrays += 1
        elif path in wanted:
            found.setdefault(path, []).append((_leaf(value), membership))
    return found


def _leaf(value: object) -> Leaf:
    if value is None or isinstance(value, str | bool | Number):
        return value
    if isinstance(value, int | float):
        return Number(repr(value))
    raise TypeError(f"{type(value).__name__} is no value of JSON")


def branch_matches(branch: Branch, found: Leaves) -> bool:
    """Whether consistent leaves satisfy all paths of a branch.

    Paths are taken in the order of their names. Between two of them stand all sets of elements that the leaves
    chosen so far lie in, without those arrays that no later path touches: so their number stays small.
    """
    conditions = sorted(branch.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
    if not any(membership for path in branch for _, membership in found.get(path, ())):
        return all(_plain(rules, found.get(path, ())) for path, rules in conditions)
    touched = [{array for _, m in found.get(path, ()) for array, _ in m} for path, _ in conditions]
    states: list[dict[int, int]] = [{}]
    for place, (path, rules) in enumerate(conditions):
        here = found.get(path, ())
        hits = _tree(m for value, m in here if any(rule.matches(value) for rule in rules))
        everything = _tree(m for _, m in here) if any(isinstance(rule, Absent) for rule in rules) else None
        later = set[int]().union(*touched[place + 1 :])
        after: dict[frozenset[tuple[int, int]], dict[int, int]] = {}
        for state in states:
            following = _consistent(hits, state)
            if everything is not None and next(_consistent(everything, state), None) is None:
                following = iter([state])
            for chosen in following:
                kept = {array: element for array, element in chosen.items() if array in later}
                after[frozenset(kept.items())] = kept
        if not after:
            return False
        states = list(after.values())
    return True


def _plain(rules: Sequence[Any], here: Sequence[tuple[Leaf, Membership]]) -> bool:
    """A condition on leaves of which none excludes another."""
    if not here:
        return any(isinstance(rule, Absent) for rule in rules)
    return any(rule.matches(value) for value, _ in here for rule in rules)


def _tree(memberships: Iterable[Membership]) -> _Tree:
    root: _Tree = [False, {}]
    for membership in memberships:
        node = root
        for array, element in membership:
            node = node[1].setdefault(array, {}).setdefault(element, [False, {}])
        node[0] = True
    return root


def _consistent(tree: _Tree, state: dict[int, int]) -> Iterator[dict[int, int]]:
    """The state with the elements of each leaf of the tree that it does not exclude."""
    waiting = [(tree, state)]
    while waiting:
        (here, arrays), known = waiting.pop()
        if here:
            yield known
        for array, elements in arrays.items():
            if array not in known:
                waiting += [(inner, {**known, array: element}) for element, inner in elements.items()]
            elif known[array] in elements:
                waiting.append((elements[known[array]], known))
