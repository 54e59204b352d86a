"""`headrace produce`: events of files into a topic. This module formats; `engine.compose.produce` acts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer

from engine import logs
from engine.cli.options import Bootstrap, ConfigFile, bootstrap_option, kafka_option
from engine.cli.progress import ProgressReport

if TYPE_CHECKING:
    from engine.compose.produce import Produced

INTERRUPTED = 130

_TOPIC = typer.Argument(metavar="TOPIC", help="Made when it does not exist.")
_FILES = typer.Argument(metavar="FILE...", help="NDJSON, text or Parquet, also .gz and .zst; - is standard input.")
_KEY = typer.Option(metavar="FIELD", help="The member or column that becomes the record's key; a.b is a path.")
_RATE = typer.Option(metavar="N", help="Events per second, fractions too; as fast as it goes when left out.")
_PARTITIONS = typer.Option(metavar="N", help="Of a topic that is made, 4 by default; else it has to have them.")
_FORMAT = typer.Option("--format", help="auto goes by the file's name, then by its first byte.")
_TIMESTAMP = typer.Option(metavar="FIELD", help="The event's time: ms since 1970, or ISO 8601; now when left out.")
_WAIT = typer.Option(
    "--broker-wait", metavar="SECONDS", min=0.0, help="How long to wait for a broker; else as configured, or 60."
)
_JSON = typer.Option("--json", help="The closing line as JSON on standard output.")


def produce(
    topic: Annotated[str, _TOPIC],
    files: Annotated[list[str], _FILES],
    key: Annotated[str | None, _KEY] = None,
    rate: Annotated[float | None, _RATE] = None,
    partitions: Annotated[int | None, _PARTITIONS] = None,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    value_format: Annotated[Literal["auto", "ndjson", "text", "parquet"], _FORMAT] = "auto",
    timestamp: Annotated[str | None, _TIMESTAMP] = None,
    broker_wait: Annotated[float | None, _WAIT] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Bring the events of files into a topic, in order, acknowledged by all replicas.

    NDJSON and text lines are sent byte for byte, Parquet rows as JSON objects. Events with a key go to the
    partition that Kafka's default partitioner gives them; those without one go round the partitions.
    Ctrl-C flushes what was read and says how many events were sent.

    \b
        headrace produce clicks events.ndjson.gz --key user --partitions 8
        tail -f access.log | headrace produce logs - --format text
        headrace produce clicks events.parquet --config headrace.toml

    Exit codes: 0; 2 for a file, a line or an option; 3 for the broker; 130 after Ctrl-C.
    """
    from engine.compose import produce as compose

    logs.configure(json=as_json)
    kafka = kafka_option(config)
    plan = compose.Plan(
        bootstrap=bootstrap_option(bootstrap, kafka.bootstrap),
        topic=topic,
        files=files,
        value_format=value_format,
        key=key,
        timestamp=timestamp,
        rate_events=rate,
        partitions=partitions,
        broker_wait_seconds_max=broker_wait,
        kafka=kafka,
    )
    with ProgressReport(f"producing to {topic}", quiet=as_json) as report:
        produced = _run(
            compose.produce(plan, lambda part, events: report.update(part, f"{events:,} events acknowledged"))
        )
    _answer(topic, produced, as_json)
    if produced.error is not None:
        raise produced.error
    if produced.interrupted:
        raise typer.Exit(INTERRUPTED)


def _run(work: Coroutine[object, object, Produced]) -> Produced:
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _answer(topic: str, produced: Produced, as_json: bool) -> None:
    rate = produced.events / produced.seconds if produced.seconds else 0.0
    if as_json:
        line = {
            "topic": topic,
            "events": produced.events,
            "bytes": produced.bytes,
            "seconds": round(produced.seconds, 3),
            "events_per_second": round(rate),
            "partitions": {str(partition): count for partition, count in produced.partitions.items()},
            "interrupted": produced.interrupted,
        }
        typer.echo(orjson.dumps(line).decode())
        return
    counts = " ".join(f"{partition}:{count:,}" for partition, count in produced.partitions.items())
    state = "interrupted: " if produced.interrupted else "failed: " if produced.error is not None else ""
    typer.echo(
        f"{state}{produced.events:,} events ({produced.bytes:,} bytes) to {topic} in {produced.seconds:.1f} s, "
        f"{rate:,.0f} events/s; by partition {counts}"
    )
