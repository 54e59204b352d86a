"""What an event source mapping does with batches: settings, closing, retries, halves, partial responses, filters.

Over the engine's own parts, with functions that are plain Python. Not here: what is promised whatever a function
does (tests/unit/test_mapping_model.py), and lanes (tests/unit/test_lanes.py).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from engine.batch import from_rows
from engine.batching import Batcher
from engine.compose.handlers import ENVELOPE_BYTES_MAX, EventSettings, build_handler, payload_of
from engine.compose.pipelines import _policy
from engine.config import (
    PAYLOAD_BYTES_MAX,
    FunctionConfig,
    PipelineConfig,
    SourceConfig,
    batch_size,
    batching_window,
)
from engine.errors import Throttled
from engine.failing import AGE_EXCEEDED
from engine.filters import FilterCriteria
from engine.protocols import Invocation, Result
from functions.kinds.sources import EventSource, event_of
from tests.clock import until
from tests.conformance.lambda_support import TIMESTAMP_MS, Steps, batch, caught_up, worked
from tests.unit.engine_world import EngineWorld, FunctionHandler, copy, policy, rows_of
from tests.unit.sam_stack import Stack, with_event

SINK = {"commit_interval_max_seconds": 0.0}
REPORTS = "ReportBatchItemFailures"
POWERTOOLS = Path(__file__).parent / "powertools"


def source(**changes: Any) -> SourceConfig:
    return SourceConfig(topic="t", **changes)


def function(kind: str = "kinesis", **changes: Any) -> FunctionConfig:
    return FunctionConfig(kind=kind, handler="app.handler", **changes)  # type: ignore[arg-type]


def mapping(kind: str = "kinesis", *, timeout: float = 30.0, **changes: Any) -> PipelineConfig:
    return PipelineConfig(source=source(**changes), function=function(kind, timeout=timeout))


def calls(handler: FunctionHandler) -> list[list[int]]:
    return [call.batch.offsets.tolist() for call in handler.invocations]


# --- settings


@pytest.mark.parametrize(
    ("name", "valid", "refused"),
    [
        ("batch_size", (1, 10_000), (0, -1)),
        ("maximum_batching_window_in_seconds", (0, 300), (-1, 301)),
        ("parallelization_factor", (1, 10), (0, 11)),
        ("maximum_retry_attempts", (-1, 0, 10_000), (-2, 10_001)),
        ("maximum_record_age_in_seconds", (-1, 60, 604_800), (-2, 0, 59, 604_801)),
        ("tumbling_window_in_seconds", (0, 900), (-1, 901)),
        ("function_response_types", ((), (REPORTS,)), (("Other",), (REPORTS, REPORTS))),
        ("topic", ("a", "a" * 249), ("", "a" * 250)),
        ("starting_position", ("TRIM_HORIZON", "LATEST"), ("NEWEST", "AT_TIMESTAMP")),
    ],
)
def test_ranges_are_awss(name: str, valid: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    """The bounds themselves are taken, and what lies beyond them is refused."""
    for value in valid:
        assert getattr(SourceConfig(**{"topic": "t", name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError):
            SourceConfig(**{"topic": "t", name: value})


@pytest.mark.parametrize(
    ("name", "valid", "refused"),
    [
        ("timeout", (1.0, 900.0), (0.0, 901.0)),
        ("memory_size", (128, 129, 10_240), (127, 10_241)),
        ("name", ("f", "f" * 64), ("", "f" * 65, "a b")),
        ("environment", ({"AB": "1", "A_1": ""},), ({"A": "1"}, {"_A": "1"}, {"1A": "1"}, {"A-B": "1"})),
    ],
)
def test_ranges_of_functions_are_awss(name: str, valid: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    """Timeout, memory, name, and the names of environment variables."""
    for value in valid:
        function(**{name: value})
    for value in refused:
        with pytest.raises(ValidationError):
            function(**{name: value})


def test_defaults_are_awss() -> None:
    """What is not set is what AWS answers for a mapping that did not set it, but for the batching window."""
    made = source()
    assert (made.maximum_retry_attempts, made.maximum_record_age_in_seconds) == (-1, -1)
    assert (made.bisect_batch_on_function_error, made.parallelization_factor) == (False, 1)
    assert (made.tumbling_window_in_seconds, made.function_response_types) == (0, ())
    assert (made.destination_config.on_failure, made.filter_criteria.filters) == (None, ())
    assert [batch_size(mapping(kind)) for kind in ("kinesis", "dynamodb", "kafka")] == [100] * 3
    windows = [batching_window(mapping(kind)) for kind in ("kinesis", "dynamodb", "kafka")]
    assert windows == [0.5, 0.5, 0.5]
    assert function().memory_size == 128
    assert mapping().enabled


def test_a_stream_takes_large_batches_without_a_window() -> None:
    """The rule that a batch above 10 needs a window is not one of streams."""
    for kind in ("kinesis", "dynamodb"):
        given = mapping(kind, batch_size=500, maximum_batching_window_in_seconds=0)
        assert PipelineConfig(**{**given.model_dump(by_alias=True), "compatibility": "aws"})


def test_awss_mode_takes_five_filters_and_whole_seconds() -> None:
    """What a mapping has without asking for more; Kafka's half second is the one fraction that there is."""
    six = {"filter_criteria": {"filters": [{"pattern": '{"value":{"a":["b"]}}'}] * 6}}
    for refused in (six, {"timeout": 1.5}, {"maximum_batching_window_in_seconds": 0.2}):
        given = mapping("kafka", **refused).model_dump(by_alias=True)  # type: ignore[arg-type]
        with pytest.raises(ValidationError):
            PipelineConfig(**{**given, "compatibility": "aws"})
    plain = mapping("kafka").model_dump(by_alias=True)
    assert batching_window(PipelineConfig(**{**plain, "compatibility": "aws"})) == 0.5


