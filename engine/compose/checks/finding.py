"""What the checks of `headrace doctor` share: what is examined, and what a check says of it. No check is here."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from connectors.kafka.cluster import Cluster
from connectors.kafka.settings import KafkaSettings
from engine.batch import Stream
from engine.config import Config, PipelineConfig
from engine.errors import Domain, HeadraceError
from engine.web.runfile import RunFile


class Level(enum.StrEnum):
    OK = "ok"
    WARN = "warn"  #: it works, or may, and somebody should look
    FAIL = "fail"  #: it does not work
    SKIPPED = "skipped"  #: not looked at, and why


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check says. ``pipeline`` is the one that it is about; ``domain`` goes with FAIL.

    ``check`` is the check's name, which `engine.compose.doctor` fills in.
    """

    level: Level
    message: str
    hint: str | None = None
    pipeline: str | None = None
    domain: Domain = Domain.USER
    check: str = ""


def ok(message: str, pipeline: str | None = None) -> Finding:
    return Finding(Level.OK, message, None, pipeline)


def warn(message: str, hint: str | None = None, pipeline: str | None = None) -> Finding:
    return Finding(Level.WARN, message, hint, pipeline)


def fail(
    message: str, hint: str | None = None, pipeline: str | None = None, domain: Domain = Domain.EXTERNAL
) -> Finding:
    return Finding(Level.FAIL, message, hint, pipeline, domain)


def skipped(message: str, pipeline: str | None = None) -> Finding:
    return Finding(Level.SKIPPED, message, None, pipeline)


def raised(error: HeadraceError, pipeline: str | None = None) -> Finding:
    return Finding(Level.FAIL, error.message, error.hint, pipeline, error.domain)


@dataclass(slots=True)
class Case:
    """What is examined. ``pipelines`` are the enabled ones with their companions; None of what nobody has yet.

    ``cluster`` is open once the broker has been reached, and ``streams`` holds the topics that were found by then.
    """

    file: Path
    config: Config | None = None
    bootstrap: str | None = None
    pipelines: dict[str, PipelineConfig] = field(default_factory=dict)
    companions: frozenset[str] = frozenset()
    running: RunFile | None = None
    settings: KafkaSettings | None = None
    cluster: Cluster | None = None
    streams: dict[str, Stream] = field(default_factory=dict)
    topic_settings: dict[str, Mapping[str, str]] = field(default_factory=dict)


Check = Callable[[Case], Sequence[Finding] | Awaitable[Sequence[Finding]]]
