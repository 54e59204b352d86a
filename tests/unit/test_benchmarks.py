"""The benchmark itself: its events, its measuring, its checks (each must refuse a wrong result), and its page."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks import events, harness, measure, page, plots, real, results, targets, workloads
from benchmarks.harness import Harness
from benchmarks.systems import ROOT, System, own
from benchmarks.systems.headrace import configuration, summary, toml
from benchmarks.systems.job import Job, answer_of
from benchmarks.workloads import WORKLOADS, Answers, Wrong, answers, check
from engine import config_file
from functions import samples

COUNT = 3_000
POLL_SECONDS = 0.02
WAIT_SECONDS_MAX = 20.0


@pytest.fixture(scope="module")
def clicks() -> pa.Table:
    """The first events as typed columns."""
    return pa.concat_tables(events.tables(COUNT))


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What must come of them."""
    return answers(COUNT, tmp_path_factory.mktemp("answers"))


def job(workload: str, output: Path | str = "/output", scratch: Path | str = "/scratch") -> Job:
    return Job(workload, "127.0.0.1:9092", "clicks", COUNT, 4, str(output), str(scratch), "group-1")


class TestEvents:
    def test_an_event_is_its_columns_as_json(self) -> None:
        """The JSON of a topic and the columns that answers are computed from say the same."""
        chunk = next(events.chunks(2_000))
        values = chunk.values.to_pylist()
        assert [orjson.loads(value) for value in values] == chunk.table.to_pylist()
        assert [orjson.dumps(row) for row in chunk.table.to_pylist()] == values

    def test_the_first_events_are_the_same_in_any_number(self) -> None:
        """A smaller topic is a beginning of a larger one."""
        few = list(events.chunks(events.CHUNK_EVENTS + 5))
        many = list(events.chunks(events.CHUNK_EVENTS * 2))
        assert [len(chunk) for chunk in few] == [events.CHUNK_EVENTS, 5]
        assert few[1].values.to_pylist() == many[1].values.slice(0, 5).to_pylist()
        assert few[1].table["event_id"].to_pylist() == list(range(events.CHUNK_EVENTS, events.CHUNK_EVENTS + 5))

    def test_they_never_change(self) -> None:
        """Results of different days are about the same events: about 234 bytes each, keyed by their user."""
        chunk = next(events.chunks(10_000))
        values, keys = chunk.values.to_pylist(), chunk.keys.to_pylist()
        assert hashlib.sha256(b"\n".join(values)).hexdigest() == SUM
        assert 225 < sum(map(len, values)) / len(values) < 240
        assert [b"u" + key for key in keys] == [user.encode() for user in chunk.table["user_id"].to_pylist()]


SUM = "e1b9d6ad9110096b5c3e5aecd51d268e5d7c731ec89c40b9dab83813a222c77e"


