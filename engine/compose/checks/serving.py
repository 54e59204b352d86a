"""Checks of what a run serves, and of what it asks beside Kafka: page, ports, traces, registry; and of a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from engine.cli.page import Page
from engine.compose.checks.finding import Case, Finding, fail, ok, raised, skipped, warn
from engine.compose.shared import schema_registry
from engine.config import REGISTERED_FORMATS
from engine.config_serving import LOOPBACK
from engine.config_sinks import DuckDBSinkConfig
from engine.errors import Domain, HeadraceError
from engine.web import runfile
from engine.web.runfile import RunFile

CONNECT_SECONDS_MAX = 3.0

#: Reasons of a run that is unwell that are shown.
REASONS_MAX = 10


def running(case: Case) -> Sequence[Finding]:
    """The engines that run for this file, if any do, make progress."""
    if case.running is None:
        return [ok("no engine of this user runs for this file")]
    others = [run for run in runfile.of(case.file) if run.pid != case.running.pid]
    return [found for run in (case.running, *others) for found in _health(run)]


def _health(run: RunFile) -> Sequence[Finding]:
    """What a run says of itself: a finding for each kind of reason of each pipeline."""
    who = f"process {run.pid} runs this file"
    if run.url is None:
        return [warn(f"{who}, and its page is off, so its health is not known", "set web.enabled = true")]
    try:
        code, document = Page(run.url.rstrip("/"), run.token).get("/healthz", seconds_max=CONNECT_SECONDS_MAX)
    except HeadraceError as error:
        return [fail(f"{who}, and {error.message}", "it may be starting; its log says more")]
    if code == 200:
        return [ok(f"{who} and makes progress: {run.url}")]
    reasons = document.get("reasons") if isinstance(document, dict) else None
    groups: dict[tuple[str, str | None], list[dict[str, object]]] = {}
    for each in reasons if isinstance(reasons, list) else []:
        if isinstance(each, dict):
            groups.setdefault((str(each.get("kind")), each.get("pipeline")), []).append(each)
    found = []
    for (_, name), group in list(groups.items())[:REASONS_MAX]:
        # The message of an error may have its own hint behind it, on lines of their own.
        text, _, more = str(group[0].get("message")).partition("\n")
        alike = f" (and {len(group) - 1} more partitions alike)" if len(group) > 1 else ""
        hint = more.strip() or str(group[0].get("hint") or "its log says more")
        found.append(fail(f"{who} and is not well: {text}{alike}", hint, name))
    return found or [fail(f"{who} and is not well: it does not say why", "its log says more")]


def page(case: Case) -> Sequence[Finding]:
    """The page's port is free, and who may see it is settled."""
    assert case.config is not None
    web = case.config.web
    if not web.enabled:
        return [ok("the page is off")]
    found = []
    if web.host not in LOOPBACK and web.token is None and not os.environ.get("HEADRACE_WEB_TOKEN"):
        hint = "set it, or HEADRACE_WEB_TOKEN, to 16 characters or more"
        found.append(fail(f"web.host = {web.host!r} needs web.token", hint, domain=Domain.USER))
    if case.running is not None:
        return [*found, ok(f"the engine that runs has its page at {case.running.url}")]
    problem = _taken(web.host, web.port)
    if problem is None:
        return [*found, ok(f"{web.host}:{web.port} is free" if web.port else "any free port is taken")]
    return [*found, warn(f"{web.host}:{web.port}: {problem}; the page would be at another port", "set web.port")]


def query(case: Case) -> Sequence[Finding]:
    """The ports for analysts' SQL are free, one for each DuckDB file."""
    assert case.config is not None
    settings = case.config.query
    sinks = [pipeline.sink for pipeline in case.pipelines.values()]
    files = {sink.path.resolve() for sink in sinks if isinstance(sink, DuckDBSinkConfig)}
    if not settings.serve or not files:
        return [ok("no DuckDB file is served")]
    if case.running is not None:
        served = ", ".join(database.path for database in case.running.databases) or "no file"
        return [ok(f"the engine that runs serves {served}")]
    if not settings.port:
        return [ok("each DuckDB file takes a free port")]
    ports = range(settings.port, settings.port + len(files))
    taken = [f"{port}: {problem}" for port in ports if (problem := _taken(settings.host, port)) is not None]
    if taken:
        return [fail(f"{settings.host}:{'; '.join(taken)}", "set query.port", domain=Domain.USER)]
    return [ok(f"{settings.host}:{ports[0]}" + (f" to {ports[-1]}" if len(ports) > 1 else "") + " free")]


def _taken(host: str, port: int) -> str | None:
    """Why nobody can listen there, found by listening for a moment."""
    if port == 0:
        return None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def tracing(case: Case) -> Sequence[Finding]:
    """The collector of traces takes connections."""
    assert case.config is not None
    settings = case.config.tracing
    if not settings.enabled:
        return [ok("traces are off")]
    parts = urlsplit(settings.endpoint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS_MAX).close()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return [
            warn(f"nobody takes traces at {host}:{port}: {why}", "start the collector; spans are lost meanwhile")
        ]
    return [ok(f"{host}:{port} takes connections; whether it takes spans shows when the first are sent")]


def registry(case: Case) -> Sequence[Finding]:
    """The schema registry answers, and takes the credentials."""
    assert case.config is not None
    needs = [name for name, each in case.pipelines.items() if each.schema_.format in REGISTERED_FORMATS]
    if case.config.registry.url is None:
        return [ok("no pipeline needs one")]
    if not needs:
        return [skipped("one is configured, and no pipeline needs it")]
    settings = case.config.registry
    try:
        asked = schema_registry(
            settings.model_copy(update={"timeout_seconds": min(settings.timeout_seconds, CONNECT_SECONDS_MAX)})
        )
        found = asked.schema(1)
    except HeadraceError as error:
        return [raised(error)]
    return [ok("it answers" + ("" if found is not None else "; it has no schema with id 1, which means nothing"))]
