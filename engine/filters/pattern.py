"""`Pattern`: the text of one filter, checked and compiled.

The language is that of event-ruler, which EventBridge and Lambda use (AWS: "Filter rule syntax"); the names of
its operators and its reasons for refusing a pattern are kept. Compiled, a pattern is a list of *branches* of
which one has to match: without ``$or`` there is one branch, and each ``$or`` multiplies them. A branch has for
each path (the names of nested keys, joined with ".") the rules of which one has to match. A path that a branch
names twice, also through a repeated key, has the last one's rules, as in event-ruler.

Not here: matching (`engine.filters.evaluate`, `engine.filters.columnar`) and what the paths of a source mean
(`engine.filters.criteria`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.errors import UserError
from engine.filters import rules
from engine.filters.json_text import Members, parse
from engine.filters.numbers import Number
from engine.filters.rules import Rule

#: Of one pattern's text (AWS: FilterCriteria.Filters[].Pattern).
PATTERN_CHARACTERS_MAX = 4_096

#: What the ``$or`` of one pattern may multiply to (EventBridge refuses more).
BRANCHES_MAX = 1_000

#: AWS's words, recorded; it gives no reason.
MESSAGE = "InvalidParameterValueException: Invalid filter pattern definition."

OR = "$or"

#: With one of these as a key, an object under ``$or`` is an operator, and ``$or`` the name of a field.
RESERVED = frozenset(
    [
        "exactly",
        "equals-ignore-case",
        "prefix",
        "suffix",
        "anything-but",
        "exists",
        "wildcard",
        "numeric",
        "cidr",
        "=",
        "<",
        "<=",
        ">",
        ">=",
        "regex",
        "not-wildcard",
        "not-equals-ignore-case",
        "date-after",
        "date-on-or-after",
        "date-before",
        "date-on-or-before",
        "in-date-range",
        "ip-address-in-range",
        "ip-address-not-in-range",
    ]
)

Branch = dict[str, tuple[Rule, ...]]


class InvalidPattern(UserError):
    """A pattern that AWS refuses; ``reason`` says why."""

    def __init__(self, reason: str, pattern: str) -> None:
        self.reason, self.pattern = reason, pattern
        shown = pattern if len(pattern) <= 200 else pattern[:200] + "..."
        super().__init__(
            f"{MESSAGE} {reason}",
            hint=f'the pattern is {shown}; a pattern is an object like {{"data": {{"type": ["click"]}}}},'
            " whose leaves are lists of values and operators",
        )


class _Refused(Exception):
    """Why a pattern is refused."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """``text`` and the branches that it compiles to."""

    text: str
    branches: tuple[Branch, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """Compile a pattern. Raises `InvalidPattern`."""
        try:
            if len(text) > PATTERN_CHARACTERS_MAX:
                raise _Refused(f"It has {len(text):,} characters; at most {PATTERN_CHARACTERS_MAX:,} are allowed.")
            try:
                document = parse(text, members=True)
            except ValueError as error:
                raise _Refused(f"It is not JSON: {error}.") from None
            if not isinstance(document, Members):
                raise _Refused("Filter is not an object.")
            return cls(text, tuple(_object(document, "", [{}])))
        except _Refused as refused:
            raise InvalidPattern(str(refused), text) from None


def _object(members: Members, path: str, branches: list[Branch]) -> list[Branch]:
    """The branches with what the object asks for under ``path``, which ends in "." unless it is empty."""
    if not members:
        raise _Refused("Empty objects are not allowed.")
    for name, value in members:
        if name == OR and _is_or(value):
            made: list[Branch] = []
            for each in value:
                made += _object(each, path, [dict(branch) for branch in branches])
                if len(made) > BRANCHES_MAX:
                    raise _Refused(f"$or makes more than {BRANCHES_MAX:,} combinations.")
            branches = made
        elif isinstance(value, Members):
            branches = _object(value, f"{path}{name}.", branches)
        elif isinstance(value, list):
            found = _rules(value)
            for branch in branches:
                branch[path + name] = found
        else:
            raise _Refused(f'"{name}" must be an object or an array.')
    return branches


def _is_or(value: object) -> bool:
    """Whether the value of ``$or`` makes it the operator: two objects or more, no operator among their keys."""
    if not isinstance(value, list) or isinstance(value, Members) or len(value) < 2:
        return False
    return all(isinstance(each, Members) and not any(name in RESERVED for name, _ in each) for each in value)


def _rules(values: list[Any]) -> tuple[Rule, ...]:
    if not values:
        raise _Refused("Empty arrays are not allowed.")
    return tuple(map(_rule, values))


def _rule(value: object) -> Rule:
    if isinstance(value, str):
        return rules.Text(value)
    if isinstance(value, Number):
        return rules.Equal(value)
    if value is None or isinstance(value, bool):
        return rules.Word(value)
    if not isinstance(value, Members):
        raise _Refused("Match value must be String, number, true, false, or null.")
    name, argument = _only(value, "Match expression name not found.")
    if name not in OPERATORS:
        raise _Refused(f"Unrecognized match type {name}.")
    return OPERATORS[name](argument)


def _only(members: Members, when_empty: str) -> tuple[str, Any]:
    if not members:
        raise _Refused(when_empty)
    if len(members) > 1:
        raise _Refused("Only one key allowed in match expression.")
    return members[0]


def _text(argument: object, name: str) -> str:
    if not isinstance(argument, str):
        raise _Refused(f"{name} match pattern must be a string.")
    return argument


def _affix(name: str, plain: Callable[[str], Rule]) -> Callable[[object], Rule]:
    """The compiler of ``prefix`` or ``suffix``, which may hold an ``equals-ignore-case``."""

    def compiled(argument: object) -> Rule:
        if not isinstance(argument, Members):
            return plain(_text(argument, name))
        inner, text = _only(argument, f"{name.capitalize()} expression name not found.")
        if inner != "equals-ignore-case":
            raise _Refused(f"Unsupported {name} pattern: {inner}.")
        return rules.IgnoreCase(_text(text, inner), name)

    return compiled


def _exists(argument: object) -> Rule:
    if argument is True:
        return rules.Exists()
    if argument is False:
        return rules.Absent()
    raise _Refused("exists match pattern must be either true or false.")


_WILDCARD_PIECE = re.compile(r"(\\[*\\])|(\*)|(\\)", re.DOTALL)


def _wildcard(argument: object) -> Rule:
    r"""``*`` stands for any characters; ``\*`` and ``\\`` for themselves; nothing else may follow a backslash."""
    text = _text(argument, "wildcard")
    parts, at, star = [""], 0, -1
    for found in _WILDCARD_PIECE.finditer(text):
        parts[-1] += text[at : found.start()]
        at = found.end()
        if found[1]:
            parts[-1] += found[1][1]
        elif found[2]:
            if star == found.start():
                raise _Refused(f"Consecutive wildcard characters at pos {star - 1}.")
            star = found.end()
            parts.append("")
        else:
            raise _Refused(f"Invalid escape character at pos {found.start()}.")
    parts[-1] += text[at:]
    return rules.Wildcard(tuple(parts))


def _cidr(argument: object) -> Rule:
    """From the address itself, whatever its lower bits are, to the last one of its block, as in event-ruler."""
    text = _text(argument, "cidr")
    address, slash, mask = text.partition("/")
    if not slash or "/" in mask:
        raise _Refused("Malformed CIDR, one '/' required.")
    if not (mask.isascii() and mask.isdigit()):
        raise _Refused("Malformed CIDR, mask bits must be an integer.")
    first = rules.ip_address(address)
    if first is None:
        raise _Refused(f"Nonstandard IP address: {address}.")
    if len(mask) > 3 or int(mask) >= first.max_prefixlen:
        raise _Refused(f"IPv{first.version} mask bits must be < {first.max_prefixlen}.")
    free = first.max_prefixlen - int(mask)
    return rules.Cidr(first.version, int(first), int(first) | ((1 << free) - 1))


def _numeric(argument: object) -> Rule:
    if not isinstance(argument, list) or isinstance(argument, Members):
        raise _Refused("Value of numeric must be an array.")
    operator, rest = argument[0] if argument else None, argument[1:]
    if not isinstance(operator, str):
        raise _Refused("Invalid member in numeric match: an operator comes first.")
    if operator not in ("=", "<", "<=", ">", ">="):
        raise _Refused(f"Unrecognized numeric range operator: {operator}.")
    first = _number(operator, rest)
    if operator == "=":
        _nothing_more(rest[1:])
        return rules.Equal(first)
    if operator in ("<", "<="):
        _nothing_more(rest[1:])
        return rules.Range(-math.inf, False, first.value, operator == "<")
    if len(rest) == 1:
        return rules.Range(first.value, operator == ">", math.inf, False)
    upper = rest[1]
    if not isinstance(upper, str):
        raise _Refused("Bad value in numeric range: an operator comes between the numbers.")
    if upper not in ("<", "<="):
        raise _Refused(f"Bad numeric range operator: {upper}.")
    last = _number(upper, rest[2:])
    if len(rest) > 3:
        raise _Refused("Too many terms in numeric range expression.")
    if first.value >= last.value:
        raise _Refused("Bottom must be less than top.")
    return rules.Range(first.value, operator == ">", last.value, upper == "<")


def _number(operator: str, rest: list[Any]) -> Number:
    if not rest or not isinstance(rest[0], Number):
        raise _Refused(f"Value of {'equals' if operator == '=' else operator} must be numeric.")
    return rest[0]


def _nothing_more(rest: list[Any]) -> None:
    if rest:
        raise _Refused("Too many elements in numeric expression.")


def _anything_but(argument: object) -> Rule:
    if isinstance(argument, Members):
        return _anything_but_operator(argument)
    if isinstance(argument, str | Number):
        return rules.AnythingBut((_rule(argument),))
    if not isinstance(argument, list):
        raise _Refused("Value of anything-but must be an array or single string/number value.")
    if not all(isinstance(each, str | Number) for each in argument):
        raise _Refused("Inside anything but list, start|null|boolean is not supported.")
    if len({isinstance(each, str) for each in argument}) != 1:
        raise _Refused(
            "Inside anything but list, either all values are number or string, mixed type is not supported."
        )
    return rules.AnythingBut(tuple(map(_rule, argument)))


def _anything_but_operator(members: Members) -> Rule:
    name, argument = _only(members, "Anything-But expression name not found.")
    if name not in ("equals-ignore-case", "prefix", "suffix", "wildcard"):
        raise _Refused(f"Unsupported anything-but pattern: {name}.")
    texts = [argument] if not isinstance(argument, list) or isinstance(argument, Members) else argument
    if not texts:
        raise _Refused("Empty arrays are not allowed.")
    if not all(isinstance(text, str) for text in texts):
        if name == "equals-ignore-case":
            raise _Refused(
                "Inside anything-but/equals-ignore-case list, number|start|null|boolean is not supported."
            )
        raise _Refused(f"{'wildcard' if name == 'wildcard' else 'prefix/suffix'} match pattern must be a string.")
    if name in ("prefix", "suffix") and "" in texts:
        raise _Refused("Null prefix/suffix not allowed.")
    return rules.AnythingBut(tuple(map(OPERATORS[name], texts)))


OPERATORS: dict[str, Callable[[object], Rule]] = {
    "exactly": lambda argument: rules.Text(_text(argument, "exact")),
    "prefix": _affix("prefix", rules.Prefix),
    "suffix": _affix("suffix", rules.Suffix),
    "equals-ignore-case": lambda argument: rules.IgnoreCase(_text(argument, "equals-ignore-case")),
    "wildcard": _wildcard,
    "cidr": _cidr,
    "numeric": _numeric,
    "exists": _exists,
    "anything-but": _anything_but,
}


def too_many(count: int, most: int) -> NoReturn:
    """Refuse more filters than a mapping may have."""
    raise InvalidPattern(f"There are {count} filters; a mapping has at most {most}.", f"one of {count}")
