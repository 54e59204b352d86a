"""Reading the properties of one object of a template: each resolved, converted, and accounted for.

A value that cannot be resolved is noted as unsupported, one that makes no sense as a fault, both with the name
of the property; reading goes on, so that everything is said at once.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from engine.sam.findings import Findings
from engine.sam.intrinsics import NO_VALUE, Malformed, Resolver, Unresolved, mapping_of, text_of

T = TypeVar("T")

#: Where what all functions have in common stands.
COMMON = "Globals.Function"

_WHOLE = re.compile(r"-?\d{1,18}")

__all__ = ["Properties", "boolean", "items", "mapping_of", "moment", "number", "text_of", "texts", "whole"]


class Properties:
    """The properties at ``at``, such as "OrdersFunction.Events.Orders".

    Those named in ``common`` are from Globals, and are noted there, once for all functions.
    """

    def __init__(
        self, values: object, at: str, resolver: Resolver, findings: Findings, *, common: Collection[str] = ()
    ) -> None:
        self.at = at
        self._common = common
        self.resolver = resolver
        self.findings = findings
        self._values: dict[str, object] = {}
        try:
            self._values = mapping_of(resolver.chosen(values), at)
        except (Malformed, Unresolved) as error:
            self.note("", error)

    @property
    def names(self) -> list[str]:
        """The properties that have a value, in the template's order."""
        return [name for name in self._values if self.raw(name) is not NO_VALUE]

    def raw(self, name: str) -> object:
        """The value as it stands, with no more than Fn::If at its top carried out; `NO_VALUE` without one."""
        if self._values.get(name) is None:
            return NO_VALUE
        try:
            return self.resolver.chosen(self._values[name])
        except (Malformed, Unresolved) as error:
            self.note(name, error)
            return NO_VALUE

    def take(self, name: str, convert: Callable[[object], T]) -> T | None:
        """The value, resolved and converted; None where there is none, or where it has been noted why not."""
        raw = self.raw(name)
        if raw is NO_VALUE:
            return None
        try:
            value = self.resolver.resolve(raw)
            return None if value is NO_VALUE else convert(value)
        except (Malformed, Unresolved) as error:
            self.note(name, error)
            return None

    def below(self, name: str) -> Properties:
        """The properties of a property."""
        raw = self.raw(name)
        return Properties({} if raw is NO_VALUE else raw, self.place(name), self.resolver, self.findings)

    def place(self, name: str) -> str:
        """The property as notes name it."""
        return f"{COMMON if name in self._common else self.at}.{name}"

    def note(self, name: str, error: Malformed | Unresolved) -> None:
        at = self.place(name) if name else self.at
        if isinstance(error, Malformed):
            self.findings.fault(at, str(error))
        else:
            self.findings.unsupported(at, str(error))

    def account_for(
        self, honoured: Sequence[str], ignored: Mapping[str, str], unsupported: Mapping[str, str], what: str
    ) -> None:
        """Note every property that is not honoured. ``what`` names the thing that has no other properties."""
        for name in self.names:
            if name in honoured:
                continue
            at = self.place(name)
            if name in ignored:
                self.findings.ignored(at, ignored[name])
            elif name in unsupported:
                self.findings.unsupported(at, unsupported[name])
            else:
                self.findings.unsupported(at, f"headrace knows no such property of {what}")


def whole(value: object) -> int:
    """A whole number; text that is one too, as parameters are."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed("has to be a whole number")
    return value


def number(value: object) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise Malformed("has to be a number")


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise Malformed("has to be true or false")


def items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Malformed("has to be a list")
    return value


def texts(value: object) -> list[str]:
    return [text_of(item) for item in items(value)]


def moment(value: object) -> dt.datetime:
    """Seconds since the epoch, as StartingPositionTimestamp is."""
    try:
        return dt.datetime.fromtimestamp(number(value), dt.UTC)
    except (OverflowError, ValueError, OSError):
        raise Malformed("has to be seconds since 1970-01-01") from None