class TestMeasure:
    def run(self, tmp_path: Path, script: str, seconds_max: float = 60.0) -> measure.Measured:
        return measure.run([sys.executable, "-c", script], {}, tmp_path, seconds_max)

    def test_the_whole_tree_counts(self, tmp_path: Path) -> None:
        """Processor time and memory of a grandchild that outlives its parent are measured, and it is waited for."""
        script = f"""
import subprocess, sys
work = '''
import time
block = bytearray(150 << 20)
for at in range(0, len(block), 4096): block[at] = 1
while time.process_time() < 0.5: pass
open("orphan", "w").close()
'''
subprocess.Popen([{sys.executable!r}, "-c", work], start_new_session=True)
print("gone")
sys.exit(3)
"""
        measured = self.run(tmp_path, script)
        assert (measured.code, measured.out) == (3, "gone\n")
        assert (tmp_path / "orphan").exists()
        assert measured.cpu_seconds >= 0.5
        assert measured.rss_bytes_max >= 150 << 20

    def test_at_the_timeout_the_whole_tree_is_killed(self, tmp_path: Path) -> None:
        """A process that left the command's session dies with it too."""
        script = f"""
import subprocess, time
child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"], start_new_session=True)
open("pid", "w").write(str(child.pid))
time.sleep(600)
"""
        measured = self.run(tmp_path, script, 1.5)
        assert measured.code is None
        pid = int((tmp_path / "pid").read_text())
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)

    def test_only_the_variables_that_are_meant_arrive(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A PYTHONPATH of the harness is none of a peer's."""
        monkeypatch.setenv("PYTHONPATH", "/nowhere")
        monkeypatch.setenv("HEADRACE_SOMETHING", "1")
        script = "import os; print(os.environ.get('PYTHONPATH'), os.environ['HEADRACE_SOMETHING'], os.environ['X'])"
        measured = measure.run([sys.executable, "-c", script], {"X": "2"}, tmp_path, 60)
        assert measured.out == "None 1 2\n"

    def test_flushes_are_counted(self) -> None:
        """All kinds of flushing in strace's table, with and without errors, and no total."""
        table = """
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.00    0.001173        1173        12           fsync
 10.00    0.000015          15         3         1 fdatasync
------ ----------- ----------- --------- --------- ----------------
100.00    0.001188         594        15         1 total
"""
        assert measure.flush_calls(table) == 15
        assert measure.flush_calls("") == 0

    def test_bookkeeping_is_no_output(self, tmp_path: Path) -> None:
        """Hidden files and folders do not count."""
        for name in ("a.parquet", "x=1/b.parquet", ".log/1.json", "_temporary/c.parquet", ".hidden"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"1234")
        assert measure.size(tmp_path) == (8, 2)


Spoil = Callable[[pa.Table], pa.Table]


def replaced(name: str, value: Callable[[pa.ChunkedArray], Any]) -> Spoil:
    def spoil(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, value(table[name]))

    return spoil


SPOILT: dict[str, Spoil] = {
    "a row is missing": lambda table: table.slice(1),
    "a row is there twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "one stands for another": lambda table: pa.concat_tables([table.slice(1), table.slice(1, 1)]),
    "a price is off by a cent": replaced(
        "price", lambda column: pa.array([column[0].as_py() + 0.01, *column.to_pylist()[1:]])
    ),
    "a text is another": replaced("ua", lambda column: pa.array(["x", *column.to_pylist()[1:]])),
    "an address is missing": replaced("ip", lambda column: pa.array([None, *column.to_pylist()[1:]])),
}


class TestChecks:
    def check(self, workload: str, output: Path, answer: Answers, values: Sequence[bytes] = ()) -> None:
        check(workload, output, answer, lambda: values)

    def test_etl(self, tmp_path: Path, clicks: pa.Table, answer: Answers) -> None:
        """All rows in several files, beside bookkeeping, with columns of the system's own, are right."""
        pq.write_table(clicks.slice(0, 1_000), tmp_path / "1.parquet")
        own_column = clicks.slice(1_000).append_column("_offset", pa.array(range(COUNT - 1_000)))
        pq.write_table(own_column, tmp_path / "2.parquet")
        (tmp_path / "_SUCCESS").write_text("x")
        self.check("etl", tmp_path, answer)

    @pytest.mark.parametrize("what", SPOILT)
    def test_etl_spoilt(self, tmp_path: Path, clicks: pa.Table, answer: Answers, what: str) -> None:
        """A single row that is not right makes the result wrong."""
        pq.write_table(SPOILT[what](clicks), tmp_path / "1.parquet")
        with pytest.raises(Wrong):
            self.check("etl", tmp_path, answer)

    def test_json_lines_will_do(self, tmp_path: Path, clicks: pa.Table, answer: Answers) -> None:
        """A system that writes no Parquet has its JSON lines read."""
        (tmp_path / "1.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in clicks.to_pylist()))
        self.check("etl", tmp_path, answer)

    @pytest.mark.parametrize("workload", ["etl", "window", "handler", "logs", "changes"])
    def test_nothing_is_wrong(self, tmp_path: Path, answer: Answers, workload: str) -> None:
        """A system that left nothing did nothing."""
        with pytest.raises(Wrong):
            self.check(workload, tmp_path, answer)

    def test_filter(self, tmp_path: Path, clicks: pa.Table, answer: Answers) -> None:
        """Purchases above 90, members in any order; one more, one less, or a changed one is wrong."""
        kept = clicks.filter(
            pc.and_(pc.equal(clicks["event_type"], "purchase"), pc.greater(clicks["price"], 90))
        ).to_pylist()
        values = [orjson.dumps(dict(reversed(row.items()))) for row in kept]
        self.check("filter", tmp_path, answer, values)
        changed = orjson.dumps(kept[0] | {"user_id": "nobody"})
        wrong = ([], values[1:], [*values, values[0]], [changed, *values[1:]], [b"{", *values[1:]])
        for spoilt in wrong:
            with pytest.raises(Wrong):
                self.check("filter", tmp_path, answer, spoilt)

    def windows(self, clicks: pa.Table) -> list[dict[str, Any]]:
        """Counted in plain Python, beside DuckDB."""
        found: dict[tuple[int, str], list[float]] = {}
        for row in clicks.to_pylist():
            window = found.setdefault((row["ts"] // 60_000 * 60_000, row["page"]), [0, 0.0])
            window[0] += 1
            window[1] += row["price"]
        return [
            {"window_start": start, "page": page, "count": int(count), "sum": total}
            for (start, page), (count, total) in found.items()
        ]

    @pytest.mark.parametrize("form", ["parquet", "jsonl", "db"])
    def test_window(self, tmp_path: Path, clicks: pa.Table, answer: Answers, form: str) -> None:
        """Each form is read; of updates the largest count decides; a wrong count, sum or key is found."""
        right = self.windows(clicks)
        update = {**right[0], "count": 0, "sum": 0.0}
        spoilt = [
            right[1:],
            [{**right[0], "count": right[0]["count"] + 1}, *right[1:]],
            [{**right[0], "sum": right[0]["sum"] + 0.01}, *right[1:]],
            [*right, {**right[0], "page": "/p/none"}],
        ]
        for number, rows in enumerate([right, [update, *right], *spoilt]):
            output = tmp_path / str(number)
            output.mkdir()
            given = pa.Table.from_pylist(rows)
            if form == "parquet":
                pq.write_table(given, output / "1.parquet")
            elif form == "jsonl":
                (output / "1.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
            else:
                with duckdb.connect(str(output / "x.db")) as database:
                    database.execute("CREATE TABLE windows AS FROM given")
            if rows in spoilt:
                with pytest.raises(Wrong):
                    self.check("window", output, answer)
            else:
                self.check("window", output, answer)

    def test_handler(self, tmp_path: Path, answer: Answers) -> None:
        """Parts of several processes are added up; a record handled twice shows."""
        (tmp_path / "0.json").write_text(json.dumps({"events": 1_000, "sum": 17}))
        rest = {"events": COUNT - 1_000, "sum": COUNT * (COUNT - 1) // 2 - 17}
        (tmp_path / "1.json").write_text(json.dumps(rest))
        self.check("handler", tmp_path, answer)
        (tmp_path / "1.json").write_text(json.dumps({**rest, "events": COUNT - 999}))
        with pytest.raises(Wrong, match="3001"):
            self.check("handler", tmp_path, answer)


class TestRealData:
    @pytest.fixture(autouse=True)
    def _samples(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The samples that ship, as in a clone that has nothing else."""
        monkeypatch.setenv("HEADRACE_TEST_DATA", str(tmp_path / "nowhere"))

    def test_logs(self, tmp_path: Path) -> None:
        """Failures of all passes are right; one less is wrong."""
        passes = list(real.records("logs", 2))
        assert [len(each) for each in passes] == [20_000, 20_000]
        kept = [line.split(b" ") for each in passes for _, line in each if line.rsplit(b" ", 2)[1] >= b"400"]
        rows = [{"status": int(line[-2]), "host": line[0].decode(), "path": line[6].decode()} for line in kept]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "1.parquet")
        real.check_logs(tmp_path, 40_000)
        pq.write_table(pa.Table.from_pylist(rows[1:]), tmp_path / "1.parquet")
        with pytest.raises(real.Differs):
            real.check_logs(tmp_path, 40_000)

    def test_changes(self, tmp_path: Path) -> None:
        """Applied in the order of their positions, two passes give the table's final version; positions go on."""
        table: dict[str, dict[str, str]] = {}
        positions = []
        for key, value in itertools.chain.from_iterable(real.records("changes", 2)):
            change = orjson.loads(value)
            positions.append(change["source"]["pos"])
            row = change["after"]
            assert key == (row or change["before"])["id"].encode()
            if row is None:
                table.pop(change["before"]["id"], None)
            else:
                table[row["id"]] = row
        assert positions == sorted(set(positions))
        assert len(positions) == 2 * len(samples.lines("runways-changes"))
        self.write(tmp_path / "runways.db", list(table.values()))
        real.check_changes(tmp_path, 0)
        self.write(
            tmp_path / "runways.db", [{**next(iter(table.values())), "surface": "?"}, *list(table.values())[1:]]
        )
        with pytest.raises(real.Differs, match="1 are missing, and 1"):
            real.check_changes(tmp_path, 0)

    def write(self, file: Path, rows: list[dict[str, str]]) -> None:
        file.unlink(missing_ok=True)
        casts = ", ".join(
            f'"{name}"' if kind == "VARCHAR" else f"""nullif("{name}", '')::{kind} AS "{name}\""""
            for name, kind in real.RUNWAYS.items()
        )
        given = pa.Table.from_pylist(rows)  # noqa: F841 - DuckDB finds it by its name
        with duckdb.connect(str(file)) as database:
            database.execute(f"CREATE TABLE runways AS SELECT {casts} FROM given")


class TestHeadrace:
    @pytest.mark.parametrize("workload", WORKLOADS)
    def test_its_configuration_is_one(self, tmp_path: Path, workload: str) -> None:
        """What is written for a workload is TOML, and headrace takes it."""
        output = "output-topic" if WORKLOADS[workload].writes_topic else tmp_path / "out"
        given = configuration(job(workload, output, tmp_path))
        text = toml(given)
        assert tomllib.loads(text) == given
        file = tmp_path / "headrace.toml"
        file.write_text(text)
        config = config_file.load(file)
        assert config.pipelines["group-1"].source.topic == "clicks"
        assert config.pipelines["group-1"].consumer_group_id == "group-1"

    def test_seconds_go_from_the_first_start_to_the_summary(self) -> None:
        """By the times of its log lines."""
        lines = [
            ("00:00:01.000", "headrace.kafka", "g: assigned partitions [0, 1]"),
            ("00:00:01.250", "headrace.shard", "bench[1]: starts at offset 0"),
            ("00:00:01.300", "headrace.shard", "bench[0]: starts at offset 0"),
            (
                "00:00:04.500",
                "headrace.run",
                "bench: 1,234 records, 5 rows, 0 failed, 0 dropped, 2 commits in 4.0 s (x)",
            ),
        ]
        log = "".join(
            json.dumps({"time": f"2026-01-01T{at}+00:00", "logger": logger, "message": message}) + "\n"
            for at, logger, message in lines
        )
        assert summary(f"a warning\n{log}") == (1_234, 3.25)
        with pytest.raises(ValueError, match="no summary"):
            summary("\n".join(log.splitlines()[:1]))

    def test_the_handler_tells_what_it_has_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each process has a file of its own, in which records that come again count again."""
        two = Job("handler", "b", "t", 2, 4, str(tmp_path), str(tmp_path), "g")
        ((name, value),) = two.environment().items()
        monkeypatch.setenv(name, value)
        five = {"Records": [{"kinesis": {"data": "eyJldmVudF9pZCI6NX0="}}]}
        script = "import json, sys; from benchmarks.systems import handler; "
        script += "[handler.count_and_tell(json.loads(sys.argv[1]), None) for _ in range(int(sys.argv[2]))]"
        for times in ("1", "2"):
            subprocess.run([sys.executable, "-c", script, json.dumps(five), times], cwd=ROOT, check=True)
        found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
        assert sorted(each["events"] for each in found) == [1, 2]
        assert sum(each["sum"] for each in found) == 15


class TestJob:
    def test_the_last_answer_counts(self) -> None:
        """What a system prints before and after its answer is none."""
        out = 'x\nRESULT {"events": 1, "seconds": 2}\nRESULT {"events": 3, "seconds": 4}\nbye\n'
        assert answer_of(out) == {"events": 3, "seconds": 4}
        assert answer_of("RESULTS\n") == {}

    def test_a_job_arrives_as_it_was_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Through the variable."""
        given = job("etl")
        ((name, value),) = given.environment().items()
        assert (name, Job(**json.loads(value))) == ("BENCHMARK_JOB", given)


class Pretended(Harness):
    """A harness whose systems have a rate; what it was asked to run is in ``asked``."""

    def __init__(self, start_seconds: float, rate: float) -> None:
        super().__init__("nowhere", Path("/nowhere"))
        self.start_seconds, self.rate = start_seconds, rate
        self.asked: list[int] = []

    def run(self, workload: Any, system: System, events: int, *, is_flushes: bool = False) -> dict[str, Any]:
        self.asked.append(events)
        seconds = self.start_seconds + events / self.rate
        return {
            **{"workload": workload.name, "system": system.name, "events": events, "seconds": seconds},
            **{"cpu_seconds": seconds, "rss_bytes_max": 1, "correct": True},
        }


class TestSizing:
    @pytest.mark.parametrize(
        ("start_seconds", "rate"), [(0.0, 1_000), (0.5, 3_000), (0.3, 300_000), (1.5, 1_250_000), (13.0, 240_000)]
    )
    def test_a_run_lasts_as_long_as_asked_for(self, start_seconds: float, rate: float) -> None:
        """A topic that is enough and not much larger, in few runs, however long a start takes."""
        pretended = Pretended(start_seconds, rate)
        etl, headrace = WORKLOADS["etl"], own()[0]
        first = pretended.run(etl, headrace, harness.LADDER[0])
        events_chosen = pretended.events_for(etl, headrace, 30.0, first)
        assert events_chosen in harness.LADDER
        enough = [size for size in harness.LADDER if start_seconds + size / rate >= 30]
        assert events_chosen in enough[:2]
        assert len(pretended.asked) <= harness.SIZINGS_MAX

    def test_systems_take_turns(self) -> None:
        """Every system has one run before any has its second, and the order moves on."""
        pretended = Pretended(0.0, 1e6)
        chosen = own()[:3]
        kept: list[dict[str, Any]] = []
        pretended.interleaved(WORKLOADS["etl"], chosen, [10, 20, 30], 3, kept.append)
        assert [entry["events"] for entry in kept] == [10, 20, 30, 20, 30, 10, 30, 10, 20]
        assert [entry["repetition"] for entry in kept] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def entry(workload: str, system: str, seconds: float | None, cpu: float = 1.0, **more: Any) -> dict[str, Any]:
    found = {
        **{"workload": workload, "system": system, "events": 1_000_000, "seconds": seconds, "cpu_seconds": cpu},
        **{"wall_seconds": seconds, "rss_bytes_max": 100_000_000, "correct": seconds is not None, "note": ""},
        **{"bytes": 1_000_000, "files": 4},
    }
    return found | ({} if seconds is not None else {"wrong": "exit code 1"}) | more


RUNS = [
    entry("etl", "headrace", 2.0, 1.0),
    entry("etl", "headrace", 1.0, 0.9),
    entry("etl", "headrace", 9.0, 1.1),
    entry("etl", "aiokafka", 4.0, 4.0),
    entry("etl", "quixstreams", 4.0, 0.5, correct=False, wrong="events 1 instead of 2"),
    entry("etl", "spark", None),
    entry("handler", "headrace", 2.0, 2.0),
    entry("handler", "aiokafka", 1.0, 1.0),
]


class TestResults:
    def test_figures_are_medians(self) -> None:
        """Of each cell, one object; what is wrong or failed says so."""
        found = {(each["workload"], each["system"]): each for each in results.quick_cells(RUNS)}
        etl = found["etl", "headrace"]
        assert (etl["seconds"], etl["cpu_seconds"], etl["repetitions"], etl["correct"]) == (2.0, 1.0, 3, True)
        assert isinstance(etl["rss_bytes_max"], int)
        assert found["etl", "quixstreams"]["correct"] is False
        assert found["etl", "spark"]["seconds"] is None
        assert found["etl", "spark"]["wrong"] == "exit code 1"

    def test_a_start_is_taken_off(self) -> None:
        """A small run's processor seconds, and its events."""
        start = {**entry("etl", "headrace", 0.5, 0.5), "events": 500_000}
        (cell, *_) = results.cells({"runs": RUNS})["etl"]
        assert results.rate_without_start([start], cell) == pytest.approx(500_000 / 0.5)
        assert results.rate_without_start([], cell) is None

    def test_what_is_compared_was_measured_in_one_session(self) -> None:
        """Of two documents with runs of one workload the later one's stand, all of them."""
        first = {"runs": RUNS, "latency": [1], "systems": {"a": {}}, "command": "x"}
        second = {"runs": [entry("etl", "headrace", 5.0)], "latency": [], "systems": {"b": {}}, "command": "y"}
        merged = results.merge([first, second])
        assert [run["seconds"] for run in merged["runs"] if run["workload"] == "etl"] == [5.0]
        assert len([run for run in merged["runs"] if run["workload"] == "handler"]) == 2
        assert (merged["latency"], list(merged["systems"]), merged["commands"]) == ([1], ["a", "b"], ["x", "y"])

    def test_a_run_that_is_killed_keeps_what_it_has(self, tmp_path: Path) -> None:
        """Each entry is in the file before the next run."""
        file = tmp_path / "results.json"
        document = results.Document(file, "a broker")
        document.keep("runs", RUNS[0])
        assert json.loads(file.read_text())["runs"] == RUNS[:1]
        document.keep("runs", RUNS[1])
        assert json.loads(file.read_text())["runs"] == RUNS[:2]
        assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


class TestPage:
    def verdicts(self, document: dict[str, Any]) -> dict[tuple[str, str], targets.Verdict]:
        found = targets.verdicts(document, results.cells(document))
        return {(verdict.work, verdict.target): verdict for verdict in found}

    def test_targets_are_met_missed_or_not_measured(self) -> None:
        """A wrong peer is no yardstick, and nothing is met that was not measured."""
        scaling = [
            {"axis": "shards", "value": 64, "rss_bytes_max": 500_000_000},
            {"axis": "length", "verdict": "x", "holds": True, "growth": 1.0, "rss_mb_per_million": 0.1},
        ]
        latency = [
            {"measure": "handler", "rate": 10_000, "linger_ms": 0.0, "system": name, "p50_ms": p50, "p99_ms": p99}
            for name, p50, p99 in (("headrace, kinesis", 2.0, 9.0), ("aiokafka loop", 2.5, 8.0))
        ]
        found = self.verdicts({"runs": RUNS, "scaling": scaling, "latency": latency})
        state = {key: verdict.is_met for key, verdict in found.items()}
        assert state["etl", "1,000,000 events per CPU second"] is True
        assert state["etl", "3 times the best hand-written loop, per CPU second"] is True
        assert state["etl", "10 times quixstreams, per CPU second"] is None
        assert state["etl", "ahead of spark, per CPU second"] is None
        assert state["window", "1,000,000 events per CPU second"] is None
        assert state["handler", "the hand-written loop's events/s or better, also per CPU second"] is False
        assert state["latency, 10,000 events/s", "p50 below 3 ms, p99 below 15 ms, send to handler"] is True
        assert state["latency, 10,000 events/s", "no worse than the hand-written loop"] is False
        assert state["memory", "below 400 MB resident for 64 shards at full speed"] is False
        assert state["memory", "flat over the run"] is True

    def test_the_page_hides_nothing(self, tmp_path: Path) -> None:
        """Missed targets, wrong and failed results stand in it, and each workload has its plot."""
        document = {
            "machine": results.machine() | {"broker": "a broker"},
            **{"started": "today", "command": "python -m benchmarks", "runs": RUNS, "starts": []},
            "systems": {system.name: system.about() for system in own()},
            "flushes": [{"workload": "etl", "system": "headrace", "events": 1, "flushes": 77}],
        }
        file = tmp_path / "results.json"
        file.write_text(json.dumps(document))
        text = page.write([file], tmp_path).read_text()
        for part in ("**missed**", "**wrong**: events 1 instead of 2", "**failed**: exit code 1", "| 77 |"):
            assert part in text
        assert "exactly once" in text
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert {line.count("|") for line in rows if "aiokafka" in line and "correct" in line} == {16}
        for workload in ("etl", "handler"):
            assert f"plots/{workload}.svg" in text
            ElementTree.fromstring((tmp_path / "plots" / f"{workload}.svg").read_text())

    def test_a_list_is_the_part_that_its_name_says(self, tmp_path: Path) -> None:
        """What the other modules write by themselves is taken too; any other list is refused."""
        limit = tmp_path / "limit.json"
        limit.write_text(
            json.dumps([{"step": "parse", "way": "x", "events_per_cpu_second": 5, "cpu_seconds_per_million": 0.2}])
        )
        assert "| parse | x | 5 | 0.200 |" in page.write([limit], tmp_path / "page").read_text()
        other = tmp_path / "other.json"
        other.write_text("[]")
        with pytest.raises(ValueError, match="latency, freshness, scaling, limit"):
            page.write([other], tmp_path / "page")

    @pytest.mark.parametrize(
        ("seconds", "cpu", "is_met"), [(0.5, 1.0, True), (0.5, 1.25, False), (1.25, 0.5, False)]
    )
    def test_the_loop_is_reached_in_time_and_in_cpu_time(self, seconds: float, cpu: float, is_met: bool) -> None:
        """Neither more processes nor a slow one make up for the other; starts stand beside and decide nothing."""
        runs = [entry("handler", "headrace", seconds, cpu), entry("handler", "aiokafka", 1.0, 1.0)]
        starts = [{**entry("handler", name, 0.1, 0.25), "events": 0} for name in ("headrace", "aiokafka")]
        found = self.verdicts({"runs": runs, "starts": starts})
        verdict = found["handler", "the hand-written loop's events/s or better, also per CPU second"]
        assert verdict.is_met is is_met
        assert verdict.measured.endswith(
            f"{1 / cpu:.2f} per CPU second ({0.75 / (cpu - 0.25):.2f} without the starts)"
        )

    def test_environments_are_judged_by_decoding_json(self, tmp_path: Path) -> None:
        """A rate below the target is a miss, whatever a handler that decodes less reaches; both are told."""
        steps = dict.fromkeys(("transfer_us", "build_us", "handler_us", "encode_us", "engine_us"), 0.5)
        cpu_steps = dict.fromkeys(("fetch_cpu_us", "transfer_cpu_us", "build_cpu_us", "handler_cpu_us"), 0.25)
        entries = [
            *(
                {"measure": "throughput", "handler": name, "records_per_second": 1, **steps}
                | {"records_per_environment_cpu_second": rate}
                for name, rate in (("base64", 400_000), ("base64, orjson", 199_999))
            ),
            {"measure": "invocation", "runtime": "python", "p50_us": 299.0, "p99_us": 5_000.0},
            {"measure": "start", "runtime": "python", "p50_ms": 50.0, "max_ms": 60.0},
            {"measure": "pipeline", "reserved_concurrency": 8, "environments": 4, "events": 7, **cpu_steps}
            | {"records_per_second": 1, "records_per_cpu_second": 2, "records_per_environment_cpu_second": 3},
        ]
        found = self.verdicts({"runs": RUNS, "environments": entries})
        state = {target: verdict.is_met for (work, target), verdict in found.items() if work == "environments"}
        assert list(state.values()) == [False, True]
        file = tmp_path / "environments.json"
        file.write_text(json.dumps(entries))
        text = page.write([file], tmp_path / "page").read_text()
        assert "400,000 (base64); 199,999 (base64, orjson) | **missed** |" in text
        assert "| python | 299 | 5,000 | 50 | 60 |" in text
        assert "| 8 | 4 | 7 | 1 | 2 | 3 | 0.25 | 0.25 | 0.25 | 0.25 |" in text

    def test_a_chart_is_sorted_and_escaped(self) -> None:
        """The longest bar first; a name is text, whatever stands in it."""
        drawn = plots.chart("A & B", "events", [plots.Bar("<a>", 1.0), plots.Bar("b", 2.0, True, False)])
        texts = [node.text for node in ElementTree.fromstring(drawn).iter() if node.text and node.text.strip()]
        assert texts == ["A & B", "events", "b (wrong)", "2", "<a>", "1"]


def test_visible_files_have_content(tmp_path: Path) -> None:
    """An empty file is no result."""
    (tmp_path / "a").touch()
    (tmp_path / "b").write_text("x")
    assert workloads.visible(tmp_path) == [tmp_path / "b"]