def test_a_start_in_the_future_is_taken() -> None:
    """AWS refuses it; here nothing is read but what comes after now."""
    future = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    assert source(starting_position="AT_TIMESTAMP", starting_position_timestamp=future)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("Tags", "ignored"),
        ("LoggingConfig", "ignored"),
        ("MetricsConfig", "ignored"),
        ("KmsKeyArn", "unsupported"),
        ("ScalingConfig", "unsupported"),
        ("ConsumptionMode", "unsupported"),
    ],
)
def test_what_belongs_to_awss_own_machinery_is_named(tmp_path: Path, name: str, where: str) -> None:
    """A template's mapping keeps what can be honoured; the rest is listed, refused where records depend on it."""
    read = Stack(tmp_path).load(with_event("MSK", **{name: {"a": "b"}}))
    [said] = getattr(read, where)
    assert said.startswith(f"F.Events.E.{name}: ")
    assert list(read.config.pipelines) == ["F-E"]


def test_endless_retries_are_bounded_as_on_aws() -> None:
    """Kafka with a destination: ten. Everything else: none."""
    failing = {"destination_config": {"on_failure": "failed.jsonl"}}
    assert _policy("kafka", mapping("kafka", **failing), 1).retries_max == 10
    assert _policy("kafka", mapping("kafka"), 1).retries_max == -1
    assert _policy("kinesis", mapping("kinesis", **failing), 1).retries_max == -1
    assert _policy("kafka", mapping("kafka", maximum_retry_attempts=50, **failing), 1).retries_max == 50


def test_a_transformation_is_retried_three_times() -> None:
    """Unless told otherwise: Firehose retries a failed invocation three times, which makes four attempts."""
    assert _policy("firehose", mapping("firehose"), 1).retries_max == 3
    assert _policy("firehose", mapping("firehose", maximum_retry_attempts=1), 1).retries_max == 1


# --- batches


