"""What `headrace top` shows: two moments of an engine as a few lines that fit a terminal. Asks and draws nothing.

Rates are between the two moments, quantiles of what happened between them. Texts that come from outside lose their
control characters: a terminal would obey them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.status import Distribution

Document = Mapping[str, Any]

#: Lines for errors of pipelines and shards at most; the others are counted.
PROBLEMS_MAX = 5

#: Shards that are shown where no terminal says how many fit.
SHARDS_MAX = 20

#: Above this a shard's lag in seconds stands out.
LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Line:
    """``style`` is rich's; plain output leaves it out."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class _Column:
    """``rank`` says what goes first where a terminal is narrow: the highest."""

    title: str
    value: Callable[[Document], str]
    rank: int = 0
    left: bool = False


def measured(first: Document, last: Document) -> dict[str, Any]:
    """The later of two statuses, with ``records_per_second`` and the like of its pipelines and shards.

    Rates are null where there is one moment only, or the engine was started anew in between.
    """
    same = first["pid"] == last["pid"] and first["started_at"] == last["started_at"]
    seconds = last["at"] - first["at"] if same else 0.0
    before = {each["name"]: each for each in first["pipelines"]} if same else {}
    document = dict(last)
    document["cpu_share"] = _rate(first, last, "cpu_seconds", seconds)
    document["pipelines"] = [_pipeline(before.get(each["name"]), each, seconds) for each in last["pipelines"]]
    return document


def _pipeline(before: Document | None, now: Document, seconds: float) -> dict[str, Any]:
    function = now["function"]
    past = before["function"] if before is not None else None
    spans = {name: _between(past and past[name], function[name]) for name in ("duration", "batch_records")}
    shards = {each["partition"]: each for each in before["shards"]} if before is not None else {}
    return {
        **now,
        "records_per_second": _rate(before, now, "records", seconds),
        "rows_per_second": _rate(before, now, "rows", seconds),
        "invocations_per_second": _rate(past, function, "invocations", seconds),
        "duration_p50_seconds": _quantile(spans["duration"], 0.5),
        "duration_p99_seconds": _quantile(spans["duration"], 0.99),
        "batch_records_p50": _quantile(spans["batch_records"], 0.5),
        "shards": [
            {**each, "records_per_second": _rate(shards.get(each["partition"]), each, "records", seconds)}
            for each in now["shards"]
        ],
    }


def _rate(before: Document | None, now: Document, name: str, seconds: float) -> float | None:
    """Per second; a count that fell is of a shard that came back."""
    if before is None or seconds <= 0 or now[name] < before[name]:
        return None
    return float(now[name] - before[name]) / seconds


def _between(before: Document | None, now: Document) -> Distribution:
    """What was counted since ``before``; all of it where that is nothing."""
    counts = tuple(now["counts"])
    if before is not None and any(now["counts"][at] > count for at, count in enumerate(before["counts"])):
        counts = tuple(now["counts"][at] - count for at, count in enumerate(before["counts"]))
    return Distribution(tuple(now["bounds"]), counts, now["total"])


def _quantile(distribution: Distribution, share: float) -> float | None:
    return distribution.quantile(share)


def lines(document: Document, *, width: int | None = None, height: int | None = None) -> list[Line]:
    """The whole picture of what `measured` gave, shards sorted by lag; None: as wide and as long as needed."""
    pipelines = sorted(document["pipelines"], key=lambda each: (-each["offset_lag"], each["name"]))
    shards = [{**shard, "pipeline": each["name"]} for each in pipelines for shard in each["shards"]]
    shards.sort(key=lambda each: (-each["offset_lag"], -each["iterator_age_seconds"], each["pipeline"]))
    made = [Line(_head(document), "bold")]
    made += _problems(pipelines)
    made.append(Line(""))
    made += _table(_PIPELINES, pipelines, width, lambda each: "red" if each["error"] else "")
    made.append(Line(""))
    room = SHARDS_MAX if height is None else max(1, height - len(made) - 2)
    made += _table(_SHARDS, shards[:room], width, _shard_style)
    if len(shards) > room:
        made.append(Line(f"{len(shards) - room} more shards, none with more lag", "dim"))
    if height is not None:
        made = made[:height]
    return [Line(each.text if width is None else each.text[:width], each.style) for each in made]


def _head(document: Document) -> str:
    parts = [
        f"headrace {document['version']}, process {document['pid']}",
        f"up {_age(document['at'] - document['started_at'])}",
        f"memory {document['resident_bytes'] / 2**20:,.0f} MiB",
        f"records {document['budget_bytes'] / 2**20:,.0f} of {document['budget_bytes_max'] / 2**20:,.0f} MiB",
        f"loop blocked {document['loop_blocked_seconds_max'] * 1000:,.0f} ms at most",
    ]
    if document["cpu_share"] is not None:
        parts.insert(2, f"cpu {document['cpu_share']:.0%}")
    return ", ".join(parts)


