"""What headrace is to reach, and whether a session's figures say that it does. Nothing is measured here.

Ratios are of medians in one session, headrace's figure to the other's. A peer whose result is wrong is no
yardstick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import freshness
from benchmarks.results import Cell, rate_without_start
from benchmarks.systems import HEADRACE, LOOP

MILLION = 1_000_000
SHARDS = 64
SHARDS_BYTES_MAX = 400e6
LATENCY_RATE = 10_000
P50_MS_MAX, P99_MS_MAX = 3.0, 15.0
ENVIRONMENT_RECORDS = 200_000
EMPTY_US_MAX = 300
QUIX, FAUST, SPARK, FLINK = "quixstreams", "faust", "spark", "flink"

Rows = Mapping[str, Sequence[Cell]]
Rate = Callable[[Cell], float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``is_met`` is None where it was not measured."""

    work: str
    target: str
    measured: str
    is_met: bool | None


def verdicts(document: Mapping[str, Any], rows: Rows) -> Iterator[Verdict]:
    """All targets, in order."""
    yield _at_least(rows, "etl", MILLION)
    yield _times(rows, "etl", 3, (LOOP, f"{LOOP}-pylist", f"{LOOP}-2p"), "the best hand-written loop")
    for times, name in ((10, QUIX), (10, FAUST), (1, SPARK), (1, FLINK)):
        yield _times(rows, "etl", times, (name,), name)
    yield _times(rows, "filter", 5, (QUIX,), QUIX)
    yield _ahead(rows, "filter")
    yield _at_least(rows, "window", MILLION)
    yield _ahead(rows, "window")
    yield _as_fast(document, rows)
    yield from _latency(document.get("latency") or [])
    yield from _freshness(document.get("freshness") or [])
    yield from _memory(document.get("scaling") or [])
    yield from _environments(document.get("environments") or [])


def _cpu(cell: Cell) -> float:
    return cell.cpu_rate


def _own(rows: Rows, workload: str) -> Cell | None:
    return next((cell for cell in rows.get(workload, ()) if cell.system == HEADRACE and _counts(cell)), None)


def _counts(cell: Cell) -> bool:
    return bool(cell.finished) and cell.is_correct


def _at_least(rows: Rows, workload: str, events: int) -> Verdict:
    target = f"{events:,} events per CPU second"
    own = _own(rows, workload)
    if own is None:
        return Verdict(workload, target, "", None)
    return Verdict(workload, target, f"{own.cpu_rate:,.0f}", own.cpu_rate >= events)


def _times(rows: Rows, workload: str, times: float, names: Sequence[str], label: str) -> Verdict:
    target = f"{times:g} times {label}, per CPU second" if times > 1 else f"ahead of {label}, per CPU second"
    own = _own(rows, workload)
    others = [cell for cell in rows.get(workload, ()) if cell.system in names and _counts(cell)]
    if own is None or not others:
        return Verdict(workload, target, "", None)
    best = max(others, key=_cpu)
    ratio = own.cpu_rate / best.cpu_rate
    seconds = own.rate / max(cell.rate for cell in others)
    measured = f"{ratio:.2f} times ({best.system}); {seconds:.2f} times in events/s"
    return Verdict(workload, target, measured, ratio >= times if times > 1 else ratio > 1)


def _ahead(rows: Rows, workload: str) -> Verdict:
    own = _own(rows, workload)
    others = [cell for cell in rows.get(workload, ()) if cell.system != HEADRACE and _counts(cell)]
    target = "ahead of every peer, in events/s and per CPU second"
    if own is None or not others:
        return Verdict(workload, target, "", None)
    best, cheapest = max(others, key=lambda cell: cell.rate), max(others, key=_cpu)
    ratios = own.rate / best.rate, own.cpu_rate / cheapest.cpu_rate
    measured = (
        f"events/s {ratios[0]:.2f} times the best ({best.system}); per CPU second {ratios[1]:.2f} times "
        f"({cheapest.system}); of {len(others)} others"
    )
    return Verdict(workload, target, measured, min(ratios) > 1)


def _as_fast(document: Mapping[str, Any], rows: Rows) -> Verdict:
    """headrace calls handlers in processes of their own, the loop in its one: so CPU seconds count as well."""
    target = "the hand-written loop's events/s or better, also per CPU second"
    own = _own(rows, "handler")
    loop = next((cell for cell in rows.get("handler", ()) if cell.system == LOOP and _counts(cell)), None)
    if own is None or loop is None:
        return Verdict("handler", target, "", None)
    ratios = own.rate / loop.rate, own.cpu_rate / loop.cpu_rate
    shown = f"{ratios[0]:.2f} times, {ratios[1]:.2f} per CPU second"
    starts = document.get("starts") or []
    bare = rate_without_start(starts, own), rate_without_start(starts, loop)
    if bare[0] and bare[1]:
        shown += f" ({bare[0] / bare[1]:.2f} without the starts)"
    return Verdict("handler", target, shown, min(ratios) >= 1)


