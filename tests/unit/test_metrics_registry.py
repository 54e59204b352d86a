"""The table of metrics, how it is exposed, and the page made from it."""

import dataclasses
import itertools
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser

from engine import metrics
from engine.metrics import METRICS, expose
from engine.metrics.page import page
from engine.protocols import Counts
from engine.status import BATCH_BOUNDS, Distribution, EngineStatus
from tests.unit.metrics_world import engine, function, pipeline, shard

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: What CloudWatch has, of a function and of an event source mapping.
CLOUDWATCH = {
    *("IteratorAge", "OffsetLag", "SumOffsetLag", "MaxOffsetLag", "Invocations", "Errors", "Throttles", "Duration"),
    *("PolledEventCount", "FilteredOutEventCount", "InvokedEventCount", "FailedInvokeEventCount"),
    *(
        "DroppedEventCount",
        "OnFailureDestinationDeliveredEventCount",
        "CommittedEventCount",
        "ConcurrentExecutions",
    ),
}


def read(status: EngineStatus) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of an exposition, as the client library's own parser reads them."""
    body, _ = expose(status)
    families = parser.text_string_to_metric_families(body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(status: EngineStatus, name: str, **labels: str) -> float | None:
    return read(status).get((name, frozenset(labels.items())))


def test_public_names() -> None:
    """What the package offers is this, and no more."""
    assert metrics.__all__ == [
        *("METRICS", "Health", "Metric", "Reason", "account", "commit_waits", "expose", "health"),
    ]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: metrics.Metric) -> None:
    """Prefix, base unit at the end, _total on counters alone; meaning and remedy are there; AWS's names are its."""
    assert re.fullmatch(r"headrace_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.unit in ("seconds", "bytes"):
        assert metric.family.endswith(f"_{metric.unit}")
    assert not re.search(r"_(ms|milliseconds|minutes|kilobytes|mb|percent)(_|$)", metric.name)
    assert metric.meaning
    assert metric.remedy
    assert set(metric.labels) <= {
        *("pipeline", "partition", "function", "sink", "outcome", "state", "version", "topic", "kind"),
    }
    assert set(metric.aws) <= CLOUDWATCH
    assert ("partition" in metric.labels) <= (metric.kind == "gauge")


def test_names_are_each_used_once() -> None:
    """No two metrics share a name or a time series."""
    series = [name for metric in METRICS for name in metric.series]
    assert len(set(series)) == len(series)


def test_samples_have_the_labels_that_the_table_names() -> None:
    """Every metric gives samples for a whole run, each with one value for each label; none twice."""
    status = engine(pipeline("clicks", shards=(shard(0), shard(1))), pipeline("orders"))
    for metric in METRICS:
        samples = list(metric.samples(status))
        assert samples, metric.name
        assert all(len(labels) == len(metric.labels) for labels, _ in samples)
        assert len({labels for labels, _ in samples}) == len(samples)
        assert all(isinstance(each, Distribution) == (metric.kind == "histogram") for _, each in samples)


def test_values_are_those_of_the_snapshot() -> None:
    """Numbers arrive under the right name and labels, in base units."""
    counts = Counts(handled=5, filtered=4, dropped=3, failed=2, absent=1)
    status = engine(
        pipeline(
            "clicks",
            sink="duckdb",
            records=20,
            counts=counts,
            shards=(shard(7, position=90, end=100, iterator_age_seconds=1.5, stalled_seconds=2.5),),
            function=function("enrich", invocations=6, errors=2, throttles=1, billed_ms=1_500),
        )
    )
    for outcome, count in dataclasses.asdict(counts).items():
        assert value(status, "headrace_records_total", pipeline="clicks", outcome=outcome) == count
    assert value(status, "headrace_polled_records_total", pipeline="clicks") == 20
    assert value(status, "headrace_offset_lag", pipeline="clicks") == 10
    assert value(status, "headrace_shard_offset_lag", pipeline="clicks", partition="7") == 10
    assert value(status, "headrace_shard_stalled_seconds", pipeline="clicks", partition="7") == 2.5
    assert value(status, "headrace_function_errors_total", pipeline="clicks", function="enrich") == 2
    assert value(status, "headrace_function_billed_seconds_total", pipeline="clicks", function="enrich") == 1.5
    assert value(status, "headrace_rows_total", pipeline="clicks", sink="duckdb") is not None


def test_what_is_unknown_is_left_out() -> None:
    """A shard without a position has no lag rather than one of 0; without a function there are no invocations."""
    status = engine(pipeline("clicks", shards=(shard(0, position=None),), function=function("", kind=None)))
    names = {name for name, _ in read(status)}
    assert "headrace_shard_end" in names
    assert not names & {"headrace_shard_position", "headrace_shard_offset_lag"}
    assert not {name for name in names if name.startswith("headrace_function")}


def test_states_are_ones_and_zeros() -> None:
    """A pipeline is in one state; shards are counted by theirs; what failed is 1."""
    shards = (shard(0, state="starting"), shard(1), shard(2, state="stopped", error="no"))
    status = engine(pipeline("clicks", state="ended", error="no", shards=shards))
    states = {each: value(status, "headrace_pipeline_state", pipeline="clicks", state=each) for each in (
        "starting", "running", "stopped", "ended"
    )}  # fmt: skip
    assert states == {"starting": 0, "running": 0, "stopped": 0, "ended": 1}
    assert value(status, "headrace_shards", pipeline="clicks", state="running") == 1
    assert value(status, "headrace_pipeline_failed", pipeline="clicks") == 1
    assert value(status, "headrace_shard_stopped", pipeline="clicks", partition="2") == 1
    assert value(status, "headrace_shard_stopped", pipeline="clicks", partition="1") == 0


@given(st.lists(st.integers(0, 10**9), min_size=len(BATCH_BOUNDS) + 1, max_size=len(BATCH_BOUNDS) + 1))
def test_histograms_are_cumulative(counts: list[int]) -> None:
    """Buckets only grow, the last one is the count, and their differences are what was counted."""
    sizes = Distribution(BATCH_BOUNDS, tuple(counts), 12.5)
    samples = read(engine(pipeline("clicks", function=function("enrich", batch_records=sizes))))
    name = "headrace_function_batch_records"
    buckets = sorted(
        (float(dict(labels)["le"]), count) for (each, labels), count in samples.items() if each == f"{name}_bucket"
    )
    assert [bound for bound, _ in buckets] == [*BATCH_BOUNDS, math.inf]
    running = [0.0, *(count for _, count in buckets)]
    assert [after - before for before, after in itertools.pairwise(running)] == counts
    rest = frozenset({("pipeline", "clicks"), ("function", "enrich")})
    assert samples[f"{name}_count", rest] == sum(counts)
    assert samples[f"{name}_sum", rest] == 12.5


@given(st.text(min_size=1, max_size=30))
def test_names_are_escaped(name: str) -> None:
    """Whatever a function is called, both formats bring it back as it was."""
    status = engine(pipeline("clicks", function=function(name)))
    assert value(status, "headrace_function_errors_total", pipeline="clicks", function=name) == 0
    families = _openmetrics(status)
    errors = next(family for family in families if family.name == "headrace_function_errors")
    assert [sample.labels["function"] for sample in errors.samples] == [name]


def test_openmetrics_is_given_to_those_who_ask() -> None:
    """A strict reader of OpenMetrics takes the answer, and finds every metric with its type and unit."""
    families = {family.name: family for family in _openmetrics(engine(pipeline("clicks")))}
    assert set(families) == {metric.family for metric in METRICS}
    for metric in METRICS:
        assert families[metric.family].type == metric.kind
        assert families[metric.family].documentation == metric.meaning
    assert families["headrace_commit_duration_seconds"].unit == "seconds"


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", "text/plain;version=0.0.4", "text/html", "a" * 5_000),
        *("application/openmetrics-text;version=x.y", "application/openmetrics-text;version=2.0.0"),
        "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.1",
    ],
)
def test_everybody_else_gets_the_text_format(accept: str) -> None:
    """Nothing that a request may say in Accept leads to anything but a format of Prometheus."""
    body, content_type = expose(engine(pipeline("clicks")), accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert body.startswith(b"# HELP headrace_build_info ")
    assert body.endswith(b"\n")


@given(st.text(max_size=100))
def test_any_accept_header_has_an_answer(text: str) -> None:
    """A header made of anything is answered."""
    for accept in (
        text,
        f"application/openmetrics-text;version={text}",
        f"text/plain;version=1.0.0;escaping={text}",
    ):
        body, content_type = expose(engine(), accept)
        assert body
        assert content_type in ("text/plain; version=0.0.4; charset=utf-8", OPENMETRICS)


def test_the_order_is_always_the_same() -> None:
    """Pipelines and shards come sorted, whichever way the snapshot has them."""
    shards = tuple(shard(partition) for partition in (10, 2, 1))
    one = expose(engine(pipeline("b", shards=shards), pipeline("a")))
    other = expose(engine(pipeline("a"), pipeline("b", shards=shards[::-1])))
    assert one == other
    at = [one[0].index(b'partition="%d"' % partition) for partition in (1, 2, 10)]
    assert at == sorted(at)


def test_a_thousand_shards_are_told_quickly() -> None:
    """The best of a few expositions of 1,000 shards takes less than 100 ms."""
    status = engine(pipeline("clicks", shards=tuple(shard(partition) for partition in range(1_000))))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        body, _ = expose(status)
        seconds.append(time.perf_counter() - started)
    assert body.count(b"headrace_shard_position{") == 1_000
    assert min(seconds) < 0.1


def test_the_page_is_up_to_date() -> None:
    """The committed page is the one that the registry gives; `python -m engine.metrics.page` makes it anew."""
    committed = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page() == committed


def _openmetrics(status: EngineStatus) -> list[Family]:
    body, content_type = expose(status, OPENMETRICS)
    assert content_type == OPENMETRICS
    return list(openmetrics_parser.text_string_to_metric_families(body.decode()))
