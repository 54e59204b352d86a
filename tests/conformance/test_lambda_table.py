"""The conformance table: nothing in it is unchecked, made up or out of date."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from engine.config import FunctionConfig, SourceConfig
from tests.conformance.lambda_row import REFUSED, SAME, Row
from tests.conformance.lambda_table import RESULTS, ROWS, SECTIONS, SOURCES, page, result_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lambda-conformance.md"

#: Settings that AWS has no counterpart of.
OWN = {
    "source.lane_bytes_max",
    "source.tumbling_window_wait_in_seconds",
    "source.failed_share_max",
    "source.failed_share_records",
    "source.retry_backoff_seconds",
    "source.retry_backoff_seconds_max",
    "source.on_exhausted",
    "source.on_lost_offsets",
    "source.on_recreated_topic",
    "source.record_bytes_max",
    "source.isolation_level",
    "source.fetch_bytes_max",
    "function.kind",
    "function.query",
    "function.columns",
    "function.idle_seconds_max",
}


@functools.cache
def names_in(path: str) -> set[str]:
    """The test functions of a file, those of classes included, and what it names Test..."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        if isinstance(node, ast.Assign):
            found |= {each.id for each in node.targets if isinstance(each, ast.Name) and each.id.startswith("Test")}
    return found


def test_the_page_is_up_to_date() -> None:
    """`python -m tests.conformance.lambda_table > docs/lambda-conformance.md` makes it anew."""
    assert PAGE.read_text() == page()


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_a_row_is_complete(row: Row) -> None:
    """It has a known source and a known result, and tests that exist; without tests it has a reason."""
    assert row.source in SOURCES
    assert row.result in (SAME, REFUSED) or result_of(row) in RESULTS
    kind, _, reason = row.result.partition(": ")
    assert kind in (SAME, REFUSED) or len(reason) > 3
    assert row.tests or kind == "not verifiable"
    for test in row.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), test
        assert name in names_in(path), test
    assert "not checked" not in row.result
    assert row.behaviour.endswith(".")
    assert len(row.tests) == len(set(row.tests))


def test_ids_are_unique() -> None:
    """So that a row can be spoken of; sections have titles of their own."""
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len({section.title for section in SECTIONS}) == len(SECTIONS)


def test_every_setting_that_aws_has_is_in_a_row() -> None:
    """A setting that is added has to be spoken of, here or as one of headrace's own."""
    settings = {f"source.{name}" for name in SourceConfig.model_fields}
    settings |= {f"function.{name}" for name in FunctionConfig.model_fields}
    spoken_of = {key for row in ROWS for key in row.keys}
    assert spoken_of <= settings
    assert settings - OWN == spoken_of
    assert settings >= OWN
