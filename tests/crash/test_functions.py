"""Lambda handlers under death: engine and environments are killed, and nothing is lost or counted twice.

One pipeline runs a handler in lanes that fails, reports and is ended in turn, and writes its rows to Parquet. The
other sums its events in tumbling windows, whose state is in DuckDB. The long form is part of `make crash`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import duckdb
import psutil
import pytest

from connectors.kafka.broker import Broker
from tests.conftest import ExternalBroker
from tests.crash.engine_process import EngineProcess
from tests.crash.events import Producing, check_rows, make_topic, parquet_rows
from tests.forms import IS_CRASH_LONG

pytestmark = [pytest.mark.crash, pytest.mark.broker, pytest.mark.timeout(1800)]

SEED = int(os.environ.get("HEADRACE_CRASH_SEED", "20261123"))
EVENTS_MIN = 200_000 if IS_CRASH_LONG else 14_000
KILLS = 20 if IS_CRASH_LONG else 2
PER_SECOND = 2_000

#: After the engine's death nothing of its environments is left for longer.
GONE_SECONDS_MAX = 2.0

CONFIG = """
[kafka]
bootstrap = "{bootstrap}"
session_timeout_ms = 1500
heartbeat_interval_ms = 300

[pipelines.rows.source]
topic = "{topic}"
batch_size = 200
maximum_batching_window_in_seconds = 0.05
parallelization_factor = 3
bisect_batch_on_function_error = true
retry_backoff_seconds = 0.01
function_response_types = ["ReportBatchItemFailures"]

[pipelines.rows.function]
kind = "kinesis"
handler = "handlers.rows"

[pipelines.rows.sink]
type = "parquet"
path = "rows"
file_age_max_seconds = 0.2

[pipelines.sums.source]
topic = "{topic}"
batch_size = 300
maximum_batching_window_in_seconds = 0.05
retry_backoff_seconds = 0.01
tumbling_window_in_seconds = 1
filter_criteria.filters = [{{ pattern = '{{"value": {{"bucket": ["b0", "b1"]}}}}' }}]

[pipelines.sums.function]
kind = "kafka"
handler = "handlers.sums"

[pipelines.sums.sink]
type = "duckdb"
path = "sums.duckdb"
table = "sums"
commit_interval_max_seconds = 0.1
"""

HANDLERS = '''
import base64
import json
import os
import random

CHANCE = random.Random()


def rows(event, context):
    """Most of the time all rows; else an error, some of them, or a dead process."""
    made = []
    chance = CHANCE.random()
    if chance < 0.05:
        raise RuntimeError("as it happens")
    if chance < 0.06:
        os._exit(1)
    records = event["Records"]
    handled = records[: len(records) // 2] if chance < 0.15 and len(records) > 1 else records
    for record in handled:
        given = json.loads(base64.b64decode(record["kinesis"]["data"]))
        row = {name: given[name] for name in ("id", "page", "bucket")}
        made.append({**row, "_sequence_number": record["kinesis"]["sequenceNumber"]})
    failed = [{"itemIdentifier": each["kinesis"]["sequenceNumber"]} for each in records[len(handled) :]]
    return {"rows": made, "batchItemFailures": failed}


def sums(event, context):
    """Counts and adds up the ids of a window."""
    if CHANCE.random() < 0.05:
        raise RuntimeError("as it happens")
    state = event["state"]
    for records in event.get("records", {}).values():
        for record in records:
            given = json.loads(base64.b64decode(record["value"]))
            state["count"] = state.get("count", 0) + 1
            state["sum"] = state.get("sum", 0) + given["id"]
    if event["isFinalInvokeForWindow"]:
        return {"state": {}, "rows": [{"count": 0, "sum": 0, **state}]}
    return {"state": state}
'''


def environments(pid: int) -> list[psutil.Process]:
    """The processes of an engine's environments, its warden left out."""
    try:
        children = psutil.Process(pid).children()
        return [child for child in children if any("child.py" in part for part in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def test_functions_are_exact_whatever_dies(broker: Broker | ExternalBroker, tmp_path: Path) -> None:
    """Each event is a row once, in its order; the windows, open ones too, add up to every event that passes."""
    topic = f"functions-{time.time_ns()}"
    asyncio.run(make_topic(broker.bootstrap, topic))
    config = tmp_path / "headrace.toml"
    config.write_text(CONFIG.format(bootstrap=broker.bootstrap, topic=topic))
    (tmp_path / "handlers.py").write_text(HANDLERS)
    chance = random.Random(SEED)
    producing = Producing(broker.bootstrap, topic, EVENTS_MIN, PER_SECOND)
    producing.start()
    killed = 0
    for _ in range(KILLS):
        with EngineProcess(config, phase_log=tmp_path / "phases.log", log=tmp_path / "engine.log") as engine:
            engine.wait_for("handler")
            deadline = time.monotonic() + chance.uniform(0.5, 2.0)
            while time.monotonic() < deadline:
                running = environments(engine.pid)
                if running and chance.random() < 0.3:
                    chance.choice(running).send_signal(signal.SIGKILL)
                    killed += 1
                time.sleep(0.05)
            left = environments(engine.pid)
            engine.kill()
        _, alive = psutil.wait_procs(left, GONE_SECONDS_MAX)
        assert alive == [], "environments outlived their engine"
    producing.finish()
    with EngineProcess(
        config, phase_log=tmp_path / "phases.log", log=tmp_path / "engine.log", caught_up=True
    ) as last:
        assert last.wait(240) == 0, last.said()
    print(f"{KILLS} engines and {killed} environments killed, {producing.sent} events")
    assert killed > 0
    check_rows(parquet_rows(tmp_path / "rows"), producing.sent)
    check_sums(tmp_path / "sums.duckdb", producing.sent)


def check_sums(path: Path, sent: int) -> None:
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.execute("SELECT sum(count)::BIGINT, sum(sum)::BIGINT FROM sums").fetchall()
        states = connection.execute("SELECT state FROM headrace.states").fetchall()
    counted, added = rows[0]
    for (kept,) in states:
        state = json.loads(kept)["state"]
        counted += state.get("count", 0)
        added += state.get("sum", 0)
    expected = [number for number in range(sent) if number % 3 != 2]
    assert (counted, added) == (len(expected), sum(expected))
