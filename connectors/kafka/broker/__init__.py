"""A real Apache Kafka, one node or three, embedded: downloaded once, ended with the process that started it."""

from connectors.kafka.broker.record import BrokerRunning, Record
from connectors.kafka.broker.server import Broker

__all__ = ["Broker", "BrokerRunning", "Record"]