@pytest.mark.parametrize("kind", ["kinesis", "kafka", "firehose"])
def test_a_batch_closes_at_6_mb_of_payload(kind: str) -> None:
    """As JSON, in base64: the event of a full batch is below the bound, and one record more would be above it."""
    events = EventSettings(root=POWERTOOLS)
    handler = build_handler(kind=kind, handler="common.everything", timeout_seconds=1, events=events)
    fetched = batch(*[b"x" * 100_000] * 70)
    gather = Batcher(
        records_max=10_000,
        window_seconds=300,
        payload_bytes_max=PAYLOAD_BYTES_MAX - ENVELOPE_BYTES_MAX,
        payload=payload_of(handler),
    )
    gather.add(fetched, now=0.0)
    [taken] = gather.take(0.0)
    made = EventSource(kind, "us-east-1")  # type: ignore[arg-type]
    sizes = [
        len(orjson.dumps(event_of(kind, each, made.envelope(each, "id"))))  # type: ignore[arg-type]
        for each in (taken, fetched.head(len(taken) + 1))
    ]
    assert sizes[0] <= 6 * 1024 * 1024 < sizes[1] + ENVELOPE_BYTES_MAX
    assert 4_400_000 < taken.column_bytes("value") < 4_718_592


@pytest.mark.parametrize(("lanes", "most"), [(1, 1), (3, 3)])
async def test_a_shard_has_as_many_invocations_as_its_factor(lanes: int, most: int) -> None:
    """One batch of a shard is under way, or one for each lane; other shards are not waited for."""
    world, under_way, seen = EngineWorld(), 0, []
    gate = asyncio.Event()

    async def held(invocation: Invocation) -> Result:
        nonlocal under_way
        under_way += 1
        seen.append(under_way)
        await gate.wait()
        under_way -= 1
        return copy(invocation)

    for number in range(40):
        world.topic.partitions[0].append(b"x", key=b"k%d" % number)
    async with world.shard(FunctionHandler(held), batch_size=2, lanes=lanes, target=40, sink=SINK) as (shard, _):
        await until(lambda: max(seen, default=0) == most)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(seen) == most
        gate.set()
        await until(lambda: shard.is_caught_up)
    assert world.rows() == list(range(40))


async def test_without_a_window_what_is_there_is_invoked_with() -> None:
    """A batching window of 0 waits for nothing: one record alone is a batch."""
    world, handler = EngineWorld(), FunctionHandler(copy)
    async with world.shard(handler, batch_size=100, window_seconds=0.0, sink=SINK):
        for count in (1, 2):
            world.append(0, 1)
            await until(lambda count=count: len(handler.invocations) == count)  # type: ignore[misc]
    assert calls(handler) == [[0], [1]]


# --- filters


async def test_filters_choose_before_records_are_counted() -> None:
    """A batch is full of records that match; those that do not are passed, and call nothing when they are alone."""
    world, handler = EngineWorld(), FunctionHandler(copy)
    log = world.topic.partitions[0]
    for number in range(30):
        log.append(b'{"n": %d}' % (number % 3))
    choose = FilterCriteria.of(['{"data":{"n":[0]}}'], kind="kinesis")
    options = {"batch_size": 4, "window_seconds": 0.0, "choose": choose, "sink": SINK}
    async with world.shard(handler, target=30, **options) as (shard, _):
        await until(lambda: shard.is_caught_up)
        assert [len(each) for each in calls(handler)] == [4, 4, 2]
        for _ in range(5):
            log.append(b'{"n": 1}')
        await until(lambda: world.position() == 35)
    assert world.rows() == list(range(0, 30, 3))
    counts = [commit[2] for commit in world.store.shard(0).commits]
    assert sum(each.filtered for each in counts) == 25
    assert len(handler.invocations) == 3


