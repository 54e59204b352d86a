"""Checks of sinks that are files: may they be written, is there room, who holds them, what did a crash leave."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from connectors.parquet.layout import HIDDEN
from engine.compose.checks.finding import Case, Finding, fail, ok, warn
from engine.compose.checks.machine import writable
from engine.config_sinks import DuckDBSinkConfig, DuckLakeSinkConfig, ParquetSinkConfig
from engine.errors import Domain

#: Less free space is too little to begin with, or to go on with for long.
FREE_BYTES_FAIL = 64 * 1024 * 1024
FREE_BYTES_WARN = 2 * 1024 * 1024 * 1024
FREE_FILES_WARN = 10_000

#: So many names of a sink's directories are looked at; a sink may have millions of files.
NAMES_MAX = 20_000

#: File systems that are known to lack hard links or locks that hold between machines.
UNFIT = frozenset({"vfat", "exfat", "msdos", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys"})
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "fuse.sshfs"})

_HOLDER = re.compile(r"Conflicting lock is held in (.*?) ?\(PID (\d+)\)")


def _files(case: Case) -> Iterator[tuple[str, Path, ParquetSinkConfig | DuckDBSinkConfig | DuckLakeSinkConfig]]:
    for name, pipeline in case.pipelines.items():
        if isinstance(pipeline.sink, ParquetSinkConfig | DuckDBSinkConfig | DuckLakeSinkConfig):
            yield name, pipeline.sink.path, pipeline.sink


def directories(case: Case) -> Sequence[Finding]:
    """Each sink's place can be written to, and is of a kind that can keep it."""
    found = []
    for name, path, sink in _files(case):
        place = path if isinstance(sink, ParquetSinkConfig) else path.parent
        if isinstance(sink, ParquetSinkConfig) and path.exists() and not path.is_dir():
            found.append(fail(f"{path} is no directory", "set sink.path to one", name, Domain.USER))
        elif not isinstance(sink, ParquetSinkConfig) and path.is_dir():
            found.append(fail(f"{path} is a directory", "set sink.path to a file", name, Domain.USER))
        elif not writable(place) or (path.is_file() and not os.access(path, os.R_OK | os.W_OK)):
            hint = f"give user {os.getuid()} permission to write there, or set another sink.path"
            found.append(fail(f"{path} cannot be written to", hint, name))
        else:
            found.append(_of_kind(path, name))
    return found or [ok("no sink is a file")]


def _of_kind(path: Path, name: str) -> Finding:
    kind = file_system(path)
    if kind in UNFIT:
        return fail(f"{path} is on {kind}, which lacks hard links or locks", "use a local file system", name)
    if kind in REMOTE:
        text = f"{path} is on {kind}: exactly once rests on its locks, links and fsync being those of a local disk"
        return warn(text, "use a local disk, or make sure that one machine at a time writes there", name)
    return ok(
        f"{path} on {kind or 'an unknown file system'}" + ("" if path.exists() else ", made at the start"), name
    )


def file_system(path: Path) -> str | None:
    """The type of the file system that has ``path``; None where the system does not tell."""
    while not path.exists() and path.parent != path:
        path = path.parent
    try:
        device = path.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for mount in reversed(mounts):
        before, _, after = mount.partition(" - ")
        if before.split()[2:3] == [wanted]:
            return after.split()[0]
    return None


def one_file_system(case: Case) -> Sequence[Finding]:
    """A Parquet sink is on one file system: files come to their public names by renaming."""
    found = []
    for name, path, sink in _files(case):
        if not isinstance(sink, ParquetSinkConfig) or not path.is_dir():
            continue
        device = path.stat().st_dev
        strangers = [each for each in _directories(path) if _device(each) not in (device, None)]
        if strangers:
            text = f"{strangers[0]} is on another file system than {path}"
            found.append(fail(text, "have no mount or link inside of the directory", name))
        else:
            found.append(ok(f"{path} with its {HIDDEN} is on one file system", name))
    return found or [ok("no Parquet sink is there yet")]


def _device(path: Path) -> int | None:
    """Where a directory, or what a link leads to, lies; None for one that has just gone."""
    try:
        return path.stat().st_dev
    except FileNotFoundError:
        return None


def _directories(root: Path) -> Iterator[Path]:
    """Directories below ``root`` (links to some too), the first of them."""
    waiting, count = [root], 0
    while waiting:
        for path in _names(waiting.pop()):
            count += 1
            if count > NAMES_MAX:
                return
            if path.is_dir():
                yield path
                if not path.is_symlink():
                    waiting.append(path)


