"""The table of operators in docs/filters.md against the evaluator and the column-wise path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.batch import from_rows
from engine.filters import FilterCriteria

PAGE = Path(__file__).parents[2] / "docs" / "filters.md"


def rows() -> list[tuple[str, str, list[str], list[str]]]:
    """Operator, rules, values that match, values that do not."""
    text = PAGE.read_text()
    table = text[text.index("| operator |") :].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r" \| ", line.strip("| "))] for line in table]
    return [(name, rules.strip("`"), values(yes), values(no)) for name, rules, yes, no in cells]


def values(cell: str) -> list[str]:
    return [found[1] or "missing" for found in re.finditer(r"`([^`]+)`|missing", cell)]


@pytest.mark.parametrize(
    ("name", "rules", "yes", "no"), rows(), ids=lambda cell: cell if isinstance(cell, str) else ""
)
def test_the_page_says_what_is(name: str, rules: str, yes: list[str], no: list[str]) -> None:
    """Every value of a row matches or does not, as its column says, whichever way it is judged."""
    assert yes, name
    assert no, name
    events = [b"{}" if value == "missing" else f'{{"x": {value}}}'.encode() for value in yes + no]
    batch = from_rows(
        "t", 0, [(at, 0, None, event, ()) for at, event in enumerate(events)], start=0, end=len(events)
    )
    criteria = FilterCriteria.of([f'{{"data": {{"x": {rules}}}}}'], kind="kinesis")
    expected = [True] * len(yes) + [False] * len(no)
    assert criteria.select(batch).tolist() == expected
    assert criteria.select_by_reference(batch).tolist() == expected


def test_the_table_is_found() -> None:
    """The page has a row for each operator."""
    assert len(rows()) >= 25
