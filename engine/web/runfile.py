"""Who runs here: one small file for each run of this user, so that other commands find its page and its databases.

The directory is the user's own (0700), the files too (0600), because they hold tokens. A file whose process is dead
is removed when it is met. Several runs may have one configuration, as standbys do. Not here: what they are asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from engine.errors import ExternalError

FILE_BYTES_MAX = 1024 * 1024
FILES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class RunDatabase:
    """A DuckDB file that a run serves: where, and what its clients have to know."""

    path: str
    uri: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run. ``started_at`` is seconds since the epoch, ``url`` its page's (None: it has none)."""

    pid: int
    url: str | None
    config: str
    started_at: float
    token: str | None = field(default=None, repr=False)
    databases: tuple[RunDatabase, ...] = ()
    process: str = ""  #: when the process began, as the kernel counts; a pid comes again


def directory() -> Path:
    """The user's own directory of runs, made where it is missing. Raises ExternalError where it is not theirs."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = (
        Path(base) / "headrace"
        if base and Path(base).is_dir()
        else Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"
    )
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ExternalError(f"directory {path} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ExternalError(
            f"{path} is not a directory of this user alone", hint="remove it, or set XDG_RUNTIME_DIR to one that is"
        )
    return path


def write(run: RunFile) -> Path:
    """Tell of this run; what it told before is replaced. Raises ExternalError."""
    path = directory() / _name(run)
    run = dataclasses.replace(run, process=_process(run.pid) or "")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(run))
        draft.replace(path)
    except OSError as error:
        raise ExternalError(f"{path} cannot be written: {error.strerror}") from None
    return path


def remove(run: RunFile) -> None:
    """Take back what `write` told. Never raises."""
    with contextlib.suppress(OSError, ExternalError):
        (directory() / _name(run)).unlink(missing_ok=True)


def find(config: Path) -> RunFile | None:
    """The run of a configuration; None where there is none that lives.

    Of several the one that started first: it has the DuckDB files, and the others wait for them.
    """
    runs = of(config)
    return runs[0] if runs else None


def of(config: Path) -> Sequence[RunFile]:
    """Every run of a configuration that lives, the first first."""
    try:
        paths = sorted(directory().glob(f"{_stem(config)}.*.json"))[:FILES_MAX]
    except (ExternalError, OSError):
        return []
    found = [run for path in paths if (run := _living(path)) is not None]
    return sorted(found, key=lambda run: run.started_at)


def all() -> Sequence[RunFile]:  # noqa: A001 - reads as runfile.all()
    """Every run of this user that lives, the latest first."""
    try:
        paths = sorted(directory().glob("*.json"))[:FILES_MAX]
    except (ExternalError, OSError):
        return []
    found = [run for path in paths if (run := _living(path)) is not None]
    return sorted(found, key=lambda run: run.started_at, reverse=True)


def _name(run: RunFile) -> str:
    return f"{_stem(Path(run.config))}.{run.pid}.json"


def _stem(config: Path) -> str:
    return hashlib.sha256(os.fsencode(config.resolve())).hexdigest()[:32]


def _living(path: Path) -> RunFile | None:
    """The run of a file, which goes if the run is over."""
    run = _read(path)
    if run is None:
        return None
    process = _process(run.pid)
    if process is None or (run.process and process and process != run.process):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return run


def _read(path: Path) -> RunFile | None:
    """None for what is no such file, or not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                return None
            document = orjson.loads(file.read(FILE_BYTES_MAX))
        return _run(document)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(document: dict[str, Any]) -> RunFile:
    databases = tuple(
        RunDatabase(str(each["path"]), str(each["uri"]), str(each["token"])) for each in document["databases"]
    )
    url, token = document["url"], document["token"]
    return RunFile(
        pid=int(document["pid"]),
        url=None if url is None else str(url),
        config=str(document["config"]),
        started_at=float(document["started_at"]),
        token=None if token is None else str(token),
        databases=databases,
        process=str(document.get("process", "")),
    )


def _process(pid: int) -> str | None:
    """When the process began; empty where the system does not tell, None for a dead one."""
    if pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    try:
        # The fields after the name, which may hold anything: the state is the first of them, the start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return ""
