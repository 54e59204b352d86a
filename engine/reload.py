"""`--reload`: functions whose code changes on disk are started anew while their pipelines run.

A handler that is `Reloadable` starts new execution environments from the new code; invocations under way end on the
old ones, so no record is lost or handled twice because of it. Code that does not start is said in the log, and the
old goes on. Not here: configuration (a change of it needs a new start) and handlers that run in headrace's own
process, whose modules other code may hold.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import watchfiles

from engine.config import Config, FunctionConfig
from engine.errors import HeadraceError

log = logging.getLogger("headrace.reload")

#: Changes that come this close together are one; an editor writes a file in several steps.
STEP_MS = 100
DEBOUNCE_MS_MAX = 1_000

#: The watcher gives a sign of life after so long without changes.
QUIET_MS = 500

#: What counts as code; data files and what sinks write beside it do not.
CODE_SUFFIXES = frozenset({".py", ".pyd", ".so", ".js", ".cjs", ".mjs", ".jar", ".rb", ".sh"})

#: Directories, at any depth, that hold no function's own code. So do all whose names begin with a dot.
IGNORED_DIRECTORIES = frozenset({"__pycache__", "node_modules", "site-packages"})


@runtime_checkable
class Reloadable(Protocol):
    """A handler that can start its function anew."""

    async def reload(self) -> None:
        """Return when new invocations will run the code as it is on disk now.

        Raises a HeadraceError when that code does not start; then everything goes on as before.
        """


class Reloading(Protocol):
    """What is needed of a pipeline."""

    @property
    def name(self) -> str: ...

    @property
    def handler(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Watched:
    """A handler and where its code is. ``programs`` are files under ``root`` that are code whatever their names."""

    name: str
    root: Path
    handler: Reloadable
    programs: frozenset[Path] = frozenset()

    def concerns(self, path: Path) -> bool:
        """Whether a file is this function's code."""
        if not path.is_relative_to(self.root):
            return False
        inner = path.relative_to(self.root)
        if any(part in IGNORED_DIRECTORIES or part.startswith(".") for part in inner.parts[:-1]):
            return False
        # Editors keep what is not saved yet under such names.
        if inner.name.startswith("."):
            return False
        return inner.suffix in CODE_SUFFIXES or path in self.programs


def watched(pipelines: Iterable[Reloading], config: Config, directory: Path) -> list[Watched]:
    """The handlers that can be reloaded; the others are named in the log. ``directory`` is the configuration's."""
    found = []
    for pipeline in pipelines:
        function = config.pipelines[pipeline.name].function
        if function is None:
            continue
        handler = pipeline.handler
        if not isinstance(handler, Reloadable):
            log.warning(
                "%s: kind %s runs in this process; --reload does not reach it", pipeline.name, function.kind
            )
            continue
        root = (directory / (function.root or Path())).resolve()
        found.append(Watched(pipeline.name, root, handler, _programs(function, root)))
    return found


def _programs(function: FunctionConfig, root: Path) -> frozenset[Path]:
    return frozenset((root / part).resolve() for part in function.command)


class Reloader:
    """Watches the directories of functions and reloads those whose code changed."""

    def __init__(self, functions: Sequence[Watched]) -> None:
        self._functions = functions

    async def run(self) -> None:
        """Watch until cancelled. Never raises anything else: without watching, the pipelines go on."""
        if not self._functions:
            log.warning("--reload: no pipeline has a function that can be reloaded")
            return
        stop = threading.Event()
        try:
            await self._watch(stop)
        except (OSError, RuntimeError) as error:  # RuntimeError: what the watcher's native part raises
            log.error("--reload ends, changes are no longer seen: %s", error)
        finally:
            stop.set()

    async def _watch(self, stop: threading.Event) -> None:
        roots = sorted({function.root for function in self._functions})
        # In a thread: to set up the watch, every directory below the roots is read.
        changes = watchfiles.watch(
            *roots,
            watch_filter=lambda _change, path: self._is_code(Path(path)),
            debounce=DEBOUNCE_MS_MAX,
            step=STEP_MS,
            stop_event=stop,
            rust_timeout=QUIET_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        has_begun = False
        while (found := await asyncio.to_thread(next, changes, None)) is not None:
            if not has_begun:
                # Not before: a change that came earlier would not have been seen.
                log.info("--reload: watching %s", ", ".join(map(str, roots)))
                has_begun = True
            if found:
                await self.reload({Path(path) for _, path in found})

    def _is_code(self, path: Path) -> bool:
        return any(function.concerns(path) for function in self._functions)

    async def reload(self, paths: Iterable[Path]) -> None:
        """Reload every function that these changed files are code of, all at the same time."""
        paths = sorted(paths)
        affected: Mapping[str, tuple[Watched, list[Path]]] = {
            function.name: (function, own)
            for function in self._functions
            if (own := [path for path in paths if function.concerns(path)])
        }
        async with asyncio.TaskGroup() as tasks:
            for function, own in affected.values():
                tasks.create_task(self._reload(function, own))

    async def _reload(self, function: Watched, paths: Sequence[Path]) -> None:
        what = str(paths[0].relative_to(function.root)) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        try:
            await function.handler.reload()
        except HeadraceError as error:
            log.error("%s: %s changed but does not start; the old code goes on: %s", function.name, what, error)
        except Exception:
            log.exception("%s: %s changed; the old code goes on", function.name, what)
        else:
            log.info("%s: %s changed; new invocations run the new code", function.name, what)
