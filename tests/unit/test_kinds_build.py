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
from engine.compose.handlers import (
    ENVELOPE_BYTES_MAX,
    KINDS,
    EventSettings,
    build_handler,
    function_arn,
    payload_of,
)
from engine.config import EVENT_KINDS
from engine.context import Context
from engine.errors import HandlerError
from engine.protocols import Handler, Invocation
from functions.environments.contract import Report
from functions.kinds.events import EventHandler

CONTEXT = Context(function_name="f", memory_limit_in_mb="128", deadline_ms=0)
MODULE = """
import base64, os

def event(event, context):
    if "invocationId" in event:
        data = base64.b64encode(b'{"a": 1}').decode()
        return {"records": [{"recordId": r["recordId"], "result": "Ok", "data": data} for r in event["records"]]}
    found = {"name": context.function_name, "table": os.environ.get("TABLE"), "at": os.getcwd()}
    found["arn"] = context.invoked_function_arn
    return {"rows": [{"keys": sorted(event), **found}]}

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


CHANGE = b'{"eventName": "INSERT", "dynamodb": {"Keys": {}}}'


def batch(kind: str) -> Batch:
    value = CHANGE if kind == "dynamodb" else b'{"a": 1}'
    return from_rows("t", 0, [(0, 1, b"k", value, [])], start=0, end=1)


def build(kind: str, **options: Any) -> Handler:
    if kind == "sql":
        options.setdefault("query", "SELECT a FROM batch")
    else:
        options.setdefault("handler", f"hr_built.{kind if kind in ('rows', 'arrow') else 'event'}")
    return build_handler(kind=kind, timeout_seconds=20, concurrency_max=2, **options)


def arn(kind: str) -> str:
    return f"arn:aws:{kind}:eu-west-1:123456789012:x/y"


#: Members of each kind's event.
MEMBERS = {
    "kinesis": ["Records"],
    "kafka": ["bootstrapServers", "eventSource", "eventSourceArn", "records"],
    "dynamodb": ["Records"],
}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_is_built_and_works(kind: str, tmp_path: Path) -> None:
    """It says whether it wants columns, and gives rows; event kinds run in a process with what it was told."""
    root = tmp_path / "elsewhere"
    root.mkdir()
    (root / "hr_built.py").write_text(MODULE)
    reports: list[Report] = []
    settings = EventSettings(
        function_name="orders",
        variables={"TABLE": "t-1"},
        root=root,
        event_source="aws:kafka" if kind == "kafka" else "SelfManagedKafka",
        event_source_arn=arn(kind),
        on_report=reports.append,
    )
    handler = build(kind, events=settings)
    try:
        assert handler.wants_columns == (kind not in EVENT_KINDS)
        await handler.open()
        columns = pa.record_batch({"a": [1]}) if handler.wants_columns else None
        result = await handler.invoke(Invocation(batch(kind), columns, CONTEXT))
    finally:
        await handler.close()
    rows = result.rows.to_pylist() if isinstance(result.rows, pa.Table) else result.rows
    expected = "arn:aws:lambda:eu-west-1:000000000000:function:orders"
    if kind in MEMBERS:
        assert rows == [{"keys": MEMBERS[kind], "name": "orders", "table": "t-1", "at": str(root), "arn": expected}]
    else:
        assert rows == [{"a": 1, "_offset": 0} if kind == "firehose" else {"a": 1}]
    assert function_arn("orders", settings.event_source_arn) == expected
    assert [report.function_name for report in reports] == (["orders"] if kind in EVENT_KINDS else [])


@pytest.mark.parametrize("kind", KINDS)
async def test_payloads_are_measured_for_event_kinds(kind: str) -> None:
    """Event kinds by their events, the others by key and value; the envelope stays below its bound."""
    handler = build(kind)
    measure = payload_of(handler)
    if isinstance(handler, EventHandler):
        assert kind in EVENT_KINDS
        assert int(measure.each(batch(kind)).sum()) > len(orjson.dumps('{"a": 1}'))
        assert 0 < handler.envelope_bytes(batch(kind)) < ENVELOPE_BYTES_MAX
    else:
        assert measure is KEYS_AND_VALUES
    await handler.close()


def test_settings_do_not_show_the_values_of_variables() -> None:
    """They may be secrets."""
    assert "hunter2" not in repr(EventSettings(variables={"PASSWORD": "hunter2"}))


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
            {"events": EventSettings(event_source="kafka")},
            "'kafka' is none of SelfManagedKafka, aws:SelfManagedKafka, aws:kafka",
        ),
        ("kafka", {"events": EventSettings(event_source="aws:kafka")}, "event source 'aws:kafka' needs an ARN"),
        (
            "kafka",
            {"events": EventSettings(event_source_arn="arn:x")},
            "event source 'SelfManagedKafka' has no ARN",
        ),
        ("kinesis", {"handler": "hr_buit.event"}, "there is no module 'hr_buit'.*\n  nearest: hr_built"),
        ("kinesis", {"handler": "event"}, "is not of the form module.function"),
        ("kinesis", {"handler": None}, "kind kinesis takes a handler, named module.function, and no query"),
        ("kinesis", {"events": EventSettings(command=["x"])}, "runtime 'python' takes no command"),
        ("kinesis", {"events": EventSettings(runtime="provided")}, "runtime 'provided' needs a command"),
        ("kinesis", {"events": EventSettings(runtime="node", command=["x"])}, "runtime 'node'"),
        (
            "rows",
            {"events": EventSettings(runtime="provided", command=["x"])},
            "other runtimes are for event kinds",
        ),
        ("sql", {"schema": pa.schema([("b", pa.int64())])}, 'Referenced column "a" not found'),
    ],
)
def test_what_cannot_be_built_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    """Unknown kinds, missing or superfluous options, and what the loaders find."""
    with pytest.raises(HandlerError, match=message):
        build(kind, **options)
