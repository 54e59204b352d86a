"""`Number`: a JSON number that remembers how it was spelt, and when two of them are equal.

AWS was recorded matching an event's ``300.0`` with the pattern ``[300]``: numbers are compared as IEEE 754
doubles. A number that a double does not give back digit for digit (``12345678901234567891``, ``1e400``) is equal
to numbers of the same spelling alone, as in event-ruler. Not here: ranges of numbers (`engine.filters.rules`).
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

#: So many significant digits always come back from a double.
EXACT_DIGITS = 15


class Number:
    """``text`` as it stands in JSON; ``value`` is the nearest double, infinite where there is none."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Number({self.text!r})"

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def exact(self) -> bool:
        """Whether the double, in its shortest spelling, is the number."""
        value = self.value
        if math.isinf(value):
            return False
        if len(self.text) <= EXACT_DIGITS and "e" not in self.text and "E" not in self.text:
            return True
        try:
            return Decimal(self.text) == Decimal(repr(value))
        except InvalidOperation:  # an exponent beyond what decimals can have
            return False

    def same(self, other: Number) -> bool:
        """Equal as doubles where both are exact, else equal in spelling."""
        if self.text == other.text:
            return True
        return self.value == other.value and self.exact and other.exact