def _problems(pipelines: Iterable[Document]) -> list[Line]:
    found = [f"{each['name']}: {each['error']}" for each in pipelines if each["error"]]
    found += [
        f"{each['name']}[{shard['partition']}]: {shard['error']}"
        for each in pipelines
        for shard in each["shards"]
        if shard["error"]
    ]
    shown = [Line(_plain(text), "red") for text in found[:PROBLEMS_MAX]]
    if len(found) > PROBLEMS_MAX:
        shown.append(Line(f"{len(found) - PROBLEMS_MAX} more errors", "red"))
    return shown


def _table(
    columns: Sequence[_Column], rows: Sequence[Document], width: int | None, style: Callable[[Document], str]
) -> list[Line]:
    """Aligned; the least important columns go until it fits ``width``."""
    shown = list(columns)
    cells = {each.title: [each.value(row) for row in rows] for each in columns}
    widths = {each.title: max(len(each.title), *map(len, cells[each.title]), 0) for each in columns}
    while width is not None and len(shown) > 2 and sum(widths[each.title] + 2 for each in shown) - 2 > width:
        shown.remove(max(shown, key=lambda each: each.rank))

    def text(values: Mapping[str, str]) -> str:
        padded = (
            values[each.title].ljust(widths[each.title])
            if each.left
            else values[each.title].rjust(widths[each.title])
            for each in shown
        )
        return "  ".join(padded).rstrip()

    made = [Line(text({each.title: each.title for each in shown}), "bold")]
    for at, row in enumerate(rows):
        made.append(Line(text({each.title: cells[each.title][at] for each in shown}), style(row)))
    return made


def _shard_style(shard: Document) -> str:
    if shard["error"] or shard["stalled_seconds"] > LATE_SECONDS:
        return "red"
    return "yellow" if shard["iterator_age_seconds"] > LATE_SECONDS else ""


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else "·" for char in " ".join(text.split()))


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _size(value: float | None) -> str:
    """A class's upper bound: infinity is beyond the last one."""
    return "-" if value is None else "more" if value == float("inf") else f"≤{value:,.0f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else "long" if value == float("inf") else f"≤{value * 1000:,.6g} ms"


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds else "0 s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} d"


_PIPELINES = (
    _Column("pipeline", lambda each: _plain(each["name"]), left=True),
    _Column("topic", lambda each: _plain(each["topic"]), rank=8, left=True),
    _Column("sink", lambda each: each["sink"], rank=9, left=True),
    _Column("state", lambda each: each["state"], rank=2, left=True),
    _Column("shards", lambda each: f"{len(each['shards'])}/{each['partitions']}", rank=10),
    _Column("records/s", lambda each: _count(each["records_per_second"]), rank=1),
    _Column("rows/s", lambda each: _count(each["rows_per_second"]), rank=11),
    _Column("lag", lambda each: _count(each["offset_lag"]) if each["shards"] else "-"),
    _Column("late", lambda each: _age(each["iterator_age_seconds"]) if each["shards"] else "-", rank=1),
    _Column("batch", lambda each: _size(each["batch_records_p50"]), rank=7),
    _Column("calls/s", lambda each: _count(each["invocations_per_second"]), rank=6),
    _Column("p50", lambda each: _milliseconds(each["duration_p50_seconds"]), rank=5),
    _Column("p99", lambda each: _milliseconds(each["duration_p99_seconds"]), rank=4),
    _Column("errors", lambda each: _count(each["function"]["errors"]), rank=5),
    _Column("retries", lambda each: _count(each["function"]["retries"]), rank=6),
    _Column("failed", lambda each: _count(each["counts"]["failed"]), rank=3),
    _Column("billed ms", lambda each: _count(each["function"]["billed_ms"]), rank=8),
)

_SHARDS = (
    _Column("shard", lambda each: f"{_plain(each['pipeline'])}[{each['partition']}]", left=True),
    _Column("state", lambda each: each["state"], rank=2, left=True),
    _Column("records/s", lambda each: _count(each["records_per_second"]), rank=1),
    _Column("lag", lambda each: _count(each["offset_lag"])),
    _Column("late", lambda each: _age(each["iterator_age_seconds"]), rank=1),
    _Column("still for", lambda each: _age(each["stalled_seconds"]), rank=3),
    _Column("position", lambda each: "-" if each["position"] is None else str(each["position"]), rank=5),
    _Column("end", lambda each: "-" if each["end"] is None else str(each["end"]), rank=6),
    _Column("commits", lambda each: _count(each["commits"]), rank=7),
    _Column("failed", lambda each: _count(each["counts"]["failed"]), rank=4),
    _Column("held", lambda each: f"{each['held_bytes'] / 1024:,.0f} KiB", rank=6),
)
