"""What /healthz says: red when nothing moves, and why."""

import json
import tomllib

import pytest

from engine.config_file import parse
from engine.metrics import Health, commit_waits, health
from engine.metrics.health import REASONS_MAX, STATUS_AGE_SECONDS_MAX
from engine.status import EngineStatus
from tests.unit.metrics_world import AT, engine, pipeline, shard


def judged(status: EngineStatus, *, now: float = AT + 1, waits: dict[str, float] | None = None) -> Health:
    return health(status, stall_seconds_max=60.0, now=now, waits=waits)


def test_a_run_that_gets_on_is_healthy() -> None:
    """Lag alone is no fault, nor is a shard that starts, nor one that has nothing to do."""
    behind = shard(0, position=10, end=1_000_000, iterator_age_seconds=9_000.0, stalled_seconds=59.0)
    starting = shard(1, state="starting", position=None, read=None, end=None)
    result = judged(engine(pipeline("clicks", shards=(behind, starting, shard(2)))))
    assert result == Health(True, (), 0, AT)
    assert result.http_status == 200
    assert json.loads(json.dumps(result.document())) == {"ok": True, "at": AT, "reasons_count": 0, "reasons": []}


def test_a_shard_that_stands_still_is_named_with_its_offsets() -> None:
    """The reason has pipeline, partition, offsets and what to do, in words and as members."""
    still = shard(3, position=40, read=90, end=100, stalled_seconds=61.0)
    result = judged(engine(pipeline("clicks", shards=(shard(0), still))))
    assert (result.ok, result.http_status, result.reasons_count) == (False, 503, 1)
    (reason,) = result.reasons
    assert reason.document() == {
        "kind": "shard_stalled",
        "pipeline": "clicks",
        "partition": 3,
        "position": 40,
        "end": 100,
        "message": (
            "pipeline clicks, partition 3 of topic clicks.topic has not moved for 61 s, 60 s at most are allowed:"
            " at offset 40 of 100, 60 behind"
        ),
        "hint": reason.hint,
    }
    assert "headrace doctor" in reason.hint


@pytest.mark.parametrize(("stalled", "ok"), [(60.0, True), (60.1, False), (359.0, False)])
def test_the_bound_is_the_settings(stalled: float, ok: bool) -> None:
    """As long as `stall_seconds_max` is allowed, and no longer."""
    assert judged(engine(pipeline("clicks", shards=(shard(0, stalled_seconds=stalled),)))).ok == ok


def test_what_settings_make_wait_does_not_stall() -> None:
    """A pipeline that commits every five minutes is given these besides; the others are not."""
    status = engine(
        pipeline("slow", shards=(shard(0, stalled_seconds=355.0),)),
        pipeline("quick", shards=(shard(0, stalled_seconds=61.0),)),
    )
    result = judged(status, waits={"slow": 300.0})
    assert [reason.pipeline for reason in result.reasons] == ["quick"]


def test_waits_are_read_from_the_settings() -> None:
    """A batching window and what the sink collects add up; a pipeline without a sink waits for its window."""
    config = parse(
        tomllib.loads("""
            [pipelines.files.source]
            topic = "a"
            maximum_batching_window_in_seconds = 10
            [pipelines.files.sink]
            type = "parquet"
            path = "out"
            file_age_max_seconds = 300.0
            [pipelines.table.source]
            topic = "b"
            maximum_batching_window_in_seconds = 0
            [pipelines.table.sink]
            type = "duckdb"
            path = "out.duckdb"
            table = "t"
            commit_interval_max_seconds = 2.0
            [pipelines.effects.source]
            topic = "c"
            maximum_batching_window_in_seconds = 3
            [pipelines.effects.function]
            kind = "kafka"
            handler = "module.handler"
        """)
    )
    assert commit_waits(config) == {"files": 310.0, "table": 2.0, "effects": 3.0}


def test_a_shard_that_stopped_is_red_while_others_go_on() -> None:
    """Its error is told, once: it is not called stalled besides."""
    stopped = shard(
        1, state="stopped", position=7, end=9, error="the handler failed 3 times", stalled_seconds=500.0
    )
    (reason,) = judged(engine(pipeline("clicks", shards=(shard(0), stopped)))).reasons
    assert reason.kind == "shard_stopped"
    assert reason.message == (
        "pipeline clicks, partition 1 of topic clicks.topic stopped at offset 7 of 9, 2 behind:"
        " the handler failed 3 times"
    )


def test_a_shard_that_never_knew_its_position_says_so() -> None:
    """Without a position there are no offsets to tell."""
    (reason,) = judged(engine(pipeline("clicks", shards=(shard(1, position=None, error="no disk"),)))).reasons
    assert "stopped before its position was known: no disk" in reason.message


def test_a_pipeline_that_ended_with_an_error_is_red() -> None:
    """One that ended without an error, its work done, is not."""
    assert judged(engine(pipeline("done", state="ended", shards=()))).ok
    (reason,) = judged(engine(pipeline("bad", state="ended", error="the sink is another's", shards=()))).reasons
    assert (reason.kind, reason.pipeline, reason.partition) == ("pipeline_ended", "bad", None)
    assert "the sink is another's" in reason.message


def test_an_old_snapshot_says_that_the_loop_hangs() -> None:
    """Nothing that an old snapshot says of shards shows that they move; a clock that goes back is no fault."""
    status = engine(pipeline("clicks"))
    (reason,) = judged(status, now=AT + STATUS_AGE_SECONDS_MAX + 1).reasons
    assert reason.kind == "status_old"
    assert "no snapshot for 11 s" in reason.message
    assert judged(status, now=AT + STATUS_AGE_SECONDS_MAX).ok
    assert judged(status, now=AT - 3_600).ok


def test_reasons_are_bounded_and_the_gravest_come_first() -> None:
    """What ended and what stopped before what stands still, the longest first; all of them are counted."""
    still = tuple(shard(number, stalled_seconds=100.0 + number) for number in range(REASONS_MAX + 50))
    status = engine(
        pipeline("clicks", shards=still),
        pipeline("orders", error="no", shards=(shard(0, error="no"),)),
    )
    result = judged(status)
    assert result.reasons_count == REASONS_MAX + 52
    assert len(result.reasons) == REASONS_MAX
    assert [reason.kind for reason in result.reasons[:3]] == ["pipeline_ended", "shard_stopped", "shard_stalled"]
    assert result.reasons[2].partition == REASONS_MAX + 49
