"""What the benchmark computes of latencies, limits and growing costs; and each of its runs, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from benchmarks import environments, events, latency, latency_processes, limit, scaling
from connectors.kafka.record_batches import RecordBatches
from engine import config_file
from tests.conftest import Broker, ExternalBroker

LZ4 = 3


def response(count: int, first_offset: int = 0) -> bytes:
    """A record batch as a producer with lz4 makes it."""
    builder = DefaultRecordBatchBuilder(2, LZ4, 0, -1, -1, -1, 1 << 20)
    for number in range(count):
        builder.append(number, 1_700_000_000_000 + number, b"key-%d" % number, b'{"a":%d}' % number, [])
    made = bytearray(builder.build())
    made[:8] = first_offset.to_bytes(8, "big")
    return bytes(made)


def read(data: bytes, position: int = 0) -> list[dict[str, Any]]:
    """The records of a response, by the reader that production uses."""
    reader = RecordBatches(data, topic="t", partition=0, position=position)
    rows: list[dict[str, Any]] = []
    while reader.has_more:
        rows += reader.read(1 << 20).records.to_pylist()
    return rows


def test_latencies_leave_out_the_first_seconds_by_the_time_of_sending() -> None:
    """An event of the third second counts though the first one was seen later than it."""
    sent = np.array([0, 1_999_999_999, 2_000_000_000, 2_500_000_000], np.int64)
    seen = np.array([9_000_000_000, 2_000_000_000, 2_001_500_000, 2_503_000_000], np.int64)
    assert latency.latencies(seen, sent).tolist() == [1.5, 3.0]


def test_events_seen_together_have_one_time_each() -> None:
    """Batches become two columns of equal length, in their order."""
    seen, sent = latency_processes.spread(
        [(10, np.array([1, 2])), (20, np.array([], np.int64)), (30, np.array([3]))]
    )
    assert (seen.tolist(), sent.tolist()) == ([10, 10, 30], [1, 2, 3])


def test_percentiles_are_of_the_whole_distribution() -> None:
    """A thousand values whose percentiles are known, and none at all."""
    found = latency_processes.percentiles(np.arange(1001, dtype=np.float64))
    assert found == {"p50_ms": 500.0, "p99_ms": 990.0, "p999_ms": 999.0, "max_ms": 1000.0}
    assert latency_processes.percentiles(np.array([])) == {}


def test_recorders_of_several_processes_write_one_file(tmp_path: Path) -> None:
    """What each has seen is in the file at once, as it is in one that was written whole."""
    file = tmp_path / "seen"
    assert latency_processes.count(file) == 0
    first, second = latency_processes.Recorder(file), latency_processes.Recorder(file)
    try:
        first.note(100, np.array([1, 2], np.int64))
        assert latency_processes.count(file) == 2
        second.note(200, np.array([3], np.int64))
    finally:
        first.close()
        second.close()
    seen, sent = latency_processes.load(file)
    assert (seen.tolist(), sent.tolist()) == ([100, 100, 200], [1, 2, 3])
    latency_processes.save(tmp_path / "whole", seen, sent)
    assert (tmp_path / "whole").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("kind", "sink"),
    [("kinesis", None), ("rows", None), ("arrow", None), *((None, sink) for sink in latency.SINKS)],
)
def test_latency_is_measured_with_a_configuration_that_is_valid(
    kind: str | None, sink: str | None, tmp_path: Path
) -> None:
    """Every system's file loads, with window 0."""
    path = tmp_path / "headrace.toml"
    path.write_text(latency.config_of("clicks", kind=kind, sink=latency.SINKS[sink] if sink else None))
    pipeline = config_file.load(path).pipelines["latency"]
    assert pipeline.source.maximum_batching_window_in_seconds == 0
    assert (pipeline.sink.type == "none") == (sink is None)


def test_systems_take_turns_at_every_rate_and_linger() -> None:
    """Handlers run at each linger, sinks at the first alone; slow sinks run longer."""
    groups = latency.plan([1_000, 10_000], [5.0, 0.0], 10.0, ["aiokafka loop", "parquet, age 5 s"])
    named = [[(run.system, run.rate, run.linger_ms, run.seconds) for run in group] for group in groups]
    loops = [[("aiokafka loop", rate, linger, 10.0)] for rate in (1_000, 10_000) for linger in (5.0, 0.0)]
    assert named == [*loops, *([("parquet, age 5 s", rate, 5.0, 17.0)] for rate in (1_000, 10_000))]