def _latency(entries: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """The smallest linger stands for the producer that adds least."""
    work = f"latency, {LATENCY_RATE:,} events/s"
    found = [
        entry
        for entry in entries
        if entry["measure"] == "handler" and entry["rate"] == LATENCY_RATE and "p99_ms" in entry
    ]
    own = [entry for entry in found if entry["system"] == "headrace, kinesis"]
    target = f"p50 below {P50_MS_MAX:g} ms, p99 below {P99_MS_MAX:g} ms, send to handler"
    if not own:
        yield Verdict(work, target, "", None)
        yield Verdict(work, "no worse than the hand-written loop", "", None)
        return
    best = min(own, key=lambda entry: entry["linger_ms"])
    shown = f"p50 {best['p50_ms']:.2f} ms, p99 {best['p99_ms']:.2f} ms at linger {best['linger_ms']:g} ms"
    yield Verdict(work, target, shown, best["p50_ms"] < P50_MS_MAX and best["p99_ms"] < P99_MS_MAX)
    loops = [
        entry for entry in found if entry["system"] == "aiokafka loop" and entry["linger_ms"] == best["linger_ms"]
    ]
    if not loops:
        yield Verdict(work, "no worse than the hand-written loop", "", None)
        return
    loop = loops[0]
    shown = f"the loop: p50 {loop['p50_ms']:.2f} ms, p99 {loop['p99_ms']:.2f} ms"
    is_met = best["p50_ms"] <= loop["p50_ms"] and best["p99_ms"] <= loop["p99_ms"]
    yield Verdict(work, "no worse than the hand-written loop", shown, is_met)


def _freshness(entries: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Every sink at every rate; Parquet and DuckDB alone where rows wait for a moment, whatever the window."""
    default = [entry for entry in entries if entry["is_default"]]
    yield _fresh("at the default settings", default, freshness.DEFAULT_P99_MS_MAX)
    brief = [
        entry
        for entry in entries
        if entry["sink"] in ("parquet", "duckdb") and entry["wait_seconds_max"] == freshness.BRIEF_SECONDS
    ]
    yield _fresh(f"rows wait {freshness.BRIEF_SECONDS:g} s at most", brief, freshness.BRIEF_P99_MS_MAX)


def _fresh(when: str, entries: Sequence[Mapping[str, Any]], p99_ms_max: float) -> Verdict:
    work, target = f"freshness, {when}", f"p99 below {p99_ms_max:,.0f} ms"
    found = [entry for entry in entries if "p99_ms" in entry]
    if not found:
        return Verdict(work, target, "", None)
    shown = "; ".join(f"{freshness.label(each)}, {each['rate']:,}/s: {each['p99_ms']:,.0f} ms" for each in found)
    return Verdict(work, target, shown, all(each["p99_ms"] < p99_ms_max for each in found))


def _memory(entries: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    work, target = "memory", f"below {SHARDS_BYTES_MAX / 1e6:.0f} MB resident for {SHARDS} shards at full speed"
    wide = [entry for entry in entries if entry["axis"] == "shards" and entry.get("value") == SHARDS]
    if wide and "rss_bytes_max" in wide[0]:
        peak = wide[0]["rss_bytes_max"]
        yield Verdict(work, target, f"{peak / 1e6:,.0f} MB", peak < SHARDS_BYTES_MAX)
    else:
        yield Verdict(work, target, "", None)
    lengths = [entry for entry in entries if entry["axis"] == "length" and "verdict" in entry]
    if lengths:
        slope = lengths[0]["rss_mb_per_million"]
        shown = f"{slope:+.1f} MB for a million events more; cost of an event x {lengths[0]['growth']:.2f}"
        yield Verdict(work, "flat over the run", shown, bool(lengths[0]["holds"]))
    else:
        yield Verdict(work, "flat over the run", "", None)


def _environments(entries: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Handlers that decode each of 1,000 records; that of the workload ``handler`` decides."""
    work, target = "environments", f"{ENVIRONMENT_RECORDS:,} records per CPU second of the environments"
    rates = {
        entry["handler"]: entry["records_per_environment_cpu_second"]
        for entry in entries
        if entry["measure"] == "throughput"
    }
    decides = rates.get("base64, orjson")
    shown = "; ".join(f"{rate:,} ({name})" for name, rate in rates.items())
    yield Verdict(work, target, shown, None if decides is None else decides >= ENVIRONMENT_RECORDS)
    target = f"an empty invocation below {EMPTY_US_MAX} us at the median"
    empty = [entry for entry in entries if entry["measure"] == "invocation" and entry["runtime"] == "python"]
    if not empty:
        yield Verdict(work, target, "", None)
        return
    p50, p99 = empty[0]["p50_us"], empty[0]["p99_us"]
    yield Verdict(work, target, f"p50 {p50:,.0f} us, p99 {p99:,.0f} us", p50 < EMPTY_US_MAX)
