"""One row of the conformance table: a behaviour of AWS, what is known of it, the tests, and how it is here.

Not here: the rows (`lambda_settings` and its neighbours) and the page (`lambda_table`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a statement about AWS rests on, the strongest first.
Source = Literal["recorded", "documented", "read from source", "deduced", "unknown"]

SAME = "as on AWS"
REFUSED = "refused by name"


@dataclass(frozen=True, slots=True)
class Row:
    """``tests`` are "path::function" from the repository's root; ``keys`` are settings that the row is about.

    ``result`` is `SAME`, `REFUSED`, or what `differs` or `unverifiable` give.
    """

    id: str
    behaviour: str
    source: Source
    result: str
    tests: tuple[str, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[Row, ...]


def differs(how: str) -> str:
    """It is otherwise here, and docs/deviations.md says why."""
    return f"differs: {how}"


def unverifiable(reason: str) -> str:
    """Nobody outside AWS can tell, or it is nothing that headrace does."""
    return f"not verifiable: {reason}"


def at(*names: str) -> tuple[str, ...]:
    """Tests, each "unit/config::a_name" for tests/unit/test_config.py::test_a_name."""
    found = []
    for name in names:
        place, _, function = name.partition("::")
        folder, _, module = place.partition("/")
        prefix = "" if function.startswith("Test") else "test_"
        found.append(f"tests/{folder}/test_{module}.py::{prefix}{function}")
    return tuple(found)
