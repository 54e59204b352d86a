"""`benchmarks/RESULTS.md` and its plots, made of the benchmark's JSON. Nothing is measured or rounded up here.

A ratio is between medians of one session. A target that was missed is said as plainly as one that was met, and one
that was not measured too. Not here: what the JSON holds (`benchmarks.results`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import freshness, results, targets
from benchmarks.plots import Bar, chart
from benchmarks.results import Cell
from benchmarks.systems import HEADRACE
from benchmarks.workloads import WORKLOADS

HERE = Path(__file__).resolve().parent


def write(files: Sequence[Path], directory: Path = HERE) -> Path:
    """Make the page and ``plots/*.svg`` of ``files`` in ``directory``; where the page is.

    A file is a results document, or a list of entries of one of `results.PARTS`, which its name says.
    """
    document = results.merge(_documents(files))
    plots = directory / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for plot in plots.glob("*.svg"):
        plot.unlink()
    cells = results.cells(document)
    for workload, row in cells.items():
        bars = [
            Bar(cell.system, cell.cpu_rate, cell.system == HEADRACE, cell.is_correct)
            for cell in row
            if cell.finished
        ]
        drawn = chart(WORKLOADS[workload].title, "events for each CPU second of the whole process tree", bars)
        (plots / f"{workload}.svg").write_text(drawn, encoding="utf-8")
    page = directory / "RESULTS.md"
    page.write_text("\n".join(_page(document, cells)) + "\n", encoding="utf-8")
    return page


def _documents(files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            yield content
            continue
        part = next((name for name in results.PARTS if name in file.stem), None)
        if part is None:
            raise ValueError(f"{file} is a list, and its name says none of {', '.join(results.PARTS)}")
        yield {part: content}


def _page(document: Mapping[str, Any], cells: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    yield "# Results of the benchmark"
    yield ""
    yield (
        "Made by `python -m benchmarks --report`; measured by `make bench` (see `python -m benchmarks --help`). "
        "One broker, started for the purpose, shares the machine with the system under measurement; systems take "
        "turns, each run's result is checked, and figures are medians."
    )
    yield ""
    yield from _machine(document)
    yield from _targets(document, cells)
    for workload, row in cells.items():
        yield from _workload(document, workload, row)
    yield from _memory(document)
    parts = {
        "latency": _latency,
        "freshness": freshness.section,
        "scaling": _scaling,
        "limit": _limit,
        "environments": _environments,
    }
    for name, part in parts.items():
        if document.get(name):
            yield from part(document[name])
        else:
            yield from (f"## {name.capitalize()}", "", "Not measured in this session.", "")
    yield from _systems(document)


def _machine(document: Mapping[str, Any]) -> Iterator[str]:
    machine = document.get("machine")
    if machine:
        yield (
            f"Machine: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, "
            f"{machine['system']}, Python {machine['python']}; broker: {machine['broker']}; load before the start "
            f"{machine['load_at_start']:.1f}. Started {document['started']} with"
        )
        yield from ("", *(f"    {command}" for command in document["commands"]), "")
    yield (
        "Events: click events of ten fields, about 234 bytes of JSON, keyed by user, 4 partitions, lz4, record "
        "batches of up to 512 KiB as a producer with a linger makes them."
    )
    yield ""


def _targets(document: Mapping[str, Any], cells: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    yield from ("## Targets", "", "| work | target | measured | |", "|---|---|---|---|")
    for verdict in targets.verdicts(document, cells):
        state = {True: "met", False: "**missed**", None: "not measured"}[verdict.is_met]
        yield f"| {verdict.work} | {verdict.target} | {verdict.measured} | {state} |"
    yield ""


def _workload(document: Mapping[str, Any], workload: str, row: Sequence[Cell]) -> Iterator[str]:
    about = WORKLOADS[workload]
    yield from (f"## {about.title}", "", f"![{about.title}](plots/{workload}.svg)", "")
    for data in dict.fromkeys(run["data"] for cell in row for run in cell.runs if "data" in run):
        yield from (f"Data: {data}.", "")
    yield (
        "| system | events | events/s | spread | events per CPU s | without a start | CPU s per million | peak MB "
        "| MB written | files | flushes | delivery | result | headrace / it: events/s | per CPU s |"
    )
    yield "|---" * 15 + "|"
    flushes = {entry["system"]: entry for entry in document["flushes"] if entry["workload"] == workload}
    own = next((cell for cell in row if cell.system == HEADRACE and cell.finished), None)
    for cell in sorted(row, key=lambda cell: -cell.cpu_rate if cell.finished else 0.0):
        yield _row(document, cell, own, flushes.get(cell.system))
    yield ""
    notes = dict.fromkeys(
        f"- {cell.system}: {note}" for cell in row for note in _notes(document, workload, cell) if note
    )
    yield from (*notes, "") if notes else ()


def _row(document: Mapping[str, Any], cell: Cell, own: Cell | None, flushes: Mapping[str, Any] | None) -> str:
    about = document["systems"].get(cell.system, {})
    name = f"**{cell.system}**" if cell.system == HEADRACE else cell.system
    delivery = about.get("delivery", {}).get(cell.workload, "")
    if not cell.finished:
        return f"| {name} | {cell.events:,} |" + " |" * 9 + f" {delivery} | **failed**: {cell.wrong} | | |"
    result = "correct" if cell.is_correct else f"**wrong**: {cell.wrong}"
    counted = "" if not flushes or flushes["flushes"] is None else f"{flushes['flushes']:,}"
    ratios = "| |"
    if own is not None and own is not cell:
        ratios = f"{own.rate / cell.rate:.2f} | {own.cpu_rate / cell.cpu_rate:.2f} |"
    return (
        f"| {name} | {cell.events:,} | {cell.rate:,.0f} | {min(cell.rates):,.0f} to {max(cell.rates):,.0f} "
        f"({len(cell.rates)} runs) | {cell.cpu_rate:,.0f} | {_without(document, cell)} | {1e6 / cell.cpu_rate:.2f} "
        f"| {cell.median('rss_bytes_max') / 1e6:,.0f} | {cell.median('bytes') / 1e6:,.1f} "
        f"| {cell.median('files'):,.0f} | {counted} | {delivery} | {result} | {ratios}"
    )


def _without(document: Mapping[str, Any], cell: Cell) -> str:
    rate = results.rate_without_start(document["starts"], cell)
    return "" if rate is None else f"{rate:,.0f}"


def _notes(document: Mapping[str, Any], workload: str, cell: Cell) -> Iterator[str]:
    yield document["systems"].get(cell.system, {}).get("notes", {}).get(workload, "")
    yield cell.runs[-1].get("note", "")


def _memory(document: Mapping[str, Any]) -> Iterator[str]:
    if document.get("memory"):
        yield from ("## Memory over the length of a run", "", "| events | peak MB |", "|---|---|")
        for entry in document["memory"]:
            yield f"| {entry['events']:,} | {entry['rss_bytes_max'] / 1e6:,.0f} |"
        yield ""


def _latency(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Latency",
        "",
        "From the moment an event was to be sent, in ms; `benchmarks.latency` says how.",
        "",
    )
    yield "| seen by | system | events/s | linger ms | p50 | p99 | p99.9 | max | p50 of acknowledgements |"
    yield "|---" * 9 + "|"
    for entry in entries:
        figures = [entry.get(f"{name}_ms") for name in ("p50", "p99", "p999", "max", "ack_p50")]
        shown = " | ".join("" if value is None else f"{value:.2f}" for value in figures)
        yield f"| {entry['measure']} | {entry['system']} | {entry['rate']:,} | {entry['linger_ms']:g} | {shown} |"
    yield ""


def _scaling(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("## Scaling", "", "headrace's ETL; CPU seconds without those of a start, which stand beside.", "")
    yield "| axis | value | events | events/s | per CPU s | CPU s per million | start CPU s | peak MB | files |"
    yield "|---" * 9 + "|"
    for entry in entries:
        if "error" in entry:
            yield f"| {entry['axis']} | {entry['value']:,} | **failed**: {entry['error']} |" + " |" * 6
        elif "verdict" not in entry:
            yield (
                f"| {entry['axis']} | {entry['value']:,} | {entry['events']:,} | {entry['events_per_second']:,} "
                f"| {entry['events_per_cpu_second']:,} | {entry['cpu_seconds_per_million']:.3f} "
                f"| {entry['start_cpu_seconds']:.2f} | {entry['rss_bytes_max'] / 1e6:,.0f} | {entry['files']} |"
            )
    yield ""
    for entry in entries:
        if "verdict" in entry:
            memory = entry.get("rss_mb_per_million")
            slope = "" if memory is None else f"; memory {memory:+.1f} MB for a million events more"
            state = "holds" if entry["holds"] else "**grows**"
            yield f"- {entry['axis']}: {state}: {entry['verdict']}: x {entry['growth']:.2f}{slope}"
    yield ""


def _limit(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("## The limit", "", "Each step of the ETL alone, on one core.", "")
    yield from ("| step | way | events per CPU s | CPU s per million | headrace's share |", "|---" * 5 + "|")
    for entry in entries:
        share = f"{entry['headrace_share']:.0%}" if "headrace_share" in entry else ""
        rate = entry["events_per_cpu_second"]
        yield f"| {entry['step']} | {entry['way']} | {rate:,} | {entry['cpu_seconds_per_million']:.3f} | {share} |"
    yield ""


def _environments(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Environments",
        "",
        "Processes that Lambda handlers run in; `benchmarks.environments` says how.",
        "",
    )
    yield "Through a pool with one environment, batches of 1,000 click events as Kinesis events, one caller:"
    yield from (
        "",
        "| handler decodes by | records/s | per CPU s of the environment | us of a record: transfer "
        "| event building | handler | answer | engine's CPU |",
        "|---" * 8 + "|",
    )
    for entry in _of(entries, "throughput"):
        steps = " | ".join(
            f"{entry[f'{name}_us']:.2f}" for name in ("transfer", "build", "handler", "encode", "engine")
        )
        yield (
            f"| {entry['handler']} | {entry['records_per_second']:,} "
            f"| {entry['records_per_environment_cpu_second']:,} | {steps} |"
        )
    yield from ("", "An empty handler and one record, from call to reply; and a cold start:", "")
    yield from ("| runtime | p50 us | p99 us | start p50 ms | start max ms |", "|---" * 5 + "|")
    starts = {entry["runtime"]: entry for entry in _of(entries, "start")}
    for entry in _of(entries, "invocation"):
        start = starts[entry["runtime"]]
        yield (
            f"| {entry['runtime']} | {entry['p50_us']:,.0f} | {entry['p99_us']:,.0f} | {start['p50_ms']:,.0f} "
            f"| {start['max_ms']:,.0f} |"
        )
    yield from ("", "From the broker to the handler of the workload `handler`, batches of up to 1,000:", "")
    yield (
        "| environments at most | started | events | records/s | per CPU s | per CPU s of environments "
        "| CPU us of a record: fetch | transfer | event building | handler |"
    )
    yield "|---" * 10 + "|"
    for entry in _of(entries, "pipeline"):
        steps = " | ".join(f"{entry[f'{name}_cpu_us']:.2f}" for name in ("fetch", "transfer", "build", "handler"))
        yield (
            f"| {entry['reserved_concurrency']:g} | {entry['environments']:g} | {entry['events']:,.0f} "
            f"| {entry['records_per_second']:,.0f} | {entry['records_per_cpu_second']:,.0f} "
            f"| {entry['records_per_environment_cpu_second']:,.0f} | {steps} |"
        )
    yield ""


def _of(entries: Sequence[Mapping[str, Any]], measure: str) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["measure"] == measure]


def _systems(document: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Systems", "", "| system | versions | settings |", "|---|---|---|")
    for name, about in document["systems"].items():
        versions = ", ".join(f"{part} {version}" for part, version in about["versions"].items())
        yield f"| {name} | {versions} | {about['settings']} |"
    yield ""
    yield (
        "CPU seconds are those of the whole process tree, start included (the harness is a sub-reaper and waits "
        'for every orphan); "without a start" has those of a run over 50,000 events taken off, and these events. '
        "Peak memory is sampled: the resident size of a lone process, the sum of proportional sizes of several. "
        "Flushes are fsync, fdatasync and the like, counted by strace in a run of its own over a million events at "
        "most; empty where strace was not there. events/s is from the first record consumed to the last result "
        "committed, for JVM systems from the submission of the query; a note says where it differs."
    )
