"""A stream, a sink and a destination in memory, as verified fakes of the durable ones."""

from connectors.memory.destination import MemoryDestination
from connectors.memory.group import MemoryGroup
from connectors.memory.log import MemoryCluster, MemoryLog, MemoryTopic, Transaction
from connectors.memory.sink import MemoryShardWriter, MemorySink, MemoryStore
from connectors.memory.source import MemorySource

__all__ = [
    "MemoryCluster",
    "MemoryDestination",
    "MemoryGroup",
    "MemoryLog",
    "MemoryShardWriter",
    "MemorySink",
    "MemorySource",
    "MemoryStore",
    "MemoryTopic",
    "Transaction",
]