def disk(case: Case) -> Sequence[Finding]:
    """There is room on each file system, for more than what is in memory."""
    assert case.config is not None
    budget = case.config.engine.memory_bytes_max or 0
    places: dict[int, list[Path]] = {}
    logs = case.config.engine.function_log_path
    for path in [*(path for _, path, _ in _files(case)), *([logs] if logs is not None else [])]:
        while not path.exists() and path.parent != path:
            path = path.parent
        places.setdefault(path.stat().st_dev, []).append(path)
    found = []
    for paths in places.values():
        usage, counts = shutil.disk_usage(paths[0]), os.statvfs(paths[0])
        text = f"{paths[0]}: {usage.free / 2**30:,.1f} of {usage.total / 2**30:,.1f} GiB are free"
        hint = "free some: a full disk stops the pipeline, and it goes on where it was once there is room"
        if usage.free < FREE_BYTES_FAIL:
            found.append(fail(text, hint))
        elif usage.free < max(FREE_BYTES_WARN, 2 * budget):
            found.append(warn(text, hint))
        elif counts.f_files and counts.f_favail < FREE_FILES_WARN:
            found.append(
                warn(f"{paths[0]}: {counts.f_favail:,} more files are possible", "join small files: compact")
            )
        else:
            found.append(ok(text))
    return found or [ok("nothing is written to disk")]


def held(case: Case) -> Sequence[Finding]:
    """No other process holds a DuckDB file, but the engine that runs for this configuration."""
    found = []
    seen: set[Path] = set()
    for name, path, sink in _files(case):
        if isinstance(sink, ParquetSinkConfig) or path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if not path.exists():
            found.append(ok(f"{path} is made at the start", name))
            continue
        try:
            duckdb.connect(path, read_only=True).close()
        except duckdb.Error as error:
            found.append(_refused(case, name, path, error))
            continue
        log = path.with_name(f"{path.name}.wal")
        size = log.stat().st_size if log.exists() else 0
        left = f"; {size:,} bytes of its log are taken in at the next start" if size else ""
        found.append(ok(f"{path} can be opened, and nobody holds it{left}", name))
    return found or [ok("no sink is a DuckDB file")]


def _refused(case: Case, name: str, path: Path, error: duckdb.Error) -> Finding:
    if "Could not set lock" not in str(error):
        text = str(error).strip().splitlines()[0]
        hint = "a file of another DuckDB, or a damaged one: restore it, or give the pipeline a new file and name"
        return fail(f"{path}: {text}", hint, name)
    holder = _HOLDER.search(str(error))
    pid = int(holder[2]) if holder else None
    if pid is not None and case.running is not None and pid == case.running.pid:
        return ok(f"{path} is held by the engine that runs, process {pid}", name)
    who = f"process {pid} ({Path(holder[1]).name})" if holder else "another process"
    return fail(f"{path} is held by {who}", "end it; `headrace run` would wait for it, as a standby", name)


def leftovers(case: Case) -> Sequence[Finding]:
    """What a killed process may have left in Parquet sinks: staged files and temporary ones."""
    found = []
    for name, path, sink in _files(case):
        home = path / HIDDEN
        if not isinstance(sink, ParquetSinkConfig) or not home.is_dir():
            continue
        staged = [each for place in _directories(home) if place.name == "staging" for each in _names(place)]
        temporary = list(_names(home / "temporary")) if (home / "temporary").is_dir() else []
        count, size = len(staged), sum(_size(each) for each in staged)
        if case.running is not None:
            found.append(ok(f"{path}: {count} staged files, of the engine that runs", name))
        elif count or temporary:
            text = f"{path}: {count} staged files ({size:,} bytes) and {len(temporary)} temporary ones of a process"
            found.append(ok(f"{text} that ended: the next owner of their shards finishes or removes them", name))
        else:
            found.append(ok(f"{path}: nothing is left of a crash", name))
    return found or [ok("no Parquet sink is there yet")]


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _names(place: Path) -> Iterator[Path]:
    """What a directory holds, the first of it; nothing where it has just gone: an engine may be at work."""
    try:
        with os.scandir(place) as entries:
            for count, entry in enumerate(entries):
                if count >= NAMES_MAX:
                    return
                yield Path(entry.path)
    except FileNotFoundError:
        return
