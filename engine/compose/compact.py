"""What `headrace compact` does, and what compacts beside a run: the compactors of Parquet sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from connectors.parquet.compactor import Compactor, Done, Plan
from engine.clock import SystemClock
from engine.config import Config
from engine.config_sinks import ParquetSinkConfig
from engine.errors import UserError
from engine.protocols import Clock

__all__ = ["Done", "Plan", "Target", "background", "compact", "finish", "plan", "targets"]

#: While another process compacts the same directory: how often it is asked again.
BUSY_SECONDS = 0.5

Phase = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """One sink to compact: the pipeline's name, None for a directory that was named itself."""

    pipeline: str | None
    path: Path
    compactor: Compactor


def background(sink: ParquetSinkConfig, clock: Clock, *, phase: Phase | None = None) -> Compactor | None:
    """What compacts a sink beside a run, by ``await compactor.run()`` in a task; None where that is off."""
    return _compactor(sink, clock, eager=False, phase=phase) if sink.compact else None


def targets(path: Path, load: Callable[[Path], Config], pipeline: str | None) -> list[Target]:
    """The Parquet sinks that ``path`` names: those of a configuration, or the one in a directory.

    Raises ConfigError, and UserError for what is neither and for a pipeline without such a sink.
    """
    if path.is_dir():
        if pipeline is not None:
            raise UserError(
                "--pipeline goes with a configuration; a directory is one sink",
                hint="headrace compact headrace.toml --pipeline NAME",
            )
        sink = ParquetSinkConfig(type="parquet", path=path)
        found = [Target(None, path, _compactor(sink, SystemClock(), eager=True))]
        if not found[0].compactor.is_sink:
            raise UserError(
                f"directory {path} is not a sink of headrace",
                hint="name the directory that a pipeline's Parquet sink has as its path, or the configuration",
            )
        return found
    config = load(path)
    sinks = {name: each.sink for name, each in config.pipelines.items() if isinstance(each.sink, ParquetSinkConfig)}
    if pipeline is not None and pipeline not in sinks:
        have = ", ".join(sinks) or "none"
        raise UserError(f"{path} has no pipeline {pipeline!r} with a Parquet sink; those with one: {have}")
    if not sinks:
        raise UserError(f"no pipeline of {path} has a Parquet sink, and nothing else has files to compact")
    return [
        Target(name, sink.path, _compactor(sink, SystemClock(), eager=True))
        for name, sink in sinks.items()
        if pipeline in (None, name)
    ]


def plan(target: Target) -> Plan:
    """What `compact` would join now. Raises SinkUnavailable."""
    return target.compactor.plan()


def compact(target: Target, progress: Callable[[Done], None], waiting: Callable[[], None]) -> Iterator[Done]:
    """Compact until nothing is left to join; yields what each pass has done.

    ``progress`` hears of each commit, ``waiting`` is called while another process compacts the directory, or
    while files that were joined have to go before more may be. Raises SinkUnavailable.
    """
    while True:
        done = target.compactor.compact(progress)
        if done is None or (not done.is_whole and not done.outputs):
            waiting()
            time.sleep(BUSY_SECONDS)
            continue
        yield done
        if done.is_whole:
            return


def finish(target: Target, waiting: Callable[[float], None]) -> None:
    """Wait until files that were joined may be removed, and remove them; ``waiting`` hears how many seconds."""
    while True:
        done = target.compactor.finish()
        if done is not None and done.wake_at is None:
            return
        left = BUSY_SECONDS if done is None or done.wake_at is None else done.wake_at - time.time()
        waiting(max(0.0, left))
        time.sleep(min(max(left, 0.0) + 0.01, BUSY_SECONDS))


def _compactor(sink: ParquetSinkConfig, clock: Clock, *, eager: bool, phase: Phase | None = None) -> Compactor:
    return Compactor(
        sink.path,
        clock=clock,
        file_bytes_target=sink.file_bytes_target,
        files_min=sink.compact_files_min,
        interval_seconds=sink.compact_interval_seconds,
        retired_seconds_min=sink.retired_seconds_min,
        row_group_bytes_max=sink.row_group_bytes_max,
        eager=eager,
        phase=phase,
    )
