"""Making handlers from a configuration's words: each kind, and what each kind needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from engine.batch import Batch, from_rows
from engine.batching import KEYS_AND_VALUES
from engine.compose.handlers import ENVELOPE_BYTES_MAX, KINDS, build_handler, payload_of
from engine.config import EVENT_KINDS
from engine.context import Context
from engine.errors import HandlerError
from engine.protocols import Handler, Invocation
from functions.kinds.events import EventHandler

CONTEXT = Context(function_name="f", memory_limit_in_mb="128", deadline_ms=0)
MODULE = """
def event(event, context):
    return {"rows": [{"keys": sorted(event)}]}

def rows(rows, context):
    return rows

def arrow(batch, context):
    return batch
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "hr_built.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("hr_built", None)


def batch() -> Batch:
    return from_rows("t", 0, [(0, 1, b"k", b'{"a": 1}', [])], start=0, end=1)


def build(kind: str, **options: Any) -> Handler:
    if kind == "sql":
        options.setdefault("query", "SELECT a FROM batch")
    else:
        options.setdefault("handler", f"hr_built.{kind if kind in ('rows', 'arrow') else 'event'}")
    return build_handler(kind=kind, timeout_seconds=20, concurrency_max=2, **options)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_is_built_and_works(kind: str) -> None:
    """The handler says whether it wants columns, takes an invocation, and gives its rows."""
    handler = build(kind)
    assert handler.wants_columns == (kind not in EVENT_KINDS)
    columns = pa.record_batch({"a": [1]}) if handler.wants_columns else None
    result = await handler.invoke(Invocation(batch(), columns, CONTEXT))
    rows = result.rows.to_pylist() if isinstance(result.rows, pa.Table) else result.rows
    expected = {"kinesis": ["Records"], "kafka": ["bootstrapServers", "eventSource", "records"]}
    assert rows == ([{"keys": expected[kind]}] if kind in EVENT_KINDS else [{"a": 1}])
    await handler.close()


async def test_payloads_are_measured_for_event_kinds() -> None:
    """Event kinds by their events, the others by key and value; the envelope stays below its bound."""
    for kind in KINDS:
        handler = build(kind)
        measure = payload_of(handler)
        if isinstance(handler, EventHandler):
            assert kind in EVENT_KINDS
            assert int(measure.each(batch()).sum()) > len(orjson.dumps('{"a": 1}'))
            assert 0 < handler.envelope_bytes(batch()) < ENVELOPE_BYTES_MAX
        else:
            assert measure is KEYS_AND_VALUES
        await handler.close()


async def test_the_kafka_event_says_what_was_configured() -> None:
    """Servers, event source and ARN come from the options."""
    handler = build(
        "kafka", bootstrap_servers="a:1,b:2", event_source="aws:kafka", event_source_arn="arn:aws:kafka:x"
    )
    assert isinstance(handler, EventHandler)
    result = await handler.invoke(Invocation(batch(), None, CONTEXT))
    assert result.rows == [{"keys": ["bootstrapServers", "eventSource", "eventSourceArn", "records"]}]
    await handler.close()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "kineses",
            {},
            "there is no handler kind 'kineses'; kinds are kinesis, kafka, .*\n  did you mean kinesis?",
        ),
        ("rows", {"handler": None}, "kind rows takes a handler, named module.function, and no query"),
        ("rows", {"query": "SELECT 1"}, "kind rows takes a handler, named module.function, and no query"),
        ("sql", {"query": None}, "kind sql takes a query over `batch`, and no handler"),
        ("sql", {"handler": "hr_built.rows"}, "kind sql takes a query over `batch`, and no handler"),
        ("rows", {"handler": "hr_built.row"}, "has no 'row'\n  nearest: rows"),
        (
            "kafka",
            {"event_source": "kafka"},
            "'kafka' is none of SelfManagedKafka, aws:SelfManagedKafka, aws:kafka",
        ),
        ("kafka", {"event_source": "aws:kafka"}, "event source 'aws:kafka' needs an ARN"),
        ("kafka", {"event_source_arn": "arn:x"}, "event source 'SelfManagedKafka' has no ARN"),
        ("sql", {"schema": pa.schema([("b", pa.int64())])}, 'Referenced column "a" not found'),
    ],
)
def test_what_cannot_be_built_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    """Unknown kinds, missing or superfluous options, and what the loaders find."""
    with pytest.raises(HandlerError, match=message):
        build(kind, **options)
