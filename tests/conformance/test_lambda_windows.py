"""Tumbling windows through a function in a process of its own: what it is told, and what follows from its answers.

Not here: what windows hold, late records, crashes and idle shards (tests/unit/test_tumbling.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.clock import SystemClock
from tests.conformance.lambda_support import caught_up, function
from tests.unit.engine_world import EngineWorld, policy

pytestmark = pytest.mark.slow

START = 1_700_000_040  # a whole minute

#: Sums ids; fails its first final invocation, forgets the state once, and grows the state beyond AWS's bound.
APP = """
import base64, json

failed = set()

def handler(event, context):
    flags = ("isFinalInvokeForWindow", "isWindowTerminatedEarly")
    told = {name: event[name] for name in ("window", "shardId", *flags)}
    told["ids"] = [json.loads(base64.b64decode(each["kinesis"]["data"]))["id"] for each in event["Records"]]
    told["state"] = {name: value for name, value in event["state"].items() if name != "ballast"}
    told["keys"] = list(event)
    with open("told", "a") as file:
        file.write(json.dumps(told) + "\\n")
    if event["isFinalInvokeForWindow"] and "final" not in failed:
        failed.add("final")
        raise ValueError("not yet")
    if 3 in told["ids"] and "state" not in failed:
        failed.add("state")
        return {"batchItemFailures": []}
    state = {"sum": event["state"].get("sum", 0) + sum(told["ids"])}
    if 100 in told["ids"]:
        state["ballast"] = "x" * 1_048_576
    if event["isFinalInvokeForWindow"]:
        return {"state": state, "rows": [{"start": event["window"]["start"], "sum": state["sum"]}]}
    return {"state": state}
"""


async def test_a_function_sums_over_windows(tmp_path: Path) -> None:
    """State from call to call, a final one without records, a missing state as a failure, and an early end."""
    (tmp_path / "app.py").write_text(APP)
    world = EngineWorld(clock=SystemClock())
    log = world.topic.partitions[0]
    for number, seconds in ((1, 0), (2, 59.9), (3, 60), (100, 61), (4, 62), (5, 121)):
        log.append(json.dumps({"id": number}).encode(), timestamp_ms=START * 1000 + int(seconds * 1000))
    async with function("kinesis", "app.handler", tmp_path) as summing:
        options = {"tumbling_seconds": 60, "tumbling_wait_seconds": 1e9, "batch_size": 1}
        async with world.shard(summing, target=log.end, rules=policy(retries_max=-1), **options) as (shard, task):
            await caught_up(shard, task)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert told[0]["window"] == {"start": "2023-11-14T22:14:00Z", "end": "2023-11-14T22:15:00Z"}
    assert {each["shardId"] for each in told} == {"shardId-000000000000"}
    assert told[0]["keys"] == [
        *("Records", "window", "state", "shardId", "eventSourceARN"),
        *("isFinalInvokeForWindow", "isWindowTerminatedEarly"),
    ]
    seen = [
        (each["ids"], each["state"], each["isFinalInvokeForWindow"], each["isWindowTerminatedEarly"])
        for each in told
    ]
    assert seen == [
        ([1], {}, False, False),
        ([2], {"sum": 1}, False, False),
        ([], {"sum": 3}, True, False),  # raises, and comes again
        ([], {"sum": 3}, True, False),
        ([3], {}, False, False),  # answers without a state, and comes again
        ([3], {}, False, False),
        ([100], {"sum": 3}, False, False),
        ([], {"sum": 103}, True, True),  # more than 1 MB
        ([4], {}, False, False),
        ([], {"sum": 4}, True, False),
        ([5], {}, False, False),
    ]
    table = world.store.table(0)
    assert table is not None
    assert table.column("sum").to_pylist() == [3, 103, 4]
    assert json.loads(world.store.shard(0).state)["state"] == {"sum": 5}
