"""The demo: what `headrace demo` does, from the broker to the answers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

from connectors.kafka.broker import Broker
from connectors.kafka.cluster import LATEST, Cluster
from connectors.kafka.settings import KafkaSettings
from engine import config_file
from engine.clock import SystemClock
from engine.compose.pipelines import build_runtime
from engine.compose.produce import Plan, produce
from engine.config import Config
from engine.errors import UserError
from engine.pipeline import Pipeline
from functions import samples
from functions.clickstream import queries
from functions.samples import handlers

#: The sample that each topic is filled with, and the member of its records that becomes the key.
TOPICS = {
    "demo.clicks": ("msnbc-page-views", "user"),
    "demo.access-log": ("nasa-access", None),
    "demo.runways": ("runways-changes", None),
}

#: A file that says that a directory is the demo's own and may be emptied.
MARKER = "this directory belongs to headrace demo"


@dataclass(frozen=True, slots=True)
class Ran:
    """One pipeline's run, from its start to the last commit."""

    pipeline: str
    records: int
    rows: int
    dropped: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    question: str
    found: str
    expected: str

    @property
    def is_right(self) -> bool:
        return self.found == self.expected


@dataclass(frozen=True, slots=True)
class Report:
    runs: Sequence[Ran]
    answers: Sequence[Answer]
    suggestions: Sequence[str]

    @property
    def is_right(self) -> bool:
        return all(answer.is_right for answer in self.answers)

    def document(self) -> dict[str, object]:
        return {
            "runs": [asdict(ran) for ran in self.runs],
            "answers": [{**asdict(answer), "equal": answer.is_right} for answer in self.answers],
        }


async def run(directory: Path, *, bootstrap: str | None, progress: Callable[[str], None]) -> Report:
    """The whole demo. ``directory`` is emptied first, if it is the demo's own."""
    await asyncio.to_thread(_prepare, directory)
    async with _cluster(directory, bootstrap, progress) as address:
        if bootstrap is not None:
            progress(f"using the cluster at {address}")
        for topic, (sample, key) in TOPICS.items():
            await _fill(topic, sample, key, address)
            progress(f"topic {topic} holds {samples.DESCRIPTIONS[sample]}")
        config = await asyncio.to_thread(config_file.load, directory / "headrace.toml")
        runs = await _run_pipelines(config, address)
    answers = await asyncio.to_thread(_answers, directory)
    return Report(runs, answers, _suggestions(directory))


async def _fill(topic: str, sample: str, key: str | None, bootstrap: str) -> None:
    """Send a sample to its topic, unless an earlier demo on the same cluster has done so."""
    cluster = Cluster(KafkaSettings(bootstrap), SystemClock())
    await cluster.open()
    try:
        if topic in await cluster.topics():
            partitions = (await cluster.describe(topic)).leaders
            ends = await cluster.offsets(topic, dict.fromkeys(partitions, LATEST))
            held = sum(end or 0 for end in ends.values())
            if held == len(samples.lines(sample)):
                return
            if held:
                raise UserError(
                    f"topic {topic} holds {held} records that are not the demo's", hint="delete it first"
                )
    finally:
        await cluster.close()
    produced = await produce(Plan(bootstrap, topic, [str(samples.path(sample))], key=key, partitions=4))
    if produced.error is not None:
        raise produced.error


@contextlib.asynccontextmanager
async def _cluster(directory: Path, bootstrap: str | None, progress: Callable[[str], None]) -> AsyncIterator[str]:
    if bootstrap is not None:
        yield bootstrap
        return
    async with Broker(directory / "broker", port=0, progress=progress) as broker:
        progress(f"Apache Kafka answers at {broker.bootstrap}")
        yield broker.bootstrap


def _prepare(directory: Path) -> None:
    marker = directory / MARKER
    if directory.exists() and any(directory.iterdir()):
        if not marker.exists():
            raise UserError(f"{directory} holds something else than a demo", hint="name another place with --dir")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    marker.touch()
    text = importlib.resources.files("engine").joinpath("demo/headrace.toml").read_text(encoding="utf-8")
    (directory / "headrace.toml").write_text(text, encoding="utf-8")


async def _run_pipelines(config: Config, bootstrap: str) -> list[Ran]:
    runtime = await asyncio.to_thread(build_runtime, config, bootstrap=bootstrap, until_caught_up=True)
    stopping = asyncio.Event()

    async def timed(pipeline: Pipeline) -> Ran:
        started = time.monotonic()
        await pipeline.run(stopping)
        if pipeline.error is not None:
            raise pipeline.error
        totals = pipeline.totals()
        seconds = time.monotonic() - started
        return Ran(pipeline.name, totals.records, totals.rows, totals.dropped, totals.failed, seconds)

    # One after the other, so that the rates are each pipeline's own.
    return [await timed(pipeline) for pipeline in runtime.pipelines]


def _answers(directory: Path) -> list[Answer]:
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{_quoted(directory / 'results.duckdb')}' AS results (READ_ONLY)")
        for name in ("clicks", "failures"):
            connection.read_parquet(str(directory / name / "**" / "*.parquet")).create_view(name)
        connection.read_csv(str(samples.path("runways-final")), all_varchar=True).create_view("final")

        def answer(question: str, query: str, expected: object) -> Answer:
            row = connection.sql(query).fetchone()
            assert row is not None
            return Answer(question, _shown(row[0]), _shown(expected))

        page_views, log, runways = (
            samples.expected(name) for name in ("msnbc-page-views", "nasa-access", "runways")
        )
        page, views = max(page_views["pages"].items(), key=lambda item: int(item[1]))
        return [
            answer("page views", "FROM clicks SELECT count(*)", page_views["events"]),
            answer(
                "visits (a pause of 30 minutes ends one)",
                f"FROM ({queries.visits('clicks')}) SELECT count(*)",
                page_views["visits"],
            ),
            answer(
                "most viewed page",
                "FROM clicks SELECT page || ', ' || count(*) GROUP BY page ORDER BY count(*) DESC LIMIT 1",
                f"{page}, {views}",
            ),
            answer(
                "conversions (views of the category travel)",
                f"FROM ({handlers.conversions_per_minute('clicks')}) SELECT sum(conversions)::BIGINT",
                page_views["pages"]["travel"],
            ),
            answer(
                "requests not found",
                "FROM failures SELECT count(*) WHERE status = 404",
                log["status"]["404"]["lines"],
            ),
            answer(
                "requests forbidden",
                "FROM failures SELECT count(*) WHERE status = 403",
                log["status"]["403"]["lines"],
            ),
            answer("runways after all changes", "FROM results.runways SELECT count(*)", runways["rows"]),
            answer(
                "runways that differ from the source's own file",
                """FROM results.runways AS ours FULL JOIN final ON ours.id = final.id::BIGINT SELECT count(*)
                WHERE ours.airport_ident IS DISTINCT FROM final.airport_ident
                   OR ours.length_ft IS DISTINCT FROM final.length_ft::BIGINT""",
                0,
            ),
        ]


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _suggestions(directory: Path) -> list[str]:
    asked = {
        "SELECT page, count(*) FROM data GROUP BY page ORDER BY 2 DESC": f"--parquet {directory}/clicks",
        "SELECT ts, host, path, status FROM data ORDER BY ts LIMIT 10": f"--parquet {directory}/failures",
        "SELECT surface, count(*) FROM runways GROUP BY ALL ORDER BY 2 DESC": f"--db {directory}/results.duckdb",
    }
    return [f'query "{query}" {where}' for query, where in asked.items()]
