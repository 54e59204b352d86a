"""`headrace run` and `headrace check`: a configuration file or a SAM template, carried out or explained."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import orjson
import typer

from engine import config_file, logs, sam
from engine.cli.options import Bootstrap
from engine.cli.progress import BAR_SECONDS, ProgressReport
from engine.clock import SystemClock
from engine.config import Config
from engine.deadline import Deadline
from engine.errors import ConfigError, Domain, UserError
from engine.loop_watch import BLOCKED_SECONDS_MAX
from engine.reload import Reloader, watched
from engine.runtime import Runtime

if TYPE_CHECKING:
    from engine.compose.shared import Shared

log = logging.getLogger("headrace.run")

#: How often a run says how far it is.
SAY_SECONDS = 10.0

#: The time beyond the drain deadline that is left for closing connections and files.
CLOSE_SECONDS = 5.0

File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="The configuration, usually headrace.toml; or an AWS SAM template."),
]
Json = Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")]

Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        metavar="NAME=VALUE",
        help="SAM: the value of a template's parameter. Repeatable; those with a Default need none.",
    ),
]
Topics = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        metavar="STREAM=TOPIC",
        help="SAM: the topic of a stream, which is named by logical id, name, ARN, export, or FUNCTION-EVENT. "
        "Repeatable; other streams' topics have the stream's name.",
    ),
]
OnFailure = Annotated[
    list[str] | None,
    typer.Option(
        "--on-failure",
        metavar="NAME=TARGET",
        help="SAM: kafka://TOPIC or file:PATH for an OnFailure destination (its logical id, name or ARN) or for "
        "the failed records of FUNCTION-EVENT. Repeatable.",
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="TOML",
        help="SAM: a file whose tables [kafka], [registry] and [engine] hold for the template.",
    ),
]
AllowUnsupported = Annotated[
    bool,
    typer.Option(
        "--allow-unsupported",
        help="SAM: run without what headrace cannot honour, instead of refusing (exit 2). It is listed either way.",
    ),
]


def check(
    file: File,
    bootstrap: Bootstrap = None,
    json: Annotated[bool, typer.Option("--json", help="Print the resolved configuration as JSON.")] = False,
    parameter: Parameters = None,
    topic: Topics = None,
    on_failure: OnFailure = None,
    settings: Settings = None,
    allow_unsupported: AllowUnsupported = False,
) -> None:
    """Check a configuration, or an AWS SAM template, and show it with every default filled in.

    Every fault is reported at once. Queries are planned, handlers imported, and an environment of each Lambda
    function started, so that what is wrong shows here; neither the broker nor a sink is touched.

    Examples:

    \b
    headrace check headrace.toml
    headrace check template.yaml --parameter Stage=dev --topic OrderStream=orders
    """
    from engine.compose.pipelines import build_runtime

    logs.configure()
    options = template_options(parameter, topic, on_failure, settings, allow_unsupported)
    config = load_file(file, options, bootstrap)
    logs.hide(logs.secrets_of(config))
    sys.path.insert(0, str(file.resolve().parent))  # as `run` does
    if faults := asyncio.run(build_runtime(config, bootstrap=bootstrap).check()):
        raise ConfigError("functions cannot be started", faults)
    document = config_file.resolved(config)
    if json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        return
    for line in _lines(document):
        typer.echo(line)
    count = sum(pipeline.enabled for pipeline in config.pipelines.values())
    typer.echo(f"# {file}: no faults; {count} pipeline{'s' if count != 1 else ''} to run", err=True)


def _lines(document: dict[str, object], path: str = "") -> list[str]:
    """The document as TOML, settings that are unset left out."""
    values = {key: value for key, value in document.items() if value is not None}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    if path and lines:
        lines = [f"[{path}]", *lines, ""]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{path}.{key}" if path else key)
    return lines


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        members = ", ".join(f"{key} = {_toml(item)}" for key, item in value.items() if item is not None)
        return f"{{ {members} }}"
    return orjson.dumps(value).decode()


def run(
    file: File,
    bootstrap: Bootstrap = None,
    until_caught_up: Annotated[
        bool,
        typer.Option(
            "--until-caught-up",
            help="End when what is in the topics now is committed in the sinks. No page, and no standby: "
            "a DuckDB file that another process has is waited for 30 s at most.",
        ),
    ] = False,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload",
            help="Watch the functions' code: new invocations run what changed, those under way end on the old.",
        ),
    ] = False,
    json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log a line for each batch.")] = False,
    parameter: Parameters = None,
    topic: Topics = None,
    on_failure: OnFailure = None,
    settings: Settings = None,
    allow_unsupported: AllowUnsupported = False,
) -> None:
    """Run the pipelines of a configuration, or the functions of an AWS SAM template.

    A template gives a pipeline for each stream event (Kinesis, DynamoDB, MSK, SelfManagedKafka) of its
    functions, FUNCTION-EVENT; the stream's name is the topic's. What cannot be honoured is listed and refused.

    The first SIGTERM or Ctrl-C drains: batches at hand are finished and committed within
    engine.drain_seconds_max. The second one stops at once; nothing is lost either way.

    Exit codes: 0 done, 2 something you can mend, 3 something outside (broker, disk), 4 a bug in headrace.

    Examples:

    \b
    headrace run headrace.toml --until-caught-up
    headrace run template.yaml --topic OrderStream=orders --on-failure FailedQueue=kafka://failed --reload
    """
    from engine.compose.pipelines import build

    logs.configure(json=json, verbose=verbose)
    options = template_options(parameter, topic, on_failure, settings, allow_unsupported)
    config = load_file(file, options, bootstrap)
    logs.hide(logs.secrets_of(config))
    # Handlers are looked for beside the configuration too, as in a Lambda task root.
    sys.path.insert(0, str(file.resolve().parent))
    runtime, shared = build(config, bootstrap=bootstrap, until_caught_up=until_caught_up)
    serve = None if until_caught_up else _page(runtime, shared, config, file, bootstrap)
    reloader = Reloader(watched(runtime.pipelines, config, file.resolve().parent)) if reload else None
    shows_bar = until_caught_up and not json and sys.stderr.isatty()
    code = _loop(runtime, config, reloader, serve, shows_bar=shows_bar)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # A handler that never returns holds its thread, and the interpreter would wait for it.
    os._exit(code)


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """What the command line says to a template. True where it says anything."""

    parameters: dict[str, str]
    topics: dict[str, str]
    on_failure: dict[str, str]
    settings: Path | None
    allow_unsupported: bool

    def __bool__(self) -> bool:
        given = (self.parameters, self.topics, self.on_failure, self.settings, self.allow_unsupported)
        return any(given)


def template_options(
    parameter: list[str] | None,
    topic: list[str] | None,
    on_failure: list[str] | None,
    settings: Path | None,
    allow_unsupported: bool,
) -> TemplateOptions:
    """Raises UserError for what is no NAME=VALUE."""
    return TemplateOptions(
        parameters=_pairs("--parameter NAME=VALUE", parameter),
        topics=_pairs("--topic STREAM=TOPIC", topic),
        on_failure=_pairs("--on-failure NAME=TARGET", on_failure),
        settings=settings,
        allow_unsupported=allow_unsupported,
    )


def _pairs(usage: str, given: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` each. No value is ever shown: a parameter may be a secret."""
    pairs: dict[str, str] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise UserError(f"valid is {usage}, and one of them has no {'=' if not equals else 'name'}")
        if name in pairs:
            raise UserError(f"{usage.split()[0]} {name} is given twice")
        pairs[name] = value
    return pairs


