"""Exactness under death: whatever is killed, whenever, each event is in the sink exactly once.

HEADRACE_CRASH=long runs the long form (`make crash`): 400,000 events and 25 random kills for each sink. The
short form, of the same code, is part of `make test`. Seeds are fixed and printed; HEADRACE_CRASH_SEED changes them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa
import pytest

from connectors.kafka.broker import Broker
from tests.crash.engine_process import EngineProcess
from tests.crash.events import Producing, Reader, check_rows, duckdb_rows, make_topic, parquet_rows
from tests.forms import IS_CRASH_LONG
from tests.integration.kafka_output import committed

pytestmark = [pytest.mark.crash, pytest.mark.broker, pytest.mark.timeout(1800)]

SEED = int(os.environ.get("HEADRACE_CRASH_SEED", "20261123"))
EVENTS_MIN = 400_000 if IS_CRASH_LONG else 30_000
KILLS = 25 if IS_CRASH_LONG else 2
PER_SECOND = 3_000
PHASE_KILLS = 2 if IS_CRASH_LONG else 1

CONFIG = """
[kafka]
bootstrap = "{bootstrap}"
session_timeout_ms = 1500
heartbeat_interval_ms = 300

[pipelines.crash.source]
topic = "{topic}"
batch_size = 400
maximum_batching_window_in_seconds = 0.05
destination_config.on_failure = "failed.jsonl"

[pipelines.crash.schema.columns]
id = "BIGINT"
page = "VARCHAR"
bucket = "VARCHAR"

[pipelines.crash.sink]
{sink}
"""

PARQUET = """type = "parquet"
path = "rows"
partition_by = ["bucket"]
file_age_max_seconds = 0.2"""

DUCKDB = """type = "duckdb"
path = "rows.duckdb"
table = "events"
commit_interval_max_seconds = 0.1"""

KAFKA = """type = "kafka"
topic = "{topic}-out"
commit_interval_max_seconds = 0.1"""


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that these tests may kill."""
    with Broker(tmp_path_factory.mktemp("crash-broker"), port=0, brief=True) as broker:
        yield broker


@dataclass
class World:
    directory: Path
    broker: Broker
    config: Path
    stack: ExitStack
    producing: Producing
    random: random.Random

    def engine(self, *, dies_at: tuple[str, int] | None = None, caught_up: bool = False) -> EngineProcess:
        return self.stack.enter_context(
            EngineProcess(
                self.config,
                phase_log=self.directory / "phases.log",
                log=self.directory / "engine.log",
                dies_at=dies_at,
                caught_up=caught_up,
            )
        )

    def catch_up(self) -> None:
        """Let the producer end, then run to the end of the topic."""
        self.producing.finish()
        engine = self.engine(caught_up=True)
        assert engine.wait(240) == 0, engine.said()
        failed = self.directory / "failed.jsonl"
        assert not failed.exists() or not failed.read_text(), "records failed"


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, own_broker: Broker) -> Iterator[World]:
    """A topic that a producer goes on filling, and a configuration for the sink that the test asks for."""
    topic = f"crash-{time.time_ns()}"
    asyncio.run(make_topic(own_broker.bootstrap, topic))
    config = tmp_path / "headrace.toml"
    sink = request.param.format(topic=topic)
    config.write_text(CONFIG.format(bootstrap=own_broker.bootstrap, topic=topic, sink=sink))
    producing = Producing(own_broker.bootstrap, topic, EVENTS_MIN, PER_SECOND)
    print(f"seed {SEED}, at least {EVENTS_MIN} events, {KILLS} random kills")
    producing.start()
    with ExitStack() as stack:
        stack.callback(producing.finish)
        yield World(tmp_path, own_broker, config, stack, producing, random.Random(SEED))


def kill_at_random(world: World, kills: int) -> Counter[str]:
    """Start, let work, kill; each time at another moment. What each killed process had done last."""
    last: Counter[str] = Counter()
    for _ in range(kills):
        engine = world.engine()
        engine.wait_for("fetch")
        time.sleep(world.random.uniform(0.0, 0.8))
        engine.kill()
        last[engine.phases()[-1]] += 1
    return last


