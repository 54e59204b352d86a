"""The embedded broker: a real Apache Kafka, of one node or three, on this machine's loopback.

`Broker` is for programs and tests; the command line uses it through `engine.compose.broker`. One data directory
holds everything of one broker: its log, its settings, who runs on it. Needed are neither Docker nor a system Java.

Not here: one node's process (`node`), what Kafka is told (`settings`), where its jars come from (`jars`), how it
dies with its parent (`supervisor`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from connectors.kafka.broker import jars, layout, probe, record, settings
from connectors.kafka.broker.disk import FREE_MEGABYTES_MIN, DiskFree, disk_errors, disk_free, full
from connectors.kafka.broker.node import Node, PortLost, end
from connectors.kafka.broker.process import java
from engine.errors import ExternalError, HeadraceError, UserError

START_SECONDS_MAX = 60.0
POLL_SECONDS = 0.03
PORT_ATTEMPTS_MAX = 3


def data_directory() -> Path:
    """``$XDG_DATA_HOME/headrace/broker``, by default below ``~/.local/share``."""
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "headrace" / "broker"


class Broker:
    """One broker on one data directory; a context manager, in both forms.

    ``nodes`` is 1, or 3 for a cluster: each node in a rack of its own (``rack-1`` to ``rack-3``), topics with three
    replicas by default, of which two have to take a record. `kill_node`, `stop_node` and `start_node` try it.

    Ends with this process, however that ends, unless ``background``. After `stop` or `kill` it can be started
    again on the same data and ports. Methods block; from a coroutine use ``async with``, or a thread.

    ``port`` is the first node's, the others follow it; 0 takes free ones. ``listeners`` are further client
    listeners, name to security protocol (``{"TLS": "SSL"}``), each on a free port that `address` gives;
    ``heap_megabytes`` is each node's; ``extra_properties`` go over the settings that this module makes. A broker
    that is ``brief`` takes half the processor time to start, and more of it for much work later.
    """

    def __init__(
        self,
        data: Path,
        *,
        nodes: int = 1,
        port: int = settings.PORT_DEFAULT,
        heap_megabytes: int | None = None,
        background: bool = False,
        listeners: Mapping[str, str] | None = None,
        extra_properties: Mapping[str, str] | None = None,
        brief: bool = False,
        progress: jars.Progress = lambda _line: None,
        jars_directory: Path | None = None,
        free: DiskFree = disk_free,
    ) -> None:
        if nodes not in settings.NODES_VALID:
            raise UserError(f"nodes is {nodes}; valid are {' and '.join(map(str, settings.NODES_VALID))}")
        port_max = 65_536 - nodes
        if not 0 <= port <= port_max:
            raise UserError(f"port is {port}; valid are 1 to {port_max}, and 0 for any free one")
        heap = settings.heap_megabytes_default(nodes) if heap_megabytes is None else heap_megabytes
        if heap < settings.HEAP_MEGABYTES_MIN:
            raise UserError(f"heap is {heap} MB; Kafka needs {settings.HEAP_MEGABYTES_MIN} MB or more")
        self.data = data.absolute()
        self._heap_megabytes = heap
        self._protocols = dict(listeners or {})
        self._extra = dict(extra_properties or {})
        self._brief = brief or nodes > 1  # three at once on a laptop
        self._progress = progress
        self._jars_directory = jars_directory
        self._free = free
        self._class_path = ""
        self._nodes = {
            number: Node(
                number,
                directory,
                name="Kafka" if nodes == 1 else f"node {number}",
                port=port and port + number - 1,
                background=background,
            )
            for number, directory in layout.directories(self.data, nodes).items()
        }
        # A cancelled ``async with`` stops while its thread is still starting: one waits for the other.
        self._one_at_a_time = threading.RLock()

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def bootstrap(self) -> str:
        """``host:port`` of the plaintext listener; those of several nodes with commas between."""
        return ",".join(node.address for node in self._nodes.values())

    @property
    def nodes(self) -> tuple[int, ...]:
        """Kafka's number of each node, whether it runs or not."""
        return tuple(self._nodes)

    @property
    def port(self) -> int:
        """The first node's port, once started."""
        return self._nodes[1].port

    @property
    def log(self) -> Path:
        """What the first node's Kafka logs."""
        return self._nodes[1].log

    def address(self, listener: str) -> str:
        """``host:port`` of one of the further listeners, once started; of several nodes with commas between."""
        return ",".join(f"{settings.HOST}:{node.listener_ports[listener]}" for node in self._nodes.values())

    def node_address(self, number: int) -> str:
        """``host:port`` of one node's plaintext listener."""
        return self._nodes[number].address

    @property
    def pid(self) -> int | None:
        """The process id of the first node's Java, or None when it does not run."""
        return self.pids.get(1)

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each node's Java, of those that were started."""
        return {number: node.record.pid for number, node in self._nodes.items() if node.record is not None}

    @property
    def running(self) -> bool:
        """Whether any node lives."""
        return any(node.running for node in self._nodes.values())

    def node_running(self, number: int) -> bool:
        return self._nodes[number].running

    def node_failure(self, number: int) -> HeadraceError | None:
        """Why a node that was started no longer runs: None while it does, or after somebody stopped it."""
        return self._nodes[number].failure()

    def failure(self) -> HeadraceError | None:
        """As `node_failure`, of the first node that failed."""
        return next((found for number in self._nodes if (found := self.node_failure(number)) is not None), None)

    # -- starting --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, and return when the broker answers a metadata request, and all of its nodes take part.

        Raises `record.BrokerRunning` when the directory has a broker, `engine.errors.UserError` when it was made
        with another number of nodes, `engine.errors.ExternalError` when the disk, a port or a jar is in the way,
        `engine.errors.BrokerUnavailable` when Kafka itself fails.
        """
        with (
            self._one_at_a_time,
            disk_errors(self.data),
            layout.locked(self.data, len(self._nodes)) as locks,
        ):
            self._start_locked(locks)

    def _start_locked(self, locks: Mapping[int, int]) -> None:
        for node in self._nodes.values():
            stale = record.read(node.directory)
            if stale is not None:
                self._progress(
                    f"the last broker here, process {stale.pid}, ended without stopping; going on from its data"
                )
            node.forget()
            record.remove(node.directory)
        left, needed = self._free(self.data), FREE_MEGABYTES_MIN * len(self._nodes)
        if left < needed * 1024**2:
            raise full(self.data, left, needed)
        self._check_ports(self._nodes.values())
        pins = jars.pins()
        directory = self._jars_directory or jars.cache_directory() / pins.kafka
        self._class_path = os.pathsep.join(map(str, jars.ensure(pins, directory, progress=self._progress)))
        nodes = "" if len(self._nodes) == 1 else f", {len(self._nodes)} nodes"
        self._progress(f"starting Apache Kafka {pins.kafka}{nodes}")
        for attempt in range(PORT_ATTEMPTS_MAX):
            ports = {number: (node.port, dict(node.listener_ports)) for number, node in self._nodes.items()}
            try:
                self._configure()
                self._format()
                self._run(list(self._nodes.values()), locks, everybody=True)
            except PortLost:
                # Somebody took a port between its choice and its use. Chosen ones are chosen again.
                for number, node in self._nodes.items():
                    node.port, node.listener_ports = ports[number]
                self._check_ports(self._nodes.values())
                if attempt + 1 == PORT_ATTEMPTS_MAX:
                    raise self._nodes[1].failed("Kafka found its ports taken again and again") from None
            else:
                return

    def _check_ports(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.port and not probe.is_free(node.port):
                raise ExternalError(
                    f"port {node.port} on {settings.HOST} is taken by another program",
                    hint="choose another with --port, or 0 for any free one",
                )

    def _configure(self) -> None:
        """Choose the ports that are open to choice, and have each node write down what it is to read."""
        fixed = {node.port for node in self._nodes.values()}
        wanted = len(self._nodes) * (2 + len(self._protocols))
        free = [port for port in probe.free_ports(wanted + len(fixed)) if port not in fixed]
        for node in self._nodes.values():
            node.controller_port = free.pop()
            node.port = node.port or free.pop()
            for name in self._protocols:
                node.listener_ports[name] = node.listener_ports.get(name) or free.pop()
        for node in self._nodes.values():
            listeners = {name: (value, node.listener_ports[name]) for name, value in self._protocols.items()}
            node.configure(
                settings.server_properties(
                    log_dir=node.log_directory,
                    node=node.number,
                    port=node.port,
                    controller_ports={each.number: each.controller_port for each in self._nodes.values()},
                    listeners=listeners,
                    extra=self._extra,
                )
            )

    def _command(self, node: Node) -> list[str]:
        options = settings.java_options(heap_megabytes=self._heap_megabytes, logging=node.log4j, brief=self._brief)
        return [java(), *options, "-cp", self._class_path]

    def _cluster_id(self) -> str:
        """The cluster that the directory was made for, or a new id.

        In the form of StorageTool's own: 16 random bytes, URL-safe, not beginning with a dash.
        """
        made = next((found for node in self._nodes.values() if (found := node.cluster_id()) is not None), None)
        return made or base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)

    def _format(self) -> None:
        cluster = self._cluster_id()
        with ThreadPoolExecutor(len(self._nodes), thread_name_prefix="format") as pool:
            for done in [pool.submit(node.format, self._command(node), cluster) for node in self._nodes.values()]:
                done.result()

    def _run(self, nodes: Sequence[Node], locks: Mapping[int, int], *, everybody: bool) -> None:
        """Start some nodes, and wait until each answers and knows of itself, or of all."""
        try:
            for node in nodes:
                node.run(self._command(node), jars.pins().kafka, locks[node.number])
            self._wait_until_ready(nodes, everybody)
        except BaseException:
            end(nodes, signal.SIGKILL)
            raise

    def _wait_until_ready(self, nodes: Sequence[Node], everybody: bool) -> None:
        cluster = self._cluster_id()
        deadline = time.monotonic() + START_SECONDS_MAX
        waiting = list(nodes)
        while True:
            waiting = [
                node
                for node in waiting
                if not node.is_ready(cluster, frozenset(self._nodes if everybody else (node.number,)))
            ]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise waiting[0].failed(
                    f"Kafka did not answer on {waiting[0].address} within {START_SECONDS_MAX:.0f} s"
                )
            time.sleep(POLL_SECONDS)

    def start_node(self, number: int) -> None:
        """Start a node that was ended, on its data and ports, beside those that live; return when it takes part.

        Raises `record.BrokerRunning` when it lives, else as `start` does.
        """
        node = self._nodes[number]
        with self._one_at_a_time, disk_errors(self.data):
            assert self._class_path, "the broker was not started"
            lock = record.take_lock(node.directory)
            try:
                node.forget()
                self._check_ports([node])
                self._run([node], {number: lock}, everybody=False)
            except PortLost:
                raise node.failed(f"a port of node {number} was taken by another program") from None
            finally:
                os.close(lock)

    # -- ending ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the broker in order (SIGTERM), or at once when that takes longer than `record.STOP_SECONDS_MAX`."""
        self._end(list(self._nodes.values()), signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is flushed, and clients see their connections break."""
        self._end(list(self._nodes.values()), signal.SIGKILL)

    def stop_node(self, number: int) -> None:
        """End one node in order: it hands its partitions over first. `start_node` brings it back."""
        self._end([self._nodes[number]], signal.SIGTERM)

    def kill_node(self, number: int) -> None:
        """SIGKILL one node, as a crash would. `start_node` brings it back."""
        self._end([self._nodes[number]], signal.SIGKILL)

    def _end(self, nodes: Sequence[Node], number: signal.Signals) -> None:
        with self._one_at_a_time:
            end(nodes, number)

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