def load_file(file: Path, options: TemplateOptions, bootstrap: str | None) -> Config:
    """The configuration in a file of either sort. Raises UserError, for what is unsupported in a template too."""
    if not sam.is_template(file):
        if options:
            raise UserError(
                f"{file} is no template; --parameter, --topic, --on-failure, --config and --allow-unsupported "
                "are for AWS SAM templates"
            )
        return config_file.load(file)
    template = sam.load(
        file,
        parameters=options.parameters,
        topics=options.topics,
        on_failure=options.on_failure,
        bootstrap=bootstrap,
        settings=options.settings,
    )
    for line in template.ignored:
        log.info("ignored: %s", line)
    if template.unsupported and not options.allow_unsupported:
        raise UserError(
            "\n".join(
                [f"{file} asks for what headrace cannot honour", *(f"  {each}" for each in template.unsupported)]
            ),
            hint="--allow-unsupported runs the template without all that",
        )
    for line in template.unsupported:
        log.warning("unsupported, left out: %s", line)
    return template.config


class Page(Protocol):
    """What browsers and other commands see of the run."""

    async def close(self) -> None: ...


#: Starts the page. Raises UserError where its address cannot be had.
Serve = Callable[[], Awaitable[Page]]


def _page(runtime: Runtime, shared: Shared, config: Config, file: Path, bootstrap: str | None) -> Serve:
    # Imported by runs that have a page: a server takes memory.
    from engine.compose.web import serve

    return partial(
        serve, runtime, config, file, tail=shared.logs.tail, databases=shared.databases, bootstrap=bootstrap
    )