def test_a_result_is_the_median_of_the_repetitions_that_went_well() -> None:
    """Failed repetitions stay visible and out of the medians."""
    run = latency.Run("aiokafka loop", 1_000, 5.0, 10.0)
    made = [{"events": 1, "p50_ms": 3.0}, {"error": "lost"}, {"events": 1, "p50_ms": 1.0}, {"p50_ms": 2.0}]
    found = latency.summary(run, made)
    assert (found["measure"], found["p50_ms"], len(found["repetitions"])) == ("handler", 2.0, 4)


def test_templates_become_events_with_the_time_of_sending() -> None:
    """A template and its end are one JSON object with the click event's ten fields and ``sent``."""
    made = orjson.loads(latency_processes.templates()[17] + b"%d}" % 1_700_000_000_000_000_000)
    assert list(made) == [*events.COLUMNS, "sent"]
    assert (made["event_id"], made["sent"]) == (17, 1_700_000_000_000_000_000)


def test_unpacked_responses_hold_the_same_records() -> None:
    """Without compression the reader finds what it finds with it: checksums and lengths are right."""
    data = response(5) + response(3, first_offset=5)
    assert len(read(data)) == 8
    assert read(limit.unpacked(data)) == read(data)


def test_a_batch_that_is_cut_off_is_left_out() -> None:
    """Frames end with the last whole batch."""
    data = response(5)
    assert list(limit.frames(data + response(3)[:-1])) == [(0, len(data))]


def costs(**seconds: float) -> list[dict[str, Any]]:
    """Results with a CPU cost for each million events; names have a way after two underscores."""
    return [
        {
            "step": name.partition("__")[0].replace("_", " "),
            "way": name.partition("__")[2],
            "cpu_seconds_per_million": cost,
            "seconds_per_million": cost,
        }
        for name, cost in seconds.items()
    ]


def test_the_limit_is_the_sum_of_the_best_ways() -> None:
    """The cheaper parser counts; the steps of reading count apart where that is cheaper than together."""
    steps = {"socket": 0.1, "checksum": 0.1, "decompress": 0.1, "records": 0.1, "encode": 0.1, "flush": 0.1}
    ways = {"parse__slow": 1.0, "parse__fast": 0.4}
    apart = limit.total(costs(**steps, **ways, checksum_to_records=0.31), headrace=500_000)
    assert apart["cpu_seconds_per_million"] == pytest.approx(1.0)
    assert (apart["ways"]["parse"], apart["headrace_share"]) == ("fast", 0.5)
    together = limit.total(costs(**steps, **ways, checksum_to_records=0.2))
    assert together["cpu_seconds_per_million"] == pytest.approx(0.9)
    assert "checksum" not in together["ways"]


@pytest.mark.parametrize("size", [234, 1_000, 10_000])
def test_events_of_a_size_have_that_size(size: int) -> None:
    """Ten columns and a filler add up to within three percent of what is asked for."""
    [cell] = [cell for cell in scaling.plan(["event_bytes"]) if cell.value == size]
    lengths = [len(value) for value in scaling.values(cell.shape)]
    assert abs(sum(lengths) / len(lengths) - size) < 0.03 * size
    assert len(cell.shape.types) == 10


@pytest.mark.parametrize("count", [1, 10, 50, 200])
def test_events_have_as_many_columns_as_the_cell_says(count: int) -> None:
    """Members of the JSON are the declared columns."""
    shape = scaling.Shape(10, columns=count)
    assert {tuple(orjson.loads(value)) for value in scaling.values(shape)} == {tuple(shape.types)}
    assert len(shape.types) == count


def test_every_cell_has_a_valid_configuration(tmp_path: Path) -> None:
    """Each cell of the plan loads as a pipeline, its batch size as asked for."""
    for cell in scaling.plan(scaling.AXES):
        path = tmp_path / "headrace.toml"
        tables = scaling.configuration("localhost:9092", "t", cell.shape, tmp_path / "out", cell.batch_size)
        path.write_text(scaling.toml(tables))
        assert config_file.load(path).pipelines[scaling.PIPELINE].source.batch_size == (cell.batch_size or 10_000)


def cell(axis: str, value: int, cost: float, rss_mb: float = 300.0) -> dict[str, Any]:
    """What a cell found."""
    return {
        "axis": axis,
        "value": value,
        "events": value if axis == "length" else 1_000_000,
        "cpu_seconds_per_million": cost,
        "rss_bytes_max": rss_mb * 1e6,
    }


def test_a_cost_that_grows_is_found() -> None:
    """Half as much again with 64 shards does not hold; the same cost with ten times the length does."""
    lengths = [cell("length", millions * 1_000_000, 1.0) for millions in (1, 2, 5, 10)]
    length, shards = scaling.verdicts([*lengths, cell("shards", 1, 1.0), cell("shards", 64, 1.5)])
    assert (length["holds"], length["growth"], length["rss_mb_per_million"]) == (True, 1.0, 0.0)
    assert (shards["holds"], shards["growth"]) == (False, 1.5)


