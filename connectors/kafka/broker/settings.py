"""The settings that the embedded broker runs with: one place for all of them.

`server_properties` says how Kafka is configured, `java_options` how its Java runs and `logging_properties`
where its log goes. Nothing here starts anything, reads a file or opens a port.

The names and their meanings are those of Kafka's "Broker Configs". Only what differs from Kafka's own default
is set, and beside each group stands why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

HOST = "127.0.0.1"
PORT_DEFAULT = 9092
NODES_VALID = (1, 3)
"""One, or the least number of which a cluster can lose any one and go on."""
CLIENT_LISTENER = "PLAINTEXT"
CONTROLLER_LISTENER = "CONTROLLER"

HEAP_MEGABYTES_DEFAULT = 512
CLUSTER_HEAP_MEGABYTES_DEFAULT = 256
"""Of each node: three of them stay below 1.2 GB of resident memory under load."""

HEAP_MEGABYTES_MIN = 192
"""Below this Kafka starts, and then runs out of memory with a handful of large fetches."""

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""Largest record batch. Kafka's own 1 MB is too small for records that Lambda's 6 MB events are made of."""

LOG_FILE_MEGABYTES_MAX = 10
LOG_FILES_MAX = 3

TUNING: Mapping[str, str] = {
    # Topics are made on purpose: a mistyped name is an error, not an empty topic.
    "auto.create.topics.enable": "false",
    # Records live as long as their topic: replayed events carry old timestamps and would vanish at once.
    "log.retention.ms": "-1",
    "message.max.bytes": str(MESSAGE_BYTES_MAX),
    "replica.fetch.max.bytes": str(MESSAGE_BYTES_MAX),
    # Groups: no wait for members that will not come, and sessions short enough for tests of lost members.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A killed broker is registered until its session ends, and only then may start again: 9 s by default.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # One node holds everything, so internal topics have one replica; few partitions keep a first start short.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    # A laptop: few threads, small preallocated index files (128 MB of log need 256 KB of index), and no 128 MB
    # of heap put aside for the log cleaner.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "group.coordinator.threads": "1",
    "share.coordinator.threads": "1",
    "log.segment.bytes": str(128 * 1024 * 1024),
    "log.index.size.max.bytes": str(1024 * 1024),
    "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
}
"""What does not depend on a data directory or a port. A container of the same Kafka is held to these too."""

CLUSTER: Mapping[str, str] = {
    # Every topic survives the loss of one node, Kafka's own included, and takes records meanwhile.
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    # A reader that says where it is (client.rack) is sent to the replica of that rack.
    "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
}
"""What a node of several has beside and over `TUNING`."""


def rack(node: int) -> str:
    """The rack that a node of several says it stands in."""
    return f"rack-{node}"


def heap_megabytes_default(nodes: int) -> int:
    return HEAP_MEGABYTES_DEFAULT if nodes == 1 else CLUSTER_HEAP_MEGABYTES_DEFAULT


def server_properties(
    *,
    log_dir: Path,
    port: int,
    controller_ports: Mapping[int, int],
    node: int = 1,
    listeners: Mapping[str, tuple[str, int]] | None = None,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """All properties of one node that is broker and controller, loopback only.

    ``controller_ports`` are those of all nodes, by node number; with more than one the node is part of a cluster.
    ``listeners`` are further client listeners, name to (security protocol, port); ``extra`` goes over
    everything else.
    """
    clients = {CLIENT_LISTENER: (CLIENT_LISTENER, port), **(listeners or {})}
    addresses = {name: f"{name}://{HOST}:{number}" for name, (_, number) in clients.items()}
    protocols = {name: protocol for name, (protocol, _) in clients.items()} | {CONTROLLER_LISTENER: "PLAINTEXT"}
    controller = f"{CONTROLLER_LISTENER}://{HOST}:{controller_ports[node]}"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": ",".join(f"{each}@{HOST}:{at}" for each, at in controller_ports.items()),
        "controller.listener.names": CONTROLLER_LISTENER,
        "inter.broker.listener.name": CLIENT_LISTENER,
        "listeners": ",".join([*addresses.values(), controller]),
        "advertised.listeners": ",".join(addresses.values()),
        "listener.security.protocol.map": ",".join(f"{name}:{value}" for name, value in protocols.items()),
        "log.dirs": str(log_dir),
        **TUNING,
        **({"broker.rack": rack(node), **CLUSTER} if len(controller_ports) > 1 else {}),
        **(extra or {}),
    }


def java_options(*, heap_megabytes: int, logging: Path, brief: bool = False) -> list[str]:
    """What stands between ``java`` and the main class; ``brief`` is for a start at little cost."""
    return [
        f"-Xmx{heap_megabytes}m",
        "-Xms64m",
        # Beside G1 the serial collector takes some 100 MB less, and heaps of this size pause for milliseconds.
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        # The quick compiler alone halves the processor time of a start.
        *(["-XX:TieredStopAtLevel=1"] if brief else []),
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={logging}",
        # Kafka's codecs load native code and use sun.misc.Unsafe, which Java 25 warns about on every start.
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
    ]


def logging_properties(log_file: Path) -> dict[str, str]:
    """A log4j configuration: one file that rolls, so that a broker left running cannot fill the disk."""
    appender = {
        "type": "RollingFile",
        "name": "file",
        "fileName": str(log_file),
        "filePattern": f"{log_file}.%i",
        "layout.type": "PatternLayout",
        "layout.pattern": "%d{ISO8601} %p %m (%c{1})%n",
        "policies.type": "Policies",
        "policies.size.type": "SizeBasedTriggeringPolicy",
        "policies.size.size": f"{LOG_FILE_MEGABYTES_MAX}MB",
        "strategy.type": "DefaultRolloverStrategy",
        "strategy.max": str(LOG_FILES_MAX),
    }
    return {
        "status": "error",
        **{f"appender.file.{key}": value for key, value in appender.items()},
        "rootLogger.level": "info",
        "rootLogger.appenderRef.file.ref": "file",
    }


def properties_text(properties: Mapping[str, str]) -> str:
    """The text of a Java properties file, what `java.util.Properties` reads specially escaped."""
    return "".join(f"{_escaped(key, '=: ')}={_escaped(value, '')}\n" for key, value in properties.items())


def _escaped(text: str, also: str) -> str:
    special = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", "#": "\\#", "!": "\\!"}
    special |= {character: f"\\{character}" for character in also}
    escaped = "".join(special.get(character, character) for character in text)
    if escaped.startswith(" "):  # the reader drops leading blanks of a value
        escaped = "\\" + escaped
    # Properties files are ISO 8859-1 where they are read as bytes, UTF-8 elsewhere: ASCII is right in both.
    units = escaped.encode("utf-16-be")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)
