"""What a pattern may ask of one value: the operators, compiled.

A value is a leaf of an event: a string, a `Number`, True, False or None. Semantics are event-ruler's, as
recorded on AWS; each class says what is particular. Not here: reading patterns (`engine.filters.pattern`), and
which leaves of an event a rule is asked about (`engine.filters.evaluate`).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Protocol

from engine.filters.numbers import Number

Leaf = str | Number | bool | None

#: event-ruler's own test of what may be an address; what Python takes beyond it (scopes, say) is none.
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*")


class Rule(Protocol):
    def matches(self, value: Leaf) -> bool: ...


@dataclass(frozen=True, slots=True)
class Text:
    """A string, character for character: no case folding, no Unicode normalisation."""

    text: str

    def matches(self, value: Leaf) -> bool:
        return isinstance(value, str) and value == self.text


@dataclass(frozen=True, slots=True)
class Word:
    """true, false or null; never the string of that name."""

    value: bool | None

    def matches(self, value: Leaf) -> bool:
        return value is self.value


@dataclass(frozen=True, slots=True)
class Equal:
    """A number, plain or as ``{"numeric": ["=", n]}``."""

    number: Number

    def matches(self, value: Leaf) -> bool:
        return isinstance(value, Number) and self.number.same(value)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two bounds, as doubles; a bound that is missing is infinite and included."""

    low: float
    low_open: bool
    high: float
    high_open: bool

    def matches(self, value: Leaf) -> bool:
        if not isinstance(value, Number):
            return False
        number = value.value
        above = self.low < number or (self.low == number and not self.low_open)
        return above and (number < self.high or (number == self.high and not self.high_open))


@dataclass(frozen=True, slots=True)
class Exists:
    """Any leaf. That there is none is `Absent`, which no value matches."""

    def matches(self, value: Leaf) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Absent:
    """Asked of the event, not of a value: no leaf has the path."""

    def matches(self, value: Leaf) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Prefix:
    text: str

    def matches(self, value: Leaf) -> bool:
        return isinstance(value, str) and value.startswith(self.text)


@dataclass(frozen=True, slots=True)
class Suffix:
    text: str

    def matches(self, value: Leaf) -> bool:
        return isinstance(value, str) and value.endswith(self.text)


class IgnoreCase:
    """``equals-ignore-case``, of the whole string or (``place``) of its "prefix" or "suffix".

    Each character of the pattern stands for its upper and its lower form, as event-ruler has it: "ß" also for
    "SS", but "ss" not for "ß". Characters beyond the basic plane are compared as they are, as in Java.
    """

    def __init__(self, text: str, place: str = "whole") -> None:
        self.text, self.place = text, place
        folded = "".join(map(_either_case, text))
        self._expression = re.compile(f".*(?:{folded})" if place == "suffix" else folded, re.DOTALL)

    def __repr__(self) -> str:
        return f"IgnoreCase({self.text!r}, {self.place!r})"

    def matches(self, value: Leaf) -> bool:
        if not isinstance(value, str):
            return False
        found = self._expression.match(value) if self.place == "prefix" else self._expression.fullmatch(value)
        return found is not None


def _either_case(character: str) -> str:
    if ord(character) > 0xFFFF:
        return re.escape(character)
    forms = dict.fromkeys((character, character.lower(), character.upper()))
    return "(?:" + "|".join(map(re.escape, forms)) + ")" if len(forms) > 1 else re.escape(character)


@dataclass(frozen=True, slots=True)
class Wildcard:
    """``parts`` of text with any characters, also none, between each and the next."""

    parts: tuple[str, ...]

    def matches(self, value: Leaf) -> bool:
        if not isinstance(value, str):
            return False
        first, *middle, last = self.parts if len(self.parts) > 1 else (self.parts[0], None)
        if last is None:
            return value == first
        if len(value) < len(first) + len(last) or not value.startswith(first) or not value.endswith(last):
            return False
        at, end = len(first), len(value) - len(last)
        for part in middle:  # the leftmost place of each part leaves most room for the next
            at = value.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True


@dataclass(frozen=True, slots=True)
class Cidr:
    """Addresses of one version (4 or 6) from ``low`` to ``high``, in strings."""

    version: int
    low: int
    high: int

    def matches(self, value: Leaf) -> bool:
        if not isinstance(value, str):
            return False
        address = ip_address(value)
        return address is not None and address.version == self.version and self.low <= int(address) <= self.high


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text is, if it is one."""
    if len(text) > 45 or _ADDRESS.fullmatch(text) is None:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class AnythingBut:
    """A value that none of the rules takes: also null, and values of other types. There has to be one."""

    rules: tuple[Rule, ...]

    def matches(self, value: Leaf) -> bool:
        return not any(rule.matches(value) for rule in self.rules)
