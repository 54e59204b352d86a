"""One node: one Java process that runs Kafka on one directory.

`server.Broker` is made of these. Not here: what Kafka is told (`settings`), who may run on a directory (`record`).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from connectors.kafka.broker import probe, record, settings
from connectors.kafka.broker.disk import full
from connectors.kafka.broker.layout import LOG_DIRECTORY
from connectors.kafka.broker.process import Supervised, tail
from engine.errors import BrokerUnavailable, HeadraceError

FORMAT_SECONDS_MAX = 60.0
ENDED_SECONDS_MAX = 2.0
LOG_LINES_SHOWN = 12
TERMINATED = 128 + signal.SIGTERM


class PortLost(Exception):
    """A port was taken by another program while Java was starting."""


class Node:
    """Node ``number`` in ``directory``. Ports are chosen by `Broker`, once; 0 is not chosen yet.

    ``name`` begins what is said of it: "Kafka", or "node 2" of several.
    """

    def __init__(self, number: int, directory: Path, *, name: str, port: int, background: bool) -> None:
        self.number = number
        self.directory = directory
        self.port = port
        self.controller_port = 0
        self.listener_ports: dict[str, int] = {}
        self.log = directory / "kafka.log"
        self.log4j = directory / "log4j2.properties"
        self.record: record.Record | None = None
        self._name = name
        self._background = background
        self._console = directory / "console.log"
        self._properties = directory / "server.properties"
        self._process: Supervised | None = None
        self._log_start = 0

    @property
    def address(self) -> str:
        return f"{settings.HOST}:{self.port}"

    @property
    def running(self) -> bool:
        return self.record is not None and record.is_alive(self.directory)

    @property
    def log_directory(self) -> Path:
        return self.directory / LOG_DIRECTORY

    def configure(self, properties: Mapping[str, str]) -> None:
        """Write down what Kafka is to read."""
        for path, content in (
            (self._properties, properties),
            (self.log4j, settings.logging_properties(self.log)),
        ):
            path.touch(mode=0o600)  # may hold passwords of listeners
            path.write_text(settings.properties_text(content), "ascii")

    def _begin_output(self) -> None:
        self._console.write_bytes(b"")
        self._log_start = self.log.stat().st_size if self.log.exists() else 0

    def format(self, command: Sequence[str], cluster: str) -> None:
        """Make the log directory, once. A format that was cut off has no ``meta.properties``, which comes last."""
        if self.cluster_id() is not None:
            return
        self._begin_output()
        arguments = ["format", "--ignore-formatted", "-t", cluster, "-c", str(self._properties)]
        tool = Supervised([*command, "kafka.tools.StorageTool", *arguments], console=self._console)
        if tool.wait(FORMAT_SECONDS_MAX) != 0 or self.cluster_id() is None:
            raise self.failed(f"{self._name} could not prepare {self.log_directory}")

    def cluster_id(self) -> str | None:
        """The cluster that the log directory was made for, or None if it was not made."""
        try:
            text = (self.log_directory / "meta.properties").read_text("utf-8")
        except FileNotFoundError:
            return None
        pairs = (line.partition("=") for line in text.splitlines())
        return next((value.strip() for key, _, value in pairs if key == "cluster.id"), None)

    def run(self, command: Sequence[str], kafka: str, lock: int) -> None:
        """Start Java, which keeps ``lock``; `is_ready` says when it answers."""
        self._begin_output()
        process = Supervised(
            [*command, "kafka.Kafka", str(self._properties)],
            console=self._console,
            background=self._background,
            keep=[lock],
        )
        self._process = process
        started = record.start_time(process.pid)
        self.record = record.Record(process.pid, started, self.address, kafka, self._background)
        record.write(self.directory, self.record)

    def is_ready(self, cluster: str, nodes: frozenset[int]) -> bool:
        """Whether it answers, and says that ``nodes`` take part. Raises `PortLost`, BrokerUnavailable."""
        assert self.record is not None
        ended = record.start_time(self.record.pid) != self.record.started or (
            self._process is not None and self._process.exit_code is not None
        )
        answer = None if ended else probe.ask(self.port)
        if answer is not None and answer.cluster_id == cluster:
            return nodes <= answer.nodes
        if answer is not None or (ended and self._log_says("Address already in use", "BindException")):
            raise PortLost
        if ended:
            raise self.failed(f"{self._name} ended while it was starting")
        return False

    def _log_says(self, *texts: str) -> bool:
        lines = tail(self.log, start=self._log_start, lines_max=200, bytes_max=65_536)
        return any(text in line for line in [*lines, *tail(self._console)] for text in texts)

    def failed(self, what: str) -> HeadraceError:
        """The error that ``what`` is, with the last lines that Kafka wrote."""
        if self._log_says("No space left on device", "Disk quota exceeded"):
            return full(self.directory)
        lines = [*tail(self._console, lines_max=400), *tail(self.log, start=self._log_start, lines_max=400)]
        # Java says the cause first and then dozens of frames, which would push it out of what is shown.
        lines = [line for line in lines if line.strip() and not line.startswith("\t")][-LOG_LINES_SHOWN:]
        shown = "".join(f"\n  | {line}" for line in lines) or " (it wrote nothing)"
        return BrokerUnavailable(
            f"{what}; its last lines:{shown}", hint=f"all of it: {self.log} and {self._console}"
        )

    def failure(self) -> HeadraceError | None:
        """Why a node that was started no longer runs: None while it does, or after somebody stopped it."""
        if self._process is None or self.running:
            return None
        code = self._process.ended(ENDED_SECONDS_MAX)
        return None if code in (None, TERMINATED) else self.failed(f"{self._name} ended with exit code {code}")

    def forget(self) -> None:
        """Collect what was ended."""
        known, self.record = self.record, None
        process, self._process = self._process, None
        if process is not None:
            process.release()
        if known is not None:
            record.remove(self.directory, known.pid)


def end(nodes: Sequence[Node], number: signal.Signals) -> None:
    """End nodes, all at once: in order (SIGTERM, and SIGKILL when that takes too long) or as a crash would."""
    known = [node.record for node in nodes if node.record is not None]
    if number == signal.SIGTERM:
        record.end_in_order(known)
    else:
        record.end(known, number, seconds_max=record.KILL_SECONDS_MAX)
    for node in nodes:
        node.forget()
