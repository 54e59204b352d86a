"""The embedded broker: a real Apache Kafka, one node, on this machine's loopback.

`Broker` is for programs and tests; the command line uses it through `engine.compose.broker`. One data directory
holds everything of one broker: its log, its settings, who runs on it. Needed are neither Docker nor a system Java.

Not here: what Kafka is told (`settings`), where its jars come from (`jars`), how it dies with its parent
(`supervisor`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from connectors.kafka.broker import jars, probe, record, settings
from connectors.kafka.broker.disk import FREE_MEGABYTES_MIN, DiskFree, disk_errors, disk_free, full
from connectors.kafka.broker.process import Supervised, java, tail
from engine.errors import BrokerUnavailable, ExternalError, HeadraceError, UserError

START_SECONDS_MAX = 60.0
FORMAT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.03
LOG_LINES_SHOWN = 12
PORT_ATTEMPTS_MAX = 3
TERMINATED = 128 + signal.SIGTERM


def data_directory() -> Path:
    """``$XDG_DATA_HOME/headrace/broker``, by default below ``~/.local/share``."""
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "headrace" / "broker"


class Broker:
    """One broker on one data directory; a context manager, in both forms.

    Ends with this process, however that ends, unless ``background``. After `stop` or `kill` it can be started
    again on the same data and ports. Methods block; from a coroutine use ``async with``, or a thread.

    ``port`` 0 takes a free one. ``listeners`` are further client listeners, name to security protocol
    (``{"TLS": "SSL"}``), each on a free port that `address` gives; ``extra_properties`` go over the settings
    that this module makes.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = settings.PORT_DEFAULT,
        heap_megabytes: int = settings.HEAP_MEGABYTES_DEFAULT,
        background: bool = False,
        listeners: Mapping[str, str] | None = None,
        extra_properties: Mapping[str, str] | None = None,
        progress: jars.Progress = lambda _line: None,
        jars_directory: Path | None = None,
        free: DiskFree = disk_free,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise UserError(f"port is {port}; valid are 1 to 65535, and 0 for any free one")
        if heap_megabytes < settings.HEAP_MEGABYTES_MIN:
            raise UserError(f"heap is {heap_megabytes} MB; Kafka needs {settings.HEAP_MEGABYTES_MIN} MB or more")
        self.data = data.absolute()
        self.port = port
        self.log = self.data / "kafka.log"
        self._console = self.data / "console.log"
        self._heap_megabytes = heap_megabytes
        self._background = background
        self._protocols = dict(listeners or {})
        self._listener_ports: dict[str, int] = {}
        self._extra = dict(extra_properties or {})
        self._progress = progress
        self._jars_directory = jars_directory
        self._free = free
        self._record: record.Record | None = None
        self._process: Supervised | None = None
        self._log_start = 0
        # A cancelled ``async with`` stops while its thread is still starting: one waits for the other.
        self._one_at_a_time = threading.RLock()

    @property
    def bootstrap(self) -> str:
        """``host:port`` of the plaintext listener."""
        return f"{settings.HOST}:{self.port}"

    def address(self, listener: str) -> str:
        """``host:port`` of one of the further listeners, once started."""
        return f"{settings.HOST}:{self._listener_ports[listener]}"

    @property
    def pid(self) -> int | None:
        """The process id of Kafka's Java, or None when it was not started."""
        return None if self._record is None else self._record.pid

    @property
    def running(self) -> bool:
        return self._record is not None and record.is_alive(self.data)

    def start(self) -> None:
        """Start, and return when the broker answers a metadata request.

        Raises `record.BrokerRunning` when the directory has a broker, `engine.errors.ExternalError` when the
        disk, the port or a jar is in the way, `engine.errors.BrokerUnavailable` when Kafka itself fails.
        """
        with self._one_at_a_time, disk_errors(self.data):
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = record.take_lock(self.data)
            try:
                self._start_locked(lock)
            finally:
                os.close(lock)

    def _start_locked(self, lock: int) -> None:
        stale = record.read(self.data)
        if stale is not None:
            self._progress(
                f"the last broker here, process {stale.pid}, ended without stopping; going on from its data"
            )
        record.remove(self.data)
        left = self._free(self.data)
        if left < FREE_MEGABYTES_MIN * 1024**2:
            raise full(self.data, left)
        self._check_port()
        pins = jars.pins()
        directory = self._jars_directory or jars.cache_directory() / pins.kafka
        class_path = os.pathsep.join(map(str, jars.ensure(pins, directory, progress=self._progress)))
        log4j = self.data / "log4j2.properties"
        options = settings.java_options(heap_megabytes=self._heap_megabytes, logging=log4j)
        command = [java(), *options, "-cp", class_path]
        self._progress(f"starting Apache Kafka {pins.kafka}")
        for attempt in range(PORT_ATTEMPTS_MAX):
            fixed, ports = self.port, dict(self._listener_ports)
            try:
                self._configure(log4j)
                self._format(command)
                self._run(command, pins.kafka, lock)
            except _PortLost:
                # Somebody took a port between its choice and its use. Chosen ones are chosen again.
                self.port, self._listener_ports = fixed, ports
                self._check_port()
                if attempt + 1 == PORT_ATTEMPTS_MAX:
                    raise self._failure("Kafka found its ports taken again and again") from None
            else:
                return

    def _check_port(self) -> None:
        if self.port and not probe.is_free(self.port):
            raise ExternalError(
                f"port {self.port} on {settings.HOST} is taken by another program",
                hint="choose another with --port, or 0 for any free one",
            )

    def _configure(self, log4j: Path) -> None:
        """Choose the ports that are open to choice, and write down what Kafka is to read."""
        needed = [name for name in self._protocols if name not in self._listener_ports]
        controller, *free = probe.free_ports(2 + len(needed))
        self.port = self.port or free[-1]
        self._listener_ports |= dict(zip(needed, free, strict=False))
        properties = settings.server_properties(
            log_dir=self.data / "kafka",
            port=self.port,
            controller_port=controller,
            listeners={name: (value, self._listener_ports[name]) for name, value in self._protocols.items()},
            extra=self._extra,
        )
        for path, content in (
            (self._properties, properties),
            (log4j, settings.logging_properties(self.log)),
        ):
            path.touch(mode=0o600)  # may hold passwords of listeners
            path.write_text(settings.properties_text(content), "ascii")
        self._console.write_bytes(b"")
        self._log_start = self.log.stat().st_size if self.log.exists() else 0

    @property
    def _properties(self) -> Path:
        return self.data / "server.properties"

    def _format(self, command: list[str]) -> None:
        """Make the log directory, once. A format that was cut off has no ``meta.properties``, which comes last."""
        if self._cluster_id() is not None:
            return
        # StorageTool's own form of a new id: 16 random bytes, URL-safe, not beginning with a dash.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)
        arguments = ["format", "--ignore-formatted", "-t", cluster, "-c", str(self._properties)]
        tool = Supervised([*command, "kafka.tools.StorageTool", *arguments], console=self._console)
        if tool.wait(FORMAT_SECONDS_MAX) != 0 or self._cluster_id() is None:
            raise self._failure(f"Kafka could not prepare {self.data / 'kafka'}")

    def _cluster_id(self) -> str | None:
        try:
            text = (self.data / "kafka" / "meta.properties").read_text("utf-8")
        except FileNotFoundError:
            return None
        pairs = (line.partition("=") for line in text.splitlines())
        return next((value.strip() for key, _, value in pairs if key == "cluster.id"), None)

    def _run(self, command: list[str], kafka: str, lock: int) -> None:
        process = Supervised(
            [*command, "kafka.Kafka", str(self._properties)],
            console=self._console,
            background=self._background,
            keep=[lock],
        )
        self._process = process
        started = record.start_time(process.pid)
        self._record = record.Record(process.pid, started, self.bootstrap, kafka, self._background)
        try:
            record.write(self.data, self._record)
            self._wait_until_ready()
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def _wait_until_ready(self) -> None:
        assert self._record is not None
        cluster = self._cluster_id()
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            ended = record.start_time(self._record.pid) != self._record.started or (
                self._process is not None and self._process.exit_code is not None
            )
            answer = None if ended else probe.cluster_id(self.port)
            if answer == cluster:
                return
            if ended or answer is not None:
                if answer is not None or self._log_says("Address already in use", "BindException"):
                    raise _PortLost
                raise self._failure("Kafka ended while it was starting")
            if time.monotonic() > deadline:
                raise self._failure(f"Kafka did not answer on {self.bootstrap} within {START_SECONDS_MAX:.0f} s")
            time.sleep(POLL_SECONDS)

    def _log_says(self, *texts: str) -> bool:
        lines = tail(self.log, start=self._log_start, lines_max=200, bytes_max=65_536)
        return any(text in line for line in [*lines, *tail(self._console)] for text in texts)

    def _failure(self, what: str) -> HeadraceError:
        if self._log_says("No space left on device", "Disk quota exceeded"):
            return full(self.data)
        lines = [*tail(self._console, lines_max=400), *tail(self.log, start=self._log_start, lines_max=400)]
        # Java says the cause first and then dozens of frames, which would push it out of what is shown.
        lines = [line for line in lines if line.strip() and not line.startswith("\t")][-LOG_LINES_SHOWN:]
        shown = "".join(f"\n  | {line}" for line in lines) or " (it wrote nothing)"
        return BrokerUnavailable(
            f"{what}; its last lines:{shown}", hint=f"all of it: {self.log} and {self._console}"
        )

    def failure(self) -> HeadraceError | None:
        """Why a broker that was started no longer runs: None while it does, or after somebody stopped it."""
        process = self._process
        if process is None or process.exit_code in (None, TERMINATED):
            return None
        return self._failure(f"Kafka ended with exit code {process.exit_code}")

    def stop(self) -> None:
        """End the broker in order (SIGTERM), or at once when that takes longer than `record.STOP_SECONDS_MAX`."""
        with self._one_at_a_time:
            self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is flushed, and clients see their connections break."""
        with self._one_at_a_time:
            self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        known = self._record
        if known is None:
            return
        if number == signal.SIGTERM:
            record.end_in_order(known)
        else:
            record.end(known, number, seconds_max=record.KILL_SECONDS_MAX)
        if self._process is not None:
            self._process.release()
        self._record = self._process = None
        record.remove(self.data, known.pid)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


class _PortLost(Exception):
    """A port was taken by another program while Java was starting."""