def _loop(
    runtime: Runtime, config: Config, reloader: Reloader | None, serve: Serve | None, *, shows_bar: bool
) -> int:
    try:
        import uvloop
    except ImportError:
        factory = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    # Not closed: closing waits for coroutines that take no cancellation, and the process is about to end.
    return asyncio.Runner(loop_factory=factory).run(_run(runtime, config, reloader, serve, shows_bar=shows_bar))


async def _run(
    runtime: Runtime, config: Config, reloader: Reloader | None, serve: Serve | None, *, shows_bar: bool
) -> int:
    stopping = asyncio.Event()
    drain_seconds_max = config.engine.drain_seconds_max

    def stop(number: int) -> None:
        name = signal.Signals(number).name
        if stopping.is_set():
            log.warning("%s again: stopping at once", name)
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: draining for at most %g s; once more stops at once", name, drain_seconds_max)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    page = await serve() if serve is not None else None
    started = time.monotonic()
    running = asyncio.ensure_future(runtime.run(stopping))
    telling = asyncio.ensure_future(_show(runtime) if shows_bar else _tell(runtime))
    stopped = asyncio.ensure_future(stopping.wait())
    reloading = asyncio.ensure_future(reloader.run()) if reloader is not None else None
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if reloading is not None:
        reloading.cancel()
    if not running.done():
        deadline = Deadline(SystemClock(), drain_seconds_max + CLOSE_SECONDS)
        await asyncio.wait({running}, timeout=deadline.seconds_left)
    telling.cancel()
    stopped.cancel()
    if page is not None:
        await page.close()
    _summary(runtime, time.monotonic() - started)
    if not running.done():
        log.error("not closed within %g s; leaving anyway, nothing committed is lost", drain_seconds_max)
        return Domain.EXTERNAL
    return running.result()


async def _show(runtime: Runtime) -> None:
    """A bar on the terminal: how much of what was in the topics at the start is committed."""
    with ProgressReport("catching up") as report:
        started = time.monotonic()
        while True:
            await asyncio.sleep(BAR_SECONDS)
            progress = [pipeline.progress() for pipeline in runtime.pipelines]
            total, done = sum(each.total for each in progress), sum(each.done for each in progress)
            records = sum(pipeline.totals().records for pipeline in runtime.pipelines)
            rate = records / (time.monotonic() - started)
            report.update(done / total if total else None, f"{records:,} records, {rate:,.0f}/s")


async def _tell(runtime: Runtime) -> None:
    """Say now and then how far each pipeline is."""
    before: dict[str, int] = {}
    while True:
        await asyncio.sleep(SAY_SECONDS)
        for pipeline in runtime.pipelines:
            statistics = pipeline.statistics()
            records = sum(shard.counts.total - shard.counts.absent for shard in statistics)
            rate = (records - before.get(pipeline.name, 0)) / SAY_SECONDS
            before[pipeline.name] = records
            progress = pipeline.progress()
            done = f", {progress.done / progress.total:.0%} caught up" if progress.total else ""
            log.info(
                "%s: %d shards, %s records, %s/s%s",
                pipeline.name,
                len(statistics),
                f"{records:,}",
                f"{rate:,.0f}",
                done,
            )


def _summary(runtime: Runtime, seconds: float) -> None:
    loop = runtime.loop_statistics()
    log.info(
        "event loop: blocked for %.1f ms at most, %d times for more than %g ms",
        *(loop.blocked_seconds_max * 1000, loop.blocked_count, BLOCKED_SECONDS_MAX * 1000),
    )
    for pipeline in runtime.pipelines:
        totals = pipeline.totals()
        rate = totals.records / seconds if seconds else 0.0
        log.info(
            "%s: %s records, %s rows, %s failed, %s dropped, %s filtered, %d commits in %.1f s (%s records/s)",
            pipeline.name,
            *(
                f"{count:,}"
                for count in (totals.records, totals.rows, totals.failed, totals.dropped, totals.filtered)
            ),
            *(totals.commits, seconds, f"{rate:,.0f}"),
        )
