"""A real Apache Kafka of one node, embedded: downloaded once, and ended with the process that started it."""

from connectors.kafka.broker.record import BrokerRunning, Record
from connectors.kafka.broker.server import Broker

__all__ = ["Broker", "BrokerRunning", "Record"]