def test_memory_that_grows_with_the_length_is_found() -> None:
    """Twenty megabytes for a million more events do not hold, however flat the cost is."""
    found = [cell("length", millions * 1_000_000, 1.0, 300 + 20 * millions) for millions in (1, 2, 5, 10)]
    [verdict] = scaling.verdicts(found)
    assert (verdict["holds"], verdict["rss_mb_per_million"]) == (False, 20.0)


def test_a_start_is_taken_off_the_cost() -> None:
    """Three CPU seconds of which one is the start are two for two million events."""
    start = scaling.Start(cpu_seconds=1.0, wall_seconds=1.0, rss_bytes_max=1)
    runs = [{"seconds": 4.0, "cpu_seconds": seconds, "rss_bytes_max": 5} for seconds in (2.9, 3.0, 9.0)]
    found = scaling.result(scaling.Cell("shards", 4, scaling.Shape(2_000_000)), runs, start)
    assert (found["cpu_seconds_per_million"], found["events_per_cpu_second"]) == (1.0, 1_000_000)
    assert found["events_per_second"] == 500_000


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.parametrize(
    "system",
    ["aiokafka loop", "headrace, arrow", "headrace, kinesis", "duckdb, interval 0.1 s", "parquet, age 0.1 s"],
)
def test_a_latency_is_measured(broker: Broker | ExternalBroker, system: str, tmp_path: Path) -> None:
    """A short run sees every event, later than it was sent."""
    found = latency.measure(broker.bootstrap, latency.Run(system, 200, 5.0, 3.0), tmp_path)
    assert found["events"] == 600
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert found["ack_p50_ms"] > 0


@pytest.mark.slow
@pytest.mark.broker
def test_environments_are_measured(broker: Broker | ExternalBroker) -> None:
    """A few invocations of each kind: every answer is right, and every figure is there."""
    said: list[str] = []
    found = environments.run(
        broker.bootstrap,
        **{"seconds": 0.05, "starts": 1, "count": 20_000, "concurrencies": (2,), "repetitions": 1},
        say=said.append,
    )
    measures = [(each["measure"], each.get("handler") or each.get("runtime")) for each in found]
    assert measures == [
        *(("throughput", handler) for handler in environments.HANDLERS),
        *(("invocation", runtime) for runtime in environments.RUNTIMES),
        *(("start", runtime) for runtime in environments.RUNTIMES),
        ("pipeline", None),
    ]
    json.dumps(found)
    assert len(said) == len(found)
    for each in found[:3]:
        assert each["records_per_second"] > 0
        assert all(each[f"{step}_us"] > 0 for step in environments.STEPS)
    assert all(0 < each["p50_us"] <= each["p99_us"] for each in found[3:5])
    assert all(0 < each["p50_ms"] <= each["max_ms"] for each in found[5:7])
    whole = found[-1]
    assert whole["events"] == 20_000
    assert whole["environments"] in (1, 2)
    assert whole["records_per_environment_cpu_second"] >= whole["records_per_cpu_second"] > 0
    assert all(whole[f"{step}_cpu_us"] >= 0 for step in ("fetch", *environments.STEPS))


async def test_a_wrong_answer_is_no_measurement() -> None:
    """An invocation that answers something else than what is known ends the benchmark."""
    async with environments.pool_of(environments.HANDLERS["base64"]) as pool:
        caller = environments.Caller(pool, environments.batch_of(3), answer=1)
        with pytest.raises(environments.Wrong, match="instead of b'1'"):
            await caller.call()


@pytest.mark.slow
@pytest.mark.broker
def test_the_limit_is_measured(broker: Broker | ExternalBroker, tmp_path: Path) -> None:
    """Every step has a figure for every event of a small topic."""
    found = limit.run(broker.bootstrap, count=3_000, rounds=1, scratch=tmp_path, say=lambda _: None)
    assert {each["step"] for each in found} == {*limit.PATH, limit.READ, "insert", "limit"}
    assert all(each["events"] == 3_000 and each["cpu_seconds_per_million"] > 0 for each in found[:-1])


@pytest.mark.slow
@pytest.mark.broker
def test_a_cell_of_the_scaling_is_measured(broker: Broker | ExternalBroker, tmp_path: Path) -> None:
    """A small topic of a shape of its own is written whole, and its topic is gone afterwards."""
    bench = scaling.Bench(broker.bootstrap, tmp_path)
    found = bench.once(scaling.Cell("columns", 3, scaling.Shape(2_500, columns=3)))
    bench.drop(set())
    assert found["files"] == scaling.PARTITIONS
    assert found["cpu_seconds"] > 0
    assert bench.topics == {}
