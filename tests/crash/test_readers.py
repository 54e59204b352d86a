"""Readers while the engine writes and is killed: whatever they ask, and when, the answer is a truth.

Three sinks take one topic: Parquet with its view, while files are compacted; a DuckDB file that is served; and one
of which copies are made. Readers of each, processes of their own (`reader_process`), ask throughout.
HEADRACE_CRASH=long is ten readers of each, 50,000 events/s and a minute (`make crash`); the short form, of the same
code, is part of `make test`. Seeds are fixed and printed; HEADRACE_CRASH_SEED changes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from connectors.kafka.broker import Broker
from tests.conftest import ExternalBroker
from tests.crash.engine_process import EngineProcess
from tests.crash.events import KEYS, PARTITIONS, Producing, make_topic, value_of
from tests.crash.reader_process import Reader, Rows, Seen, Wrong
from tests.forms import IS_CRASH_LONG

pytestmark = [pytest.mark.crash, pytest.mark.broker, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("HEADRACE_CRASH_SEED", "20261124"))
READERS = 10 if IS_CRASH_LONG else 2
PER_SECOND = 50_000 if IS_CRASH_LONG else 3_000
SECONDS = 60 if IS_CRASH_LONG else 7
KILLS = 2
MEMORY_BYTES = 6 << 30 if IS_CRASH_LONG else 512 << 20

#: Of a reader, after each answer: thirty without a pause would leave the engine nothing of a small machine.
PAUSE_SECONDS = 0.5 if IS_CRASH_LONG else 0.01

#: Engines that get little processor time are not to lose their shards for it.
SESSION_MS = 6_000 if IS_CRASH_LONG else 1_500

#: Files that were joined stay until the end. A query opens those that the view hides too, so one that is under way
#: when they are removed fails, however long they were hidden.
RETIRED_SECONDS = 3_600

#: From the last event to the last reader's end.
END_SECONDS_MAX = 900 if IS_CRASH_LONG else 60

#: After the next engine's first commit readers have an answer within this, beside what a query takes.
RECONNECT_SECONDS_MAX = 15 if IS_CRASH_LONG else 5

CONFIG = """
[kafka]
bootstrap = "{bootstrap}"
session_timeout_ms = {session_ms}
heartbeat_interval_ms = 300

[engine]
memory_bytes_max = {memory_bytes}

[web]
port = 0

[query]
seconds_max = 300
"""

PIPELINE = """
[pipelines.{way}]
consumer_group_id = "{topic}-{way}"

[pipelines.{way}.source]
topic = "{topic}"
batch_size = 10000
maximum_batching_window_in_seconds = 0.05

[pipelines.{way}.schema.columns]
id = "BIGINT"
page = "VARCHAR"
bucket = "VARCHAR"

[pipelines.{way}.sink]
{sink}
"""

#: By the way of reading: where, and the sink.
SINKS = {
    "view": (
        "rows",
        f"""type = "parquet"
path = "rows"
file_age_max_seconds = 0.2
compact = true
compact_files_min = 4
file_bytes_target = 1000000
compact_interval_seconds = 0.5
retired_seconds_min = {RETIRED_SECONDS}""",
    ),
    "served": (
        "served.duckdb",
        """type = "duckdb"
path = "served.duckdb"
table = "events"
commit_interval_max_seconds = 0.1""",
    ),
    "copied": (
        "copied.duckdb.snapshot",
        """type = "duckdb"
path = "copied.duckdb"
table = "events"
commit_interval_max_seconds = 0.1
publish = "snapshot"
snapshot_interval_seconds = 0.5""",
    ),
}


class Sending(Producing):
    """`Producing` by whole record batches: several times as many events for each CPU second."""

    def give_up(self) -> None:
        """Have it end with what it has sent, however little."""
        self._count_min = 0
        self.finish()

    async def _produce(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, acks="all", compression_type="lz4", max_batch_size=1 << 20
        )
        chunk = max(1, self._per_second // 50 // PARTITIONS) * PARTITIONS
        await producer.start()
        started = time.monotonic()
        try:
            while self.sent < self._count_min or not self._finishing.is_set():
                acknowledged = []
                for partition in range(PARTITIONS):
                    batch = producer.create_batch()
                    for number in range(self.sent + partition, self.sent + chunk, PARTITIONS):
                        added = batch.append(timestamp=None, key=b"%d" % (number % KEYS), value=value_of(number))
                        assert added is not None, "a chunk is one batch of each partition"
                    batch.close()
                    acknowledged.append(await producer.send_batch(batch, self._topic, partition=partition))
                await asyncio.gather(*acknowledged)
                self.sent += chunk
                if not self._finishing.is_set():
                    await asyncio.sleep(max(0.0, self.sent / self._per_second - (time.monotonic() - started)))
        finally:
            await producer.stop()


@dataclass
class Readers:
    """The processes, by what they are called."""

    directory: Path
    processes: dict[str, subprocess.Popen[bytes]]

    def are_content(self) -> None:
        """None has found a fault so far."""
        for name, process in self.processes.items():
            assert process.poll() is None, self.said(name)

    def finish(self, count: int) -> dict[str, dict[str, Any]]:
        """Tell each that there are ``count`` events, and wait; what each has seen."""
        self.are_content()
        for process in self.processes.values():
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its exit code says how
                process.stdin.write(b"%d\n" % count)
                process.stdin.close()
        deadline = time.monotonic() + END_SECONDS_MAX + 30
        for name, process in self.processes.items():
            code = process.wait(max(0.0, deadline - time.monotonic()))
            assert code == 0, self.said(name)
        return {name: json.loads((self.directory / f"{name}.out").read_text()) for name in self.processes}

    def said(self, name: str) -> str:
        out, err = ((self.directory / f"{name}.{end}").read_text() for end in ("out", "err"))
        return f"reader {name}: {json.loads(out)['fault'] if out else err[-3000:]}"


@contextmanager
def readers(directory: Path) -> Iterator[Readers]:
    """`READERS` of each way over what the engine makes in ``directory``."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for way, (place, _) in SINKS.items():
            for number in range(READERS):
                name = f"{way}-{number}"
                with (directory / f"{name}.out").open("wb") as out, (directory / f"{name}.err").open("wb") as err:
                    asked = (way, str(directory / place), str(PAUSE_SECONDS), str(END_SECONDS_MAX))
                    processes[name] = subprocess.Popen(
                        [sys.executable, "-m", "tests.crash.reader_process", *asked],
                        cwd=ROOT,
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=err,
                    )
        yield Readers(directory, processes)
    finally:
        for process in processes.values():
            process.kill()
            process.wait(30)
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ([(0, 11, 10, 0, 9)], "duplicates"),
        ([(0, 10, 10, 0, 10)], "a hole"),
        ([(0, 10, 10, 1, 10)], "a hole"),
        ([(0, 4, 4, 0, 3)], "fewer rows than before"),
        ([(1, 9, 9, 0, 8)], "fewer rows than before"),
    ],
)
def test_a_reader_sees_what_cannot_be(answer: Rows, fault: str) -> None:
    """After five rows of one partition: each wrong answer is told by its kind."""
    answers = [[(0, 5, 5, 0, 4)], answer]
    reader = Reader(lambda _sql: answers.pop(0), Seen("view"))
    reader.look()
    with pytest.raises(Wrong, match=fault):
        reader.look()


