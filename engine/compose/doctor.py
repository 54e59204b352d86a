"""What ``headrace doctor`` does: every check, in order, each bounded in seconds, none of which changes anything.

A check that crashes or takes too long is a failed check, and the others go on. Blocking checks run in threads that
nobody waits for beyond their time: a file system that hangs holds up no other check. The checks themselves are in
`engine.compose.checks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.compose.checks import cluster, machine, serving, sinks
from engine.compose.checks.finding import Case, Check, Finding, Level, fail, ok, skipped
from engine.compose.retry import companions
from engine.config import Config
from engine.errors import Domain, HeadraceError
from engine.web import runfile

#: One check at most; those of the cluster ask for each pipeline in turn.
CHECK_SECONDS_MAX = 20.0

#: Checks that need no configuration.
ALONE: tuple[tuple[str, Check], ...] = (
    ("python", machine.python),
    ("packages", machine.packages),
    ("duckdb", machine.duckdb),
    ("compiled code", machine.compiled),
    ("clock", machine.clock),
)

#: Checks of a configuration, in their order: later ones use what earlier ones found.
CONFIGURED: tuple[tuple[str, Check], ...] = (
    ("running engine", serving.running),
    ("broker", cluster.broker),
    ("topics", cluster.topics),
    ("times", cluster.times),
    ("outputs", cluster.outputs),
    ("registry", serving.registry),
    ("sink directories", sinks.directories),
    ("file systems", sinks.one_file_system),
    ("disk", sinks.disk),
    ("DuckDB files", sinks.held),
    ("leftovers", sinks.leftovers),
    ("positions", cluster.positions),
    ("open files", machine.open_files),
    ("memory", machine.memory),
    ("page", serving.page),
    ("query ports", serving.query),
    ("traces", serving.tracing),
)


async def examine(
    file: Path,
    load: Callable[[], Config],
    *,
    bootstrap: str | None = None,
    seconds_max: float = CHECK_SECONDS_MAX,
    alone: Sequence[tuple[str, Check]] = ALONE,
    configured: Sequence[tuple[str, Check]] = CONFIGURED,
) -> AsyncIterator[Finding]:
    """Every finding, as soon as it is there. ``load`` gives the configuration, or raises what is wrong with it."""
    case = Case(file, bootstrap=bootstrap)
    try:
        for name, check in alone:
            for finding in await checked(name, check, case, seconds_max):
                yield finding
        for finding in await checked("configuration", _configuration(load), case, seconds_max):
            yield finding
        for name, check in configured:
            if case.config is None:
                yield replace(skipped("without a configuration"), check=name)
                continue
            for finding in await checked(name, check, case, seconds_max):
                yield finding
    finally:
        if case.cluster is not None:
            with contextlib.suppress(HeadraceError, OSError):
                await case.cluster.close()


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where nothing fails, else 2 for what the user can mend and 3 for what is outside."""
    return max((finding.domain.value for finding in findings if finding.level is Level.FAIL), default=0)


def _configuration(load: Callable[[], Config]) -> Check:
    def configuration(case: Case) -> Sequence[Finding]:
        """The file is a configuration."""
        config = load()
        enabled = {name: each for name, each in config.pipelines.items() if each.enabled}
        again = {name: each for name, each in companions(config.pipelines).items() if name not in enabled}
        case.pipelines = {**enabled, **again}
        case.companions = frozenset(again)
        case.running = runfile.find(case.file)
        case.config = config
        left_out = len(config.pipelines) - len(enabled)
        text = f"{case.file}: {len(enabled)} pipelines" + (f", {left_out} not enabled" if left_out else "")
        return [ok(text)]

    return configuration


async def checked(name: str, check: Check, case: Case, seconds_max: float) -> list[Finding]:
    """What a check finds; its crash, or that it takes longer than it may, is a finding too."""
    try:
        async with asyncio.timeout(seconds_max):
            found = await (check(case) if inspect.iscoroutinefunction(check) else _beside(check, case))
    except HeadraceError as error:
        found = [Finding(Level.FAIL, error.message, error.hint, None, error.domain)]
    except TimeoutError:
        found = [
            fail(f"no answer within {seconds_max:g} s", "what it asks hangs; the checks around it may say what")
        ]
    except Exception as error:
        found = [fail(f"the check itself failed: {type(error).__name__}: {error}", "that may be a bug in headrace")]
    return [replace(finding, check=name, domain=_known(finding.domain)) for finding in found]


def _known(domain: Domain) -> Domain:
    """A check has no other failures than the user's and those outside."""
    return domain if domain is Domain.USER else Domain.EXTERNAL


async def _beside(check: Check, case: Case) -> Any:
    """The findings of a blocking check, in a thread of its own that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = check(case)
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="headrace-doctor", daemon=True).start()
    return await done
