"""Every statement about AWS's event source mappings that concerns headrace, with its tests and its result.

``python -m tests.conformance.lambda_table > docs/lambda-conformance.md`` writes the page. Not here: the rows
themselves (the modules of `SECTIONS`), and the tests.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.conformance import (
    lambda_events,
    lambda_filters,
    lambda_functions,
    lambda_invoking,
    lambda_libraries,
    lambda_runtime,
    lambda_settings,
)
from tests.conformance.lambda_row import REFUSED, SAME, Row

#: In the order of the page.
SECTIONS = (
    lambda_settings.SETTINGS,
    lambda_filters.DATA,
    lambda_filters.OPERATORS,
    lambda_filters.SEMANTICS,
    lambda_invoking.WINDOWS,
    lambda_events.KINESIS,
    lambda_events.KAFKA,
    lambda_events.DYNAMODB,
    lambda_events.FAILURES,
    lambda_invoking.RESPONSES,
    lambda_invoking.BATCHES,
    lambda_functions.CONTEXT,
    lambda_functions.VARIABLES,
    lambda_functions.LIMITS,
    lambda_runtime.LINES,
    lambda_runtime.ERRORS,
    lambda_runtime.RUNTIME_API,
    lambda_libraries.FIREHOSE,
    lambda_libraries.UNKNOWNS,
    lambda_libraries.LIBRARIES,
)

ROWS: tuple[Row, ...] = tuple(row for section in SECTIONS for row in section.rows)

SOURCES = ("recorded", "documented", "read from source", "deduced", "unknown")
RESULTS = (SAME, "differs", REFUSED, "not verifiable")

_HEAD = """# Lambda's event source mappings, statement by statement

What AWS Lambda does for a function behind Kinesis, DynamoDB, Kafka or Firehose, how far that is known, the tests
that show how it is here, and the result. Differences and their reasons are in [deviations.md](deviations.md).

- Sources: "recorded" was seen on AWS by somebody's tests, "documented" is in AWS's models and guides, "read from
  source" in its published clients; "deduced" follows from the others, "unknown" is told nowhere, or in two ways.
  Where a recording and a document differ, the recording counts.
- Results: "not verifiable" is what nobody outside of AWS can see, or what headrace has no part in.

This page is made by `python -m tests.conformance.lambda_table`. A test keeps it up to date, and sees that each test
that is named exists.
"""


def result_of(row: Row) -> str:
    """Which of `RESULTS` a row has."""
    return row.result.partition(":")[0]


def page() -> str:
    """The page, as text."""
    parts = [_HEAD, _summary()]
    for section in SECTIONS:
        lines = [f"## {section.title}\n", "| behaviour | source | tests | result |", "|---|---|---|---|"]
        for row in section.rows:
            cells = (row.behaviour, row.source, _tests(row), row.result)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _summary() -> str:
    counts = Counter((result_of(row), row.source) for row in ROWS)
    lines = [f"| result | {' | '.join(SOURCES)} | all |", "|---" * (len(SOURCES) + 2) + "|"]
    for result in (*RESULTS, None):
        found = [sum(counts[key, source] for key in RESULTS if result in (key, None)) for source in SOURCES]
        cells = [result or "all", *map(str, found), str(sum(found))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _tests(row: Row) -> str:
    shown = []
    for test in row.tests:
        path, _, name = test.partition("::")
        shown.append(f"[{name.removeprefix('test_')}](../{path})")
    return ", ".join(shown) or "none"


if __name__ == "__main__":
    sys.stdout.write(page())
