"""The broker's jars: a pinned list, a cache per user, and the proof that what is cached is what was pinned.

The list (``jars.json``) holds Maven coordinates, sizes and SHA-256 sums, and no address: jgo fetches from Maven
Central, or from the repositories that its own configuration file names. Where a jar comes from does not matter,
because nothing is used whose sum differs. Jars lie flat in one directory, so the class path is that directory's
files: jgo's sorting into ``jars/`` and ``modules/`` belongs to its environments, which are not used here.

This module downloads and checks; it knows nothing of Java or of how Kafka is run.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from connectors.kafka.broker.disk import disk_errors
from engine.errors import ExternalError

DOWNLOADS_MAX = 6
REQUEST_SECONDS_MAX = 30
ATTEMPTS_MAX = 2
STAMP = "verified.json"
LOCK = "download.lock"
STAGING_PREFIX = ".download-"

Fetch = Callable[["Jar", Path], Path]
"""Put one jar somewhere below a directory and say where. The directory is empty and thrown away afterwards."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned file."""

    group: str
    name: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class Pins:
    """The Kafka version, and every jar that it runs from."""

    kafka: str
    jars: tuple[Jar, ...]


def pins() -> Pins:
    """The list that this version of headrace was tested with."""
    text = importlib.resources.files(__package__).joinpath("jars.json").read_text("utf-8")
    raw = json.loads(text)
    return Pins(raw["kafka"], tuple(_jar(entry) for entry in raw["jars"]))


def _jar(entry: dict[str, Any]) -> Jar:
    group, name, version = entry["jar"].split(":")
    return Jar(group, name, version, entry["bytes"], entry["sha256"])


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/headrace/kafka``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "headrace" / "kafka"


def ensure(
    wanted: Pins,
    directory: Path,
    *,
    progress: Progress = lambda _line: None,
    fetch: Fetch | None = None,
) -> list[Path]:
    """Paths of all jars, each verified; whatever is missing or wrong is downloaded, once more if it comes wrong.

    A jar that was verified before and has kept its size and modification time is not read again, and with all
    of them there nothing touches the network.

    Raises `engine.errors.ExternalError` when a jar cannot be had, differs from its sum twice, or the disk
    refuses.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if _missing(wanted, directory):
            with (directory / LOCK).open("wb") as lock:
                _lock_download(lock, progress)
                # Looked at again: another start may have brought them all while this one waited.
                missing = _missing(wanted, directory)
                if missing:
                    _download_all(missing, directory, progress, fetch or fetch_with_jgo)
        stamp = {jar.file: _state(directory / jar.file, jar) for jar in wanted.jars}
        if stamp != _read_stamp(directory):
            _replace(directory / STAMP, json.dumps(stamp, indent=1).encode())
    return [directory / jar.file for jar in wanted.jars]


def _missing(wanted: Pins, directory: Path) -> list[Jar]:
    verified = _read_stamp(directory)
    return [jar for jar in wanted.jars if not _is_good(jar, directory, verified)]


def _lock_download(lock: IO[bytes], progress: Progress) -> None:
    """One download per cache at a time: it waits for another's, and clears away what a killed one left."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress("waiting for another start that is downloading the same jars")
        fcntl.flock(lock, fcntl.LOCK_EX)
    for left in Path(lock.name).parent.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def _state(path: Path, jar: Jar) -> list[Any]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, jar.sha256]


def _read_stamp(directory: Path) -> dict[str, list[Any]]:
    try:
        stamp = json.loads((directory / STAMP).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _is_good(jar: Jar, directory: Path, verified: dict[str, list[Any]]) -> bool:
    path = directory / jar.file
    if not path.is_file():
        return False
    return verified.get(jar.file) == _state(path, jar) or _sha256(path) == jar.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _download_all(
    missing: Sequence[Jar],
    directory: Path,
    progress: Progress,
    fetch: Fetch,
) -> None:
    megabytes = sum(jar.size_bytes for jar in missing) / 1e6
    broken = [jar.file for jar in missing if (directory / jar.file).exists()]
    for file in broken:
        progress(f"{file} in {directory} is damaged; downloading it again")
    progress(f"downloading {len(missing)} jars of Apache Kafka, {megabytes:.0f} MB, to {directory}")
    with (
        tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=directory) as staging,
        ThreadPoolExecutor(DOWNLOADS_MAX, thread_name_prefix="jar") as pool,
    ):
        done_bytes = 0
        # Each jar goes to its place as soon as it is verified: an interrupted download goes on where it was.
        tasks = [pool.submit(_download, jar, directory, Path(staging), fetch) for jar in missing]
        try:
            for number, (jar, task) in enumerate(zip(missing, tasks, strict=True), start=1):
                task.result()
                done_bytes += jar.size_bytes
                if number % 10 == 0 or number == len(missing):
                    progress(f"downloaded {number} of {len(missing)} jars, {done_bytes / 1e6:.0f} MB")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _download(jar: Jar, directory: Path, staging: Path, fetch: Fetch) -> None:
    found = ""
    for attempt in range(ATTEMPTS_MAX):
        place = staging / f"{jar.file}.{attempt}"
        place.mkdir()
        try:
            with disk_errors(directory):
                path = fetch(jar, place)
            found = _sha256(path)
            if found == jar.sha256:
                path.replace(directory / jar.file)
                return
        except FetchFailed as error:
            if attempt + 1 == ATTEMPTS_MAX:
                raise ExternalError(
                    f"{jar.file} could not be downloaded: {error}",
                    hint=f"the broker's first start needs Maven Central; jars are then kept in {directory}",
                ) from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
    raise ExternalError(
        f"{jar.file} has the wrong SHA-256 after two downloads: expected {jar.sha256}, found {found}",
        hint="a proxy or mirror may be changing files; nothing was installed",
    )


class FetchFailed(Exception):
    """A jar did not arrive; between these functions only. The text names no address: those may hold credentials."""


def fetch_with_jgo(jar: Jar, directory: Path) -> Path:
    """Download through jgo into a Maven repository at ``directory``."""
    artifact = maven_context(directory).project(jar.group, jar.name).at_version(jar.version).artifact()
    try:
        path: Path | None = artifact.resolve()
    except OSError as error:
        if error.errno is not None:  # the disk's; those of the HTTP client carry no number
            raise
        raise FetchFailed(f"no connection ({type(error).__name__})") from error
    except RuntimeError as error:  # what jgo raises when every repository answered, and none has it
        raise FetchFailed("no repository has it, or none answered") from error
    if path is None:
        raise FetchFailed("no repository has it, or none answered")
    return path


def maven_context(directory: Path) -> Any:
    """jgo's view of Maven: its default repository and those in its configuration file, cached in ``directory``."""
    # Imported late: jgo takes 0.2 s to import, and a start from the cache needs none of it.
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    repositories = {"central": MAVEN_CENTRAL_URL, **(GlobalSettings.load().repositories or {})}
    return MavenContext(repo_cache=directory, remote_repos=repositories, timeout=REQUEST_SECONDS_MAX)