def test_what_is_delivered_is_the_record_as_it_was() -> None:
    """A filter looks at the decoded payload, and leaves it in base64."""
    given = batch(b'{"n": 0}', b'{"n": 1}')
    choose = FilterCriteria.of(['{"data":{"n":[1]}}'], kind="kinesis")
    kept = given.only(choose.select(given))
    made = EventSource("kinesis", "us-east-1")
    [record] = event_of("kinesis", kept, made.envelope(kept, "id"))["Records"]  # type: ignore[misc]
    assert record["kinesis"]["data"] == "eyJuIjogMX0="


# --- failing


async def test_a_failing_batch_holds_its_shard_and_no_other() -> None:
    """Without limits the same batch comes again and again, whole; nothing of its shard passes it."""
    world, left = EngineWorld(partitions=2), [25]

    def failing(invocation: Invocation) -> Result:
        if invocation.batch.partition == 0 and invocation.batch.start == 0 and left[0]:
            left[0] -= 1
            raise ValueError("not yet")
        return copy(invocation)

    handler = FunctionHandler(failing)
    world.append(0, 6)
    world.append(1, 3)
    rules = policy(backoff_seconds=0.0001, backoff_seconds_max=0.0001)
    async with world.shard(handler, partition=1, target=3, rules=rules, sink=SINK) as (other, _):
        await until(lambda: other.is_caught_up)
    async with world.shard(handler, target=6, batch_size=3, rules=rules, sink=SINK) as (shard, task):
        await caught_up(shard, task)
    assert calls(handler)[1:] == [[0, 1, 2]] * 26 + [[3, 4, 5]]
    assert (world.rows(0), world.rows(1)) == ([0, 1, 2, 3, 4, 5], [0, 1, 2])


async def test_the_first_attempt_is_no_retry() -> None:
    """With N retries a batch is tried N + 1 times, and every attempt has all of its records."""
    for retries in (0, 1, 3):
        handler = FunctionHandler(_raise)
        done = await worked(handler, batch(b"a", b"b"), policy(reports=True, retries_max=retries))
        assert calls(handler) == [[0, 1]] * (retries + 1)
        assert [(each.offset, each.attempts) for each in done.failures] == [(0, retries + 1), (1, retries + 1)]


async def test_a_throttled_function_has_not_been_tried() -> None:
    """Refusals before the function runs use up no retry; only the record age ends them."""
    refusals = [Throttled("full")] * 5

    def throttled(invocation: Invocation) -> Result:
        if refusals:
            raise refusals.pop()
        raise ValueError("ran")

    handler = FunctionHandler(throttled)
    done = await worked(handler, batch(b"a"), policy(reports=True, retries_max=0))
    assert (len(handler.invocations), [each.attempts for each in done.failures]) == (6, [1])


async def test_the_record_age_ends_what_is_throttled_for_ever() -> None:
    """It is reported as too old, after no attempt at all."""
    clock = Steps(TIMESTAMP_MS / 1000)

    def throttled(invocation: Invocation) -> Result:
        clock.now += 10
        raise Throttled("full")

    handler = FunctionHandler(throttled)
    done = await worked(handler, batch(b"a"), policy(reports=True, retries_max=0, age_seconds_max=60), clock)
    assert [(each.error_type, each.attempts) for each in done.failures] == [(AGE_EXCEEDED, 0)]
    assert len(handler.invocations) == 7


async def test_a_batch_is_halved_down_to_the_bad_record_without_using_up_retries() -> None:
    """One bad record of eight, one retry: three splits cost nothing, and the record alone is tried twice."""

    def poisoned(invocation: Invocation) -> Result:
        if 5 in invocation.batch.offsets:
            raise ValueError("poison")
        return copy(invocation)

    handler = FunctionHandler(poisoned)
    rules = policy(reports=True, retries_max=1, bisects=True)
    done = await worked(handler, batch(*[b"x"] * 8), rules)
    assert calls(handler) == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [5], [6, 7]]
    assert (done.handled, done.failed) == (7, [5])