def test_a_reader_looks_at_each_row_in_the_end() -> None:
    """A row that is there once, in the wrong place, is found."""
    reader = Reader(lambda _sql: [(16, 16, 0, 15, 1)], Seen("view"))
    with pytest.raises(Wrong, match="16 events"):
        reader.end(16)


def test_readers_see_the_truth_while_the_engine_is_killed(broker: Broker | ExternalBroker, tmp_path: Path) -> None:
    """No duplicate, no hole, no fewer rows than before, no error but a reconnect; in the end each row, once."""
    topic = f"readers-{time.time_ns()}"
    asyncio.run(make_topic(broker.bootstrap, topic))
    config = tmp_path / "headrace.toml"
    config.write_text(
        CONFIG.format(bootstrap=broker.bootstrap, memory_bytes=MEMORY_BYTES, session_ms=SESSION_MS)
        + "".join(PIPELINE.format(topic=topic, way=way, sink=sink) for way, (_, sink) in SINKS.items())
    )
    chance = random.Random(SEED)
    print(f"seed {SEED}, {READERS} readers of each way, {PER_SECOND} events/s for {SECONDS} s, {KILLS} kills")
    producing = Sending(broker.bootstrap, topic, PER_SECOND * SECONDS, PER_SECOND)
    died, gone = time.monotonic(), []  # when an engine was killed; seconds until the next one's first commit
    with readers(tmp_path) as reading:
        producing.start()
        try:
            for turn in range(KILLS + 1):
                with EngineProcess(
                    config, phase_log=tmp_path / "phases.log", log=tmp_path / "engine.log"
                ) as engine:
                    engine.wait_for("committed", seconds_max=180)  # the first one on a machine compiles
                    gone.append(time.monotonic() - died)
                    # Rows of its own in each kind of sink: taking shards over commits too, but none.
                    engine.wait_for("handler")
                    engine.wait_for("half-renamed")
                    engine.wait_for_next("committed")
                    engine.wait_for_next("committed")
                    engine.wait_for("compaction-active")
                    if turn < KILLS:
                        time.sleep(chance.uniform(0.3, 0.6) * SECONDS / (KILLS + 1))
                        reading.are_content()
                        died = time.monotonic()
                        engine.kill()
                        continue
                    producing.finish()
                    seen = reading.finish(producing.sent)
        finally:
            producing.give_up()
    print(f"from a death to the next engine's first commit {', '.join(f'{each:.1f}' for each in gone[1:])} s")
    check(seen, producing.sent, max(gone[1:]), tmp_path)


def check(seen: dict[str, dict[str, Any]], sent: int, gone: float, directory: Path) -> None:
    """That the readers had something to see: growth, files that were joined, and the engine's deaths."""
    for way in SINKS:
        found = [each for each in seen.values() if each["way"] == way]
        away = [seconds for each in found for seconds in each["reconnects"]]
        print(
            f"{way}: {len(found)} readers, {sum(each['queries'] for each in found)} queries,"
            f" the longest {max(each['query_seconds_max'] for each in found):.2f} s,"
            f" {min(each['changes'] for each in found)} changes at least; {len(away)} reconnects,"
            f" the longest {max(away, default=0.0):.2f} s; {sent} rows"
        )
        print(Counter(reason for each in found for reason in each["reasons"]))
    for name, each in seen.items():
        assert each["rows"] == sent
        assert each["changes"] >= KILLS + 1, f"reader {name} saw almost nothing change"
        assert len(each["reconnects"]) <= (KILLS if each["way"] == "served" else 0), f"reader {name}: {each}"
        seconds_max = gone + each["query_seconds_max"] + RECONNECT_SECONDS_MAX
        assert max(each["reconnects"], default=0.0) < seconds_max, f"reader {name}: {each}"
    assert list((directory / "rows").glob("**/*~c*.parquet")), "nothing was compacted"