def kill_in_phases(world: World, phases: list[str]) -> None:
    """Have the process die in each phase: the first time that it comes to it, and a later time."""
    for phase in phases:
        for _ in range(PHASE_KILLS):
            engine = world.engine(dies_at=(phase, world.random.randint(1, 12) if "recover" not in phase else 1))
            assert engine.wait(60) == -signal.SIGKILL, engine.said()
            assert engine.phases()[-1] == f"killed:{phase}"


@pytest.mark.parametrize("world", [pytest.param(PARQUET, id="parquet")], indirect=True)
def test_parquet_is_exact_whatever_dies(world: World) -> None:
    """Killed at random moments and in every phase, with a broker that dies too, and with two members at once."""
    rows = world.directory / "rows"
    with Reader(rows) as reader:
        last = kill_at_random(world, KILLS)
        kill_in_phases(
            world, ["handler", "staging", "staged", "linked", "half-renamed", "renamed", "recovering", "recovered"]
        )
        kill_broker(world)
        two_members(world)
        world.catch_up()
    print(f"killed after {dict(last)}; a reader saw {reader.files} files")
    assert reader.faults == []
    check_rows(parquet_rows(rows), world.producing.sent)


@pytest.mark.parametrize("world", [pytest.param(DUCKDB, id="duckdb")], indirect=True)
def test_duckdb_is_exact_whatever_dies(world: World) -> None:
    """Killed at random moments and in every phase, with a broker that dies too, and with a standby."""
    last = kill_at_random(world, KILLS)
    kill_in_phases(world, ["handler", "begin", "written", "committed", "recovering"])
    kill_broker(world)
    standby_takes_over(world)
    world.catch_up()
    print(f"killed after {dict(last)}")
    check_rows(duckdb_rows(world.directory / "rows.duckdb", "events"), world.producing.sent)


@pytest.mark.parametrize("world", [pytest.param(KAFKA, id="kafka")], indirect=True)
def test_kafka_is_exact_whatever_dies(world: World) -> None:
    """Killed at random moments and in every phase, with two members at once; read with read_committed."""
    last = kill_at_random(world, KILLS)
    kill_in_phases(
        world, ["handler", "begin", "written", "committed", "recovering"] if IS_CRASH_LONG else ["written"]
    )
    if IS_CRASH_LONG:
        kill_broker(world)
        two_members(world)
    world.catch_up()
    print(f"killed after {dict(last)}")
    check_rows(lambda connection: kafka_rows(connection, world), world.producing.sent)


def kafka_rows(connection: duckdb.DuckDBPyConnection, world: World) -> str:
    topic = f"{world.producing._topic}-out"
    rows = [orjson.loads(message.value) for message in asyncio.run(committed(world.broker.bootstrap, topic))]
    connection.register("kafka_rows", pa.Table.from_pylist(rows))
    return "kafka_rows"


def kill_broker(world: World) -> None:
    """The broker dies under a running engine, comes back, and the engine goes on by itself."""
    engine = world.engine()
    engine.wait_for("fetch")
    world.broker.kill()
    time.sleep(1.0)
    before = len(engine.phases())
    world.broker.start()
    deadline = time.monotonic() + 60
    while len(engine.phases()) <= before + 5:
        assert time.monotonic() < deadline, f"the engine did not go on; {engine.said()}"
        time.sleep(0.05)
    engine.kill()


def two_members(world: World) -> None:
    """Two members share the shards; one is killed, and the other takes over what it had."""
    first, second = world.engine(), world.engine()
    first.wait_for("fetch")
    second.wait_for("fetch")
    time.sleep(1.0)
    first.kill()
    time.sleep(2.0)
    second.kill()


def standby_takes_over(world: World) -> None:
    """A second process waits for the file, and works within the session timeout and two seconds of the death."""
    first = world.engine()
    first.wait_for("committed")
    standby = world.engine()
    time.sleep(1.0)
    assert "fetch" not in (standby.phases() if (world.directory / "phases.log").exists() else [])
    first.kill()
    died = time.monotonic()
    standby.wait_for("fetch", seconds_max=30)
    taken = time.monotonic() - died
    print(f"the standby was at work {taken:.1f} s after the death")
    assert taken < 1.5 + 2.0 + 1.5, "session timeout + 2 s, and a margin for a shared machine"
    standby.kill()