async def test_a_partial_response_is_cut_where_it_says_and_not_halved() -> None:
    """With bisecting on as well: only a raised error halves, and the cut uses up no retry."""

    def partial(invocation: Invocation) -> Result:
        if 5 in invocation.batch.offsets:
            return Result(failed_from=5)
        return Result()

    handler = FunctionHandler(partial)
    done = await worked(handler, batch(*[b"x"] * 8), policy(reports=True, retries_max=1, bisects=True))
    assert calls(handler) == [[0, 1, 2, 3, 4, 5, 6, 7], [5, 6, 7], [5], [5], [6, 7]]
    assert (done.handled, done.failed) == (7, [5])


async def test_without_bisecting_what_follows_a_bad_record_fails_with_it() -> None:
    """The rest keeps its budget, and is given up as a whole."""

    def partial(invocation: Invocation) -> Result:
        return Result(failed_from=5) if 5 in invocation.batch.offsets else Result()

    handler = FunctionHandler(partial)
    done = await worked(handler, batch(*[b"x"] * 8), policy(reports=True, retries_max=1))
    assert calls(handler) == [[0, 1, 2, 3, 4, 5, 6, 7], [5, 6, 7]]
    assert (done.handled, done.failed) == (5, [5, 6, 7])


async def test_a_first_record_that_is_reported_is_set_apart_when_bisecting() -> None:
    """It alone uses up its retries; its neighbours are tried without it, in their order."""

    def picky(invocation: Invocation) -> Result:
        bad = [offset for offset in invocation.batch.offsets.tolist() if offset in (0, 2)]
        return Result(failed_from=min(bad)) if bad else Result()

    handler = FunctionHandler(picky)
    done = await worked(handler, batch(*[b"x"] * 4), policy(reports=True, retries_max=1, bisects=True))
    assert calls(handler) == [[0, 1, 2, 3], [0], [0], [1, 2, 3], [2, 3], [2], [2], [3]]
    assert (done.handled, done.failed) == (2, [0, 2])


async def test_later_successes_come_again() -> None:
    """From the lowest failed record on everything is delivered again, what was handled included."""
    attempts = []

    def recovers(invocation: Invocation) -> Result:
        attempts.append(invocation.batch.offsets.tolist())
        rows = rows_of(invocation.batch)
        if len(attempts) == 1:
            return Result(rows=[row for row in rows if int(str(row["_offset"])) < 2], failed_from=2)
        return Result(rows=rows)

    done = await worked(FunctionHandler(recovers), batch(*[b"x"] * 5), policy(retries_max=1))
    assert attempts == [[0, 1, 2, 3, 4], [2, 3, 4]]
    assert (done.handled, done.failed) == (5, [])


async def test_only_records_that_are_too_old_expire() -> None:
    """A batch goes on without them; each of them is reported for its age, and was in no invocation."""
    now = int(time.time() * 1000)
    ages = (600_000, 0, 61_000, 30_000)
    rows = [(offset, now - age, b"k", b"x", []) for offset, age in enumerate(ages)]
    handler = FunctionHandler(copy)
    given = from_rows("clicks", 0, rows, start=0, end=4)
    done = await worked(handler, given, policy(reports=True, age_seconds_max=60))
    assert [(each.offset, each.error_type, each.attempts) for each in done.failures] == [
        (0, AGE_EXCEEDED, 0),
        (2, AGE_EXCEEDED, 0),
    ]
    assert (calls(handler), done.handled) == ([[1, 3]], 2)


async def test_what_is_exhausted_without_a_destination_stops_or_goes() -> None:
    """On AWS it goes; here that has to be asked for."""
    stops = await worked(FunctionHandler(_raise), batch(b"a", b"b"), policy(retries_max=0))
    assert "the handler failed once" in str(stops.parts[-1].error)
    goes = await worked(FunctionHandler(_raise), batch(b"a", b"b"), policy(retries_max=0, drops=True))
    assert [part.outcome.counts.dropped for part in goes.parts] == [2]
    assert goes.failed == []


def _raise(invocation: Invocation) -> Result:
    raise ValueError("no")
